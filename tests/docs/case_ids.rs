//! Ids of `docs/CASES.md`: each has a test that carries it, and tests carry no others.

use std::collections::BTreeMap;

use crate::{sources, text};

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
