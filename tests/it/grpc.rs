//! gRPC on the real binary.

mod agree;
mod calls;
mod health;
mod life;
mod limits;
mod link;
mod refusals;
