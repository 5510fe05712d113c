//! Holds the documents to the code: the table of metrics, the files and the absences that ARCHITECTURE.md names, the
//! ids of CASES.md, the set-up commands of the README.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hotpool::metrics::{
    ALL, ClaimOutcome, ExcessOutcome, ExpiryReason, GrpcCode, GrpcMethod, HttpRoute, MetricKind, POOL_FAMILIES,
    RequestRefusal, RespCloseReason, RespCommand, RespOutcome, SeriesVisibility, ShardState, StoreWriteResult,
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

/// Returns docs/METRICS.md as it follows from the code.
fn metrics_page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         All metrics of `GET /metrics`, in Prometheus' text format. This page is generated from `src/metrics/mod.rs`; after\n\
         a change there run `HOTPOOL_BLESS=1 cargo test --test docs`.\n\n\
         | metric | kind | labels | meaning |\n|---|---|---|---|\n",
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
    let list = |values: Vec<&str>| values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" ");
    write!(
        page,
        "\n## Labels\n\n\
         | label | metric | values |\n|---|---|---|\n\
         | `pool` | all metrics of pools | `namespace/pool`; `none` for claims that name no existing pool |\n\
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
        list(ClaimOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(StoreWriteResult::ALL.iter().map(|result| result.as_str()).collect()),
        list(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(UnschedulableReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ExpiryReason::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ShardState::ALL.iter().map(|state| state.as_str()).collect()),
        list(HttpRoute::ALL.iter().map(|route| route.as_str()).collect()),
        list(RequestRefusal::ALL.iter().map(|reason| reason.as_str()).collect()),
        list(ExcessOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(GrpcMethod::ALL.iter().map(|method| method.as_str()).collect()),
        list(GrpcCode::ALL.iter().map(|code| code.as_str()).collect()),
        list(RespCommand::ALL.iter().map(|command| command.as_str()).collect()),
        list(RespOutcome::ALL.iter().map(|outcome| outcome.as_str()).collect()),
        list(RespCloseReason::ALL.iter().map(|reason| reason.as_str()).collect()),
    )
    .unwrap();
    writeln!(page, "| `version` | `hotpool_build_info` | the version of the program |").unwrap();
    page.push_str(&pool_series());
    page.push_str(
        "\n## The process\n\n\
         `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_virtual_memory_bytes`,\n\
         `process_open_fds`, `process_max_fds`, `process_threads` and `process_start_time_seconds` have the names that\n\
         Prometheus' client libraries give them.\n\n\
         ## Equivalents of metrics of other schedulers\n\n\
         | other schedulers | Hotpool |\n|---|---|\n\
         | time to acquire a lock | `hotpool_shard_queue_wait_seconds`: a shard has one writer, so no worker is locked |\n\
         | collision or conflict rate | 0 by construction; the nearest are `hotpool_fence_refusals_total`, and \
         `hotpool_store_writes_total` with `gap` and `fenced` |\n\
         | cache hit rate, staleness | 1, because every answer is from memory; `hotpool_store_lag_seconds` is the lag of the store |\n\
         | scheduling duration | `hotpool_claim_seconds` |\n\
         | distribution of workers | `hotpool_shard_workers_min` and `hotpool_shard_busy_workers_min`, each with `_mean` and `_max` |\n\
         | lock operations per batch | `hotpool_worker_updates_total` divided by `hotpool_claims_total` |\n",
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

/// Returns the section about the life of the series of a pool.
fn pool_series() -> String {
    const CLAIMS: &str = "hotpool_claims_total";
    let mut section = String::from(
        "\n## The series of a pool\n\n\
         A series of a pool appears when it is first needed, stays whatever its value until the pool is deleted, and disappears\n\
         with it: no later scrape shows it, and a new pool under the same name counts from 0. An idle pool, whose workers are\n\
         registered and unused, has 8 lines, under 500 bytes if its name (`namespace/pool`) has up to 20. A pool in use has 3 to\n\
         5 kB, and up to 6 if every value has occurred and its name has up to 10 bytes. Unschedulable workers add 0.1 kB per\n\
         reason, and each further byte of the name one byte per line.\n\n\
         | appears | metric |\n|---|---|\n",
    );
    for visibility in SeriesVisibility::ALL {
        let metrics = POOL_FAMILIES.iter().filter(|family| family.visibility == visibility && family.name != CLAIMS);
        let mut names: Vec<String> = metrics.map(|family| format!("`{}`", family.name)).collect();
        let outcomes: Vec<String> = ClaimOutcome::ALL
            .iter()
            .filter(|outcome| outcome.visibility() == visibility)
            .map(|outcome| format!("`{}`", outcome.as_str()))
            .collect();
        if visibility == SeriesVisibility::WithPool {
            names[0] += " with `idle` `busy`";
        } else if visibility == SeriesVisibility::WhenNeeded {
            names.push("`hotpool_workers` with the other states".to_owned());
        }
        if !outcomes.is_empty() {
            names.push(format!("`{CLAIMS}` with {}", outcomes.join(" ")));
        }
        writeln!(section, "| {} | {} |", visibility.as_str(), names.join(", ")).unwrap();
    }
    section.push_str(
        "\nThe use of a pool begins when a claim is requested, ends or is recovered, or when a worker sends a heartbeat. A series that\n\
         appears *with the pool* or *with its use* starts with everything that was counted before the first scrape that shows it:\n\
         often 0, but the event that began the use is included. Prometheus sees no increase from an absent series to its first\n\
         value, so `increase()` and `rate()` never include that part. A series that appears *when needed* starts with its first\n\
         count, so they never include the first. A rule that must see a single event uses one of the other series, as the rules of\n\
         `config/prometheus/alerts.yml` do, and misses it only before the first scrape. An absent series of an existing pool is 0:\n\
         `sum(hotpool_claims_rolled_back_total{pool=\"demo/warm\"}) or vector(0)`.\n",
    );
    section
}

#[test]
fn the_metrics_page_follows_from_the_code() {
    let path = root().join("docs/METRICS.md");
    let page = metrics_page();
    if std::env::var_os(BLESS).is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/METRICS.md differs from src/metrics/mod.rs; run: {BLESS}=1 cargo test --test docs\n\
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

/// Whether it reads like a name of the code: `PendingReply`, `handle_event`, `Shard::handle_event`, `LAYERS`.
fn is_name(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    let telling = word.contains('_') || (word.len() > 3 && word.starts_with(|c: char| c.is_ascii_uppercase()));
    plain && telling && !word.starts_with("hotpool_")
}

#[test]
fn every_name_in_the_architecture_and_the_glossary_exists() {
    let code: String = ["src", "tests"].into_iter().flat_map(sources).map(|path| text(&path)).collect();
    let identifiers: BTreeSet<_> = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    for document in ["docs/ARCHITECTURE.md", "docs/GLOSSARY.md"] {
        let words = backticked(&text(document));
        let names: BTreeSet<_> = words.iter().filter(|word| is_name(word)).flat_map(|word| word.split("::")).collect();
        assert!(names.len() > 10, "{document} names little of the code: {names:?}");
        let gone: Vec<_> = names.iter().filter(|name| !identifiers.contains(*name)).collect();
        assert!(gone.is_empty(), "{document} uses names that the code does not have: {gone:?}");
    }
}

/// README.md and every Markdown file below `docs`.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned()];
    for dir in ["docs", "docs/decisions"] {
        let files = std::fs::read_dir(root().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let names = files.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with(".md"));
        found.extend(names.map(|name| format!("{dir}/{name}")));
    }
    found.sort();
    found
}

#[test]
fn every_file_that_a_document_names_exists() {
    const FOLDERS: &[&str] = &["src/", "tests/", "benches/", "config/", "docs/"];
    let mut gone = Vec::new();
    for document in documents() {
        for word in backticked(&text(&document)) {
            let named = is_path(&word) && FOLDERS.iter().any(|folder| word.starts_with(folder));
            if named && !root().join(&word).exists() {
                gone.push(format!("{document}: {word}"));
            }
        }
    }
    assert!(gone.is_empty(), "documents name files that are not there:\n{}", gone.join("\n"));
}

/// Anchors of a document's headings, as GitHub makes them.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = document.lines().filter(|line| line.starts_with('#'));
    let plain = |heading: &str| heading.trim_start_matches('#').trim().to_lowercase();
    let anchor = |heading: String| -> String {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(|heading| anchor(plain(heading))).collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let (mut links, mut dangling) = (0, Vec::new());
    for document in documents() {
        let content = text(&document);
        let targets = content.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://") && !target.contains(' ')) {
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() {
                root().join(&document)
            } else {
                root().join(&document).parent().unwrap().join(file)
            };
            let reached = path.exists()
                && (anchor.is_empty() || anchors(&std::fs::read_to_string(&path).unwrap()).contains(anchor));
            if !reached {
                dangling.push(format!("{document}: {target}"));
            }
        }
    }
    assert!(links > 100, "only {links} links were found");
    assert!(dangling.is_empty(), "links that lead nowhere:\n{}", dangling.join("\n"));
}

#[test]
fn every_metric_that_a_document_names_exists() {
    let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
    let files = ["config/prometheus/alerts.yml", "config/grafana/hotpool.json"].map(str::to_owned);
    let is_old = |document: &String| ["docs/CHANGELOG.md", "docs/benchmark-log.md"].contains(&document.as_str());
    let mut gone = BTreeSet::new();
    for document in documents().into_iter().filter(|document| !is_old(document)).chain(files) {
        let content = text(&document);
        for word in content.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            if word.starts_with("hotpool_") && !names.contains(word) && !names.contains(base) {
                gone.insert(format!("{document}: {word}"));
            }
        }
    }
    assert!(gone.is_empty(), "metrics that the code does not have: {gone:?}");
}

#[test]
fn the_architecture_fits_on_a_few_pages() {
    let lines = text("docs/ARCHITECTURE.md").lines().count();
    assert!(lines <= 250, "docs/ARCHITECTURE.md has {lines} lines, and may have 250");
}

/// Returns the cells of each row of the tables under `heading` in `document`, without header and rule.
fn table_rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) =
        document.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    cells.skip(1).collect()
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
            } else if path.extension().is_some_and(|end| end == "rs") && !path.starts_with("src/api/grpc/generated") {
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
            "src/api/request/claims.rs",
            "src/scheduler/caller.rs",
            "src/scheduler/ownership.rs",
            "src/persist/store/data_dir/mod.rs",
            "src/load/",
        ],
    ),
    ("tokio::time", TIMERS),
    (
        "use dashmap",
        &["src/admission/key_directory/", "src/persist/journal/mod.rs", "src/admission/quota_accounting.rs"],
    ),
    ("api::http", &["src/api/http/"]),
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

