//! Records of workers and claims, with the operations that read and write them.

use super::nodes::BaselineSession;
use crate::grant_checker::worker_ordinal;
use crate::http_calls::target_error;
use crate::resp_pipeline::RespValue;
use crate::stats::TargetError;
use hotpool::model::Fence;

/// Record of a worker: `version free`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BaselineWorkerRow {
    pub(super) version: u64,
    /// Number of free slots; 1 or 0 if a claim takes the whole worker.
    pub(super) free: u32,
}

impl BaselineWorkerRow {
    pub(super) fn read(text: &str) -> Option<Self> {
        let (version, free) = text.split_once(' ')?;
        Some(Self { version: version.parse().ok()?, free: free.parse().ok()? })
    }

    /// Next version of the record with `slots` fewer free; `None` if there are not as many.
    pub(super) fn with_taken(self, slots: u32) -> Option<Self> {
        Some(Self { version: self.version + 1, free: self.free.checked_sub(slots)? })
    }

    /// Next version of the record with `slots` more free.
    pub(super) const fn with_returned(self, slots: u32) -> Self {
        Self { version: self.version + 1, free: self.free + slots }
    }

    pub(super) fn text(self) -> String {
        format!("{} {}", self.version, self.free)
    }
}

/// Record of a claim: `fence worker slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BaselineClaimRow {
    pub(super) fence: Fence,
    /// Id of the worker that the claim holds.
    pub(super) worker: String,
    pub(super) slots: u32,
}

impl BaselineClaimRow {
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut fields = text.split(' ');
        let (fence, worker, slots) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Self { fence: fence.parse().ok()?, worker: worker.to_owned(), slots: slots.parse().ok()? })
    }

    pub(super) fn text(&self) -> String {
        format!("{} {} {}", self.fence, self.worker, self.slots)
    }
}

/// Reads every worker with its record: each server page by page, and all records of a page in one pipeline. Two round
/// trips for each page that has a worker.
pub(super) async fn read_all(
    session: &mut BaselineSession<'_>,
) -> Result<Vec<(String, BaselineWorkerRow)>, TargetError> {
    let base = session.base;
    let pattern = format!("w:{{{}*", base.tag);
    let mut workers = Vec::new();
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
                workers.extend(names.iter().zip(rows).filter_map(read));
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    // Pages may repeat keys of earlier ones.
    workers.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    workers.dedup_by(|(a, _), (b, _)| a == b);
    Ok(workers)
}

/// Extracts the worker's id from the key of its record.
fn id_of(name: &str) -> Option<&str> {
    name.trim_end_matches('}').rsplit(['.', '}']).next().filter(|id| worker_ordinal(id) != u32::MAX)
}

/// Picks a worker with enough free slots. The choice depends on `seed`, so that clients do not all pick the first.
pub(super) fn pick_worker(
    workers: &[(String, BaselineWorkerRow)],
    slots: u32,
    seed: &str,
) -> Option<(String, BaselineWorkerRow)> {
    let candidates: Vec<&(String, BaselineWorkerRow)> = workers.iter().filter(|(_, row)| row.free >= slots).collect();
    let hash = xxhash_rust::xxh3::xxh3_64(seed.as_bytes());
    let index = usize::try_from(hash % candidates.len().max(1) as u64).unwrap_or(0);
    candidates.get(index).map(|(id, row)| (id.clone(), *row))
}

/// Reads the record of a claim, if it exists: one round trip.
pub(super) async fn claim_row(
    session: &mut BaselineSession<'_>,
    key: &str,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    let name = session.base.claim_key(key);
    let row = session.execute(&name, &[b"GET", name.as_bytes()]).await?;
    Ok(row.text().and_then(BaselineClaimRow::read))
}

/// Checks that a claim is held under `fence`; `None` if the record is gone.
pub(super) fn check_fence(
    row: Option<BaselineClaimRow>,
    fence: Fence,
) -> Result<Option<BaselineClaimRow>, TargetError> {
    match row {
        Some(row) if row.fence != fence => Err(target_error("the fence does not match the holder's".into(), false)),
        row => Ok(row),
    }
}

/// Change to a record, decided from its present value.
pub(super) enum BaselineRowChange {
    Set(String),
    Delete,
    /// No change, because the present value does not allow it.
    Keep,
}

/// Changes a record unless another client does so meanwhile: `WATCH`, `GET`, then `MULTI`, the change and `EXEC` in
/// one pipeline. Three round trips. Returns false if another client was faster or no change was made.
pub(super) async fn update_if_unchanged(
    session: &mut BaselineSession<'_>,
    name: &str,
    change: impl FnOnce(Option<&str>) -> BaselineRowChange,
) -> Result<bool, TargetError> {
    session.execute(name, &[b"WATCH", name.as_bytes()]).await?;
    let row = session.execute(name, &[b"GET", name.as_bytes()]).await?;
    let change = change(row.text());
    let command: Vec<&[u8]> = match &change {
        BaselineRowChange::Set(value) => vec![b"SET", name.as_bytes(), value.as_bytes()],
        BaselineRowChange::Delete => vec![b"DEL", name.as_bytes()],
        BaselineRowChange::Keep => {
            session.execute(name, &[b"UNWATCH"]).await?;
            return Ok(false);
        }
    };
    let node = session.base.nodes.node_of(name);
    let mut replies = session.pipeline(node, &[vec![b"MULTI"], command, vec![b"EXEC"]]).await?;
    let reply = replies.pop().unwrap_or(RespValue::Nil).into_result()?;
    Ok(reply != RespValue::Nil)
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
        let row = BaselineClaimRow { fence: 9, worker: "w0000001".into(), slots: 2 };
        assert_eq!(BaselineClaimRow::read(&row.text()), Some(row));
        assert_eq!((BaselineWorkerRow::read("x"), BaselineClaimRow::read("1 w")), (None, None));
    }

    #[test]
    fn worker_ids_are_extracted_from_keys() {
        assert_eq!(id_of("w:{0123456789ab.w0000012}"), Some("w0000012"));
        assert_eq!(id_of("w:{0123456789ab}w0000012"), Some("w0000012"));
        assert_eq!(id_of("w:{0123456789ab}"), None);
    }

    #[test]
    fn only_workers_with_capacity_are_picked() {
        let workers: Vec<(String, BaselineWorkerRow)> =
            (0..4).map(|free| (format!("w{free:07}"), BaselineWorkerRow { version: 0, free })).collect();
        for seed in ["a", "b", "c", "d", "e"] {
            assert!(pick_worker(&workers, 2, seed).is_some_and(|(_, row)| row.free >= 2));
        }
        assert_eq!(pick_worker(&workers, 4, "a"), None);
    }
}
