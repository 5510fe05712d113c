//! Damage of what a store keeps.

/// Reason for which the state of a shard cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardDamage {
    /// Damaged record of the snapshot that the shard starts from.
    #[error("damaged base: {0}")]
    Base(DamagedRecord),
    /// Damaged record of the log, with the number of its frame.
    #[error("damaged frame {0} of the log: {1}")]
    Log(u64, DamagedRecord),
    /// Damaged chunk of a snapshot, with its number.
    #[error("damaged chunk: number {0}: {1}")]
    Chunk(u32, DamagedRecord),
    /// Number of the chunks that are present, and the number of all.
    #[error("damaged chunk: {0} of {1} are present")]
    MissingChunks(u32, u32),
    /// Key of a Redis server with damaged rows.
    #[error("{0}: {1}")]
    Key(String, DamagedRecord),
    /// Error that a Redis server, or the function library on it, reports about the keys of the shard.
    #[error("{0}")]
    Server(String),
}

/// Reason for which one record of a store cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DamagedRecord {
    /// Sizes in bytes of what is left of the record, and of a header.
    #[error("{0} bytes, fewer than the {1} of a header")]
    Header(usize, usize),
    /// Header that differs from its checksum.
    #[error("the checksum of a header does not match")]
    HeaderChecksum,
    /// Sizes in bytes of the body, and of the part of it that is present.
    #[error("a body of {0} bytes, of which {1} are present")]
    Body(usize, usize),
    /// Body that differs from its checksum.
    #[error("the checksum of the rows does not match")]
    BodyChecksum,
    /// Number of bytes after a record that stands alone.
    #[error("{0} bytes after the record")]
    Trailing(usize),
    /// Unknown version of the record, and the version of this build.
    #[error("record version {0} is unknown; this program reads version {1}")]
    Version(u8, u8),
    /// Kind of the record, and the expected one.
    #[error("record kind {0}, expected {1}")]
    Kind(u8, u8),
    /// Record of the log that does not follow the state `at`.
    #[error("it leads from {from} to {to}, the state is at {at}")]
    Gap {
        /// Sequence number that the record builds on.
        from: u64,
        /// Sequence number that the record leads to.
        to: u64,
        /// Sequence number of the state read so far.
        at: u64,
    },
    /// Absent frame of the log.
    #[error("the frame is missing")]
    Missing,
    /// Frame that the next one does not follow.
    #[error("it is another frame")]
    OtherFrame,
    /// Damage that an earlier start found, in its words.
    #[error("{0}")]
    Earlier(String),
    /// Chunk in the place of another.
    #[error("it is another chunk")]
    OtherChunk,
    /// Size of a base's body in bytes, which is that of no base.
    #[error("{0} bytes are not the body of a base")]
    BaseSize(usize),
    /// Field of a Redis hash that is not a row.
    #[error("the field {0:?} is not a row")]
    Field(String),
    /// Page of a scan in a form that Redis does not document.
    #[error("HSCAN returned an unexpected answer")]
    Page,
}
