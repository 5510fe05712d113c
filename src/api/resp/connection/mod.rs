//! One connection: what has come is taken command by command, decided, and answered with one write.
//!
//! **Runs.** Claims that follow each other go to the facade together, and so do releases: each shard is passed once for
//! all of them. A pipeline must mean what its commands mean one after the other, so a run ends where the kind of command
//! changes, and where a key comes again; what follows is read anew after its answers are there. `CLAIM a, CLAIM b,
//! RELEASE a *, RELEASE a *` is three runs: two claims, a release, a release.
//!
//! **Room.** An idle connection keeps a few hundred bytes: what comes is read into the thread's own buffer, and what did
//! not make a whole command yet is copied from there. Answers are written before more is taken, so what waits to be
//! written is bounded; a client that reads nothing is not read from, and after a while dropped.

mod idle;
mod io;
mod leave;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::{Pin, pin};

use futures::FutureExt as _;
use hashbrown::HashSet;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Duration, Sleep, timeout};

use self::idle::IdleTimer;
use self::leave::WrittenClaims;
use super::Shared;
use super::answer::Answers;
use super::call::{Call, Said, count, late};
use super::commands;
use super::frame::{Parser, ProtocolError};
use super::read::{self, shown};
use super::run::{Asked, End, Run, Step};
use super::session::Session;
use super::transaction::{Transaction, merge};
use crate::api::error_table::Failure;
use crate::api::half_close::Untold;
use crate::metrics::{RespCommand, RespEnd, RespOutcome, metrics};
use crate::model::rejection::Refusal;
use crate::model::{ClaimRequest, Taken};
use crate::scheduler::Gathered;

/// Bytes read at a time.
pub(super) const READ_BYTES: usize = 16 << 10;
/// Bytes of answers that are written before more is taken.
const ANSWER_BYTES: usize = 64 << 10;
/// Most commands that are taken before what they are answered is written.
const TAKE_MAX: usize = 1024;
/// Room that a connection keeps without asking for it; a longer command takes part in the room for large bodies.
const KEPT_BYTES: usize = 4 << 10;
/// Commands in a read that make it a deep one, and how many of those in a row make a deep connection.
const DEEP: usize = 4;
const DEEP_READS: u32 = 8;
/// How long the rest of what an erring client sends is read, so that it sees the error and not a reset.
const LINGER: Duration = Duration::from_millis(500);

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    /// Keys of a run.
    static SEEN: RefCell<HashSet<u64>> = RefCell::default();
    /// Claims of the thread's connections that are decided in one go.
    static GATHERED: RefCell<Gathered> = RefCell::default();
}

/// A connection with nothing under way, which may go to another thread.
pub(super) struct Client {
    stream: TcpStream,
    session: Session,
    resp3: bool,
    /// Claims that may have to be given back, as [`Connection`] keeps them.
    untold: Option<Untold>,
    written: WrittenClaims,
}

impl Client {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        let (untold, written) = (None, WrittenClaims::default());
        Self { stream, session: Session::new(peer), resp3: false, untold, written }
    }

    /// The same, its events told to the runtime that calls this.
    pub(super) fn moved(self) -> std::io::Result<Self> {
        let stream = TcpStream::from_std(self.stream.into_std()?)?;
        Ok(Self { stream, ..self })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

pub(super) struct Connection<'a> {
    shared: &'a Shared,
    stream: TcpStream,
    parser: Parser,
    input: Vec<u8>,
    /// Of the input, what was taken.
    taken: usize,
    /// Commands taken since the last write.
    round: usize,
    answers: Answers,
    session: Session,
    /// For an input beyond [`READ_BYTES`].
    room: Option<OwnedSemaphorePermit>,
    /// Until then the command whose beginning was read must be complete.
    patience: Option<Pin<Box<Sleep>>>,
    /// Commands taken since the last read.
    depth: usize,
    /// Reads in a row that brought [`DEEP`] commands and more.
    deep_reads: u32,
    may_move: bool,
    /// Others went first since the last write.
    went_last: bool,
    /// Where in the input the commands end that an `EXEC` carries out; 0: there are none.
    exec_end: usize,
    /// Set while the command that is being answered was waited for: its client may have left meanwhile.
    waited: bool,
    /// Claims that were made, and are given back unless their answers arrive; only kept while that is in doubt.
    untold: Option<Untold>,
    /// Claims whose answers were written since the client sent something last.
    written: WrittenClaims,
    /// Since the client has closed its sending side: until then its claims may wait.
    grace: Option<Pin<Box<Sleep>>>,
    idle: IdleTimer,
}

