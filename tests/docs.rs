//! Holds the documents and the form of the code to their rules: the table of metrics, the paths, names and links of the
//! documents, the ids of CASES.md, the layers and absences of ARCHITECTURE.md, names of types and doc comments.

#[path = "docs/case_ids.rs"]
mod case_ids;
#[path = "docs/documents.rs"]
mod documents;
#[path = "docs/language.rs"]
mod language;
#[path = "docs/layers.rs"]
mod layers;
#[path = "docs/metrics_page.rs"]
mod metrics_page;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Rust files under `dir`, as a path from the root.
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

/// Words between single backticks, outside of fenced blocks.
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

/// Returns the cells of each row of the tables under `heading` in `document`, without header and rule.
fn table_rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) =
        document.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    cells.skip(1).collect()
}

/// Nouns of GLOSSARY.md: its headings of the third level, in order.
fn glossary_nouns(glossary: &str) -> Vec<&str> {
    glossary.lines().filter_map(|line| line.strip_prefix("### ")).collect()
}
