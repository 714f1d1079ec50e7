//! Brands, keys and shops.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::db::{Db, failed};
use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::store::StoreError;
use crate::ports::tenants::{KeyGrant, KeyKind, KeyRecord, Shop, Tenants};

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

    async fn settings(&self, brand: BrandId) -> Result<BrandSettings, StoreError> {
        let found: Option<String> = sqlx::query_scalar("select settings from brands where id = ?1")
            .bind(brand.0)
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        let Some(text) = found else { return Ok(BrandSettings::default()) };
        serde_json::from_str(&text)
            .map_err(|error| StoreError::Invalid(format!("a brand's settings: {error}")))
    }

    async fn set_settings(&self, brand: BrandId, settings: &BrandSettings) -> Result<(), StoreError> {
        let text = serde_json::json!(settings).to_string();
        let statement = sqlx::query("update brands set settings = ?2 where id = ?1").bind(brand.0).bind(text);
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn add_key(&self, hash: &[u8; 32], grant: KeyGrant) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "insert into api_keys (hash, brand_id, kind, rate_limit, expires_at, created_at) values (?1, ?2, ?3, ?4, ?5, unixepoch() * 1000)",
        )
        .bind(&hash[..])
        .bind(grant.brand.0)
        .bind(grant.kind.as_str())
        .bind(grant.rate_limit.map(i64::from))
        .bind(grant.expires_at.map(|at| at.timestamp_millis()));
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError> {
        let row = sqlx::query("select brand_id, kind, rate_limit, expires_at from api_keys where hash = ?1")
            .bind(&hash[..])
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.map(|row| grant(&row)).transpose().map_err(failed)
    }

    async fn keys(&self, brand: BrandId) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query(
            "select id, brand_id, kind, rate_limit, expires_at, created_at, last_used_at from api_keys
            where brand_id = ?1 order by created_at, id",
        )
        .bind(brand.0)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(record).collect::<Result<_, _>>().map_err(failed)
    }

    async fn end_key(&self, brand: BrandId, id: &str, at: Timestamp) -> Result<bool, StoreError> {
        let statement = sqlx::query(
            "update api_keys set expires_at = coalesce(min(expires_at, ?3), ?3) where brand_id = ?1 and id = ?2",
        )
        .bind(brand.0)
        .bind(id)
        .bind(at.timestamp_millis());
        let done = self.db.execute(statement).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn limit_key(&self, brand: BrandId, id: &str, limit: Option<u32>) -> Result<bool, StoreError> {
        let statement = sqlx::query("update api_keys set rate_limit = ?3 where brand_id = ?1 and id = ?2")
            .bind(brand.0)
            .bind(id)
            .bind(limit.map(i64::from));
        let done = self.db.execute(statement).await?;
        Ok(done.rows_affected() > 0)
    }

    async fn keys_used(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError> {
        let used: Vec<_> =
            used.iter().map(|(id, at)| serde_json::json!([id, at.timestamp_millis()])).collect();
        let statement = sqlx::query(
            "update api_keys set last_used_at = max(coalesce(last_used_at, 0), used.value ->> 1)
            from json_each(?1) used where api_keys.id = used.value ->> 0",
        )
        .bind(serde_json::json!(used).to_string());
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        let statement = sqlx::query(
            "insert into shops (domain, brand_id, secret) values (?1, ?2, ?3)
            on conflict (domain) do update set secret = excluded.secret, uninstalled_at = null, redacted_at = null,
                previous_secret = case when shops.secret = excluded.secret then shops.previous_secret else shops.secret end
            where shops.brand_id = excluded.brand_id",
        )
        .bind(domain)
        .bind(brand.0)
        .bind(secret);
        let changed = self.db.execute(statement).await?;
        match changed.rows_affected() {
            0 => Err(StoreError::Invalid(format!("the shop {domain} belongs to another brand"))),
            _ => Ok(()),
        }
    }

    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError> {
        let rows = sqlx::query("select * from shops where brand_id = ?1 order by domain")
            .bind(brand.0)
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        rows.iter().map(shop).collect::<Result<_, _>>().map_err(failed)
    }

    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        let statement =
            sqlx::query("update shops set uninstalled_at = coalesce(uninstalled_at, ?2) where domain = ?1")
                .bind(domain)
                .bind(at.timestamp_millis());
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        let statement =
            sqlx::query("update shops set redacted_at = coalesce(redacted_at, ?2) where domain = ?1")
                .bind(domain)
                .bind(at.timestamp_millis());
        self.db.execute(statement).await?;
        Ok(())
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        let row = sqlx::query("select * from shops where domain = ?1")
            .bind(domain)
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.map(|row| shop(&row)).transpose().map_err(failed)
    }
}

fn grant(row: &SqliteRow) -> Result<KeyGrant, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    Ok(KeyGrant {
        brand: BrandId(row.try_get("brand_id")?),
        kind: KeyKind::parse(&kind)
            .ok_or_else(|| sqlx::Error::Decode(format!("a key of the kind {kind:?}").into()))?,
        rate_limit: row.try_get::<Option<i64>, _>("rate_limit")?.and_then(|limit| u32::try_from(limit).ok()),
        expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(from_ms),
    })
}

fn record(row: &SqliteRow) -> Result<KeyRecord, sqlx::Error> {
    Ok(KeyRecord {
        id: row.try_get("id")?,
        grant: grant(row)?,
        created_at: from_ms(row.try_get("created_at")?),
        last_used_at: row.try_get::<Option<i64>, _>("last_used_at")?.map(from_ms),
    })
}

fn shop(row: &SqliteRow) -> Result<Shop, sqlx::Error> {
    Ok(Shop {
        domain: row.try_get("domain")?,
        brand: BrandId(row.try_get("brand_id")?),
        secret: row.try_get("secret")?,
        previous_secret: row.try_get("previous_secret")?,
        uninstalled_at: row.try_get::<Option<i64>, _>("uninstalled_at")?.map(from_ms),
        redacted_at: row.try_get::<Option<i64>, _>("redacted_at")?.map(from_ms),
    })
}
