//! Label selectors in the syntax of Kubernetes: `zone=a, tier!=b, arch in (x,y), disk notin (z), gpu, !spot`.
//!
//! Terms are separated by commas and all must hold. Two terms about one key are both evaluated. Keys are label keys,
//! such as `topology.kubernetes.io/zone`. A bare key requires the label, `!key` forbids it; `!=` and `notin` also
//! hold without the label. `==` is `=`. Nothing after `=`, `==` or `!=` stands for the empty value.
//!
//! A word ends at white space, `,` `(` `)` `=` `!` `<` `>` or a control character, so a value with one of these
//! cannot be written. `in` and `notin` are ordinary words where a key or a value is expected.

use parking_lot::RwLock;
use std::fmt;
use std::sync::Arc;

use crate::collections::HashMap;
use crate::limits;
use crate::model::{Labels, check_label_key};

/// Parsed label selector: pure data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    text: Arc<str>,
    terms: Box<[LabelRequirement]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LabelRequirement {
    key: Box<str>,
    test: LabelPredicate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelPredicate {
    /// Value is one of these, which are sorted.
    In(Box<[Box<str>]>),
    /// Value is none of these, or the label is missing.
    NotIn(Box<[Box<str>]>),
    Exists,
    DoesNotExist,
}

/// Reason why a text is not a label selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Empty text. A selector without restrictions is omitted instead.
    #[error("must not be empty; omit it for no restriction")]
    Empty,
    /// Text with too many bytes.
    #[error("must be at most {} bytes, got {got}", limits::SELECTOR_BYTES_MAX)]
    TooLong {
        /// Number of bytes in the text.
        got: usize,
    },
    /// Text with too many terms.
    #[error("must be at most {} terms", limits::SELECTOR_TERMS_MAX)]
    TooManyTerms,
    /// Unexpected text at this byte.
    #[error("byte {at}: expected {expected}")]
    Syntax {
        /// Position in bytes from 0.
        at: usize,
        /// Syntax that is expected there.
        expected: &'static str,
    },
    /// Invalid label key, or a value that is too long.
    #[error("byte {at}: {wrong}")]
    Word {
        /// Position of the word in bytes from 0.
        at: usize,
        /// Violated rule, with its limit.
        wrong: String,
    },
}

impl LabelSelector {
    /// Text of the selector, as given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses a selector.
    ///
    /// # Errors
    /// The first error and its position.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > limits::SELECTOR_BYTES_MAX {
            return Err(SelectorError::TooLong { got: text.len() });
        }
        let mut parser = SelectorParser { text, at: 0 };
        parser.skip_space();
        if parser.remainder().is_empty() {
            return Err(SelectorError::Empty);
        }
        let mut terms = Vec::new();
        loop {
            if terms.len() == limits::SELECTOR_TERMS_MAX {
                return Err(SelectorError::TooManyTerms);
            }
            terms.push(parser.term()?);
            if parser.remainder().is_empty() {
                return Ok(Self { text: text.into(), terms: terms.into() });
            }
            if !parser.eat(',') {
                return Err(parser.expected("a comma or the end"));
            }
        }
    }

    /// Whether the labels meet every term.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        let contains = |values: &[Box<str>], value: &str| values.binary_search_by(|entry| (**entry).cmp(value)).is_ok();
        self.terms.iter().all(|LabelRequirement { key, test }| {
            let value = labels.get(&**key);
            match test {
                LabelPredicate::In(values) => value.is_some_and(|value| contains(values, value)),
                LabelPredicate::NotIn(values) => !value.is_some_and(|value| contains(values, value)),
                LabelPredicate::Exists => value.is_some(),
                LabelPredicate::DoesNotExist => value.is_none(),
            }
        })
    }

    /// Key of the first term that demands one of some values, with these values: every match has a label of that kind.
    #[must_use]
    pub fn required_values(&self) -> Option<(&str, impl Iterator<Item = &str>)> {
        self.terms.iter().find_map(|LabelRequirement { key, test }| match test {
            LabelPredicate::In(values) => Some((&**key, values.iter().map(|value| &**value))),
            LabelPredicate::NotIn(_) | LabelPredicate::Exists | LabelPredicate::DoesNotExist => None,
        })
    }

    /// Text from which it was parsed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

