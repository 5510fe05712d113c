//! Rows of workers and claims as they are shown.

use serde::Serialize;

use crate::engine::bars;
use crate::model::{Capacity, ClaimSpec, Labels, Resources};
use crate::row::{ClaimRow, ClaimSpecRow, WorkerRow};

/// One worker.
#[derive(Debug, Serialize)]
pub struct WorkerContents {
    /// Its id.
    pub id: String,
    /// Grows with every change.
    pub version: u64,
    /// Grows when it starts anew.
    pub incarnation: u64,
    /// It is gone; the row keeps late words of it out.
    pub deleted: bool,
    /// What it holds, as `tenant/key#fence state created_at_ms=N activated_at_ms=N`, without the times that are not known.
    pub claims: Vec<String>,
    /// What it holds, in full.
    pub held: Vec<ClaimContents>,
    /// What it has.
    pub capacity: Capacity,
    /// What its claim was promised, if that is more than it has now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised: Option<Capacity>,
    /// Its labels.
    pub labels: Labels,
    /// Its machine, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it is not offered.
    pub unschedulable: Vec<String>,
    /// Unclean stops of its shard before something last spoke for it.
    pub vouched: u64,
    /// How long it may be silent, in milliseconds; 0: it never sent a heartbeat.
    pub heartbeat_ttl_ms: u64,
    /// Its own end of life, in unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    /// Sequence number of its becoming idle.
    pub idle_seq: u64,
    /// Hash of the affinity of its last claim; 0: none.
    pub affinity: u64,
}

/// One claim.
#[derive(Debug, Serialize)]
pub struct ClaimContents {
    /// Its tenant.
    pub tenant: String,
    /// Its key.
    pub key: String,
    /// Number of the grant.
    pub fence: u64,
    /// `reserved`, `active` or `releasing`.
    pub state: &'static str,
    /// How long it may stay reserved, in milliseconds.
    pub reserve_ms: u64,
    /// How long it may stay active without a renewal, or releasing, in milliseconds; 0: for ever.
    pub term_ms: u64,
    /// Its worker named it.
    pub named: bool,
    /// In a shared pool, which GPUs of its worker it holds.
    pub gpus: Vec<u32>,
    /// The gang for which it is held provisionally.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gang: Option<GangContents>,
    /// It is being released because another claim evicted it.
    pub evicted: bool,
    /// Labels of its request.
    pub labels: Labels,
    /// What it asked for.
    pub resources: Resources,
    /// Its priority.
    pub priority: u16,
    /// It may be evicted.
    pub preemptible: bool,
    /// Model of the GPUs that it was granted, if its worker has others by now, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_model: Option<std::sync::Arc<str>>,
    /// Unix time in milliseconds at which its worker was given to it, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_ms: Option<u64>,
    /// Unix time in milliseconds at which it became active, if it has and that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activated_at_ms: Option<u64>,
}

/// A gang that a claim is a provisional member of.
#[derive(Debug, Serialize)]
pub struct GangContents {
    /// Its number.
    pub id: u64,
    /// Uid of the pool of its home.
    pub pool: u64,
    /// Index of the home there.
    pub shard: u32,
}

impl WorkerContents {
    /// A row of a worker.
    ///
    /// # Errors
    /// It does not describe a worker.
    pub(super) fn of_row(id: &str, row: WorkerRow) -> Result<Self, String> {
        let spec = row.spec(id).map_err(|error| error.to_string())?;
        let WorkerRow {
            incarnation,
            // These make up `spec.capacity`.
            cpu_milli: _,
            memory_bytes: _,
            slots: _,
            gpu_model: _,
            gpu_count: _,
            labels,
            node,
            version,
            idle_seq,
            affinity,
            deleted,
            claims,
            bars,
            vouched,
            heartbeat_ttl_ms,
            expires_at_ms: _,
            promised,
        } = row;
        let held: Vec<ClaimContents> = claims.into_iter().map(ClaimContents::of_row).collect();
        let claims = held.iter().map(|claim| {
            let ClaimContents { tenant, key, fence, state, created_at_ms, activated_at_ms, .. } = claim;
            let time =
                |name: &str, at_ms: &Option<u64>| at_ms.map(|at_ms| format!(" {name}={at_ms}")).unwrap_or_default();
            let (created, activated) = (time("created_at_ms", created_at_ms), time("activated_at_ms", activated_at_ms));
            format!("{tenant}/{key}#{fence} {state}{created}{activated}")
        });
        Ok(Self {
            id: id.to_owned(),
            version,
            incarnation,
            deleted,
            claims: claims.collect(),
            held,
            capacity: spec.capacity,
            promised: promised.as_ref().map(Capacity::from),
            labels,
            node: Some(node).filter(|node| !node.is_empty()),
            unschedulable: unschedulable(bars),
            vouched,
            heartbeat_ttl_ms,
            expires_at_ms: spec.expires_at_ms,
            idle_seq,
            affinity,
        })
    }
}

impl ClaimContents {
    fn of_row(row: ClaimRow) -> Self {
        let ClaimRow {
            tenant,
            key,
            fence,
            active,
            reserve_ms,
            releasing,
            term_ms,
            named,
            cards,
            gang,
            gang_pool,
            gang_shard,
            evicted,
            created_at_ms,
            activated_at_ms,
            spec,
        } = row;
        let state = match (active, releasing) {
            (_, true) => "releasing",
            (true, false) => "active",
            (false, false) => "reserved",
        };
        let gang = (gang != 0).then_some(GangContents { id: gang, pool: gang_pool, shard: gang_shard });
        let spec = spec.as_ref().map(ClaimSpecRow::spec).unwrap_or_default();
        let ClaimSpec { labels, resources, priority, preemptible, granted_model } = spec;
        let gpus = (0..u64::BITS).filter(|card| cards >> card & 1 == 1).collect();
        Self {
            tenant,
            key,
            fence,
            state,
            reserve_ms,
            term_ms,
            named,
            gpus,
            gang,
            evicted,
            labels,
            resources,
            priority,
            preemptible,
            granted_model,
            created_at_ms,
            activated_at_ms,
        }
    }
}

/// Words for the reasons that a row carries. One that is not known is of a later version.
fn unschedulable(stored: u32) -> Vec<String> {
    let known = [
        (bars::CORDONED, "cordoned"),
        (bars::DRAINING, "draining"),
        (bars::LOST, "lost"),
        (bars::SUSPECT, "suspect"),
        (bars::STOPPING, "stopping"),
    ];
    const _: () = assert!(
        bars::STORED == bars::CORDONED | bars::DRAINING | bars::LOST | bars::SUSPECT | bars::STOPPING,
        "every reason that is stored has a word"
    );
    let has = |bar: u8| stored & u32::from(bar) != 0;
    let words = known.iter().filter(|(bar, _)| has(*bar)).map(|(_, word)| (*word).to_owned());
    let unknown = stored & !u32::from(bars::STORED);
    words.chain((unknown != 0).then(|| format!("unknown ({unknown:#x})"))).collect()
}
