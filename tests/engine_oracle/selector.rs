//! The reading of selectors against a naive evaluation: random terms, written down in every permitted way, must mean
//! what they say one by one.

use std::collections::BTreeMap;

use hotpool::model::label_selector::LabelSelector;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Asks {
    Is(String),
    IsNot(String),
    In(Vec<String>),
    NotIn(Vec<String>),
    Has,
    HasNot,
}

/// Few keys and values, so that they meet; among them the words of the syntax.
fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "in", "notin", "a.b_c-D9"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["x", "y", "in", "notin", "a", "x/y:z", "ü"]).prop_map(str::to_owned)
}

fn asks() -> impl Strategy<Value = Asks> {
    let one = || prop_oneof![8 => value(), 1 => Just(String::new())];
    let some = || prop::collection::vec(value(), 1..4);
    prop_oneof![
        one().prop_map(Asks::Is),
        one().prop_map(Asks::IsNot),
        some().prop_map(Asks::In),
        some().prop_map(Asks::NotIn),
        Just(Asks::Has),
        Just(Asks::HasNot),
    ]
}

/// White space, mostly none.
fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 2 => Just(" "), 1 => Just("\t \n")]
}

fn written(key: &str, asks: &Asks, double: bool, space: &str) -> String {
    let list = |values: &[String]| values.join(&format!("{space},{space}"));
    let s = space;
    match asks {
        Asks::Is(value) => format!("{s}{key}{s}{}{s}{value}{s}", if double { "==" } else { "=" }),
        Asks::IsNot(value) => format!("{s}{key}{s}!={s}{value}{s}"),
        Asks::In(values) => format!("{s}{key} {s}in{s}({s}{}{s}){s}", list(values)),
        Asks::NotIn(values) => format!("{s}{key} {s}notin{s}({s}{}{s}){s}", list(values)),
        Asks::Has => format!("{s}{key}{s}"),
        Asks::HasNot => format!("{s}!{s}{key}{s}"),
    }
}

fn holds(labels: &BTreeMap<String, String>, key: &str, asks: &Asks) -> bool {
    let value = labels.get(key);
    match asks {
        Asks::Is(wanted) => value == Some(wanted),
        Asks::IsNot(wanted) => value != Some(wanted),
        Asks::In(wanted) => wanted.iter().any(|wanted| value == Some(wanted)),
        Asks::NotIn(wanted) => wanted.iter().all(|wanted| value != Some(wanted)),
        Asks::Has => value.is_some(),
        Asks::HasNot => value.is_none(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p01_a_selector_means_what_its_terms_say(
        terms in prop::collection::vec((key(), asks(), any::<bool>(), space()), 1..6),
        labels in prop::collection::btree_map(key(), prop_oneof![8 => value(), 1 => Just(String::new())], 0..5),
    ) {
        let text: Vec<String> =
            terms.iter().map(|(key, asks, double, space)| written(key, asks, *double, space)).collect();
        let text = text.join(",");
        let selector = LabelSelector::parse(&text).map_err(|wrong| TestCaseError::fail(format!("{text:?}: {wrong}")))?;
        let expected = terms.iter().all(|(key, asks, ..)| holds(&labels, key, asks));
        prop_assert_eq!(selector.matches(&labels), expected, "{:?} of {:?}", text, labels);
    }

    /// Whatever is sent is read or refused, and what is refused says where within it.
    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![".*", "[ab=!,() in]{0,40}"]) {
        match LabelSelector::parse(&text) {
            Ok(selector) => prop_assert_eq!(selector.as_str(), &text),
            Err(hotpool::model::label_selector::SelectorError::Syntax { at, .. } | hotpool::model::label_selector::SelectorError::Word { at, .. }) => {
                prop_assert!(text.is_char_boundary(at));
            }
            Err(_) => prop_assert!(text.trim().is_empty() || text.len() > 4096),
        }
    }
}
