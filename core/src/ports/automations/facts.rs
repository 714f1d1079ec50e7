//! What expressions and templates see of customers.

use std::collections::HashMap;

use async_trait::async_trait;

use crate::domain::automation::facts::Facts;
use crate::domain::customer360::StoredEvent;
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::store::StoreError;

/// What is known of customers, in a transaction.
#[async_trait]
pub trait FactsTx: Send {
    /// Locks profiles, and answers which those are that they were merged into. Who is gone is not among them. `ids` must be sorted.
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, ProfileId>, StoreError>;

    /// What is known of profiles; with their newest events only where `events`.
    async fn facts(
        &mut self,
        ids: &[ProfileId],
        events: bool,
    ) -> Result<HashMap<ProfileId, Facts>, StoreError>;

    /// Those of these events that are there, by brand and message id.
    async fn events(
        &mut self,
        ids: &[(BrandId, String)],
    ) -> Result<HashMap<(BrandId, String), StoredEvent>, StoreError>;

    /// The events of these names, of each profile from a time on (milliseconds since 1970), oldest first.
    async fn events_since(
        &mut self,
        of: &[(ProfileId, i64)],
        names: &[String],
    ) -> Result<HashMap<ProfileId, Vec<StoredEvent>>, StoreError>;
}
