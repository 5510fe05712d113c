//! Log of a bare server: each round writes the records of all callers that wait, and syncs them once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::EchoState;

/// Size of a record: about that of a claim in the service's log, in bytes.
const RECORD_BYTES: usize = 300;
/// Size of the file, whose bytes are on the disk before it is used.
const FILE_BYTES: u64 = 64 << 20;

/// Callers of the next round.
#[derive(Default)]
struct NextRound {
    records: usize,
    callers: Vec<oneshot::Sender<()>>,
    /// Whether a caller writes a round.
    is_writing: bool,
}

pub(super) struct EchoLog {
    file: File,
    /// Offset of the next round, which only its writer changes.
    offset_bytes: AtomicU64,
    next: Mutex<NextRound>,
}

impl EchoLog {
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for offset in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, offset)?;
        }
        file.sync_all()?;
        Ok(Self { file, offset_bytes: AtomicU64::new(0), next: Mutex::default() })
    }

    /// Writes so many records with one write, and syncs them.
    fn write(&self, records: usize) {
        let bytes = vec![0x5a; records * RECORD_BYTES];
        let mut offset = self.offset_bytes.load(Ordering::Relaxed);
        if offset + bytes.len() as u64 > FILE_BYTES {
            offset = 0;
        }
        if let Err(error) = self.file.write_all_at(&bytes, offset).and_then(|()| self.file.sync_data()) {
            // What is answered and not on the disk is no limit of anything.
            eprintln!("error: the log cannot be written: {error}");
            std::process::exit(1);
        }
        self.offset_bytes.store(offset + bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Writes and syncs so many records of the caller, with those of others that wait.
pub(super) async fn append(state: &Arc<EchoState>, records: usize) {
    let Some(log) = &state.log else { return };
    let (sender, synced) = oneshot::channel();
    let writes = {
        let mut next = log.next.lock();
        next.records += records;
        next.callers.push(sender);
        !std::mem::replace(&mut next.is_writing, true)
    };
    if writes {
        write_round(state);
    }
    // The round's writer answers, or the process ends.
    let _ = synced.await;
}

/// Writes the next round on this thread, and has a task write the one after it if somebody waits by then.
fn write_round(state: &Arc<EchoState>) {
    let Some(log) = &state.log else { return };
    let (records, callers) = {
        let mut next = log.next.lock();
        (std::mem::take(&mut next.records), std::mem::take(&mut next.callers))
    };
    tokio::task::block_in_place(|| log.write(records));
    for caller in callers {
        // It may have left.
        let _ = caller.send(());
    }
    let mut next = log.next.lock();
    next.is_writing = next.records > 0;
    if next.is_writing {
        let state = Arc::clone(state);
        tokio::spawn(async move { write_round(&state) });
    }
}
