//! Difference between two specifications, as text for the log.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::limits::CHANGE_TEXT_BYTES_MAX;

/// Fields that differ between two specifications of a kind, as JSON.
#[derive(Debug)]
pub(in crate::scheduler) struct SpecDiff {
    settings: String,
    before: Option<String>,
}

impl SpecDiff {
    /// Settings of a new object: all that differ from the defaults.
    pub fn from_defaults<T: Serialize + Default>(new: &T) -> Self {
        let (settings, _) = differing(&T::default(), new);
        Self { settings: truncated(&settings), before: None }
    }

    /// Settings that `new` changes, with their old and new values.
    pub fn between<T: Serialize>(old: &T, new: &T) -> Self {
        let (settings, before) = differing(old, new);
        Self { settings: truncated(&settings), before: Some(truncated(&before)) }
    }

    /// Changed fields with their new values, as JSON.
    pub fn settings(&self) -> &str {
        &self.settings
    }

    /// Changed fields with their old values, as JSON; `None` for a new object.
    pub fn before(&self) -> Option<&str> {
        self.before.as_deref()
    }
}

/// Fields that differ, as in `new` and as in `old`. A missing field is null.
fn differing<T: Serialize>(old: &T, new: &T) -> (Value, Value) {
    let fields = |value: &T| match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (mut old, mut new) = (fields(old), fields(new));
    let names: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    let (mut settings, mut before) = (Map::new(), Map::new());
    for name in names {
        let take = |fields: &mut Map<String, Value>| fields.remove(&name).unwrap_or_default();
        let (old_value, new_value) = (take(&mut old), take(&mut new));
        if old_value != new_value {
            before.insert(name.clone(), old_value);
            settings.insert(name, new_value);
        }
    }
    (settings.into(), before.into())
}

/// Text of a value, truncated so that it does not flood the log: a specification may have many labels.
fn truncated(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > CHANGE_TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(CHANGE_TEXT_BYTES_MAX));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PoolSpec, Quota};

    #[test]
    fn only_differing_fields_are_logged_and_truncated() {
        let old = PoolSpec { reserve_ms: 5_000, class: Some("a".into()), ..PoolSpec::default() };
        let new = PoolSpec { preemption: true, class: None, ..old.clone() };
        let difference = SpecDiff::between(&old, &new);
        assert_eq!(difference.settings(), r#"{"class":null,"preemption":true}"#);
        assert_eq!(difference.before(), Some(r#"{"class":"a","preemption":false}"#));
        let quota = SpecDiff::from_defaults(&Quota { claims: Some(7), ..Quota::default() });
        assert_eq!((quota.settings(), quota.before()), (r#"{"claims":7}"#, None));
        let labels = (0..64).map(|i| (format!("label{i}"), "ä".repeat(100))).collect();
        let many = SpecDiff::from_defaults(&PoolSpec { labels, ..PoolSpec::default() });
        assert!(many.settings().len() <= CHANGE_TEXT_BYTES_MAX + 3 && many.settings().ends_with("..."));
    }
}
