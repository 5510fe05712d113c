//! Records of workers and claims, and the ways to read and write them.

use super::nodes::BaselineSession;
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::RespValue;
use crate::stats::TargetError;
use hotpool::model::Fence;

/// A worker's record: `version free`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaselineWorkerRow {
    pub(super) version: u64,
    /// Slots that nothing holds; of a worker that is claimed whole, 1 or 0.
    pub(super) free: u32,
}

impl BaselineWorkerRow {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (version, free) = text.split_once(' ')?;
        Some(Self { version: version.parse().ok()?, free: free.parse().ok()? })
    }

    /// The next version, with less free.
    pub(super) fn with_taken(self, slots: u32) -> Option<Self> {
        Some(Self { version: self.version + 1, free: self.free.checked_sub(slots)? })
    }

    /// The next version, with more free.
    pub(super) const fn with_returned(self, slots: u32) -> Self {
        Self { version: self.version + 1, free: self.free + slots }
    }

    pub(super) fn text(self) -> String {
        format!("{} {}", self.version, self.free)
    }
}

/// A claim's record: `fence worker slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaselineClaimRow {
    pub(super) fence: Fence,
    /// The worker's id.
    pub(super) worker: String,
    pub(super) slots: u32,
}

impl BaselineClaimRow {
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (fence, worker, slots) = (words.next()?, words.next()?, words.next()?);
        Some(Self { fence: fence.parse().ok()?, worker: worker.to_owned(), slots: slots.parse().ok()? })
    }

    pub(super) fn text(&self) -> String {
        format!("{} {} {}", self.fence, self.worker, self.slots)
    }
}

/// Every worker with its record: of each server page by page, and of each page all records in one writing. Two round trips
/// for each page that has a worker.
pub(super) async fn read_all(
    session: &mut BaselineSession<'_>,
) -> Result<Vec<(String, BaselineWorkerRow)>, TargetError> {
    let base = session.base;
    let pattern = format!("w:{{{}*", base.tag);
    let mut found = Vec::new();
    for node in 0..base.nodes.count() {
        let mut cursor = "0".to_owned();
        loop {
            let (next, names) = session.page(node, &cursor, &pattern).await?;
            let commands: Vec<Vec<&[u8]>> = names.iter().map(|name| vec![&b"GET"[..], name.as_bytes()]).collect();
            if !commands.is_empty() {
                let rows = session.pipeline(node, &commands).await?;
                let read = |(name, row): (&String, RespValue)| {
                    Some((id_of(name)?.to_owned(), BaselineWorkerRow::read(row.text()?)?))
                };
                found.extend(names.iter().zip(rows).filter_map(read));
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    // A page may repeat what another one had.
    found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    found.dedup_by(|(a, _), (b, _)| a == b);
    Ok(found)
}

/// The worker's id in the name of its record.
fn id_of(name: &str) -> Option<&str> {
    name.trim_end_matches('}').rsplit(['.', '}']).next().filter(|id| worker_ordinal(id) != u32::MAX)
}

/// One of the workers that have room; which one is up to `seed`, so that clients do not all take the first.
pub(super) fn pick_worker(
    workers: &[(String, BaselineWorkerRow)],
    slots: u32,
    seed: &str,
) -> Option<(String, BaselineWorkerRow)> {
    let with_room: Vec<&(String, BaselineWorkerRow)> = workers.iter().filter(|(_, row)| row.free >= slots).collect();
    let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes());
    let at = usize::try_from(hash % with_room.len().max(1) as u64).unwrap_or(0);
    with_room.get(at).map(|(id, row)| (id.clone(), *row))
}

/// The record of a claim, if there is one: one round trip.
pub(super) async fn claim_row(
    session: &mut BaselineSession<'_>,
    key: &str,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    let name = session.base.claim_key(key);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    Ok(row.text().and_then(BaselineClaimRow::read))
}

/// The record of a claim that must be held under `fence`; none if it is gone already: one round trip.
pub(super) fn check_fence(
    held: Option<BaselineClaimRow>,
    fence: Fence,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    match held {
        Some(held) if held.fence != fence => Err(target_error("the fence is not the holder's".into(), false)),
        held => Ok(held),
    }
}

/// What becomes of a record.
pub(super) enum BaselineRowChange {
    Set(String),
    Delete,
    /// What was read does not allow it.
    Keep,
}

/// Changes a record only if nobody else does meanwhile: `WATCH`, `GET`, then `MULTI`, the change and `EXEC` in one writing.
/// Three round trips. True: it was changed. False: somebody else was faster, or it was to be left.
pub(super) async fn update_if_unchanged(
    session: &mut BaselineSession<'_>,
    name: &str,
    change: impl FnOnce(Option<&str>) -> BaselineRowChange,
) -> Result<bool, TargetError> {
    session.execute(name, &[b"WATCH", name.as_bytes()]).await?;
    let row = session.execute(name, &[b"GET", name.as_bytes()]).await?;
    let change = change(row.text());
    let written: Vec<&[u8]> = match &change {
        BaselineRowChange::Set(value) => vec![b"SET", name.as_bytes(), value.as_bytes()],
        BaselineRowChange::Delete => vec![b"DEL", name.as_bytes()],
        BaselineRowChange::Keep => {
            session.execute(name, &[b"UNWATCH"]).await?;
            return Ok(false);
        }
    };
    let node = session.base.nodes.node_of(name);
    let mut replies = session.pipeline(node, &[vec![b"MULTI"], written, vec![b"EXEC"]]).await?;
    let done = replies.pop().unwrap_or(RespValue::Nil).into_result()?;
    Ok(done != RespValue::Nil)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip() {
        let row = BaselineWorkerRow { version: 7, free: 3 };
        assert_eq!(BaselineWorkerRow::read(&row.text()), Some(row));
        assert_eq!(row.with_taken(3), Some(BaselineWorkerRow { version: 8, free: 0 }));
        assert_eq!(row.with_taken(4), None);
        let held = BaselineClaimRow { fence: 9, worker: "w0000001".into(), slots: 2 };
        assert_eq!(BaselineClaimRow::read(&held.text()), Some(held));
        assert_eq!((BaselineWorkerRow::read("x"), BaselineClaimRow::read("1 w")), (None, None));
    }

    #[test]
    fn ids_are_found_in_names() {
        assert_eq!(id_of("w:{0123456789ab.w0000012}"), Some("w0000012"));
        assert_eq!(id_of("w:{0123456789ab}w0000012"), Some("w0000012"));
        assert_eq!(id_of("w:{0123456789ab}"), None);
    }

    #[test]
    fn only_workers_with_room_are_picked() {
        let workers: Vec<(String, BaselineWorkerRow)> =
            (0..4).map(|free| (format!("w{free:07}"), BaselineWorkerRow { version: 0, free })).collect();
        for seed in ["a", "b", "c", "d", "e"] {
            assert!(pick_worker(&workers, 2, seed).is_some_and(|(_, row)| row.free >= 2));
        }
        assert_eq!(pick_worker(&workers, 4, "a"), None);
    }
}
