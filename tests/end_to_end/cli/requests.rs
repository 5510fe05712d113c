//! Requests of the commands, as a fake service receives them: every flag reaches its field of the API.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread::spawn;

use serde_json::{Value, json};

use super::{Ran, command, run};

/// Runs a command against a listener that answers once; returns the request and the exit code.
fn request_of(arguments: &[&str], answer: &Value) -> (String, Value, Option<i32>) {
    let (first, body, ran) = request_and_output(arguments, answer);
    (first, body, ran.code)
}

/// Runs a command against a listener that answers once; returns the request and the command's output.
fn request_and_output(arguments: &[&str], answer: &Value) -> (String, Value, Ran) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = answer.to_string();
    let listening = spawn(move || answer_one(listener.accept().unwrap().0, |_| ("200 OK", answer)));
    let ran = run(command(arguments).env("HOTPOOL_ADDR", address), "");
    let (first, body) = listening.join().unwrap();
    (first, body, ran)
}

/// Answers one request, by its first line, with a status and a body; returns the request.
fn answer_one(stream: TcpStream, answer: impl FnOnce(&str) -> (&'static str, String)) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let first = first.trim_end().strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let (status, answer) = answer(&first);
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
    reader.get_mut().write_all(&[head.as_bytes(), answer.as_bytes()].concat()).unwrap();
    (first, if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
}

#[test]
fn a_claim_requests_everything_that_is_given() {
    let claim = json!({"claim": {"key": "k", "tenant": "t", "fence": 7, "namespace": "demo", "pool": "warm", "worker": "w1", "state": "active"}});
    let take = |arguments: &[&str]| {
        let (first, body, code) = request_of(&[&["claims", "take"], arguments].concat(), &claim);
        assert_eq!((first.as_str(), code), ("POST /v1/claims", Some(0)));
        body
    };
    assert_eq!(take(&["demo/warm"]), json!({"namespace": "demo", "pool": "warm"}));
    assert_eq!(take(&["demo/b", "demo/a"]), json!({"namespace": "demo", "pools": ["b", "a"]}));
    assert_eq!(
        take(&["--namespace", "demo", "--pool-selector", "tier in (gold, silver)"]),
        json!({"namespace": "demo", "pool_selector": "tier in (gold, silver)"})
    );
    let all = take(&[
        "demo/warm",
        "--key",
        "k",
        "--tenant",
        "t",
        "--affinity",
        "a",
        "--selector",
        "zone=a,!b",
        "--worker",
        "w1",
        "--class",
        "c",
        "--ttl-ms",
        "5000",
        "--reserve-ms",
        "0",
        "--ack",
        "durable",
        "--must-match",
        "--label",
        "x=y",
        "--node",
        "n1",
        "--node",
        "n2",
        "--prefer-node",
        "n2",
        "--wait-ms",
        "9",
        "--priority",
        "8",
        "--preemptible",
        "--cpu-milli",
        "500",
        "--memory-bytes",
        "1Gi",
        "--gpu",
        "a100=1",
    ]);
    let expected = json!({
        "namespace": "demo", "pool": "warm", "key": "k", "tenant": "t", "affinity": "a", "selector": "zone=a,!b",
        "worker": "w1", "class": "c", "ttl_ms": 5000, "reserve_ms": 0, "ack": "durable", "must_match": true,
        "wait_ms": 9, "priority": 8, "preemptible": true,
        "labels": {"x": "y"}, "node": {"required": ["n1", "n2"], "preferred": ["n2"]},
        "resources": {"cpu_milli": 500, "memory_bytes": 1 << 30, "gpu": {"models": ["a100"], "count": 1, "milli": 1000}},
    });
    assert_eq!(all, expected);
    assert_eq!(take(&["demo/warm", "--prefer-node", "n"])["node"], json!({"preferred": ["n"]}));
    assert_eq!(
        take(&["demo/warm", "--prefer-node", "n", "--prefer-node-ms", "5"])["node"],
        json!({"preferred_then_wait": {"nodes": ["n"], "ms": 5}})
    );
}

#[test]
fn workers_out_of_service_are_counted_where_pools_are_listed() {
    let pool = json!({
        "namespace": "demo", "name": "warm", "spec": {"shards": 1, "ack": "memory"}, "capacity": {}, "free": {}, "gpus": {},
        "workers": {"total": 9, "idle": 4, "busy": 2, "cordoned": 0, "draining": 0, "lost": 1, "suspect": 2},
        "claims": {"reserved": 0, "active": 1, "releasing": 1},
    });
    let (_, _, ran) = request_and_output(&["pools", "ls"], &json!({"items": [pool.clone()]}));
    assert_eq!(ran.row("demo/warm")[5..], ["9", "4", "2", "lost=1,suspect=2", "0", "1", "1", "-", "-"]);
    // W11: those that are counted once, where the service says which they are.
    let mut newer = pool;
    newer["unschedulable"] = json!({"draining": 0, "lost": 1, "suspect": 1, "ended": 1, "reserved": 0});
    let (_, _, ran) = request_and_output(&["pools", "ls"], &json!({"items": [newer]}));
    assert_eq!(ran.row("demo/warm")[5..9], ["9", "4", "2", "ended=1,lost=1,suspect=1"]);
}

/// Limit on concurrent calls of a command.
const CALLS: usize = 16;

/// Runs a command against a service that answers each request by its first line with a status and a body.
fn ran_against(arguments: &[&str], answer: impl Fn(&str) -> (&'static str, String) + Clone + Send + 'static) -> Ran {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test process, because a command that abandons calls leaves connections behind.
    spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            spawn(move || answer_one(stream.unwrap(), answer));
        }
    });
    run(command(arguments).env("HOTPOOL_ADDR", address), "")
}

