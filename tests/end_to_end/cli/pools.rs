//! Commands about pools: every field has its flag, and the output shows what changed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::Ran;
use crate::server::{Server, fresh};

/// Returns the options in a command's help, without the dashes.
fn flags(server: &Server, line: &str) -> BTreeSet<String> {
    let help = server.cli(&format!("{line} --help"));
    let parts = help.stdout().lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let long = parts.filter_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix("--")));
    long.map(|flag| flag.trim_end_matches(',').to_owned()).collect()
}

#[test]
fn put_and_set_have_a_flag_for_every_field_of_the_specification() {
    let (_dir, server, mut client) = fresh();
    let document = client.get("/v1/openapi.json").expect(200);
    let fields = document["components"]["schemas"]["PoolSpec"]["properties"].as_object().unwrap().keys();
    // Labels are given one at a time.
    let expected = fields.map(|field| if field == "labels" { "label".to_owned() } else { field.replace('_', "-") });
    let expected: BTreeSet<String> = expected.collect();
    assert!(expected.len() > 15, "{expected:?}");
    for (line, others) in [("pools put", &[][..]), ("pools set", &["reset", "version"])] {
        let mut known = flags(&server, line);
        for beside in ["addr", "timeout-ms", "output", "help"].iter().chain(others) {
            assert!(known.remove(*beside), "{line} has no --{beside}: {known:?}");
        }
        assert_eq!(known, expected, "{line}");
    }
}

fn spec(server: &Server) -> Value {
    server.cli("pools show demo/warm -o json").json()["pool"]["spec"].take()
}

#[test]
fn every_flag_reaches_its_field() {
    let (_dir, server, mut client) = fresh();
    let exclusive = "--policy fifo --preemption true --spare-gpu-workers false --ack memory --class gold --reserve-ms 1 \
                     --ttl-default-ms 8 --ttl-max-ms 9 --releasing-ms 2 --heartbeat-ttl-ms 3 --unnamed-ms 4 --lost-keep-ms 0 --lag-max-ms 5 --waiters-max 6 \
                     --waiters-tenant-max 7 --hold-max-ms 1001 --label a=b --label kubernetes.io/arch=arm64";
    let expected = json!({
        "shards": 2, "mode": "exclusive", "policy": "fifo", "preemption": true, "spare_gpu_workers": false, "ack": "memory",
        "class": "gold", "reserve_ms": 1, "ttl_default_ms": 8, "ttl_max_ms": 9, "releasing_ms": 2, "heartbeat_ttl_ms": 3, "unnamed_ms": 4, "lost_keep_ms": 0,
        "lag_max_ms": 5, "waiters_max": 6, "waiters_tenant_max": 7, "hold_max_ms": 1001, "labels": {"a": "b", "kubernetes.io/arch": "arm64"},
    });
    // Fields of a later build have their defaults.
    let has = |spec: &Value| {
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&spec[name], value, "{name}");
        }
    };
    server.cli(&format!("pools put demo/warm --shards 2 --mode exclusive {exclusive}")).stdout();
    has(&spec(&server));
    client.put("/v1/pools/demo/warm", &json!({"shards": 2})).expect(200);
    server.cli(&format!("pools set demo/warm {exclusive}")).stdout();
    has(&spec(&server));
    let typical = r#"pools put demo/gpu --shards 1 --mode shared --policy fgd --typical-requests [{"weight":1}]"#;
    server.cli(typical).stdout();
    let spec = client.get("/v1/pools/demo/gpu").expect(200)["pool"]["spec"].take();
    assert_eq!((&spec["mode"], &spec["typical_requests"][0]["weight"]), (&json!("shared"), &json!(1)));
}

