//! Segments: an expression over customers with a name; and those that every brand has.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::expression::{Expression, Scope};
use crate::domain::event::Rejection;
use crate::domain::ids::{BrandId, ProfileId};

/// The longest name of a segment.
pub const MAX_NAME_CHARS: usize = 60;
/// Most segments of a brand, besides those that every brand has.
pub const MAX_SEGMENTS: usize = 200;
/// What the names of segments begin with that every brand has.
pub const OWN: &str = "rfm_";

/// Segments that every brand has: customers who have bought, by recency, frequency and monetary value. Each of them belongs to
/// exactly one.
pub const RFM: [(&str, &str, &str); 9] = [
    (
        "rfm_champions",
        "rfm.recency >= 4 && rfm.frequency >= 4 && rfm.monetary >= 4",
        "bought lately, often and much",
    ),
    (
        "rfm_loyal",
        "rfm.recency >= 3 && rfm.frequency >= 3 && !(rfm.recency >= 4 && rfm.frequency >= 4 && rfm.monetary >= 4)",
        "buy again and again",
    ),
    ("rfm_potential_loyal", "rfm.recency >= 3 && rfm.frequency == 2", "bought a second time, and lately"),
    ("rfm_new", "rfm.recency >= 4 && rfm.frequency == 1", "bought for the first time, and lately"),
    ("rfm_promising", "rfm.recency == 3 && rfm.frequency == 1", "bought once, a while ago"),
    ("rfm_at_risk", "rfm.recency == 2 && rfm.frequency >= 2", "bought more than once, but not for long"),
    ("rfm_hibernating", "rfm.recency == 2 && rfm.frequency == 1", "bought once, long ago"),
    ("rfm_cannot_lose", "rfm.recency == 1 && rfm.frequency >= 4", "bought often, but not recently"),
    ("rfm_lost", "rfm.recency == 1 && rfm.frequency < 4", "bought seldom, and not recently"),
];

/// A segment as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    pub brand: BrandId,
    /// What it is called.
    pub name: String,
    /// Who belongs to it.
    pub expression: String,
    pub description: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
    /// When it was last changed.
    pub updated_ms: i64,
}

/// What may be set of a segment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SegmentInput {
    /// Who belongs to it: a CEL expression.
    pub expression: String,
    /// Free text for people; nothing is made of it.
    #[serde(default)]
    pub description: Option<String>,
}

/// A segment, ready to be asked.
#[derive(Clone, Debug)]
pub struct Segment {
    /// What it is called.
    pub name: String,
    /// Who belongs to it.
    pub expression: Arc<Expression>,
}

/// Somebody has come into a segment, or gone out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its id: the greater, the later.
    pub id: uuid::Uuid,
    pub brand: BrandId,
    pub segment: String,
    pub profile: ProfileId,
    /// Whether they came or went.
    pub entered: bool,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Whether a segment may be called so.
///
/// # Errors
/// `invalid_segment`, which says what would be right.
pub fn check_name(name: &str) -> Result<(), Rejection> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let wrong = |message: String| Err(Rejection::new("invalid_segment", message));
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || !name.chars().all(plain) {
        return wrong(format!(
            "a segment's name has 1 to {MAX_NAME_CHARS} characters, of a to z, 0 to 9 and _; this one is {name:?}"
        ));
    }
    if name.starts_with(OWN) {
        return wrong(format!("names that begin with {OWN} are those of segments that every brand has"));
    }
    Ok(())
}

pub fn own_names() -> Vec<String> {
    RFM.iter().map(|(name, ..)| (*name).to_owned()).collect()
}

/// The segments that every brand has.
pub fn own() -> Vec<Segment> {
    let read = |(name, expression, _): (&str, &str, &str)| {
        let expression = Expression::parse(expression, Scope::Segment).ok()?;
        Some(Segment { name: name.to_owned(), expression })
    };
    RFM.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use rust_decimal::Decimal;

    use super::*;
    use crate::domain::automation::facts::Facts;
    use crate::domain::settings::BrandSettings;
    use crate::domain::time::{self, Timestamp};

    #[test]
    fn whoever_has_bought_belongs_to_one_of_the_own_segments_and_others_to_none() {
        let (settings, now) = (BrandSettings::default(), Timestamp::default());
        let mut seen = std::collections::BTreeSet::new();
        let mut facts = Facts::example();
        for days in [0, 30, 31, 60, 119, 120, 239, 240, 1000] {
            for count in [1, 2, 3, 4, 5, 9, 10, 50] {
                for spent in [0, 50, 149, 300, 599, 600, 5000] {
                    facts.totals[0].last_ordered_at = time::minus(now, time::days(days));
                    facts.totals[0].count = count;
                    facts.totals[0].total = Decimal::from(spent);
                    let of: Vec<String> = own()
                        .into_iter()
                        .filter(|s| s.expression.holds(&facts, None, &settings, now).holds)
                        .map(|s| s.name)
                        .collect();
                    assert_eq!(of.len(), 1, "{days} days, {count} orders, {spent}: {of:?}");
                    seen.extend(of);
                }
            }
        }
        assert_eq!(seen.len(), RFM.len(), "each of them has somebody");
        facts.totals.clear();
        assert!(own().iter().all(|s| !s.expression.holds(&facts, None, &settings, now).holds));
    }

    #[test]
    fn a_name_is_plain_and_not_taken() {
        check_name("vip_2026").unwrap();
        for name in ["", "VIP", "a b", "rfm_mine", &"x".repeat(61)] {
            assert_eq!(check_name(name).unwrap_err().code, "invalid_segment");
        }
    }
}
