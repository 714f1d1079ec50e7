//! Reading JSON by reference, and putting objects together without rewriting what is in them.
//!
//! What JSON allows and a Rust value cannot hold - half a surrogate pair, `1e400`, numbers beyond 64 bits - passes through
//! here untouched, because values stay text.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// How deep a JSON text is nested.
pub(super) fn depth(text: &str) -> usize {
    let (mut depth, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// One JSON object laid over another: its own fields win. What is no object is not merged.
pub(super) fn over(own: &RawValue, below: &RawValue) -> Option<Box<RawValue>> {
    if own.get() == "null" {
        return Some(below.to_owned());
    }
    let (Ok(own_fields), Ok(mut fields)) =
        (serde_json::from_str::<Fields<'_>>(own.get()), serde_json::from_str::<Fields<'_>>(below.get()))
    else {
        return Some(own.to_owned());
    };
    fields.0.retain(|(name, _)| own_fields.0.iter().all(|(own, _)| own != name));
    write_object(fields.0.iter().chain(&own_fields.0).map(|(name, raw)| (name, *raw)))
}

/// Writes an object of those fields.
pub(super) fn write_object<'a>(
    fields: impl Iterator<Item = (&'a Cow<'a, str>, &'a RawValue)>,
) -> Option<Box<RawValue>> {
    let written: Vec<String> =
        fields.map(|(name, raw)| format!("{}:{}", Value::from(name.as_ref()), raw.get())).collect();
    RawValue::from_string(format!("{{{}}}", written.join(","))).ok()
}

/// A JSON object's fields in their order, unread.
#[derive(Default)]
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(Scalar(name)) = map.next_key()? {
                    fields.push((name.unwrap_or_default(), map.next_value()?));
                }
                Ok(fields)
            }
        }
        from.deserialize_map(FieldsVisitor).map(Fields)
    }
}

/// A string, or a number where a careless sender writes one for an id. Null and the empty string count as absent.
#[derive(Debug, Default)]
pub(super) struct Scalar<'a>(Option<Cow<'a, str>>);

impl Scalar<'_> {
    /// The text, if there is any.
    pub(super) fn given(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| !text.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ScalarVisitor).map(Scalar)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(number.to_string())))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(number.to_string())))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(number.to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(A::Error::invalid_type(de::Unexpected::Map, &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
        Err(A::Error::invalid_type(de::Unexpected::Seq, &self))
    }
}
