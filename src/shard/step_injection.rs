//! Places in the protocol between shards and admission where a test lets other steps go first, and rules that a test
//! switches off to show that each is needed, and the choice of who runs a shard. All of them belong to a thread. In release
//! builds nothing of this is left.

/// Place between two steps of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolPoint {
    /// An effect is about to be carried out. No lock is held.
    Effect,
    /// The step of a key is about to change its entry, whose lock is held.
    KeyStep,
    /// A claim is about to enter the wait queues, to be searched for once more, or to stand still. No lock is held.
    WaitStep,
    /// A caller has left, and its claim is about to be taken out. No lock is held.
    CallerLeft,
    /// A run has decided the commands in the mailbox, and not the one that bypassed it.
    MailboxDrained,
    /// A run has matched what came free, and is about to decide a claim.
    Matched,
    /// A caller's run of the shard has panicked, and its state is not removed. No lock is held.
    PanicCaught,
    /// A run has decided its commands, and nobody has learned of it.
    Decided,
    /// A run has handed over its rows and published its bounds, and has not delivered its events.
    Published,
    /// A run has delivered its events, and its replies have not left.
    Delivered,
}

/// Rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolRule {
    /// An answer with a ticket that is not valid any more changes nothing.
    TicketCheck,
    /// The end of a claim with another fence than the holder's changes nothing.
    FenceCheck,
    /// A handle of an earlier life of a shard is resolved anew.
    LifeCheck,
    /// A run publishes its bounds before it delivers its events.
    BoundsBeforeDelivery,
    /// A run delivers its events before its replies leave.
    DeliveryBeforeReplies,
    /// A claim whose reply nobody has read is rolled back when its caller leaves.
    RollbackOnClose,
    /// A run publishes what came free before it looks whether anybody waits.
    PublishBeforeMatch,
    /// Freed capacity is offered to those who wait before a claim that does not wait is decided.
    MatchBeforeDecision,
    /// A claim that enters a queue is searched for afterwards.
    SearchAfterEntry,
    /// A worker that only claims being tried may fit is offered again once one of them stands still.
    OfferAgain,
}

#[cfg(all(feature = "internals", debug_assertions))]
mod hooks {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::{ProtocolPoint, ProtocolRule, PushChoice};

    /// Function that is called at each point that the thread reaches.
    pub type PointHook = Rc<dyn Fn(ProtocolPoint)>;
    /// Function that chooses who runs a shard for a command that is pushed while nobody does.
    pub type RunnerChoice = Rc<dyn Fn() -> PushChoice>;

    thread_local! {
        static HOOK: RefCell<Option<PointHook>> = const { RefCell::new(None) };
        static BROKEN: Cell<Option<ProtocolRule>> = const { Cell::new(None) };
        static RUNNER_CHOICE: RefCell<Option<RunnerChoice>> = const { RefCell::new(None) };
    }

    /// Sets the function that chooses who runs a shard for the commands that this thread pushes.
    pub fn choose_runners_of_thread(choice: Option<RunnerChoice>) {
        RUNNER_CHOICE.set(choice);
    }

    pub(in crate::shard) fn choose_for_push() -> PushChoice {
        RUNNER_CHOICE.with_borrow(Clone::clone).map_or(PushChoice::AsUsual, |choice| choice())
    }

    /// Sets the function that is called at each point that this thread reaches, and the rule that it breaks.
    pub fn inject_into_thread(hook: Option<PointHook>, broken: Option<ProtocolRule>) {
        HOOK.set(hook);
        BROKEN.set(broken);
    }

    pub(super) fn reach(point: ProtocolPoint) {
        if let Some(hook) = HOOK.with_borrow(Clone::clone) {
            hook(point);
        }
    }

    pub(super) fn holds(rule: ProtocolRule) -> bool {
        BROKEN.get() != Some(rule)
    }
}

#[cfg(all(feature = "internals", debug_assertions))]
pub use self::hooks::{PointHook, RunnerChoice, choose_runners_of_thread, inject_into_thread};

/// Fate of a command that is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushChoice {
    /// Decided by whether anybody runs the shard.
    AsUsual,
    /// Left to the actor of the shard, although nobody runs it.
    Actor,
    /// Refused as if the mailbox were full.
    Full,
}

/// Fate of a command that is pushed: the usual, unless a test wants another.
#[inline(always)]
pub(super) fn choose_for_push() -> PushChoice {
    #[cfg(all(feature = "internals", debug_assertions))]
    return hooks::choose_for_push();
    #[cfg(not(all(feature = "internals", debug_assertions)))]
    PushChoice::AsUsual
}

impl ProtocolPoint {
    /// Lets other steps go first, if a test wants it.
    #[inline]
    pub fn reach(self) {
        #[cfg(all(feature = "internals", debug_assertions))]
        hooks::reach(self);
    }
}

impl ProtocolRule {
    /// Whether the rule holds: always, unless a test has switched it off.
    #[inline]
    #[must_use]
    pub fn holds(self) -> bool {
        #[cfg(all(feature = "internals", debug_assertions))]
        return hooks::holds(self);
        #[cfg(not(all(feature = "internals", debug_assertions)))]
        true
    }
}
