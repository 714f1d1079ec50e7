//! Brands, keys and shops.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use super::db::{begin, begin_for, failed};
use super::privacy::add_note;
use crate::domain::ids::BrandId;
use crate::domain::scopes::Scopes;
use crate::domain::settings::BrandSettings;
use crate::domain::time::Timestamp;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::ports::tenants::{
    BrandSecrets, Ended, KeyGrant, KeyKind, KeyRecord, NewKey, REFUSALS_LISTED, Refusal, SecretPlace, Shop,
    StoredSecret, Tenants, refusal,
};

/// The columns of a brand's secrets, as [`secrets`] reads them.
const SECRETS: &str = "signing_secret, previous_signing_secret, previous_signing_until, link_secret, old_link_secret, old_link_until";

/// The row of the key of suppressions.
const SUPPRESSION: &str = "suppression";

/// The tenants on PostgreSQL.
pub struct PgTenants {
    pool: PgPool,
}

impl PgTenants {
    /// The tenants in an open pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    async fn held_suppression_key(&self) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("select secret from system_secrets where name = $1")
            .bind(SUPPRESSION)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)
    }
}

#[async_trait]
impl Tenants for PgTenants {
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError> {
        let id: Option<i64> =
            sqlx::query_scalar("insert into brands (name) values ($1) on conflict do nothing returning id")
                .bind(name)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed)?;
        id.map(BrandId).ok_or_else(|| StoreError::Invalid(format!("there is a brand named {name:?} already")))
    }

    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError> {
        let id: Option<i64> = sqlx::query_scalar("select id from brands where name = $1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        Ok(id.map(BrandId))
    }

    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError> {
        let rows: Vec<(i64, String)> = sqlx::query_as("select id, name from brands order by id")
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        Ok(rows.into_iter().map(|(id, name)| (BrandId(id), name)).collect())
    }

    async fn settings(&self, brand: BrandId) -> Result<BrandSettings, StoreError> {
        let found: Option<String> = sqlx::query_scalar("select settings from brands where id = $1")
            .bind(brand.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        let Some(text) = found else { return Ok(BrandSettings::default()) };
        serde_json::from_str(&text)
            .map(BrandSettings::clamped)
            .map_err(|error| StoreError::Invalid(format!("a brand's settings: {error}")))
    }

    async fn set_settings(
        &self,
        brand: BrandId,
        settings: &BrandSettings,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        sqlx::query("update brands set settings = $2 where id = $1")
            .bind(brand.0)
            .bind(serde_json::json!(settings).to_string())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)
    }

    async fn email_domains(&self, brand: BrandId) -> Result<Option<Vec<String>>, StoreError> {
        let found: Option<String> = sqlx::query_scalar("select email_domains from brands where id = $1")
            .bind(brand.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?
            .flatten();
        let read = |text: String| {
            serde_json::from_str(&text)
                .map_err(|error| StoreError::Invalid(format!("a brand's domains: {error}")))
        };
        found.map(read).transpose()
    }

    async fn set_email_domains(
        &self,
        brand: BrandId,
        domains: Option<&[String]>,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        sqlx::query("update brands set email_domains = $2 where id = $1")
            .bind(brand.0)
            .bind(domains.map(|domains| serde_json::json!(domains).to_string()))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)
    }

    async fn add_key(
        &self,
        key: &NewKey<'_>,
        now: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let brand = key.grant.brand;
        let mut tx = begin_for(&self.pool, brand).await?;
        for other in key.made_by.into_iter().chain(key.replaces.map(|(id, _)| id)) {
            // Locked: whoever revokes it sees what it made, or keeps it from making more.
            let good = sqlx::query_scalar::<_, i32>(
                "select 1 from api_keys where brand_id = $1 and id = $2 and (expires_at is null or expires_at > $3) for share",
            )
            .bind(brand.0)
            .bind(other)
            .bind(now)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
            if good.is_none() {
                return Ok(false);
            }
        }
        if let Some((old, at)) = key.replaces {
            end(&mut tx, brand, &[old.to_owned()], at).await?;
        }
        sqlx::query(
            "insert into api_keys (hash, brand_id, kind, rate_limit, expires_at, scopes, made_by)
            values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&key.hash[..])
        .bind(brand.0)
        .bind(key.grant.kind.as_str())
        .bind(key.grant.rate_limit.and_then(|limit| i32::try_from(limit).ok()))
        .bind(key.grant.expires_at)
        .bind(key.grant.scopes.to_string())
        .bind(key.made_by)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError> {
        let row = sqlx::query(
            "select brand_id, kind, rate_limit, expires_at, scopes from api_keys where hash = $1",
        )
        .bind(&hash[..])
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)?;
        row.map(|row| grant(&row)).transpose().map_err(failed)
    }

    async fn keys(&self, brand: BrandId) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query(
            "select id, brand_id, kind, rate_limit, expires_at, scopes, created_at, last_used_at, made_by from api_keys
            where brand_id = $1 order by created_at, id",
        )
        .bind(brand.0)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter().map(record).collect::<Result<_, _>>().map_err(failed)
    }

    async fn revoke_key(
        &self,
        brand: BrandId,
        id: &str,
        at: Timestamp,
        cascade: bool,
        note: Option<&AuditEntry>,
    ) -> Result<Option<Ended>, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        if end(&mut tx, brand, &[id.to_owned()], at).await?.is_empty() {
            return Ok(None);
        }
        let mut ended = Ended::default();
        loop {
            // Each statement sees what was committed before it: also a key that one of these made until it was locked.
            ended.living = sqlx::query_scalar(
                "with recursive made as (
                    select id, expires_at from api_keys where brand_id = $1 and made_by = $2
                    union select k.id, k.expires_at from api_keys k join made on k.made_by = made.id where k.brand_id = $1
                ) select id from made where expires_at is null or expires_at > $3 order by id",
            )
            .bind(brand.0)
            .bind(id)
            .bind(at)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            if !cascade || ended.living.is_empty() {
                break;
            }
            let gone = end(&mut tx, brand, &ended.living, at).await?;
            ended.also.extend(gone);
        }
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Some(ended))
    }

    async fn limit_key(
        &self,
        brand: BrandId,
        id: &str,
        limit: Option<u32>,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        let done = sqlx::query("update api_keys set rate_limit = $3 where brand_id = $1 and id = $2")
            .bind(brand.0)
            .bind(id)
            .bind(limit.and_then(|limit| i32::try_from(limit).ok()))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn keys_used(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError> {
        sqlx::query(
            "update api_keys set last_used_at = greatest(last_used_at, at)
            from unnest($1::text[], $2::timestamptz[]) as used (key, at) where id = key",
        )
        .bind(used.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
        .bind(used.iter().map(|(_, at)| *at).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn add_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into refusals (brand_id, source, code, count, last_ms)
            select * from unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[])
            on conflict (brand_id, source, code) do update set count = refusals.count + excluded.count,
                last_ms = greatest(refusals.last_ms, excluded.last_ms)",
        )
        .bind(refusals.iter().map(|refusal| refusal.brand.0).collect::<Vec<_>>())
        .bind(refusals.iter().map(|refusal| refusal.source.as_str()).collect::<Vec<_>>())
        .bind(refusals.iter().map(|refusal| refusal.code.as_str()).collect::<Vec<_>>())
        .bind(refusals.iter().map(|r| i64::try_from(r.count).unwrap_or(i64::MAX)).collect::<Vec<_>>())
        .bind(refusals.iter().map(|refusal| refusal.last_ms).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn refusals(&self, brand: BrandId) -> Result<Vec<Refusal>, StoreError> {
        let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(
            "select source, code, count, last_ms from refusals where brand_id = $1 order by last_ms desc, source, code limit $2",
        )
        .bind(brand.0)
        .bind(REFUSALS_LISTED)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows.into_iter().map(|row| refusal(brand, row)).collect())
    }

    async fn secrets(&self, brand: BrandId, fresh: &BrandSecrets) -> Result<BrandSecrets, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "select {SECRETS} from brands where id = $1 and signing_secret is not null and link_secret is not null"
        )))
        .bind(brand.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)?;
        if let Some(row) = row {
            return secrets(&row).map_err(failed);
        }
        let mut tx = begin_for(&self.pool, brand).await?;
        let row = sqlx::query(AssertSqlSafe(format!(
            "update brands set signing_secret = coalesce(signing_secret, $2), link_secret = coalesce(link_secret, $3)
            where id = $1 returning {SECRETS}"
        )))
        .bind(brand.0)
        .bind(&fresh.signing)
        .bind(&fresh.link)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let row = row.ok_or_else(|| StoreError::Invalid(format!("there is no brand {brand}")))?;
        secrets(&row).map_err(failed)
    }

    async fn rotate_signing(
        &self,
        brand: BrandId,
        fresh: &str,
        until: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = begin_for(&self.pool, brand).await?;
        sqlx::query(
            "update brands set previous_signing_secret = signing_secret, previous_signing_until = $3, signing_secret = $2
            where id = $1",
        )
        .bind(brand.0)
        .bind(fresh)
        .bind(until)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        noted(&mut tx, note).await?;
        tx.commit().await.map_err(failed)
    }

    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        let changed = sqlx::query(
            "insert into shops (domain, brand_id, secret) values ($1, $2, $3)
            on conflict (domain) do update set secret = excluded.secret, uninstalled_at = null, redacted_at = null,
                previous_secret = case when shops.secret = excluded.secret then shops.previous_secret else shops.secret end
            where shops.brand_id = excluded.brand_id",
        )
        .bind(domain)
        .bind(brand.0)
        .bind(secret)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        match changed.rows_affected() {
            0 => Err(StoreError::Invalid(format!("the shop {domain} belongs to another brand"))),
            _ => Ok(()),
        }
    }

    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError> {
        let rows = sqlx::query("select * from shops where brand_id = $1 order by domain")
            .bind(brand.0)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        rows.iter().map(shop).collect::<Result<_, _>>().map_err(failed)
    }

    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query("update shops set uninstalled_at = coalesce(uninstalled_at, $2) where domain = $1")
            .bind(domain)
            .bind(at)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        sqlx::query("update shops set redacted_at = coalesce(redacted_at, $2) where domain = $1")
            .bind(domain)
            .bind(at)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(())
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        let row = sqlx::query("select * from shops where domain = $1")
            .bind(domain)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        row.map(|row| shop(&row)).transpose().map_err(failed)
    }

    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError> {
        sqlx::query("insert into system_secrets (name, secret) values ($1, $2) on conflict do nothing")
            .bind(SUPPRESSION)
            .bind(fresh)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        self.held_suppression_key().await?.ok_or_else(|| failed(sqlx::Error::RowNotFound))
    }

    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError> {
        let mut found = Vec::new();
        let shops =
            sqlx::query("select * from shops order by domain").fetch_all(&self.pool).await.map_err(failed)?;
        for row in &shops {
            let Shop { domain, brand, secret, previous_secret, .. } = shop(row).map_err(failed)?;
            let place = |previous| SecretPlace::Shop { brand, domain: domain.clone(), previous };
            found.push(StoredSecret { place: place(false), held: secret });
            found.extend(previous_secret.map(|held| StoredSecret { place: place(true), held }));
        }
        let brands = sqlx::query(AssertSqlSafe(format!("select id, {SECRETS} from brands order by id")))
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        for row in &brands {
            let brand = BrandId(row.try_get("id").map_err(failed)?);
            for place in SecretPlace::of_brand(brand) {
                let (.., column) = place.columns();
                let held: Option<String> = row.try_get(column).map_err(failed)?;
                found.extend(held.map(|held| StoredSecret { place, held }));
            }
        }
        found.extend(
            self.held_suppression_key()
                .await?
                .map(|held| StoredSecret { place: SecretPlace::Suppression, held }),
        );
        Ok(found)
    }

    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError> {
        let mut tx = begin(&self.pool).await?;
        for (StoredSecret { place, held }, fresh) in fresh {
            let (table, row, column) = place.columns();
            let query = sqlx::query(AssertSqlSafe(format!(
                "update {table} set {column} = $3 where {row} = $1 and {column} = $2"
            )));
            let query = match place {
                SecretPlace::Shop { domain, .. } => query.bind(domain),
                SecretPlace::Signing { brand, .. } | SecretPlace::Link { brand, .. } => query.bind(brand.0),
                SecretPlace::Suppression => query.bind(SUPPRESSION),
            };
            query.bind(held).bind(fresh).execute(&mut *tx).await.map_err(failed)?;
        }
        tx.commit().await.map_err(failed)
    }
}

