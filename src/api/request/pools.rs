//! Requests about pools. A specification is read as [`PoolSpec`] itself.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{parse_object, truncate};
use crate::api::error_table::ApiError;
use crate::model::request_error::RequestError;
use crate::model::{PoolSpec, UniqueValue, field_names};

/// Fields of a specification to change, with their new values; null means the default.
#[derive(Debug)]
pub(in crate::api) struct PoolPatch(Map<String, Value>);

impl PoolPatch {
    /// Takes the named fields from `spec`.
    ///
    /// # Errors
    /// `Invalid` naming `field` for an unknown or repeated name.
    pub(in crate::api) fn from_fields(
        spec: &PoolSpec,
        names: Vec<String>,
        field: &'static str,
    ) -> Result<Self, ApiError> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else {
            unreachable!("a specification is an object")
        };
        let known = field_names::<PoolSpec>();
        let mut patch = Map::new();
        for name in names {
            if !known.contains(&&*name) {
                let name = truncate(&name);
                let message = format!("{name:?} is not a field of a specification; known: {}", known.join(", "));
                return Err(ApiError::invalid(field, message));
            }
            if patch.contains_key(&name) {
                return Err(ApiError::invalid(field, format!("{name:?} is given twice")));
            }
            let value = fields.remove(&name).unwrap_or_default();
            patch.insert(name, value);
        }
        Ok(Self(patch))
    }

    /// Replaces these fields in `spec`.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub(in crate::api) fn apply_replace(self, spec: &PoolSpec) -> Result<PoolSpec, RequestError> {
        let Ok(Value::Object(mut fields)) = serde_json::to_value(spec) else {
            unreachable!("a specification is an object")
        };
        for (name, value) in self.0 {
            match value {
                Value::Null => fields.remove(&name),
                value => fields.insert(name, value),
            };
        }
        let changed = serde_json::to_vec(&fields).expect("a map of values is JSON");
        parse_object::<PoolSpec>(&changed).map_err(|ApiError { field, message, .. }| RequestError::Invalid {
            field: field.unwrap_or_default(),
            message,
        })
    }

    /// Applies these fields to `spec` as a JSON merge patch (RFC 7396): named fields replace those of `spec`, as does
    /// each label.
    ///
    /// # Errors
    /// `Invalid` naming the field.
    pub(in crate::api) fn apply_merge(mut self, spec: &PoolSpec) -> Result<PoolSpec, RequestError> {
        if let Some(Value::Object(change)) = self.0.get_mut("labels") {
            let of_pool = spec.labels.iter().filter(|(key, _)| !change.contains_key(*key));
            let unchanged: Vec<_> = of_pool.map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            change.retain(|_, value| !value.is_null());
            change.extend(unchanged);
        }
        self.apply_replace(spec)
    }
}

impl<'de> Deserialize<'de> for PoolPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PoolPatchVisitor;
        impl<'de> Visitor<'de> for PoolPatchVisitor {
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
        deserializer.deserialize_map(PoolPatchVisitor)
    }
}
