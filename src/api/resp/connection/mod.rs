//! Connection of one RESP client: input is split into commands, executed, and answered with one write.
//!
//! **Batches.** Consecutive claims go to the scheduler together, and so do consecutive releases: each shard is entered
//! once for all of them. A pipeline must mean the same as its commands one after the other, so a batch ends where the
//! kind of command changes, and where a key repeats; the rest is parsed again once the replies are there. `CLAIM a,
//! CLAIM b, RELEASE a *, RELEASE a *` is three batches: two claims, a release, a release.
//!
//! **Memory.** An idle connection keeps a few hundred bytes: input is read into the thread's own buffer, and only an
//! incomplete command is copied from there. Replies are written before more commands are parsed, so pending output is
//! bounded; a client that does not read is not read from, and dropped after a timeout.

mod idle;
mod io;
mod undelivered;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::{Pin, pin};

use futures::FutureExt as _;
use hashbrown::HashSet;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Duration, Sleep, timeout};

use self::idle::IdleTimer;
use self::undelivered::WrittenClaims;
use super::RespContext;
use super::command_batch::{CommandBatch, ConnectionEnd, ConnectionStep, SchedulerRequest};
use super::commands;
use super::frame::{FrameParser, ProtocolError};
use super::parse_args::{self, escape_for_message};
use super::reply_buffer::{ReplyBuffer, RespVersion};
use super::session::RespSession;
use super::single_call::{CallReply, SingleCall, count, deadline_exceeded};
use super::threads::ThreadAffinity;
use super::transaction::{RespTransaction, merge_permits};
use crate::api::error_table::ApiError;
use crate::api::half_close::UndeliveredClaims;
use crate::metrics::{RespCloseReason, RespCommand, RespOutcome, metrics};
use crate::model::request_error::RequestError;
use crate::model::{ClaimRequest, ClaimResult};
use crate::scheduler::ClaimBatchBuilder;

/// Size of one read, in bytes.
pub(super) const READ_BYTES: usize = 16 << 10;
/// Size of pending replies, in bytes, beyond which they are written before more commands are parsed.
const WRITE_THRESHOLD_BYTES: usize = 64 << 10;
/// Limit on commands that are parsed before their replies are written.
const COMMANDS_PER_WRITE_MAX: usize = 1024;
/// Capacity, in bytes, that a connection keeps without a permit; a longer command is charged to the budget for large
/// bodies.
const RETAINED_INPUT_BYTES: usize = 4 << 10;
/// Number of commands that make a read deep, and of consecutive deep reads that make a connection deep.
const DEEP_PIPELINE_COMMANDS: usize = 4;
const DEEP_PIPELINE_READS: u32 = 8;
/// Time for which the input of an erring client is discarded, so that it sees the error and not a reset.
const LINGER: Duration = Duration::from_millis(500);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    /// Hashes of the keys of a batch.
    static BATCH_KEYS: RefCell<HashSet<u64>> = RefCell::default();
    /// Claims of the thread's connections that are submitted together.
    static CLAIM_BATCH: RefCell<ClaimBatchBuilder> = RefCell::default();
}

/// Connection with nothing in flight, which may move to another thread.
pub(super) struct IdleConnection {
    stream: TcpStream,
    session: RespSession,
    version: RespVersion,
    /// Claims that may have to be rolled back, as [`RespConnection`] has them.
    undelivered: Option<UndeliveredClaims>,
    written: WrittenClaims,
}

impl IdleConnection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        let (undelivered, written) = (None, WrittenClaims::default());
        Self { stream, session: RespSession::new(peer), version: RespVersion::Resp2, undelivered, written }
    }

    /// Registers the socket with the runtime that calls this.
    pub(super) fn reregister(self) -> std::io::Result<Self> {
        let stream = TcpStream::from_std(self.stream.into_std()?)?;
        Ok(Self { stream, ..self })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

pub(super) struct RespConnection<'a> {
    shared: &'a RespContext,
    stream: TcpStream,
    parser: FrameParser,
    input: Vec<u8>,
    /// Number of input bytes that were parsed.
    consumed: usize,
    /// Commands since the last write.
    pending_commands: usize,
    replies: ReplyBuffer,
    session: RespSession,
    /// Permit for an input beyond [`READ_BYTES`].
    permit: Option<OwnedSemaphorePermit>,
    /// Deadline for the rest of an incomplete command.
    command_deadline: Option<Pin<Box<Sleep>>>,
    /// Commands since the last read.
    pipeline_depth: usize,
    /// Consecutive reads with at least [`DEEP_PIPELINE_COMMANDS`] commands.
    deep_reads: u32,
    affinity: ThreadAffinity,
    /// Whether other tasks have run since the last write.
    has_yielded: bool,
    /// End of the commands that an `EXEC` executes, in input bytes; 0: no `EXEC` is running.
    exec_end: usize,
    /// Set while the command that is being answered was waited for: its client may have left meanwhile.
    has_waited: bool,
    /// New claims that are rolled back unless their replies arrive; only kept while that is in doubt.
    undelivered: Option<UndeliveredClaims>,
    /// Claims whose replies were written since the last input.
    written: WrittenClaims,
    /// Timer for queued claims, once the client has closed its sending side.
    grace: Option<Pin<Box<Sleep>>>,
    idle: IdleTimer,
}

