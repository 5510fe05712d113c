//! Transactions: what comes between `MULTI` and `EXEC` is kept as it came, and read again when `EXEC` comes.
//!
//! A queued command so goes the way of any other, in runs too, and its answer is one value of the array that `EXEC` is
//! answered with. Whatever can be refused without asking the scheduler is refused when it is queued, and then none of the
//! transaction is carried out. As in Redis there is no roll-back: each command stands for itself.

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

/// Commands that wait for their `EXEC`.
#[derive(Default)]
pub(super) struct RespTransaction {
    /// Frames of the commands, one behind the other.
    pub(super) frames: Vec<u8>,
    pub(super) commands: usize,
    /// Room for frames beyond [`READ_BYTES`].
    pub(super) permit: Option<OwnedSemaphorePermit>,
    /// Set once a command was refused: none will be carried out.
    is_aborted: bool,
}

impl RespTransaction {
    /// A transaction that will not be carried out, whatever comes.
    pub(super) fn aborted() -> Self {
        Self { is_aborted: true, ..Self::default() }
    }

    /// Whether a command is queued, and not carried out at once.
    pub(super) const fn is_queued(command: RespCommand) -> bool {
        use RespCommand::{Discard, Exec, Multi, Quit, Reset, Watch};
        !matches!(command, Multi | Exec | Discard | Watch | Quit | Reset)
    }

    /// Keeps a command, or says why not.
    pub(super) fn queue(
        &mut self,
        command: RespCommand,
        frame: &[u8],
        args: CommandArgs<'_>,
        shared: &RespContext,
        answers: &mut ReplyBuffer,
    ) {
        let refused = answers.bytes().len();
        if command == RespCommand::Unknown {
            count(command, RespOutcome::Error, 1);
            reply_unknown_command(args.get(0).unwrap_or_default(), answers);
        } else if let Err(failure) = check(command, args) {
            reply_error(command, &failure, answers);
        } else if let Err((word, text)) = self.push_frame(frame, shared) {
            count(command, RespOutcome::Error, 1);
            answers.error(word, &text);
        }
        if answers.bytes().len() == refused {
            answers.simple_string("QUEUED");
        } else {
            *self = Self::aborted();
        }
    }

    fn push_frame(&mut self, frame: &[u8], shared: &RespContext) -> Result<(), (&'static str, String)> {
        // Nothing of it will be needed.
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

    /// Ends the queue: what is to be carried out, or nothing because something was refused.
    pub(super) fn exec(self) -> Option<Self> {
        (!self.is_aborted).then_some(self)
    }
}

/// Adds one permit to another.
pub(super) fn merge_permits(room: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match room {
        Some(room) => room.merge(more),
        none => *none = Some(more),
    }
}

/// Checks a command as far as possible before it is carried out.
fn check(command: RespCommand, args: CommandArgs<'_>) -> Result<(), ApiError> {
    match command {
        RespCommand::Claim => parse_args::claim(args).map(drop),
        RespCommand::Release => parse_args::release(args).map(drop),
        command if SingleCall::handles(command) => SingleCall::parse(command, args).map(drop),
        _ => Ok(()),
    }
}
