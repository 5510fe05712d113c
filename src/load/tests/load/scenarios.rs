//! The scenarios that come with the project, sweeps and comparisons: what they find, and what they write.

use std::path::Path;

use serde_json::Value;

use crate::server::Server;
use crate::servers::Server as Redis;
use crate::{load, report};

fn files() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/load");
    let entries = std::fs::read_dir(dir).expect("config/load");
    let mut files: Vec<String> = entries.map(|entry| entry.expect("a file").path().display().to_string()).collect();
    files.sort();
    files
}

fn steady() -> String {
    files().into_iter().find(|file| file.ends_with("steady.toml")).expect("a steady scenario")
}

#[track_caller]
fn assert_right(run: &Value) {
    let report = &run["report"];
    for field in ["errors", "double_claims", "old_fences", "unknown_workers", "leaked"] {
        assert_eq!(report[field], 0, "{field} of {} in {report:#}", run["scenario"]);
    }
    assert!(report["claims_ok"].as_u64() > Some(0), "{run:#}");
    assert_eq!(report["claims_ok"], report["releases_ok"]);
}

#[test]
fn every_scenario_runs() {
    let names: Vec<String> =
        files().iter().map(|file| file.rsplit('/').next().unwrap_or_default().to_owned()).collect();
    let wanted =
        ["azure", "burst", "churn", "failover", "gang", "hot_pool", "llm", "mixed_sizes", "saturated", "steady"];
    assert_eq!(names, wanted.map(|name| format!("{name}.toml")));
    for file in files() {
        // Beside one that always runs: the exit code of a run of which all is skipped is 1.
        let found = report(&["run", "--scenario", &file, "--scenario", &steady(), "--phase-s", "0.6"]);
        let run = &found["runs"][0];
        if let Some(why) = run["skipped"].as_str() {
            assert!(why.contains("HOTPOOL_TRACES"), "{why}");
            eprintln!("{file}: {why}");
            continue;
        }
        assert_right(run);
        let refused = run["report"]["claims_refused"].as_u64() > Some(0);
        assert!(refused || !file.contains("saturated"), "{run:#}");
        assert!(!run["report"]["timeline"].as_array().expect("slices").is_empty());
        // Nothing is done to a server that nobody named.
        assert_eq!(run["report"]["longest_stall_s"], Value::Null);
    }
}

#[test]
fn targets_side_by_side_on_one_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let page = dir.path().join("page.html");
    let page = page.to_str().expect("UTF-8");
    let http = format!("http://{}", server.address);
    let resp = format!("resp://{}?http={}", server.resp.expect("a port for RESP"), server.address);
    let grpc = format!("grpc://{}", server.address);
    let streams = format!("grpc-stream://{}", server.address);
    let config = |name: &str| files().into_iter().find(|file| file.contains(name)).expect("a scenario");
    let (burst, churn, gang) = (config("burst"), config("churn"), config("gang"));
    let mut args = vec!["run", "--phase-s", "0.5", "--report-html", page];
    for file in [&burst, &churn, &gang] {
        args.extend(["--scenario", file]);
    }
    for target in ["inproc", &http, &grpc, &streams, &resp, "redis-spop://127.0.0.1:9"] {
        args.extend(["--target", target]);
    }
    let found = report(&args);
    let runs = found["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 18);
    let (skipped, run): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run["skipped"].is_string());
    // RESP has no gangs; the baseline none of the three.
    assert_eq!(skipped.len(), 4, "{skipped:#?}");
    run.iter().for_each(|run| assert_right(run));
    let html = std::fs::read_to_string(page).expect("a page");
    assert!(html.matches("<svg").count() > 2 * run.len() && html.contains("shard 0"));
}

