//! The store of customers.

use async_trait::async_trait;

use super::audit;
use super::customers;
use super::database::{Database, Tx};
use super::{outbox, privacy};
use crate::adapters::{postgres, sqlite};
use crate::domain::customer360::{CustomerRecord, CustomerRef, Revision};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::{PrivacyRow, Store, StoreError, StoreStats, StoreTx, SuppressionKey};

/// The store of customers.
pub struct SqlStore {
    db: Database,
    suppression: SuppressionKey,
}

impl SqlStore {
    /// The store in an open database; `suppression` keys what is kept of erased customers.
    pub fn new(db: Database, suppression: SuppressionKey) -> Self {
        Self { db, suppression }
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        let tx = self.db.every_brand().await?;
        Ok(Box::new(SqlStoreTx { tx, suppression: self.suppression.clone() }))
    }

    async fn begin_for(&self, brand: BrandId) -> Result<Box<dyn StoreTx>, StoreError> {
        let tx = self.db.brand(brand).await?.into_tx();
        Ok(Box::new(SqlStoreTx { tx, suppression: self.suppression.clone() }))
    }

    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError> {
        customers::owner(&mut self.db.looking_at(brand).await?, identifier).await
    }

    async fn revision(&self, brand: BrandId, asked: &CustomerRef) -> Result<Option<Revision>, StoreError> {
        customers::revision(&mut self.db.looking_at(brand).await?, asked).await
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        customers::customer(&mut self.db.reading(brand).await?, id).await
    }

    async fn body_topics(
        &self,
        brand: BrandId,
        shop: &str,
        digest: &[u8; 32],
    ) -> Result<Vec<String>, StoreError> {
        let topics = "select topic from webhook_bodies where brand_id = $1 and shop = $2 and digest = $3";
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(topics).bind(brand).bind(shop).bind(&digest[..]).scalars().await
    }

    async fn last_fence(&self) -> Result<i64, StoreError> {
        let highest = "select coalesce(max(fence), 0) from profiles where fence > 0";
        Ok(self.db.looking().await?.sql(highest).scalar().await?.unwrap_or_default())
    }

    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError> {
        let counts = "select (select count(*) from profiles where brand_id = $1 and merged_into is null),
            (select count(*) from events where brand_id = $1), (select count(*) from orders where brand_id = $1)";
        let mut tx = self.db.looking_at(brand).await?;
        let (profiles, events, orders) = tx.sql(counts).bind(brand).one().await?;
        Ok(StoreStats { profiles, events, orders })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.db.looking().await?.sql("select 1").run().await.map(drop)
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        let mut tx = self.db.looking().await?;
        let now = if tx.is_postgres() { postgres::hot::NOW_MS } else { sqlite::hot::NOW_MS };
        let (now_ms,) = tx.sql(now).one().await?;
        Ok(now_ms)
    }
}

/// A transaction of the workers.
///
/// On PostgreSQL, each statement sees what others have committed before it (READ COMMITTED). On SQLite it is the only one that
/// writes, so it meets no conflict and locks nothing more.
pub(super) struct SqlStoreTx {
    pub(super) tx: Tx,
    pub(super) suppression: SuppressionKey,
}

#[async_trait]
impl StoreTx for SqlStoreTx {
    async fn add_requests(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError> {
        privacy::add_requests(&mut self.tx, rows).await
    }

    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError> {
        outbox::insert(&mut self.tx, stages, now_ms).await.map(drop)
    }

    async fn append_audit(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        audit::add(&mut self.tx, entry).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.tx.commit().await
    }
}