struct SelectorParser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> SelectorParser<'a> {
    fn remainder(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        SelectorError::Syntax { at: self.at, expected }
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.remainder().trim_start().len();
    }

    /// Skips this character and the space after it, if it is next.
    fn eat(&mut self, expected: char) -> bool {
        let found = self.remainder().starts_with(expected);
        if found {
            self.at += expected.len_utf8();
            self.skip_space();
        }
        found
    }

    /// Word at the current position, possibly empty, and the position.
    fn word(&mut self) -> (usize, &'a str) {
        let ends = |c: char| c.is_whitespace() || c.is_control() || ",()=!<>".contains(c);
        let (at, remainder) = (self.at, self.remainder());
        let word = &remainder[..remainder.find(ends).unwrap_or(remainder.len())];
        self.at += word.len();
        self.skip_space();
        (at, word)
    }

    fn term(&mut self) -> Result<LabelRequirement, SelectorError> {
        let negated = self.eat('!');
        let (at, key) = self.word();
        if key.is_empty() {
            return Err(SelectorError::Syntax { at, expected: "a label key" });
        }
        if let Err(error) = check_label_key("selector", key) {
            return Err(SelectorError::Word { at, wrong: error.to_string() });
        }
        let test = if negated { LabelPredicate::DoesNotExist } else { self.test()? };
        Ok(LabelRequirement { key: key.into(), test })
    }

    fn test(&mut self) -> Result<LabelPredicate, SelectorError> {
        if self.eat('=') {
            self.eat('=');
            return Ok(LabelPredicate::In([self.value()?].into()));
        }
        if self.remainder().starts_with("!=") {
            self.at += 2;
            self.skip_space();
            return Ok(LabelPredicate::NotIn([self.value()?].into()));
        }
        match self.remainder().chars().next() {
            None | Some(',') => Ok(LabelPredicate::Exists),
            _ => match self.word() {
                (_, "in") => self.values().map(LabelPredicate::In),
                (_, "notin") => self.values().map(LabelPredicate::NotIn),
                (at, _) => Err(SelectorError::Syntax { at, expected: "=, ==, !=, in, notin, a comma or the end" }),
            },
        }
    }

    fn value(&mut self) -> Result<Box<str>, SelectorError> {
        let (at, value) = self.word();
        if value.len() > limits::LABEL_VALUE_BYTES_MAX {
            let wrong = format!("a value must be at most {} bytes", limits::LABEL_VALUE_BYTES_MAX);
            return Err(SelectorError::Word { at, wrong });
        }
        Ok(value.into())
    }

    fn values(&mut self) -> Result<Box<[Box<str>]>, SelectorError> {
        if !self.eat('(') {
            return Err(self.expected("an opening parenthesis"));
        }
        let mut values = Vec::new();
        loop {
            let at = self.at;
            match self.value()? {
                empty if empty.is_empty() => return Err(SelectorError::Syntax { at, expected: "a value" }),
                value => values.push(value),
            }
            if self.eat(')') {
                values.sort_unstable();
                values.dedup();
                return Ok(values.into());
            }
            if !self.eat(',') {
                return Err(self.expected("a comma or a closing parenthesis"));
            }
        }
    }
}

/// Cache of parsed selectors by their text. Two generations: when the young one is full it replaces the old one, and
/// entries in use return from there; so they stay, and the memory is bounded.
#[derive(Debug, Default)]
pub struct SelectorCache(RwLock<CacheGenerations>);

#[derive(Debug, Default)]
struct CacheGenerations {
    young: HashMap<Arc<str>, Arc<LabelSelector>>,
    old: HashMap<Arc<str>, Arc<LabelSelector>>,
}

