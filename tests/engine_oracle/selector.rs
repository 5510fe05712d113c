//! Compares parsed selectors with a naive evaluation: random terms, written in every permitted form, must mean what
//! each of them says.

use std::collections::BTreeMap;

use hotpool::model::label_selector::LabelSelector;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Predicate {
    Equals(String),
    NotEquals(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// Few keys and values, so that they match; among them the words of the syntax.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "in", "notin", "a.b_c-D9"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["x", "y", "in", "notin", "a", "x/y:z", "ü"]).prop_map(str::to_owned)
}

fn predicate() -> impl Strategy<Value = Predicate> {
    let one = || prop_oneof![8 => value(), 1 => Just(String::new())];
    let some = || prop::collection::vec(value(), 1..4);
    prop_oneof![
        one().prop_map(Predicate::Equals),
        one().prop_map(Predicate::NotEquals),
        some().prop_map(Predicate::In),
        some().prop_map(Predicate::NotIn),
        Just(Predicate::Exists),
        Just(Predicate::DoesNotExist),
    ]
}

/// White space, mostly none.
fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 2 => Just(" "), 1 => Just("\t \n")]
}

fn format_term(key: &str, predicate: &Predicate, equals: &str, space: &str) -> String {
    let list = |values: &[String]| values.join(&format!("{space},{space}"));
    let s = space;
    match predicate {
        Predicate::Equals(value) => format!("{s}{key}{s}{equals}{s}{value}{s}"),
        Predicate::NotEquals(value) => format!("{s}{key}{s}!={s}{value}{s}"),
        Predicate::In(values) => format!("{s}{key} {s}in{s}({s}{}{s}){s}", list(values)),
        Predicate::NotIn(values) => format!("{s}{key} {s}notin{s}({s}{}{s}){s}", list(values)),
        Predicate::Exists => format!("{s}{key}{s}"),
        Predicate::DoesNotExist => format!("{s}!{s}{key}{s}"),
    }
}

fn holds(labels: &BTreeMap<String, String>, key: &str, predicate: &Predicate) -> bool {
    let value = labels.get(key);
    match predicate {
        Predicate::Equals(expected_value) => value == Some(expected_value),
        Predicate::NotEquals(expected_value) => value != Some(expected_value),
        Predicate::In(expected_value) => expected_value.iter().any(|expected_value| value == Some(expected_value)),
        Predicate::NotIn(expected_value) => expected_value.iter().all(|expected_value| value != Some(expected_value)),
        Predicate::Exists => value.is_some(),
        Predicate::DoesNotExist => value.is_none(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p01_a_selector_means_what_its_terms_say(
        terms in prop::collection::vec((key(), predicate(), prop::sample::select(vec!["=", "=="]), space()), 1..6),
        labels in prop::collection::btree_map(key(), prop_oneof![8 => value(), 1 => Just(String::new())], 0..5),
    ) {
        let text: Vec<String> =
            terms.iter().map(|(key, predicate, equals, space)| format_term(key, predicate, equals, space)).collect();
        let text = text.join(",");
        let selector = LabelSelector::parse(&text).map_err(|error| TestCaseError::fail(format!("{text:?}: {error}")))?;
        let expected = terms.iter().all(|(key, predicate, ..)| holds(&labels, key, predicate));
        prop_assert_eq!(selector.matches(&labels), expected, "{:?} of {:?}", text, labels);
    }

    /// Arbitrary text is parsed or rejected, and a rejection has a position within it.
    #[test]
    fn any_text_is_parsed_or_rejected(text in prop_oneof![".*", "[ab=!,() in]{0,40}"]) {
        match LabelSelector::parse(&text) {
            Ok(selector) => prop_assert_eq!(selector.as_str(), &text),
            Err(hotpool::model::label_selector::SelectorError::Syntax { at, .. } | hotpool::model::label_selector::SelectorError::Word { at, .. }) => {
                prop_assert!(text.is_char_boundary(at));
            }
            Err(_) => prop_assert!(text.trim().is_empty() || text.len() > 4096),
        }
    }
}
