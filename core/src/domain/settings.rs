//! What a brand may set for itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::automation::definition::Cap;
use super::automation::quiet::{QuietHours, zone};
use super::event::Rejection;
use super::identity::{IdentifierKind, country_of};
use super::json;

/// The most values that a brand may block.
pub const MAX_BLOCKED: usize = 1000;
/// The shortest retention, in days: longer than any queue keeps a message, so that a late repetition is still known.
pub const MIN_RETENTION_DAYS: u32 = 30;

/// How many hours a shop's redaction waits, unless the brand sets otherwise.
pub const SHOP_REDACTION_HOURS: u32 = 24;
/// The longest that it may wait: 25 days of the 30 that Shopify allows.
pub const MAX_SHOP_REDACTION_HOURS: u32 = 25 * 24;
/// The most days of a setting: 100 years.
pub const MAX_DAYS: u32 = 36_525;
/// The most of a setting that counts orders, amounts of money, or what a profile holds.
pub const MAX_COUNT: u32 = 1_000_000_000;
/// The most messages of a frequency cap.
pub const MAX_CAP_MESSAGES: u32 = 10_000;
/// The most days of a frequency cap.
pub const MAX_CAP_DAYS: u32 = 365;

/// A brand's settings. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BrandSettings {
    /// Values that identify nobody, besides the placeholders that are always blocked; compared in lower case.
    pub blocked_identifiers: Vec<String>,
    /// The country of telephone numbers that do not say theirs: ISO 3166, two letters.
    pub default_country: Option<String>,
    /// Whether an alias call makes its two ids one customer. Segment's Unify does not, so it is off unless set.
    pub alias_links: bool,
    /// How large a profile may grow.
    pub limits: Limits,
    /// After how many days events are deleted; never, unless set.
    pub retention_days: Option<u32>,
    /// How many hours a shop's redaction (`shop/redact`) waits, and can be stopped: 1 to 600, 24 unless set.
    pub shop_redaction_hours: Option<u32>,
    /// Where recency, frequency and monetary value are cut into scores.
    pub rfm: RfmBounds,
    /// The brand's time zone, like `Europe/Berlin`: for schedules, and for customers whose own is not known. UTC, unless set.
    pub timezone: Option<String>,
    /// When no customer gets marketing, in their own time zone (the trait `timezone`) or the brand's.
    pub quiet_hours: Option<QuietHours>,
    /// How many marketing messages a customer gets at most, of all automations.
    pub frequency_cap: Option<Cap>,
    /// Whom e-mails come from, like `Shop <hello@shop.example>`. Without it none are sent.
    pub email_from: Option<String>,
    /// Whether an address that only a public key stated must be confirmed (the step `confirm`) before it gets any other e-mail.
    pub confirm_addresses: bool,
}

/// Where recency, frequency and monetary value are cut into scores from 1 to 5.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RfmBounds {
    /// Days since the last order: from each of these on, recency is one lower. Rising.
    pub recency_days: [u32; 4],
    /// Orders: from each of these on, frequency is one higher. Rising.
    pub orders: [u32; 4],
    /// What was spent, without what was paid back, in the currency of most orders: from each of these on, monetary value is one
    /// higher. Rising.
    pub spent: [u32; 4],
}

impl Default for RfmBounds {
    fn default() -> Self {
        Self { recency_days: [30, 60, 120, 240], orders: [2, 3, 5, 10], spent: [50, 150, 300, 600] }
    }
}

