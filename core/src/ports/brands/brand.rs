//! Brands and their settings.

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

/// Brands and their settings. What takes a `note` writes it into the audit log in the same transaction: neither is there without the
/// other.
#[async_trait]
pub trait Brands: Send + Sync {
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
}
