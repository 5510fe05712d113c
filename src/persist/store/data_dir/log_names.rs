//! Names of the files of the embedded store's log.

/// Prefix of the name of a segment.
const PREFIX: &str = "log-";
/// Suffix of a segment of which a sync failed.
const UNSYNCED: &str = ".unsynced";
/// Name under which a segment is created, so that a crash leaves no partial one.
pub(in super::super) const NEW_NAME: &str = "log.new";
/// Name of a segment that the log no longer needs, until the next one is made of it.
pub(in super::super) const FREE_NAME: &str = "log.free";

/// File in the directory of a store, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum SegmentName {
    /// Segment with this number.
    Segment(u64),
    /// Segment of which a sync failed, so that its end may not be on the disk.
    Unsynced(u64),
}

impl SegmentName {
    /// Reads a name, unless it is that of another file.
    pub(in super::super) fn parse(name: &str) -> Option<Self> {
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
pub(in super::super) fn segment_name(number: u64) -> String {
    format!("{PREFIX}{number:012}")
}

/// Name of a segment of which a sync failed.
pub(in super::super) fn unsynced_name(number: u64) -> String {
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
}
