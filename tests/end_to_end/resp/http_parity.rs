//! RESP and HTTP have the same outcome for the same request, down to the field and the message.

use serde_json::{Value, json};

use super::wire::{Wire, text, with_pool};
use crate::client::Client;

/// Translates an HTTP error to RESP.
fn in_resp(error: &Value) -> String {
    let word = |name: &str| error["error"][name].as_str();
    let reason = word("reason");
    let (name, reason) = match (word("code").unwrap(), reason) {
        ("INVALID_ARGUMENT", reason) => ("BADREQ", reason),
        ("NOT_FOUND", reason) => ("NOTFOUND", reason),
        ("ABORTED", Some("fence")) => ("FENCED", None),
        ("FAILED_PRECONDITION", reason) => ("CONFLICT", reason),
        ("RESOURCE_EXHAUSTED", reason) => ("NOCAPACITY", reason),
        other => panic!("{other:?}"),
    };
    let parts = [Some(name), reason, word("field"), word("message")];
    format!("-{}", parts.into_iter().flatten().collect::<Vec<_>>().join(" "))
}

#[track_caller]
fn agree(client: &mut Client, wire: &mut Wire, command: &str, path: &str, body: &Value) {
    let answer = client.post(path, body);
    assert!(answer.status >= 400, "{command}: {}", answer.text());
    assert_eq!(text(&wire.call(command)), in_resp(&answer.json()), "{command}");
}

