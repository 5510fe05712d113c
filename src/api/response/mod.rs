//! Response bodies that more than one edge sends as JSON. They borrow from the model.

mod explain;
mod pools;

use serde::Serialize;

use crate::model::ListPage;

pub(in crate::api) use explain::*;
pub(in crate::api) use pools::*;

/// `{"items":[...], "next_page_token"?}`: one page of a listing.
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
