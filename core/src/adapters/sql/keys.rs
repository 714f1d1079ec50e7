//! API keys.

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::brands::{SqlBrands, note_and_commit};
use super::codec::Time;
use super::database::BrandTx;
use super::read_as;
use super::statement::Given;
use crate::domain::ids::BrandId;
use crate::domain::scopes::Scopes;
use crate::domain::time::Timestamp;
use crate::ports::brands::{ApiKeys, Ended, KeyGrant, KeyKind, KeyRecord, NewKey};
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

/// The columns of a key's grant, as it is read.
const GRANT: &str = "brand_id, kind, rate_limit, expires_at, scopes";

#[derive(FromRow)]
struct GrantRow {
    brand_id: BrandId,
    kind: KeyKind,
    rate_limit: Option<i32>,
    expires_at: Option<Time>,
    scopes: Scopes,
}

#[derive(FromRow)]
struct KeyRow {
    id: String,
    #[sqlx(flatten)]
    grant: KeyGrant,
    created_at: Time,
    last_used_at: Option<Time>,
    made_by: Option<String>,
}

read_as!(KeyGrant: GrantRow, KeyRecord: KeyRow);

impl From<GrantRow> for KeyGrant {
    fn from(row: GrantRow) -> Self {
        Self {
            brand: row.brand_id,
            kind: row.kind,
            rate_limit: row.rate_limit.and_then(|limit| u32::try_from(limit).ok()),
            expires_at: row.expires_at.map(|at| at.0),
            scopes: row.scopes,
        }
    }
}

impl From<KeyRow> for KeyRecord {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            grant: row.grant,
            created_at: row.created_at.0,
            last_used_at: row.last_used_at.map(|at| at.0),
            made_by: row.made_by,
        }
    }
}

#[async_trait]
impl ApiKeys for SqlBrands {
    async fn add_key(
        &self,
        key: &NewKey<'_>,
        now: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let KeyGrant { brand, kind, rate_limit, expires_at, scopes } = key.grant;
        let mut tx = self.db.brand(brand).await?;
        for other in key.made_by.into_iter().chain(key.replaces.map(|(id, _)| id)) {
            // Locked: whoever revokes it sees what it made, or keeps it from making more.
            let good = "select id from api_keys
                where brand_id = $1 and id = $2 and (expires_at is null or expires_at > $3) for share";
            let good: Option<String> = tx.sql(good).bind(brand).bind(other).bind(now).scalar().await?;
            if good.is_none() {
                return Ok(false);
            }
        }
        if let Some((old, at)) = key.replaces {
            end(&mut tx, &[old.to_owned()], at).await?;
        }
        tx.sql(
            "insert into api_keys (hash, brand_id, kind, rate_limit, expires_at, scopes, made_by, created_at)
            values ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&key.hash[..])
        .bind(brand)
        .bind(kind.as_str())
        .bind(limit_column(rate_limit))
        .bind(expires_at)
        .bind(scopes.to_string())
        .bind(key.made_by)
        .bind(now)
        .run()
        .await?;
        note_and_commit(tx, note).await?;
        Ok(true)
    }

    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError> {
        // The key says which brand it is.
        let key = format!("select {GRANT} from api_keys where hash = $1");
        self.db.looking().await?.sql(key).bind(&hash[..]).optional().await
    }

    async fn keys(&self, brand: BrandId) -> Result<Vec<KeyRecord>, StoreError> {
        let keys = format!(
            "select id, {GRANT}, created_at, last_used_at, made_by from api_keys where brand_id = $1 order by created_at, id"
        );
        self.db.looking_at(brand).await?.sql(keys).bind(brand).all().await
    }

    async fn revoke_key(
        &self,
        brand: BrandId,
        id: &str,
        at: Timestamp,
        cascade: bool,
        note: Option<&AuditEntry>,
    ) -> Result<Option<Ended>, StoreError> {
        let mut tx = self.db.brand(brand).await?;
        if end(&mut tx, &[id.to_owned()], at).await?.is_empty() {
            return Ok(None);
        }
        let mut ended = Ended::default();
        loop {
            // Each statement sees what was committed before it: also a key that one of these made until it was locked.
            ended.living = tx
                .sql(
                    "with recursive made as (
                        select id, expires_at from api_keys where brand_id = $1 and made_by = $2
                        union select k.id, k.expires_at from api_keys k join made on k.made_by = made.id where k.brand_id = $1
                    ) select id from made where expires_at is null or expires_at > $3 order by id",
                )
                .bind(brand)
                .bind(id)
                .bind(at)
                .scalars()
                .await?;
            if !cascade || ended.living.is_empty() {
                break;
            }
            let gone = end(&mut tx, &ended.living, at).await?;
            ended.also.extend(gone);
        }
        note_and_commit(tx, note).await?;
        Ok(Some(ended))
    }

    async fn limit_key(
        &self,
        brand: BrandId,
        id: &str,
        limit: Option<u32>,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let set = "update api_keys set rate_limit = $3 where brand_id = $1 and id = $2";
        if tx.sql(set).bind(brand).bind(id).bind(limit_column(limit)).run().await? == 0 {
            return Ok(false);
        }
        note_and_commit(tx, note).await?;
        Ok(true)
    }

    async fn keys_used(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError> {
        let given = Given::of(used).column("key", |(id, _)| id).column("used", |(_, at)| *at).rows();
        self.db
            .writing()
            .await?
            .sql(
                "update api_keys set last_used_at = greatest(coalesce(last_used_at, given.used), given.used)
                from {given} where api_keys.id = given.key",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }
}

/// A limit as its column holds it.
fn limit_column(limit: Option<u32>) -> Option<i32> {
    limit.and_then(|limit| i32::try_from(limit).ok())
}

/// Lets keys end at a time, at the latest. Returns which of them the brand has.
async fn end(tx: &mut BrandTx, ids: &[String], at: Timestamp) -> Result<Vec<String>, StoreError> {
    let brand = tx.brand();
    let end = "update api_keys set expires_at = coalesce(least(expires_at, $3), $3)
        where brand_id = $1 and id = any($2) returning id";
    tx.sql(end).bind(brand).list(ids).bind(at).scalars().await
}
