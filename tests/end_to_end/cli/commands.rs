use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use serde_json::{Value, json};

use super::{Ran, command, run};
use crate::server::{Running, fresh, with_pool};

#[test]
fn a_pool_is_created_changed_shown_and_deleted() {
    let (_dir, server, mut client) = fresh();
    let none = server.cli("pools ls");
    assert_eq!((none.code, none.out.as_str()), (Some(0), ""));
    assert!(none.err.contains("hotpool pools put"), "{none:?}");

    assert_eq!(
        server.cli("pools put demo/warm --shards 4 --class gold --label tier=a --label x=1=2").stdout(),
        "demo/warm created\n"
    );
    let spec = client.get("/v1/pools/demo/warm").expect(200)["pool"]["spec"].take();
    assert_eq!(
        (&spec["shards"], &spec["class"], &spec["labels"]),
        (&json!(4), &json!("gold"), &json!({"tier": "a", "x": "1=2"}))
    );

    // The number of shards stays; all other omitted options go back to their defaults.
    let updated = server.cli("pools put demo/warm --reserve-ms 60000 --policy fifo --ack memory");
    assert_eq!((updated.code, updated.out.as_str()), (Some(0), "demo/warm updated\n"));
    let spec = client.get("/v1/pools/demo/warm").expect(200)["pool"]["spec"].take();
    assert_eq!((&spec["shards"], &spec["class"], &spec["labels"]), (&json!(4), &Value::Null, &json!({})));
    assert_eq!(
        (&spec["reserve_ms"], &spec["policy"], &spec["ack"]),
        (&json!(60_000), &json!("fifo"), &json!("memory"))
    );

    let shown = server.cli("pools show demo/warm");
    assert_eq!(shown.row("pool"), ["pool", "demo/warm"]);
    assert_eq!(shown.row("reserve_ms"), ["reserve_ms", "60000"]);
    assert_eq!(
        shown.row("workers"),
        [
            "workers",
            "0",
            "total,",
            "0",
            "busy,",
            "0",
            "cordoned,",
            "0",
            "draining,",
            "0",
            "ended,",
            "0",
            "idle,",
            "0",
            "lost,",
            "0",
            "reserved,",
            "0",
            "stopping,",
            "0",
            "suspect"
        ]
    );
    assert_eq!(shown.row("3")[..2], ["3", "serving"]);
    assert_eq!(server.cli("pools show demo/warm -o json").json()["pool"]["shards"].as_array().unwrap().len(), 4);

    server
        .cli("pools put demo/warm --shards 8")
        .failed(3, &["shards", "must not change", "FAILED_PRECONDITION, state"]);
    server.cli("workers add demo/warm w1").stdout();
    server.cli("pools rm demo/warm").failed(3, &["1 workers", "FAILED_PRECONDITION, state"]);
    assert_eq!(server.cli("pools rm demo/warm --force").stdout(), "demo/warm removed\n");
    server.cli("pools show demo/warm").failed(4, &["pool not found", "NOT_FOUND"]);
    server.cli("pools rm demo/warm").failed(4, &["pool not found"]);
}

