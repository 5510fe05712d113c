//! A connection on which many requests are under way at once: RESP, which Redis and Hotpool's own port speak.
//!
//! Requests are written in the order of their calls, and answers come in that order, so a queue of those who wait is all
//! that matches them. A connection that breaks fails all that are under way and is replaced by the next call.
//!
//! The harness shares its machine with what it loads, so there are two ways to write. One that *gathers* leaves the writing
//! to a task, which lets everybody who is about to send do so and then makes one system call of it: for many in flight. One
//! that does not writes from within the call: for one in flight, where a task more would be a switch more.

mod value;

use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use smallvec::SmallVec;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub(super) use self::value::{RespValue, encode_command};
use super::http_calls::target_error;
use super::stats::TargetError;

/// Longest wait for a connection or an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// What was answered: one value a command.
pub(super) type Replies = SmallVec<[RespValue; 1]>;

/// A connection that is opened anew when it breaks.
pub(super) struct RespPipeline {
    address: String,
    coalesces: bool,
    live: Mutex<Arc<LivePipeline>>,
    connecting: tokio::sync::Mutex<()>,
}

/// An open connection with its tasks, which end with it.
struct LivePipeline {
    wire: Arc<PipelineSocket>,
    tasks: [AbortHandle; 2],
}

impl Drop for LivePipeline {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

struct PipelineSocket {
    stream: TcpStream,
    state: Mutex<PipelineState>,
    written: Notify,
}

#[derive(Default)]
struct PipelineState {
    output: Vec<u8>,
    waiting: VecDeque<PipelineWaiter>,
    /// Why it is of no use any more.
    broken: Option<String>,
}

struct PipelineWaiter {
    expected: usize,
    replies: Replies,
    done: oneshot::Sender<Result<Replies, TargetError>>,
}

impl RespPipeline {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) async fn open(address: &str, gathers: bool) -> Result<Self, TargetError> {
        let live = Mutex::new(Arc::new(connect(address, gathers).await?));
        Ok(Self { address: address.to_owned(), coalesces: gathers, live, connecting: tokio::sync::Mutex::default() })
    }

    /// Sends what `encode` writes, which must be `commands` commands, and returns their answers.
    ///
    /// # Errors
    /// The connection broke, or nothing came for long. An error that the server answers is a [`Value::Error`].
    pub(super) async fn call(
        &self,
        commands: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Replies, TargetError> {
        let live = self.ensure_live().await?;
        let (done, answer) = oneshot::channel();
        {
            let mut state = live.wire.state();
            if let Some(why) = &state.broken {
                return Err(target_error(why.clone(), false));
            }
            let idle = state.output.is_empty();
            encode(&mut state.output);
            state.waiting.push_back(PipelineWaiter { expected: commands, replies: SmallVec::new(), done });
            if !self.coalesces && idle {
                live.wire.write_some(&mut state);
            }
            if !state.output.is_empty() {
                live.wire.written.notify_one();
            }
        }
        answer.await.unwrap_or_else(|_| Err(target_error("the connection was closed".into(), true)))
    }

    /// One command of these words.
    ///
    /// # Errors
    /// As [`Self::call`], and what the server refuses.
    pub(super) async fn execute(&self, words: &[&[u8]]) -> Result<RespValue, TargetError> {
        let replies = self.call(1, |out| encode_command(out, words)).await?;
        replies.into_iter().next().unwrap_or(RespValue::Nil).into_result()
    }

    async fn ensure_live(&self) -> Result<Arc<LivePipeline>, TargetError> {
        let present = || {
            let live = Arc::clone(&self.live.lock());
            let whole = live.wire.state().broken.is_none();
            whole.then_some(live)
        };
        if let Some(live) = present() {
            return Ok(live);
        }
        let _one = self.connecting.lock().await;
        if let Some(live) = present() {
            return Ok(live);
        }
        let live = Arc::new(connect(&self.address, self.coalesces).await?);
        *self.live.lock() = Arc::clone(&live);
        Ok(live)
    }
}

async fn connect(address: &str, gathers: bool) -> Result<LivePipeline, TargetError> {
    let connected = timeout(RESPONSE_TIMEOUT, TcpStream::connect(address)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(target_error(format!("cannot connect to {address}: {error}"), false)),
        Err(_elapsed) => return Err(target_error(format!("cannot connect to {address}: no answer"), false)),
    };
    // Else small requests would wait for each other's acknowledgements; it only fails on a connection that is gone.
    let _ = stream.set_nodelay(true);
    let wire = Arc::new(PipelineSocket { stream, state: Mutex::default(), written: Notify::new() });
    let tasks = [
        tokio::spawn(write(Arc::clone(&wire), gathers)).abort_handle(),
        tokio::spawn(read(Arc::clone(&wire))).abort_handle(),
    ];
    Ok(LivePipeline { wire, tasks })
}

impl PipelineSocket {
    fn state(&self) -> MutexGuard<'_, PipelineState> {
        // Every change is whole: a panic elsewhere leaves nothing half done.
        self.state.lock()
    }

