//! Points in time: UTC, whole milliseconds, the same on every store.

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, SecondsFormat, TimeDelta, TimeZone, Utc};

/// A point in time, cut to milliseconds wherever Tributary makes one.
pub type Timestamp = DateTime<Utc>;

/// The years that are taken. Every store can hold them, and no sum of two such times overflows.
pub const YEARS: std::ops::RangeInclusive<i32> = 1..=9999;

/// The point `ms` milliseconds after 1970 (UTC); the epoch itself when `ms` is out of chrono's range.
pub fn from_ms(ms: i64) -> Timestamp {
    Utc.timestamp_millis_opt(ms).single().unwrap_or_default()
}

/// A span of so many days; the longest that there is when it has no room for them.
pub fn days(days: i64) -> TimeDelta {
    TimeDelta::try_days(days).unwrap_or(if days < 0 { TimeDelta::MIN } else { TimeDelta::MAX })
}

/// A span of so many milliseconds; the longest that there is when it has no room for them.
pub fn millis(ms: i64) -> TimeDelta {
    TimeDelta::try_milliseconds(ms).unwrap_or(if ms < 0 { TimeDelta::MIN } else { TimeDelta::MAX })
}

/// A span later. Where chrono knows no such time, the latest that it knows: a user's number must not end a worker.
pub fn plus(at: Timestamp, span: TimeDelta) -> Timestamp {
    let end = if span < TimeDelta::zero() { DateTime::<Utc>::MIN_UTC } else { DateTime::<Utc>::MAX_UTC };
    at.checked_add_signed(span).unwrap_or(end)
}

/// A span earlier. Where chrono knows no such time, the earliest that it knows.
pub fn minus(at: Timestamp, span: TimeDelta) -> Timestamp {
    let end = if span < TimeDelta::zero() { DateTime::<Utc>::MAX_UTC } else { DateTime::<Utc>::MIN_UTC };
    at.checked_sub_signed(span).unwrap_or(end)
}

/// Reads ISO 8601: with hyphens and colons or without, with `T` or a blank between date and time, to the minute or finer (a
/// fraction behind a full stop or a comma), with `Z`, with an offset, or without either (then UTC); or a bare date. `None` when the text
/// is none of these, or outside of [`YEARS`].
pub fn parse(text: &str) -> Option<Timestamp> {
    Some(parse_fine(text)?.0)
}

/// As [`parse`], with the microseconds that the text gives beyond the milliseconds: 0 to 999.
pub fn parse_fine(text: &str) -> Option<(Timestamp, i64)> {
    let text = text.trim();
    let parsed =
        DateTime::parse_from_rfc3339(text).map_or_else(|_| other(text), |t| Some(t.with_timezone(&Utc)))?;
    let micros = i64::from(parsed.timestamp_subsec_micros() % 1000);
    Some((from_ms(parsed.timestamp_millis()), micros)).filter(|(at, _)| YEARS.contains(&at.year()))
}

fn other(text: &str) -> Option<Timestamp> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time.trim())),
        None => (text, None),
    };
    let read = |format: &str| NaiveDate::parse_from_str(date, format).ok();
    let date = match date.len() {
        8 => read("%Y%m%d"),
        _ => read("%Y-%m-%d"),
    }?;
    let Some(time) = time else { return Some(date.and_time(NaiveTime::MIN).and_utc()) };
    let (time, offset) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, TimeDelta::zero()),
        None => match time.rfind(['+', '-', '\u{2212}']) {
            Some(at) => (&time[..at], offset(&time[at..])?),
            None => (time, TimeDelta::zero()),
        },
    };
    let time = time.trim_end().replace(',', ".");
    let formats = ["%H:%M:%S%.f", "%H:%M", "%H%M%S%.f", "%H%M"];
    let time = formats.iter().find_map(|format| NaiveTime::parse_from_str(&time, format).ok())?;
    date.and_time(time).and_utc().checked_sub_signed(offset)
}

/// `+01:00`, `-0530`, `+01`.
fn offset(text: &str) -> Option<TimeDelta> {
    let mut rest = text.chars();
    let sign = if rest.next()? == '+' { 1 } else { -1 };
    let digits = rest.as_str().replacen(':', "", 1);
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || !matches!(digits.len(), 2 | 4) {
        return None;
    }
    let (hours, minutes): (i64, i64) = (digits[..2].parse().ok()?, digits[2..].parse().unwrap_or_default());
    (hours < 24 && minutes < 60).then(|| millis(sign * (hours * 60 + minutes) * 60_000))
}

/// Writes `2026-01-31T12:00:00.000Z`.
pub fn format(at: Timestamp) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Serde adapter that writes [`format()`] and reads [`parse()`].
pub mod iso {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Timestamp;

    /// Writes an optional time as ISO 8601 or null.
    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => to.serialize_str(&super::format(*at)),
            None => to.serialize_none(),
        }
    }

    /// Reads an optional time from ISO 8601 or null.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
        match Option::<String>::deserialize(from)? {
            None => Ok(None),
            Some(text) => super::parse(&text)
                .map(Some)
                .ok_or_else(|| D::Error::custom(format!("not an ISO 8601 time: {text}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_span_leads_out_of_time() {
        let now = from_ms(1_768_000_000_000);
        for count in [0, 1, -1, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            for at in [now, DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
                for span in [days(count), millis(count)] {
                    assert_eq!(
                        plus(at, span) < at,
                        span < TimeDelta::zero() && at > DateTime::<Utc>::MIN_UTC
                    );
                    assert_eq!(
                        minus(at, span) > at,
                        span < TimeDelta::zero() && at < DateTime::<Utc>::MAX_UTC
                    );
                }
            }
        }
        assert_eq!(format(plus(now, days(1))), "2026-01-10T23:06:40.000Z");
        assert_eq!(format(minus(now, millis(1))), "2026-01-09T23:06:39.999Z");
    }

    #[test]
    fn every_written_form_of_a_time_reads_the_same() {
        for text in [
            "2026-01-31T12:00:00.250Z",
            "2026-01-31T12:00:00.250999Z",
            "2026-01-31T07:00:00.250-05:00",
            "2026-01-31T07:00:00.250-0500",
            "2026-01-31T12:00:00.250",
            "2026-01-31T12:00:00,250Z",
            "2026-01-31 12:00:00.250",
            "2026-01-31 12:00:00.250999 +0000",
            "2026-01-31T13:00:00.250+01",
            "20260131T120000.250Z",
            "20260131T063000.250-0530",
            "2026-01-31t12:00:00.250z",
        ] {
            assert_eq!(parse(text).map(format).as_deref(), Some("2026-01-31T12:00:00.250Z"), "{text}");
        }
        assert_eq!(parse("2026-01-31").map(format).as_deref(), Some("2026-01-31T00:00:00.000Z"));
        for text in ["2026-01-31T12:00Z", "2026-01-31T12:00", "2026-01-31 13:00+01:00", "20260131T1200"] {
            assert_eq!(parse(text).map(format).as_deref(), Some("2026-01-31T12:00:00.000Z"), "{text}");
        }
        for text in [
            "2026-01-31T",
            "2026-01-31T25:00",
            "2026-01-31T12:00+1",
            "2026-01-31T12:00Z+01",
            "12:00",
            "31/01/2026 12:00",
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "1700000000",
            "+262142-12-31T23:59:59",
            "-0044-03-15",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