#[test]
fn listings_follow_every_page_and_stop_at_the_limit() {
    let (_dir, server, _client) = fresh();
    server.cli("pools put ns/warm --shards 2").stdout();
    // More than a page of 1,000.
    assert_eq!(
        server.cli("workers add ns/warm --count 2300 --prefix w- --from 5").stdout(),
        "ns/warm: 2300 new, 0 updated\n"
    );
    assert_eq!(
        server.cli("workers add ns/warm --count 2301 --prefix w- --from 5").stdout(),
        "ns/warm: 1 new, 2300 updated\n"
    );
    let all = server.cli("workers ls ns/warm -o json").json();
    let mut ids: Vec<&str> = all["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), ids.contains(&"w-5"), ids.contains(&"w-2305")), (2301, true, true));
    assert!(all.get("next_page_token").is_none());
    assert_eq!(server.cli("workers ls ns/warm").stdout().lines().count(), 2302);

    let some = server.cli("workers ls ns/warm --limit 1001");
    assert_eq!((some.code, some.out.lines().count()), (Some(0), 1002));
    assert!(some.err.contains("and more: these are the first 1001"), "{}", some.err);
    let some = server.cli("workers ls ns/warm --limit 3 -o json").json();
    assert_eq!(some["items"].as_array().unwrap().len(), 3);
    assert!(some["next_page_token"].is_string());
    server.cli("workers ls ns/warm --limit 0").failed(64, &["--limit"]);
}

#[test]
fn workers_are_registered_from_arguments_and_from_stdin() {
    let (_dir, server, mut client) = fresh();
    server.cli("pools put ns/warm").stdout();
    let line = "workers add ns/warm w1 --cpu-milli 1500 --memory-bytes 4Gi --slots 2 --gpu a100=2 --label zone=a --node n1 --incarnation 3";
    assert_eq!(server.cli(line).stdout(), "ns/warm: 1 new, 0 updated\n");
    let worker = client.get("/v1/pools/ns/warm/workers/w1").expect(200)["worker"].take();
    let capacity =
        json!({"cpu_milli": 1500, "memory_bytes": 4_u64 << 30, "slots": 2, "gpu": {"model": "a100", "count": 2}});
    assert_eq!((&worker["capacity"], &worker["labels"]), (&capacity, &json!({"zone": "a"})));
    assert_eq!((&worker["node"], &worker["incarnation"]), (&json!("n1"), &json!(3)));
    let row = server.cli("workers ls ns/warm").stdout().lines().nth(1).unwrap().to_owned();
    assert!(row.contains("cpu 1.5, memory 4Gi, slots 2, gpu 2 a100"), "{row}");
    let shown = server.cli("workers show ns/warm w1");
    assert_eq!((shown.row("node"), shown.row("incarnation")), (vec!["node", "n1"], vec!["incarnation", "3"]));

    assert_eq!(server.cli_with("workers add ns/warm a - z", "b c\n\n  d\n").stdout(), "ns/warm: 5 new, 0 updated\n");
    server.cli_with("workers add ns/warm -", "").failed(64, &["no ids"]);
    server.cli_with("workers add ns/warm -", "a b/c").failed(64, &["b/c", "[A-Za-z0-9._-]"]);
    // A lower incarnation is rejected; the other workers are registered.
    let some = server.cli("workers add ns/warm w1 e");
    assert_eq!((some.code, some.out.as_str()), (Some(3), "ns/warm: 1 new, 0 updated\n"));
    assert!(some.err.starts_with("hotpool: w1: ") && some.err.lines().count() == 1, "{}", some.err);
    let some = server.cli("workers add ns/warm w1 f -o json");
    assert_eq!(some.code, Some(3));
    let items: Value = serde_json::from_str(&some.out).unwrap();
    assert_eq!(
        (&items["items"][0]["error"]["reason"], &items["items"][1]["worker"]["id"]),
        (&json!("state"), &json!("f"))
    );
    let output: Value = serde_json::from_str(&some.err).unwrap();
    assert_eq!((&output["id"], &output["error"]["reason"]), (&json!("w1"), &json!("state")));

    let gone = server.cli("workers rm ns/warm a none b");
    assert_eq!((gone.code, gone.out.as_str()), (Some(4), "ns/warm a removed\nns/warm b removed\n"));
    assert_eq!(gone.err, "hotpool: none: worker not found (NOT_FOUND)\n");
    assert_eq!(server.cli_with("workers rm ns/warm - -o json", "c d").json(), json!({"items": [{}, {}]}));
    server.cli("workers show ns/warm a").failed(4, &["worker not found"]);

    // Many failures are counted instead of listed.
    server.cli("workers add ns/warm --count 30 --incarnation 2").stdout();
    let late = server.cli("workers add ns/warm --count 31 --incarnation 1");
    assert_eq!((late.code, late.out.as_str()), (Some(3), "ns/warm: 1 new, 0 updated\n"));
    assert_eq!((late.err.lines().count(), late.err.lines().last()), (21, Some("... and 10 more failed")));
}

fn fence(ran: &Ran) -> String {
    ran.row("fence")[1].to_owned()
}

#[test]
fn a_claim_is_created_confirmed_and_released() {
    let (_dir, server, _client) = with_pool(2);
    let created = server.cli("claims take ns/warm --key job-1 --affinity fn-7");
    created.stdout();
    assert_eq!((created.row("claim"), created.row("state")), (vec!["claim", "ns/job-1"], vec!["state", "reserved"]));
    assert_eq!(created.row("ends")[..2], ["ends", "in"]);
    let fence = fence(&created);
    // The suggested next command works.
    let next = created.row("next")[2..].join(" ");
    assert_eq!(next, format!("claims confirm ns/job-1 --fence {fence}"));

    let again = server.cli("claims take ns/warm --key job-1");
    assert_eq!((again.code, self::fence(&again)), (Some(0), fence.clone()));
    assert_eq!(again.err, "the key already holds this claim\n");
    let json = server.cli("claims show ns/job-1 -o json").json();
    assert_eq!(json["claim"]["fence"].to_string(), fence);

    server.cli(&next).stdout();
    let shown = server.cli("claims show ns/job-1");
    shown.stdout();
    assert_eq!(shown.row("state"), ["state", "active"]);
    server.cli("claims release ns/job-1 --fence 1").failed(3, &["fence", "ABORTED, fence"]);
    let next = shown.row("next")[2..].join(" ");
    assert_eq!(server.cli(&next).stdout(), "ns/job-1 released\n");
    assert_eq!(server.cli(&next).stdout(), "ns/job-1 holds no claim: nothing to release\n");
    server.cli("claims show ns/job-1").failed(4, &["claim not found"]);
    server.cli("claims release ns/job-1 --current").failed(4, &["claim not found"]);
}

#[test]
fn claims_are_listed_by_namespace_pool_worker_and_tenant() {
    let (_dir, server, _client) = with_pool(3);
    server.cli("pools put ns/other").stdout();
    server.cli("workers add ns/other o1").stdout();
    server.cli("claims take ns/warm --key a --tenant acme --reserve-ms 0").stdout();
    server.cli("claims take ns/warm --key b").stdout();
    server.cli("claims take ns/other --key c").stdout();
    let count = |line: &str| server.cli(&format!("{line} -o json")).json()["items"].as_array().unwrap().len();
    assert_eq!(count("claims ls"), 3);
    assert_eq!((count("claims ls ns"), count("claims ls none")), (3, 0));
    assert_eq!((count("claims ls ns/warm"), count("claims ls ns --tenant acme")), (2, 1));
    assert_eq!(count("claims ls ns/other --worker o1"), 1);
    assert_eq!(count("claims ls --limit 2"), 2);
    let rows = server.cli("claims ls");
    assert_eq!(rows.stdout().lines().count(), 4);
    // Without a deadline none is shown.
    assert_eq!(rows.row("ns/a")[1..5], ["acme", "active", "-", "warm"]);
    assert_eq!(rows.row("ns/b")[1..4], ["default", "reserved", "in"]);
    // The holder of another tenant is a different one.
    let held = server.cli("workers ls ns/warm");
    assert!(held.stdout().contains(" acme:a ") && held.stdout().contains(" b "), "{held:?}");
    let none = server.cli("claims ls none");
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (Some(0), "", "no matching claims\n"));
    server.cli("claims release ns/a --tenant acme --current").stdout();
    server.cli("claims confirm ns/b --current").stdout();
}

