use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::server::{Running, Server, command, fresh, until, with_pool};

/// Runs the service to its end, and returns its exit code and stderr.
fn run(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let ended = command(dir, arguments, environment).output().unwrap();
    assert!(ended.stdout.is_empty(), "{:?}", ended.stdout);
    (ended.status.code(), std::fs::read_to_string(dir.join("log")).unwrap())
}

#[test]
fn the_ready_line_and_its_commands_are_true() {
    let (_dir, server, mut client) = fresh();
    client.get("/healthz").expect(200);
    let commands: Vec<_> = server.welcome.iter().filter_map(|line| line.trim().strip_prefix("curl ")).collect();
    assert_eq!(commands.len(), 3, "{:?}", server.welcome);
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED the commands: there is no curl here");
        return;
    }
    for line in commands {
        let shell = format!("curl -s -o /dev/null -w '%{{http_code}}' {line}");
        let text_output = Command::new("sh").arg("-c").arg(&shell).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&text_output.stdout), "201", "{shell}");
    }
}

#[test]
fn sigterm_exits_with_0_and_keeps_everything() {
    let (dir, server, mut client) = with_pool(3);
    let created = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    let body = json!({"fence": created["claim"]["fence"]});
    client.post("/v1/claims/ns/a:confirm", &body).expect(200);
    let begun = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    let server = Server::start(dir.path());
    let mut client = server.client();
    let held = client.get("/v1/claims/ns/a").expect(200)["claim"].take();
    assert_eq!((&held["fence"], &held["worker"]), (&created["claim"]["fence"], &created["claim"]["worker"]));
    assert_eq!(held["state"], "active");
    assert_eq!(client.get("/v1/pools/ns/warm").expect(200)["pool"]["workers"]["total"], 3);
    client.post("/v1/claims/ns/a:release", &body).expect(200);
    // Fences grow across the restart.
    let next = client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    assert!(next["claim"]["fence"].as_u64() > created["claim"]["fence"].as_u64());
}

