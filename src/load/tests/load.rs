//! Tests that run `hotpool-load` against an in-process scheduler or a service and check its report.

#[path = "load/baselines.rs"]
mod baselines;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "../../../tests/end_to_end/client.rs"]
mod client;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "../../../tests/end_to_end/browser/devtools.rs"]
mod devtools;
#[path = "load/network_targets.rs"]
mod network_targets;
#[path = "load/pages.rs"]
mod pages;
#[path = "load/scenarios.rs"]
mod scenarios;
#[allow(dead_code, reason = "shared with the tests over sockets, which use all of it")]
#[path = "../../../tests/end_to_end/server.rs"]
mod server;
#[allow(dead_code, reason = "shared with the tests of the Redis store, which use all of it")]
#[path = "../../../tests/redis/servers.rs"]
mod servers;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn load(args: &[&str], report: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotpool-load"));
    // Scenarios name traces relative to the root of the repository.
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    if let Some(report) = report {
        command.arg("--report-json").arg(report);
    }
    command.output().expect("the binary runs")
}

/// Runs the harness, expects exit code 0, and returns the report.
fn report(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("report.json");
    let output = load(args, Some(&file));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {text}\n{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&std::fs::read(&file).expect("a report")).expect("JSON")
}

#[track_caller]
fn assert_clean(report: &Value) {
    for field in ["errors", "double_claims", "old_fences", "unknown_workers", "leaked"] {
        assert_eq!(report[field], 0, "{field} in {report:#}");
    }
    assert!(report["claims_ok"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["claims_ok"], report["releases_ok"]);
    let latency = |name: &str| report["latency_us"][name].as_f64().expect("a number");
    assert!(0.0 < latency("p50") && latency("p50") <= latency("p90") && latency("p90") <= latency("p99"));
    assert!(latency("p99") <= latency("p999") && latency("p999") <= latency("max"));
}

#[test]
fn a_closed_loop_sends_one_claim_at_a_time() {
    let report = report(&["bench", "--target", "inproc", "--duration-s", "1", "--workers", "100", "--clients", "8"]);
    assert_clean(&report);
    assert_eq!((&report["pacing_us"], &report["warm_ratio"]), (&Value::Null, &Value::Null));
    assert_eq!(report["parameters"]["workers"], 100);
    assert!(report["throughput_per_s"].as_f64() > Some(1_000.0), "{report:#}");
}

#[test]
fn a_closed_loop_sends_batches_with_several_in_flight() {
    let report = report(&[
        "bench",
        "--duration-s",
        "1",
        "--workers",
        "10000",
        "--clients",
        "2",
        "--in-flight",
        "5",
        "--batch",
        "64",
        "--shards",
        "4",
        "--ack",
        "memory",
        "--store",
        "memory:",
    ]);
    assert_clean(&report);
    assert_eq!(report["claims_ok"].as_u64().map(|n| n % 64), Some(0), "only whole batches, as capacity suffices");
}

#[test]
fn a_full_pool_rejects_claims_without_violations() {
    let report = report(&["bench", "--duration-s", "0.5", "--workers", "3", "--clients", "16", "--batch", "2"]);
    assert_clean(&report);
    assert!(report["claims_refused"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn an_open_loop_sends_at_its_rate() {
    let report = report(&["bench", "--duration-s", "1", "--rate", "5000", "--workers", "1000"]);
    assert_clean(&report);
    assert_eq!(report["claims_ok"], 5_000);
    assert!(report["pacing_us"]["p50"].as_f64() > Some(0.0));
}

#[test]
fn a_replay_reuses_warm_workers() {
    let dir = tempfile::tempdir().expect("a directory");
    let trace = dir.path().join("trace.csv");
    // One function at a time: from its second call on it should get the same worker again.
    let rows: String = (0..100).map(|n| format!("{},{},2,128\n", n * 10_000, n % 4)).collect();
    std::fs::write(&trace, format!("t_us,func,dur_ms,mem_mb\n{rows}")).expect("a trace");
    let trace = trace.to_str().expect("a path in UTF-8");
    let report = report(&["replay", "--trace", trace, "--speed", "2", "--workers", "64", "--ack", "memory"]);
    assert_clean(&report);
    assert_eq!(report["claims_ok"], 100);
    let warm = report["warm_ratio"].as_f64().expect("a ratio");
    assert!((0.0..=0.96).contains(&warm), "the first call of each of four functions is cold: {warm}");
}

#[test]
fn resp_handles_single_pipelined_and_batched_claims() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server::Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let target = format!("resp://{}?http={}", server.resp.expect("a port for RESP"), server.address);
    let bench = |options: &[&str]| {
        let args = ["bench", "--target", &target, "--duration-s", "0.5", "--clients", "2"];
        let workers: &[&str] = if options.contains(&"--workers") { &[] } else { &["--workers", "500"] };
        report(&[&args[..], options, workers].concat())
    };
    for options in [
        &[][..],
        &["--in-flight", "64", "--ack", "memory"],
        &["--in-flight", "8", "--batch", "50"],
        &["--rate", "2000"],
        // Too few workers: rejections come as error replies, alone and within a batch.
        &["--in-flight", "200", "--workers", "100"],
        &["--in-flight", "8", "--batch", "50", "--workers", "100"],
    ] {
        let report = bench(options);
        assert_clean(&report);
        let short = options.contains(&"100");
        assert_eq!(report["claims_refused"].as_u64() > Some(0), short, "{options:?}: {report:#}");
    }
}

#[test]
fn several_processes_share_one_load() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = server::Server::start_with(dir.path(), &[], &[]);
    let target = format!("http://{}", server.address);
    let bench =
        ["bench", "--target", &target, "--processes", "3", "--clients", "6", "--workers", "500", "--ack", "memory"];
    let open = report(&[&bench[..], &["--duration-s", "1", "--rate", "901"]].concat());
    assert_clean(&open);
    assert_eq!(open["claims_ok"], 901, "each request is sent by exactly one process");
    assert!(open["pacing_us"]["p50"].as_f64() > Some(0.0));
    let of_slices: u64 =
        open["timeline"].as_array().expect("slices").iter().filter_map(|slice| slice["claims_ok"].as_u64()).sum();
    assert_eq!(of_slices, 901);
    assert_clean(&report(&[&bench[..], &["--duration-s", "0.5", "--in-flight", "7"]].concat()));
}

#[test]
fn exit_codes_distinguish_usage_errors_from_failures() {
    let exit_code = |args: &[&str]| load(args, None).status.code();
    assert_eq!(exit_code(&["--help"]), Some(0));
    assert_eq!(exit_code(&["--version"]), Some(0));
    for usage in [
        &["bench", "--shards", "3"][..],
        &["bench", "--no-such-flag"],
        &["bench", "--target", "ftp://x"],
        &["replay"],
        &["nothing"],
        &[],
    ] {
        assert_eq!(exit_code(usage), Some(64), "{usage:?}");
    }
    // Nothing listens on port 9 (discard) here.
    for target in ["http://127.0.0.1:9", "resp://127.0.0.1:9"] {
        assert_eq!(exit_code(&["bench", "--target", target, "--duration-s", "1"]), Some(1), "{target}");
    }
    assert_eq!(exit_code(&["replay", "--trace", "/no/such/trace"]), Some(1));
}
