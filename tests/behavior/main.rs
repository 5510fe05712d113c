//! Behaviours of the case list, tested against the scheduler in process: on the memory store, and on the embedded
//! store behind a gate ([`gate::GatedStore`]) where a test holds back, refuses or loses writes. Those of S11, S12 and
//! S19 and of the journal also run on Redis (`tests/redis.rs`). Time is the test's own; nothing sleeps.

mod adoption;
mod agents;
mod ages;
mod batches;
mod catalogue;
mod choice;
mod claim_life;
mod claims;
mod counts;
mod deletions;
mod demand;
mod directory;
mod drift;
mod explain;
mod flight;
mod full;
mod gang_crashes;
mod gangs;
mod gate;
mod gather;
mod hang_ups;
mod heartbeats;
mod held_back;
mod inspect;
mod journal;
mod life;
mod listings;
mod memory_ack;
mod panics;
mod preemption;
mod quotas;
mod reservation_clock;
mod restart;
mod rounds;
mod shares;
mod sharing;
mod sleeping;
mod store_location;
mod store_wait;
mod wait_order;
mod waiting;
mod watch;
mod workers;
mod world;
