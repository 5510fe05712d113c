//! Memory budget of request bodies, for all edges together. The edges enforce it as they read: `http/read_body.rs` and
//! `grpc/unary_body.rs`.

use super::error_table::{ApiError, ErrorStatus};

/// Largest body, in bytes, that is read without a permit from the budget: that of any call but a batch.
pub(in crate::api) const SMALL_BODY_BYTES: u64 = 16 << 10;
/// Limit on the sum of all larger bodies, in KiB. Beyond it they are rejected (`overloaded`).
pub(in crate::api) const BODY_BUDGET_KIB: usize = 256 << 10;

/// Error for a large body that does not fit into the budget.
pub(in crate::api) fn body_budget_exceeded() -> ApiError {
    ApiError::overloaded(format!(
        "the memory for request bodies over {} KiB is used up ({} MiB in total, gRPC messages count eightfold); retry later, or send smaller batches",
        SMALL_BODY_BYTES >> 10,
        BODY_BUDGET_KIB >> 10
    ))
}

/// Error for a body beyond `server.max_body_bytes`.
pub(in crate::api) fn body_too_large(max_bytes: usize) -> ApiError {
    ApiError::new(ErrorStatus::BODY_TOO_LARGE, format!("the body is larger than {max_bytes} bytes"))
}
