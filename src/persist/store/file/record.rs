//! Encoding of a batch in a frame: a fixed header, then the body. Pure.
//!
//! Little endian: `version u8 | kind u8 | pool u64 | shard u16 | epoch u64 | from u64 | to u64 | body length u32 |
//! xxh3-64 of the body | xxh3-64 of the header so far`, then the body. The header has a checksum of its own, so
//! that a record with a damaged body still names its shard, and that shard alone is unreadable. Only where a header is
//! damaged is it unknown which shards it and the rest of its frame concern.

use xxhash_rust::xxh3::xxh3_64;

use super::super::{DamagedRecord, ShardKey};

/// Version of a record's layout. The header keeps its shape in every version, so that a record names its shard to
/// programs that cannot read its body; a change of the header is a change of [`super::ownership::FORMAT`].
pub(super) const VERSION: u8 = 1;
/// Size of the header, in bytes.
pub(super) const HEADER_BYTES: usize = 56;
/// Bytes of the header that its own checksum covers.
const CHECKSUMMED_BYTES: usize = HEADER_BYTES - 8;

/// Kind of a record. The numbers are stored on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// Log record with the rows that changed in `(from, to]`.
    Rows = 1,
    /// Log record that drops the shard.
    Drop = 2,
    /// Chunk of a generation: `from` is the generation, `to` the number.
    Part = 3,
    /// Base of a shard: `from` is the generation, `to` the sequence number of the state, and the body the number of chunks.
    Base = 4,
}

/// Record whose header is valid and whose body is not yet checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskRecord<'a> {
    pub(super) shard: ShardKey,
    pub(super) epoch: u64,
    pub(super) from: u64,
    pub(super) to: u64,
    /// Offset in the contents of the frame, in bytes.
    pub(super) offset: usize,
    version: u8,
    kind: u8,
    body_checksum: u64,
    body: &'a [u8],
}

/// Appends a record. The body is at most 4 GiB (see `CALL_BYTES_MAX`).
pub(super) fn write(
    out: &mut Vec<u8>,
    kind: RecordKind,
    shard: ShardKey,
    epoch: u64,
    [from, to]: [u64; 2],
    body: &[u8],
) {
    let length = u32::try_from(body.len()).expect("bounded by CALL_BYTES_MAX");
    let start = out.len();
    out.reserve(HEADER_BYTES + body.len());
    out.extend_from_slice(&[VERSION, kind as u8]);
    out.extend_from_slice(&shard.pool.to_le_bytes());
    out.extend_from_slice(&shard.shard.to_le_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&from.to_le_bytes());
    out.extend_from_slice(&to.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&xxh3_64(body).to_le_bytes());
    let checksum = xxh3_64(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(body);
}

impl<'a> DiskRecord<'a> {
    /// Splits the first record off, which is at `offset` in its frame.
    fn split(blob: &'a [u8], offset: usize) -> Result<(Self, &'a [u8]), DamagedRecord> {
        let Some((header, rest)) = blob.split_first_chunk::<HEADER_BYTES>() else {
            return Err(DamagedRecord::Header(blob.len(), HEADER_BYTES));
        };
        if u64_at(header, CHECKSUMMED_BYTES) != xxh3_64(&header[..CHECKSUMMED_BYTES]) {
            return Err(DamagedRecord::HeaderChecksum);
        }
        let length = u32::from_le_bytes([header[36], header[37], header[38], header[39]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Err(DamagedRecord::Body(length, rest.len()));
        };
        let shard = ShardKey { pool: u64_at(header, 2), shard: u16::from_le_bytes([header[10], header[11]]) };
        let record = Self {
            shard,
            epoch: u64_at(header, 12),
            from: u64_at(header, 20),
            to: u64_at(header, 28),
            offset,
            version: header[0],
            kind: header[1],
            body_checksum: u64_at(header, 40),
            body,
        };
        Ok((record, rest))
    }

    /// Reads the only record of a blob.
    ///
    /// # Errors
    /// Damage of the header or the body.
    pub(super) fn read_single(blob: &'a [u8], kind: RecordKind) -> Result<Self, DamagedRecord> {
        let (record, rest) = Self::split(blob, 0)?;
        if !rest.is_empty() {
            return Err(DamagedRecord::Trailing(rest.len()));
        }
        record.body(kind)?;
        Ok(record)
    }

    /// Kind of the record; none if this build does not know it.
    pub(super) fn kind(&self) -> Option<RecordKind> {
        [RecordKind::Rows, RecordKind::Drop, RecordKind::Part, RecordKind::Base]
            .into_iter()
            .find(|kind| *kind as u8 == self.kind)
    }

    /// Size of the record, in bytes.
    pub(super) const fn len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }

    /// Checks and returns the body.
    ///
    /// # Errors
    /// Damage, another kind, or an unknown version.
    pub(super) fn body(&self, kind: RecordKind) -> Result<&'a [u8], DamagedRecord> {
        if self.version != VERSION {
            return Err(DamagedRecord::Version(self.version, VERSION));
        }
        if self.kind != kind as u8 {
            return Err(DamagedRecord::Kind(self.kind, kind as u8));
        }
        if xxh3_64(self.body) != self.body_checksum {
            return Err(DamagedRecord::BodyChecksum);
        }
        Ok(self.body)
    }
}

/// Iterator over the records of a frame, which ends after an error because the start of the next record is unknown.
pub(super) struct DiskRecords<'a> {
    rest: Option<&'a [u8]>,
    offset: usize,
}

impl<'a> DiskRecords<'a> {
    /// Creates an iterator over the contents of a frame, which holds at least one record.
    pub(super) const fn new(contents: &'a [u8]) -> Self {
        Self { rest: Some(contents), offset: 0 }
    }
}

impl<'a> Iterator for DiskRecords<'a> {
    type Item = Result<DiskRecord<'a>, DamagedRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        let split = DiskRecord::split(self.rest.take()?, self.offset);
        Some(split.map(|(record, rest)| {
            self.rest = (!rest.is_empty()).then_some(rest);
            self.offset += record.len();
            record
        }))
    }
}

/// Number of four bytes at an offset that is in range.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// Number of eight bytes at an offset that is in range.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
