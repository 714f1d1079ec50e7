//! Brands, their API keys and their shops. Keys are stored hashed; a shop's secret must be kept as it is, because
//! verifying a webhook needs it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::privacy::AuditEntry;
use super::store::StoreError;
use crate::domain::ids::BrandId;
use crate::domain::scopes::Scopes;
use crate::domain::settings::BrandSettings;
use crate::domain::time::Timestamp;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyKind {
    /// Send events. It may be public: every browser of a shop has it.
    Write,
    /// Read customers. It stays on the shop's servers.
    Secret,
}

impl KeyKind {
    /// The name in the stores and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Secret => "secret",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Write, Self::Secret].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// A key that was presented and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyGrant {
    /// Whose key.
    pub brand: BrandId,
    /// What it may do.
    pub kind: KeyKind,
    /// How many events a second it may send, or other requests make; where it is not set, a write key has the usual limit of senders.
    pub rate_limit: Option<u32>,
    /// When it ends; never, unless set.
    pub expires_at: Option<Timestamp>,
    /// What a secret key may do. A write key has no scopes: it may send events.
    pub scopes: Scopes,
}

impl KeyGrant {
    /// A key without limits.
    pub fn new(brand: BrandId, kind: KeyKind) -> Self {
        let scopes = match kind {
            KeyKind::Write => Scopes::NONE,
            KeyKind::Secret => Scopes::all(),
        };
        Self { brand, kind, rate_limit: None, expires_at: None, scopes }
    }
}

/// A key that is added.
#[derive(Clone, Copy, Debug)]
pub struct NewKey<'a> {
    /// The SHA-256 of its text.
    pub hash: &'a [u8; 32],
    /// What it may do.
    pub grant: KeyGrant,
    /// The id of the key that makes it; `None` for the command line.
    pub made_by: Option<&'a str>,
    /// The id of the key whose place it takes, and when that one ends.
    pub replaces: Option<(&'a str, Timestamp)>,
}

/// What came of revoking a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The keys that ended now, besides the one that was named.
    pub also: Vec<String>,
    /// The keys that go back to it, directly or through others, and work on.
    pub living: Vec<String>,
}

/// A key as it is listed: never its text, which nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// What people name it by: the first twelve digits of its hash.
    pub id: String,
    /// What it may do, until when, how often.
    pub grant: KeyGrant,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last used, to the minute; `None` for never.
    pub last_used_at: Option<Timestamp>,
    /// The id of the key that made it; `None` for the command line.
    pub made_by: Option<String>,
}

/// What people name a key by.
pub fn key_id(hash: &[u8; 32]) -> String {
    hex::encode(&hash[..6])
}

/// Requests or messages of a brand's key or shop that were refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose.
    pub brand: BrandId,
    /// Who sent them: `key 0123…` or `shop example.myshopify.com`.
    pub source: String,
    /// The code of the answer.
    pub code: String,
    /// How many.
    pub count: u64,
    /// When the last was, in milliseconds since 1970.
    pub last_ms: i64,
}

/// Refusals that are listed.
pub const REFUSALS_LISTED: i64 = 500;

/// A refusal as the stores keep it: source, code, count, last.
pub(crate) fn refusal(brand: BrandId, (source, code, count, last_ms): (String, String, i64, i64)) -> Refusal {
    Refusal { brand, source, code, count: u64::try_from(count).unwrap_or_default(), last_ms }
}

/// A shop that sends webhooks.
#[derive(Clone, PartialEq, Eq)]
pub struct Shop {
    /// For example `example.myshopify.com`, lower case.
    pub domain: String,
    /// Whose shop.
    pub brand: BrandId,
    /// The app's client secret.
    pub secret: String,
    /// The secret before the last rotation: Shopify signs with it for up to an hour more.
    pub previous_secret: Option<String>,
    /// When its owner took the app out, if they did.
    pub uninstalled_at: Option<Timestamp>,
    /// When its customers were erased, if they were: what it sends afterwards is not kept.
    pub redacted_at: Option<Timestamp>,
}

impl std::fmt::Debug for Shop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shop")
            .field("domain", &self.domain)
            .field("brand", &self.brand)
            .finish_non_exhaustive()
    }
}

/// A brand's own secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BrandSecrets {
    /// What signs webhooks, by the Standard Webhooks scheme: `whsec_…`.
    pub signing: String,
    /// What signed them before the last rotation, and until when both do.
    pub previous_signing: Option<(String, Timestamp)>,
    /// What signs links in e-mails.
    pub link: String,
    /// What signed them before they had a secret of their own, and when that ended: good for customers from before then.
    pub old_link: Option<(String, Timestamp)>,
}

impl std::fmt::Debug for BrandSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrandSecrets").finish_non_exhaustive()
    }
}

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretPlace {
    /// A shop's client secret, or the one before it.
    Shop {
        /// Whose shop.
        brand: BrandId,
        /// Its domain.
        domain: String,
        /// Whether it is the one before the last rotation.
        previous: bool,
    },
    /// A brand's signing secret, or the one before it.
    Signing {
        /// Whose.
        brand: BrandId,
        /// Whether it is the one before the last rotation.
        previous: bool,
    },
    /// What signs a brand's links, or what signed them once.
    Link {
        /// Whose.
        brand: BrandId,
        /// Whether it is the one of old.
        old: bool,
    },
    /// What keys the hashes of erased customers' identifiers.
    Suppression,
}