/// Response that lists so many workers, perhaps as one page of several.
fn page(workers: usize, next_page_token: Option<&str>) -> (&'static str, String) {
    let items: Vec<_> = (0..workers).map(|i| json!({"id": format!("w{i:02}"), "labels": {}})).collect();
    ("200 OK", json!({"items": items, "next_page_token": next_page_token}).to_string())
}

/// Response of an overloaded service.
fn busy() -> (&'static str, String) {
    let error = json!({"error": {"code": "UNAVAILABLE", "reason": "overloaded", "message": "retry later"}});
    ("503 Service Unavailable", error.to_string())
}

/// Runs a command against a service that lists workers and is overloaded for everything else.
fn ran_while_overloaded(arguments: &[&str], workers: usize, next_page_token: Option<&'static str>) -> Ran {
    ran_against(arguments, move |first| match first.starts_with("GET ") {
        true => page(workers, next_page_token),
        false => busy(),
    })
}

#[test]
fn progress_before_an_unreadable_page_is_reported() {
    let drain = ["workers", "drain", "demo/warm", "--selector", "!x", "-o"];
    let ran = |output| {
        ran_against(&[&drain[..], &[output]].concat(), |first| match first {
            _ if first.contains("page_token=") => busy(),
            _ if first.starts_with("GET ") => page(2, Some("w01")),
            _ => ("200 OK", json!({"worker": {}}).to_string()),
        })
    };
    let table = ran("table");
    let text_output = "demo/warm w00 draining\ndemo/warm w01 draining\n\
                2 of the first 2 workers match; the remaining workers of the pool were not read\n";
    assert_eq!((table.code, &*table.out), (Some(1), text_output), "{table:?}");
    assert!(table.err.contains("retry later"), "{table:?}");
    let json = ran("json");
    let items: Value = serde_json::from_str(&json.out).unwrap_or_else(|error| panic!("{error}: {json:?}"));
    assert_eq!((json.code, items["items"].as_array().map(Vec::len)), (Some(1), Some(2)), "{json:?}");
}

#[test]
fn workers_skipped_after_a_failure_are_reported() {
    let drain = ["workers", "drain", "demo/warm", "--selector", "!x"];
    let ran = ran_while_overloaded(&drain, CALLS, None);
    assert_eq!((ran.code, &*ran.out), (Some(1), "16 of 16 workers match, 16 failed\n"), "{ran:?}");
    for next_page_token in [None, Some("w39")] {
        let ran = ran_while_overloaded(&drain, 40, next_page_token);
        let (first, unread) = match next_page_token {
            Some(_) => ("the first ", "; the remaining workers of the pool were not read"),
            None => ("", ""),
        };
        let expected =
            format!("40 of {first}40 workers match, 16 failed; 24 matching workers were not tried{unread}\n");
        assert_eq!((ran.code, &ran.out), (Some(1), &expected), "{ran:?}");
        assert_eq!(ran.err.lines().count(), CALLS, "every failed call is reported: {ran:?}");
    }
    // Scripts count the items, and people read the rest that ids do not show.
    let ran = ran_while_overloaded(&[&drain[..], &["-o", "json"]].concat(), 40, None);
    let expected: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((ran.code, expected["items"].as_array().unwrap().len()), (Some(1), CALLS), "{ran:?}");
    let ids: Vec<String> = (0..20).map(|i| format!("w{i:02}")).collect();
    let named = [vec!["workers", "rm", "demo/warm"], ids.iter().map(String::as_str).collect()].concat();
    let ran = ran_while_overloaded(&named, 0, None);
    assert_eq!((ran.code, &*ran.out, ran.err.lines().count()), (Some(1), "", CALLS + 1), "{ran:?}");
    assert_eq!(ran.err.lines().last(), Some("workers left unchanged: 4"), "{ran:?}");
}

