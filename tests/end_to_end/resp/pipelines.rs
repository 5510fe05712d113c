//! Pipelines: many commands at once, answered in order, as if they had been sent one after the other.

use std::io::{Read as _, Write as _};
use std::thread;

use redis::Value;

use super::wire::{Wire, frame, text, texts, with_pool};
use crate::client::Client;
use crate::server::until;

/// Sends all commands at once, and reads as many replies.
fn all(wire: &mut Wire, commands: &[&str]) -> Vec<String> {
    wire.send(&commands.iter().flat_map(|parts| frame(parts)).collect::<Vec<u8>>());
    commands.iter().map(|_| text(&wire.receive())).collect()
}

#[test]
fn answers_come_in_order() {
    let (_dir, _server, _client, mut wire) = with_pool(3_000);
    let mut commands = Vec::new();
    for i in 0..3_000 {
        commands.push(format!("CLAIM ns/warm KEY k{i}"));
        match i % 100 {
            10 => commands.push(format!("ECHO e{i}")),
            20 => commands.push(format!("RELEASE ns k{i} *")),
            30 => commands.push("NOTHING".to_owned()),
            40 => commands.push("CLAIM ns/warm KEY !".to_owned()),
            50 => commands.push("CONFIRM ns a 1".to_owned()),
            _ => {}
        }
    }
    let bytes: Vec<u8> = commands.iter().flat_map(|parts| frame(parts)).collect();
    wire.send(&bytes);
    for command in &commands {
        let answer = text(&wire.receive());
        let parts: Vec<&str> = command.split(' ').collect();
        let expected = match parts[0] {
            "CLAIM" if parts[3] == "!" => "-BADREQ key".to_owned(),
            "CLAIM" => format!("[{} ", parts[3]),
            "ECHO" => parts[1].to_owned(),
            "RELEASE" => "1".to_owned(),
            "CONFIRM" => "-NOTFOUND".to_owned(),
            _ => "-ERR unknown command".to_owned(),
        };
        assert!(answer.starts_with(&expected), "{command}: {answer}");
    }
}

/// Connections that start on one thread and are deep move to another, with their session.
#[test]
fn deep_connections_keep_their_session() {
    let (_dir, server, _client, first) = with_pool(400);
    let mut wires = vec![first];
    wires.extend((1..6).map(|_| Wire::connect(server.resp.unwrap())));
    for (n, wire) in wires.iter_mut().enumerate() {
        assert!(wire.reply_text("HELLO 3").contains("proto=3"));
        assert_eq!(wire.reply_text(&format!("CLIENT SETNAME n{n}")), "OK");
    }
    for round in 0..32 {
        for (n, wire) in wires.iter_mut().enumerate() {
            let key = format!("{n}-{round}");
            let (claim, release) = (format!("CLAIM ns/warm KEY {key}"), format!("RELEASE ns {key} *"));
            let echoes: Vec<String> = (0..8).map(|i| format!("ECHO {key}-{i}")).collect();
            let commands: Vec<&str> = [&claim, &release].into_iter().chain(&echoes).map(String::as_str).collect();
            let answers = all(wire, &commands);
            assert!(answers[0].starts_with(&format!("{{key={key} fence=")), "{}", answers[0]);
            assert_eq!(answers[1], "1");
            assert!(echoes.iter().zip(&answers[2..]).all(|(echo, answer)| echo[5..] == **answer), "{answers:?}");
        }
    }
    for (n, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.reply_text("CLIENT GETNAME"), format!("n{n}"));
    }
}