impl RfmBounds {
    fn check(&self) -> Result<(), Rejection> {
        let wrong = |message: String| Err(Rejection::new("invalid_settings", message));
        let Self { recency_days, orders, spent } = self;
        if recency_days.iter().any(|days| *days > MAX_DAYS) {
            return wrong(format!("rfm.recency_days may be at most {MAX_DAYS}, which is 100 years"));
        }
        if orders.iter().chain(spent).any(|most| *most > MAX_COUNT) {
            return wrong(format!("rfm.orders and rfm.spent may be at most {MAX_COUNT}"));
        }
        if [recency_days, orders, spent]
            .iter()
            .any(|bounds| !bounds.is_sorted_by(|a, b| a < b) || bounds[0] == 0)
        {
            return wrong(
                "rfm needs four bounds each of recency_days, orders and spent, rising from at least 1"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl BrandSettings {
    /// These settings with some changed: what is left out stays, null gives the usual value (JSON Merge Patch, RFC 7396).
    ///
    /// # Errors
    /// When the result is not of the settings' shape.
    pub fn patched(&self, changes: Value) -> Result<Self, serde_json::Error> {
        let mut whole = serde_json::to_value(self)?;
        json::merge_patch(&mut whole, changes);
        serde_json::from_value(whole)
    }

    /// How many hours a shop's redaction waits, within its bounds.
    pub fn shop_redaction_hours(&self) -> u32 {
        self.shop_redaction_hours.unwrap_or(SHOP_REDACTION_HOURS).clamp(1, MAX_SHOP_REDACTION_HOURS)
    }

    /// For the log: blocked values may be people's, so they are counted.
    pub fn in_short(&self) -> serde_json::Value {
        let mut short = serde_json::json!(self);
        short["blocked_identifiers"] = self.blocked_identifiers.len().into();
        short
    }

    /// The domain that e-mails come from, in lower case; `None` where none is set, or it cannot be read.
    pub fn sender_domain(&self) -> Option<String> {
        let mailbox: lettre::message::Mailbox = self.email_from.as_ref()?.parse().ok()?;
        Some(mailbox.email.domain().to_lowercase())
    }

    /// Whether they make sense.
    ///
    /// # Errors
    /// `invalid_settings`, which says what would be right.
    pub fn check(&self) -> Result<(), Rejection> {
        let wrong = |message: String| Err(Rejection::new("invalid_settings", message));
        if self.blocked_identifiers.len() > MAX_BLOCKED {
            return wrong(format!("blocked_identifiers may have at most {MAX_BLOCKED} values"));
        }
        if let Some(code) = &self.default_country
            && country_of(code).is_none()
        {
            return wrong(format!(
                "default_country is {code:?}; it must be an ISO 3166 code of two letters, like DE"
            ));
        }
        if self.retention_days.is_some_and(|days| days < MIN_RETENTION_DAYS) {
            return wrong(format!("retention_days must be at least {MIN_RETENTION_DAYS}, or absent"));
        }
        if self.shop_redaction_hours.is_some_and(|hours| hours == 0 || hours > MAX_SHOP_REDACTION_HOURS) {
            return wrong(format!("shop_redaction_hours must be 1 to {MAX_SHOP_REDACTION_HOURS}, or absent"));
        }
        if self.retention_days.is_some_and(|days| days > MAX_DAYS) {
            return wrong(format!("retention_days may be at most {MAX_DAYS}, which is 100 years"));
        }
        self.rfm.check()?;
        if let Some(name) = &self.timezone
            && zone(name).is_none()
        {
            return wrong(format!(
                "timezone is {name:?}; it must be a name of the IANA's, like Europe/Berlin"
            ));
        }
        if let Some(quiet) = &self.quiet_hours {
            quiet.check()?;
        }
        let cap_holds = |cap: &Cap| {
            (1..=MAX_CAP_MESSAGES).contains(&cap.messages) && (1..=MAX_CAP_DAYS).contains(&cap.days)
        };
        if !self.frequency_cap.as_ref().is_none_or(cap_holds) {
            return wrong(format!(
                "frequency_cap needs 1 to {MAX_CAP_MESSAGES} messages, and 1 to {MAX_CAP_DAYS} days"
            ));
        }
        if let Some(from) = &self.email_from
            && from.parse::<lettre::message::Mailbox>().is_err()
        {
            return wrong(format!("email_from is {from:?}; it must be like Shop <hello@shop.example>"));
        }
        if self.limits.identifiers == 0
            || IdentifierKind::ALL.into_iter().any(|kind| self.limits.of(kind) == 0)
        {
            return wrong("a limit of identifiers must be at least 1".to_owned());
        }
        let counts = self.limits.kinds.values().chain([&self.limits.identifiers, &self.limits.merges]);
        if counts.into_iter().any(|most| *most > MAX_COUNT) {
            return wrong(format!("a limit of a profile may be at most {MAX_COUNT}"));
        }
        Ok(())
    }

    /// As they count: what was stored before its bounds were checked comes down to them.
    #[must_use]
    pub fn clamped(mut self) -> Self {
        self.retention_days = self.retention_days.map(|days| days.clamp(MIN_RETENTION_DAYS, MAX_DAYS));
        self.rfm.recency_days = self.rfm.recency_days.map(|days| days.min(MAX_DAYS));
        self.rfm.orders = self.rfm.orders.map(|most| most.min(MAX_COUNT));
        self.rfm.spent = self.rfm.spent.map(|most| most.min(MAX_COUNT));
        if let Some(cap) = &mut self.frequency_cap {
            cap.messages = cap.messages.clamp(1, MAX_CAP_MESSAGES);
            cap.days = cap.days.clamp(1, MAX_CAP_DAYS);
        }
        self
    }
}

/// How large a profile may grow before it takes no further links. Beyond it an event stays with its most trusted
/// identifier, and the profile is flagged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most identifiers of a kind, where that is other than usual ([`Limits::of`]).
    pub kinds: BTreeMap<IdentifierKind, u32>,
    /// Most identifiers in all.
    pub identifiers: u32,
    /// Most profiles that one may take in.
    pub merges: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { kinds: BTreeMap::new(), identifiers: 2000, merges: 200 }
    }
}

impl Limits {
    /// Most identifiers of a kind. People have few ids, e-mail addresses and telephones; browsers forget who they are; every
    /// cart and checkout has a token.
    pub fn of(&self, kind: IdentifierKind) -> u32 {
        self.kinds.get(&kind).copied().unwrap_or(match kind {
            IdentifierKind::UserId
            | IdentifierKind::Email
            | IdentifierKind::Phone
            | IdentifierKind::ShopifyCustomerId => 10,
            IdentifierKind::AnonymousId => 200,
            IdentifierKind::CartToken | IdentifierKind::CheckoutToken => 1000,
        })
    }

    /// No limits at all, for tests of what does not depend on them.
    pub fn none() -> Self {
        let kinds = IdentifierKind::ALL.into_iter().map(|kind| (kind, u32::MAX)).collect();
        Self { kinds, identifiers: u32::MAX, merges: u32::MAX }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_without_bounds_is_read_within_them() {
        let text = r#"{"retention_days": 4294967295, "rfm": {"recency_days": [1, 2, 3, 4294967295],
            "orders": [1, 2, 3, 4294967295], "spent": [1, 2, 3, 4294967295]},
            "frequency_cap": {"messages": 4294967295, "days": 4294967295}}"#;
        let stored: BrandSettings = serde_json::from_str(text).unwrap();
        assert!(stored.check().is_err());
        stored.clamped().check().unwrap();
    }

    #[test]
    fn settings_are_read_with_defaults_and_refused_with_a_reason() {
        let read = |text: &str| serde_json::from_str::<BrandSettings>(text);
        assert_eq!(read("{}").unwrap(), BrandSettings::default());
        let own = read(r#"{"limits": {"kinds": {"user_id": 1}}, "default_country": "de"}"#).unwrap();
        assert_eq!((own.limits.of(IdentifierKind::UserId), own.limits.merges), (1, 200));
        own.check().unwrap();
        assert!(read(r#"{"limit": {}}"#).is_err(), "a misspelt name is not passed over");
        for wrong in [
            r#"{"default_country": "Germany"}"#,
            r#"{"retention_days": 3}"#,
            r#"{"retention_days": 4294967295}"#,
            r#"{"rfm": {"recency_days": [1, 2, 3, 4294967295]}}"#,
            r#"{"rfm": {"orders": [1, 2, 3, 4294967295]}}"#,
            r#"{"rfm": {"spent": [1, 2, 3, 4294967295]}}"#,
            r#"{"limits": {"merges": 4294967295}}"#,
            r#"{"limits": {"kinds": {"email": 4294967295}}}"#,
            r#"{"frequency_cap": {"messages": 4294967295, "days": 1}}"#,
            r#"{"limits": {"kinds": {"email": 0}}}"#,
            r#"{"rfm": {"orders": [1, 2, 2, 3]}}"#,
            r#"{"timezone": "Berlin"}"#,
            r#"{"quiet_hours": {"from": "9pm", "to": "08:00"}}"#,
            r#"{"frequency_cap": {"messages": 0, "days": 1}}"#,
            r#"{"email_from": "the shop"}"#,
        ] {
            assert_eq!(read(wrong).unwrap().check().unwrap_err().code, "invalid_settings", "{wrong}");
        }
    }
}
