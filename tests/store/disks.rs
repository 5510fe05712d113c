//! The model of a disk, held against a real one by random calls: as long as nothing fails and the power stays on, both answer
//! alike.

use std::io;
use std::sync::Arc;

use hotpool::persist::store::file::{DirectoryDisk, DiskFile, StoreDisk};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::dir;
use super::model_disk::ModelDisk;

const RUNS: u64 = 60;
const CALLS: usize = 300;
const NAMES: [&str; 4] = ["log-1", "log-2", "log-2.unsynced", "owner"];
/// Handles that stay open while their files are renamed, replaced and removed.
const OPEN_MAX: usize = 6;

/// File of the model, and the real one.
type Both = (Arc<dyn DiskFile>, Arc<dyn DiskFile>);

/// Answer to a call, as far as both disks must agree on it.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Bytes(Vec<u8>),
    Size(u64),
    Names(Vec<String>),
    Failed(io::ErrorKind),
}

fn done(result: &io::Result<()>) -> Answer {
    result.as_ref().map_or_else(|error| Answer::Failed(error.kind()), |()| Answer::Done)
}

fn read(file: &dyn DiskFile, offset: u64, length: usize) -> Answer {
    let mut into = vec![0xee; length];
    match file.read_at(offset, &mut into) {
        Ok(count) => Answer::Bytes(into[..count].to_vec()),
        Err(error) => Answer::Failed(error.kind()),
    }
}

fn names(disk: &dyn StoreDisk) -> Answer {
    let mut names = disk.list().expect("the names");
    names.sort();
    Answer::Names(names)
}

#[test]
fn s01_the_model_of_a_disk_answers_as_a_real_one_does() {
    for seed in 0..RUNS {
        let random = &mut StdRng::seed_from_u64(seed);
        let (real_dir, model) = (dir(), ModelDisk::default());
        let real = DirectoryDisk::new(real_dir.path());
        let mut open: Vec<Both> = Vec::new();
        let keep = |open: &mut Vec<Both>, model: io::Result<_>, real: io::Result<_>| match (model, real) {
            (Ok(model), Ok(real)) => {
                open.push((model, real));
                if open.len() > OPEN_MAX {
                    open.remove(0);
                }
                (Answer::Done, Answer::Done)
            }
            (model, real) => (done(&model.map(drop)), done(&real.map(drop))),
        };
        for call in 0..CALLS {
            let name = NAMES[random.random_range(0..NAMES.len())];
            let to = NAMES[random.random_range(0..NAMES.len())];
            let offset = random.random_range(0..3_000_u64);
            let length = if random.random_bool(0.1) { 0 } else { random.random_range(0..1_500_usize) };
            let kind = random.random_range(0..10);
            let (of_model, of_real) = match kind {
                0 => keep(&mut open, model.create(name), real.create(name)),
                1 => keep(&mut open, model.open(name), real.open(name)),
                2 => (done(&model.rename(name, to)), done(&real.rename(name, to))),
                3 => (done(&model.remove(name)), done(&real.remove(name))),
                4 => (done(&model.sync_names()), done(&real.sync_names())),
                5 => (names(&model), names(&real)),
                _ if open.is_empty() => continue,
                _ => {
                    let (model, real) = &open[random.random_range(0..open.len())];
                    match kind {
                        6 => (read(&**model, offset, length), read(&**real, offset, length)),
                        7 => {
                            let size = |file: &dyn DiskFile| Answer::Size(file.size_bytes().expect("the size"));
                            (size(&**model), size(&**real))
                        }
                        8 => (done(&model.sync()), done(&real.sync())),
                        _ => {
                            let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
                            (done(&model.write_at(offset, &bytes)), done(&real.write_at(offset, &bytes)))
                        }
                    }
                }
            };
            assert_eq!(
                of_model, of_real,
                "seed {seed}, call {call} of kind {kind}: {name} to {to}, {length} at {offset}"
            );
        }
    }
}
