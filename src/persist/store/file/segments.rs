//! Names and sizes of the log's segments.

/// Settings for making segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSettings {
    /// Size of the first segment, in bytes. Each is twice as large as the one before, up to the maximum.
    pub first_bytes: u64,
    /// Maximum size of a segment, in bytes. One that begins with a larger frame is larger.
    pub max_bytes: u64,
    /// Thread that prepares and removes segments.
    pub upkeep: SegmentUpkeep,
}

/// Thread that prepares and removes segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentUpkeep {
    /// Thread of its own, so that no round waits for it.
    Background,
    /// Thread of the call that needs it, so that the order of all calls of the disk is fixed.
    Inline,
}

impl Default for SegmentSettings {
    /// Small at first: a new store is created at once, and a small one has small files.
    fn default() -> Self {
        Self { first_bytes: 1 << 20, max_bytes: 16 << 20, upkeep: SegmentUpkeep::Background }
    }
}

impl SegmentSettings {
    /// Size of a segment, in bytes.
    pub(super) fn segment_bytes(&self, number: u64) -> u64 {
        let doublings = u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_bytes.saturating_mul(2_u64.saturating_pow(doublings)).min(self.max_bytes)
    }
}

/// Prefix of the name of a segment.
const PREFIX: &str = "log-";
/// Suffix of a segment of which a sync failed.
const UNSYNCED: &str = ".unsynced";
/// Name under which a segment is created, so that a crash leaves no partial one.
pub(super) const NEW_NAME: &str = "log.new";
/// Name of a segment that the log no longer needs, until the next one is made of it.
pub(super) const FREE_NAME: &str = "log.free";

/// Segment of the log, of which a frame begins at offset 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogSegment {
    /// Number, which grows by one from segment to segment.
    pub(super) number: u64,
    /// Sequence number of its first frame.
    pub(super) first_sequence: u64,
}

/// File in the directory of a store, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentName {
    /// Segment with this number.
    Segment(u64),
    /// Segment of which a sync failed, so that its end may not be on the disk.
    Unsynced(u64),
}

impl SegmentName {
    /// Reads a name, unless it is that of another file.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix(PREFIX)?;
        let number =
            |digits: &str| digits.parse().ok().filter(|&number| segment_name(number) == format!("{PREFIX}{digits}"));
        match digits.strip_suffix(UNSYNCED) {
            Some(digits) => number(digits).map(Self::Unsynced),
            None => number(digits).map(Self::Segment),
        }
    }
}

/// Whether a file of this name belongs to the log.
pub(in super::super) fn is_log_file(name: &str) -> bool {
    name == NEW_NAME || name == FREE_NAME || SegmentName::parse(name).is_some()
}

/// Name of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("{PREFIX}{number:012}")
}

/// Name of a segment of which a sync failed.
pub(super) fn unsynced_name(number: u64) -> String {
    format!("{PREFIX}{number:012}{UNSYNCED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_no_other_is() {
        for number in [0, 1, 4_711, u64::MAX] {
            assert_eq!(SegmentName::parse(&segment_name(number)), Some(SegmentName::Segment(number)));
            assert_eq!(SegmentName::parse(&unsynced_name(number)), Some(SegmentName::Unsynced(number)));
        }
        for other in ["log-1", "log-", "log-00000000000x", "log.new", "log-+00000000001", "log", "log-000000000001.new"]
        {
            assert_eq!(SegmentName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn sizes_grow_up_to_the_greatest() {
        let settings = SegmentSettings::default();
        let sizes: Vec<u64> = (1..8).map(|number| settings.segment_bytes(number) >> 20).collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16]);
        assert_eq!(settings.segment_bytes(u64::MAX), settings.max_bytes);
    }
}
