//! Names of types and the form of doc comments.

use std::collections::BTreeSet;

use crate::{glossary_nouns, sources, text};

#[test]
fn every_source_file_begins_with_its_purpose() {
    let undocumented: Vec<_> =
        sources("src").into_iter().filter(|path| !path.contains("tests") && !text(path).starts_with("//! ")).collect();
    assert!(undocumented.is_empty(), "these files do not begin with a comment about their purpose: {undocumented:?}");
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

/// Lists the doc comments in `src` and `tests` that `is_bad` finds fault with, and fails if there are any.
fn assert_doc_comments(rule: &str, is_bad: impl Fn(&str) -> bool) {
    const SHOWN_MAX: usize = 50;
    let (mut comments, mut bad) = (0, Vec::new());
    for path in ["src", "tests"].into_iter().flat_map(sources) {
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

/// Pronouns and vague subjects: a comment that begins with one does not stand alone.
const PRONOUNS: &[&str] = &[
    "It",
    "It's",
    "Its",
    "This one",
    "Those",
    "These",
    "They",
    "Of",
    "Whose",
    "Who",
    "Whom",
    "Whoever",
    "Such",
    "Nobody",
    "Somebody",
    "One",
    "That",
    "Which",
    "What",
    "Where",
    "How",
    "Here",
    "Same",
    "The same",
    "Something",
    "Anything",
    "Everything",
    "Nothing",
    "All that",
    "Any",
    "Whether it",
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
    for bad in ["It.", "Its end.", "The same for many.", "Which.", "One that waits.", "Any worker.", "Here: no."] {
        assert!(begins_with_pronoun(bad), "{bad}");
    }
    for good in ["Item of a batch.", "Ofs", "`It` is a name.", "Oneself", "Thatcher", "The samovar"] {
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
