//! Shops that send webhooks. A shop's secret must be kept as it is, because verifying a webhook needs it.

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::store::StoreError;

/// A shop that sends webhooks.
#[derive(Clone, PartialEq, Eq)]
pub struct Shop {
    /// For example `example.myshopify.com`, lower case.
    pub domain: String,
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

#[async_trait]
pub trait Shops: Send + Sync {
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
}
