//! How a step lies on disk: a fixed header, then the body. Pure.
//!
//! Little endian: `version u8 | kind u8 | pool u64 | shard u16 | epoch u64 | from u64 | to u64 | body length u32 |
//! xxh3-64 of the body | xxh3-64 of the header so far`, then the body. The header has a sum of its own, so that a
//! damaged body still says whose it was: then that shard alone is refused. Only where a header is damaged is it
//! unknown what it and the rest of its blob said, and about whom.

use xxhash_rust::xxh3::xxh3_64;

use super::super::ShardKey;

/// Version of a record's layout. The header keeps its shape in every version, so that a record names its shard to
/// programs that cannot read its body; a change of the header is a change of [`super::disk::FORMAT`].
pub(super) const VERSION: u8 = 1;
/// Bytes before the body.
pub(super) const HEADER_BYTES: usize = 56;
/// Bytes of the header that its own sum covers.
const CHECKSUMMED_BYTES: usize = HEADER_BYTES - 8;

/// What a record is. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// In the log: rows that changed in `(from, to]`.
    Rows = 1,
    /// In the log: the shard is gone.
    Drop = 2,
    /// In the chunks: rows of a generation; `from` is the generation, `to` the number.
    Part = 3,
    /// In the bases: `from` is the generation, `to` the state's sequence number.
    Base = 4,
}

/// One record as found: its header is sound, its body not yet checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskRecord<'a> {
    pub(super) shard: ShardKey,
    pub(super) epoch: u64,
    pub(super) from: u64,
    pub(super) to: u64,
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
    let sum = xxh3_64(&out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(body);
}

impl<'a> DiskRecord<'a> {
    /// Splits the first record off.
    fn split(blob: &'a [u8]) -> Result<(Self, &'a [u8]), String> {
        let Some((header, rest)) = blob.split_first_chunk::<HEADER_BYTES>() else {
            return Err(format!("{} bytes where a header takes {HEADER_BYTES}", blob.len()));
        };
        if u64_at(header, CHECKSUMMED_BYTES) != xxh3_64(&header[..CHECKSUMMED_BYTES]) {
            return Err("checksum of a header is wrong".into());
        }
        let length = u32::from_le_bytes([header[36], header[37], header[38], header[39]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Err(format!("a body of {length} bytes where {} are left", rest.len()));
        };
        let shard = ShardKey { pool: u64_at(header, 2), shard: u16::from_le_bytes([header[10], header[11]]) };
        let record = Self {
            shard,
            epoch: u64_at(header, 12),
            from: u64_at(header, 20),
            to: u64_at(header, 28),
            version: header[0],
            kind: header[1],
            body_checksum: u64_at(header, 40),
            body,
        };
        Ok((record, rest))
    }

    /// The only record of a blob.
    ///
    /// # Errors
    /// What is wrong with it, its body included.
    pub(super) fn read_single(blob: &'a [u8], kind: RecordKind) -> Result<Self, String> {
        let (record, rest) = Self::split(blob)?;
        if !rest.is_empty() {
            return Err(format!("{} bytes too many", rest.len()));
        }
        record.body(kind)?;
        Ok(record)
    }

    /// True if the shard was dropped here.
    pub(super) fn is_drop(&self) -> bool {
        self.kind == RecordKind::Drop as u8
    }

    /// The body, checked.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn body(&self, kind: RecordKind) -> Result<&'a [u8], String> {
        if self.version != VERSION {
            return Err(format!("record version {} is unknown, this program reads {VERSION}", self.version));
        }
        if self.kind != kind as u8 {
            return Err(format!("record kind {} where {} is expected", self.kind, kind as u8));
        }
        if xxh3_64(self.body) != self.body_checksum {
            return Err("checksum of the rows is wrong".into());
        }
        Ok(self.body)
    }
}

/// The records of a blob, in order. After an error nothing more comes: where the next would start is unknown.
pub(super) struct DiskRecords<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> DiskRecords<'a> {
    /// Of a blob with at least one record.
    pub(super) fn new(blob: &'a [u8]) -> Self {
        Self { rest: Some(blob) }
    }
}

impl<'a> Iterator for DiskRecords<'a> {
    type Item = Result<DiskRecord<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let split = DiskRecord::split(self.rest.take()?);
        Some(split.map(|(record, rest)| {
            self.rest = (!rest.is_empty()).then_some(rest);
            record
        }))
    }
}

/// The number at an offset known to be inside.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
