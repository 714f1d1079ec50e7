//! Reading JSON by reference, and putting objects together without rewriting what is in them.
//!
//! What JSON allows and a Rust value cannot hold - half a surrogate pair, `1e400`, numbers beyond 64 bits - passes through
//! here untouched, because values stay text.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Whether a value is the one that is not written out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Changes a value by a JSON Merge Patch (RFC 7396).
pub(super) fn merge_patch(target: &mut Value, changes: Value) {
    let Value::Object(changes) = changes else {
        *target = changes;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(&name);
        } else {
            merge_patch(fields.entry(name).or_insert(Value::Null), change);
        }
    }
}

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
                while let Some(Text(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(fields)
            }
        }
        from.deserialize_map(FieldsVisitor).map(Fields)
    }
}

/// Half surrogate pairs - a text that was cut in the middle of an emoji - as U+FFFD, for reading; `None` where there are none. JSON
/// allows them, and a Rust value cannot hold them.
pub(super) fn mended(text: &str) -> Option<String> {
    let code = |at: usize| -> Option<u32> {
        let digits = text.get(at..)?.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    if !text.contains("\\ud") && !text.contains("\\uD") {
        return None;
    }
    let mut halves = Vec::new();
    let mut at = 0;
    while let Some(next) = text[at..].find('\\') {
        at += next;
        match code(at) {
            Some(0xd800..=0xdbff) if matches!(code(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                halves.push(at);
                at += 6;
            }
            // The escape and the sign that it is of, which may be a backslash.
            _ => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    if halves.is_empty() {
        return None;
    }
    let mut mended = text.to_owned();
    for half in halves {
        mended.replace_range(half..half + 6, "\\ufffd");
    }
    Some(mended)
}

/// Reads what senders wrote: see [`mended`].
///
/// # Errors
/// What is no JSON of that shape.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text)
        .or_else(|error| mended(text).map_or(Err(error), |text| serde_json::from_str(&text)))
}

/// A value that says what its text says: a number that it cannot hold exactly is kept as text.
pub(super) fn exact(raw: &RawValue) -> Option<Value> {
    let value: Value = serde_json::from_str(raw.get()).ok()?;
    Some(if value.is_f64() && is_whole(raw.get()) { Value::from(raw.get()) } else { value })
}

fn is_whole(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// A string, or a number where a careless sender writes one for an id; a whole number keeps its digits, however many. Null, the empty
/// string, and `false` - of `user && user.id` - count as absent. So does what is neither; [`Scalar::is_strange`] tells.
#[derive(Debug, Default)]
pub(super) enum Scalar<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Strange,
}

impl Scalar<'_> {
    /// The text, if there is any.
    pub(super) fn given(&self) -> Option<&str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    /// Whether it is a list or an object, or `true`.
    pub(super) fn is_strange(&self) -> bool {
        matches!(self, Self::Strange)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(from)?.get();
        Ok(match raw.as_bytes().first() {
            Some(b'"') => {
                let Text(text) = serde_json::from_str(raw).map_err(D::Error::custom)?;
                Self::Text(text)
            }
            Some(b'-' | b'0'..=b'9') => Self::Text(match raw.parse::<f64>() {
                Ok(number) if !is_whole(raw) && number.is_finite() => Cow::Owned(number.to_string()),
                _ => Cow::Borrowed(raw),
            }),
            Some(b'n' | b'f') => Self::Absent,
            _ => Self::Strange,
        })
    }
}

/// A text, borrowed where nothing in it is escaped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_pair_is_mended_and_a_whole_one_stays() {
        for (text, wanted) in [
            (r#""Sale \ud83d""#, Some(r#""Sale \ufffd""#)),
            (r#""\uD83D\ude00 \udc00\ud83d""#, Some(r#""\uD83D\ude00 \ufffd\ufffd""#)),
            (r#""\ud83d\ud83d\ude00""#, Some(r#""\ufffd\ud83d\ude00""#)),
            (r#"{"\ud83d": "\n\ud83dx"}"#, Some(r#"{"\ufffd": "\n\ufffdx"}"#)),
            (r#""\\ud83d \ud83d\ude00""#, None),
            (r#""ud83d \u00e9 é""#, None),
        ] {
            assert_eq!(mended(text).as_deref(), wanted, "{text}");
            assert!(read::<Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_scalar_keeps_its_digits_and_what_is_strange_says_so() {
        let read = |text: &str| {
            let scalar: Scalar<'_> = serde_json::from_str(text).unwrap();
            (scalar.given().map(str::to_owned), scalar.is_strange())
        };
        for (text, wanted) in [
            (r#""a\"b""#, "a\"b"),
            ("90000000123456789000001", "90000000123456789000001"),
            ("-7", "-7"),
            ("42.0", "42"),
            ("1e3", "1000"),
            ("1e999", "1e999"),
        ] {
            assert_eq!(read(text), (Some(wanted.to_owned()), false), "{text}");
        }
        for (text, strange) in
            [("null", false), ("false", false), (r#""""#, false), ("true", true), ("[1]", true), ("{}", true)]
        {
            assert_eq!(read(text), (None, strange), "{text}");
        }
        let raw = |text: &str| exact(&RawValue::from_string(text.to_owned()).unwrap());
        assert_eq!(raw("12345678901234567890123"), Some(Value::from("12345678901234567890123")));
        assert_eq!((raw("18446744073709551615"), raw("1.5")), (Some(u64::MAX.into()), Some(1.5.into())));
    }
}
