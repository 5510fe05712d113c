//! Frames of the log: what one call of the store appends, with one write. Pure.
//!
//! Little endian: `magic u32 | size of the contents u32 | sequence u64 | oldest sequence that is needed u64 | checksum of the
//! frame before u64 | xxh3-64 of the contents | xxh3-64 of the header so far`, then the contents, which are records
//! ([`super::record`]), then zeros up to a multiple of [`ALIGNMENT`].
//!
//! Sequence numbers grow by one in the whole life of a store. Each header names the checksum of the header before it. So a
//! frame shows that all frames before it were written, and one that cannot be read is damage if another follows, and
//! otherwise the unfinished end of the log. Checksums are seeded with the id of the store, so that nobody can put the bytes
//! of a frame into a row, and those of headers with the number of the segment too: what a file held as an earlier segment is
//! no frame of this one.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::record::u64_at;

/// Size of a frame's header, in bytes.
pub(super) const HEADER_BYTES: usize = 48;
/// Bytes of the header that its own checksum covers.
const CHECKSUMMED_BYTES: usize = HEADER_BYTES - 8;
/// Alignment of frames in a segment, in bytes.
pub(super) const ALIGNMENT: usize = 8;
/// First bytes of a frame.
const MAGIC: u32 = u32::from_le_bytes(*b"hpl3");

/// Header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Number of the frame; 1 is the first of a store.
    pub(super) sequence: u64,
    /// Number of the oldest frame that was needed when this one was written.
    pub(super) needed_from: u64,
    /// Checksum of the frame before; 0 for the first of a store.
    pub(super) previous: u64,
    /// Size of the contents, in bytes.
    pub(super) content_bytes: usize,
    /// Checksum of this header.
    pub(super) checksum: u64,
    content_checksum: u64,
}

fn header_checksum(header: &[u8], seed: u64, segment: u64) -> u64 {
    xxh3_64_with_seed(&header[..CHECKSUMMED_BYTES], seed.wrapping_add(segment))
}

impl FrameHeader {
    /// Reads a header of a segment, if there is one.
    pub(super) fn decode(bytes: &[u8], seed: u64, segment: u64) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_BYTES>()?;
        if !Self::is_at(header) {
            return None;
        }
        let checksum = u64_at(header, CHECKSUMMED_BYTES);
        if checksum != header_checksum(header, seed, segment) {
            return None;
        }
        Some(Self {
            content_bytes: u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize,
            sequence: u64_at(header, 8),
            needed_from: u64_at(header, 16),
            previous: u64_at(header, 24),
            content_checksum: u64_at(header, 32),
            checksum,
        })
    }

    /// Whether bytes begin like a frame, of whatever store.
    pub(super) fn is_at(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC.to_le_bytes())
    }

    /// Size of the frame, in bytes.
    pub(super) const fn frame_bytes(&self) -> usize {
        (HEADER_BYTES + self.content_bytes).next_multiple_of(ALIGNMENT)
    }

    /// Whether these are the contents.
    pub(super) fn matches(&self, contents: &[u8], seed: u64) -> bool {
        contents.len() == self.content_bytes && xxh3_64_with_seed(contents, seed) == self.content_checksum
    }
}

/// Position of a frame among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameLink {
    /// Number of the segment.
    pub(super) segment: u64,
    /// Number of the frame.
    pub(super) sequence: u64,
    /// Number of the oldest frame that is needed.
    pub(super) needed_from: u64,
    /// Checksum of the frame before.
    pub(super) previous: u64,
}

/// Frame that is being built. The contents are appended to [`FrameBuffer::contents`].
#[derive(Debug)]
pub(super) struct FrameBuffer {
    bytes: Vec<u8>,
}

/// Capacity above which a buffer is not kept for the next frame, in bytes.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl FrameBuffer {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES] }
    }

    /// Removes the contents of the last frame.
    pub(super) fn clear(&mut self) {
        self.bytes.truncate(HEADER_BYTES);
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }

    /// Buffer to which contents are appended; what it holds already must stay.
    pub(super) const fn contents(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Offset of the next contents in the frame, in bytes.
    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Size of the whole frame, in bytes.
    pub(super) const fn frame_bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(ALIGNMENT)
    }

    /// Completes the header, and returns it with the bytes of the frame.
    ///
    /// # Panics
    /// If the contents are 4 GiB or more.
    pub(super) fn seal(&mut self, link: FrameLink, seed: u64) -> (FrameHeader, &[u8]) {
        let FrameLink { segment, sequence, needed_from, previous } = link;
        let content_bytes = self.bytes.len() - HEADER_BYTES;
        let length = u32::try_from(content_bytes).expect("bounded by the size of a call");
        let content_checksum = xxh3_64_with_seed(&self.bytes[HEADER_BYTES..], seed);
        self.bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&needed_from.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&previous.to_le_bytes());
        self.bytes[32..40].copy_from_slice(&content_checksum.to_le_bytes());
        let checksum = header_checksum(&self.bytes, seed, segment);
        self.bytes[CHECKSUMMED_BYTES..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        let header = FrameHeader { sequence, needed_from, previous, content_bytes, checksum, content_checksum };
        self.bytes.resize(header.frame_bytes(), 0);
        (header, &self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: FrameLink = FrameLink { segment: 4, sequence: 7, needed_from: 2, previous: 9 };

    #[test]
    fn a_frame_is_read_as_it_was_sealed() {
        for contents in [&b""[..], b"a", b"12345678", &[7; 1_000]] {
            let mut buffer = FrameBuffer::new();
            buffer.contents().extend_from_slice(contents);
            let (header, bytes) = buffer.seal(LINK, 3);
            assert_eq!(bytes.len() % ALIGNMENT, 0);
            assert_eq!(bytes.len(), header.frame_bytes());
            assert_eq!(FrameHeader::decode(bytes, 3, 4), Some(header));
            assert!(header.matches(&bytes[HEADER_BYTES..HEADER_BYTES + contents.len()], 3));
            assert_eq!(FrameHeader::decode(bytes, 4, 4), None, "another store");
            assert_eq!(FrameHeader::decode(bytes, 3, 5), None, "another segment");
        }
    }

    #[test]
    fn no_changed_byte_of_a_header_goes_unnoticed() {
        let mut buffer = FrameBuffer::new();
        buffer.contents().extend_from_slice(b"contents");
        let bytes = buffer.seal(LINK, 3).1.to_vec();
        for at in 0..HEADER_BYTES {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert_eq!(FrameHeader::decode(&changed, 3, 4), None, "byte {at}");
        }
    }
}
