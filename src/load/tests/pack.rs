//! `hotpool-load pack`: the published runs of the openb traces digit for digit, the service's own placement compared
//! with them, and the command line.
//!
//! The traces are not part of this repository. They are read from `../shared/traces`, or from the directory in
//! `HOTPOOL_TRACES`; tests that need them print one line and skip if they are missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hotpool::engine::placement::bin_packing::FitStrategy;
use hotpool_load::pack::args::{PackArgs, PolicyArg};
use hotpool_load::pack::curve::{LAST_PERCENT, curve};
use hotpool_load::pack::input::PackInput;
use hotpool_load::pack::published::PublishedPolicy;
use hotpool_load::pack::simulate::{MixSource, PlacementDecider, simulate};
use serde_json::Value;

/// Curves of the published runs by trace, policy and seed.
type PublishedRuns = BTreeMap<(String, String, u32), Vec<Option<f64>>>;

struct Traces(PathBuf);

impl Traces {
    fn find() -> Option<Self> {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/traces");
        let actual = std::env::var_os("HOTPOOL_TRACES").map_or_else(default, PathBuf::from).join("openb");
        if !actual.is_dir() {
            eprintln!("skipped: no traces at {}", actual.display());
            return None;
        }
        Some(Self(actual))
    }

    fn published(&self) -> PublishedRuns {
        let file = hotpool_load::trace::open(&self.0.join("published_seeds_42_43.csv.gz")).unwrap();
        let mut runs = PublishedRuns::new();
        for row in csv::Reader::from_reader(file).into_records() {
            let row = row.unwrap();
            let trace = row[0].strip_prefix("openb_pod_list_").unwrap().to_owned();
            let (_, policy) = row[1].split_once('-').unwrap();
            let values = (5..=5 + LAST_PERCENT).map(|at| row.get(at).and_then(|value| value.parse().ok())).collect();
            runs.insert((trace, policy.to_owned(), row[3].parse().unwrap()), values);
        }
        runs
    }

    fn args(&self, trace: &str, seed: u32) -> PackArgs {
        // Traces that differ only in models share rows, and therefore random draws.
        let draws = if trace.starts_with("gpuspec") { "default" } else { trace };
        PackArgs {
            nodes: self.0.join("openb_node_list_gpu_node.csv"),
            requests: self.0.join(format!("openb_pod_list_{trace}.csv.gz")),
            events: Some(self.0.join(format!("events/{draws}.s{seed}.u16"))),
            rank: Some(self.0.join(format!("events/{draws}.s{seed}.rank.u16"))),
            policy: PolicyArg::Fgd,
            shards: 1,
            protocol: false,
            learn: false,
            report_json: None,
            plot: None,
        }
    }

    fn input(&self, trace: &str, seed: u32) -> PackInput {
        PackInput::read(&self.args(trace, seed)).unwrap()
    }
}

fn reproduces(policy: &str, published: impl Fn(&PackInput) -> PublishedPolicy) {
    let Some(traces) = Traces::find() else { return };
    let runs = traces.published();
    let mut compared = 0;
    for ((trace, _, seed), expected) in runs.iter().filter(|((_, name, _), _)| name == policy) {
        let input = traces.input(trace, *seed);
        let result = simulate(&input, &mut PlacementDecider::published(&input, published(&input)), |_| {});
        assert_eq!(&curve(&result.points, input.gpus()), expected, "{policy} of {trace}, seed {seed}");
        compared += 1;
    }
    assert_eq!(compared, 34, "17 traces with two seeds");
}

#[test]
fn openb_best_fit_is_reproduced_digit_for_digit() {
    reproduces("BestFit", |_| PublishedPolicy::BestFit);
}

#[test]
fn openb_fgd_is_reproduced_digit_for_digit() {
    reproduces("FGD", PublishedPolicy::fgd);
}

/// Gain of the service's placement over the published one at 100 % arrived, by trace and seed.
fn gains(shards: u16) -> Option<BTreeMap<String, Vec<f64>>> {
    let traces = Traces::find()?;
    let mut gains: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((trace, _, seed), expected) in traces.published().iter().filter(|((_, name, _), _)| name == "FGD") {
        let input = traces.input(trace, *seed);
        let mut decider = PlacementDecider::service(&input, FitStrategy::Fgd, shards, MixSource::Given).unwrap();
        let actual = curve(&simulate(&input, &mut decider, |_| {}).points, input.gpus());
        gains.entry(trace.clone()).or_default().push(actual[100].unwrap() - expected[100].unwrap());
    }
    Some(gains)
}

#[test]
fn openb_service_fgd_packs_better_than_the_published_one_on_every_trace() {
    for (trace, gains) in gains(1).into_iter().flatten() {
        let mean = gains.iter().sum::<f64>() / gains.len() as f64;
        assert!(mean >= 0.0 && gains.iter().all(|&gain| gain >= -0.15), "{trace}: {gains:?}");
    }
}