impl<'a> RespConnection<'a> {
    pub(super) fn new(shared: &'a RespContext, client: IdleConnection, affinity: ThreadAffinity) -> Self {
        let IdleConnection { stream, session, version, undelivered, written } = client;
        Self {
            shared,
            stream,
            parser: FrameParser::new(shared.bounds.body_bytes_max),
            input: Vec::new(),
            consumed: 0,
            pending_commands: 0,
            replies: ReplyBuffer::new(version),
            session,
            permit: None,
            command_deadline: None,
            pipeline_depth: 0,
            deep_reads: 0,
            affinity,
            has_yielded: false,
            exec_end: 0,
            has_waited: false,
            undelivered,
            written,
            grace: None,
            idle: IdleTimer::default(),
        }
    }

    /// Serves until the client leaves, errs, or the service stops. Returns the client if it should move to another
    /// thread and may.
    pub(super) async fn serve(mut self, mut stopping: watch::Receiver<()>) -> Option<IdleConnection> {
        let mut stop = pin!(async move {
            // Both outcomes mean stop: a message, or a dropped sender.
            let _ = stopping.changed().await;
        });
        let end = loop {
            if let Err(end) = self.step(stop.as_mut()).await {
                break end;
            }
            if self.should_move() {
                let Self { stream, session, replies, undelivered, written, .. } = self;
                return Some(IdleConnection { stream, session, version: replies.version, undelivered, written });
            }
        };
        // Decided commands are answered, if the client still listens.
        let is_written = self.write().await.is_ok();
        self.finish_undelivered().await;
        if let ConnectionEnd::Closed(reason) = end {
            metrics().resp_ended(reason).increment(1);
            if is_written {
                self.linger().await;
            }
        }
        None
    }

    /// Whether the pipelines are deep, and nothing is in flight.
    fn should_move(&self) -> bool {
        self.affinity == ThreadAffinity::Movable
            && self.deep_reads >= DEEP_PIPELINE_READS
            && self.consumed == self.input.len()
            && self.replies.bytes().is_empty()
            && self.grace.is_none()
    }

    async fn step(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), ConnectionEnd> {
        let scheduler = &self.shared.scheduler;
        match self.next_step() {
            ConnectionStep::Read => {
                let depth = std::mem::take(&mut self.pipeline_depth) + self.pending_commands;
                self.deep_reads = if depth >= DEEP_PIPELINE_COMMANDS { self.deep_reads.saturating_add(1) } else { 0 };
                if depth < DEEP_PIPELINE_COMMANDS && !self.replies.bytes().is_empty() {
                    self.yield_once().await;
                }
                self.write().await?;
                if self.should_move() {
                    return Ok(());
                }
                return self.read(stop).await;
            }
            ConnectionStep::Write => return self.write().await,
            ConnectionStep::End(end) => return Err(end),
            ConnectionStep::Claim(request) => {
                let wait_ms = self.allowed_wait(request.wait_ms);
                let request = ClaimRequest { wait_ms, ..request };
                if wait_ms == 0 {
                    let result = self.claim(request).await?;
                    self.reply_claimed(&[result.unwrap_or(Err(RequestError::DeadlineExceeded))]);
                } else {
                    let work = Box::pin(scheduler.claim(request));
                    if let Some(result) = self.await_capacity(wait_ms, RespCommand::Claim, work, stop).await? {
                        self.reply_claimed(&[result]);
                    }
                }
            }
            ConnectionStep::Release(id, fence) => {
                let released = self.await_reply(scheduler.release_held(&id, fence)).await?;
                self.reply_released(&[released.unwrap_or(Err(RequestError::DeadlineExceeded))]);
            }
            ConnectionStep::Claims(requests) => {
                let len = requests.len();
                let results = self.await_reply(Box::pin(scheduler.claim_batch(requests))).await?;
                self.reply_claimed(&results.unwrap_or_else(|| vec![Err(RequestError::DeadlineExceeded); len]));
            }
            ConnectionStep::Releases(claims) => {
                let len = claims.len();
                let released = self.await_reply(Box::pin(scheduler.release_held_batch(claims))).await?;
                self.reply_released(&released.unwrap_or_else(|| vec![Err(RequestError::DeadlineExceeded); len]));
            }
            ConnectionStep::Call(mut call) => {
                let command = call.command();
                let wait_ms = self.allowed_wait(call.wait_ms());
                let outcome = if wait_ms == 0 {
                    call.clear_wait();
                    self.await_reply(Box::pin(call.run(scheduler))).await?.unwrap_or_else(|| Err(deadline_exceeded()))
                } else {
                    match self.await_capacity(wait_ms, command, Box::pin(call.run(scheduler)), stop).await? {
                        Some(outcome) => outcome,
                        None => return Ok(()),
                    }
                };
                match outcome {
                    Ok(reply) => {
                        if let CallReply::Claims(outcomes) = &reply {
                            self.record_undelivered(outcomes.iter().flatten());
                        }
                        reply.record_replies(command);
                        reply.write(&mut self.replies);
                    }
                    Err(failure) => reply_error(command, &failure, &mut self.replies),
                }
            }
        }
        Ok(())
    }

