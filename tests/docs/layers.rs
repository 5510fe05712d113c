//! Layers and absences: imports point down, and ARCHITECTURE.md lists what the code may use where.

use std::collections::{BTreeMap, BTreeSet};

use crate::{backticked, sources, table_rows, text};

/// Paths whose code may wait by the runtime's clock; no decision depends on it.
const TIMERS: &[&str] = &[
    "src/api/",
    "src/cli/",
    "src/client/",
    "src/environment/mod.rs",
    "src/load/",
    "src/persist/store/redis/",
    "src/server/",
];

/// Words that code may have under the given paths only: the absences of ARCHITECTURE.md that can be searched for.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("use redis", &["src/persist/store/redis"]),
    ("Instant::now", &["src/environment/clock.rs", "src/load/"]),
    ("SystemTime::now", &["src/environment/clock.rs", "src/load/"]),
    ("Uuid::now_v7", &["src/api/request/claims.rs", "src/environment/mod.rs", "src/load/", "src/scheduler/caller.rs"]),
    ("tokio::time", TIMERS),
    ("use dashmap", &["src/admission/key/", "src/admission/tenant/directory.rs"]),
    ("api::http", &["src/api/http/"]),
    ("use axum", &["src/api/http/"]),
    ("use tonic", &["src/api/grpc/", "src/load/grpc", "src/load/echo/grpc.rs"]),
    ("use ractor", &["src/shard/", "src/scheduler/mod.rs", "src/scheduler/recovery.rs"]),
    ("metrics::counter!", &["src/metrics/"]),
    ("metrics::gauge!", &["src/metrics/"]),
    ("metrics::histogram!", &["src/metrics/"]),
    ("store().apply(", &["src/persist/journal/"]),
    ("board.publish(", &["src/shard/runner/statistics.rs", "src/shard/capacity_board/mod.rs"]),
];

/// Paths whose hash maps may have any order: no simulation runs them.
const RANDOM_ORDER: &[&str] = &["src/api/", "src/cli/", "src/client/", "src/load/", "src/server/"];

/// State machines of admission, which are stepped under a lock that they do not know.
const STATE_MACHINES: &[&str] = &[
    "src/admission/key/entry.rs",
    "src/admission/tenant/account.rs",
    "src/admission/gang/coordinator.rs",
    "src/admission/gang/gang_claim.rs",
    "src/admission/gang/gang_event.rs",
    "src/admission/gang/pool_locks.rs",
    "src/admission/gang/transaction.rs",
];

#[test]
fn listed_absences_hold() {
    for (words, paths) in ONLY_IN {
        for path in sources("src").iter().filter(|path| !paths.iter().any(|allowed| path.starts_with(allowed))) {
            for (line, code) in (1..).zip(text(path).lines()) {
                assert!(code.trim_start().starts_with("//") || !code.contains(words), "{words:?} in {path}:{line}");
            }
        }
    }
    for path in sources("src").iter().filter(|path| !RANDOM_ORDER.iter().any(|allowed| path.starts_with(allowed))) {
        for (line, code) in (1..).zip(text(path).lines()) {
            let is_std = code.contains("std::collections") && (code.contains("HashMap") || code.contains("HashSet"));
            assert!(!is_std, "{path}:{line}: the order of a map follows from a seed (src/collections.rs)");
        }
    }
    for path in sources("src/engine") {
        for word in ["async ", ".await", "tokio::", "rand::", "std::fs", "std::net"] {
            assert!(!text(&path).contains(word), "{word:?} in {path}: the engine is pure");
        }
    }
    for path in sources("src/admission").iter().filter(|path| !path.ends_with("_tests.rs")) {
        let code = text(path);
        let code = code.split("\nmod tests {").next().unwrap();
        for word in ["async ", ".await", "tokio::", "spawn(", "Instant", "SystemTime", "rand::"] {
            assert!(!code.contains(word), "{word:?} in {path}: admission has no task, no timer and no randomness");
        }
    }
    for path in STATE_MACHINES {
        let code = text(path);
        assert!(code.contains("#![deny(clippy::disallowed_methods, clippy::disallowed_types)]"), "no lints in {path}");
        for word in ["Mutex", "RwLock", "Atomic", "DashMap", "Clock", "EffectQueue"] {
            assert!(!code.contains(word), "{word:?} in {path}: a state machine is plain data");
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
        .map(|(words, paths)| ((*words).to_owned(), paths.iter().map(|path| (*path).to_owned()).collect()))
        .collect();
    assert_eq!(listed, checked, "docs/ARCHITECTURE.md lists other absences than ONLY_IN");
}

/// Modules of the library from the bottom up: a module imports from rows below its own, never from its own row or above.
const LAYERS: &[&[&str]] = &[
    &["collections", "coverage", "limits"],
    &["model"],
    &["client", "environment", "metrics"],
    &["events", "persist"],
    &["engine"],
    &["shard"],
    &["admission"],
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
const LAYER_EXCEPTIONS: &[(&str, &str, &str)] = &[];

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
    let unlisted: Vec<_> = found.keys().filter(|module| layer(module).is_none()).collect();
    assert!(unlisted.is_empty(), "no layer has these modules: {unlisted:?}");
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
