//! Brands, keys and shops.

use async_trait::async_trait;

use super::db::{Db, failed};
use crate::domain::ids::BrandId;
use crate::ports::store::StoreError;
use crate::ports::tenants::{KeyGrant, KeyKind, Shop, Tenants};

/// The tenants on SQLite.
pub struct SqliteTenants {
    db: Db,
}

impl SqliteTenants {
    /// The tenants in an open file.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Tenants for SqliteTenants {
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let id: Option<i64> =
            sqlx::query_scalar("insert into brands (name) values (?1) on conflict do nothing returning id")
                .bind(name)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        id.map(BrandId).ok_or_else(|| StoreError::Invalid(format!("there is a brand named {name:?} already")))
    }

    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError> {
        let id: Option<i64> = sqlx::query_scalar("select id from brands where name = ?1")
            .bind(name)
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        Ok(id.map(BrandId))
    }

    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("select id, name from brands order by id")
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        Ok(rows.into_iter().map(|(id, name)| (BrandId(id), name)).collect())
    }

    async fn add_key(&self, hash: &[u8; 32], grant: KeyGrant) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        sqlx::query("insert into api_keys (hash, brand_id, kind) values (?1, ?2, ?3)")
            .bind(&hash[..])
            .bind(grant.brand.0)
            .bind(grant.kind.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)
    }

    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError> {
        let row: Option<(i64, String)> =
            sqlx::query_as("select brand_id, kind from api_keys where hash = ?1")
                .bind(&hash[..])
                .fetch_optional(&self.db.read)
                .await
                .map_err(failed)?;
        Ok(row
            .and_then(|(brand, kind)| Some(KeyGrant { brand: BrandId(brand), kind: KeyKind::parse(&kind)? })))
    }

    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        let mut tx = self.db.begin().await.map_err(failed)?;
        let changed = sqlx::query(
            "insert into shops (domain, brand_id, secret) values (?1, ?2, ?3)
            on conflict (domain) do update set secret = excluded.secret,
                previous_secret = case when shops.secret = excluded.secret then shops.previous_secret else shops.secret end
            where shops.brand_id = excluded.brand_id",
        )
        .bind(domain)
        .bind(brand.0)
        .bind(secret)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        match changed.rows_affected() {
            0 => Err(StoreError::Invalid(format!("the shop {domain} belongs to another brand"))),
            _ => Ok(()),
        }
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        let row: Option<(String, i64, String, Option<String>)> =
            sqlx::query_as("select domain, brand_id, secret, previous_secret from shops where domain = ?1")
                .bind(domain)
                .fetch_optional(&self.db.read)
                .await
                .map_err(failed)?;
        Ok(row.map(|(domain, brand, secret, previous_secret)| Shop {
            domain,
            brand: BrandId(brand),
            secret,
            previous_secret,
        }))
    }
}
