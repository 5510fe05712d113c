//! Request bodies of every edge. HTTP parses them from JSON, gRPC and RESP fill them in; all edges convert them here, so
//! that they reject the same values and name the same field. Unknown fields are rejected.

mod claims;
mod lists;
mod parse;
mod parse_errors;
mod parse_failure;
mod pools;
mod workers;

use std::borrow::Cow;

use serde::Deserialize;

pub(in crate::api) use claims::*;
pub(in crate::api) use lists::*;
pub(in crate::api) use parse::*;
pub(in crate::api) use parse_errors::truncate;
pub(in crate::api) use pools::*;
pub(in crate::api) use workers::*;

pub(in crate::api) use crate::model::DEFAULT_TENANT;

/// Text that borrows from the body unless it holds an escape.
#[derive(Deserialize, Default)]
#[serde(transparent)]
pub(in crate::api) struct BorrowedText<'a>(#[serde(borrow)] pub(in crate::api) Cow<'a, str>);

impl<'a> From<&'a str> for BorrowedText<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// Body without fields: `{}`, or no bytes at all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct NoBody {}
