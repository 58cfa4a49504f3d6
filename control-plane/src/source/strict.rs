//! Values as types ask for them, and what is said where they are not.
//!
//! serde takes a list for a mapping, field by field in their order, and words its complaints for who wrote the types. Here a mapping is a
//! mapping, and what is told is what is written and what is wanted, as one writes it, and where. Called by [`super::decode`].
//!
//! Paths and unknown fields are followed here, and not by `serde_path_to_error` and `serde_ignored`: each of those is a layer of generic
//! code around every type of the Gateway API, and the two were two thirds of the control plane's code and of what it takes to compile.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StringDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use serde_json::{Map, Number, Value, map};

use crate::finding::{push_index, push_key};

/// Where a value stands in what is read.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Field { of: &'a Self, name: &'a str },
    Entry { of: &'a Self, index: usize },
}

/// A value that is read strictly.
struct Strict<'a> {
    value: Value,
    place: Place<'a>,
    /// Paths of the fields that no type asked for.
    unknown: &'a RefCell<Vec<String>>,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    /// The value's path; empty is the whole.
    pub(super) field: Option<String>,
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

/// Reads a value as a type; beside it the paths of the fields that the type does not know.
pub(super) fn read<T: DeserializeOwned>(value: Value) -> (Result<T, Wrong>, Vec<String>) {
    let unknown = RefCell::default();
    let read = T::deserialize(Strict { value, place: Place::Root, unknown: &unknown });
    (read, unknown.into_inner())
}

// === impl Place ===

impl Place<'_> {
    fn path(&self) -> String {
        fn push(place: &Place<'_>, path: &mut String) {
            match place {
                Place::Root => {}
                Place::Field { of, name } => {
                    push(of, path);
                    push_key(path, name);
                }
                Place::Entry { of, index } => {
                    push(of, path);
                    push_index(path, *index);
                }
            }
        }
        let mut path = String::new();
        push(self, &mut path);
        path
    }
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
            // Numbers that no integer holds are read so, though they were written in digits.
            (Self::Whole, Value::Number(number))
                if number.as_f64().is_some_and(|number| number.abs() >= 1e18) =>
            {
                BOUNDS
            }
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
        Err(Wrong { field: None, message: format!("here must be {wanted}, and there is {found}"), hint })
    }
}

// === impl Strict ===

/// The entries of a list.
struct Entries<'a> {
    left: std::vec::IntoIter<Value>,
    index: usize,
    place: Place<'a>,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'de> SeqAccess<'de> for Entries<'_> {
    type Error = Wrong;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Wrong> {
        let Some(value) = self.left.next() else { return Ok(None) };
        let place = Place::Entry { of: &self.place, index: self.index };
        self.index += 1;
        let read = seed.deserialize(Strict { value, place, unknown: self.unknown });
        read.map(Some).map_err(|wrong| wrong.at(&place))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
}

/// The fields of a mapping.
struct Fields<'a> {
    left: map::IntoIter,
    /// The field whose name was read, and whose value is next.
    now: Option<(String, Value)>,
    place: Place<'a>,
    unknown: &'a RefCell<Vec<String>>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Wrong;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Wrong> {
        let Some((name, value)) = self.left.next() else { return Ok(None) };
        let read = seed.deserialize(StringDeserializer::new(name.clone()));
        let read = read.map_err(|wrong: Wrong| wrong.at(&Place::Field { of: &self.place, name: &name }));
        self.now = Some((name, value));
        read.map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Wrong> {
        let Some((name, value)) = self.now.take() else {
            return Err(de::Error::custom("a value was asked for before its name"));
        };
        let place = Place::Field { of: &self.place, name: &name };
        let read = seed.deserialize(Strict { value, place, unknown: self.unknown });
        read.map_err(|wrong| wrong.at(&place))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.len())
    }
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

impl Strict<'_> {
    fn give<'de, V: Visitor<'de>>(self, wanted: Wanted, visitor: V) -> Result<V::Value, Wrong> {
        let Self { value, place, unknown } = self;
        match (wanted, value) {
            (Wanted::Mapping, Value::Object(fields)) => mapping(fields, place, unknown, visitor),
            (Wanted::List, Value::Array(values)) => list(values, place, unknown, visitor),
            (Wanted::Text, Value::String(text)) => visitor.visit_string(text),
            (Wanted::Whole, Value::Number(one)) if !one.is_f64() => number(&one, visitor),
            (Wanted::Number, Value::Number(one)) => number(&one, visitor),
            (Wanted::Truth, Value::Bool(truth)) => visitor.visit_bool(truth),
            (wanted, other) => wanted.but_is(&other),
        }
    }
}

fn list<'de, V: Visitor<'de>>(
    values: Vec<Value>,
    place: Place<'_>,
    unknown: &RefCell<Vec<String>>,
    visitor: V,
) -> Result<V::Value, Wrong> {
    visitor.visit_seq(Entries { left: values.into_iter(), index: 0, place, unknown })
}

fn mapping<'de, V: Visitor<'de>>(
    fields: Map<String, Value>,
    place: Place<'_>,
    unknown: &RefCell<Vec<String>>,
    visitor: V,
) -> Result<V::Value, Wrong> {
    visitor.visit_map(Fields { left: fields.into_iter(), now: None, place, unknown })
}

impl<'de> Deserializer<'de> for Strict<'_> {
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
        let Self { value, place, unknown } = self;
        match value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(truth),
            Value::Number(one) => number(&one, visitor),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(values) => list(values, place, unknown, visitor),
            Value::Object(fields) => mapping(fields, place, unknown, visitor),
        }
    }

    /// What no type asks for.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        self.unknown.borrow_mut().push(self.place.path());
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.value {
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
        match self.value {
            Value::String(text) => visitor.visit_enum(StringDeserializer::new(text)),
            other => Wanted::Text.but_is(&other),
        }
    }

    serde::forward_to_deserialize_any! {
        bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

// === impl Wrong ===

impl de::Error for Wrong {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { field: None, message: message.to_string(), hint: "" }
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
            field: None,
            message: format!("{found} cannot stand here: wanted is {wanted}"),
            hint: "leave the field out for its default",
        }
    }

    fn unknown_variant(found: &str, wanted: &'static [&'static str]) -> Self {
        Self {
            field: None,
            message: format!("`{found}` is none of the values that there are: `{}`", wanted.join("`, `")),
            hint: "mind capitals",
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { field: None, message: format!("`{field}` is missing"), hint: "every one of these has it" }
    }
}

/// What to do about a number that is far out of bounds.
const BOUNDS: &str = "the reference has the bounds of each number";

impl Wrong {
    fn number(number: &dyn fmt::Display) -> Self {
        Self {
            field: None,
            message: format!("the number {number} is none that can stand here"),
            hint: BOUNDS,
        }
    }

    /// The innermost place that it passes is where it is.
    fn at(mut self, place: &Place<'_>) -> Self {
        self.field.get_or_insert_with(|| place.path());
        self
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Wrong {}