#[test]
fn openb_over_eight_shards_loses_at_most_half_a_point() {
    let (Some(one_shard), Some(eight_shards)) = (gains(1), gains(8)) else { return };
    for ((trace, one_shard), eight_shards) in one_shard.iter().zip(eight_shards.values()) {
        let loss = (one_shard.iter().sum::<f64>() - eight_shards.iter().sum::<f64>()) / one_shard.len() as f64;
        assert!(loss <= 0.5, "{trace} loses {loss}");
    }
}

fn load(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hotpool-load")).arg("pack").args(args).output().expect("the binary runs")
}

/// Files of a small run: two workers with two GPUs each, four requests for one GPU.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.write("nodes.csv", "sn,cpu_milli,memory_mib,gpu,model\nb,8000,1024,2,T4\na,8000,1024,2,A10\n");
        files.write(
            "requests.csv",
            "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n\
             p0,1000,1,1,1000,A10\np1,1000,1,1,500,\np2,1000,1,0,0,\np3,1000,1,1,1000,A10|T4\n",
        );
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn run(&self, options: &[&str]) -> Output {
        let (nodes, requests) = (self.path("nodes.csv"), self.path("requests.csv"));
        load(&[&["--nodes", nodes.as_str(), "--requests", requests.as_str()], options].concat())
    }

    fn report(&self, options: &[&str]) -> Value {
        let file = self.path("report.json");
        let output = self.run(&[&["--report-json", file.as_str()], options].concat());
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
    }
}

#[test]
fn the_report_has_the_fields_that_scripts_read() {
    let files = Small::new();
    // Rows 0, 0, 0: three whole GPUs of a model that has two.
    let events = files.write("events.u16", [0, 0, 0, 0, 0, 0, 3, 0, 1, 0]);
    let report = files.report(&["--events", &events, "--policy", "best_fit"]);
    assert_eq!(report["command"], "pack");
    assert_eq!((&report["failed"], &report["requests"]), (&1.into(), &5.into()));
    // Arrived: 4,500 of 4,000 thousandths (112.5 %); allocated: 3,500.
    assert_eq!(report["alloc_at"]["100"], 75.0, "{report:#}");
    assert_eq!(report["alloc_at"]["130"], Value::Null, "arrivals end below 130 %");
    assert_eq!(report["curve"].as_array().map(Vec::len), Some(131));
    assert_eq!((&report["curve"][25], &report["curve"][112]), (&25.0.into(), &87.5.into()));
    assert!(report["decisions_per_s"].as_f64() > Some(0.0));
    for field in ["p50", "p99", "max"] {
        assert!(report["decision_us"][field].as_f64() > Some(0.0), "{field}");
    }
}

#[test]
fn every_policy_supports_shards_learning_and_gzip() {
    let files = Small::new();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &std::fs::read(files.path("requests.csv")).unwrap()).unwrap();
    files.write("requests.csv", gzip.finish().unwrap());
    for policy in ["best_fit", "spread", "fgd"] {
        let report = files.report(&["--policy", policy, "--shards", "2"]);
        assert_eq!(report["failed"], 0, "{policy}");
        assert_eq!(report["parameters"]["policy"], policy);
    }
    assert_eq!(files.report(&["--policy", "fgd", "--learn"])["failed"], 0);
    assert_eq!(files.report(&["--policy", "fgd", "--protocol"])["failed"], 0);
    let plot = files.path("plot.svg");
    files.report(&["--policy", "fgd", "--plot", &plot]);
    let chart = std::fs::read_to_string(plot).unwrap();
    for policy in ["best_fit", "spread", "fgd"] {
        assert!(chart.contains(policy), "{policy} is not in the picture");
    }
}

#[test]
fn invalid_files_are_rejected_by_name() {
    let files = Small::new();
    let row = files.write("row.u16", [9, 0]);
    let odd = files.write("odd.u16", [1]);
    let twice = files.write("twice.u16", [1, 0, 1, 0]);
    let few = files.write("few.u16", [0, 0]);
    for (flag, file, word) in [
        ("--events", row.as_str(), "row 9 of 4 requests"),
        ("--events", odd.as_str(), "1 bytes"),
        ("--events", "/no/such/file", "cannot read"),
        ("--rank", twice.as_str(), "rank 1 twice"),
        ("--rank", few.as_str(), "ranks 1 nodes, there are 2"),
    ] {
        let output = files.run(&[flag, file]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(file) && text.contains(word), "{flag} {file}: {text}");
    }
    let header = "cpu_milli,memory_mib,num_gpu,gpu_milli\n";
    for (line, word) in [
        ("1,1,2,500", "gpu_milli must be 1 to 1000"),
        ("-1,1,0,0", "field 0: invalid digit"),
        ("1,99999999999999999,0,0", "exceeds the limits of a worker"),
        ("1,1,65,1000", "exceeds the limits of a worker"),
        ("", "no rows"),
    ] {
        files.write("requests.csv", format!("{header}{line}\n"));
        let output = files.run(&[]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains("requests.csv"), "{line}: {text}");
        assert!(text.contains(word), "{line}: {text}");
    }
    assert_eq!(files.run(&["--protocol", "--policy", "spread"]).status.code(), Some(64));
}
