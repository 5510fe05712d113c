//! Keys: who holds each, and the claims on their way to one. The only state that spans shards and pools.

pub mod adoption;
mod directory;
mod ended;
mod entry;
pub mod partition;
mod pending_claim;
mod poisoned;
mod prehashed;
mod rebuild;
mod views;
mod waiting;

pub use self::directory::{EndTransition, HeldTransition, KeyAcquire, KeyDirectory, RepeatedCall};
pub use self::ended::EndedClaim;
pub use self::entry::KeyHolder;
pub use self::pending_claim::{PendingClaim, ShardAsk};
pub use self::poisoned::WithdrawnRequests;
pub use self::prehashed::PrehashedHasher;
pub use self::rebuild::RecoveredKeys;
pub use self::views::KeyLookup;
pub use self::waiting::{DueClaim, SettledClaim};
