//! Bundled scenarios, sweeps and comparisons: their results and their reports.

use std::path::Path;

use serde_json::Value;

use crate::server::Server;
use crate::servers::Server as Redis;
use crate::{load, pages, report};

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
fn assert_clean_run(run: &Value) {
    let report = &run["report"];
    for field in ["errors", "double_claims", "old_fences", "unknown_workers", "leaked"] {
        assert_eq!(report[field], 0, "{field} of {} in {report:#}", run["scenario"]);
    }
    assert!(report["claims_ok"].as_u64() > Some(0), "{run:#}");
    assert_eq!(report["claims_ok"], report["releases_ok"]);
}

#[test]
fn every_bundled_scenario_runs() {
    let names: Vec<String> =
        files().iter().map(|file| file.rsplit('/').next().unwrap_or_default().to_owned()).collect();
    let expected =
        ["azure", "burst", "churn", "failover", "gang", "hot_pool", "llm", "mixed_sizes", "saturated", "steady"];
    assert_eq!(names, expected.map(|name| format!("{name}.toml")));
    for file in files() {
        // The second scenario always runs: skipping all of them would be exit code 1.
        let report = report(&["run", "--scenario", &file, "--scenario", &steady(), "--phase-s", "0.6"]);
        let run = &report["runs"][0];
        if let Some(reason) = run["skipped"].as_str() {
            assert!(reason.contains("HOTPOOL_TRACES"), "{reason}");
            eprintln!("{file}: {reason}");
            continue;
        }
        assert_clean_run(run);
        let rejected = run["report"]["claims_refused"].as_u64() > Some(0);
        assert!(rejected || !file.contains("saturated"), "{run:#}");
        assert!(!run["report"]["timeline"].as_array().expect("slices").is_empty());
        // No server fails unless one is named.
        assert_eq!(run["report"]["longest_stall_s"], Value::Null);
    }
}

#[test]
fn scenarios_on_many_targets_share_one_page() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start_with(dir.path(), &["--resp-listen", "127.0.0.1:0"], &[]);
    let html_path = dir.path().join("page.html");
    let html_path = html_path.to_str().expect("UTF-8");
    let http = format!("http://{}", server.address);
    let resp = format!("resp://{}?http={}", server.resp.expect("a port for RESP"), server.address);
    let grpc = format!("grpc://{}", server.address);
    let streams = format!("grpc-stream://{}", server.address);
    let config = |name: &str| files().into_iter().find(|file| file.contains(name)).expect("a scenario");
    let (burst, churn, gang) = (config("burst"), config("churn"), config("gang"));
    let mut args = vec!["run", "--phase-s", "0.5", "--report-html", html_path];
    for file in [&burst, &churn, &gang] {
        args.extend(["--scenario", file]);
    }
    for target in ["inproc", &http, &grpc, &streams, &resp, "redis-spop://127.0.0.1:9"] {
        args.extend(["--target", target]);
    }
    let report = report(&args);
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 18);
    let (skipped, run): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run["skipped"].is_string());
    // RESP rejects the gang scenario; the baseline rejects all three.
    assert_eq!(skipped.len(), 4, "{skipped:#?}");
    run.iter().for_each(|run| assert_clean_run(run));
    let html = std::fs::read_to_string(html_path).expect("a page");
    assert!(html.matches("<svg").count() > 2 * run.len() && html.contains("Changes decided by each shard"));
    pages::check(Path::new(html_path));
}

#[test]
fn a_redis_outage_shows_as_a_stall() {
    let redis = Redis::start(&[]);
    let file = files().into_iter().find(|file| file.contains("failover")).expect("a scenario");
    let master = format!("127.0.0.1:{}", redis.port);
    let dir = tempfile::tempdir().expect("a directory");
    let text = std::fs::read_to_string(file).expect("a scenario");
    // A shorter outage, on a baseline, which has nothing between the client and the server.
    let text =
        text.replace("duration_s = 20", "duration_s = 3").replace("at_s = 5", "at_s = 1").replace("3000", "1000");
    let file = dir.path().join("short.toml");
    std::fs::write(&file, text).expect("a file");
    let target = format!("redis-lua://{master}");
    let file = file.to_str().expect("UTF-8");
    let report = report(&["run", "--scenario", file, "--target", &target, "--redis-master", &master]);
    assert_clean_run(&report["runs"][0]);
    let stall = report["runs"][0]["report"]["longest_stall_s"].as_f64().expect("a stall");
    assert!((0.7..2.0).contains(&stall), "{stall}");
}