impl SecretPlace {
    /// The table, brand and row that a secret is sealed for. A rotation moves it within its row, so the column is not told.
    pub fn name(&self) -> String {
        match self {
            Self::Shop { brand, domain, .. } => format!("shops/{brand}/{domain}"),
            Self::Signing { brand, .. } => format!("brands/{brand}/signing"),
            Self::Link { brand, .. } => format!("brands/{brand}/link"),
            Self::Suppression => "system/suppression".to_owned(),
        }
    }

    /// Where a brand's own secrets lie.
    pub fn of_brand(brand: BrandId) -> [Self; 4] {
        [
            Self::Signing { brand, previous: false },
            Self::Signing { brand, previous: true },
            Self::Link { brand, old: false },
            Self::Link { brand, old: true },
        ]
    }

    /// Its table, the column that names its row, and the column that it lies in.
    pub fn columns(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Shop { previous: false, .. } => ("shops", "domain", "secret"),
            Self::Shop { previous: true, .. } => ("shops", "domain", "previous_secret"),
            Self::Signing { previous: false, .. } => ("brands", "id", "signing_secret"),
            Self::Signing { previous: true, .. } => ("brands", "id", "previous_signing_secret"),
            Self::Link { old: false, .. } => ("brands", "id", "link_secret"),
            Self::Link { old: true, .. } => ("brands", "id", "old_link_secret"),
            Self::Suppression => ("system_secrets", "name", "secret"),
        }
    }
}

/// A secret as it lies in the store.
#[derive(Clone)]
pub struct StoredSecret {
    /// Where.
    pub place: SecretPlace,
    /// What lies there.
    pub held: String,
}

/// The tenants port. What takes a `note` writes it into the audit log in the same transaction: neither is there without the other.
#[async_trait]
pub trait Tenants: Send + Sync {
    /// Adds a brand. [`StoreError::Invalid`] when the name is taken.
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError>;

    /// The brand of that name.
    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError>;

    /// Every brand, by id.
    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError>;

    /// A brand's settings; the usual ones for a brand that is not there.
    async fn settings(&self, brand: BrandId) -> Result<BrandSettings, StoreError>;

    /// Sets a brand's settings.
    async fn set_settings(
        &self,
        brand: BrandId,
        settings: &BrandSettings,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError>;

    /// The domains that the operator lets a brand's e-mails come from; `None` where none is named.
    async fn email_domains(&self, brand: BrandId) -> Result<Option<Vec<String>>, StoreError>;

    /// Names these domains, or none.
    async fn set_email_domains(
        &self,
        brand: BrandId,
        domains: Option<&[String]>,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError>;

    /// Adds a key. Answers whether it was added: not where the key that makes it, or whose place it takes, has ended by `now`.
    async fn add_key(
        &self,
        key: &NewKey<'_>,
        now: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError>;

    /// The key of that hash, also one that has ended.
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError>;

    /// A brand's keys, the oldest first, also those that have ended.
    async fn keys(&self, brand: BrandId) -> Result<Vec<KeyRecord>, StoreError>;

    /// Ends a key at once, and with `cascade` every key that goes back to it. `None` where the brand has no such key.
    async fn revoke_key(
        &self,
        brand: BrandId,
        id: &str,
        at: Timestamp,
        cascade: bool,
        note: Option<&AuditEntry>,
    ) -> Result<Option<Ended>, StoreError>;

    /// Limits a key to so many events or other requests a second, or lifts the limit. Answers whether the brand has such a key.
    async fn limit_key(
        &self,
        brand: BrandId,
        id: &str,
        limit: Option<u32>,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError>;

    /// Notes when keys were last used.
    async fn keys_used(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError>;

    /// Adds to what was refused.
    async fn add_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError>;

    /// What was refused of a brand's, the newest first: at most [`REFUSALS_LISTED`].
    async fn refusals(&self, brand: BrandId) -> Result<Vec<Refusal>, StoreError>;

    /// A brand's secrets; what `fresh` has becomes them where there are none.
    async fn secrets(&self, brand: BrandId, fresh: &BrandSecrets) -> Result<BrandSecrets, StoreError>;

    /// Gives a brand a new signing secret. The one before it stays good until a time, the one before that does not.
    async fn rotate_signing(
        &self,
        brand: BrandId,
        fresh: &str,
        until: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError>;

    /// Adds a shop. For one that is there, its secret becomes the previous one; [`StoreError::Invalid`] when it is
    /// another brand's.
    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError>;

    /// A brand's shops, by domain.
    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError>;

    /// Notes that a shop has taken the app out. One that is added again is installed again.
    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError>;

    /// Notes that a shop's customers were erased.
    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError>;

    /// The shop of that domain.
    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError>;

    /// The system's suppression key, in base64; `fresh` where there is none yet.
    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError>;

    /// Every secret, as it lies in the store.
    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError>;

    /// Puts others into the place of secrets that are still what they were. What was replaced is not left lying about where the
    /// store can help it.
    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError>;
}