fn secrets(row: &PgRow) -> Result<BrandSecrets, sqlx::Error> {
    let with_time = |column, until| -> Result<Option<(String, Timestamp)>, sqlx::Error> {
        Ok(row.try_get::<Option<_>, _>(column)?.zip(row.try_get(until)?))
    };
    Ok(BrandSecrets {
        signing: row.try_get("signing_secret")?,
        previous_signing: with_time("previous_signing_secret", "previous_signing_until")?,
        link: row.try_get("link_secret")?,
        old_link: with_time("old_link_secret", "old_link_until")?,
    })
}

async fn noted(tx: &mut PgConnection, note: Option<&AuditEntry>) -> Result<(), StoreError> {
    match note {
        Some(entry) => add_note(tx, entry).await,
        None => Ok(()),
    }
}

/// Lets keys end at a time, at the latest. Answers which of them the brand has.
async fn end(
    tx: &mut PgConnection,
    brand: BrandId,
    ids: &[String],
    at: Timestamp,
) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar(
        "update api_keys set expires_at = coalesce(least(expires_at, $3), $3) where brand_id = $1 and id = any($2)
        returning id",
    )
    .bind(brand.0)
    .bind(ids)
    .bind(at)
    .fetch_all(tx)
    .await
    .map_err(failed)
}