impl<'a> Connection<'a> {
    /// `may_move`: it may end for its thread by moving to another.
    pub(super) fn new(shared: &'a Shared, client: Client, may_move: bool) -> Self {
        let Client { stream, session, resp3, untold, written } = client;
        Self {
            shared,
            stream,
            parser: Parser::new(shared.bounds.body_bytes_max),
            input: Vec::new(),
            taken: 0,
            round: 0,
            answers: Answers::new(resp3),
            session,
            room: None,
            patience: None,
            depth: 0,
            deep_reads: 0,
            may_move,
            went_last: false,
            exec_end: 0,
            waited: false,
            untold,
            written,
            grace: None,
            idle: IdleTimer::default(),
        }
    }

    /// Until the client leaves, errs, or the service stops. Gives it back when it shows itself to be deep, if it may move.
    pub(super) async fn serve(mut self, mut stopping: watch::Receiver<()>) -> Option<Client> {
        let mut stop = pin!(async move {
            // Either outcome means the end: a word, or nobody left to say it.
            let _ = stopping.changed().await;
        });
        let end = loop {
            if let Err(end) = self.step(stop.as_mut()).await {
                break end;
            }
            if self.moves() {
                let Self { stream, session, answers, untold, written, .. } = self;
                return Some(Client { stream, session, resp3: answers.resp3, untold, written });
            }
        };
        // What was decided is told, if the client still listens.
        let told = self.write().await.is_ok();
        self.settle_untold().await;
        if let End::By(reason) = end {
            metrics().resp_ended(reason).increment(1);
            if told {
                self.linger().await;
            }
        }
        None
    }

    /// Whether it is deep, and nothing is half read, half decided or half written.
    fn moves(&self) -> bool {
        self.may_move
            && self.deep_reads >= DEEP_READS
            && self.taken == self.input.len()
            && self.answers.bytes().is_empty()
            && self.grace.is_none()
    }

    async fn step(&mut self, stop: Pin<&mut impl Future<Output = ()>>) -> Result<(), End> {
        let scheduler = &self.shared.scheduler;
        match self.take() {
            Step::Read => {
                let depth = std::mem::take(&mut self.depth) + self.round;
                self.deep_reads = if depth >= DEEP { self.deep_reads.saturating_add(1) } else { 0 };
                if depth < DEEP && !self.answers.bytes().is_empty() {
                    self.after_others().await;
                }
                self.write().await?;
                if self.moves() {
                    return Ok(());
                }
                return self.read(stop).await;
            }
            Step::Write => return self.write().await,
            Step::End(end) => return Err(end),
            Step::Claim(request) => {
                let wait_ms = self.may_wait(request.wait_ms);
                let request = ClaimRequest { wait_ms, ..request };
                if wait_ms == 0 {
                    let taken = self.claim(request).await?;
                    self.claimed(&[taken.unwrap_or(Err(Refusal::DeadlineExceeded))]);
                } else {
                    let work = Box::pin(scheduler.claim(request));
                    if let Some(taken) = self.wait(wait_ms, RespCommand::Claim, work, stop).await? {
                        self.claimed(&[taken]);
                    }
                }
            }
            Step::Release(id, fence) => {
                let released = self.settle(scheduler.release_held(&id, fence)).await?;
                self.released(&[released.unwrap_or(Err(Refusal::DeadlineExceeded))]);
            }
            Step::Claims(requests) => {
                let len = requests.len();
                let taken = self.settle(Box::pin(scheduler.claim_batch(requests))).await?;
                self.claimed(&taken.unwrap_or_else(|| vec![Err(Refusal::DeadlineExceeded); len]));
            }
            Step::Releases(claims) => {
                let len = claims.len();
                let released = self.settle(Box::pin(scheduler.release_held_batch(claims))).await?;
                self.released(&released.unwrap_or_else(|| vec![Err(Refusal::DeadlineExceeded); len]));
            }
            Step::Call(mut call) => {
                let command = call.command();
                let wait_ms = self.may_wait(call.wait_ms());
                let said = if wait_ms == 0 {
                    call.do_not_wait();
                    self.settle(Box::pin(call.run(scheduler))).await?.unwrap_or_else(|| Err(late()))
                } else {
                    match self.wait(wait_ms, command, Box::pin(call.run(scheduler)), stop).await? {
                        Some(said) => said,
                        None => return Ok(()),
                    }
                };
                match said {
                    Ok(said) => {
                        if let Said::Claims(outcomes) = &said {
                            self.note(outcomes.iter().flatten());
                        }
                        said.count(command);
                        said.write(&mut self.answers);
                    }
                    Err(failure) => fail(command, &failure, &mut self.answers),
                }
            }
        }
        Ok(())
    }

