//! Strict deserialization: additions to what serde derives, for the model and the edges.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Deserializes an optional field that must not be `null` when present.
///
/// # Errors
/// Errors of `T`.
pub fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Deserializes a nested struct from an object only: a derived one would also accept an array of its fields in order.
///
/// # Errors
/// Errors of `T`.
pub fn json_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct ObjectVisitor<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(ObjectVisitor(PhantomData))
}

/// Item of a list, deserialized from an object only ([`json_object`]).
#[derive(Debug)]
pub struct ObjectItem<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectItem<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json_object(deserializer).map(Self)
    }
}

/// Deserializes a list of nested structs, each from an object only ([`json_object`]).
///
/// # Errors
/// Errors of `T`.
pub fn json_objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<ObjectItem<T>>::deserialize(deserializer)?;
    Ok(items.into_iter().map(|ObjectItem(item)| item).collect())
}

/// Deserializes a map without duplicate keys: a derived one would take the last.
///
/// # Errors
/// Errors of `T`; `is given twice` for the value of a key that is repeated.
pub fn unique_keys<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    struct UniqueMapVisitor<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<T> {
        type Value = BTreeMap<String, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut values = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                match values.entry(key) {
                    Entry::Vacant(entry) => drop(entry.insert(map.next_value()?)),
                    // As an error of the value, so that the path to it names the key.
                    Entry::Occupied(_) => {
                        let DuplicateKey = map.next_value()?;
                    }
                }
            }
            Ok(values)
        }
    }
    deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
}

/// Value of a key that is repeated; fails whatever it is.
struct DuplicateKey;

impl<'de> Deserialize<'de> for DuplicateKey {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("is given twice"))
    }
}

/// JSON value in which no object has a duplicate key.
#[derive(Debug)]
pub struct UniqueValue(pub Value);

impl<'de> Deserialize<'de> for UniqueValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct UniqueValueVisitor;
        impl<'de> Visitor<'de> for UniqueValueVisitor {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(UniqueValue(value)) = seq.next_element()? {
                    values.push(value);
                }
                Ok(values.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
                let fields = unique_keys::<_, UniqueValue>(MapAccessDeserializer::new(map))?;
                Ok(Value::Object(fields.into_iter().map(|(key, UniqueValue(value))| (key, value)).collect()))
            }
        }
        deserializer.deserialize_any(UniqueValueVisitor).map(Self)
    }
}

/// Names of the fields that a derived struct accepts, none of which may be flattened.
#[must_use]
pub fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    struct FieldsDeserializer<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for FieldsDeserializer<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only structs have field names"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    let _never_read = T::deserialize(FieldsDeserializer(&mut names));
    debug_assert!(!names.is_empty(), "a struct has fields");
    names
}

/// Deserializes an optional nested struct from an object only.
///
/// # Errors
/// Errors of `T`.
pub fn some_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    json_object(deserializer).map(Some)
}
