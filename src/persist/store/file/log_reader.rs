//! Reading of the log: its frames in order, what of them cannot be read, and where it ends.

use std::io;

use bytes::Bytes;

use super::super::DamagedRecord;
use super::super::data_dir::log_names::segment_name;
use super::disk::{StoreDisk, in_file};
use super::frame::{ALIGNMENT, FrameHeader, HEADER_BYTES};
use super::segment_log::LogEnd;
use super::segments::LogSegment;

/// Part of the log.
#[derive(Debug)]
pub(super) enum LogItem {
    /// Frame whose header is valid. If its contents are damaged, their records show it.
    Frame(LogFrame),
    /// Frames of which nothing can be read. The number is that of the last of them.
    Unreadable(u64, DamagedRecord),
}

/// Frame of the log.
#[derive(Debug)]
pub(super) struct LogFrame {
    /// Number of the frame.
    pub(super) sequence: u64,
    /// Number of its segment.
    pub(super) segment: u64,
    /// Offset of its contents in the segment, in bytes.
    pub(super) offset: u64,
    /// Records of the frame.
    pub(super) contents: Bytes,
}

/// Extent of a log that was read.
#[derive(Debug)]
pub(super) struct LogExtent {
    /// Segments with frames, the oldest first.
    pub(super) segments: Vec<LogSegment>,
    /// End of the log; none if it has no frame.
    pub(super) end: Option<LogEnd>,
}

/// Frame that is passed on once the next one confirms it: the last one may be unfinished.
struct UnconfirmedFrame {
    frame: LogFrame,
    header: FrameHeader,
    /// Offset of the header in the segment, in bytes.
    start: u64,
    is_whole: bool,
}

/// Reads the segments with these numbers, in order, up to the frame with the number `limit`, which is not read.
///
/// A frame that cannot be read is damage if a later one can be, or if it is below the limit. Otherwise it is the unfinished
/// end of the log: one call of the store is written and synced before the next begins.
///
/// # Errors
/// Failure of the disk.
pub(super) fn read_log(
    disk: &dyn StoreDisk,
    seed: u64,
    numbers: &[u64],
    limit: Option<u64>,
    visit: &mut dyn FnMut(LogItem),
) -> io::Result<LogExtent> {
    let mut reader = LogReader { seed, limit, last: None, first_sequence: None, segments: Vec::new(), visit };
    for &number in numbers {
        let file = disk.open(&segment_name(number))?;
        let mut bytes = vec![0; usize::try_from(file.size_bytes()?).map_err(io::Error::other)?];
        let length = file.read_at(0, &mut bytes).map_err(in_file(disk, &segment_name(number)))?;
        bytes.truncate(length);
        reader.read_segment(number, &Bytes::from(bytes));
    }
    Ok(reader.finish())
}

struct LogReader<'a> {
    seed: u64,
    limit: Option<u64>,
    last: Option<UnconfirmedFrame>,
    /// Number of the first frame that was found.
    first_sequence: Option<u64>,
    segments: Vec<LogSegment>,
    visit: &'a mut dyn FnMut(LogItem),
}

impl LogReader<'_> {
    fn read_segment(&mut self, number: u64, bytes: &Bytes) {
        let mut offset = 0;
        while let Some((start, header)) = self.find_header(number, bytes, offset) {
            if self.limit.is_some_and(|limit| header.sequence >= limit) {
                return;
            }
            self.first_sequence.get_or_insert(header.sequence);
            if self.segments.last().is_none_or(|segment| segment.number != number) {
                self.segments.push(LogSegment { number, first_sequence: header.sequence });
            }
            let content_start = (start + HEADER_BYTES).min(bytes.len());
            let content_end = (content_start + header.content_bytes).min(bytes.len());
            let contents = bytes.slice(content_start..content_end);
            let is_whole = header.matches(&contents, self.seed);
            let frame = LogFrame { sequence: header.sequence, segment: number, offset: content_start as u64, contents };
            self.confirm_last(&header);
            self.last = Some(UnconfirmedFrame { frame, header, start: start as u64, is_whole });
            offset = start + header.frame_bytes();
        }
    }

    /// Next header at or after an offset that belongs to a later frame than the last. A frame that is not whole may be the
    /// remains of a call that failed, whose frame was written again in the next segment because another one did not fit here.
    fn find_header(&self, segment: u64, bytes: &[u8], offset: usize) -> Option<(usize, FrameHeader)> {
        let expected = self.last.as_ref().map_or(0, |last| last.frame.sequence + u64::from(last.is_whole));
        (offset..bytes.len().saturating_sub(HEADER_BYTES - 1)).step_by(ALIGNMENT).find_map(|at| {
            let header = FrameHeader::decode(&bytes[at..], self.seed, segment)?;
            (header.sequence >= expected).then_some((at, header))
        })
    }

    /// Passes on the last frame, and what is missing between it and the next one.
    fn confirm_last(&mut self, next: &FrameHeader) {
        let Some(UnconfirmedFrame { frame, header, .. }) = self.last.take() else { return };
        let sequence = frame.sequence;
        if next.sequence == sequence {
            // The remains of a call that failed.
        } else if next.sequence == sequence + 1 {
            let is_followed = next.previous == header.checksum;
            (self.visit)(match is_followed {
                true => LogItem::Frame(frame),
                false => LogItem::Unreadable(sequence, DamagedRecord::OtherFrame),
            });
        } else {
            (self.visit)(LogItem::Frame(frame));
            (self.visit)(LogItem::Unreadable(next.sequence - 1, DamagedRecord::Missing));
        }
    }

    fn finish(mut self) -> LogExtent {
        let Some(UnconfirmedFrame { frame, header, start, is_whole }) = self.last.take() else {
            if let Some(limit) = self.limit {
                (self.visit)(LogItem::Unreadable(limit - 1, DamagedRecord::Missing));
            }
            return LogExtent { segments: self.segments, end: None };
        };
        let (segment, sequence) = (frame.segment, frame.sequence);
        let is_damaged = !is_whole && self.limit.is_some();
        let end = if is_whole {
            let offset = start + header.frame_bytes() as u64;
            LogEnd { segment, offset, next_sequence: sequence + 1, previous: header.checksum }
        } else {
            LogEnd { segment, offset: start, next_sequence: sequence, previous: header.previous }
        };
        // The beginning may be unreadable, or whole segments gone: the last frame says from where on the log was needed.
        if let Some(first) = self.first_sequence.filter(|&first| header.needed_from < first) {
            (self.visit)(LogItem::Unreadable(first - 1, DamagedRecord::Missing));
        }
        if is_whole || is_damaged {
            (self.visit)(LogItem::Frame(frame));
        }
        if let Some(limit) = self.limit.filter(|&limit| sequence + 1 < limit) {
            (self.visit)(LogItem::Unreadable(limit - 1, DamagedRecord::Missing));
        }
        LogExtent { segments: self.segments, end: Some(end) }
    }
}
