//! Holds the documents to the code: the table of metrics, the files and the absences that ARCHITECTURE.md names, the
//! ids of CASES.md, the set-up commands of the README.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hotpool::metrics::{
    ALL, ClaimOutcome, ExcessOutcome, ExpiryReason, GrpcCode, GrpcMethod, HttpRoute, MetricKind, POOL_FAMILIES,
    RequestRefusal, RespCloseReason, RespCommand, RespOutcome, SeriesVisibility, ShardDistribution, ShardState,
    StoreWriteResult,
};
use hotpool::model::UnschedulableReason;

/// Set to 1, it writes what is generated instead of comparing.
const BLESS: &str = "HOTPOOL_BLESS";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// docs/METRICS.md as the code has it.
fn metrics_page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Everything that `GET /metrics` shows, in Prometheus' text format. This page is generated from\n\
         `src/metrics/mod.rs`; after a change there run `HOTPOOL_BLESS=1 cargo test --test docs`.\n\n\
         | metric | kind | labels | what it says |\n|---|---|---|---|\n",
    );
    for metric in ALL {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(" "), metric.help).unwrap();
    }
    let words = |words: Vec<&str>| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" ");
    write!(
        page,
        "\n## Labels\n\n\
         | label | of | values |\n|---|---|---|\n\
         | `pool` | all that have it | `namespace/pool`; `none` for claims that name no pool that there is |\n\
         | `outcome` | `hotpool_claims_total` | {} |\n\
         | `outcome` | `hotpool_store_writes_total` | {} |\n\
         | `state` | `hotpool_workers` | `idle` `busy` {} |\n\
         | `reason` | `hotpool_workers_unschedulable` | {} |\n\
         | `reason` | `hotpool_claims_expired_total` | {} |\n\
         | `state` | `hotpool_shards` | {} |\n\
         | `route` | `hotpool_http_requests_total` | {} |\n\
         | `status` | `hotpool_http_requests_total` | the HTTP status, or `other` |\n\
         | `reason` | `hotpool_requests_refused_total` | {} |\n\
         | `outcome` | `hotpool_http_excess_connections_total` | {} |\n\
         | `method` | `hotpool_grpc_requests_total` | {} |\n\
         | `code` | `hotpool_grpc_requests_total` | {} |\n\
         | `command` | `hotpool_resp_commands_total` | {} |\n\
         | `outcome` | `hotpool_resp_commands_total` | {} |\n\
         | `reason` | `hotpool_resp_connections_ended_total` | {} |\n",
        words(ClaimOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        words(StoreWriteResult::ALL.iter().map(|result| result.as_str()).collect()),
        words(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        words(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        words(ExpiryReason::ALL.iter().map(|deadline| deadline.as_str()).collect()),
        words(ShardState::ALL.iter().map(|state| state.as_str()).collect()),
        words(HttpRoute::ALL.iter().map(|route| route.as_str()).collect()),
        words(RequestRefusal::ALL.iter().map(|reason| reason.as_str()).collect()),
        words(ExcessOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        words(GrpcMethod::ALL.iter().map(|method| method.as_str()).collect()),
        words(GrpcCode::ALL.iter().map(|code| code.as_str()).collect()),
        words(RespCommand::ALL.iter().map(|command| command.as_str()).collect()),
        words(RespOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        words(RespCloseReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    )
    .unwrap();
    writeln!(page, "| `stat` | all that have it | {} |", words(ShardDistribution::STATS.to_vec())).unwrap();
    writeln!(page, "| `version` | `hotpool_build_info` | that of the program |").unwrap();
    page.push_str(&pool_series());
    page.push_str(
        "\n## The process\n\n\
         `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,\n\
         `process_open_fds`, `process_max_fds`, `process_threads` and `process_start_time_seconds`, as Prometheus' own\n\
         client libraries name them.\n\n\
         ## What other schedulers call\n\n\
         | there | here |\n|---|---|\n\
         | time to acquire a lock | `hotpool_shard_queue_wait_seconds`: one writer a shard, so nobody locks a worker |\n\
         | collision or conflict rate | 0 by construction; what comes nearest is counted: `hotpool_fence_refusals_total`, and \
         `hotpool_store_writes_total` with `gap` and `fenced` |\n\
         | cache hit rate, staleness | every answer is from memory, so 1; `hotpool_store_lag_seconds` is how far the store is behind |\n\
         | scheduling duration | `hotpool_claim_seconds` |\n\
         | distribution of workers | `hotpool_shard_workers`, `hotpool_shard_held` |\n\
         | lock operations per batch | `hotpool_worker_updates_total` beside `hotpool_claims_total` |\n",
    );
    page.push_str("\n## Buckets\n\n| histogram | upper bounds |\n|---|---|\n");
    for metric in ALL {
        if let MetricKind::Histogram(buckets) = metric.kind {
            let bounds: Vec<String> = buckets.iter().map(ToString::to_string).collect();
            writeln!(page, "| `{}` | {} |", metric.name, bounds.join(", ")).unwrap();
        }
    }
    page
}

/// When the series of a pool come and go.
fn pool_series() -> String {
    const CLAIMS: &str = "hotpool_claims_total";
    let mut section = String::from(
        "\n## The series of a pool\n\n\
         They come when the pool first needs them, stay at whatever value until it is deleted, and go with it: no scrape after its\n\
         deletion shows them, and a pool that is made anew under the same name counts from 0. An idle pool, one whose workers are\n\
         registered and that nobody uses, is 8 lines, under 500 bytes if its name (`namespace/pool`) has up to 20. One in use is\n\
         3 to 5 kB, and up to 6 if whatever can be counted was and its name has up to 10; workers that are not offered add 0.1 a\n\
         reason, and each further byte of the name one a line.\n\n\
         | comes | metric |\n|---|---|\n",
    );
    for appears in SeriesVisibility::ALL {
        let metrics = POOL_FAMILIES.iter().filter(|family| family.visibility == appears && family.name != CLAIMS);
        let mut names: Vec<String> = metrics.map(|family| format!("`{}`", family.name)).collect();
        let outcomes: Vec<String> = ClaimOutcome::ALL
            .iter()
            .filter(|outcome| outcome.visibility() == appears)
            .map(|outcome| format!("`{}`", outcome.as_str()))
            .collect();
        if appears == SeriesVisibility::WithPool {
            names[0] += " with `idle` `busy`";
        } else if appears == SeriesVisibility::WhenNeeded {
            names.push("`hotpool_workers` with the other states".to_owned());
        }
        if !outcomes.is_empty() {
            names.push(format!("`{CLAIMS}` with {}", outcomes.join(" ")));
        }
        writeln!(section, "| {} | {} |", appears.as_str(), names.join(", ")).unwrap();
    }
    section.push_str(
        "\nThe use of a pool begins when a claim is asked for, ends, or is found after a restart, or when a worker sends a heartbeat. What\n\
         comes *with the pool* or *with its use* comes with whatever was counted before the first scrape that shows it: often 0, but\n\
         what began the use is in it, and so is all that happened since. Prometheus sees no increase from nothing to a first value, so\n\
         `increase()` and `rate()` never have that much. What comes *when needed* comes with its first count, so there they never have\n\
         the first. A rule that must see a single one asks for one of the others, as those of `config/prometheus/alerts.yml` do, and\n\
         misses it only if it came before the first scrape. An absent series of a pool that is there is 0:\n\
         `sum(hotpool_claims_rolled_back_total{pool=\"demo/warm\"}) or vector(0)`.\n",
    );
    section
}

#[test]
fn the_metrics_page_is_what_the_code_has() {
    let path = root().join("docs/METRICS.md");
    let page = metrics_page();
    if std::env::var_os(BLESS).is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/METRICS.md is not what src/metrics/mod.rs says; run: {BLESS}=1 cargo test --test docs\n\
         first difference: {:?}",
        page.lines().zip(found.lines().chain(std::iter::repeat(""))).find(|(ours, theirs)| ours != theirs)
    );
}

/// What stands between single backticks, outside of fenced blocks.
fn backticked(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// Whether it reads like a file or a directory of this repository: `src/admission/key_directory/mod.rs`, `src/engine/`, `Cargo.toml`.
fn is_path(word: &str) -> bool {
    let plain = !word.starts_with('/') && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let file = [".rs", ".toml", ".md", ".sh"].iter().any(|end| word.len() > end.len() && word.ends_with(end));
    plain && (file || word.contains('/'))
}

#[test]
fn every_path_in_the_architecture_exists() {
    let words = backticked(&text("docs/ARCHITECTURE.md"));
    let paths: Vec<_> = words.iter().filter(|word| is_path(word)).collect();
    assert!(paths.len() > 10, "the document names few files: {paths:?}");
    let gone: Vec<_> = paths.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "docs/ARCHITECTURE.md names what is not there: {gone:?}");
}

/// Every Rust file under `dir`, as a path from the root.
fn sources(dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(root().join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let silent: Vec<_> =
        sources("src").into_iter().filter(|path| !path.contains("tests") && !text(path).starts_with("//! ")).collect();
    assert!(silent.is_empty(), "these files do not begin with a comment that says what they are for: {silent:?}");
}

/// Where something waits for a while by the runtime's clock, and decides nothing by it.
const TIMERS: &[&str] = &[
    "src/api/",
    "src/cli/",
    "src/client/",
    "src/load/",
    "src/persist/journal/",
    "src/persist/store/redis/",
    "src/scheduler/",
    "src/server/",
];

/// What stands in code only where the second part says: the absences of ARCHITECTURE.md that can be searched for.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("use redb", &["src/persist/store/redb"]),
    ("use redis", &["src/persist/store/redis"]),
    ("Instant::now", &["src/clock.rs", "src/load/"]),
    ("SystemTime::now", &["src/clock.rs", "src/load/"]),
    (
        "Uuid::now_v7",
        &[
            "src/api/http/json/claims.rs",
            "src/scheduler/caller.rs",
            "src/scheduler/ownership.rs",
            "src/persist/store/data_dir/mod.rs",
            "src/load/",
        ],
    ),
    ("tokio::time", TIMERS),
    ("use dashmap", &["src/admission/key_directory/", "src/persist/journal/mod.rs", "src/admission/tenants.rs"]),
    ("use axum", &["src/api/http/"]),
    ("use tonic", &["src/api/grpc/", "src/load/grpc"]),
    ("use ractor", &["src/shard/", "src/scheduler/mod.rs", "src/scheduler/recovery.rs"]),
    ("metrics::counter!", &["src/metrics/"]),
    ("metrics::gauge!", &["src/metrics/"]),
    ("metrics::histogram!", &["src/metrics/"]),
    ("store().apply(", &["src/persist/journal/"]),
    ("board.publish(", &["src/shard/runner/statistics.rs", "src/admission/capacity_board/mod.rs"]),
];

#[test]
fn what_is_said_to_be_absent_is_absent() {
    for (words, places) in ONLY_IN {
        for path in sources("src").iter().filter(|path| !places.iter().any(|place| path.starts_with(place))) {
            for (line, code) in (1..).zip(text(path).lines()) {
                assert!(code.trim_start().starts_with("//") || !code.contains(words), "{words:?} in {path}:{line}");
            }
        }
    }
    for path in sources("src/engine") {
        for word in ["async ", ".await", "tokio::", "rand::", "std::fs", "std::net"] {
            assert!(!text(&path).contains(word), "{word:?} in {path}: the engine is pure");
        }
    }
    for path in sources("src/cli").iter().filter(|path| *path != "src/cli/store.rs") {
        for word in [
            "crate::scheduler",
            "crate::engine",
            "crate::shard",
            "crate::persist",
            "crate::api::",
            "crate::server::service",
        ] {
            assert!(!text(path).contains(word), "{word:?} in {path}: the commands know the service by its answers");
        }
        let [all, config] = ["crate::server::", "crate::server::config"].map(|word| text(path).matches(word).count());
        assert_eq!(all, config, "{path} imports more of the server than its configuration");
    }
    for path in sources("src/api") {
        for word in ["crate::engine", "crate::admission", "crate::persist", "crate::shard"] {
            let code = text(&path);
            let code = code.split("#[cfg(test)]").next().unwrap();
            assert!(!code.contains(word), "{word:?} in {path}: an edge translates and no more");
        }
    }
}

/// Modules of the library from the bottom up: a module imports from rows below its own, never from its own row or above.
const LAYERS: &[&[&str]] = &[
    &["limits"],
    &["model"],
    &["client", "clock", "metrics"],
    &["events", "persist"],
    &["engine"],
    &["admission", "shard"],
    &["scheduler"],
    &["api"],
    &["server"],
    &["cli"],
];

/// Imports within a row or upwards that still stand, each with its reason.
const LAYER_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("admission", "shard", "claims travel from shard to shard, so admission knows the commands of a shard"),
    ("shard", "admission", "a shard calls the key directory, the router and the wait queue in the middle of a run"),
];

/// Modules of the library that `code` names in paths that begin with `crate::`, comments and tests left out.
fn imports(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let paths = lines.flat_map(|line| line.split("crate::").skip(1));
    let module = |path: &str| path.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let grouped = code.match_indices("use crate::{").count();
    assert_eq!(grouped, 0, "an import that begins with `use crate::{{` hides its modules");
    paths.map(module).filter(|module| !module.is_empty()).collect()
}

#[test]
fn imports_point_down() {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in sources("src") {
        let module = path["src/".len()..].split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned();
        if !["lib", "build", "bin", "load"].contains(&module.as_str()) && !path.ends_with("tests.rs") {
            let entry = found.entry(module.clone()).or_default();
            entry.extend(imports(&text(&path)).into_iter().filter(|import| *import != module));
        }
    }
    let layer = |module: &str| LAYERS.iter().position(|row| row.contains(&module));
    for (number, row) in LAYERS.iter().enumerate().rev() {
        println!("{number:2} {}", row.join(", "));
    }
    let unplaced: Vec<_> = found.keys().filter(|module| layer(module).is_none()).collect();
    assert!(unplaced.is_empty(), "no layer has these modules: {unplaced:?}");
    let mut upward = BTreeSet::new();
    for (module, imports) in &found {
        for import in imports.iter().filter(|import| layer(import) >= layer(module)) {
            upward.insert((module.as_str(), import.as_str()));
        }
    }
    let excepted: BTreeSet<_> = LAYER_EXCEPTIONS.iter().map(|(from, to, _)| (*from, *to)).collect();
    let new: Vec<_> = upward.difference(&excepted).collect();
    assert!(new.is_empty(), "these modules import from their own layer or a higher one: {new:?}");
    let gone: Vec<_> = excepted.difference(&upward).collect();
    assert!(gone.is_empty(), "these exceptions are not needed any more: {gone:?}");
}

/// Splits off the ids that the name of a test begins with, in capitals: `C03` and `C05` of `c03_c05_a_claim`.
fn ids(name: &str) -> impl Iterator<Item = String> {
    let is_id = |word: &&str| {
        let digits = word.strip_prefix(|c: char| c.is_ascii_lowercase()).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    name.split('_').take_while(is_id).map(str::to_uppercase)
}

/// Names of the test functions in `code`: those whose attributes say that they are tests.
fn test_names(code: &str) -> Vec<&str> {
    let (mut names, mut is_test) = (Vec::new(), false);
    for line in code.lines().map(str::trim_start) {
        let signature = line.strip_prefix("async ").unwrap_or(line);
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = signature.strip_prefix("fn ") {
            names.extend(rest.split('(').next().filter(|_| is_test));
            is_test = false;
        }
    }
    names
}

/// Finds the entries of CASES.md, each with the heading that it stands under.
fn cases() -> BTreeMap<String, String> {
    let (mut found, mut heading) = (BTreeMap::new(), String::new());
    for line in text("docs/CASES.md").lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        } else if let Some((id, _)) = line.strip_prefix("- `").and_then(|entry| entry.split_once("` ")) {
            assert!(found.insert(id.to_owned(), heading.clone()).is_none(), "docs/CASES.md has {id} twice");
        }
    }
    found
}

#[test]
fn the_ids_of_tests_are_listed_and_those_that_are_listed_have_tests() {
    const UNTESTED: &str = "Without a test";
    let mut borne = BTreeMap::new();
    for path in ["src", "tests"].into_iter().flat_map(sources) {
        for name in test_names(&text(&path)) {
            borne.extend(ids(name).map(|id| (id, format!("{name} in {path}"))));
        }
    }
    assert!(borne.len() > 80, "few tests bear an id: {borne:?}");
    let cases = cases();
    let unknown: Vec<_> = borne.iter().filter(|(id, _)| !cases.contains_key(*id)).collect();
    assert!(unknown.is_empty(), "docs/CASES.md lacks what tests bear: {unknown:?}");
    let (untested, tested): (Vec<_>, Vec<_>) = cases.iter().partition(|(_, heading)| *heading == UNTESTED);
    let gone: Vec<_> = tested.iter().filter(|(id, _)| !borne.contains_key(*id)).collect();
    assert!(gone.is_empty(), "no test bears these ids of docs/CASES.md: {gone:?}");
    let moved: Vec<_> = untested.iter().filter_map(|(id, _)| borne.get(*id).map(|name| (id, name))).collect();
    assert!(moved.is_empty(), "docs/CASES.md has these under {UNTESTED:?}, and a test bears them: {moved:?}");
}

#[test]
fn the_readme_has_two_set_up_commands() {
    let readme = text("README.md");
    let (_, section) = readme.split_once("\n## Set up\n").expect("README.md has a section `## Set up`");
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut commands = Vec::new();
    let mut fenced = false;
    for line in section.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced && !line.trim().is_empty() {
            commands.push(line.trim());
        }
    }
    assert_eq!(commands, ["cargo run --release -- serve", "tests/run.sh"]);
}
