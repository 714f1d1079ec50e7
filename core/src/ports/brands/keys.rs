//! API keys. They are stored hashed: nobody has their text.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::domain::ids::BrandId;
use crate::domain::scopes::Scopes;
use crate::domain::time::Timestamp;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

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

/// API keys. What takes a `note` writes it into the audit log in the same transaction: neither is there without the
/// other.
#[async_trait]
pub trait ApiKeys: Send + Sync {
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
}
