//! Answers that keep their JSON text, lists of them, and outcomes of batches.

use std::ops::Deref;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::ServiceError;

/// Typed value with the JSON text that it was read from. Serializes as that text, so nothing that a newer service adds
/// gets lost.
#[derive(Debug, Clone)]
pub struct RawJson<T> {
    value: T,
    json: Box<RawValue>,
}

impl<T> RawJson<T> {
    /// Returns the JSON text as the service sent it.
    #[must_use]
    pub fn json(&self) -> &str {
        self.json.get()
    }

    /// Drops the typed value and returns the JSON text.
    #[must_use]
    pub fn into_json(self) -> Box<RawValue> {
        self.json
    }

    /// Drops the JSON text and returns the typed value.
    #[must_use]
    pub fn into_value(self) -> T {
        self.value
    }
}

impl<T> Deref for RawJson<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for RawJson<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let value = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        Ok(Self { value, json })
    }
}

impl<T> Serialize for RawJson<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

/// Answer to a call that creates an object, or finds or replaces the one that exists.
#[derive(Debug, Clone)]
pub struct CreateReply<T> {
    /// True if the object is new.
    pub created: bool,
    /// Body of the answer.
    pub reply: RawJson<T>,
}

impl<T> Deref for CreateReply<T> {
    type Target = RawJson<T>;

    fn deref(&self) -> &RawJson<T> {
        &self.reply
    }
}

/// Outcomes of a batch in the order of its items, or a part of a listing.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(bound(serialize = "", deserialize = "T: DeserializeOwned"))]
pub struct ItemList<T> {
    /// Items in the order of the service.
    pub items: Vec<RawJson<T>>,
    /// Start of the next part; `None` at the end of the listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

/// Outcome of one item of a batch.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum ItemOutcome<T> {
    /// Error of this item alone.
    Failed {
        /// Error of the failed item.
        error: ServiceError,
    },
    /// Success with its answer.
    Done(T),
}
