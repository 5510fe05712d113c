//! `[[pools]]`: declared pools, which exist before the service is ready.

use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess, Visitor};
use serde_json::Value;

use crate::limits;
use crate::model::request_error::RequestError;
use crate::model::{PoolName, PoolSpec};

/// Declared pool: `name`, and the fields of its specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Name of the pool, `namespace/pool`.
    pub name: PoolName,
    /// Specification; a missing field has its default, as in `PUT /v1/pools/{ns}/{pool}`.
    pub spec: PoolSpec,
}

/// Problems of values that parsed, each with the path of its field.
pub(super) fn validation_errors(pools: &[PoolConfig], shards_max: usize) -> Vec<String> {
    let mut problems = Vec::new();
    if pools.len() > limits::POOLS_MAX {
        problems.push(format!("pools: at most {}, got {}", limits::POOLS_MAX, pools.len()));
    }
    let shards: usize = pools.iter().map(|pool| usize::from(pool.spec.shards)).sum();
    if shards > shards_max {
        problems.push(format!("pools: have {shards} shards together, more than server.max_shards ({shards_max})"));
    }
    for (index, PoolConfig { name, spec }) in pools.iter().enumerate() {
        if let Some(first) = pools[..index].iter().position(|pool| pool.name == *name) {
            problems.push(format!("pools[{index}].name: {name} is declared by pools[{first}] already"));
        }
        let spec_problems = spec_problems(spec).into_iter();
        problems.extend(spec_problems.map(|problem| format!("pools[{index}].{problem}")));
    }
    problems
}

/// Problems of a specification. A check stops at the first invalid field; with that reset to its default, the next check
/// finds the next one.
fn spec_problems(spec: &PoolSpec) -> Vec<String> {
    let mut problems = Vec::new();
    let mut fields = serde_json::to_value(spec).unwrap_or_default();
    while let Ok(spec) = PoolSpec::deserialize(&fields) {
        let Err(RequestError::Invalid { field, message }) = spec.check() else { break };
        problems.push(format!("{field}: {message}"));
        let top = field.split(['.', '[']).next().unwrap_or_default();
        if fields.as_object_mut().and_then(|fields| fields.remove(top)).is_none() {
            break;
        }
    }
    problems
}

/// Replaces an invalid pool, or its missing name, with a valid one, so that the rest can be parsed.
pub(super) fn replace_with_placeholder(pool: &mut Value, number: usize) {
    let name = Value::String(format!("wrong/{number}"));
    match pool {
        Value::Object(fields) if !fields.contains_key("name") => {
            fields.insert("name".to_owned(), name);
        }
        _ => *pool = serde_json::json!({"name": name}),
    }
}

// Written by hand, because a flattened field accepts unknown fields and loses the path of an invalid one.
impl<'de> Deserialize<'de> for PoolConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PoolVisitor;
        impl<'de> Visitor<'de> for PoolVisitor {
            type Value = PoolConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PoolConfig, A::Error> {
                let mut name = None;
                let spec = PoolSpec::deserialize(MapAccessDeserializer::new(SpecMapAccess { map, name: &mut name }))?;
                let PoolNameField(name) = name.ok_or_else(|| A::Error::missing_field("name"))?;
                Ok(PoolConfig { name, spec })
            }
        }
        deserializer.deserialize_map(PoolVisitor)
    }
}

struct PoolNameField(PoolName);

impl<'de> Deserialize<'de> for PoolNameField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        PoolName::parse(&String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// Access to the fields of a pool that stores its name aside.
struct SpecMapAccess<'a, A> {
    map: A,
    name: &'a mut Option<PoolNameField>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for SpecMapAccess<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, mut seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            match self.map.next_key_seed(PoolKeySeed(seed))? {
                None => return Ok(None),
                Some(PoolKey::Spec(key)) => return Ok(Some(key)),
                Some(PoolKey::Name(unused)) => {
                    *self.name = Some(self.map.next_value()?);
                    seed = unused;
                }
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

struct PoolKeySeed<K>(K);

enum PoolKey<K, V> {
    /// Key `name`, with the unused seed.
    Name(K),
    Spec(V),
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for PoolKeySeed<K> {
    type Value = PoolKey<K, K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if key == "name" {
            return Ok(PoolKey::Name(self.0));
        }
        self.0.deserialize(key.into_deserializer()).map(PoolKey::Spec)
    }
}
