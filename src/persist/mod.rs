//! Persistence: rows, the journal that writes them, the stores that keep them, the pool catalog, and fences.

pub mod catalog;
pub mod fencing;
pub mod journal;
pub mod row;
pub mod store;
