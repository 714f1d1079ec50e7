//! The filters and tests of templates. Those whose result may be larger than what they get pay for it before they make it.

use std::borrow::Cow;

use chrono::format::StrftimeItems;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, filters, tests};

use crate::domain::automation::meter;
use crate::domain::time;

/// The names of the filters, for people.
pub const FILTERS: [&str; 26] = [
    "abs",
    "capitalize",
    "date",
    "default",
    "e",
    "escape",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lower",
    "minus",
    "plus",
    "replace",
    "reverse",
    "round",
    "safe",
    "sort",
    "string",
    "times",
    "title",
    "trim",
    "upper",
];
/// The longest text that a filter makes, in bytes.
const MAX_TEXT: usize = 64 * 1024;

/// Gives an engine its filters and tests.
pub(super) fn add(engine: &mut Environment<'static>) {
    engine.add_filter("abs", filters::abs);
    engine.add_filter("capitalize", filters::capitalize);
    engine.add_filter("date", date);
    engine.add_filter("default", filters::default);
    engine.add_filter("e", filters::escape);
    engine.add_filter("escape", filters::escape);
    engine.add_filter("first", filters::first);
    engine.add_filter("float", filters::float);
    engine.add_filter("int", filters::int);
    engine.add_filter("items", filters::items);
    engine.add_filter("join", join);
    engine.add_filter("last", filters::last);
    engine.add_filter("length", filters::length);
    engine.add_filter("lower", filters::lower);
    engine.add_filter("minus", |a: Value, b: Value| number(&a, &b, |a, b| a - b, i64::checked_sub));
    engine.add_filter("plus", |a: Value, b: Value| number(&a, &b, |a, b| a + b, i64::checked_add));
    engine.add_filter("replace", replace);
    engine.add_filter("reverse", filters::reverse);
    engine.add_filter("round", filters::round);
    engine.add_filter("safe", filters::safe);
    engine.add_filter("sort", filters::sort);
    engine.add_filter("string", filters::string);
    engine.add_filter("times", |a: Value, b: Value| number(&a, &b, |a, b| a * b, i64::checked_mul));
    engine.add_filter("title", filters::title);
    engine.add_filter("trim", filters::trim);
    engine.add_filter("upper", filters::upper);
    engine.add_test("defined", tests::is_defined);
    engine.add_test("undefined", tests::is_undefined);
    engine.add_test("none", tests::is_none);
    engine.add_test("number", tests::is_number);
    engine.add_test("string", tests::is_string);
    engine.add_test("sequence", tests::is_sequence);
    engine.add_test("mapping", tests::is_mapping);
    engine.add_test("startingwith", tests::is_startingwith);
    engine.add_test("endingwith", tests::is_endingwith);
    engine.add_test("eq", tests::is_eq);
    engine.add_test("in", tests::is_in);
}

fn wrong(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Pays for a text of so many bytes.
fn pay(bytes: Option<usize>) -> Result<(), Error> {
    let bytes = bytes.filter(|bytes| *bytes <= MAX_TEXT);
    let bytes = bytes.ok_or_else(|| wrong(format!("a filter makes a text of more than {MAX_TEXT} bytes")))?;
    meter::pay(meter::steps(bytes), bytes as u64).map_err(|over| wrong(over.to_string()))
}

/// A time as a date, like `5 March 2026`, or by strftime's letters. What is no time stays as it is.
fn date(at: &Value, format: Option<Cow<'_, str>>) -> Result<Value, Error> {
    let Some(time) = at.as_str().and_then(time::parse) else { return Ok(at.clone()) };
    let format = format.as_deref().unwrap_or("%-d %B %Y");
    let items = StrftimeItems::new(format).parse().map_err(|_| {
        wrong(format!(
            "date does not know the format {format:?}; it is made of strftime's letters, like %d.%m.%Y"
        ))
    })?;
    // The longest letter writes some thirty characters.
    pay(Some(format.len().saturating_mul(32)))?;
    Ok(time.format_with_items(items.iter()).to_string().into())
}

fn join(values: &Value, between: Option<Cow<'_, str>>) -> Result<String, Error> {
    let between = between.unwrap_or_default();
    let mut text = String::new();
    for (at, value) in values.try_iter()?.enumerate() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let between = if at == 0 { "" } else { &*between };
        pay(Some(text.len() + between.len() + value.len()))?;
        text.push_str(between);
        text.push_str(&value);
    }
    Ok(text)
}

fn replace(text: Cow<'_, str>, from: Cow<'_, str>, to: Cow<'_, str>) -> Result<String, Error> {
    let times = text.matches(&*from).count();
    pay(times.checked_mul(to.len()).and_then(|more| more.checked_add(text.len())))?;
    Ok(text.replace(&*from, &to))
}

/// Whole numbers stay whole; a text that is a number counts as one.
fn number(
    a: &Value,
    b: &Value,
    of_floats: fn(f64, f64) -> f64,
    of_whole: fn(i64, i64) -> Option<i64>,
) -> Result<Value, Error> {
    let read = |value: &Value| -> Result<Value, Error> {
        match value.as_str() {
            Some(text) => {
                text.trim().parse::<f64>().map(Value::from).map_err(|_| wrong("numbers are needed"))
            }
            None => Ok(value.clone()),
        }
    };
    let (a, b) = (read(a)?, read(b)?);
    if let (Ok(a), Ok(b)) = (i64::try_from(a.clone()), i64::try_from(b.clone())) {
        return of_whole(a, b).map(Value::from).ok_or_else(|| wrong("the number is too large"));
    }
    match (f64::try_from(a), f64::try_from(b)) {
        (Ok(a), Ok(b)) => Ok(Value::from(of_floats(a, b))),
        _ => Err(wrong("numbers are needed")),
    }
}
