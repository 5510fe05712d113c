//! Keys of one server, and the last writes with what they replaced, so that a replica or a disk may lack some of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Fields of a hash with their values.
pub type HashFields = BTreeMap<Vec<u8>, Vec<u8>>;

/// Value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredValue {
    Hash(HashFields),
    Text(Vec<u8>),
}

/// Keys of a server, and the libraries of functions that are loaded.
#[derive(Debug, Clone, Default)]
pub struct Keyspace {
    keys: BTreeMap<Vec<u8>, StoredValue>,
    libraries: BTreeSet<String>,
}

/// Error of a command on a key of another type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongType;

impl Keyspace {
    pub const fn keys(&self) -> &BTreeMap<Vec<u8>, StoredValue> {
        &self.keys
    }

    pub const fn libraries(&self) -> &BTreeSet<String> {
        &self.libraries
    }

    /// Fields of a hash; none if the key is missing.
    pub fn hash(&self, key: &[u8]) -> Result<Option<&HashFields>, WrongType> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(StoredValue::Hash(fields)) => Ok(Some(fields)),
            Some(StoredValue::Text(_)) => Err(WrongType),
        }
    }

    fn undo(&mut self, replaced: &Replaced) {
        match replaced {
            Replaced::Field(key, field, before) => {
                let fields = match self.keys.entry(key.clone()).or_insert_with(|| StoredValue::Hash(BTreeMap::new())) {
                    StoredValue::Hash(fields) => fields,
                    StoredValue::Text(_) => panic!("undone in the wrong order"),
                };
                match before {
                    Some(value) => drop(fields.insert(field.clone(), value.clone())),
                    None => drop(fields.remove(field)),
                }
                if fields.is_empty() {
                    self.keys.remove(key);
                }
            }
            Replaced::Key(key, Some(value)) => drop(self.keys.insert(key.clone(), value.clone())),
            Replaced::Key(key, None) => drop(self.keys.remove(key)),
            Replaced::Libraries(before) => self.libraries.clone_from(before),
        }
    }
}

/// State that a write replaced.
#[derive(Debug)]
enum Replaced {
    Field(Vec<u8>, Vec<u8>, Option<Vec<u8>>),
    Key(Vec<u8>, Option<StoredValue>),
    Libraries(BTreeSet<String>),
}

/// Changes of one command, which a replica and a disk get as a whole.
pub struct Transaction<'a> {
    keyspace: &'a mut Keyspace,
    replaced: Vec<Replaced>,
}

impl<'a> Transaction<'a> {
    pub const fn new(keyspace: &'a mut Keyspace) -> Self {
        Self { keyspace, replaced: Vec::new() }
    }

    pub const fn keyspace(&self) -> &Keyspace {
        self.keyspace
    }

    pub fn get(&self, key: &[u8], field: &[u8]) -> Result<Option<Vec<u8>>, WrongType> {
        Ok(self.keyspace.hash(key)?.and_then(|fields| fields.get(field).cloned()))
    }

    pub fn set(&mut self, key: &[u8], field: &[u8], value: &[u8]) -> Result<(), WrongType> {
        let value_of_key = self.keyspace.keys.entry(key.to_vec()).or_insert_with(|| StoredValue::Hash(BTreeMap::new()));
        let StoredValue::Hash(fields) = value_of_key else { return Err(WrongType) };
        let before = fields.insert(field.to_vec(), value.to_vec());
        self.replaced.push(Replaced::Field(key.to_vec(), field.to_vec(), before));
        Ok(())
    }

    pub fn delete_field(&mut self, key: &[u8], field: &[u8]) -> Result<(), WrongType> {
        let Some(value) = self.keyspace.keys.get_mut(key) else { return Ok(()) };
        let StoredValue::Hash(fields) = value else { return Err(WrongType) };
        let Some(before) = fields.remove(field) else { return Ok(()) };
        if fields.is_empty() {
            self.keyspace.keys.remove(key);
        }
        self.replaced.push(Replaced::Field(key.to_vec(), field.to_vec(), Some(before)));
        Ok(())
    }

    /// Replaces or removes a key, and returns whether it existed.
    pub fn replace(&mut self, key: &[u8], value: Option<StoredValue>) -> bool {
        let before = match value {
            Some(value) => self.keyspace.keys.insert(key.to_vec(), value),
            None => self.keyspace.keys.remove(key),
        };
        let existed = before.is_some();
        self.replaced.push(Replaced::Key(key.to_vec(), before));
        existed
    }

