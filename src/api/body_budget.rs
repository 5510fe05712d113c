//! Memory that request bodies may take, on all edges together.

use super::error_table::{ApiError, ErrorStatus};

/// Largest body that is read without asking for room, in bytes: that of any call but a batch.
pub(in crate::api) const SMALL_BODY_BYTES: u64 = 16 << 10;
/// Most that larger bodies may take together, in KiB. Past it they are refused (`overloaded`).
pub(in crate::api) const BODY_BUDGET_KIB: usize = 256 << 10;

/// Answer to a body that is not small and finds no room.
pub(in crate::api) fn body_budget_exceeded() -> ApiError {
    ApiError::overloaded(format!(
        "bodies over {} KiB take all of the {} MiB that they may take together, where gRPC messages count eightfold; retry \
         later, or send smaller batches",
        SMALL_BODY_BYTES >> 10,
        BODY_BUDGET_KIB >> 10
    ))
}

/// A body past the limit.
pub(in crate::api) fn body_too_large(max_bytes: usize) -> ApiError {
    ApiError::new(ErrorStatus::BODY_TOO_LARGE, format!("the body is larger than {max_bytes} bytes"))
}
