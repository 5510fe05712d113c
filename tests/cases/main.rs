//! The behaviours of the case list, held against the scheduler in process: on the memory store, and on the embedded
//! store behind a gate ([`gate::GatedStore`]) where a test holds back, refuses or loses what it wants to see missing.
//! Time is the test's own; nothing sleeps.

mod choice;
mod claim_life;
mod claims;
mod directory;
mod explain;
mod full;
mod gate;
mod heartbeats;
mod held_back;
mod journal;
mod life;
mod memory_ack;
mod panics;
mod restart;
mod shares;
mod store_wait;
mod workers;
mod world;
