//! Quiet hours, and the hour at which a schedule comes up, in a place's own time.

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, TimeZone, Weekday};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::event::Rejection;
use crate::domain::time::{self, Timestamp};

/// How far the clocks leap, nearly everywhere.
const LEAP: TimeDelta = match TimeDelta::try_hours(1) {
    Some(hour) => hour,
    None => TimeDelta::zero(),
};

/// Hours in which nobody is written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object like {\"from\": \"22:00\", \"to\": \"08:00\"}")]
pub struct QuietHours {
    /// From when, like `21:00`.
    pub from: String,
    /// Until when, like `08:00`; it may be on the next day.
    pub to: String,
}

/// Reads `09:30`.
pub fn hour(text: &str) -> Option<NaiveTime> {
    NaiveTime::parse_from_str(text, "%H:%M").ok()
}

/// Reads a time zone of the IANA's, like `Europe/Berlin`.
pub fn zone(text: &str) -> Option<Tz> {
    text.parse().ok()
}

impl QuietHours {
    /// Whether they make sense.
    ///
    /// # Errors
    /// `invalid_settings`, which says what would be right.
    pub fn check(&self) -> Result<(), Rejection> {
        match (hour(&self.from), hour(&self.to)) {
            (Some(from), Some(to)) if from != to => Ok(()),
            _ => Err(Rejection::new(
                "invalid_settings",
                format!(
                    "quiet hours have two different hours, like 21:00 and 08:00, not {:?} and {:?}",
                    self.from, self.to
                ),
            )),
        }
    }

    /// When they end, if they hold at `now` in `zone`.
    pub fn until(&self, now: Timestamp, zone: Tz) -> Option<Timestamp> {
        let (from, to) = (hour(&self.from)?, hour(&self.to)?);
        let local = now.with_timezone(&zone);
        let time = local.time();
        let (quiet, tomorrow) = if from < to {
            (from <= time && time < to, false)
        } else {
            (time >= from || time < to, time >= from)
        };
        let day = local.date_naive() + Days::new(u64::from(tomorrow));
        // An end that the clocks' change has moved to before now would be no end.
        quiet.then(|| instant(zone, day, to, true)).filter(|end| *end > now)
    }
}

/// When it is `time` on `day` in `zone`: the first or the last of two such moments, and where the clocks leap over it, an hour later.
fn instant(zone: Tz, day: NaiveDate, time: NaiveTime, last: bool) -> Timestamp {
    let local = day.and_time(time);
    let found = zone.from_local_datetime(&local);
    let found = if last { found.latest() } else { found.earliest() };
    found
        .or_else(|| zone.from_local_datetime(&(local + LEAP)).earliest())
        .map_or_else(|| local.and_utc(), |at: DateTime<Tz>| at.to_utc())
}

/// The next moment after `now` at which it is `time` in `zone`, on one of `days`, or on any if there are none.
pub fn next(now: Timestamp, zone: Tz, time: NaiveTime, days: &[Weekday]) -> Timestamp {
    let today = now.with_timezone(&zone).date_naive();
    (0..=8)
        .map(|ahead| today + Days::new(ahead))
        .filter(|day| days.is_empty() || days.contains(&day.weekday()))
        .map(|day| instant(zone, day, time, false))
        .find(|at| *at > now)
        .unwrap_or(time::plus(now, time::days(7)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::{format, parse};

    const BERLIN: Tz = Tz::Europe__Berlin;

    fn until(from: &str, to: &str, now: &str) -> Option<String> {
        let quiet = QuietHours { from: from.into(), to: to.into() };
        quiet.check().unwrap();
        quiet.until(parse(now).unwrap(), BERLIN).map(format)
    }

    #[test]
    fn quiet_hours_end_in_the_places_own_time() {
        // Berlin is two hours ahead in summer, one in winter
        assert_eq!(until("21:00", "08:00", "2026-07-01T18:59:00Z"), None);
        assert_eq!(until("21:00", "08:00", "2026-07-01T19:00:00Z"), Some("2026-07-02T06:00:00.000Z".into()));
        assert_eq!(until("21:00", "08:00", "2026-07-02T05:59:00Z"), Some("2026-07-02T06:00:00.000Z".into()));
        assert_eq!(until("21:00", "08:00", "2026-07-02T06:00:00Z"), None);
        assert_eq!(until("12:00", "13:00", "2026-01-10T11:30:00Z"), Some("2026-01-10T12:00:00.000Z".into()));
        // the night in which the clocks go forward has an hour less
        assert_eq!(until("21:00", "08:00", "2026-03-28T22:00:00Z"), Some("2026-03-29T06:00:00.000Z".into()));
        // 02:30 does not exist in it
        assert_eq!(until("21:00", "02:30", "2026-03-28T22:00:00Z"), Some("2026-03-29T01:30:00.000Z".into()));
        for (from, to) in [("9", "10:00"), ("25:00", "10:00"), ("10:00", "10:00")] {
            assert!(QuietHours { from: from.into(), to: to.into() }.check().is_err());
        }
    }

    #[test]
    fn a_schedule_comes_up_at_its_hour_in_its_place() {
        let at = |now: &str, days: &[Weekday]| {
            format(next(parse(now).unwrap(), BERLIN, hour("09:00").unwrap(), days))
        };
        assert_eq!(at("2026-07-01T06:59:59Z", &[]), "2026-07-01T07:00:00.000Z");
        assert_eq!(at("2026-07-01T07:00:00Z", &[]), "2026-07-02T07:00:00.000Z");
        assert_eq!(at("2026-07-01T08:00:00Z", &[Weekday::Mon, Weekday::Wed]), "2026-07-06T07:00:00.000Z");
        assert_eq!(at("2026-10-24T08:00:00Z", &[]), "2026-10-25T08:00:00.000Z");
    }
}
