//! What was refused of whom.

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::ports::store::StoreError;

/// Requests or messages of a brand's key or shop that were refused for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub brand: BrandId,
    /// Who sent them: `key 0123…` or `shop example.myshopify.com`.
    pub source: String,
    /// The code of the answer.
    pub code: String,
    pub count: u64,
    /// When the last was, in milliseconds since 1970.
    pub last_ms: i64,
}

/// Refusals that are listed.
pub const REFUSALS_LISTED: i64 = 500;

/// Counts of requests and messages that were refused.
#[async_trait]
pub trait Refusals: Send + Sync {
    /// Adds to what was refused.
    async fn add_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError>;

    /// What was refused of a brand's, the newest first: at most [`REFUSALS_LISTED`].
    async fn refusals(&self, brand: BrandId) -> Result<Vec<Refusal>, StoreError>;
}
