//! Compaction of pending rows to the last state of each, so that their size is bounded by the fleet and not by how long the
//! store is away. Pure.

use crate::collections::HashMap;
use crate::persist::row::{RowFrames, RowKind};

/// Keeps the last frame of every row, in the order of those last frames.
///
/// # Panics
/// If `frames` are not whole frames, which cannot happen to frames that this process wrote.
pub fn compact(frames: &mut Vec<u8>) {
    let mut last: HashMap<(RowKind, &str), (usize, usize)> = HashMap::default();
    let mut reader = RowFrames::new(frames);
    let mut start = 0;
    while let Some(frame) = reader.next() {
        let frame = frame.expect("frames of this process are whole");
        let end = frames.len() - reader.rest().len();
        last.insert((frame.kind, frame.id), (start, end));
        start = end;
    }
    let mut spans: Vec<(usize, usize)> = last.into_values().collect();
    spans.sort_unstable();
    let mut compacted = Vec::with_capacity(spans.iter().map(|(start, end)| end - start).sum());
    for (start, end) in spans {
        compacted.extend_from_slice(&frames[start..end]);
    }
    *frames = compacted;
}

/// Splits whole frames off the front: at least `bytes` of them, or all.
///
/// # Panics
/// If `frames` are not whole frames, as in [`compact`].
pub fn split_front(frames: &mut Vec<u8>, bytes: usize) -> Vec<u8> {
    let mut reader = RowFrames::new(frames);
    let mut end = 0;
    while end < bytes
        && let Some(frame) = reader.next()
    {
        frame.expect("frames of this process are whole");
        end = frames.len() - reader.rest().len();
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
    fn splits_between_frames() {
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
            for (uid, version) in ops {
                if version == 0 {
                    put_deletion(&mut frames, RowKind::Pool, &uid.to_string());
                    oracle.insert(uid.to_string(), None);
                } else {
                    put_pool(&mut frames, &PoolRow { uid, hash_version: version, ..PoolRow::default() });
                    oracle.insert(uid.to_string(), Some(version));
                }
            }
            compact(&mut frames);
            let mut states = BTreeMap::new();
            for frame in RowFrames::new(&frames) {
                let frame = frame.expect("whole");
                let state = frame.body.map(|body| prost::Message::decode(&body[1..]).map(|row: PoolRow| row.hash_version).expect("a pool"));
                prop_assert!(states.insert(frame.id.to_owned(), state).is_none(), "a row twice");
            }
            prop_assert_eq!(states, oracle);
        }
    }
}