    /// Others that have something to read go first, once before each write: reading, deciding and writing by turns for each
    /// connection is dearer than each of them for all.
    async fn after_others(&mut self) {
        if !std::mem::replace(&mut self.went_last, true) {
            tokio::task::yield_now().await;
        }
    }

    /// A claim that does not wait: decided in one go with what other connections of the thread ask for at the same time, as a
    /// batch is. Whoever of them comes first decides for all.
    async fn claim(&mut self, request: ClaimRequest) -> Result<Option<Result<Taken, Refusal>>, End> {
        let scheduler = &self.shared.scheduler;
        let claiming = match GATHERED.with_borrow_mut(|gathered| scheduler.gather(request, gathered)) {
            Ok(claiming) => claiming,
            Err(refusal) => return Ok(Some(Err(refusal))),
        };
        self.after_others().await;
        GATHERED.with_borrow_mut(|gathered| scheduler.decide_gathered(gathered));
        self.settle(claiming.taken()).await
    }

    /// Takes commands until something must be waited for. What is answered on the spot is.
    fn take(&mut self) -> Step {
        SEEN.with_borrow_mut(|seen| {
            let mut run = Run::Nothing;
            seen.clear();
            let Self {
                shared, parser, input, taken, round, answers, session, patience, room, exec_end, untold, ..
            } = self;
            while *round < TAKE_MAX && answers.bytes().len() < ANSWER_BYTES && session.over.is_none() {
                if *exec_end > 0 && *taken == *exec_end && !run.is_empty() {
                    // The answers of an `EXEC` leave together, and nothing that comes behind it has to do with them.
                    break;
                }
                let rest = &input[*taken..];
                let length = match parser.next(rest) {
                    Ok(Some(length)) => length,
                    Ok(None) => return run.step().unwrap_or(Step::Read),
                    Err(error) => {
                        return run.step().unwrap_or_else(|| {
                            answers.error("ERR", &format!("Protocol error: {error}"));
                            let is_http = error == ProtocolError::Http;
                            Step::End(End::By(if is_http { RespEnd::Http } else { RespEnd::Protocol }))
                        });
                    }
                };
                let args = parser.args(rest);
                let mut accept = || {
                    *taken += length;
                    *round += 1;
                    *patience = None;
                };
                let Some(name) = args.get(0) else {
                    accept();
                    continue;
                };
                let spec = commands::find(name).filter(|spec| spec.takes(args.len()));
                let command = spec.map_or(RespCommand::Unknown, |spec| spec.command);
                if let Some(transaction) = &mut session.transaction
                    && Transaction::takes(command)
                {
                    accept();
                    transaction.queue(command, &rest[..length], args, shared, answers);
                    continue;
                }
                let read = match command {
                    RespCommand::Claim if run.may_claim() => read::claim(args).map(Asked::Claim),
                    RespCommand::Release if run.may_release() => read::release(args).map(Asked::release),
                    // Its turn comes when the run is answered.
                    _ if !run.is_empty() => break,
                    RespCommand::Unknown => {
                        accept();
                        count(command, RespOutcome::Error, 1);
                        unknown(name, answers);
                        continue;
                    }
                    call if Call::is(call) => Call::read(call, args).map(Asked::Call),
                    RespCommand::Exec => {
                        accept();
                        let queued = session.exec(answers);
                        count(command, if queued.is_some() { RespOutcome::Ok } else { RespOutcome::Error }, 1);
                        if let Some(Transaction { frames, commands, room: more, .. }) = queued {
                            answers.array(commands);
                            more.into_iter().for_each(|more| merge(room, more));
                            *exec_end = frames.len();
                            untold.get_or_insert_default();
                            input.splice(..std::mem::take(taken), frames);
                        }
                        continue;
                    }
                    other => {
                        accept();
                        count(other, session.answer(other, &args, shared, answers), 1);
                        continue;
                    }
                };
                match read {
                    Err(_) if !run.is_empty() => break,
                    Err(failure) => {
                        accept();
                        fail(command, &failure, answers);
                    }
                    Ok(Asked::Call(_)) if !run.is_empty() => break,
                    Ok(Asked::Call(call)) => {
                        accept();
                        return Step::Call(call);
                    }
                    // Alone, as most are. One that waits must not keep the answers of others.
                    Ok(asked) if run.is_empty() && (rest.len() == length || asked.waits()) => {
                        accept();
                        return asked.step();
                    }
                    Ok(asked) if asked.waits() || !seen.insert(asked.hash()) => break,
                    Ok(asked) => {
                        accept();
                        run.push(asked);
                    }
                }
            }
            run.step().unwrap_or_else(|| session.over.take().map_or(Step::Write, Step::End))
        })
    }

