//! Trace of a run: a hash of every step, and lines that people read.

use std::hash::Hasher as _;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

/// Lines of a trace that are kept, the last ones.
const LINES_MAX: usize = 100_000;

/// Trace of one run.
pub struct Trace {
    state: Mutex<TraceState>,
    keeps_lines: bool,
}

struct TraceState {
    hash: Box<Xxh3>,
    lines: std::collections::VecDeque<String>,
}

impl Trace {
    /// Creates a trace that keeps its lines, or only the hash of them.
    pub fn new(keeps_lines: KeepLines) -> Self {
        let state = TraceState { hash: Box::default(), lines: std::collections::VecDeque::new() };
        Self { state: Mutex::new(state), keeps_lines: keeps_lines == KeepLines::Yes }
    }

    /// Adds a step to the hash.
    pub fn note_step(&self, kind: u8, number: u64, now_ns: u64) {
        let mut state = self.state.lock();
        state.hash.write_u8(kind);
        state.hash.write_u64(number);
        state.hash.write_u64(now_ns);
    }

    /// Adds a line to the hash, and keeps it.
    pub fn line(&self, now_ns: u64, text: impl FnOnce() -> String) {
        let text = text();
        self.state.lock().hash.write(text.as_bytes());
        self.keep(now_ns, &text);
    }

    /// Keeps a line that the hash leaves out, because only some runs have it.
    pub fn keep(&self, now_ns: u64, text: &str) {
        if self.keeps_lines {
            let mut state = self.state.lock();
            if state.lines.len() == LINES_MAX {
                state.lines.pop_front();
            }
            state.lines.push_back(format!("{:>12.6} s  {text}", now_ns as f64 / 1e9));
        }
    }

    pub fn hash(&self) -> u64 {
        self.state.lock().hash.digest()
    }

    pub fn lines(&self) -> Vec<String> {
        self.state.lock().lines.iter().cloned().collect()
    }
}

/// Log of the service, until it is moved into a trace.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Writer of the log, for a trace that people read.
pub struct LogWriter;

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines that the service has logged since the last call.
pub fn take_log() -> Option<String> {
    let mut log = LOG.lock();
    (!log.is_empty()).then(|| String::from_utf8_lossy(&std::mem::take(&mut *log)).trim_end().to_owned())
}

/// Whether a trace keeps its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepLines {
    Yes,
    No,
}
