//! Persistence: rows, the journal that writes them, the stores that keep them, the pool catalog, and fences.

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod catalog;
#[cfg(not(feature = "internals"))]
pub(crate) mod catalog;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod fencing;
#[cfg(not(feature = "internals"))]
pub(crate) mod fencing;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod journal;
#[cfg(not(feature = "internals"))]
pub(crate) mod journal;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod row;
#[cfg(not(feature = "internals"))]
pub(crate) mod row;
pub mod store;
