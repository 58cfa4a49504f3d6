//! Values as types ask for them, and what is said where they are not.
//!
//! serde takes a list for a mapping, field by field in their order, and words its complaints for who wrote the types. Here a mapping is a
//! mapping, and what is told is what is written and what is wanted, as one writes it. Called by [`super::decode`].

use std::fmt;

use serde::de::value::{MapDeserializer, SeqDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use serde_json::{Map, Number, Value};

/// A value that is read strictly.
pub(super) struct Strict(pub(super) Value);

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    /// What to do; may be empty.
    pub(super) hint: &'static str,
}

/// What a type asks for.
#[derive(Clone, Copy)]
enum Wanted {
    Mapping,
    List,
    Text,
    Whole,
    Number,
    Truth,
}

/// Reads a value as a type.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> Result<T, Wrong> {
    T::deserialize(Strict(value))
}

// === impl Wanted ===

impl Wanted {
    fn but_is<T>(self, value: &Value) -> Result<T, Wrong> {
        let wanted = match self {
            Self::Mapping => "a mapping",
            Self::List => "a list",
            Self::Text => "text",
            Self::Whole => "a whole number",
            Self::Number => "a number",
            Self::Truth => "`true` or `false`",
        };
        let hint = match (self, value) {
            (Self::Mapping, Value::Array(_)) => "write `name: value` for each field, without `- ` before it",
            (Self::Mapping, _) => "write `name: value` for each field",
            (Self::List, Value::Null) => "leave the field out, or write `[]`",
            (Self::List, _) => "put `- ` before each entry, also if there is only one",
            (Self::Text, Value::Bool(_) | Value::Number(_)) => "put it between quotes",
            (Self::Text, _) => "write one value, in one line",
            (Self::Whole, Value::Number(_)) => "digits alone, without a point or an exponent",
            (Self::Whole | Self::Number, Value::String(text))
                if !text.parse().is_ok_and(|number: f64| number.is_finite()) =>
            {
                "write a number, without a unit; the reference has the bounds of each"
            }
            (Self::Whole | Self::Number | Self::Truth, Value::String(_)) => "write it without quotes",
            (Self::Whole | Self::Number, _) => "write a number, or leave the field out",
            (Self::Truth, _) => "write one of them, or leave the field out",
        };
        let found = match value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(truth) => format!("`{truth}`"),
            Value::Number(number) => format!("the number {number}"),
            Value::String(text) => format!("the text `{text}`"),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a mapping".to_owned(),
        };
        Err(Wrong { message: format!("here must be {wanted}, and there is {found}"), hint })
    }
}

// === impl Strict ===

impl IntoDeserializer<'_, Wrong> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

fn list<'de, V: Visitor<'de>>(values: Vec<Value>, visitor: V) -> Result<V::Value, Wrong> {
    visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(Strict)))
}

fn mapping<'de, V: Visitor<'de>>(fields: Map<String, Value>, visitor: V) -> Result<V::Value, Wrong> {
    visitor.visit_map(MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Strict(value)))))
}

fn number<'de, V: Visitor<'de>>(number: &Number, visitor: V) -> Result<V::Value, Wrong> {
    match (number.as_u64(), number.as_i64(), number.as_f64()) {
        (Some(number), ..) => visitor.visit_u64(number),
        (_, Some(number), _) => visitor.visit_i64(number),
        (.., number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
    }
}

/// `deserialize_…` of these names: what is wanted.
macro_rules! wanted {
    ($($wanted:ident: $($method:ident)*;)*) => {
        $($(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
                self.give(Wanted::$wanted, visitor)
            }
        )*)*
    };
}

impl Strict {
    fn give<'de, V: Visitor<'de>>(self, wanted: Wanted, visitor: V) -> Result<V::Value, Wrong> {
        match (wanted, self.0) {
            (Wanted::Mapping, Value::Object(fields)) => mapping(fields, visitor),
            (Wanted::List, Value::Array(values)) => list(values, visitor),
            (Wanted::Text, Value::String(text)) => visitor.visit_string(text),
            (Wanted::Whole, Value::Number(one)) if !one.is_f64() => number(&one, visitor),
            (Wanted::Number, Value::Number(one)) => number(&one, visitor),
            (Wanted::Truth, Value::Bool(truth)) => visitor.visit_bool(truth),
            (wanted, other) => wanted.but_is(&other),
        }
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Wrong;

    wanted! {
        Mapping: deserialize_map;
        List: deserialize_seq;
        Text: deserialize_str deserialize_string deserialize_char deserialize_identifier;
        Whole: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
            deserialize_u32 deserialize_u64;
        Number: deserialize_f32 deserialize_f64;
        Truth: deserialize_bool;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(truth),
            Value::Number(one) => number(&one, visitor),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(values) => list(values, visitor),
            Value::Object(fields) => mapping(fields, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        self.give(Wanted::Mapping, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        match self.0 {
            Value::String(text) => visitor.visit_enum(StringDeserializer::new(text)),
            other => Wanted::Text.but_is(&other),
        }
    }

    serde::forward_to_deserialize_any! {
        bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

// === impl Wrong ===

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { message: message.to_string(), hint: "" }
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Self::invalid_value(found, wanted)
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(truth) => format!("`{truth}`"),
            Unexpected::Unsigned(number) => return Self::number(&number),
            Unexpected::Signed(number) => return Self::number(&number),
            Unexpected::Float(number) => return Self::number(&number),
            Unexpected::Str(text) => format!("the text `{text}`"),
            Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a mapping".to_owned(),
            other => other.to_string(),
        };
        Self {
            message: format!("{found} cannot stand here: wanted is {wanted}"),
            hint: "leave the field out for its default",
        }
    }

    fn unknown_variant(found: &str, wanted: &'static [&'static str]) -> Self {
        Self {
            message: format!("`{found}` is none of the values that there are: `{}`", wanted.join("`, `")),
            hint: "mind capitals",
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { message: format!("`{field}` is missing"), hint: "every one of these has it" }
    }
}

/// What to do about a number that is far out of bounds.
const BOUNDS: &str = "the reference has the bounds of each number";

impl Wrong {
    fn number(number: &dyn fmt::Display) -> Self {
        Self { message: format!("the number {number} is none that can stand here"), hint: BOUNDS }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Wrong {}
