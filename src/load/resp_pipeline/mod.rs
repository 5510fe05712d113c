//! Pipelined RESP connection, for Redis and for the service's RESP listener.
//!
//! Commands are written in call order, and replies arrive in that order, so a queue of waiting calls is enough to
//! match them. A broken connection fails every call in flight; the next call replaces it.
//!
//! The harness shares the machine with its target, so there are two write modes. [`WriteMode::Coalesced`] leaves the
//! write to a task that first lets other callers append, and then makes one system call for all: for many calls in
//! flight. [`WriteMode::Immediate`] writes within the call: for one call in flight, where another task would mean
//! another context switch.

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

/// Longest wait for a connection or a reply.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of bytes read at a time.
const READ_BYTES: usize = 64 << 10;

/// Rule that decides when a pipeline writes commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Writes within the call that sends the command.
    Immediate,
    /// Writes from a task, together with the commands of other callers.
    Coalesced,
}

/// Reasons why a connection becomes unusable while reading.
#[derive(Debug, thiserror::Error)]
enum PipelineError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Decode(#[from] value::RespDecodeError),
    #[error("no reply within {} s", RESPONSE_TIMEOUT.as_secs())]
    Timeout,
    #[error("a reply without a command")]
    UnexpectedReply,
}

/// Replies of a call, one value per command.
pub(super) type PipelineReplies = SmallVec<[RespValue; 1]>;

/// Pipelined connection that reconnects when it breaks.
pub(super) struct RespPipeline {
    address: String,
    mode: WriteMode,
    connection: Mutex<Arc<LivePipeline>>,
    connecting: tokio::sync::Mutex<()>,
}

/// Open connection with its reader and writer tasks, which end with it.
struct LivePipeline {
    socket: Arc<PipelineSocket>,
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
    /// Reason why the connection is unusable, once it is.
    broken: Option<String>,
}

struct PipelineWaiter {
    expected: usize,
    replies: PipelineReplies,
    done: oneshot::Sender<Result<PipelineReplies, TargetError>>,
}

impl RespPipeline {
    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// Fails if nothing listens there.
    pub(super) async fn open(address: &str, mode: WriteMode) -> Result<Self, TargetError> {
        let connection = Mutex::new(Arc::new(connect(address, mode).await?));
        Ok(Self { address: address.to_owned(), mode, connection, connecting: tokio::sync::Mutex::default() })
    }

    /// Sends the commands that `encode` appends, `commands` in number, and returns their replies.
    ///
    /// # Errors
    /// Fails if the connection breaks or no reply arrives in time. Error replies of the server are returned as
    /// [`RespValue::Error`].
    pub(super) async fn call(
        &self,
        commands: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<PipelineReplies, TargetError> {
        let connection = self.ensure_live().await?;
        let (done, reply) = oneshot::channel();
        {
            let mut state = connection.socket.state();
            if let Some(reason) = &state.broken {
                return Err(target_error(reason.clone(), false));
            }
            let idle = state.output.is_empty();
            encode(&mut state.output);
            state.waiting.push_back(PipelineWaiter { expected: commands, replies: SmallVec::new(), done });
            if self.mode == WriteMode::Immediate && idle {
                connection.socket.write_some(&mut state);
            }
            if !state.output.is_empty() {
                connection.socket.written.notify_one();
            }
        }
        reply.await.unwrap_or_else(|_| Err(target_error("the connection was closed".into(), true)))
    }

    /// Sends one command made of `words`.
    ///
    /// # Errors
    /// Fails like [`Self::call`], and if the server replies with an error.
    pub(super) async fn execute(&self, words: &[&[u8]]) -> Result<RespValue, TargetError> {
        let replies = self.call(1, |out| encode_command(out, words)).await?;
        replies.into_iter().next().unwrap_or(RespValue::Nil).into_result()
    }

    async fn ensure_live(&self) -> Result<Arc<LivePipeline>, TargetError> {
        let usable_connection = || {
            let connection = Arc::clone(&self.connection.lock());
            let usable = connection.socket.state().broken.is_none();
            usable.then_some(connection)
        };
        if let Some(connection) = usable_connection() {
            return Ok(connection);
        }
        let _one = self.connecting.lock().await;
        if let Some(connection) = usable_connection() {
            return Ok(connection);
        }
        let connection = Arc::new(connect(&self.address, self.mode).await?);
        *self.connection.lock() = Arc::clone(&connection);
        Ok(connection)
    }
}

async fn connect(address: &str, mode: WriteMode) -> Result<LivePipeline, TargetError> {
    let stream = timeout(RESPONSE_TIMEOUT, TcpStream::connect(address)).await;
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(target_error(format!("cannot connect to {address}: {error}"), false)),
        Err(_elapsed) => return Err(target_error(format!("cannot connect to {address}: no reply"), false)),
    };
    // Without this, small requests would wait for delayed acknowledgements. It fails only on a closed connection.
    let _ = stream.set_nodelay(true);
    let socket = Arc::new(PipelineSocket { stream, state: Mutex::default(), written: Notify::new() });
    let tasks = [
        tokio::spawn(write(Arc::clone(&socket), mode)).abort_handle(),
        tokio::spawn(read(Arc::clone(&socket))).abort_handle(),
    ];
    Ok(LivePipeline { socket, tasks })
}

