//! gRPC edge of the real binary.

mod calls;
mod errors;
pub mod grpc_client;
mod health;
mod http_parity;
mod limits;
mod pool_changes;
mod queued_claims;
mod stream;
mod worker_lifecycle;