    /// Lets other tasks of the thread run, once before each write: reading, deciding and writing in turn for each
    /// connection is more expensive than each for all.
    async fn yield_once(&mut self) {
        if !std::mem::replace(&mut self.has_yielded, true) {
            tokio::task::yield_now().await;
        }
    }

    /// Decides a claim that is not queued, as a batch with the claims of the thread's other connections. The first of
    /// them decides for all.
    async fn claim(
        &mut self,
        request: ClaimRequest,
    ) -> Result<Option<Result<ClaimResult, RequestError>>, ConnectionEnd> {
        let scheduler = &self.shared.scheduler;
        let pending = match CLAIM_BATCH.with_borrow_mut(|batch| scheduler.gather(request, batch)) {
            Ok(pending) => pending,
            Err(error) => return Ok(Some(Err(error))),
        };
        self.yield_once().await;
        CLAIM_BATCH.with_borrow_mut(|batch| scheduler.decide_gathered(batch));
        self.await_reply(pending).await
    }

    /// Whether another command may be parsed before the replies are written.
    fn may_parse(&self, batch: &CommandBatch) -> bool {
        // The replies of an `EXEC` leave together, independent of later commands.
        let ends_exec = self.exec_end > 0 && self.consumed == self.exec_end && !batch.is_empty();
        self.pending_commands < COMMANDS_PER_WRITE_MAX
            && self.replies.bytes().len() < WRITE_THRESHOLD_BYTES
            && self.session.end.is_none()
            && !ends_exec
    }

    /// Marks the next command of the input, of so many bytes, as parsed.
    fn accept(&mut self, length: usize) {
        self.consumed += length;
        self.pending_commands += 1;
        self.command_deadline = None;
    }

    /// Parses commands until one has to be waited for. Commands without the scheduler are answered inline.
    fn next_step(&mut self) -> ConnectionStep {
        BATCH_KEYS.with_borrow_mut(|keys| {
            let mut batch = CommandBatch::Nothing;
            keys.clear();
            while self.may_parse(&batch) {
                let rest = &self.input[self.consumed..];
                let length = match self.parser.next(rest) {
                    Ok(Some(length)) => length,
                    Ok(None) => return batch.into_step().unwrap_or(ConnectionStep::Read),
                    Err(error) => return batch.into_step().unwrap_or_else(|| self.reject_input(error)),
                };
                let is_last = rest.len() == length;
                let args = self.parser.args(rest);
                let Some(name) = args.get(0) else {
                    self.accept(length);
                    continue;
                };
                let spec = commands::find(name).filter(|spec| spec.accepts_arity(args.len()));
                let command = spec.map_or(RespCommand::Unknown, |spec| spec.command);
                if let Some(transaction) = &mut self.session.transaction
                    && RespTransaction::is_queued(command)
                {
                    transaction.queue(command, &rest[..length], args, self.shared, &mut self.replies);
                    self.accept(length);
                    continue;
                }
                let parsed = match command {
                    RespCommand::Claim if batch.accepts_claims() => {
                        parse_args::claim(args).map(SchedulerRequest::Claim)
                    }
                    RespCommand::Release if batch.accepts_releases() => {
                        parse_args::release(args).map(SchedulerRequest::release)
                    }
                    // Executed after the batch is answered.
                    _ if !batch.is_empty() => break,
                    call if SingleCall::handles(call) => SingleCall::parse(call, args).map(SchedulerRequest::Call),
                    inline => {
                        match inline {
                            RespCommand::Unknown => {
                                count(command, RespOutcome::Error, 1);
                                reply_unknown_command(name, &mut self.replies);
                            }
                            RespCommand::Exec => {
                                self.accept(length);
                                self.start_exec();
                                continue;
                            }
                            _ => count(inline, self.session.answer(inline, &args, self.shared, &mut self.replies), 1),
                        }
                        self.accept(length);
                        continue;
                    }
                };
                match parsed {
                    Err(failure) if batch.is_empty() => {
                        self.accept(length);
                        reply_error(command, &failure, &mut self.replies);
                    }
                    Err(_) => break,
                    // A single claim is the usual case. One that is queued must not delay the replies of others.
                    Ok(request) if batch.is_empty() && (is_last || request.is_single()) => {
                        self.accept(length);
                        return request.into_step();
                    }
                    Ok(request) if request.is_single() || !keys.insert(request.key_hash()) => break,
                    Ok(request) => {
                        self.accept(length);
                        batch.push(request);
                    }
                }
            }
            batch
                .into_step()
                .unwrap_or_else(|| self.session.end.take().map_or(ConnectionStep::Write, ConnectionStep::End))
        })
    }

