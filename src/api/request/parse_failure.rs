//! Deserializer that says as data what is wrong with a value. serde_json says it as a text, and checks types itself;
//! here the visitor is offered whatever the value is, and its complaint is kept as the variant that it is.

use std::cell::RefCell;
use std::fmt::{self, Display};

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, Expected, MapAccess, SeqAccess, Unexpected, Visitor};

/// Reason why a value was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("{self:?}")]
pub(super) enum ParseFailure {
    /// A required field is absent.
    MissingField(&'static str),
    /// A field is given twice.
    DuplicateField(&'static str),
    /// A field that is not one of the known ones.
    UnknownField(String, &'static [&'static str]),
    /// A value that is not one of an enumeration.
    UnknownVariant(String, &'static [&'static str]),
    /// A value of another type than the field has, or a number out of its range.
    Mismatch {
        got: String,
        /// Description of what the visitor accepts.
        visitor: String,
        /// Type that the innermost request asks for.
        expected: Option<JsonType>,
    },
    /// The text is not JSON.
    Syntax(String),
    /// Message of a type's own check.
    Check(String),
}

/// JSON type that a field asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum JsonType {
    Boolean,
    WholeNumber,
    Text,
    Array,
    Object,
    Enumeration,
    Other,
}

impl ParseFailure {
    /// Adds the type that was asked for, unless a request further in has added its own.
    fn of_request(self, asked: JsonType) -> Self {
        match self {
            Self::Mismatch { got, visitor, expected: None } => Self::Mismatch { got, visitor, expected: Some(asked) },
            failure => failure,
        }
    }
}

impl Error for ParseFailure {
    fn custom<T: Display>(message: T) -> Self {
        Self::Check(message.to_string())
    }

    fn invalid_type(got: Unexpected<'_>, visitor: &dyn Expected) -> Self {
        let got = match got {
            Unexpected::Unit => "null".to_owned(),
            Unexpected::Seq => "an array".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Signed(number) => format!("`{number}`"),
            Unexpected::Unsigned(number) => format!("`{number}`"),
            Unexpected::Float(number) => format!("`{number:?}`"),
            other => other.to_string(),
        };
        Self::Mismatch { got, visitor: visitor.to_string(), expected: None }
    }

    fn invalid_value(got: Unexpected<'_>, visitor: &dyn Expected) -> Self {
        Self::invalid_type(got, visitor)
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownVariant(name.to_owned(), known)
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self::UnknownField(name.to_owned(), known)
    }

    fn missing_field(name: &'static str) -> Self {
        Self::MissingField(name)
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::DuplicateField(name)
    }
}

/// Failure on its way out through the wrapped deserializer, whose errors carry a text only. Empty if the wrapped
/// deserializer itself fails, which it does about the text alone: its syntax, its depth, the size of a number.
#[derive(Default)]
pub(super) struct FailureSlot(RefCell<Option<ParseFailure>>);

impl FailureSlot {
    fn put<E: Error>(&self, failure: ParseFailure) -> E {
        *self.0.borrow_mut() = Some(failure);
        E::custom("kept in the slot")
    }

    fn take<E: Display>(&self, error: E) -> ParseFailure {
        self.0.take().unwrap_or_else(|| ParseFailure::Syntax(error.to_string()))
    }
}

/// Wraps a deserializer, a visitor, or what gives access to the parts of a value.
pub(super) struct FailureReporter<'s, T> {
    inner: T,
    slot: &'s FailureSlot,
}

impl<'s, T> FailureReporter<'s, T> {
    pub(super) const fn new(inner: T, slot: &'s FailureSlot) -> Self {
        Self { inner, slot }
    }

    const fn wrap<U>(&self, inner: U) -> FailureReporter<'s, U> {
        FailureReporter { inner, slot: self.slot }
    }
}