impl PipelineSocket {
    fn state(&self) -> MutexGuard<'_, PipelineState> {
        self.state.lock()
    }

    /// Writes as much output as the socket accepts at once.
    fn write_some(&self, state: &mut PipelineState) {
        while !state.output.is_empty() {
            match self.stream.try_write(&state.output) {
                Ok(bytes) => drop(state.output.drain(..bytes)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return state.fail(&error.to_string()),
            }
        }
    }

    fn fail(&self, reason: &str) {
        self.state().fail(reason);
        self.written.notify_one();
    }
}

impl PipelineState {
    fn fail(&mut self, reason: &str) {
        let reason = format!("connection: {reason}");
        for waiting in self.waiting.drain(..) {
            // The caller may have given up.
            let _ = waiting.done.send(Err(target_error(reason.clone(), true)));
        }
        self.output.clear();
        self.broken = Some(reason);
    }
}

async fn write(socket: Arc<PipelineSocket>, mode: WriteMode) {
    loop {
        socket.written.notified().await;
        if mode == WriteMode::Coalesced {
            // Tasks that were woken together with the caller may have commands to send as well.
            tokio::task::yield_now().await;
        }
        loop {
            let pending = {
                let mut state = socket.state();
                socket.write_some(&mut state);
                if state.broken.is_some() {
                    return;
                }
                !state.output.is_empty()
            };
            if !pending {
                break;
            }
            if let Err(error) = socket.stream.ready(Interest::WRITABLE).await {
                return socket.fail(&error.to_string());
            }
        }
    }
}

async fn read(socket: Arc<PipelineSocket>) {
    let reason = match read_all(&socket).await {
        Ok(()) => "closed by the server".to_owned(),
        Err(error) => error.to_string(),
    };
    socket.fail(&reason);
}

/// Reads replies until the server closes the connection.
async fn read_all(socket: &PipelineSocket) -> Result<(), PipelineError> {
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut replies = Vec::new();
    loop {
        match timeout(RESPONSE_TIMEOUT, socket.stream.ready(Interest::READABLE)).await {
            Ok(ready) => drop(ready?),
            Err(_elapsed) if socket.state().waiting.is_empty() => continue,
            Err(_elapsed) => return Err(PipelineError::Timeout),
        }
        input.reserve(READ_BYTES);
        match socket.stream.try_read_buf(&mut input) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        value::decode_values(&mut input, &mut replies)?;
        let mut done = Vec::new();
        {
            let mut state = socket.state();
            for value in replies.drain(..) {
                let waiting = state.waiting.front_mut().ok_or(PipelineError::UnexpectedReply)?;
                waiting.replies.push(value);
                if waiting.replies.len() == waiting.expected {
                    done.extend(state.waiting.pop_front());
                }
            }
        }
        for PipelineWaiter { replies, done, .. } in done {
            // The caller may have given up.
            let _ = done.send(Ok(replies));
        }
    }
}
