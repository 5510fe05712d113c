//! Pools on the wire.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::api::error_table::Failure;
use crate::api::http::parse_errors::short;
use crate::api::http::read::object;
use crate::model::rejection::Refusal;
use crate::model::{
    Capacity, GpuSum, PoolSpec, PoolStatus, ShardStatus, UniqueValue, UnschedulableCounts, field_names,
};

/// Fields of a specification that are to change, with what they are to be; null is the default.
#[derive(Debug)]
pub(in crate::api) struct PoolPatch(Map<String, Value>);

impl PoolPatch {
    /// The fields of this name, as `spec` has them.
    ///
    /// # Errors
    /// `Invalid` naming `field` for a name that no field has, or that is given twice.
    pub(in crate::api) fn of(spec: &PoolSpec, names: Vec<String>, field: &'static str) -> Result<Self, Failure> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else { unreachable!("a spec is an object") };
        let known = field_names::<PoolSpec>();
        let mut patch = Map::new();
        for name in names {
            if !known.contains(&&*name) {
                let name = short(&name);
                let message = format!("{name:?} is no field of a specification; known: {}", known.join(", "));
                return Err(Failure::invalid(field, message));
            }
            if patch.contains_key(&name) {
                return Err(Failure::invalid(field, format!("{name:?} is given twice")));
            }
            let value = fields.remove(&name).unwrap_or_default();
            patch.insert(name, value);
        }
        Ok(Self(patch))
    }

    /// The specification with these fields instead of its own.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub(in crate::api) fn replace(self, spec: &PoolSpec) -> Result<PoolSpec, Refusal> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else { unreachable!("a spec is an object") };
        for (name, value) in self.0 {
            match value {
                Value::Null => fields.remove(&name),
                value => fields.insert(name, value),
            };
        }
        let changed = serde_json::to_vec(&fields).expect("a map of values is JSON");
        object::<PoolSpec>(&changed)
            .map_err(|Failure { field, message, .. }| Refusal::Invalid { field: field.unwrap_or_default(), message })
    }

    /// Specification after a JSON merge patch (RFC 7396): fields that are named replace those of `spec`, and so does each label.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub(in crate::api::http) fn merge(mut self, spec: &PoolSpec) -> Result<PoolSpec, Refusal> {
        if let Some(Value::Object(change)) = self.0.get_mut("labels") {
            let of_pool = spec.labels.iter().filter(|(key, _)| !change.contains_key(*key));
            let kept: Vec<_> = of_pool.map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            change.retain(|_, value| !value.is_null());
            change.extend(kept);
        }
        self.replace(spec)
    }
}

impl<'de> Deserialize<'de> for PoolPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = PoolPatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PoolPatch, A::Error> {
                let known = field_names::<PoolSpec>();
                let mut fields = Map::new();
                while let Some(name) = map.next_key::<String>()? {
                    let Some(known) = known.iter().find(|known| **known == name) else {
                        return Err(A::Error::unknown_field(&name, known));
                    };
                    let UniqueValue(value) = map.next_value()?;
                    if fields.insert(name, value).is_some() {
                        return Err(A::Error::duplicate_field(known));
                    }
                }
                Ok(PoolPatch(fields))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// `{"cleared":n,"suspect":n}`.
#[derive(Serialize)]
pub(in crate::api::http) struct ClearedAnswer {
    pub(in crate::api::http) cleared: u64,
    pub(in crate::api::http) suspect: u64,
}

#[derive(Serialize)]
struct WorkerCounts {
    total: u64,
    idle: u64,
    busy: u64,
    cordoned: u64,
    draining: u64,
    lost: u64,
    suspect: u64,
    ended: u64,
    stopping: u64,
    reserved: u64,
}

#[derive(Serialize)]
struct ClaimCounts {
    reserved: u64,
    active: u64,
    releasing: u64,
}

#[derive(Serialize)]
struct GpuCounts {
    total: u64,
    free: u64,
    free_milli: u64,
}

impl From<&GpuSum> for GpuCounts {
    fn from(&GpuSum { total, free, free_milli }: &GpuSum) -> Self {
        Self { total, free, free_milli }
    }
}

/// A pool with its figures.
#[derive(Serialize)]
pub(in crate::api) struct PoolJson<'a> {
    namespace: &'a str,
    name: &'a str,
    spec: &'a PoolSpec,
    version: u64,
    workers: WorkerCounts,
    unschedulable: UnschedulableCounts,
    claims: ClaimCounts,
    capacity: &'a Capacity,
    free: &'a Capacity,
    gpus: BTreeMap<&'a str, GpuCounts>,
    /// Not in listings: a page of them could be hundreds of megabytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<&'a [ShardStatus]>,
}

impl<'a> From<&'a PoolStatus> for PoolJson<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        let counts = pool.counts();
        Self {
            namespace: pool.name.namespace(),
            name: pool.name.pool(),
            spec: &pool.spec,
            version: pool.version,
            workers: WorkerCounts {
                total: counts.total,
                idle: counts.idle,
                busy: counts.busy,
                cordoned: counts.cordoned,
                draining: counts.draining,
                lost: counts.lost,
                suspect: counts.suspect,
                ended: counts.ended,
                stopping: counts.stopping,
                reserved: counts.workers_reserved,
            },
            unschedulable: counts.unschedulable,
            claims: ClaimCounts { reserved: counts.reserved, active: counts.active, releasing: counts.releasing },
            capacity: &pool.capacity,
            free: &pool.free,
            gpus: pool.gpus.iter().map(|(model, sum)| (model.as_str(), sum.into())).collect(),
            shards: None,
        }
    }
}

/// `{"pool":{...}}`.
#[derive(Serialize)]
pub(in crate::api::http) struct PoolAnswer<'a> {
    pool: PoolJson<'a>,
}

impl<'a> From<&'a PoolStatus> for PoolAnswer<'a> {
    fn from(pool: &'a PoolStatus) -> Self {
        Self { pool: PoolJson { shards: Some(&pool.shards), ..pool.into() } }
    }
}