fn grant(row: &PgRow) -> Result<KeyGrant, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    Ok(KeyGrant {
        brand: BrandId(row.try_get("brand_id")?),
        kind: KeyKind::parse(&kind)
            .ok_or_else(|| sqlx::Error::Decode(format!("a key of the kind {kind:?}").into()))?,
        rate_limit: row.try_get::<Option<i32>, _>("rate_limit")?.and_then(|limit| u32::try_from(limit).ok()),
        expires_at: row.try_get("expires_at")?,
        scopes: Scopes::parse(row.try_get("scopes")?)
            .map_err(|name| sqlx::Error::Decode(format!("a key with the scope {name:?}").into()))?,
    })
}

fn record(row: &PgRow) -> Result<KeyRecord, sqlx::Error> {
    Ok(KeyRecord {
        id: row.try_get("id")?,
        grant: grant(row)?,
        created_at: row.try_get("created_at")?,
        last_used_at: row.try_get("last_used_at")?,
        made_by: row.try_get("made_by")?,
    })
}

fn shop(row: &PgRow) -> Result<Shop, sqlx::Error> {
    Ok(Shop {
        domain: row.try_get("domain")?,
        brand: BrandId(row.try_get("brand_id")?),
        secret: row.try_get("secret")?,
        previous_secret: row.try_get("previous_secret")?,
        uninstalled_at: row.try_get("uninstalled_at")?,
        redacted_at: row.try_get("redacted_at")?,
    })
}
