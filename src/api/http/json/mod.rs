//! Response bodies that only HTTP sends; those that RESP sends too are in [`crate::api::response`].

mod claims;
mod demand;
mod events;
mod quotas;
mod workers;

use serde::Serialize;

pub(super) use claims::*;
pub(super) use demand::*;
pub(super) use events::*;
pub(super) use quotas::*;
pub(super) use workers::*;

/// `{}`: the request succeeded, without details.
#[derive(Serialize)]
pub(super) struct EmptyBody {}

/// `{"items":[...]}`: one outcome for each item of the batch, in its order.
#[derive(Serialize)]
pub(super) struct BatchOutcomes<J> {
    pub(super) items: Vec<J>,
}