    #[cold]
    fn reject_input(&mut self, error: ProtocolError) -> ConnectionStep {
        self.replies.error("ERR", &format!("Protocol error: {error}"));
        let is_http = error == ProtocolError::Http;
        let reason = if is_http { RespCloseReason::Http } else { RespCloseReason::Protocol };
        ConnectionStep::End(ConnectionEnd::Closed(reason))
    }

    /// Puts the commands of the transaction in front of the input, so that they are parsed next.
    fn start_exec(&mut self) {
        let queued = self.session.exec(&mut self.replies);
        count(RespCommand::Exec, if queued.is_some() { RespOutcome::Ok } else { RespOutcome::Error }, 1);
        if let Some(RespTransaction { frames, commands, permit, .. }) = queued {
            self.replies.array(commands);
            permit.into_iter().for_each(|permit| merge_permits(&mut self.permit, permit));
            self.exec_end = frames.len();
            self.undelivered.get_or_insert_default();
            self.input.splice(..std::mem::take(&mut self.consumed), frames);
        }
    }

    /// Waits for the reply to a call. Earlier replies are written first, unless this one is ready at once. `None`: the
    /// deadline has passed.
    async fn await_reply<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, ConnectionEnd> {
        // Claims are driven by the scheduler, not by this future: dropping it at the deadline leaves nothing half done.
        let mut work = pin!(work);
        if let Some(done) = work.as_mut().now_or_never() {
            return Ok(Some(done));
        }
        self.has_waited = true;
        self.write_before_waiting().await?;
        Ok(timeout(self.shared.bounds.timeout, work).await.ok())
    }

    fn reply_claimed(&mut self, outcomes: &[Result<ClaimResult, RequestError>]) {
        self.record_undelivered(outcomes.iter().flatten());
        let replies = &mut self.replies;
        let mut done = 0;
        for outcome in outcomes {
            match outcome {
                Ok(result) => {
                    done += 1;
                    replies.claim(&result.claim);
                }
                Err(error) => reply_error(RespCommand::Claim, &error.clone().into(), replies),
            }
        }
        count(RespCommand::Claim, RespOutcome::Ok, done);
    }

    fn reply_released(&mut self, outcomes: &[Result<bool, RequestError>]) {
        let replies = &mut self.replies;
        let mut done = 0;
        for outcome in outcomes {
            match outcome {
                Ok(was_held) => {
                    done += 1;
                    replies.integer(u64::from(*was_held));
                }
                Err(error) => reply_error(RespCommand::Release, &error.clone().into(), replies),
            }
        }
        count(RespCommand::Release, RespOutcome::Ok, done);
    }
}

pub(super) fn reply_error(command: RespCommand, failure: &ApiError, replies: &mut ReplyBuffer) {
    count(command, failure.resp_outcome(), 1);
    replies.failure(failure);
}

#[cold]
pub(super) fn reply_unknown_command(name: &[u8], replies: &mut ReplyBuffer) {
    match commands::find(name) {
        Some(spec) => replies.error("ERR", &spec.usage()),
        None => {
            let name = escape_for_message(name);
            let hint = "Hotpool assigns workers and stores no values: COMMAND LIST shows its commands";
            replies.error("ERR", &format!("unknown command '{name}'. {hint}"));
        }
    }
}
