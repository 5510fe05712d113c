//! Segments of the log, and the settings for making them.

/// Settings for making segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSettings {
    /// Size of the first segment, in bytes. Each is twice as large as the one before, up to the maximum.
    pub first_bytes: u64,
    /// Maximum size of a segment, in bytes. One that begins with a larger frame is larger.
    pub max_bytes: u64,
    /// Size of the log below which no snapshot is due, in bytes.
    pub log_bytes_free: u64,
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
    /// Small at first: a new store is created at once, and a small one has small files. A restart reads a log of which no
    /// snapshot is due in well under a second.
    fn default() -> Self {
        Self { first_bytes: 1 << 20, max_bytes: 16 << 20, log_bytes_free: 64 << 20, upkeep: SegmentUpkeep::Background }
    }
}

impl SegmentSettings {
    /// Size of a segment, in bytes.
    pub(super) fn segment_bytes(&self, number: u64) -> u64 {
        let doublings = u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first_bytes.saturating_mul(2_u64.saturating_pow(doublings)).min(self.max_bytes)
    }
}

/// Segment of the log, of which a frame begins at offset 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogSegment {
    /// Number, which grows by one from segment to segment.
    pub(super) number: u64,
    /// Sequence number of its first frame.
    pub(super) first_sequence: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_grow_up_to_the_greatest() {
        let settings = SegmentSettings::default();
        let sizes: Vec<u64> = (1..8).map(|number| settings.segment_bytes(number) >> 20).collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16, 16]);
        assert_eq!(settings.segment_bytes(u64::MAX), settings.max_bytes);
    }
}
