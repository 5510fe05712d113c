//! Folds rows to the last state of each: what waits for the store is bounded by the fleet, not by how long the store
//! is away. Pure.

use hashbrown::HashMap;

use crate::persist::row::{RowFrames, RowKind};

/// Keeps the last frame of every row, in the order of those last frames.
///
/// # Panics
/// If `frames` are not whole frames: they were written by this process a moment ago.
pub fn compact(frames: &mut Vec<u8>) {
    let mut last: HashMap<(RowKind, &str), (usize, usize)> = HashMap::new();
    let mut walk = RowFrames::new(frames);
    let mut start = 0;
    while let Some(frame) = walk.next() {
        let frame = frame.expect("frames of this process are whole");
        let end = frames.len() - walk.rest().len();
        last.insert((frame.kind, frame.id), (start, end));
        start = end;
    }
    let mut kept: Vec<(usize, usize)> = last.into_values().collect();
    kept.sort_unstable();
    let mut folded = Vec::with_capacity(kept.iter().map(|(start, end)| end - start).sum());
    for (start, end) in kept {
        folded.extend_from_slice(&frames[start..end]);
    }
    *frames = folded;
}

/// Takes whole frames from the front: at least `bytes`, if there are so many.
///
/// # Panics
/// As [`fold`].
pub fn split_front(frames: &mut Vec<u8>, bytes: usize) -> Vec<u8> {
    let mut walk = RowFrames::new(frames);
    let mut end = 0;
    while end < bytes
        && let Some(frame) = walk.next()
    {
        frame.expect("frames of this process are whole");
        end = frames.len() - walk.rest().len();
    }
    let rest = frames.split_off(end);
    std::mem::replace(frames, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::row::{PoolRow, put_deletion, put_pool};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn cuts_between_frames() {
        let mut frames = Vec::new();
        for uid in 1..=3 {
            put_deletion(&mut frames, RowKind::Pool, &uid.to_string());
        }
        let (all, one) = (frames.clone(), frames.len() / 3);
        let front = split_front(&mut frames, one + 1);
        assert_eq!((front.len(), &[front, frames.clone()].concat()), (2 * one, &all));
        assert_eq!(split_front(&mut frames, 1_000).len(), one);
        assert!(frames.is_empty() && split_front(&mut frames, 1).is_empty());
    }

    proptest! {
        #[test]
        fn keeps_the_last_state_of_each_row(ops in proptest::collection::vec((0..6u64, 0..3u32), 0..60)) {
            let mut frames = Vec::new();
            let mut oracle: BTreeMap<String, Option<u32>> = BTreeMap::new();
            for (uid, what) in ops {
                if what == 0 {
                    put_deletion(&mut frames, RowKind::Pool, &uid.to_string());
                    oracle.insert(uid.to_string(), None);
                } else {
                    put_pool(&mut frames, &PoolRow { uid, hash_version: what, ..PoolRow::default() });
                    oracle.insert(uid.to_string(), Some(what));
                }
            }
            compact(&mut frames);
            let mut seen = BTreeMap::new();
            for frame in RowFrames::new(&frames) {
                let frame = frame.expect("whole");
                let state = frame.body.map(|body| prost::Message::decode(&body[1..]).map(|row: PoolRow| row.hash_version).expect("a pool"));
                prop_assert!(seen.insert(frame.id.to_owned(), state).is_none(), "a row twice");
            }
            prop_assert_eq!(seen, oracle);
        }
    }
}
