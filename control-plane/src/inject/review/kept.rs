//! A review, as far as the injector reads it.
//!
//! JSON taken apart is up to a hundred times larger than its text. So what nobody here looks at (variables, arguments, mounts, who manages which field,
//! what there was before) is passed over as it is read, and what is left may be of so many values. A patch of what is left is one of the whole:
//! it speaks of what differs alone, and no item of a list is left out.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Values of a review that are kept: of a Pod with a thousand containers that have probes and ports. Together they take at most 24 MB.
pub(super) const MOST: usize = 1 << 15;

/// What is kept of a value.
enum Keep {
    All,
    /// Of these fields so much, and the others not at all.
    Fields(&'static [(&'static str, Self)]),
    /// Every item, and so much of it.
    Items(&'static Self),
}

const REVIEW: Keep = Keep::Fields(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    (
        "request",
        Keep::Fields(&[
            ("uid", Keep::All),
            ("kind", Keep::All),
            ("subResource", Keep::All),
            ("operation", Keep::All),
            ("name", Keep::All),
            ("namespace", Keep::All),
            ("object", POD),
        ]),
    ),
]);

const POD: Keep = Keep::Fields(&[
    ("apiVersion", Keep::All),
    ("kind", Keep::All),
    (
        "metadata",
        Keep::Fields(&[
            ("name", Keep::All),
            ("generateName", Keep::All),
            ("namespace", Keep::All),
            ("labels", Keep::All),
            ("annotations", Keep::All),
            ("ownerReferences", Keep::All),
        ]),
    ),
    (
        "spec",
        Keep::Fields(&[
            ("containers", Keep::Items(&CONTAINER)),
            ("initContainers", Keep::Items(&CONTAINER)),
            ("ephemeralContainers", Keep::Items(&NAMED)),
            ("volumes", Keep::Items(&NAMED)),
            ("affinity", Keep::Fields(&[("nodeAffinity", Keep::All)])),
            ("hostNetwork", Keep::All),
            ("hostPID", Keep::All),
            ("nodeSelector", Keep::All),
            ("os", Keep::All),
            ("securityContext", Keep::All),
            ("shareProcessNamespace", Keep::All),
            ("terminationGracePeriodSeconds", Keep::All),
        ]),
    ),
]);

const CONTAINER: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("image", Keep::All),
    ("ports", Keep::All),
    ("livenessProbe", Keep::All),
    ("readinessProbe", Keep::All),
    ("startupProbe", Keep::All),
    ("lifecycle", Keep::All),
    ("resources", Keep::All),
    ("restartPolicy", Keep::All),
    ("securityContext", Keep::All),
]);

const NAMED: Keep = Keep::Fields(&[("name", Keep::All)]);

/// Why nothing is read.
pub(super) enum Unread {
    /// There are more values than [`MOST`].
    TooMany,
    /// It is no JSON.
    Json(serde_json::Error),
}

/// What is kept of a review. At most `most` values.
pub(super) fn read(body: &[u8], most: usize) -> Result<Value, Unread> {
    let left = Cell::new(most);
    let mut json = serde_json::Deserializer::from_slice(body);
    let kept = Part { keep: &REVIEW, left: &left }.deserialize(&mut json);
    kept.and_then(|value| json.end().map(|()| value)).map_err(|error| match left.get() {
        0 => Unread::TooMany,
        _ => Unread::Json(error),
    })
}

/// A value that is being read.
#[derive(Clone, Copy)]
struct Part<'a> {
    keep: &'static Keep,
    /// So many values may still be kept.
    left: &'a Cell<usize>,
}

// === impl Keep ===

impl Keep {
    /// `None`: the field is passed over.
    fn of_field(&'static self, key: &str) -> Option<&'static Self> {
        match self {
            Self::Fields(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, keep)| keep),
            // No list, where there should be one: that is told by what is there.
            Self::All | Self::Items(_) => Some(&Self::All),
        }
    }

    fn of_item(&'static self) -> &'static Self {
        match self {
            Self::Items(keep) => keep,
            Self::All | Self::Fields(_) => &Self::All,
        }
    }
}

// === impl Part ===

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left =
            self.left.get().checked_sub(1).ok_or_else(|| D::Error::custom("there are too many values"))?;
        self.left.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, said: bool) -> Result<Value, E> {
        Ok(Value::Bool(said))
    }

    fn visit_i64<E>(self, said: i64) -> Result<Value, E> {
        Ok(said.into())
    }

    fn visit_u64<E>(self, said: u64) -> Result<Value, E> {
        Ok(said.into())
    }

    fn visit_f64<E>(self, said: f64) -> Result<Value, E> {
        Ok(said.into())
    }

    fn visit_str<E>(self, said: &str) -> Result<Value, E> {
        Ok(said.into())
    }

    fn visit_string<E>(self, said: String) -> Result<Value, E> {
        Ok(Value::String(said))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let part = Part { keep: self.keep.of_item(), ..self };
        let mut kept = Vec::new();
        while let Some(item) = items.next_element_seed(part)? {
            kept.push(item);
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            match self.keep.of_field(&key) {
                Some(keep) => {
                    let value = fields.next_value_seed(Part { keep, ..self })?;
                    kept.insert(key, value);
                }
                None => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }
}
