//! Pools in `[[pools]]` of the configuration, with the binary.

use std::io::Read as _;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::server::{Running, Server, command};

/// Writes the configuration and returns its path.
fn declare(dir: &Path, text: &str) -> String {
    let path = dir.join("hotpool.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs a service that must not start, and returns its exit code and stderr.
#[track_caller]
fn rejected(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut child = Running(command(dir, arguments, environment).spawn().unwrap());
    // A service that starts would run forever: its first output is enough to fail.
    let started = child.0.stdout.take().unwrap().read(&mut [0; 1]).unwrap();
    assert_eq!(started, 0, "it started");
    (child.0.wait().unwrap().code(), std::fs::read_to_string(dir.join("log")).unwrap())
}

const WARM: &str = "[[pools]]\nname = \"demo/warm\"\nshards = 2\nlabels = { tier = \"gold\" }\n";

#[test]
fn declared_pools_exist_when_the_service_is_ready() {
    let dir = TempDir::new().unwrap();
    let file = declare(dir.path(), &format!("{WARM}[[pools]]\nname = \"demo/cold\"\nack = \"memory\"\n"));
    let server = Server::start_with(dir.path(), &["--config", &file], &[]);
    let mut client = server.client();
    client.get("/readyz").expect(200);
    let spec = client.get("/v1/pools/demo/warm").expect(200)["pool"]["spec"].take();
    assert_eq!(
        (&spec["shards"], &spec["labels"], &spec["ack"]),
        (&json!(2), &json!({"tier": "gold"}), &json!("durable"))
    );
    assert_eq!(client.get("/v1/pools/demo/cold").expect(200)["pool"]["spec"]["ack"], "memory");
    client.put("/v1/pools/demo/warm/workers/w1", &json!({})).expect(201);
    client.put("/v1/pools/demo/warm", &json!({"shards": 2, "reserve_ms": 7})).expect(200);
    assert_eq!(server.stop().code(), Some(0));

    // Changes over the API are reset to the declaration; undeclared pools stay; workers stay.
    let file = declare(dir.path(), WARM);
    let server = Server::start_with(dir.path(), &["--config", &file], &[]);
    let mut client = server.client();
    let warm = client.get("/v1/pools/demo/warm").expect(200)["pool"].take();
    assert_eq!((&warm["spec"]["reserve_ms"], &warm["workers"]["total"]), (&json!(30_000), &json!(1)));
    client.get("/v1/pools/demo/cold").expect(200);
}

#[test]
fn a_shared_pool_is_declared_with_all_its_fields() {
    let dir = TempDir::new().unwrap();
    let kinds = "[[pools.typical_requests]]\nweight = 3\ngpu = { models = [\"a100\"], milli = 500 }\n";
    let text = format!(
        "[[pools]]\nname = \"demo/gpu\"\nmode = \"shared\"\npolicy = \"fgd\"\nspare_gpu_workers = false\n{kinds}"
    );
    let file = declare(dir.path(), &text);
    for _ in 0..2 {
        let server = Server::start_with(dir.path(), &["--config", &file], &[]);
        let spec = server.client().get("/v1/pools/demo/gpu").expect(200)["pool"]["spec"].take();
        assert_eq!(
            (&spec["mode"], &spec["policy"], &spec["spare_gpu_workers"]),
            (&json!("shared"), &json!("fgd"), &json!(false))
        );
        let gpu = json!({"models": ["a100"], "count": 1, "milli": 500});
        assert_eq!(spec["typical_requests"], json!([{"cpu_milli": 0, "gpu": gpu, "weight": 3}]));
        assert_eq!(server.stop().code(), Some(0));
    }
}

#[test]
fn an_impossible_declaration_fails_the_start() {
    let dir = TempDir::new().unwrap();
    let file = declare(dir.path(), WARM);
    assert_eq!(Server::start_with(dir.path(), &["--config", &file], &[]).stop().code(), Some(0));
    let other = declare(dir.path(), "[[pools]]\nname = \"demo/new\"\n[[pools]]\nname = \"demo/warm\"\nshards = 4\n");
    let (code, output) = rejected(dir.path(), &["--config", &other], &[]);
    assert_eq!(code, Some(1), "{output}");
    let parts =
        "cannot create the pool demo/warm of the configuration: shards of a pool must not change: it has 2, got 4";
    assert!(output.contains(parts), "{output}");
    // The store is still intact.
    let file = declare(dir.path(), WARM);
    let server = Server::start_with(dir.path(), &["--config", &file], &[]);
    assert_eq!(server.client().get("/v1/pools/demo/warm").expect(200)["pool"]["spec"]["shards"], 2);
}

#[test]
fn an_invalid_declaration_exits_with_64_before_any_change() {
    let dir = TempDir::new().unwrap();
    let file = declare(dir.path(), "[[pools]]\nname = \"demo/warm\"\nshards = 3\n[sever]\n");
    let (code, output) = rejected(dir.path(), &["--config", &file], &[]);
    assert_eq!((code, output.lines().count()), (Some(64), 2), "{output}");
    assert!(
        output.contains("pools[0].shards: must be a power of two") && output.contains("sever: unknown field"),
        "{output}"
    );
    assert!(!dir.path().join("data").exists());
}

#[test]
fn logs_are_json_on_request_and_filtered_by_rust_log() {
    let dir = TempDir::new().unwrap();
    assert_eq!(Server::start_with(dir.path(), &["--log", "json"], &[("RUST_LOG", "info")]).stop().code(), Some(0));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["fields"]["message"] == "SIGTERM: stopping"), "{log}");
    assert_eq!(Server::start_with(dir.path(), &["--log", "text"], &[("RUST_LOG", "off")]).stop().code(), Some(0));
    assert_eq!(std::fs::read_to_string(dir.path().join("log")).unwrap(), "");
    let (code, output) = rejected(dir.path(), &[], &[("RUST_LOG", "info,=")]);
    assert!(code == Some(64) && output.contains("RUST_LOG: "), "{output}");
}