#[test]
fn a_full_pool_and_a_missing_one_have_different_codes() {
    let (_dir, server, _client) = with_pool(1);
    server.cli("claims take ns/warm --key a").stdout();
    server.cli("claims take ns/warm --key b").failed(3, &["RESOURCE_EXHAUSTED, pool_exhausted"]);
    server.cli("claims take ns/none --key b").failed(4, &["pool not found"]);
    server.cli("claims take ns/warm --key a/b").failed(64, &["key: ", "[A-Za-z0-9._-]", "INVALID_ARGUMENT"]);
    server.cli("claims take ns/warm --key b --reserve-ms 99999999").failed(64, &["reserve_ms: "]);
    let output = server.cli("claims take ns/warm --key b -o json");
    assert_eq!((output.code, output.out.as_str()), (Some(3), ""));
    let output: Value = serde_json::from_str(&output.err).unwrap();
    assert_eq!(
        (&output["error"]["code"], &output["error"]["reason"]),
        (&json!("RESOURCE_EXHAUSTED"), &json!("pool_exhausted"))
    );
}

#[test]
fn status_shows_every_pool_and_how_even_its_shards_are() {
    let (_dir, server, _client) = with_pool(8);
    server.cli("claims take ns/warm --key a").stdout();
    let shown = server.cli("status");
    assert_eq!(shown.stdout().lines().next().unwrap(), format!("http://{} is ready", server.address));
    let row = shown.row("ns/warm");
    assert_eq!(row[..10], ["ns/warm", "durable", "4/4", "8", "7", "1", "-", "1", "0", "0"]);
    assert_eq!(row[row.len() - 2..], ["0..1", "x4.00"]);
    let json = server.cli("status -o json").json();
    assert_eq!((&json["ready"], &json["reasons"], &json["keys"]), (&json!(true), &json!([]), &json!(1)));
    assert_eq!(json["pools"][0]["workers"]["busy"], 1);
    assert_eq!(json["pools"][0]["shards"].as_array().unwrap().len(), 4);
}

#[test]
fn status_is_watched_until_ctrl_c_also_while_the_service_is_down() {
    let (_dir, server, _client) = with_pool(1);
    let address = server.address.to_string();
    let mut watching = command(&["status", "--watch", "1", "--output", "json", "--addr", &address]);
    let mut child = Running(watching.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .map(|line| -> Value { serde_json::from_str(&line.unwrap()).unwrap() });
    for _ in 0..2 {
        assert_eq!(lines.next().unwrap()["ready"], true);
    }
    server.kill();
    assert!(lines.any(|line| line["error"]["reason"] == "unreachable"));
    let interrupt = format!("kill -INT {}", child.0.id());
    assert!(std::process::Command::new("sh").arg("-c").arg(interrupt).status().unwrap().success());
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    let mut output = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(output, "");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut command(&["completions", shell]), "");
        for word in ["serve", "pools", "uncordon", "release", "renew", "--pool-selector", "--watch"] {
            // Fish writes long options without their dashes.
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.stdout().contains(word), "{word} is not in that of {shell}");
        }
    }
    run(&mut command(&["completions", "dos"]), "").failed(64, &["bash", "zsh", "fish"]);
    // Bash accepts the script.
    let script = run(&mut command(&["completions", "bash"]), "").out;
    run(std::process::Command::new("bash").args(["-n", "-s"]), &script).stdout();
}