#[test]
fn the_architecture_lists_the_absences() {
    let listed: BTreeMap<String, BTreeSet<String>> = table_rows(&text("docs/ARCHITECTURE.md"), "Absences")
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), backticked(&row[1])))
        .collect();
    let checked: BTreeMap<String, BTreeSet<String>> = ONLY_IN
        .iter()
        .map(|(words, places)| ((*words).to_owned(), places.iter().map(|place| (*place).to_owned()).collect()))
        .collect();
    assert_eq!(listed, checked, "docs/ARCHITECTURE.md lists other absences than ONLY_IN");
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

#[test]
fn the_architecture_lists_the_layers() {
    let listed: BTreeSet<(String, String)> = table_rows(&text("docs/ARCHITECTURE.md"), "Modules and layers")
        .iter()
        .map(|row| (row[0].clone(), row[1].trim_matches('`').to_owned()))
        .collect();
    let numbered = LAYERS.iter().enumerate().flat_map(|(number, row)| row.iter().map(move |module| (number, *module)));
    let checked: BTreeSet<_> = numbered.map(|(number, module)| (number.to_string(), module.to_owned())).collect();
    assert_eq!(listed, checked, "docs/ARCHITECTURE.md lists other layers than LAYERS");
}

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

/// Nouns of GLOSSARY.md: its headings of the third level, in order.
fn glossary_nouns(glossary: &str) -> Vec<&str> {
    glossary.lines().filter_map(|line| line.strip_prefix("### ")).collect()
}