#[test]
fn a_server_that_stops_answering_shows() {
    let redis = Redis::start(&[]);
    let file = files().into_iter().find(|file| file.contains("failover")).expect("a scenario");
    let master = format!("127.0.0.1:{}", redis.port);
    let dir = tempfile::tempdir().expect("a directory");
    let text = std::fs::read_to_string(file).expect("a scenario");
    // Shorter, and on a baseline: it has nothing between the client and the server that stops.
    let text =
        text.replace("duration_s = 20", "duration_s = 3").replace("at_s = 5", "at_s = 1").replace("3000", "1000");
    let file = dir.path().join("short.toml");
    std::fs::write(&file, text).expect("a file");
    let target = format!("redis-lua://{master}");
    let file = file.to_str().expect("UTF-8");
    let found = report(&["run", "--scenario", file, "--target", &target, "--redis-master", &master]);
    assert_right(&found["runs"][0]);
    let stall = found["runs"][0]["report"]["longest_stall_s"].as_f64().expect("a stall");
    assert!((0.7..2.0).contains(&stall), "{stall}");
}

#[test]
fn what_is_wrong_in_a_scenario_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "about = 'x'\nrate = 5\n[pool]\nworkers = 0\n[[phases]]\nduration_s = 1\nrate = -1\n")
        .expect("a file");
    let output = load(&["run", "--scenario", file.to_str().expect("UTF-8")], None);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for key in ["rate: unknown field", "pool.workers: must be", "phases[0].rate: must be"] {
        assert!(said.contains(key), "{key} in {said}");
    }
}

#[test]
fn a_sweep_finds_a_knee() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = dir.path().join("page.html");
    let page = page.to_str().expect("UTF-8");
    // One worker, held for the time of a turn in the actor: a high rate must be refused sooner or later.
    let found = report(&[
        "sweep",
        "--workers",
        "64",
        "--from",
        "500",
        "--step-s",
        "0.3",
        "--p99-ms",
        "20",
        "--report-html",
        page,
    ]);
    let steps = found["steps"].as_array().expect("steps");
    let knee = found["knee_per_s"].as_f64().expect("a number");
    let sustained = |step: &Value| step["sustained"] == true;
    let most =
        steps.iter().filter(|step| sustained(step)).filter_map(|step| step["rate_per_s"].as_f64()).fold(0.0, f64::max);
    assert!(knee >= 500.0 && (knee - most).abs() < f64::EPSILON, "{found:#}");
    let too_much = steps.iter().filter(|step| !sustained(step)).map(|step| &step["rate_per_s"]).collect::<Vec<_>>();
    assert!(!too_much.is_empty(), "a rate that is too much: {found:#}");
    for rate in too_much {
        let tries = steps.iter().filter(|step| &step["rate_per_s"] == rate).count();
        assert_eq!(tries, 2, "what was too much once is tried again: {found:#}");
    }
    assert!(std::fs::read_to_string(page).expect("a page").contains("latency over rate"));
}

#[test]
fn a_comparison_starts_what_it_needs_and_writes_its_tables() {
    let dir = tempfile::tempdir().expect("a directory");
    let [page, tables] = ["page.html", "tables.md"].map(|name| dir.path().join(name).display().to_string());
    let args = ["compare", "--rounds", "1", "--turn-s", "0.2", "--report-html", &page, "--report-md", &tables];
    let found = report(&args);
    assert_eq!(found["promises"].as_array().map(Vec::len), Some(8));
    for contest in found["contests"].as_array().expect("contests") {
        for row in contest["rows"].as_array().expect("rows") {
            assert!(row["claims_per_s"].as_f64() > Some(0.0), "{row:#}");
            assert_eq!(row["master_bytes"].as_array().map(Vec::len), Some(3));
        }
    }
    let tables = std::fs::read_to_string(tables).expect("tables");
    for word in [
        "redis-scan",
        "redis-spop",
        "redis-lock",
        "redis-batch",
        "redis-lua",
        "hotpool, RESP",
        "Knee",
        "| what | wanted |",
    ] {
        assert!(tables.contains(word), "{word} in {tables}");
    }
    assert!(!tables.contains("VIOLATED"), "{tables}");
    let html = std::fs::read_to_string(page).expect("a page");
    assert!(html.contains("<svg") && !html.contains("<script") && !html.contains("src="));
}