#[test]
fn invalid_scenarios_are_reported() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("wrong.toml");
    std::fs::write(&file, "about = 'x'\nrate = 5\n[pool]\nworkers = 0\n[[phases]]\nduration_s = 1\nrate = -1\n")
        .expect("a file");
    let output = load(&["run", "--scenario", file.to_str().expect("UTF-8")], None);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for key in ["rate: unknown field", "pool.workers: must be", "phases[0].rate: must be"] {
        assert!(stderr.contains(key), "{key} in {stderr}");
    }
}

#[test]
fn a_sweep_finds_a_knee() {
    let dir = tempfile::tempdir().expect("a directory");
    let html_path = dir.path().join("page.html");
    let html_path = html_path.to_str().expect("UTF-8");
    // With few workers and a tight percentile, a high rate must fail sooner or later.
    let report = report(&[
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
        html_path,
    ]);
    let steps = report["steps"].as_array().expect("steps");
    let knee = report["knee_per_s"].as_f64().expect("a number");
    let sustained = |step: &Value| step["sustained"] == true;
    let max =
        steps.iter().filter(|step| sustained(step)).filter_map(|step| step["rate_per_s"].as_f64()).fold(0.0, f64::max);
    assert!(knee >= 500.0 && (knee - max).abs() < f64::EPSILON, "{report:#}");
    let unsustained = steps.iter().filter(|step| !sustained(step)).map(|step| &step["rate_per_s"]).collect::<Vec<_>>();
    assert!(!unsustained.is_empty(), "no rate was too high: {report:#}");
    for rate in unsustained {
        let tries = steps.iter().filter(|step| &step["rate_per_s"] == rate).count();
        assert_eq!(tries, 2, "an unsustained rate is tried once more: {report:#}");
    }
    assert!(std::fs::read_to_string(html_path).expect("a page").contains("Latency by rate"));
    pages::check(Path::new(html_path));
}

#[test]
fn a_comparison_starts_its_servers_and_writes_its_tables() {
    let dir = tempfile::tempdir().expect("a directory");
    let [html_path, tables] = ["page.html", "tables.md"].map(|name| dir.path().join(name).display().to_string());
    let plots = dir.path().join("plots").display().to_string();
    let args = ["compare", "--rounds", "1", "--turn-s", "0.2", "--report-html", &html_path, "--report-md", &tables];
    let report = report(&[&args[..], &["--plot", &plots]].concat());
    assert_eq!(report["promises"].as_array().map(Vec::len), Some(14));
    for contest in report["contests"].as_array().expect("contests") {
        let masters = if contest["name"] == "Durable on one disk" { 0 } else { 3 };
        for row in contest["rows"].as_array().expect("rows") {
            assert!(row["claims_per_s"].as_f64() > Some(0.0), "{row:#}");
            let is_bare = row["name"].as_str().is_some_and(|name| name.starts_with("bare"));
            let masters = if is_bare { 0 } else { masters };
            assert_eq!(row["master_bytes"].as_array().map(Vec::len), Some(masters));
            let is_limited = row["name"].as_str().is_some_and(|name| name.starts_with("hotpool"));
            assert_eq!(row["of_limit"].as_f64().is_some_and(|of_limit| of_limit > 0.0), is_limited, "{row:#}");
        }
    }
    let tables = std::fs::read_to_string(tables).expect("tables");
    for word in [
        "postgres, 16 clients",
        "redis-scan",
        "redis-spop",
        "redis-lock",
        "redis-batch",
        "redis-lua",
        "hotpool, RESP",
        "Knee",
        "| what | met | goal |",
    ] {
        assert!(tables.contains(word), "{word} in {tables}");
    }
    pages::check(Path::new(&html_path));
    let chart = Path::new(&plots).join("knee-latency-by-rate.svg");
    assert!(std::fs::read_to_string(chart).expect("a chart").starts_with("<svg xmlns"));
    assert!(!tables.contains("VIOLATED"), "{tables}");
    let html = std::fs::read_to_string(html_path).expect("a page");
    assert!(html.contains("<svg") && !html.contains("<script") && !html.contains("src="));
}
