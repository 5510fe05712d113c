//! The row format: what a store holds.
//!
//! A row is the whole present state of one thing of a shard. Rows travel in *frames*, back to back:
//!
//! ```text
//! kind u8 (top bit: deleted) | id length u8 | id | body length u32 LE | body      (a deletion ends after the id)
//! body = version u8 | protobuf message
//! ```
//!
//! A later frame of the same kind and id replaces an earlier one, so replaying frames twice is harmless. Fields
//! may be added to a message under the same version; a change of meaning takes a new version, and a reader
//! refuses versions that it does not know.

mod worker;

pub use worker::*;

use prost::Message as _;

/// Version of every body that this build writes.
const VERSION: u8 = 1;

const DELETED: u8 = 0x80;

/// Declares the kinds of rows, each once: number in a frame, letter in stores that name rows by text.
macro_rules! row_kinds {
    ($($(#[$doc:meta])* $kind:ident = $number:literal, $letter:literal;)*) => {
        /// Kind of thing that a row describes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum RowKind { $($(#[$doc])* $kind = $number),* }

        impl RowKind {
            /// Every kind that is written.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            const fn of_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Kind that goes by a letter.
            #[must_use]
            pub const fn of_letter(letter: u8) -> Option<Self> {
                match letter {
                    $($letter => Some(Self::$kind),)*
                    _ => None,
                }
            }

            /// Letter of the kind.
            #[must_use]
            pub const fn letter(self) -> u8 {
                match self { $(Self::$kind => $letter),* }
            }
        }
    };
}

row_kinds! {
    /// A worker with its claims; id = worker id.
    Worker = 1, b'w';
    /// A pool of the catalogue; id = its uid.
    Pool = 2, b'p';
    /// What a shard remembers of itself; no id.
    Shard = 3, b's';
    /// A committed gang whose members may still be provisional; id = its number.
    Gang = 4, b'g';
    /// A quota of the catalogue; id = a hash of its name.
    Quota = 5, b'q';
}

/// Why a row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The frame ends early.
    #[error("a row ends early")]
    Truncated,
    /// The kind is of a later build, or damaged.
    #[error("row of unknown kind {0}")]
    Kind(u8),
    /// The body is of a later build, or damaged.
    #[error("row {id} has unknown version {version}")]
    Version {
        /// Id of the row.
        id: String,
        /// Its version.
        version: u8,
    },
    /// The body cannot be decoded.
    #[error("row {id} is damaged: {cause}")]
    Damaged {
        /// Id of the row.
        id: String,
        /// What the decoder said.
        cause: String,
    },
}

/// One row, borrowed from its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFrame<'a> {
    /// What it describes.
    pub kind: RowKind,
    /// Which one.
    pub id: &'a str,
    /// Its state; none: it is gone.
    pub body: Option<&'a [u8]>,
}

/// Reads frames back to back. After an error it ends.
#[derive(Debug, Clone)]
pub struct RowFrames<'a> {
    rest: &'a [u8],
}

impl<'a> RowFrames<'a> {
    /// Over `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What is not read yet.
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

fn put_frame(out: &mut Vec<u8>, kind: RowKind, id: &str, body: impl FnOnce(&mut Vec<u8>)) {
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
    out.push(u8::try_from(id.len()).expect("ids are checked at the rim to fit 255 bytes"));
    out.extend_from_slice(id.as_bytes());
}

/// Writes that the row is gone.
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

/// What a shard remembers of itself.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ShardRow {
    /// Highest fence that it granted.
    #[prost(uint64, tag = "1")]
    pub fence_max: u64,
    /// It acknowledges claims from memory: a stop that does not take this back may have lost some.
    #[prost(bool, tag = "2")]
    pub memory_acks: bool,
    /// How long one that was lost may still be started.
    #[prost(uint64, tag = "3")]
    pub reserve_ms: u64,
    /// How many stops may have lost claims so far.
    #[prost(uint64, tag = "4")]
    pub unclean_stops: u64,
}