/// Asks for any value, whichever type is wanted, so that the visitor complains and not the wrapped deserializer.
macro_rules! deserialize_any_as {
    ($($method:ident($($argument:ident: $type:ty),*) $expected:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, ParseFailure> {
            let (visitor, slot) = (self.wrap(visitor), self.slot);
            self.inner.deserialize_any(visitor).map_err(|error| slot.take(error).of_request($expected))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for FailureReporter<'_, D> {
    type Error = ParseFailure;

    deserialize_any_as! {
        deserialize_any() JsonType::Other;
        deserialize_bool() JsonType::Boolean;
        deserialize_u8() JsonType::WholeNumber;
        deserialize_u16() JsonType::WholeNumber;
        deserialize_u32() JsonType::WholeNumber;
        deserialize_u64() JsonType::WholeNumber;
        deserialize_str() JsonType::Text;
        deserialize_string() JsonType::Text;
        deserialize_seq() JsonType::Array;
        deserialize_map() JsonType::Object;
        deserialize_struct(_name: &'static str, _fields: &'static [&'static str]) JsonType::Object;
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseFailure> {
        let visitor = self.wrap(visitor);
        self.inner.deserialize_option(visitor).map_err(|error| self.slot.take(error))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ParseFailure> {
        let visitor = self.wrap(visitor);
        self.inner.deserialize_newtype_struct(name, visitor).map_err(|error| self.slot.take(error))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ParseFailure> {
        let (visitor, slot) = (self.wrap(VariantVisitor(visitor)), self.slot);
        self.inner.deserialize_any(visitor).map_err(|error| slot.take(error).of_request(JsonType::Enumeration))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ParseFailure> {
        let (visitor, slot) = (self.wrap(visitor), self.slot);
        self.inner.deserialize_ignored_any(visitor).map_err(|error| slot.take(error))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// Visits the name of a variant, or an object with the name as its only key, which serde takes for the same.
struct VariantVisitor<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for VariantVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<V::Value, E> {
        self.0.visit_enum(StrDeserializer::new(name))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(MapAccessDeserializer::new(map))
    }
}

macro_rules! visit {
    ($($method:ident($($value:ident: $type:ty)?);)*) => {$(
        fn $method<E: Error>(self, $($value: $type)?) -> Result<V::Value, E> {
            self.inner.$method::<ParseFailure>($($value)?).map_err(|failure| self.slot.put(failure))
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for FailureReporter<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit! {
        visit_bool(value: bool);
        visit_i64(value: i64);
        visit_u64(value: u64);
        visit_f64(value: f64);
        visit_str(value: &str);
        visit_borrowed_str(value: &'de str);
        visit_unit();
        visit_none();
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        let value = self.wrap(value);
        self.inner.visit_some(value).map_err(|failure| self.slot.put(failure))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        let value = self.wrap(value);
        self.inner.visit_newtype_struct(value).map_err(|failure| self.slot.put(failure))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<V::Value, A::Error> {
        let items = self.wrap(items);
        self.inner.visit_seq(items).map_err(|failure| self.slot.put(failure))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let entries = self.wrap(entries);
        self.inner.visit_map(entries).map_err(|failure| self.slot.put(failure))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for FailureReporter<'_, A> {
    type Error = ParseFailure;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ParseFailure> {
        let seed = self.wrap(seed);
        self.inner.next_element_seed(seed).map_err(|error| self.slot.take(error))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for FailureReporter<'_, A> {
    type Error = ParseFailure;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ParseFailure> {
        let seed = self.wrap(seed);
        self.inner.next_key_seed(seed).map_err(|error| self.slot.take(error))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ParseFailure> {
        let seed = self.wrap(seed);
        self.inner.next_value_seed(seed).map_err(|error| self.slot.take(error))
    }
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for FailureReporter<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Value, D::Error> {
        let deserializer = self.wrap(deserializer);
        self.inner.deserialize(deserializer).map_err(|failure| self.slot.put(failure))
    }
}