#[test]
fn the_glossary_is_in_order_and_its_links_lead_to_entries() {
    let glossary = text("docs/GLOSSARY.md");
    let nouns: Vec<_> = glossary_nouns(&glossary).into_iter().map(str::to_lowercase).collect();
    let unordered: Vec<_> = nouns.windows(2).filter(|pair| pair[0] >= pair[1]).collect();
    assert!(unordered.is_empty(), "docs/GLOSSARY.md has these twice or out of order: {unordered:?}");
    let headings = glossary.lines().filter(|line| line.starts_with('#'));
    let anchors: BTreeSet<_> =
        headings.map(|line| line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-")).collect();
    let links = glossary.split("](#").skip(1).filter_map(|link| link.split(')').next());
    let dangling: BTreeSet<_> = links.filter(|link| !anchors.contains(*link)).collect();
    assert!(dangling.is_empty(), "docs/GLOSSARY.md has no entries for these links: {dangling:?}");
}

/// Removes the items that an attribute `#[cfg(test)]` keeps out of the program, but keeps their lines as empty ones.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut closing: Option<String> = None;
    let mut attribute = None;
    for line in code.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(end) = &closing {
            if line.trim_end_matches(';') == end {
                closing = None;
            }
        } else if line.trim() == "#[cfg(test)]" {
            attribute = Some(indent);
        } else if let Some(indent) = attribute.filter(|_| !line.trim_start().starts_with("#[")) {
            attribute = None;
            closing = line.ends_with('{').then(|| format!("{indent}}}"));
        } else if attribute.is_none() {
            kept.push_str(line);
        }
        kept.push('\n');
    }
    kept
}

/// Whether a Rust file is compiled for tests alone.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs")
}

