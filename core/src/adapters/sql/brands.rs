//! Brands, their settings, and what was refused of theirs.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;
use sqlx_macros::FromRow;

use super::audit;
use super::codec::Json;
use super::database::{BrandTx, Database};
use super::read_as;
use super::statement::Given;
use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::ports::brands::{BrandPorts, Brands, REFUSALS_LISTED, Refusal, Refusals};
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

/// Brands, their keys, shops and secrets.
#[derive(Clone)]
pub struct SqlBrands {
    pub(super) db: Database,
}

impl SqlBrands {
    /// Those in an open database.
    pub fn ports(db: Database) -> BrandPorts {
        let all = Arc::new(Self { db });
        BrandPorts {
            brands: all.clone(),
            keys: all.clone(),
            refusals: all.clone(),
            shops: all.clone(),
            secrets: all,
        }
    }
}

pub(super) async fn note_and_commit(mut tx: BrandTx, note: Option<&AuditEntry>) -> Result<(), StoreError> {
    if let Some(entry) = note {
        audit::add(&mut tx, entry).await?;
    }
    tx.commit().await
}

#[derive(FromRow)]
struct RefusalRow {
    brand_id: BrandId,
    source: String,
    code: String,
    count: i64,
    last_ms: i64,
}

read_as!(Refusal: RefusalRow);

impl From<RefusalRow> for Refusal {
    fn from(row: RefusalRow) -> Self {
        Self {
            brand: row.brand_id,
            source: row.source,
            code: row.code,
            count: row.count.cast_unsigned(),
            last_ms: row.last_ms,
        }
    }
}

#[async_trait]
impl Brands for SqlBrands {
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError> {
        let mut tx = self.db.every_brand().await?;
        let add = "insert into brands (name) values ($1) on conflict do nothing returning id";
        let id = tx.sql(add).bind(name).scalar().await?;
        tx.commit().await?;
        id.ok_or_else(|| StoreError::Invalid(format!("there is a brand named {name:?} already")))
    }

    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError> {
        self.db.looking().await?.sql("select id from brands where name = $1").bind(name).scalar().await
    }

    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError> {
        self.db.looking().await?.sql("select id, name from brands order by id").all().await
    }

    async fn settings(&self, brand: BrandId) -> Result<BrandSettings, StoreError> {
        let settings = "select settings from brands where id = $1";
        let found: Option<Json<BrandSettings>> =
            self.db.looking_at(brand).await?.sql(settings).bind(brand).scalar().await?;
        Ok(found.map(|settings| settings.0.clamped()).unwrap_or_default())
    }

    async fn set_settings(
        &self,
        brand: BrandId,
        settings: &BrandSettings,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let set = "update brands set settings = $2 where id = $1";
        tx.sql(set).bind(brand).bind(json!(settings).to_string()).run().await?;
        note_and_commit(tx, note).await
    }

    async fn email_domains(&self, brand: BrandId) -> Result<Option<Vec<String>>, StoreError> {
        let domains = "select email_domains from brands where id = $1";
        let found: Option<Option<Json<Vec<String>>>> =
            self.db.looking_at(brand).await?.sql(domains).bind(brand).scalar().await?;
        Ok(found.flatten().map(|domains| domains.0))
    }

    async fn set_email_domains(
        &self,
        brand: BrandId,
        domains: Option<&[String]>,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let set = "update brands set email_domains = $2 where id = $1";
        let domains = domains.map(|domains| json!(domains).to_string());
        tx.sql(set).bind(brand).bind(domains).run().await?;
        note_and_commit(tx, note).await
    }
}

#[async_trait]
impl Refusals for SqlBrands {
    async fn add_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        let given = Given::of(refusals)
            .column("brand", |refusal| refusal.brand)
            .column("source", |refusal| &refusal.source)
            .column("code", |refusal| &refusal.code)
            .column("count", |refusal| i64::try_from(refusal.count).unwrap_or(i64::MAX))
            .column("last_ms", |refusal| refusal.last_ms)
            .rows();
        self.db
            .writing()
            .await?
            .sql(
                "insert into refusals (brand_id, source, code, count, last_ms)
                select brand, source, code, count, last_ms from {given} where true
                on conflict (brand_id, source, code) do update set count = refusals.count + excluded.count,
                    last_ms = greatest(refusals.last_ms, excluded.last_ms)",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }

    async fn refusals(&self, brand: BrandId) -> Result<Vec<Refusal>, StoreError> {
        let refusals = "select brand_id, source, code, count, last_ms from refusals where brand_id = $1
            order by last_ms desc, source, code limit $2";
        self.db.looking_at(brand).await?.sql(refusals).bind(brand).bind(REFUSALS_LISTED).all().await
    }
}