#[test]
fn a_repeated_key_in_a_pipeline_is_executed_in_order() {
    let (_dir, _server, _client, mut wire) = with_pool(2);
    let answers = all(
        &mut wire,
        &[
            "CLAIM ns/warm KEY a",
            "CLAIM ns/warm KEY a",
            "RELEASE ns a *",
            "RELEASE ns a *",
            "CLAIM ns/warm KEY a",
            "RELEASE ns a 1",
            "CLAIM ns/warm KEY b",
            "RELEASE ns a *",
            "CLAIM ns/warm KEY a TENANT t",
            "CLAIM ns/warm KEY a",
        ],
    );
    let claim = |answer: &str| answer.trim_matches(['[', ']']).split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(answers[0], answers[1], "the same claim");
    assert_eq!(&answers[2..4], ["1", "0"]);
    let (first, again) = (claim(&answers[0]), claim(&answers[4]));
    assert!(again[1].parse::<u64>().unwrap() > first[1].parse::<u64>().unwrap(), "{answers:?}");
    assert_eq!(answers[5], "-FENCED the fence is not the holder's");
    assert_eq!(claim(&answers[6])[0], "b");
    assert_eq!(answers[7], "1");
    // Another tenant has another key; then no capacity is left.
    assert_eq!(claim(&answers[8])[0], "a");
    assert!(answers[9].starts_with("-NOCAPACITY"), "{answers:?}");
}

#[test]
fn what_is_released_first_can_be_claimed_next() {
    let (_dir, _server, _client, mut wire) = with_pool(1);
    wire.call("CLAIM ns/warm KEY k0");
    for i in 0..500 {
        let (release, claim) = (format!("RELEASE ns k{i} *"), format!("CLAIM ns/warm KEY k{}", i + 1));
        let answers = all(&mut wire, &["CLAIM ns/warm KEY x", &release, &claim]);
        assert!(answers[0].starts_with("-NOCAPACITY"), "{answers:?}");
        assert_eq!(answers[1], "1");
        assert!(answers[2].starts_with(&format!("[k{} ", i + 1)), "{answers:?}");
    }
}

#[test]
fn the_first_queued_claim_is_served_first() {
    let (_dir, _server, _client, mut wire) = with_pool(5);
    let claims: Vec<String> = (0..40).map(|i| format!("CLAIM ns/warm KEY k{i}")).collect();
    let answers = all(&mut wire, &claims.iter().map(String::as_str).collect::<Vec<_>>());
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.starts_with('['), i < 5, "{i}: {answer}");
    }
}

