//! What a brand may set for itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::Rejection;
use super::identity::{IdentifierKind, country_of};

/// The most values that a brand may block.
pub const MAX_BLOCKED: usize = 1000;
/// The shortest retention, in days: longer than any queue keeps a message, so that a late repetition is still known.
pub const MIN_RETENTION_DAYS: u32 = 30;

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
}

impl BrandSettings {
    /// For the log: blocked values may be people's, so they are counted.
    pub fn in_short(&self) -> serde_json::Value {
        let mut short = serde_json::json!(self);
        short["blocked_identifiers"] = self.blocked_identifiers.len().into();
        short
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
        if self.limits.identifiers == 0
            || IdentifierKind::ALL.into_iter().any(|kind| self.limits.of(kind) == 0)
        {
            return wrong("a limit of 0 identifiers would let nobody in; the least is 1".to_owned());
        }
        Ok(())
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
            r#"{"limits": {"kinds": {"email": 0}}}"#,
        ] {
            assert_eq!(read(wrong).unwrap().check().unwrap_err().code, "invalid_settings", "{wrong}");
        }
    }
}