    /// Waits for what was asked. What is answered already is written first, unless this is answered at once too. None: the
    /// deadline has passed.
    async fn settle<T>(&mut self, work: impl Future<Output = T>) -> Result<Option<T>, End> {
        // Claims are driven by the scheduler, not by this future: dropping it at the deadline leaves nothing half done.
        let mut work = pin!(work);
        if let Some(done) = work.as_mut().now_or_never() {
            return Ok(Some(done));
        }
        self.waited = true;
        self.write_before_waiting().await?;
        Ok(timeout(self.shared.bounds.timeout, work).await.ok())
    }

    fn claimed(&mut self, outcomes: &[Result<Taken, Refusal>]) {
        self.note(outcomes.iter().flatten());
        let answers = &mut self.answers;
        let mut done = 0;
        for outcome in outcomes {
            match outcome {
                Ok(taken) => {
                    done += 1;
                    answers.claim(&taken.claim);
                }
                Err(refusal) => fail(RespCommand::Claim, &refusal.clone().into(), answers),
            }
        }
        count(RespCommand::Claim, RespOutcome::Ok, done);
    }

    fn released(&mut self, outcomes: &[Result<bool, Refusal>]) {
        let answers = &mut self.answers;
        let mut done = 0;
        for outcome in outcomes {
            match outcome {
                Ok(was_held) => {
                    done += 1;
                    answers.integer(u64::from(*was_held));
                }
                Err(refusal) => fail(RespCommand::Release, &refusal.clone().into(), answers),
            }
        }
        count(RespCommand::Release, RespOutcome::Ok, done);
    }
}

pub(super) fn fail(command: RespCommand, failure: &Failure, answers: &mut Answers) {
    count(command, failure.resp(), 1);
    answers.failure(failure);
}

#[cold]
pub(super) fn unknown(name: &[u8], answers: &mut Answers) {
    match commands::find(name) {
        Some(spec) => answers.error("ERR", &spec.usage()),
        None => {
            let name = shown(name);
            let hint = "Hotpool assigns workers and keeps no values: COMMAND LIST names what it answers";
            answers.error("ERR", &format!("unknown command '{name}'. {hint}"));
        }
    }
}
