//! gRPC edge of the real binary.

mod agree;
mod calls;
mod health;
mod life;
mod limits;
pub mod link;
mod refusals;
mod stream;
mod updates;
mod waiting;
