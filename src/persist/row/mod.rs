//! Row format: the contents of a store.
//!
//! A row is the whole present state of one object of a shard. Rows are encoded as *frames*, back to back:
//!
//! ```text
//! kind u8 (top bit: deleted) | id length u8 | id | body length u32 LE | body      (a deletion ends after the id)
//! body = version u8 | protobuf message
//! ```
//!
//! The row of a worker is declared in `worker/mod.rs`, by which it is read, and written by `worker/encode.rs`.
//!
//! A later frame of the same kind and id replaces an earlier one, so replaying frames twice is harmless. Fields
//! may be added to a message under the same version; a change of meaning takes a new version, and a reader
//! rejects versions that it does not know.

mod worker;

pub use worker::*;

use prost::Message as _;

/// Version of every body that this build writes.
const VERSION: u8 = 1;

const DELETED: u8 = 0x80;

/// Declares each kind of row once, with its number in a frame and its letter in stores that name rows by text.
macro_rules! row_kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $letter:literal;)*) => {
        /// Kind of object that a row describes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum RowKind { $($(#[$doc])* $kind = $number),* }

        impl RowKind {
            /// All kinds, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            const fn of_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Kind with this letter, if there is one.
            #[must_use]
            pub const fn of_letter(letter: u8) -> Option<Self> {
                match letter {
                    $($letter => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Letter that stands for the kind.
            #[must_use]
            pub const fn letter(self) -> u8 {
                match self { $(Self::$kind => $letter),* }
            }
        }
    };
}

row_kinds! {
    /// Worker with its claims; id = worker id.
    Worker = 1, b'w';
    /// Pool of the catalog; id = its uid.
    Pool = 2, b'p';
    /// Shard's own state; no id.
    Shard = 3, b's';
    /// Committed gang whose members may still be provisional; id = its number.
    Gang = 4, b'g';
    /// Quota of the catalog; id = a hash of its name.
    Quota = 5, b'q';
}

/// Reason for which a row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Frame that ends early.
    #[error("a row ends early")]
    Truncated,
    /// Kind of a later build, or damage.
    #[error("row of unknown kind {0}")]
    Kind(u8),
    /// Body of a later build, or damage.
    #[error("row {id} has unknown version {version}")]
    Version {
        /// Id of that row.
        id: String,
        /// Version that was found.
        version: u8,
    },
    /// Body that cannot be decoded.
    #[error("row {id} is damaged: {cause}")]
    Damaged {
        /// Id of that row.
        id: String,
        /// Error of the decoder.
        cause: String,
    },
    /// Id that is not a number, of an object that has one.
    #[error("the row of a {0} has the id {1:?}, which is not a number")]
    Id(&'static str, String),
    /// Row of a pool or quota among those of a shard, with its id.
    #[error("the row {0:?} of the catalog is in a shard")]
    OfCatalog(String),
    /// Row of a shard among those of the catalog, with its id.
    #[error("the row {0:?} of a shard is in the catalog")]
    OfShard(String),
}

/// Row that is borrowed from its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFrame<'a> {
    /// Kind of object that it describes.
    pub kind: RowKind,
    /// Id of that object.
    pub id: &'a str,
    /// State of the object; none: it was deleted.
    pub body: Option<&'a [u8]>,
}

/// Iterator over frames back to back, which ends after an error.
#[derive(Debug, Clone)]
pub struct RowFrames<'a> {
    rest: &'a [u8],
}

impl<'a> RowFrames<'a> {
    /// Creates an iterator over the frames in `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that are not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn frame(&mut self) -> Result<RowFrame<'a>, RowError> {
        let (&[tag, id_len], rest) = self.rest.split_first_chunk::<2>().ok_or(RowError::Truncated)?;
        let number = tag & !DELETED;
        let kind = RowKind::of_number(number).ok_or(RowError::Kind(number))?;
        let (id, rest) = rest.split_at_checked(id_len.into()).ok_or(RowError::Truncated)?;
        let id = std::str::from_utf8(id)
            .map_err(|e| RowError::Damaged { id: String::from_utf8_lossy(id).into(), cause: e.to_string() })?;
        if tag & DELETED != 0 {
            self.rest = rest;
            return Ok(RowFrame { kind, id, body: None });
        }
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(RowError::Truncated)?;
        let (body, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(RowError::Truncated)?;
        self.rest = rest;
        Ok(RowFrame { kind, id, body: Some(body) })
    }
}

impl<'a> Iterator for RowFrames<'a> {
    type Item = Result<RowFrame<'a>, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = self.frame();
        if frame.is_err() {
            self.rest = &[];
        }
        Some(frame)
    }
}

pub(crate) fn put_frame(out: &mut Vec<u8>, kind: RowKind, id: &str, body: impl FnOnce(&mut Vec<u8>)) {
    put_id(out, kind as u8, id);
    let len_at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(VERSION);
    body(out);
    let len = u32::try_from(out.len() - len_at - 4).expect("a row is far below 4 GiB: every part of it is bounded");
    out[len_at..len_at + 4].copy_from_slice(&len.to_le_bytes());
}

fn put_id(out: &mut Vec<u8>, tag: u8, id: &str) {
    out.push(tag);
    out.push(u8::try_from(id.len()).expect("ids are checked at the edges to fit 255 bytes"));
    out.extend_from_slice(id.as_bytes());
}

