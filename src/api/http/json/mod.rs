//! The shapes on the wire. What comes in refuses unknown fields; what goes out borrows from the model.

mod claims;
mod demand;
mod events;
mod explain;
mod pools;
mod quotas;
mod workers;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::model::ListPage;

pub(in crate::api) use claims::*;
pub(super) use demand::*;
pub(super) use events::*;
pub(in crate::api) use explain::*;
pub(in crate::api) use pools::*;
pub(super) use quotas::*;
pub(in crate::api) use workers::*;

/// Tenant of a request that names none.
pub(in crate::api) const DEFAULT_TENANT: &str = "default";

/// A string that borrows from the body unless it holds an escape.
#[derive(Deserialize, Default)]
#[serde(transparent)]
pub(in crate::api) struct BorrowedText<'a>(#[serde(borrow)] pub(in crate::api) Cow<'a, str>);

/// A body that says nothing: `{}`, or none at all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoBody {}

/// `{}`.
#[derive(Serialize)]
pub(super) struct EmptyBody {}

/// `{"items":[...], "next_page_token"?}`.
#[derive(Serialize)]
pub(in crate::api) struct PageJson<'a, J> {
    items: Vec<J>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<&'a str>,
}

impl<'a, T, J: From<&'a T>> From<&'a ListPage<T>> for PageJson<'a, J> {
    fn from(page: &'a ListPage<T>) -> Self {
        Self { items: page.items.iter().map(Into::into).collect(), next_page_token: page.next.as_deref() }
    }
}

/// `{"items":[...]}`: one outcome an item, in order.
#[derive(Serialize)]
pub(super) struct BatchOutcomes<J> {
    pub(super) items: Vec<J>,
}