    pub fn remove_all_keys(&mut self) {
        let keys = std::mem::take(&mut self.keyspace.keys);
        self.replaced.extend(keys.into_iter().map(|(key, value)| Replaced::Key(key, Some(value))));
    }

    pub fn add_library(&mut self, name: &str) {
        self.replaced.push(Replaced::Libraries(self.keyspace.libraries.clone()));
        self.keyspace.libraries.insert(name.to_owned());
    }

    pub fn remove_libraries(&mut self) {
        self.replaced.push(Replaced::Libraries(std::mem::take(&mut self.keyspace.libraries)));
    }
}

/// Write of one command, with what it replaced and where it has arrived.
struct Write {
    number: u64,
    /// Time at which the replica has it; none: no replica gets it.
    replicated_ns: Option<u64>,
    /// Time at which the disk has it.
    synced_ns: u64,
    replaced: Vec<Replaced>,
}

/// Writes that a replica or the disk may lack, in order.
#[derive(Default)]
pub struct History {
    writes: VecDeque<Write>,
    last_number: u64,
}

impl History {
    /// Notes what a transaction changed. Returns the number of the write; none if nothing was changed.
    pub fn record(&mut self, replaced: Recorded, replicated_ns: Option<u64>, synced_ns: u64) -> Option<u64> {
        if replaced.0.is_empty() {
            return None;
        }
        self.last_number += 1;
        // A stream arrives in order.
        let replicated_ns = match self.writes.back() {
            Some(last) => replicated_ns.and_then(|at| last.replicated_ns.map(|last| last.max(at))),
            None => replicated_ns,
        };
        let synced_ns = self.writes.back().map_or(synced_ns, |last| last.synced_ns.max(synced_ns));
        self.writes.push_back(Write { number: self.last_number, replicated_ns, synced_ns, replaced: replaced.0 });
        Some(self.last_number)
    }

    /// Forgets what both the replica and the disk have.
    pub fn prune(&mut self, now_ns: u64) {
        while self
            .writes
            .front()
            .is_some_and(|write| write.synced_ns <= now_ns && write.replicated_ns.is_some_and(|at| at <= now_ns))
        {
            self.writes.pop_front();
        }
    }

    /// Lets a replica have everything at `at_ns`.
    pub fn replicate_all(&mut self, at_ns: u64) {
        for write in &mut self.writes {
            write.replicated_ns = Some(write.replicated_ns.map_or(at_ns, |before| before.min(at_ns)));
        }
    }

    /// Keeps the replica from what it does not have yet.
    pub fn stop_replication(&mut self, now_ns: u64) {
        for write in &mut self.writes {
            write.replicated_ns = write.replicated_ns.filter(|at| *at <= now_ns);
        }
    }

    /// Time at which a replica has the write of this number; none: never.
    pub fn replicated_ns(&self, number: u64) -> Option<u64> {
        match self.writes.iter().find(|write| write.number == number) {
            Some(write) => write.replicated_ns,
            None => Some(0),
        }
    }

    /// Takes back, in `keyspace`, the writes that a replica lacks. Returns their number.
    pub fn revert_unreplicated(&self, keyspace: &mut Keyspace, now_ns: u64) -> usize {
        self.revert(keyspace, |write| write.replicated_ns.is_none_or(|at| at > now_ns))
    }

    /// Takes back, in `keyspace`, the writes that the disk lacks. Returns their number.
    pub fn revert_unsynced(&self, keyspace: &mut Keyspace, now_ns: u64) -> usize {
        self.revert(keyspace, |write| write.synced_ns > now_ns)
    }

    fn revert(&self, keyspace: &mut Keyspace, is_missing: impl Fn(&Write) -> bool) -> usize {
        let missing = self.writes.iter().rev().take_while(|write| is_missing(write));
        let mut count = 0;
        for write in missing {
            for replaced in write.replaced.iter().rev() {
                keyspace.undo(replaced);
            }
            count += 1;
        }
        count
    }

    pub fn clear(&mut self) {
        self.writes.clear();
    }
}

/// State that a finished transaction replaced.
pub struct Recorded(Vec<Replaced>);

impl From<Transaction<'_>> for Recorded {
    fn from(transaction: Transaction<'_>) -> Self {
        Self(transaction.replaced)
    }
}
