//! Lists of bounded length, whose bound is enforced while they are read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::BorrowedText;
use crate::api::error_table::ApiError;
use crate::limits;

/// Items of a batch, unparsed, so that an invalid one does not affect the others.
pub(in crate::api) type RawItems<'a> = BoundedList<&'a RawValue, { limits::BATCH_ITEMS_MAX }>;

/// List of at most `MAX` values; a longer one is rejected while it is read.
pub(in crate::api) struct BoundedList<T, const MAX: usize>(pub(in crate::api) Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedList<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bounded(deserializer, MAX).map(Self)
    }
}

/// List of at most `MAX` texts.
#[derive(Default)]
pub(in crate::api) struct BoundedTexts<'a, const MAX: usize>(pub(in crate::api) Vec<BorrowedText<'a>>);

impl<'de: 'a, 'a, const MAX: usize> Deserialize<'de> for BoundedTexts<'a, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_bounded(deserializer, MAX).map(Self)
    }
}

/// Error for a number of items on a page that is no number or out of range.
pub(in crate::api) fn page_limit_error() -> ApiError {
    ApiError::invalid("limit", format!("must be a whole number from 1 to {}", limits::PAGE_ITEMS_MAX))
}

/// Reads an array and counts while reading: a body of 8 MiB can hold four million empty items.
fn deserialize_bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    max: usize,
) -> Result<Vec<T>, D::Error> {
    struct BoundedVisitor<T>(usize, PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for BoundedVisitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element()? {
                if items.len() == self.0 {
                    return Err(serde::de::Error::custom(format!("at most {} items", self.0)));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    deserializer.deserialize_seq(BoundedVisitor(max, PhantomData))
}