/// Writes a shard's own row.
pub fn put_shard(out: &mut Vec<u8>, row: &ShardRow) {
    put_frame(out, RowKind::Shard, "", |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Writes the row of a committed gang, or that it is gone. It says nothing but that it is there.
pub fn put_gang(out: &mut Vec<u8>, id: u64, there: bool) {
    if there {
        put_frame(out, RowKind::Gang, &id.to_string(), |_| ());
    } else {
        put_deletion(out, RowKind::Gang, &id.to_string());
    }
}

/// Reads a shard's own row.
///
/// # Errors
/// An unknown version, or damage.
pub fn decode_shard(body: &[u8]) -> Result<ShardRow, RowError> {
    decode_message("of the shard itself", body)
}

/// A pool as it is stored in the catalogue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PoolRow {
    /// Part of the keys of its shards; never used again for another pool.
    #[prost(uint64, tag = "1")]
    pub uid: u64,
    /// The specification, as JSON: the form that the interface speaks, so that a new field needs no second schema.
    #[prost(string, tag = "2")]
    pub spec_json: String,
    /// Version of the worker-to-shard hash.
    #[prost(uint32, tag = "3")]
    pub hash_version: u32,
    /// True: it is being deleted; a recovery goes on with that.
    #[prost(bool, tag = "4")]
    pub deleting: bool,
    /// `ns/pool`.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Number of the specification: drawn where fences are. 0, of an older build: that of the pool, its uid.
    #[prost(uint64, tag = "6")]
    pub version: u64,
}

impl PoolRow {
    /// Number of the specification.
    #[must_use]
    pub const fn version(&self) -> u64 {
        if self.version == 0 { self.uid } else { self.version }
    }
}

/// Writes a pool's row. Its id is the uid: `ns/pool` may be longer than a frame's id.
pub fn put_pool(out: &mut Vec<u8>, row: &PoolRow) {
    put_frame(out, RowKind::Pool, &row.uid.to_string(), |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Reads a pool's row.
///
/// # Errors
/// An unknown version, or damage.
pub fn decode_pool(id: &str, body: &[u8]) -> Result<PoolRow, RowError> {
    decode_message(id, body)
}

/// A quota as it is stored in the catalogue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QuotaRow {
    /// `namespace/tenant`, or `namespace` for its tenants without their own.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The quota, as JSON, for the same reason as [`PoolRow::spec_json`].
    #[prost(string, tag = "2")]
    pub quota_json: String,
}

/// Id of the row of the quota of that name, which itself may be longer than a frame's id.
fn quota_id(name: &str) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
}

/// Writes a quota's row.
pub fn put_quota(out: &mut Vec<u8>, row: &QuotaRow) {
    let id = quota_id(&row.name);
    put_frame(out, RowKind::Quota, &id, |out| row.encode(out).expect("a Vec grows as needed"));
}

/// Writes that the quota of that name is gone.
pub fn put_quota_deletion(out: &mut Vec<u8>, name: &str) {
    put_deletion(out, RowKind::Quota, &quota_id(name));
}

/// Reads a quota's row.
///
/// # Errors
/// An unknown version, or damage.
pub fn decode_quota(id: &str, body: &[u8]) -> Result<QuotaRow, RowError> {
    decode_message(id, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_of_an_older_build_is_at_its_first_version() {
        let old = PoolRow { uid: 7, ..PoolRow::default() };
        let mut frames = Vec::new();
        put_pool(&mut frames, &old);
        let RowFrame { id, body, .. } = RowFrames::new(&frames).next().unwrap().unwrap();
        let read = decode_pool(id, body.unwrap()).unwrap();
        assert_eq!((read.version, read.version()), (0, 7));
        assert_eq!(PoolRow { version: 9, ..old }.version(), 9);
    }
}
