//! Model of a disk in memory. What was not synced may be lost, torn or reordered by a power failure; calls can be made to fail,
//! and the power can fail before any call.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hotpool::persist::store::file::{DiskFile, StoreDisk};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rustix::io::Errno;

/// Size of the parts of a write that survive a power failure or not, in bytes.
const SECTOR_BYTES: usize = 512;

/// Kind of a call that changes the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCall {
    Create,
    Read,
    Write,
    Sync,
    Rename,
    Remove,
    SyncNames,
}

/// Content of a file.
#[derive(Debug, Clone, Default)]
struct FileContent {
    /// Bytes that reads show.
    visible: Vec<u8>,
    /// Bytes that the disk has.
    durable: Vec<u8>,
    /// Writes since the last sync.
    unsynced: Vec<(usize, Vec<u8>)>,
}

fn write_into(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if part.is_empty() {
        return;
    }
    let end = offset + part.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(part);
}

type Names = BTreeMap<String, usize>;

/// Change of the names in the directory.
#[derive(Debug, Clone)]
enum NameChange {
    Create(String, usize),
    Rename(String, String, usize),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Create(name, id) => {
                names.insert(name.clone(), *id);
            }
            Self::Rename(from, to, id) => {
                names.remove(from);
                names.insert(to.clone(), *id);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

#[derive(Debug, Default)]
struct DiskState {
    files: Vec<FileContent>,
    names: Names,
    durable_names: Names,
    /// Changes since the last sync of the names.
    unsynced_names: Vec<NameChange>,
    /// Error of the next call of this kind.
    fault: Option<(DiskCall, Errno)>,
    /// Calls after which the power fails, and the seed of what survives.
    power: Option<(usize, u64)>,
    /// StoreDisk that a power failure left.
    survivor: Option<Box<DiskState>>,
}

impl DiskState {
    /// Checks whether a call fails, before it takes place.
    fn begin(&mut self, call: DiskCall) -> io::Result<()> {
        if let Some((calls_left, seed)) = &mut self.power {
            if *calls_left == 0 {
                let seed = *seed;
                let survivor = self.after_power_failure(seed);
                self.survivor.get_or_insert(Box::new(survivor));
                return Err(Errno::IO.into());
            }
            *calls_left -= 1;
        }
        match self.fault.take_if(|(kind, _)| *kind == call) {
            Some((_, errno)) => Err(errno.into()),
            None => Ok(()),
        }
    }

    fn after_power_failure(&self, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let files = self.files.iter().map(|file| {
            let mut durable = file.durable.clone();
            let mut parts: Vec<(usize, &[u8])> = Vec::new();
            for (offset, bytes) in &file.unsynced {
                let mut at = 0;
                while at < bytes.len() {
                    // Sectors of the disk, not of the write.
                    let end = (at + SECTOR_BYTES - (offset + at) % SECTOR_BYTES).min(bytes.len());
                    parts.push((offset + at, &bytes[at..end]));
                    at = end;
                }
            }
            match random.random_range(0..3) {
                0 => parts.clear(),
                1 => {}
                _ => {
                    parts.shuffle(&mut random);
                    let kept = random.random_range(0..=parts.len());
                    parts.truncate(kept);
                }
            }
            parts.iter().for_each(|(offset, part)| write_into(&mut durable, *offset, part));
            FileContent { visible: durable.clone(), durable, unsynced: Vec::new() }
        });
        let files = files.collect();
        let mut names = self.durable_names.clone();
        for change in &self.unsynced_names {
            if random.random() {
                change.apply(&mut names);
            }
        }
        Self { files, names: names.clone(), durable_names: names, ..Self::default() }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn id_of(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// StoreDisk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct ModelDisk {
    state: Arc<Mutex<DiskState>>,
}

impl ModelDisk {
    fn state(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the next call of a kind fail. A failed sync makes nothing durable, then or later.
    pub fn fail(&self, call: DiskCall, errno: Errno) {
        self.state().fault = Some((call, errno));
    }

    /// Removes a fault that is still to come.
    #[allow(dead_code, reason = "the simulation ends its faults")]
    pub fn clear_fault(&self) {
        self.state().fault = None;
    }

    /// Whether the fault is still to come.
    pub fn has_fault(&self) -> bool {
        self.state().fault.is_some()
    }

    /// Lets the power fail before the call after this many: it and all later ones fail.
    pub fn fail_power_after(&self, calls: usize, seed: u64) {
        self.state().power = Some((calls, seed));
    }

    /// StoreDisk after a power failure: that of the injected one if it has occurred, otherwise as if it were now.
    pub fn after_power_failure(&self, seed: u64) -> Self {
        let mut state = self.state();
        let survivor = state.survivor.take().unwrap_or_else(|| Box::new(state.after_power_failure(seed)));
        Self { state: Arc::new(Mutex::new(*survivor)) }
    }

    /// Removes the injected power failure: only the process was killed.
    pub fn revive(&self) -> Self {
        let mut state = self.state();
        (state.power, state.survivor) = (None, None);
        self.clone()
    }

    /// Names of all files.
    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Changes a file behind the back of the store, durably.
    pub fn alter(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = state.id_of(name).expect("the file exists");
        let file = &mut state.files[id];
        change(&mut file.visible);
        file.durable.clone_from(&file.visible);
    }

    /// Removes a file behind the back of the store, durably.
    pub fn lose(&self, name: &str) {
        let mut state = self.state();
        state.names.remove(name).expect("the file exists");
        state.durable_names.remove(name);
    }

    /// Independent copy of the disk.
    pub fn copy(&self) -> Self {
        let state = self.state();
        let copy = DiskState {
            files: state.files.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            ..DiskState::default()
        };
        Self { state: Arc::new(Mutex::new(copy)) }
    }
}

impl StoreDisk for ModelDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.begin(DiskCall::Create)?;
        let id = state.files.len();
        state.files.push(FileContent::default());
        state.change_names(NameChange::Create(name.to_owned(), id));
        Ok(Arc::new(ModelFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.state().id_of(name)?;
        Ok(Arc::new(ModelFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(DiskCall::Rename)?;
        let id = state.id_of(from)?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), id));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.begin(DiskCall::Remove)?;
        state.id_of(name)?;
        state.change_names(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        state.begin(DiskCall::SyncNames)?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> String {
        format!("disk/{name}")
    }
}

#[derive(Debug)]
struct ModelFile {
    disk: ModelDisk,
    id: usize,
}

impl DiskFile for ModelFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.id].visible.len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        if let Some((_, errno)) = state.fault.take_if(|(call, _)| *call == DiskCall::Read) {
            return Err(errno.into());
        }
        let rest = state.files[self.id].visible.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(into.len());
        into[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let begun = state.begin(DiskCall::Write);
        // A write that fails is done by halves.
        let written = if begun.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let file = &mut state.files[self.id];
        write_into(&mut file.visible, offset as usize, written);
        file.unsynced.push((offset as usize, written.to_vec()));
        begun
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let begun = state.begin(DiskCall::Sync);
        let has_power = state.survivor.is_none();
        let file = &mut state.files[self.id];
        let unsynced = if has_power { std::mem::take(&mut file.unsynced) } else { Vec::new() };
        begun?;
        unsynced.iter().for_each(|(offset, bytes)| write_into(&mut file.durable, *offset, bytes));
        Ok(())
    }
}
