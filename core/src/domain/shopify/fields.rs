//! Fields of Shopify's bodies: any may be missing or null, and ids come as numbers or as strings.

use rust_decimal::Decimal;
use serde_json::Value;

use crate::domain::event::Rejection;
use crate::domain::time::{self, Timestamp};
use crate::domain::{gid, money};

pub(super) fn list<'a>(of: &'a Value, field: &str) -> &'a [Value] {
    of[field].as_array().map_or(&[], Vec::as_slice)
}

/// A field's text; numbers are written out, null, "" and everything else is absent.
pub(super) fn text(of: &Value, field: &str) -> Option<String> {
    match &of[field] {
        Value::String(text) if !text.is_empty() => Some(text.replace('\0', "")),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// An id: the number of what newer versions of Shopify's API write as `gid://shopify/Order/7`, and what a tool that takes numbers for
/// floating ones writes as `7.0`, as far as such a number is exact.
pub(super) fn id_in(of: &Value, field: &str) -> Option<String> {
    if let Some(number) = of[field].as_f64().filter(|_| of[field].is_f64()) {
        let is_exact = number.fract() == 0.0 && (0.0..EXACT_FLOATS as f64).contains(&number);
        return is_exact.then(|| format!("{number:.0}"));
    }
    let stated = text(of, field)?;
    Some(gid::id(&stated).unwrap_or(&stated).to_owned())
}

/// Whole numbers below this are exact as floating ones.
pub const EXACT_FLOATS: u64 = 1 << 53;

pub(super) fn instant(of: &Value, field: &str) -> Option<Timestamp> {
    of[field].as_str().and_then(time::parse)
}

/// An amount; zero where there is none.
pub(super) fn amount(of: &Value, field: &str) -> Result<Decimal, Rejection> {
    let Some(text) = text(of, field) else { return Ok(Decimal::ZERO) };
    money::parse(&text).ok_or_else(|| {
        Rejection::new("invalid_amount", format!("{field} is {text:?}, which is no amount of money"))
    })
}

pub(super) fn mentions_any(of: &Value, fields: &[&str]) -> bool {
    fields.iter().any(|field| of.get(*field).is_some())
}
