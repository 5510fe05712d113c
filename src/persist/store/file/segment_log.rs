//! The log: appends frames, each with one write and one sync, and goes on in the next segment when one is full.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::super::data_dir::log_names::{segment_name, unsynced_name};
use super::disk::{DiskFile, StoreDisk};
use super::frame::{FrameBuffer, FrameLink, HEADER_BYTES};
use super::segments::LogSegment;
use super::spare_segment::{SegmentSupply, SpareSegment};

/// Failure of an append.
#[derive(Debug)]
pub(super) enum AppendError {
    /// Write that failed: the frame does not count as written, and the same one may be appended again.
    Unwritten(io::Error),
    /// Next segment that could not be prepared. The log is as it was.
    NoSegment(io::Error),
    /// Sync that failed: what it covered may be lost although it is read back. The segment was set aside, and nothing more may
    /// be appended. Description for people.
    Unsynced(String),
}

/// End of a log that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogEnd {
    /// Number of the segment in which the log ends.
    pub(super) segment: u64,
    /// Offset in that segment of the next frame, in bytes.
    pub(super) offset: u64,
    /// Sequence number of the next frame.
    pub(super) next_sequence: u64,
    /// Checksum of the last frame's header.
    pub(super) previous: u64,
}

/// Log that is open for appending.
#[derive(Debug)]
pub(super) struct SegmentLog {
    disk: Arc<dyn StoreDisk>,
    seed: u64,
    supply: SegmentSupply,
    /// Segments, the oldest first; the last one is written.
    segments: VecDeque<LogSegment>,
    file: Arc<dyn DiskFile>,
    /// Size of the last segment, in bytes.
    size_bytes: u64,
    end: LogEnd,
    /// Whether a write at the end failed, which may have left a whole frame there all the same.
    has_remains: bool,
}

impl SegmentLog {
    /// Opens the log that was read up to `end`.
    ///
    /// # Errors
    /// Failure of the disk.
    pub(super) fn open(
        disk: Arc<dyn StoreDisk>,
        seed: u64,
        supply: SegmentSupply,
        segments: VecDeque<LogSegment>,
        end: LogEnd,
    ) -> io::Result<Self> {
        assert_eq!(
            segments.back().map(|segment| segment.number),
            Some(end.segment),
            "the log ends in its last segment"
        );
        let file = disk.open(&segment_name(end.segment))?;
        let size_bytes = file.size_bytes()?;
        Ok(Self { disk, seed, supply, segments, file, size_bytes, end, has_remains: false })
    }

    /// Segments, the oldest first.
    pub(super) const fn segments(&self) -> &VecDeque<LogSegment> {
        &self.segments
    }

    /// Sequence number of the next frame.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.end.next_sequence
    }

    /// Number of the segment that a frame with this sequence number is in, or will be.
    pub(super) fn segment_of(&self, sequence: u64) -> u64 {
        let after = self.segments.partition_point(|segment| segment.first_sequence <= sequence);
        self.segments[after.saturating_sub(1)].number
    }

    /// Appends a frame durably; frames before `needed_from` are no longer needed. Returns the number of its segment and its
    /// offset there, in bytes.
    ///
    /// # Errors
    /// [`AppendError`]; the frame is none of the log.
    pub(super) fn append(&mut self, frame: &mut FrameBuffer, needed_from: u64) -> Result<(u64, u64), AppendError> {
        let frame_bytes = frame.frame_bytes() as u64;
        if self.end.offset + frame_bytes > self.size_bytes {
            self.begin_segment(frame_bytes)?;
        }
        let LogEnd { segment, next_sequence, previous, .. } = self.end;
        let (header, bytes) =
            frame.seal(FrameLink { segment, sequence: next_sequence, needed_from, previous }, self.seed);
        self.has_remains = true;
        self.file.write_at(self.end.offset, bytes).map_err(AppendError::Unwritten)?;
        self.has_remains = false;
        self.sync().map_err(AppendError::Unsynced)?;
        let location = (self.end.segment, self.end.offset);
        self.end.offset += bytes.len() as u64;
        self.end.next_sequence += 1;
        self.end.previous = header.checksum;
        // Not earlier: a small store stays small.
        if self.end.offset > self.size_bytes / 2 {
            self.supply.request(self.end.segment + 1);
        }
        Ok(location)
    }

    /// Syncs the last segment.
    ///
    /// # Errors
    /// Description of the failure, for people. The segment was set aside: the next start writes it anew.
    pub(super) fn sync(&self) -> Result<(), String> {
        self.file.sync().map_err(|error| {
            let (name, unsynced) = (segment_name(self.end.segment), unsynced_name(self.end.segment));
            let path = self.disk.path(&name);
            let failure = format!("a sync of {path} failed ({error}), so its last records may not be on the disk");
            match self.disk.rename(&name, &unsynced) {
                Ok(()) => format!("{failure}: repair the disk and restart, which writes the file anew"),
                Err(error) => format!("{failure}, and it could not be set aside ({error}): restart the machine"),
            }
        })
    }

    /// Goes on in the next segment, which has space for a frame of this size.
    fn begin_segment(&mut self, frame_bytes: u64) -> Result<(), AppendError> {
        let number = self.end.segment + 1;
        if self.has_remains {
            // Or a start would find the number of the next frame twice.
            self.file.write_at(self.end.offset, &[0; HEADER_BYTES]).map_err(AppendError::Unwritten)?;
            self.sync().map_err(AppendError::Unsynced)?;
            self.has_remains = false;
        }
        let SpareSegment { file, size_bytes } =
            self.supply.take(number, frame_bytes).map_err(AppendError::NoSegment)?;
        (self.file, self.size_bytes) = (file, size_bytes);
        (self.end.segment, self.end.offset) = (number, 0);
        self.segments.push_back(LogSegment { number, first_sequence: self.end.next_sequence });
        Ok(())
    }

    /// Removes the segments before the one with this number, except the last.
    pub(super) fn free_before(&mut self, number: u64) {
        while self.segments.len() > 1 && self.segments[0].number < number {
            self.supply.free(self.segments[0].number);
            self.segments.pop_front();
        }
    }
}
