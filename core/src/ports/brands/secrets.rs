//! Secrets of brands and of the system, and where secrets lie.

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

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
        brand: BrandId,
        domain: String,
        /// Whether it is the one before the last rotation.
        previous: bool,
    },
    /// A brand's signing secret, or the one before it.
    Signing {
        brand: BrandId,
        /// Whether it is the one before the last rotation.
        previous: bool,
    },
    /// What signs a brand's links, or what signed them once.
    Link {
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
    pub place: SecretPlace,
    pub held: String,
}

/// Secrets of brands and of the system. What takes a `note` writes it into the audit log in the same transaction: neither is there without the
/// other.
#[async_trait]
pub trait Secrets: Send + Sync {
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

    /// The system's suppression key, in base64; `fresh` where there is none yet.
    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError>;

    /// Every secret, as it lies in the store.
    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError>;

    /// Puts others into the place of secrets that are still what they were. What was replaced is not left lying about where the
    /// store can help it.
    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError>;
}
