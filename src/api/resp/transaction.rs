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
    /// Permit for frames beyond [`READ_BYTES`](super::connection::READ_BYTES).
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
        let refused = replies.bytes().len();
        if command == RespCommand::Unknown {
            count(command, RespOutcome::Error, 1);
            reply_unknown_command(args.get(0).unwrap_or_default(), replies);
        } else if let Err(failure) = check(command, args) {
            reply_error(command, &failure, replies);
        } else if let Err((word, text)) = self.push_frame(frame, shared) {
            count(command, RespOutcome::Error, 1);
            replies.error(word, &text);
        }
        if replies.bytes().len() == refused {
            replies.simple_string("QUEUED");
        } else {
            *self = Self::aborted();
        }
    }

    fn push_frame(&mut self, frame: &[u8], shared: &RespContext) -> Result<(), (&'static str, String)> {
        // A discarded transaction needs no frames.
        if self.is_aborted {
            return Ok(());
        }
        let (commands, bytes) = (self.commands + 1, self.frames.len() + frame.len());
        if commands > limits::TRANSACTION_COMMANDS_MAX || bytes > limits::TRANSACTION_BYTES_MAX {
            let (most, most_bytes) = (limits::TRANSACTION_COMMANDS_MAX, limits::TRANSACTION_BYTES_MAX);
            let text = format!("a transaction is at most {most} commands of {most_bytes} bytes together");
            return Err(("ERR", text));
        }
        let has = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needs = (bytes.saturating_sub(READ_BYTES)).div_ceil(1 << 10).saturating_sub(has);
        if needs > 0 {
            let more =
                shared.try_reserve(needs).ok_or_else(|| ("OVERLOADED", super::BODY_BUDGET_EXCEEDED.to_owned()))?;
            merge_permits(&mut self.permit, more);
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
pub(super) fn merge_permits(room: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match room {
        Some(room) => room.merge(more),
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
