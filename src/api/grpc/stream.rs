//! The claim stream: many requests of one call in flight, answered by id.

use super::proto::ClaimStreamResponse;

/// What is answered.
pub(super) type Answers = futures::stream::BoxStream<'static, Result<ClaimStreamResponse, tonic::Status>>;
