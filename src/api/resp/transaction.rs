//! Transactions: commands between `MULTI` and `EXEC` are stored as they arrived, and parsed again on `EXEC`.
//!
//! So a queued command is executed like any other, in batches too, and its reply is one value of the array that answers
//! `EXEC`. Everything that can be rejected without the scheduler is rejected when it is queued, and then the whole
//! transaction is discarded. As in Redis there is no rollback: each command stands alone.

use tokio::sync::OwnedSemaphorePermit;

use super::RespContext;
use super::connection::{READ_BYTES, reply_error, reply_unknown_command};
use super::frame::CommandArgs;
use super::parse_args;
use super::reply_buffer::ReplyBuffer;
use super::session::SessionError;
use super::single_call::{SingleCall, count};
use crate::api::error_table::ApiError;
use crate::limits;
use crate::metrics::{RespCommand, RespOutcome};

/// Commands that are queued until `EXEC`.
#[derive(Default)]
pub(super) struct RespTransaction {
    /// Frames of the commands, concatenated.
    pub(super) frames: Vec<u8>,
    pub(super) commands: usize,
    /// Permit for frames beyond [`READ_BYTES`].
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Set once a command was rejected: the transaction is discarded.
    is_aborted: bool,
}

impl RespTransaction {
    /// Creates a transaction that is discarded in any case.
    pub(super) fn aborted() -> Self {
        Self { is_aborted: true, ..Self::default() }
    }

    /// Whether a command is queued instead of executed.
    pub(super) const fn is_queued(command: RespCommand) -> bool {
        use RespCommand::{Discard, Exec, Multi, Quit, Reset, Watch};
        !matches!(command, Multi | Exec | Discard | Watch | Quit | Reset)
    }

    /// Queues a command, or returns why it is rejected.
    pub(super) fn queue(
        &mut self,
        command: RespCommand,
        frame: &[u8],
        args: CommandArgs<'_>,
        shared: &RespContext,
        replies: &mut ReplyBuffer,
    ) {
        let bytes_before = replies.bytes().len();
        if command == RespCommand::Unknown {
            count(command, RespOutcome::Error, 1);
            reply_unknown_command(args.get(0).unwrap_or_default(), replies);
        } else if let Err(failure) = check(command, args) {
            reply_error(command, &failure, replies);
        } else if let Err(SessionError { prefix, text }) = self.push_frame(frame, shared) {
            count(command, RespOutcome::Error, 1);
            replies.error(prefix, &text);
        }
        if replies.bytes().len() == bytes_before {
            replies.simple_string("QUEUED");
        } else {
            *self = Self::aborted();
        }
    }

    fn push_frame(&mut self, frame: &[u8], shared: &RespContext) -> Result<(), SessionError> {
        // A discarded transaction needs no frames.
        if self.is_aborted {
            return Ok(());
        }
        let (commands, bytes) = (self.commands + 1, self.frames.len() + frame.len());
        if commands > limits::TRANSACTION_COMMANDS_MAX || bytes > limits::TRANSACTION_BYTES_MAX {
            let (max, max_bytes) = (limits::TRANSACTION_COMMANDS_MAX, limits::TRANSACTION_BYTES_MAX);
            return Err(SessionError::new(format!("a transaction has at most {max} commands and {max_bytes} bytes")));
        }
        let permit_kib = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing_kib = (bytes.saturating_sub(READ_BYTES)).div_ceil(1 << 10).saturating_sub(permit_kib);
        if missing_kib > 0 {
            let overloaded = || SessionError { prefix: "OVERLOADED", text: super::BODY_BUDGET_EXCEEDED.to_owned() };
            merge_permits(&mut self.permit, shared.try_reserve(missing_kib).ok_or_else(overloaded)?);
        }
        self.commands = commands;
        self.frames.extend_from_slice(frame);
        Ok(())
    }

    /// Ends the queue: returns the transaction to execute, or `None` if it is discarded.
    pub(super) fn exec(self) -> Option<Self> {
        (!self.is_aborted).then_some(self)
    }
}

/// Merges one permit into another.
pub(super) fn merge_permits(permit: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match permit {
        Some(permit) => permit.merge(more),
        none => *none = Some(more),
    }
}

/// Checks a command as far as possible before it is executed.
fn check(command: RespCommand, args: CommandArgs<'_>) -> Result<(), ApiError> {
    match command {
        RespCommand::Claim => parse_args::claim(args).map(drop),
        RespCommand::Release => parse_args::release(args).map(drop),
        command if SingleCall::handles(command) => SingleCall::parse(command, args).map(drop),
        _ => Ok(()),
    }
}
