//! The file `store`: what the store is, who owns it, and which frames of its log were unreadable.
//!
//! The file is replaced as a whole, durably, and rarely: at a takeover, when the ceiling of fences rises, and when damage is found.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::super::data_dir::{self, io_error};
use super::super::{DamagedRecord, StoreError};
use super::disk::StoreDisk;
use crate::model::Fence;

/// Version of the files, stored in the file. Any other is rejected.
pub(super) const FORMAT: u64 = 3;
/// Name of the file.
pub(super) const FILE: &str = data_dir::STORE;
/// Temporary name under which it is written, so that a crash leaves no partial file.
const FILE_NEW: &str = data_dir::STORE_NEW;
/// Maximum size of the file, in bytes; it has a few hundred.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of unreadable frames that are remembered one by one.
const UNREADABLE_MAX: usize = 1_000;

/// Content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoreRecord {
    pub(super) format: u64,
    /// Id of the store, which seeds the checksums of its log.
    #[serde(with = "uuid_text")]
    pub(super) id: Uuid,
    #[serde(with = "uuid_text")]
    pub(super) owner: Uuid,
    pub(super) epoch: u64,
    pub(super) fence_ceiling: Fence,
    pub(super) fence_floor: Fence,
    /// Number of the last frame that was on the disk when this record was written: a log that ends before it has lost its end.
    pub(super) synced_frame: u64,
    /// Sequence numbers of frames that could not be read, with the reason: unknown shards may have records there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) unreadable: BTreeMap<u64, String>,
}

/// Text form of a UUID.
mod uuid_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use uuid::Uuid;

    pub(super) fn serialize<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Format of a file whose other fields may be unknown.
#[derive(Deserialize)]
struct StoreFormat {
    format: u64,
}

impl StoreRecord {
    /// Creates the record of an empty store.
    pub(super) fn new(id: Uuid) -> Self {
        Self {
            format: FORMAT,
            id,
            owner: Uuid::nil(),
            epoch: 0,
            fence_ceiling: 0,
            fence_floor: 0,
            synced_frame: 0,
            unreadable: BTreeMap::new(),
        }
    }

    /// Seed of the checksums in the log.
    pub(super) fn seed(&self) -> u64 {
        xxh3_64(self.id.as_bytes())
    }

    /// Remembers unreadable frames. Beyond the limit only the last is kept for all that follow the others.
    pub(super) fn note_unreadable<'a>(&mut self, frames: impl IntoIterator<Item = (&'a u64, &'a DamagedRecord)>) {
        for (&sequence, flaw) in frames {
            if self.unreadable.len() >= UNREADABLE_MAX && !self.unreadable.contains_key(&sequence) {
                self.unreadable.pop_last();
            }
            self.unreadable.insert(sequence, flaw.to_string());
        }
    }

    /// Names and values of the fields, for people.
    pub(super) fn properties(&self) -> BTreeMap<String, String> {
        let all = [
            ("owner", self.owner.to_string()),
            ("epoch", self.epoch.to_string()),
            ("fence_ceiling", self.fence_ceiling.to_string()),
            ("fence_floor", self.fence_floor.to_string()),
            ("format", self.format.to_string()),
            ("store_id", self.id.to_string()),
        ];
        all.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Reads the record; none if there is no file.
    pub(super) fn read(disk: &dyn StoreDisk) -> Result<Option<Self>, StoreError> {
        let path = disk.path(FILE);
        let failed = |error| io_error(&format!("cannot read {path}"), &error);
        let file = match disk.open(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let size_bytes = file.size_bytes().map_err(failed)?.min(FILE_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or_default()];
        let length = file.read_at(0, &mut bytes).map_err(failed)?;
        Self::decode(&bytes[..length]).map(Some).map_err(|why| StoreError::Unusable(format!("{path} {why}")))
    }

    /// Replaces the file durably.
    pub(super) fn write(&self, disk: &dyn StoreDisk) -> Result<(), StoreError> {
        let write = || {
            let file = disk.create(FILE_NEW)?;
            file.write_at(0, &self.encode())?;
            file.sync()?;
            disk.rename(FILE_NEW, FILE)?;
            disk.sync_names()
        };
        write().map_err(|error| io_error(&format!("cannot write {}", disk.path(FILE)), &error))
    }

    /// Encodes a line of JSON, and the checksum of that line.
    fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_string(self).expect("plain fields");
        text.push('\n');
        let checksum = xxh3_64(text.as_bytes());
        text.push_str(&format!("{checksum:016x}\n"));
        text.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let foreign = || "was not written by hotpool; choose another directory".to_owned();
        let text = std::str::from_utf8(bytes).map_err(|_| foreign())?;
        let (record, checksum) = text.split_once('\n').ok_or_else(foreign)?;
        let StoreFormat { format } = serde_json::from_str(record).map_err(|_| foreign())?;
        if format != FORMAT {
            return Err(format!("has format {format}; this program reads format {FORMAT}"));
        }
        let is_sound = u64::from_str_radix(checksum.trim_end(), 16) == Ok(xxh3_64(&bytes[..=record.len()]));
        match serde_json::from_str(record) {
            Ok(record) if is_sound => Ok(record),
            _ => Err("is damaged: its checksum does not match".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_is_found() {
        let mut record = StoreRecord::new(Uuid::from_u128(7));
        (record.owner, record.epoch, record.fence_ceiling, record.fence_floor) = (Uuid::from_u128(8), 3, 9, 5);
        record.note_unreadable([(&4, &DamagedRecord::Missing)]);
        let bytes = record.encode();
        assert_eq!(StoreRecord::decode(&bytes), Ok(record));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(StoreRecord::decode(&changed).is_err() || at == bytes.len() - 1, "byte {at}");
            assert!(StoreRecord::decode(&bytes[..at]).is_err() || at >= bytes.len() - 1, "cut at {at}");
        }
    }

    #[test]
    fn unreadable_frames_are_bounded() {
        let mut record = StoreRecord::new(Uuid::from_u128(7));
        for sequence in 0..UNREADABLE_MAX as u64 + 50 {
            record.note_unreadable([(&sequence, &DamagedRecord::Missing)]);
        }
        assert_eq!(record.unreadable.len(), UNREADABLE_MAX);
        let last = UNREADABLE_MAX as u64 + 49;
        assert_eq!(
            record.unreadable.last_key_value().map(|(sequence, _)| *sequence),
            Some(last),
            "the greatest counts most"
        );
    }
}