#[test]
fn refusals_are_the_same() {
    let (_dir, _server, mut client, mut wire) = with_pool(1);
    client.put("/v1/pools/ns/gpu", &json!({"mode": "shared", "shards": 1})).expect(201);
    assert_eq!(wire.reply_text("REGISTER ns/gpu g CPU 1000"), "1");
    let long = "x".repeat(256);
    let claim = |more: Value| {
        let mut body = json!({"namespace": "ns", "pool": "warm"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (options, more) in [
        ("KEY a!".to_owned(), json!({"key": "a!"})),
        (format!("KEY {long}"), json!({"key": long})),
        ("TENANT a/b".to_owned(), json!({"tenant": "a/b"})),
        ("AFFINITY a/b".to_owned(), json!({"affinity": "a/b"})),
        ("RESERVE 30001".to_owned(), json!({"reserve_ms": 30_001})),
        ("TTL 0".to_owned(), json!({"ttl_ms": 0})),
        ("TTL 2592000001".to_owned(), json!({"ttl_ms": 2_592_000_001_u64})),
        ("WAIT 86400001".to_owned(), json!({"wait_ms": 86_400_001})),
        ("CPU 9007199254740992".to_owned(), json!({"resources": {"cpu_milli": 9_007_199_254_740_992_u64}})),
        ("ACK never".to_owned(), json!({"ack": "never"})),
        ("CPU 5".to_owned(), json!({"resources": {"cpu_milli": 5}})),
        ("GPU A10 0 500".to_owned(), json!({"resources": {"gpu": {"model": "A10", "count": 0, "milli": 500}}})),
        ("GPU A10 2 500".to_owned(), json!({"resources": {"gpu": {"model": "A10", "count": 2, "milli": 500}}})),
        ("GPU A10,A10 1 5".to_owned(), json!({"resources": {"gpu": {"models": ["A10", "A10"], "milli": 5}}})),
        ("GPU a! 1 5".to_owned(), json!({"resources": {"gpu": {"model": "a!", "milli": 5}}})),
    ] {
        agree(&mut client, &mut wire, &format!("CLAIM ns/warm {options}"), "/v1/claims", &claim(more));
    }
    let nowhere = json!({"namespace": "ns", "pool": "nowhere"});
    agree(&mut client, &mut wire, "CLAIM ns/nowhere", "/v1/claims", &nowhere);
    agree(&mut client, &mut wire, "CLAIM n!/warm", "/v1/claims", &json!({"namespace": "n!", "pool": "warm"}));
    agree(&mut client, &mut wire, "CLAIM ns/wa/rm", "/v1/claims", &json!({"namespace": "ns", "pool": "wa/rm"}));
    agree(&mut client, &mut wire, "CLAIM ns/gpu", "/v1/claims", &json!({"namespace": "ns", "pool": "gpu"}));
    let big = json!({"namespace": "ns", "pool": "gpu", "resources": {"cpu_milli": 1001}});
    agree(&mut client, &mut wire, "CLAIM ns/gpu CPU 1001", "/v1/claims", &big);
    assert!(wire.reply_text("CLAIM ns/warm KEY held").starts_with('['));
    agree(&mut client, &mut wire, "CLAIM ns/warm", "/v1/claims", &claim(json!({})));
    for (verb, command) in [("confirm", "CONFIRM"), ("renew", "RENEW"), ("release", "RELEASE")] {
        let path = |key: &str| format!("/v1/claims/ns/{key}:{verb}");
        let mut both = |command: String, path: &str, body| agree(&mut client, &mut wire, &command, path, &body);
        both(format!("{command} ns held 1"), &path("held"), json!({"fence": 1}));
        both(format!("{command} ns a!b 1"), &path("a!b"), json!({"fence": 1}));
        if verb != "release" {
            both(format!("{command} ns gone 1"), &path("gone"), json!({"fence": 1}));
        }
    }
    agree(
        &mut client,
        &mut wire,
        "RENEW ns held 1 TTL 0",
        "/v1/claims/ns/held:renew",
        &json!({"fence": 1, "ttl_ms": 0}),
    );
}

#[test]
fn errors_that_only_resp_can_have_name_their_field_too() {
    let (_dir, _server, _client, mut wire) = with_pool(1);
    for (command, response) in [
        ("CLAIM ns", "-BADREQ pool must be namespace/pool"),
        ("CLAIM ns/warm KEY", "-BADREQ key is required"),
        ("CLAIM ns/warm KEY a KEY b", "-BADREQ key is given twice"),
        ("CLAIM ns/warm TTL -1", "-BADREQ ttl_ms must be a whole number from 0 to 2592000000, got \"-1\""),
        (
            "CLAIM ns/warm CPU 1.5",
            "-BADREQ resources.cpu_milli must be a whole number from 0 to 9007199254740991, got \"1.5\"",
        ),
        ("CLAIM ns/warm CPU 1 CPU 2", "-BADREQ resources.cpu_milli is given twice"),
        ("CLAIM ns/warm GPU A10 1", "-BADREQ resources.gpu.milli is required"),
        ("CLAIM ns/warm GPU A10 1 5 GPU A10 1 5", "-BADREQ resources.gpu is given twice"),
        (
            "CLAIM ns/warm KEYS a",
            "-BADREQ KEYS unknown option; known: KEY, TENANT, AFFINITY, WAIT, TTL, RESERVE, ACK, CPU, MEM, SLOTS, GPU",
        ),
        ("RELEASE ns a 99999999999999999999", {
            "-BADREQ fence must be a whole number from 0 to 9007199254740991, got \"99999999999999999999\""
        }),
        ("RELEASE ns a 1 BEGIN FINISH", "-BADREQ phase is given twice"),
        ("RELEASE ns a 1 NOW", "-BADREQ NOW unknown option; known: TENANT, BEGIN, FINISH"),
        ("REGISTER ns/warm w GPU A10 65", "-BADREQ capacity.gpu.count must be 1 to 64"),
        ("REGISTER ns/warm w GPU A10 4294967297", "-BADREQ capacity.gpu.count must be 1 to 64"),
        ("HEARTBEAT ns/warm w SEQ 9007199254740992", "-BADREQ seq must be at most 9007199254740991"),
        ("REGISTER ns/warm w LABEL a b LABEL a c", "-BADREQ labels a label is given twice"),
        ("HEARTBEAT ns/warm w0 CLAIMS 10001", "-BADREQ claims must be a whole number from 0 to 10000, got 10001"),
    ] {
        assert_eq!(wire.reply_text(command), response, "{command}");
    }
    wire.send(b"*2\r\n$5\r\nCLAIM\r\n$2\r\n\xff\xfe\r\n");
    assert_eq!(text(&wire.receive()), "-BADREQ pool must be UTF-8");
}
