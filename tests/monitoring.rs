//! Configuration for Prometheus and Grafana, checked against the service: promtool runs the alert rules and their tests, every
//! metric of a rule or panel must exist, and a real Prometheus scrapes the service.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hotpool::metrics::{ALL, ClaimOutcome, MetricKind, POOL_FAMILIES, SeriesVisibility};
use tempfile::TempDir;

/// Longest wait before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval between two attempts, each of which runs a program.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!("{program} cannot be run ({error}): tests/run.sh installs it, or install Debian's prometheus")
    })
}

fn promtool(arguments: &[&str]) {
    let out = run(Command::new("promtool").args(arguments).current_dir(file("config/prometheus")));
    let output = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "promtool {arguments:?}: {output}");
}

#[test]
fn promtool_accepts_the_configuration_and_the_tests_of_the_rules_pass() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
}

/// Names in a text that have the form of metrics of the service or the process.
fn names(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("hotpool_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn exists(name: &str, scraped: &str) -> bool {
    let ours = |metric: &hotpool::metrics::MetricDefinition| match metric.kind {
        MetricKind::Histogram(_) => {
            name.strip_prefix(metric.name).is_some_and(|suffix| ["_bucket", "_sum", "_count"].contains(&suffix))
        }
        MetricKind::Counter | MetricKind::Gauge => name == metric.name,
    };
    ALL.iter().any(ours) || scraped.lines().any(|line| line.starts_with(&format!("{name} ")))
}

/// Checks that the series of rules and autoscalers exist before the first count, which `increase()` does not see otherwise.
#[test]
fn h04_rules_use_series_that_exist_before_the_first_count() {
    let read = |path: &str| std::fs::read_to_string(file(path)).unwrap();
    let operating = read("docs/OPERATING.md");
    let query = operating.lines().find(|line| line.trim_start().starts_with("query: ")).expect("KEDA's query");
    let (scaling, rules) = (names(query), read("config/prometheus/alerts.yml"));
    assert!(scaling.len() == 2, "{query}");
    for family in POOL_FAMILIES {
        if scaling.contains(family.name) {
            assert_eq!(family.visibility, SeriesVisibility::WithPool, "an unused pool is scaled too: {}", family.name);
        }
        // Histograms are used for quantiles, which the first amount does not change.
        let histogram =
            ALL.iter().any(|metric| metric.name == family.name && matches!(metric.kind, MetricKind::Histogram(_)));
        if names(&rules).contains(family.name) && !histogram {
            assert_ne!(family.visibility, SeriesVisibility::WhenNeeded, "{}", family.name);
        }
    }
    for outcome in ClaimOutcome::ALL.iter().filter(|outcome| outcome.visibility() == SeriesVisibility::WhenNeeded) {
        let mut selected = rules.split("hotpool_claims_total{").skip(1).map(|after| after.split('}').next().unwrap());
        assert!(
            !selected.any(|labels| labels.split(['"', '|']).any(|word| word == outcome.as_str())),
            "{}",
            outcome.as_str()
        );
    }
}

/// Child process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // The child may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Gets a URL on this machine, once it answers.
fn get(url: &str) -> String {
    let answer = poll(|| {
        let out = run(Command::new("curl").args(["-sf", "--max-time", "5", url]));
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    });
    answer.unwrap_or_else(|| panic!("{url} does not answer within {PATIENCE:?}"))
}

/// Repeats an attempt until it has a result, for at most [`PATIENCE`].
fn poll<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            None if begun.elapsed() < PATIENCE => std::thread::sleep(POLL_INTERVAL),
            result => return result,
        }
    }
}

fn hotpool(dir: &Path) -> (Running, String) {
    let port = free_port();
    let child = Command::new(env!("CARGO_BIN_EXE_hotpool"))
        .args(["serve", "--store", "memory:", "--resp-listen", "off", "--listen", &format!("127.0.0.1:{port}")])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let running = Running(child);
    let base = format!("http://127.0.0.1:{port}");
    get(&format!("{base}/readyz"));
    (running, base)
}

fn post(url: &str, method: &str, body: &str) {
    let out = run(Command::new("curl").args(["-sf", "-X", method, "-d", body, url]));
    assert!(out.status.success(), "{method} {url}");
}

/// Checks with promtool that families are in one block, series unique, and names of counters end in `_total`.
fn accepted_by_promtool(scraped: &str) {
    let mut checker = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tests/run.sh installs prometheus");
    checker.stdin.take().unwrap().write_all(scraped.as_bytes()).unwrap();
    let out = checker.wait_with_output().unwrap();
    let output = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "promtool check metrics: {output}\n{scraped}");
}

#[test]
fn a_real_prometheus_scrapes_the_service_and_rules_and_panels_name_existing_metrics() {
    let dir = TempDir::new().unwrap();
    let (_service, base) = hotpool(dir.path());
    post(&format!("{base}/v1/pools/demo/warm"), "PUT", "{}");
    post(&format!("{base}/v1/pools/demo/warm/workers/w1"), "PUT", "{}");
    post(&format!("{base}/v1/claims"), "POST", r#"{"namespace":"demo","pool":"warm","key":"k"}"#);
    let scraped = get(&format!("{base}/metrics"));
    accepted_by_promtool(&scraped);
    for path in ["config/prometheus/alerts.yml", "config/grafana/hotpool.json"] {
        let text = std::fs::read_to_string(file(path)).unwrap();
        let unknown: Vec<_> = names(&text).into_iter().filter(|name| !exists(name, &scraped)).collect();
        assert!(unknown.is_empty(), "{path} names what no scrape shows: {unknown:?}");
    }
    serde_json::from_str::<serde_json::Value>(&std::fs::read_to_string(file("config/grafana/hotpool.json")).unwrap())
        .unwrap();

    let text = std::fs::read_to_string(file("config/prometheus/prometheus.yml")).unwrap();
    let target = base.strip_prefix("http://").unwrap();
    let text = text.replace("127.0.0.1:7070", target).replace("15s", "1s");
    std::fs::write(dir.path().join("prometheus.yml"), text).unwrap();
    std::fs::copy(file("config/prometheus/alerts.yml"), dir.path().join("alerts.yml")).unwrap();
    let port = free_port();
    let prometheus = Command::new("prometheus")
        .arg("--config.file=prometheus.yml")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--storage.tsdb.path=data")
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut prometheus = Running(prometheus.expect("tests/run.sh installs prometheus"));
    let query = |expr: &str| get(&format!("http://127.0.0.1:{port}/api/v1/query?query={expr}"));
    let scraped = poll(|| query("hotpool_claims_total").contains(r#""outcome":"created""#).then_some(()));
    if scraped.is_none() {
        let mut output = String::new();
        prometheus.0.kill().unwrap();
        prometheus.0.stderr.take().unwrap().read_to_string(&mut output).unwrap();
        panic!("Prometheus has scraped nothing within {PATIENCE:?}: {output}");
    }
    assert!(query("up").contains(r#""1"]"#), "{}", query("up"));
    for expr in ["hotpool_ready", "hotpool_build_info", "hotpool_claim_seconds_bucket", "process_open_fds"] {
        assert!(query(expr).contains("\"value\":"), "{expr}: {}", query(expr));
    }
    // The rules are evaluated, and none fires on a healthy service.
    let rules = get(&format!("http://127.0.0.1:{port}/api/v1/rules"));
    assert!(rules.contains("HotpoolAccountingMismatch") && !rules.contains(r#""state":"firing""#), "{rules}");
}
