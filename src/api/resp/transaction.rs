//! Transactions: what comes between `MULTI` and `EXEC` is kept as it came, and read again when `EXEC` comes.
//!
//! A queued command so goes the way of any other, in runs too, and its answer is one value of the array that `EXEC` is
//! answered with. Whatever can be refused without asking the scheduler is refused when it is queued, and then none of the
//! transaction is carried out. As in Redis there is no roll-back: each command stands for itself.

use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::answer::Answers;
use super::call::{Call, count};
use super::connection::{READ_BYTES, fail, unknown};
use super::frame::Args;
use super::read;
use crate::api::error_table::Failure;
use crate::limits;
use crate::metrics::{RespCommand, RespOutcome};

/// Commands that wait for their `EXEC`.
#[derive(Default)]
pub(super) struct Transaction {
    /// Frames of the commands, one behind the other.
    pub(super) frames: Vec<u8>,
    pub(super) commands: usize,
    /// Room for frames beyond [`READ_BYTES`].
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// Set once a command was refused: none will be carried out.
    dirty: bool,
}

impl Transaction {
    /// A transaction that will not be carried out, whatever comes.
    pub(super) fn refused() -> Self {
        Self { dirty: true, ..Self::default() }
    }

    /// Whether a command is queued, and not carried out at once.
    pub(super) const fn takes(command: RespCommand) -> bool {
        use RespCommand::{Discard, Exec, Multi, Quit, Reset, Watch};
        !matches!(command, Multi | Exec | Discard | Watch | Quit | Reset)
    }

    /// Keeps a command, or says why not.
    pub(super) fn queue(
        &mut self,
        command: RespCommand,
        frame: &[u8],
        args: Args<'_>,
        shared: &Shared,
        answers: &mut Answers,
    ) {
        let refused = answers.bytes().len();
        if command == RespCommand::Unknown {
            count(command, RespOutcome::Error, 1);
            unknown(args.get(0).unwrap_or_default(), answers);
        } else if let Err(failure) = check(command, args) {
            fail(command, &failure, answers);
        } else if let Err((word, text)) = self.keep(frame, shared) {
            count(command, RespOutcome::Error, 1);
            answers.error(word, &text);
        }
        if answers.bytes().len() == refused {
            answers.simple("QUEUED");
        } else {
            *self = Self::refused();
        }
    }

    fn keep(&mut self, frame: &[u8], shared: &Shared) -> Result<(), (&'static str, String)> {
        // Nothing of it will be needed.
        if self.dirty {
            return Ok(());
        }
        let (commands, bytes) = (self.commands + 1, self.frames.len() + frame.len());
        if commands > limits::TRANSACTION_COMMANDS_MAX || bytes > limits::TRANSACTION_BYTES_MAX {
            let (most, most_bytes) = (limits::TRANSACTION_COMMANDS_MAX, limits::TRANSACTION_BYTES_MAX);
            let text = format!("a transaction is at most {most} commands of {most_bytes} bytes together");
            return Err(("ERR", text));
        }
        let has = self.room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needs = (bytes.saturating_sub(READ_BYTES)).div_ceil(1 << 10).saturating_sub(has);
        if needs > 0 {
            let more = shared.room(needs).ok_or_else(|| ("OVERLOADED", super::NO_ROOM.to_owned()))?;
            merge(&mut self.room, more);
        }
        self.commands = commands;
        self.frames.extend_from_slice(frame);
        Ok(())
    }

    /// Ends the queue: what is to be carried out, or nothing because something was refused.
    pub(super) fn exec(self) -> Option<Self> {
        (!self.dirty).then_some(self)
    }
}

/// Adds one permit to another.
pub(super) fn merge(room: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match room {
        Some(room) => room.merge(more),
        none => *none = Some(more),
    }
}

/// Checks a command as far as possible before it is carried out.
fn check(command: RespCommand, args: Args<'_>) -> Result<(), Failure> {
    match command {
        RespCommand::Claim => read::claim(args).map(drop),
        RespCommand::Release => read::release(args).map(drop),
        command if Call::is(command) => Call::read(command, args).map(drop),
        _ => Ok(()),
    }
}
