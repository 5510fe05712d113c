use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::server::{Running, fresh};

/// Loads a target for a moment, and checks that every answer was right.
#[track_caller]
fn load_cleanly(target: &str, shape: &[&str], file: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool-load"));
    command.args(["bench", "--target", target, "--duration-s", "0.3", "--workers", "100"]).args(shape);
    let output = command.arg("--report-json").arg(file).output().unwrap();
    assert!(output.status.success(), "{target} {shape:?}: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    for field in ["errors", "double_claims", "old_fences", "unknown_workers", "leaked"] {
        assert_eq!(report[field], 0, "{target}: {field} in {report:#}");
    }
    assert!(report["claims_ok"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["claims_ok"], report["releases_ok"], "{target}");
}

#[test]
fn the_harness_loads_a_service_over_http_and_grpc() {
    let (dir, server, _client) = fresh();
    let file = dir.path().join("report.json");
    for kind in ["http", "grpc"] {
        let target = format!("{kind}://{}", server.address);
        for shape in [&["--clients", "2"][..], &["--clients", "1", "--in-flight", "4", "--batch", "10"]] {
            load_cleanly(&target, shape, &file);
        }
    }
}

#[test]
fn bare_servers_answer_every_edge_and_write_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let (file, log) = (dir.path().join("report.json"), dir.path().join("log"));
    let log_options = ["--log", log.to_str().unwrap()];
    for options in [&[][..], &log_options] {
        let mut bare = Command::new(env!("CARGO_BIN_EXE_hotpool-load"));
        let bare = bare.args(["echo", "--workers", "100"]).args(options).stdout(Stdio::piped()).spawn().unwrap();
        let mut bare = Running(bare);
        let mut ready = String::new();
        BufReader::new(bare.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let words: Vec<&str> = ready.split_whitespace().collect();
        let [_, http, resp] = words[..] else { panic!("{ready}") };
        let (http, resp) = (&http["http://".len()..], &resp["redis://".len()..]);
        for target in [
            format!("echo+http://{http}"),
            format!("echo+grpc://{http}"),
            format!("echo+grpc-stream://{http}"),
            format!("echo+resp://{resp}?http={http}"),
        ] {
            load_cleanly(&target, &["--clients", "2"], &file);
            let deep = ["--clients", "2", "--in-flight", "8", "--batch", "8"];
            // Bare gRPC has no batches.
            load_cleanly(&target, if target.contains("grpc") { &deep[..4] } else { &deep }, &file);
        }
    }
    assert!(std::fs::read(&log).unwrap().starts_with(&[0x5a; 300]), "records are in the log");
    let mut again = Command::new(env!("CARGO_BIN_EXE_hotpool-load"));
    let again = again.arg("echo").args(log_options).output().unwrap();
    let message = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && message.contains("must not exist"), "{message}");
}