#[test]
fn every_verb_has_its_path_and_body() {
    let claim = json!({"key": "k", "tenant": "t", "fence": 7, "namespace": "demo", "pool": "warm", "worker": "w1", "state": "active"});
    let quota = json!({"namespace": "demo", "source": "namespace", "weight": 1});
    let answer = json!({"claim": claim, "worker": {"id": "w1"}, "quota": quota});
    let cases = [
        (
            "claims confirm demo/k --fence 7 --tenant t",
            "POST /v1/claims/demo/k:confirm",
            json!({"fence": 7, "tenant": "t"}),
        ),
        ("claims renew demo/k --fence 7", "POST /v1/claims/demo/k:renew", json!({"fence": 7, "tenant": "default"})),
        (
            "claims renew demo/k --fence 7 --ttl-ms 9",
            "POST /v1/claims/demo/k:renew",
            json!({"fence": 7, "tenant": "default", "ttl_ms": 9}),
        ),
        ("claims release demo/k --fence 7", "POST /v1/claims/demo/k:release", json!({"fence": 7, "tenant": "default"})),
        (
            "claims release demo/k --fence 7 --phase begin",
            "POST /v1/claims/demo/k:release",
            json!({"fence": 7, "tenant": "default", "phase": "begin"}),
        ),
        ("workers cordon demo/warm w1", "POST /v1/pools/demo/warm/workers/w1:cordon", Value::Null),
        ("workers uncordon demo/warm w1", "POST /v1/pools/demo/warm/workers/w1:uncordon", Value::Null),
        ("workers drain demo/warm w1", "POST /v1/pools/demo/warm/workers/w1:drain", Value::Null),
        ("workers clear demo/warm w1", "POST /v1/pools/demo/warm/workers/w1:clear", Value::Null),
        (
            "claims resize demo/k --fence 7 --cpu-milli 5 --gpu a100,h100:1:250",
            "POST /v1/claims/demo/k:resize",
            json!({"fence": 7, "tenant": "default", "resources": {"cpu_milli": 5, "gpu": {"models": ["a100", "h100"], "count": 1, "milli": 250}}}),
        ),
        (
            "quotas put demo/acme --claims 1 --cpu-milli 2 --memory-bytes 1Ki --gpu-milli 500 --weight 3",
            "PUT /v1/quotas/demo/acme",
            json!({"claims": 1, "cpu_milli": 2, "memory_bytes": 1024, "gpu_milli": 500, "weight": 3}),
        ),
        ("quotas set demo --claims 1", "PUT /v1/quotas/demo", json!({"claims": 1})),
        ("quotas rm demo/acme", "DELETE /v1/quotas/demo/acme", Value::Null),
    ];
    for (line, first, body) in cases {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(request_of(&arguments, &answer), (first.to_owned(), body, Some(0)), "{line}");
    }
    let cleared = request_of(&["pools", "clear", "demo/warm"], &json!({"cleared": 3, "suspect": 1}));
    assert_eq!(cleared, ("POST /v1/pools/demo/warm:clear".to_owned(), Value::Null, Some(0)));
    let (first, body, _) = request_of(
        &["workers", "add", "demo/warm", "w1", "--expires-at-ms", "9", "--node", "n"],
        &json!({"items": [{"worker": {}, "created": true}]}),
    );
    let worker = json!({"id": "w1", "expires_at_ms": 9, "node": "n"});
    assert_eq!((first.as_str(), body), ("POST /v1/pools/demo/warm/workers:batch", json!({"workers": [worker]})));
}
