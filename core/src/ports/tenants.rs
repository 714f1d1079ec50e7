//! Brands, their API keys and their shops. Keys are stored hashed; a shop's secret must be kept as it is, because
//! verifying a webhook needs it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::store::StoreError;
use crate::domain::ids::BrandId;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
}

impl std::fmt::Debug for Shop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shop")
            .field("domain", &self.domain)
            .field("brand", &self.brand)
            .finish_non_exhaustive()
    }
}

/// The tenants port.
#[async_trait]
pub trait Tenants: Send + Sync {
    /// Adds a brand. [`StoreError::Invalid`] when the name is taken.
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError>;

    /// The brand of that name.
    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError>;

    /// Every brand, by id.
    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError>;

    /// Adds a key by the SHA-256 of its text.
    async fn add_key(&self, hash: &[u8; 32], grant: KeyGrant) -> Result<(), StoreError>;

    /// The key of that hash.
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError>;

    /// Adds a shop. For one that is there, its secret becomes the previous one; [`StoreError::Invalid`] when it is
    /// another brand's.
    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError>;

    /// The shop of that domain.
    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError>;
}
