//! Names of pools, workers and claims, and their labels.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::limits;
use crate::model::request_error::RequestError;

/// Seed of the worker hash, version 1. Pinned: it decides which shard owns a worker, in the store too.
const WORKER_HASH_SEED: u64 = 0x686f_7470_6f6f_6c31;

/// Version of the worker-to-shard hash; stored with every pool.
pub const HASH_VERSION: u32 = 1;

/// Label key to value; sorted, so that equal sets are equal.
pub type Labels = BTreeMap<String, String>;

/// Table of the bytes that a name may contain.
const NAME_BYTES: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut b = 0;
    while b < 256 {
        allowed[b] = (b as u8).is_ascii_alphanumeric() || matches!(b as u8, b'.' | b'_' | b'-');
        b += 1;
    }
    allowed
};

/// Checks one name: 1 to 255 bytes of `[A-Za-z0-9._-]`.
///
/// # Errors
/// `Invalid` naming `field` and the limit.
pub fn check_name(field: &'static str, value: &str) -> Result<(), RequestError> {
    if value.is_empty() || value.len() > limits::NAME_BYTES_MAX {
        return Err(RequestError::invalid(
            field,
            format!("must be 1 to {} bytes, got {}", limits::NAME_BYTES_MAX, value.len()),
        ));
    }
    // Branchless in the common case that all bytes are allowed.
    if value.bytes().fold(true, |all_allowed, b| all_allowed & NAME_BYTES[b as usize]) {
        return Ok(());
    }
    match value.bytes().position(|b| !NAME_BYTES[b as usize]) {
        None => Ok(()),
        Some(at) => {
            Err(RequestError::invalid(field, format!("may hold only [A-Za-z0-9._-]; byte {at} is not one of them")))
        }
    }
}

/// Name of a pool with its namespace, as `namespace/pool`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName(Arc<str>);

thread_local! {
    /// Name that this thread parsed last: most requests name the pool of the one before, so it is checked, joined and
    /// allocated once, and no other core changes its reference count.
    static LAST_POOL: RefCell<Option<PoolName>> = const { RefCell::new(None) };
}

impl PoolName {
    /// Joins and checks the two parts.
    ///
    /// # Errors
    /// `Invalid` naming `namespace` or `pool`.
    pub fn new(namespace: &str, pool: &str) -> Result<Self, RequestError> {
        if let Some(last) =
            LAST_POOL.with_borrow(|last| last.as_ref().filter(|last| last.matches_parts(namespace, pool)).cloned())
        {
            return Ok(last);
        }
        check_name("namespace", namespace)?;
        check_name("pool", pool)?;
        let name = Self([namespace, "/", pool].concat().into());
        LAST_POOL.set(Some(name.clone()));
        Ok(name)
    }

    /// Whether the name consists of these parts.
    fn matches_parts(&self, namespace: &str, pool: &str) -> bool {
        let remainder = self.0.strip_prefix(namespace).and_then(|remainder| remainder.strip_prefix('/'));
        remainder == Some(pool)
    }

    /// Parses a name of the form `namespace/pool`.
    ///
    /// # Errors
    /// `Invalid` naming `pool`.
    pub fn parse(text: &str) -> Result<Self, RequestError> {
        let (namespace, pool) =
            text.split_once('/').ok_or_else(|| RequestError::invalid("pool", "must be namespace/pool"))?;
        Self::new(namespace, pool)
    }