/// Claims of a pipeline are one batch: it updates each worker once, however many claims it gets.
#[test]
fn b03_a_batch_of_claims_updates_each_worker_once() {
    let (_dir, _server, mut client, mut wire) = with_pool(0);
    client.put("/v1/pools/ns/big", &serde_json::json!({"mode": "shared", "shards": 1, "ack": "memory"})).expect(201);
    wire.call("REGISTER ns/big g SLOTS 1000");
    let updates = |client: &mut Client| client.metric(r#"hotpool_worker_updates_total{pool="ns/big"}"#);
    let before = updates(&mut client);
    let claims: Vec<String> = (0..100).map(|i| format!("CLAIM ns/big KEY k{i} SLOTS 1")).collect();
    let answers = all(&mut wire, &claims.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(answers.iter().all(|answer| answer.starts_with('[')), "{answers:?}");
    // The pipeline is one run in general; a few if the system split the bytes.
    let run = updates(&mut client) - before;
    assert!((1..=10).contains(&run), "{run}");
    let before = updates(&mut client);
    for i in 100..120 {
        wire.call(&format!("CLAIM ns/big KEY k{i} SLOTS 1"));
    }
    assert_eq!(updates(&mut client) - before, 20, "one by one it is one each");
}

#[test]
fn a_durable_pipeline_waits_for_the_store_and_keeps_its_order() {
    let (_dir, _server, mut client, mut wire) = with_pool(0);
    client.put("/v1/pools/ns/safe", &serde_json::json!({"shards": 4})).expect(201);
    for i in 0..100 {
        wire.send(&frame(&format!("REGISTER ns/safe s{i}")));
    }
    (0..100).for_each(|_| assert_eq!(text(&wire.receive()), "1"));
    for i in 0..100 {
        wire.send(&frame(&format!("CLAIM ns/safe KEY k{i}")));
    }
    for i in 0..100 {
        assert_eq!(texts(&wire.receive())[0], format!("k{i}"));
    }
    for i in 0..100 {
        wire.send(&frame(&format!("RELEASE ns k{i} *")));
    }
    (0..100).for_each(|_| assert_eq!(wire.receive(), Value::Int(1)));
}

#[test]
fn q02_a_queued_claim_delays_no_reply_and_ends_with_its_client() {
    let (_dir, _server, mut client, mut wire) = with_pool(1);
    let address = wire.stream().peer_addr().unwrap();
    wire.send(&[frame("CLAIM ns/warm KEY a"), frame("CLAIM ns/warm KEY b WAIT 20000"), frame("PING")].concat());
    assert!(text(&wire.receive()).starts_with("[a "), "before the other is done");
    let mut other = Wire::connect(address);
    assert!(other.reply_text("CLAIM ns/warm KEY c WAIT 30").starts_with("-NOCAPACITY pool_exhausted "));
    other.send(&frame("CLAIM ns/warm KEY d WAIT 20000"));
    let waiting = |client: &mut Client| client.metric(r#"hotpool_claims_pending{pool="ns/warm"}"#);
    until("both wait", || waiting(&mut client) >= 2);
    // Further input does not end the wait; the end of the client does.
    other.send(&frame("PING"));
    assert_eq!(waiting(&mut client), 2);
    drop(other);
    until("one waits", || waiting(&mut client) <= 1);
    let mut third = Wire::connect(address);
    assert_eq!(third.reply_text("RELEASE ns a *"), "1");
    assert!(text(&wire.receive()).starts_with("[b "));
    assert_eq!(text(&wire.receive()), "PONG");
    assert_eq!(third.reply_text("RELEASE ns b *"), "1");
    assert!(third.reply_text("CLAIM ns/warm KEY e").starts_with("[e "), "no other claim waits");
    assert!(text(&third.call("CLAIMS 2 ns/warm KEYS e f WAIT 30")).contains(" -NOCAPACITY"));
}

#[test]
fn a_shutdown_does_not_wait_for_queued_claims() {
    let (_dir, server, mut client, mut wire) = with_pool(0);
    wire.send(&frame("CLAIM ns/warm WAIT 60000"));
    until("it waits", || client.metric(r#"hotpool_claims_pending{pool="ns/warm"}"#) >= 1);
    drop(client);
    let begun = std::time::Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begun.elapsed() < std::time::Duration::from_secs(3));
    assert_eq!(text(&wire.receive()), "-LOADING the service is shutting down");
    assert_eq!(wire.rest(), "");
}

#[test]
fn a_million_commands_in_one_pipeline() {
    const MILLION: usize = 1_000_000;
    let (_dir, _server, mut client, wire) = with_pool(1);
    let (mut to, mut from) = (wire.stream().try_clone().unwrap(), wire.stream().try_clone().unwrap());
    let command = frame("RELEASE ns nobody *");
    let sender = thread::spawn(move || {
        let chunk = command.repeat(10_000);
        for _ in 0..MILLION / 10_000 {
            to.write_all(&chunk).unwrap();
        }
    });
    let mut bytes = vec![0; 1 << 16];
    let (mut answers, mut last) = (0, 0);
    while answers < MILLION {
        let read = from.read(&mut bytes).unwrap();
        assert!(read > 0, "closed after {answers}");
        for &byte in &bytes[..read] {
            assert!(b":0\r\n".contains(&byte), "{byte}");
            answers += usize::from(byte == b'\n');
        }
        // Other clients are served meanwhile.
        if answers / 250_000 > last {
            last = answers / 250_000;
            client.get("/healthz").expect(200);
        }
    }
    sender.join().unwrap();
    assert_eq!(answers, MILLION);
    // The memory is freed: the process is small again.
    let memory = client.metric("process_resident_memory_bytes");
    assert!(memory < 512 << 20, "{memory}");
}