/// Writes the deletion of a row.
pub fn put_deletion(out: &mut Vec<u8>, kind: RowKind, id: &str) {
    put_id(out, kind as u8 | DELETED, id);
}

fn decode_message<M: prost::Message + Default>(id: &str, body: &[u8]) -> Result<M, RowError> {
    let (&version, rest) = body.split_first().ok_or(RowError::Truncated)?;
    if version != VERSION {
        return Err(RowError::Version { id: id.into(), version });
    }
    M::decode(rest).map_err(|e| RowError::Damaged { id: id.into(), cause: e.to_string() })
}

/// Row of a shard itself.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ShardRow {
    /// Highest fence that the shard granted.
    #[prost(uint64, tag = "1")]
    pub fence_max: u64,
    /// Whether claims are acknowledged from memory: a stop that does not clear this may have lost some.
    #[prost(bool, tag = "2")]
    pub memory_acks: bool,
    /// Time for which a lost claim may still be started, in milliseconds.
    #[prost(uint64, tag = "3")]
    pub reserve_ms: u64,
    /// Number of stops so far that may have lost claims.
    #[prost(uint64, tag = "4")]
    pub unclean_stops: u64,
}

/// Writes the row of a shard itself.
pub fn put_shard(out: &mut Vec<u8>, row: &ShardRow) {
    put_frame(out, RowKind::Shard, "", |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Writes the row of a committed gang. Its body is empty: the row records that the gang was committed.
pub fn put_gang(out: &mut Vec<u8>, id: u64) {
    put_frame(out, RowKind::Gang, &id.to_string(), |_| ());
}

/// Writes the deletion of a committed gang's row.
pub fn put_gang_deletion(out: &mut Vec<u8>, id: u64) {
    put_deletion(out, RowKind::Gang, &id.to_string());
}

/// Reads the row of a shard itself.
///
/// # Errors
/// Unknown version of the body, or damage.
pub fn decode_shard(body: &[u8]) -> Result<ShardRow, RowError> {
    decode_message("of the shard itself", body)
}

/// Pool as it is stored in the catalog.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PoolRow {
    /// Uid, part of the keys of the pool's shards and never reused for another pool.
    #[prost(uint64, tag = "1")]
    pub uid: u64,
    /// Specification as JSON, the form of the API, so that a new field needs no second schema.
    #[prost(string, tag = "2")]
    pub spec_json: String,
    /// Version of the worker-to-shard hash.
    #[prost(uint32, tag = "3")]
    pub hash_version: u32,
    /// Whether the pool is being deleted; a recovery continues that.
    #[prost(bool, tag = "4")]
    pub deleting: bool,
    /// Name of the pool, `ns/pool`.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Version of the specification, drawn like a fence. 0, as older builds wrote, stands for the uid.
    #[prost(uint64, tag = "6")]
    pub version: u64,
}

impl PoolRow {
    /// Version of the specification: [`Self::version`], or the uid in rows of older builds.
    #[must_use]
    pub const fn version(&self) -> u64 {
        if self.version == 0 { self.uid } else { self.version }
    }
}

/// Writes a pool's row. The id is the uid, because `ns/pool` may be longer than a frame's id.
pub fn put_pool(out: &mut Vec<u8>, row: &PoolRow) {
    put_frame(out, RowKind::Pool, &row.uid.to_string(), |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Reads the row of a pool.
///
/// # Errors
/// Unknown version of the body, or damage.
pub fn decode_pool(id: &str, body: &[u8]) -> Result<PoolRow, RowError> {
    decode_message(id, body)
}

/// Quota as it is stored in the catalog.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QuotaRow {
    /// Name: `namespace/tenant`, or `namespace` for its tenants without their own quota.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Quota as JSON, for the same reason as [`PoolRow::spec_json`].
    #[prost(string, tag = "2")]
    pub quota_json: String,
}

/// Row id of the quota of that name: a hash, because the name may be longer than a frame's id.
fn quota_id(name: &str) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
}

/// Writes the row of a quota.
pub fn put_quota(out: &mut Vec<u8>, row: &QuotaRow) {
    let id = quota_id(&row.name);
    put_frame(out, RowKind::Quota, &id, |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Writes the deletion of the quota of that name.
pub fn put_quota_deletion(out: &mut Vec<u8>, name: &str) {
    put_deletion(out, RowKind::Quota, &quota_id(name));
}

/// Reads the row of a quota.
///
/// # Errors
/// Unknown version of the body, or damage.
pub fn decode_quota(id: &str, body: &[u8]) -> Result<QuotaRow, RowError> {
    decode_message(id, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_row_of_an_older_build_has_its_uid_as_version() {
        let old = PoolRow { uid: 7, ..PoolRow::default() };
        let mut frames = Vec::new();
        put_pool(&mut frames, &old);
        let RowFrame { id, body, .. } = RowFrames::new(&frames).next().unwrap().unwrap();
        let read = decode_pool(id, body.unwrap()).unwrap();
        assert_eq!((read.version, read.version()), (0, 7));
        assert_eq!(PoolRow { version: 9, ..old }.version(), 9);
    }
}