#[test]
fn a_request_in_flight_is_finished_before_the_shutdown() {
    let (_dir, server, _idle) = with_pool(1);
    let body = r#"{"namespace":"ns","pool":"warm","key":"a"}"#;
    let mut client = server.client();
    let head = format!(
        "POST /v1/claims HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.send(head.as_bytes()).unwrap();
    // The service requests the body: the request is in flight.
    assert_eq!(client.receive().unwrap().status, 100);
    server.terminate();
    until("no connection is taken any more", || Client::connect(server.address).is_err());
    client.send(body.as_bytes()).unwrap();
    client.receive().unwrap().expect(201);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn half_a_request_does_not_delay_the_shutdown_beyond_10_s() {
    let (_dir, server, _idle) = with_pool(1);
    let mut client = server.client();
    client.send(b"POST /v1/claims HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60\r\n\r\n{").unwrap();
    let begun = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_second_service_on_the_same_directory_is_rejected() {
    let (dir, server, mut client) = with_pool(1);
    let other = TempDir::new().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let ended = command(other.path(), &["--store", &format!("file:{data}")], &[]).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let text_output = std::fs::read_to_string(other.path().join("log")).unwrap();
    assert!(text_output.contains(data), "{text_output}");
    // The first service is not affected.
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    drop(server);
}

#[test]
fn a_taken_port_is_named() {
    let (_dir, server, _client) = fresh();
    let other = TempDir::new().unwrap();
    let address = server.address.to_string();
    let (code, text_output) = run(other.path(), &["--listen", &address], &[]);
    assert_eq!(code, Some(1));
    assert!(text_output.contains(&format!("cannot listen on {address} (--listen)")), "{text_output}");
    let (code, text_output) = run(other.path(), &["--resp-listen", &address], &[]);
    assert_eq!(code, Some(1));
    assert!(text_output.contains(&format!("cannot listen on {address} (--resp-listen)")), "{text_output}");
    // The port is bound first: no store was created.
    assert!(!other.path().join("data").exists());
}

#[test]
fn a_damaged_directory_is_rejected_with_a_message() {
    let (dir, server, mut client) = with_pool(10);
    client.post("/v1/claims", &json!({"namespace": "ns", "pool": "warm", "key": "a"})).expect(201);
    assert_eq!(server.stop().code(), Some(0));
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        let length = std::fs::metadata(&path).unwrap().len();
        if path.is_file() && length > 0 {
            std::fs::write(&path, vec![0xa5; usize::try_from(length).unwrap()]).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let (code, text_output) = run(dir.path(), &[], &[]);
    assert_eq!(code, Some(1), "{text_output}");
    assert!(text_output.contains(dir.path().to_str().unwrap()), "{text_output}");
}

#[test]
fn a_directory_that_cannot_be_created_is_rejected_with_a_message() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("data"), "a file").unwrap();
    let (code, text_output) = run(dir.path(), &[], &[]);
    assert_eq!(code, Some(1));
    assert!(text_output.contains(dir.path().join("data").to_str().unwrap()), "{text_output}");
}

#[test]
fn w06_a_loading_service_never_reports_an_empty_state() {
    let (dir, server, mut client) = with_pool(500);
    let claim = json!({"namespace": "ns", "pool": "warm", "key": "a"});
    let fence = client.post("/v1/claims", &claim).expect(201)["claim"]["fence"].take();
    server.kill();
    // The port must be known before the service is ready, so the test chooses a free one.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut child = Running(command(dir.path(), &["--listen", &address.to_string()], &[]).spawn().unwrap());
    let answer = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            panic!("{status}: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
        }
        let Ok(mut client) = Client::connect(address) else { continue };
        let answer = client.post("/v1/claims", &claim);
        if answer.status != 503 {
            break answer;
        }
        answer.expect_error(503, "UNAVAILABLE", Some("loading"), None);
        let ready = client.get("/readyz");
        assert!(ready.status == 200 || ready.status == 503);
        client.get("/healthz").expect(200);
    };
    // The first response that is not `loading` has the claim: it was stored.
    let known: Value = answer.expect(200);
    assert_eq!(known["claim"]["fence"], fence);
}

#[test]
fn wrong_usage_and_configuration_exit_with_64() {
    let dir = TempDir::new().unwrap();
    let invalid = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/invalid/out_of_range.toml");
    let (code, text_output) = run(dir.path(), &["--config", invalid.to_str().unwrap()], &[]);
    assert_eq!(code, Some(64));
    for key in ["server.max_connections", "server.max_body_bytes", "server.request_timeout_ms", "store.wait_ms"] {
        assert!(text_output.contains(key), "{key} is not in {text_output}");
    }
    for (arguments, parts) in [
        (&["--store", "redis://127.0.0.1/x"][..], "must be a number"),
        (&["--store", "file:y", "--data-dir", "x"], "--data-dir"),
        (&["--listen", "0.0.0.0:0"], "--insecure"),
        (&["--listen", "nowhere"], "--listen"),
        (&["--resp-listen", "0.0.0.0:0"], "server.resp_listen"),
        (&["--resp-listen", "on"], "must be HOST:PORT or off"),
        (&["--log", "xml"], "text or json"),
        (&["--config", "/nowhere.toml"], "/nowhere.toml"),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        let (code, text_output) = run(dir.path(), arguments, &[]);
        assert_eq!(code, Some(64), "{arguments:?}: {text_output}");
        assert!(text_output.contains(parts), "{arguments:?}: {text_output}");
    }
    let (code, text_output) = run(dir.path(), &[], &[("HOTPOOL__SERVER__LISTEM", "127.0.0.1:0")]);
    assert_eq!(code, Some(64));
    assert!(text_output.contains("server.listem"), "{text_output}");
    let bare = Command::new(env!("CARGO_BIN_EXE_hotpool")).output().unwrap();
    assert_eq!(bare.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&bare.stderr).contains("serve"));
}

#[test]
fn memory_keeps_nothing() {
    let dir = TempDir::new().unwrap();
    let server = Server::start_with(dir.path(), &["--store", "memory:"], &[]);
    server.client().put("/v1/pools/ns/warm", &json!({})).expect(201);
    assert_eq!(server.stop().code(), Some(0));
    let server = Server::start_with(dir.path(), &["--store", "memory:", "--log", "json"], &[]);
    server.client().get("/v1/pools/ns/warm").expect_error(404, "NOT_FOUND", None, None);
    assert_eq!(server.stop().code(), Some(0));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    assert!(log.contains("SIGTERM"), "{log}");
}