impl SelectorCache {
    /// Returns the selector with this text.
    ///
    /// # Errors
    /// The first error in the text.
    pub fn get(&self, text: &str) -> Result<Arc<LabelSelector>, SelectorError> {
        if let Some(cached) = self.0.read().young.get(text) {
            return Ok(Arc::clone(cached));
        }
        let mut generations = self.0.write();
        let CacheGenerations { young, old } = &mut *generations;
        let selector = match old.get(text) {
            Some(cached) => Arc::clone(cached),
            None => Arc::new(LabelSelector::parse(text)?),
        };
        if young.len() >= limits::SELECTORS_CACHED_MAX / 2 {
            *old = std::mem::take(young);
        }
        young.insert(Arc::clone(&selector.text), Arc::clone(&selector));
        Ok(selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn errors_are_reported_with_their_position() {
        let table = [
            ("", "must not be empty; omit it for no restriction"),
            ("  ", "must not be empty; omit it for no restriction"),
            ("a=b,", "byte 4: expected a label key"),
            (",a", "byte 0: expected a label key"),
            ("a=b c", "byte 4: expected a comma or the end"),
            ("a b", "byte 2: expected =, ==, !=, in, notin, a comma or the end"),
            ("a>5", "byte 1: expected =, ==, !=, in, notin, a comma or the end"),
            ("a===b", "byte 3: expected a comma or the end"),
            ("a!b", "byte 1: expected =, ==, !=, in, notin, a comma or the end"),
            ("!a=b", "byte 2: expected a comma or the end"),
            ("!!a", "byte 1: expected a label key"),
            ("a in b", "byte 5: expected an opening parenthesis"),
            ("a in ()", "byte 6: expected a value"),
            ("a in (b,)", "byte 8: expected a value"),
            ("a in (b c)", "byte 8: expected a comma or a closing parenthesis"),
            ("a in (b", "byte 7: expected a comma or a closing parenthesis"),
            ("a notin (b)) ", "byte 11: expected a comma or the end"),
            ("a\u{0}=b", "byte 1: expected =, ==, !=, in, notin, a comma or the end"),
            ("\u{fc}=b", "byte 0: may hold only [A-Za-z0-9._-]; byte 0 is not one of them"),
        ];
        for (text, expected) in table {
            assert_eq!(LabelSelector::parse(text).unwrap_err().to_string(), expected, "{text:?}");
        }
        let long = "x".repeat(256);
        let error = |text: &str| LabelSelector::parse(text).unwrap_err().to_string();
        assert_eq!(error(&format!("{long}=b")), "byte 0: must be 1 to 255 bytes, got 256");
        assert_eq!(error(&format!("a={long}")), "byte 2: a value must be at most 255 bytes");
        assert_eq!(error(&vec!["a"; 65].join(",")), "must be at most 64 terms");
        assert_eq!(error(&vec!["a"; 10_000].join(",")), "must be at most 4096 bytes, got 19999");
        assert!(LabelSelector::parse(&vec!["a"; 64].join(",")).is_ok());
    }

    /// P01: two terms about one key are both evaluated, never merged.
    #[test]
    fn p01_terms_about_one_key_are_all_evaluated() {
        let matches = |text: &str, of: &[(&str, &str)]| LabelSelector::parse(text).unwrap().matches(&labels(of));
        assert!(!matches("zone=a,zone=b", &[("zone", "a")]) && !matches("zone=a,zone=b", &[("zone", "b")]));
        assert!(
            matches("zone in (a,b),zone!=b", &[("zone", "a")]) && !matches("zone in (a,b),zone!=b", &[("zone", "b")])
        );
        assert!(matches("in in (notin), notin", &[("in", "notin"), ("notin", "")]));
        assert!(matches("a=", &[("a", "")]) && !matches("a=", &[]) && !matches("a!=", &[("a", "")]));
        assert!(matches("a!=b,c notin (d)", &[]));
        let zone = ("topology.kubernetes.io/zone", "a");
        assert!(matches("topology.kubernetes.io/zone in (a,b), !kubernetes.io/arch", &[zone]));
        assert!(!matches("!topology.kubernetes.io/zone", &[zone]) && !matches("zone", &[zone]));
    }

    #[test]
    fn selectors_in_use_stay_cached_and_the_cache_is_bounded() {
        let selectors = SelectorCache::default();
        let kept = selectors.get("zone=a").unwrap();
        for i in 0..3 * limits::SELECTORS_CACHED_MAX {
            selectors.get(&format!("k{i}")).unwrap();
            if i % 100 == 0 {
                assert!(Arc::ptr_eq(&kept, &selectors.get("zone=a").unwrap()));
            }
            let generations = selectors.0.read();
            assert!(generations.young.len() + generations.old.len() <= limits::SELECTORS_CACHED_MAX);
        }
        assert!(selectors.get("zone=").is_ok() && selectors.get("=").is_err());
    }
}
