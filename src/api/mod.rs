//! The edges: they translate between the wire and the [scheduler](crate::scheduler), and decide nothing.
//! What a refusal is called on the wire stands in one table, [`outcome`].

pub mod http;
pub mod outcome;