    /// Namespace, before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// Pool without its namespace, after the slash.
    #[must_use]
    pub fn pool(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, pool)| pool)
    }

    /// Text of the form `namespace/pool`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Id of a worker, unique within its pool.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Checks an id and stores it.
    ///
    /// # Errors
    /// `Invalid` naming `id`.
    pub fn new(id: &str) -> Result<Self, RequestError> {
        check_name("id", id)?;
        Ok(Self(id.into()))
    }

    /// Text of the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Pinned hash of the id (xxh3, fixed seed, [`HASH_VERSION`]).
    #[must_use]
    pub fn hash64(&self) -> u64 {
        xxh3_64_with_seed(self.0.as_bytes(), WORKER_HASH_SEED)
    }

    /// Index of the shard that owns this worker, of `shards` (a power of two). Invariant `P1`.
    #[must_use]
    pub fn shard(&self, shards: u16) -> u16 {
        debug_assert!(shards.is_power_of_two(), "P1: the number of shards is a power of two");
        (self.hash64() & u64::from(shards - 1)) as u16
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tenant of a claim that names none.
pub const DEFAULT_TENANT: &str = "default";

/// Number of length bytes before the text of a [`ClaimId`].
const LENGTHS: usize = 2;

/// Identity of a claim: `(namespace, tenant, key)`, as one text and its hash.
#[derive(Clone)]
pub struct ClaimId {
    /// Lengths of the first two parts, a byte each, then the parts joined by slashes; bytes, so that joining need not
    /// validate UTF-8 again.
    text: Arc<[u8]>,
    hash: u64,
}

impl ClaimId {
    /// Joins and checks the three parts.
    ///
    /// # Errors
    /// `Invalid` naming `namespace`, `tenant` or `key`.
    pub fn new(namespace: &str, tenant: &str, key: &str) -> Result<Self, RequestError> {
        check_name("namespace", namespace)?;
        check_name("tenant", tenant)?;
        check_name("key", key)?;
        Ok(Self::join(namespace, tenant, key))
    }

    /// Joins parts that were checked.
    fn join(namespace: &str, tenant: &str, key: &str) -> Self {
        // On the stack unless the names are long: the only allocation is that of the shared text.
        let mut text: SmallVec<[u8; 128]> = SmallVec::new();
        text.extend([namespace, tenant].map(|part| u8::try_from(part.len()).expect("names are at most 255 bytes")));
        for (i, part) in [namespace, tenant, key].into_iter().enumerate() {
            if i > 0 {
                text.push(b'/');
            }
            text.extend_from_slice(part.as_bytes());
        }
        Self { hash: xxh3_64(&text), text: text.as_slice().into() }
    }

    /// Text between two positions.
    fn part(&self, from: usize, to: usize) -> &str {
        std::str::from_utf8(&self.text[from..to]).expect("the parts were joined from texts")
    }

    /// End positions of the first two parts.
    fn ends(&self) -> (usize, usize) {
        let namespace = LENGTHS + usize::from(self.text[0]);
        (namespace, namespace + 1 + usize::from(self.text[1]))
    }

    /// Whether the pool is in the claim's namespace.
    #[must_use]
    pub fn is_in(&self, pool: &PoolName) -> bool {
        let with_slash = LENGTHS..=self.ends().0;
        pool.0.as_bytes().starts_with(&self.text[with_slash])
    }

    /// Namespace of the claim.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.part(LENGTHS, self.ends().0)
    }

    /// Tenant within the namespace.
    #[must_use]
    pub fn tenant(&self) -> &str {
        let (namespace, tenant) = self.ends();
        self.part(namespace + 1, tenant)
    }

    /// Key within the tenant.
    #[must_use]
    pub fn key(&self) -> &str {
        self.part(self.ends().1 + 1, self.text.len())
    }

    /// Key with its tenant, as `tenant/key`.
    #[must_use]
    pub fn tenant_and_key(&self) -> &str {
        self.part(self.ends().0 + 1, self.text.len())
    }

    /// Owner of the claim, as `namespace/tenant`.
    #[must_use]
    pub fn owner(&self) -> &str {
        self.part(LENGTHS, self.ends().1)
    }

    /// Owner of the claim, as bytes.
    #[must_use]
    pub fn owner_bytes(&self) -> &[u8] {
        &self.text[LENGTHS..self.ends().1]
    }

    /// Hash of the whole identity, for this process only; never stored.
    #[must_use]
    pub const fn hash64(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for ClaimId {
    fn eq(&self, other: &Self) -> bool {
        // Most comparisons are between clones, which share the text.
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for ClaimId {}

impl std::hash::Hash for ClaimId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part(LENGTHS, self.text.len()))
    }
}

/// Hash of an affinity string; a collision only costs a preference.
#[must_use]
pub fn affinity_hash(word: &str) -> u64 {
    xxh3_64(word.as_bytes())
}

/// Checks a label key: one of Kubernetes (`topology.kubernetes.io/zone`: a DNS subdomain and a name), or without a
/// slash any name.
///
/// # Errors
/// `Invalid` naming `field` and the rule.
pub fn check_label_key(field: &'static str, key: &str) -> Result<(), RequestError> {
    let Some((prefix, name)) = key.split_once('/') else { return check_name(field, key) };
    let is_inner = |bytes: &[u8], is_allowed: fn(&u8) -> bool| match bytes {
        [] => false,
        [first, .., last] if !(first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric()) => false,
        bytes => bytes.iter().all(is_allowed) && bytes[0].is_ascii_alphanumeric(),
    };
    let is_dns = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let is_subdomain = prefix.split('.').all(|part| is_inner(part.as_bytes(), is_dns));
    if prefix.len() > limits::LABEL_PREFIX_BYTES_MAX || !is_subdomain {
        let message = format!(
            "the part before the slash must be a DNS subdomain (lower case letters, digits, - and .) of at most {} bytes",
            limits::LABEL_PREFIX_BYTES_MAX
        );
        return Err(RequestError::invalid(field, message));
    }
    if name.len() > limits::LABEL_NAME_BYTES_MAX || !is_inner(name.as_bytes(), |byte| NAME_BYTES[usize::from(*byte)]) {
        let message = format!(
            "the part after the slash must be 1 to {} bytes of [A-Za-z0-9._-] that begin and end with a letter or digit",
            limits::LABEL_NAME_BYTES_MAX
        );
        return Err(RequestError::invalid(field, message));
    }
    Ok(())
}

/// Beginning of a key for an error message, which stays small whatever is sent.
fn truncated(key: &str) -> String {
    key.chars().take(limits::LABEL_PREFIX_BYTES_MAX).collect()
}

/// Checks a label set: at most 64, keys by [`check_label_key`], values at most 255 bytes without control characters.
///
/// # Errors
/// `Invalid` naming `labels`, and in its message the key.
pub fn check_labels(labels: &Labels) -> Result<(), RequestError> {
    if labels.len() > limits::LABELS_MAX {
        return Err(RequestError::invalid(
            "labels",
            format!("must be at most {} labels, got {}", limits::LABELS_MAX, labels.len()),
        ));
    }
    for (key, value) in labels {
        if let Err(error) = check_label_key("labels", key) {
            return Err(RequestError::invalid("labels", format!("key {:?}: {error}", truncated(key))));
        }
        if value.len() > limits::LABEL_VALUE_BYTES_MAX || value.chars().any(char::is_control) {
            let message = format!(
                "value of key {key:?} must be at most {} bytes without control characters",
                limits::LABEL_VALUE_BYTES_MAX
            );
            return Err(RequestError::invalid("labels", message));
        }
    }
    Ok(())
}
