//! The segment that the log will go on in, prepared before it is needed, and the segments that the log no longer needs.
//!
//! A segment is full of bytes that are on the disk, zeros or old frames, before the first frame goes there. So a frame changes
//! no metadata of the file, and one sync makes it durable. Segments disappear one by one, the oldest first, each durably
//! before the next: a number that is missing between two segments is always a loss.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::super::data_dir::log_names::{FREE_NAME, NEW_NAME, segment_name};
use super::disk::{DiskFile, StoreDisk};
use super::segments::{SegmentSettings, SegmentUpkeep};

/// Size of the blocks in which zeros are written, in bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// Segment whose bytes are on the disk, and its name too.
#[derive(Debug)]
pub(super) struct SpareSegment {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) size_bytes: u64,
}

/// Work of the upkeep.
#[derive(Debug, Clone, Copy)]
enum UpkeepTask {
    /// Makes the segment with this number, of at least this size.
    Prepare { number: u64, size_bytes: u64 },
    /// Removes a segment that the log no longer needs, or keeps it for the next one.
    Free { number: u64 },
}

/// Upkeep of the segments on a disk.
#[derive(Debug)]
struct SegmentKeeper {
    disk: Arc<dyn StoreDisk>,
    /// Size of the file that waits to be used again, in bytes.
    free_bytes: Option<u64>,
    /// Segments that could not be removed yet, the oldest first.
    unremoved: VecDeque<u64>,
}

impl SegmentKeeper {
    fn prepare(&mut self, number: u64, size_bytes: u64) -> io::Result<SpareSegment> {
        let name = segment_name(number);
        if let Some(free_bytes) = self.free_bytes.filter(|&free_bytes| free_bytes >= size_bytes) {
            self.free_bytes = None;
            self.disk.rename(FREE_NAME, &name)?;
            let file = self.disk.open(&name)?;
            self.disk.sync_names()?;
            return Ok(SpareSegment { file, size_bytes: free_bytes });
        }
        let made = self.create(&name, size_bytes);
        if made.is_err() {
            // On a full disk it would take what others need, for nothing.
            let _ = self.disk.remove(NEW_NAME);
        }
        made
    }

    fn create(&self, name: &str, size_bytes: u64) -> io::Result<SpareSegment> {
        let file = self.disk.create(NEW_NAME)?;
        let block = vec![0; BLOCK_BYTES];
        let mut at = 0;
        while at < size_bytes {
            let bytes = (size_bytes - at).min(BLOCK_BYTES as u64);
            file.write_at(at, &block[..bytes as usize])?;
            at += bytes;
        }
        file.sync()?;
        self.disk.rename(NEW_NAME, name)?;
        self.disk.sync_names()?;
        Ok(SpareSegment { file, size_bytes })
    }

    fn free(&mut self, number: u64) {
        self.unremoved.push_back(number);
        while let Some(&oldest) = self.unremoved.front() {
            if let Err(error) = self.remove(oldest) {
                // The next call tries again; until then the disk has a segment too many.
                tracing::warn!(segment = oldest, %error, "a segment of the log cannot be removed");
                break;
            }
            self.unremoved.pop_front();
        }
    }