#[test]
fn put_lists_the_fields_that_it_resets() {
    let (_dir, server, _client) = fresh();
    let line = "pools put demo/warm --shards 2 --preemption true --reserve-ms 7 --label tier=a";
    assert_eq!(server.cli(line).stdout(), "demo/warm created\n");
    assert_eq!(spec(&server)["preemption"], true);
    assert_eq!(server.cli(line).stdout(), "demo/warm updated\n");
    let again = server.cli("pools put demo/warm --reserve-ms 8");
    assert_eq!((again.code, again.out.as_str()), (Some(0), "demo/warm updated\n"));
    let said = "reset to its default, because it was omitted: preemption (was true)\n\
                reset to its default, because it was omitted: labels (was tier=a)\n";
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert!(lines(&again.err).is_superset(&lines(said)), "{again:?}");
    assert!(again.err.contains("hotpool pools set"), "{again:?}");
    assert_eq!(lines(&again.err).len(), 3, "{again:?}");
    // The help explains the effect.
    let help = server.cli("pools put --help");
    assert!(help.stdout().contains("pools set"), "{}", help.out);
}

#[test]
fn set_changes_single_fields() {
    let (_dir, server, mut client) = fresh();
    server.cli("pools put demo/warm --shards 2 --preemption true --class gold --label a=1 --label b=2").stdout();
    let before = spec(&server);
    let set = server.cli("pools set demo/warm --reserve-ms 60000 --ack memory --label c=3");
    assert_eq!(
        set.stdout(),
        "demo/warm set\n  ack: durable -> memory\n  labels: a=1,b=2 -> a=1,b=2,c=3\n  reserve_ms: 30000 -> 60000\n"
    );
    let mut expected = before;
    expected["ack"] = json!("memory");
    expected["reserve_ms"] = json!(60_000);
    expected["labels"] = json!({"a": "1", "b": "2", "c": "3"});
    assert_eq!(spec(&server), expected);
    assert_eq!(server.cli("pools set demo/warm --ack memory").stdout(), "demo/warm unchanged\n");
    let reset = server.cli("pools set demo/warm --reset class --reset labels.b --reset reserve_ms --reset reserve-ms");
    assert_eq!(
        reset.stdout(),
        "demo/warm set\n  class: gold -> none\n  labels: a=1,b=2,c=3 -> a=1,c=3\n  reserve_ms: 60000 -> 30000\n"
    );
    assert_eq!(server.cli("pools set demo/warm --reset labels").stdout(), "demo/warm set\n  labels: a=1,c=3 -> none\n");

    let shown = server.cli("pools show demo/warm -o json").json();
    let version = shown["pool"]["version"].as_u64().unwrap();
    let at =
        |version: u64, flag: &str| -> Ran { server.cli(&format!("pools set demo/warm --version {version} {flag}")) };
    at(version, "--preemption false").stdout();
    at(version, "--preemption true").failed(3, &["the version is", "ABORTED, version"]);
    assert_eq!(client.get("/v1/pools/demo/warm").expect(200)["pool"]["spec"]["preemption"], false);
    let json = server.cli("pools set demo/warm --preemption true -o json").json();
    assert_eq!(json["pool"]["spec"]["preemption"], true);

    server.cli("pools set demo/warm").failed(64, &["nothing to set"]);
    server.cli("pools set demo/warm --reset frobnicate").failed(64, &["frobnicate", "unknown field"]);
    server.cli("pools set demo/warm --reset ack --ack memory").failed(64, &["ack", "--reset"]);
    for both in ["--reset labels.d --reset labels", "--reset labels --reset labels.d"] {
        let words = &["labels", "as a whole and one by one"];
        server.cli(&format!("pools set demo/warm {both}")).failed(64, words);
    }
    server
        .cli("pools set demo/warm --label d=1 --reset labels")
        .failed(64, &["labels cannot be set and reset at once"]);
    server.cli("pools set demo/warm --reset labels.").failed(64, &["labels. names no label", "labels.KEY"]);
    server.cli("pools set demo/none --ack memory").failed(4, &["pool not found"]);
    server.cli("pools set demo/warm --shards 4").failed(3, &["must not change"]);
}