    /// Writes as much as the socket takes at once.
    fn write_some(&self, state: &mut PipelineState) {
        while !state.output.is_empty() {
            match self.stream.try_write(&state.output) {
                Ok(bytes) => drop(state.output.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return state.fail(&error.to_string()),
            }
        }
    }

    fn fail(&self, why: &str) {
        self.state().fail(why);
        self.written.notify_one();
    }
}

impl PipelineState {
    fn fail(&mut self, why: &str) {
        let why = format!("connection: {why}");
        for waiting in self.waiting.drain(..) {
            // Whoever asked may have given up.
            let _ = waiting.done.send(Err(target_error(why.clone(), true)));
        }
        self.output.clear();
        self.broken = Some(why);
    }
}

async fn write(wire: Arc<PipelineSocket>, gathers: bool) {
    loop {
        wire.written.notified().await;
        if gathers {
            // Whoever was woken with the one who woke this task has something to send as well.
            tokio::task::yield_now().await;
        }
        loop {
            let left = {
                let mut state = wire.state();
                wire.write_some(&mut state);
                if state.broken.is_some() {
                    return;
                }
                !state.output.is_empty()
            };
            if !left {
                break;
            }
            if let Err(error) = wire.stream.ready(Interest::WRITABLE).await {
                return wire.fail(&error.to_string());
            }
        }
    }
}

async fn read(wire: Arc<PipelineSocket>) {
    let why = match read_all(&wire).await {
        Ok(()) => "closed by the other side".to_owned(),
        Err(why) => why,
    };
    wire.fail(&why);
}

/// Until the other side closes.
async fn read_all(wire: &PipelineSocket) -> Result<(), String> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut values = Vec::new();
    loop {
        match timeout(RESPONSE_TIMEOUT, wire.stream.ready(Interest::READABLE)).await {
            Ok(ready) => drop(ready.map_err(|error| error.to_string())?),
            Err(_elapsed) if wire.state().waiting.is_empty() => continue,
            Err(_elapsed) => return Err(format!("no answer within {} s", RESPONSE_TIMEOUT.as_secs())),
        }
        input.reserve(READ_BYTES);
        match wire.stream.try_read_buf(&mut input) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.to_string()),
        }
        value::decode_values(&mut input, &mut values)?;
        let mut done = Vec::new();
        {
            let mut state = wire.state();
            for value in values.drain(..) {
                let waiting = state.waiting.front_mut().ok_or("an answer that nobody asked for")?;
                waiting.replies.push(value);
                if waiting.replies.len() == waiting.expected {
                    done.extend(state.waiting.pop_front());
                }
            }
        }
        for PipelineWaiter { replies, done, .. } in done {
            // Whoever asked may have given up.
            let _ = done.send(Ok(replies));
        }
    }
}