    fn remove(&mut self, number: u64) -> io::Result<()> {
        let name = segment_name(number);
        match self.disk.open(&name).and_then(|file| file.size_bytes()) {
            // Larger than the one that is kept, so it is more likely to be of use.
            Ok(size_bytes) if self.free_bytes.is_none_or(|kept_bytes| kept_bytes < size_bytes) => {
                self.disk.rename(&name, FREE_NAME)?;
                self.free_bytes = Some(size_bytes);
            }
            Ok(_) => self.disk.remove(&name)?,
            // An earlier attempt came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.disk.sync_names()
    }
}

/// Spare segment of a log, which is prepared while the log fills the one before.
#[derive(Debug)]
pub(super) struct SegmentSupply {
    upkeep: UpkeepRunner,
    settings: SegmentSettings,
    /// Number of the segment that is being prepared, if any is.
    requested: Option<u64>,
}

#[derive(Debug)]
enum UpkeepRunner {
    Inline(SegmentKeeper),
    Background(UpkeepThread),
}

#[derive(Debug)]
struct UpkeepThread {
    tasks: Option<Sender<UpkeepTask>>,
    prepared: Receiver<io::Result<SpareSegment>>,
    thread: Option<JoinHandle<()>>,
}

impl UpkeepThread {
    #[allow(clippy::disallowed_methods, reason = "a simulation prepares segments inline")]
    fn spawn(mut keeper: SegmentKeeper) -> io::Result<Self> {
        let (tasks, received) = channel();
        let (send, prepared) = channel();
        let work = move || {
            for task in received {
                match task {
                    UpkeepTask::Free { number } => keeper.free(number),
                    UpkeepTask::Prepare { number, size_bytes } => {
                        if send.send(keeper.prepare(number, size_bytes)).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("hotpool-log".to_owned()).spawn(work)?;
        Ok(Self { tasks: Some(tasks), prepared, thread: Some(thread) })
    }

    fn send(&self, task: UpkeepTask) {
        // The thread ends only when the channel is dropped, or with a panic, which the next preparation reports.
        let _ = self.tasks.as_ref().map(|tasks| tasks.send(task));
    }
}

impl Drop for UpkeepThread {
    fn drop(&mut self) {
        drop(self.tasks.take());
        // The lock of the directory must not be released before the last change of its names.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl SegmentSupply {
    /// Starts the upkeep on a disk with at most one free segment, of `free_bytes`.
    pub(super) fn start(
        disk: Arc<dyn StoreDisk>,
        settings: SegmentSettings,
        free_bytes: Option<u64>,
    ) -> io::Result<Self> {
        let keeper = SegmentKeeper { disk, free_bytes, unremoved: VecDeque::new() };
        let upkeep = match settings.upkeep {
            SegmentUpkeep::Inline => UpkeepRunner::Inline(keeper),
            SegmentUpkeep::Background => UpkeepRunner::Background(UpkeepThread::spawn(keeper)?),
        };
        Ok(Self { upkeep, settings, requested: None })
    }

    /// Begins to prepare a segment, if that can be done in the background.
    pub(super) fn request(&mut self, number: u64) {
        if let UpkeepRunner::Background(thread) = &self.upkeep
            && self.requested.is_none()
        {
            thread.send(UpkeepTask::Prepare { number, size_bytes: self.settings.segment_bytes(number) });
            self.requested = Some(number);
        }
    }

    /// Takes the segment with this number, for frames of up to `frame_bytes`. Waits until it is prepared.
    ///
    /// # Errors
    /// Failure of the disk; the next call tries again.
    pub(super) fn take(&mut self, number: u64, frame_bytes: u64) -> io::Result<SpareSegment> {
        let size_bytes = self.settings.segment_bytes(number).max(frame_bytes);
        // What failed in the background, perhaps long ago, is tried again.
        if self.requested.take() == Some(number)
            && let Ok(spare) = self.receive()
            && spare.size_bytes >= size_bytes
        {
            return Ok(spare);
        }
        match &mut self.upkeep {
            UpkeepRunner::Inline(keeper) => keeper.prepare(number, size_bytes),
            UpkeepRunner::Background(thread) => {
                thread.send(UpkeepTask::Prepare { number, size_bytes });
                self.receive()
            }
        }
    }

    fn receive(&self) -> io::Result<SpareSegment> {
        match &self.upkeep {
            UpkeepRunner::Background(thread) => {
                thread.prepared.recv().unwrap_or_else(|_| Err(io::Error::other("the thread of the log's upkeep ended")))
            }
            UpkeepRunner::Inline(_) => unreachable!("nothing is requested"),
        }
    }

    /// Frees a segment, the oldest of the log.
    pub(super) fn free(&mut self, number: u64) {
        match &mut self.upkeep {
            UpkeepRunner::Inline(keeper) => keeper.free(number),
            UpkeepRunner::Background(thread) => thread.send(UpkeepTask::Free { number }),
        }
    }
}