/// Name of the type that a line defines. Aliases count outside of functions and traits only.
fn defined_type(line: &str) -> Option<&str> {
    let plain = line.trim_start();
    let public =
        plain.strip_prefix("pub").map(|rest| match rest.strip_prefix('(').and_then(|path| path.split_once(')')) {
            Some((_, rest)) => rest.trim_start(),
            None => rest.trim_start(),
        });
    let (keyword, rest) = public.unwrap_or(plain).split_once(' ')?;
    let defines = ["struct", "enum", "trait", "union"].contains(&keyword)
        || (keyword == "type" && !line.starts_with(char::is_whitespace));
    let name = rest.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    (defines && name.starts_with(|c: char| c.is_ascii_uppercase())).then_some(name)
}

#[test]
fn a_type_with_a_name_of_one_word_is_a_noun_of_the_glossary() {
    let glossary = text("docs/GLOSSARY.md");
    let nouns: BTreeSet<_> = glossary_nouns(&glossary).into_iter().map(str::to_lowercase).collect();
    let (mut types, mut unknown) = (0, Vec::new());
    for path in sources("src").into_iter().filter(|path| !is_test_file(path)) {
        for (number, line) in (1..).zip(without_tests(&text(&path)).lines()) {
            let Some(name) = defined_type(line) else { continue };
            types += 1;
            let words = name.chars().filter(char::is_ascii_uppercase).count();
            if words == 1 && !nouns.contains(&name.to_lowercase()) {
                unknown.push(format!("{path}:{number} {name}"));
            }
        }
    }
    assert!(types > 500, "only {types} types were found");
    assert!(unknown.is_empty(), "these types need two words, or an entry in docs/GLOSSARY.md:\n{}", unknown.join("\n"));
}

/// Doc comments of a file: the number of the first line of each, and its text on one line.
fn doc_comments(code: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut last: Option<&str> = None;
    for (number, line) in (1..).zip(code.lines().map(str::trim_start)) {
        let kind = ["///", "//!"].into_iter().find(|kind| line.starts_with(kind) && !line.starts_with("////"));
        if let Some(kind) = kind {
            let text = line[kind.len()..].trim();
            match found.last_mut().filter(|_| last == Some(kind)) {
                Some((_, whole)) => {
                    whole.push(' ');
                    whole.push_str(text);
                }
                None => found.push((number, text.to_owned())),
            }
        }
        last = kind;
    }
    found
}

/// Lists the doc comments in `src` that `is_bad` finds fault with, and fails if there are any.
fn assert_doc_comments(rule: &str, is_bad: impl Fn(&str) -> bool) {
    const SHOWN_MAX: usize = 50;
    let (mut comments, mut bad) = (0, Vec::new());
    for path in sources("src") {
        for (line, comment) in doc_comments(&text(&path)) {
            comments += 1;
            if is_bad(&comment) {
                bad.push(format!("{path}:{line}: {comment}"));
            }
        }
    }
    assert!(comments > 3_000, "only {comments} doc comments were found");
    let shown = bad[..bad.len().min(SHOWN_MAX)].join("\n");
    assert!(bad.is_empty(), "{rule}; {} of {comments} doc comments do not, among them:\n{shown}", bad.len());
}

/// Words that refer to something else, so that a comment which begins with one does not stand alone.
const PRONOUNS: &[&str] = &[
    "It", "It's", "Its", "This one", "Those", "These", "They", "Of", "Whose", "Who", "Whom", "Whoever", "Such",
    "Nobody", "Somebody", "One that", "That", "Which", "What", "Where", "How", "Here", "Same", "The same",
];

/// Whether a comment begins with one of [`PRONOUNS`], as whole words.
fn begins_with_pronoun(comment: &str) -> bool {
    let follows = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || "_'".contains(c));
    PRONOUNS.iter().any(|pronoun| comment.strip_prefix(pronoun).is_some_and(follows))
}

/// Words of a comment: whatever stands between blanks and holds a letter or a digit.
fn word_count(comment: &str) -> usize {
    comment.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count()
}

#[test]
fn no_doc_comment_begins_with_a_pronoun() {
    for bad in ["It.", "Its end.", "The same for many.", "Which.", "One that waits.", "Here: no."] {
        assert!(begins_with_pronoun(bad), "{bad}");
    }
    for good in ["Item of a batch.", "Ofs", "`It` is a name.", "One writer of a shard.", "Thatcher", "The samovar"] {
        assert!(!begins_with_pronoun(good), "{good}");
    }
    assert_doc_comments("a doc comment stands alone: it begins with a noun or a verb", begins_with_pronoun);
}

#[test]
fn no_doc_comment_has_fewer_than_four_words() {
    assert_eq!(
        doc_comments("/// One two\n    /// three -- four.\nfn f() {}"),
        [(1, "One two three -- four.".to_owned())]
    );
    assert_eq!(word_count("One two three -- four."), 4);
    assert_doc_comments("a doc comment says more than a name: four words or more", |comment| word_count(comment) < 4);
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
