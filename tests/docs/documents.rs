//! Documents: the paths, names and links in them, the order of the glossary, and the set-up commands of the README.

use std::collections::BTreeSet;

use crate::{backticked, documents, glossary_nouns, root, sources, text};

/// Whether a word has the form of a file or directory of this repository, such as `src/lib.rs`, `src/engine/` or
/// `Cargo.toml`.
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

/// Whether a word has the form of a name of the code: `PendingReply`, `handle_event`, `Shard::handle_event`, `LAYERS`.
fn is_name(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    let distinctive = word.contains('_') || (word.len() > 3 && word.starts_with(|c: char| c.is_ascii_uppercase()));
    plain && distinctive && !word.starts_with("hotpool_")
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
fn the_architecture_fits_on_a_few_pages() {
    let lines = text("docs/ARCHITECTURE.md").lines().count();
    assert!(lines <= 250, "docs/ARCHITECTURE.md has {lines} lines, and may have 250");
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
