//! Reading customers.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rust_decimal::Decimal;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::db::{Db, failed};
use super::processing::SqliteTx;
use crate::domain::customer360::{CustomerRecord, OrderTotals, RECENT_EVENTS, RECENT_ORDERS, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::Order;
use crate::domain::profile::Profile;
use crate::domain::time::from_ms;
use crate::ports::store::{Store, StoreError, StoreStats, StoreTx};

/// The store on SQLite.
pub struct SqliteStore {
    db: Db,
}

impl SqliteStore {
    /// The store in an open file.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        Ok(Box::new(SqliteTx::new(self.db.begin().await.map_err(failed)?)))
    }

    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "select profile_id from identifiers where brand_id = ?1 and kind = ?2 and value = ?3",
        )
        .bind(brand.0)
        .bind(identifier.kind.as_str())
        .bind(&identifier.value)
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)?;
        found.map(|id| profile_id(&id)).transpose().map_err(failed)
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        // one snapshot: a merge between two of the reads must not tear the answer
        let mut tx = self.db.read.begin_with("begin").await.map_err(failed)?;
        let Some(profile) = survivor(&mut tx, brand, id).await? else { return Ok(None) };
        let id = profile.id;
        Ok(Some(CustomerRecord {
            profile,
            identifiers: identifiers(&mut tx, brand, id).await?,
            totals: totals(&mut tx, brand, id).await?,
            recent_events: recent_events(&mut tx, brand, id).await?,
            recent_orders: recent_orders(&mut tx, brand, id).await?,
        }))
    }

    async fn last_fence(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("select coalesce(max(fence), 0) from profiles where fence > 0")
            .fetch_one(&self.db.read)
            .await
            .map_err(failed)
    }

    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError> {
        let (profiles, events, orders) = sqlx::query_as(
            "select (select count(*) from profiles where brand_id = ?1 and merged_into is null),
                (select count(*) from events where brand_id = ?1),
                (select count(*) from orders where brand_id = ?1)",
        )
        .bind(brand.0)
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)?;
        Ok(StoreStats { profiles, events, orders })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.db.read).await.map_err(failed)?;
        Ok(())
    }
}

/// The profile itself, or the one that it was merged into.
async fn survivor(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Option<Profile>, StoreError> {
    // a signpost may lead to another: each merge adds one
    let row = sqlx::query(
        "with recursive trail as (
            select * from profiles where id = ?1 and brand_id = ?2
            union all
            select p.* from profiles p join trail t on p.id = t.merged_into and p.brand_id = ?2
        )
        select id, brand_id, first_seen, last_seen, events_count, traits, merged_into
        from trail where merged_into is null",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed)?;
    row.map(|row| profile(&row)).transpose().map_err(failed)
}

async fn identifiers(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<Identifier>, StoreError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select kind, value from identifiers where profile_id = ?1 and brand_id = ?2")
            .bind(id.to_string())
            .bind(brand.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
    Ok(rows
        .into_iter()
        .filter_map(|(kind, value)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value }))
        .collect())
}

async fn totals(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderTotals>, StoreError> {
    // SQLite would add decimals up as floats: the sums are made here
    let rows: Vec<(String, String, String, i64)> = sqlx::query_as(
        "select currency, total, refunded, ordered_at from orders
        where profile_id = ?1 and brand_id = ?2 and not test and cancelled_at is null",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    let mut sums: BTreeMap<String, OrderTotals> = BTreeMap::new();
    for (currency, total, refunded, ordered_at) in rows {
        let ordered_at = from_ms(ordered_at);
        let sum = sums.entry(currency.clone()).or_insert_with(|| OrderTotals {
            currency,
            count: 0,
            total: Decimal::ZERO,
            refunded: Decimal::ZERO,
            last_ordered_at: ordered_at,
        });
        sum.count += 1;
        sum.total += amount(&total).map_err(failed)?;
        sum.refunded += amount(&refunded).map_err(failed)?;
        sum.last_ordered_at = sum.last_ordered_at.max(ordered_at);
    }
    Ok(sums.into_values().collect())
}

async fn recent_events(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let rows: Vec<(String, String, Option<String>, i64, String)> = sqlx::query_as(
        "select message_id, kind, name, \"timestamp\", body from events
        where profile_id = ?1 and brand_id = ?2
        order by \"timestamp\" desc, message_id desc limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(RECENT_EVENTS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(rows
        .into_iter()
        .map(|(message_id, kind, name, at, body)| StoredEvent {
            message_id,
            kind,
            name,
            timestamp: from_ms(at),
            body,
        })
        .collect())
}

async fn recent_orders(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<Order>, StoreError> {
    let rows = sqlx::query(
        "select shop, id, name, ordered_at, updated_at, cancelled_at, test, currency, total, refunded,
            financial_status, fulfillment_status, items
        from orders where profile_id = ?1 and brand_id = ?2
        order by ordered_at desc, id desc limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(RECENT_ORDERS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(order).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// A profile from `id, brand_id, first_seen, last_seen, events_count, traits, merged_into`.
pub(super) fn profile(row: &SqliteRow) -> Result<Profile, sqlx::Error> {
    let merged_into: Option<String> = row.try_get("merged_into")?;
    Ok(Profile {
        id: profile_id(row.try_get("id")?)?,
        brand: BrandId(row.try_get("brand_id")?),
        first_seen: row.try_get::<Option<i64>, _>("first_seen")?.map(from_ms),
        last_seen: row.try_get::<Option<i64>, _>("last_seen")?.map(from_ms),
        events_count: row.try_get("events_count")?,
        traits: serde_json::from_str(row.try_get("traits")?).map_err(undecodable)?,
        merged_into: merged_into.as_deref().map(profile_id).transpose()?,
    })
}

fn order(row: &SqliteRow) -> Result<Order, sqlx::Error> {
    Ok(Order {
        shop: row.try_get("shop")?,
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        ordered_at: from_ms(row.try_get("ordered_at")?),
        updated_at: from_ms(row.try_get("updated_at")?),
        cancelled_at: row.try_get::<Option<i64>, _>("cancelled_at")?.map(from_ms),
        test: row.try_get("test")?,
        currency: row.try_get("currency")?,
        total: amount(row.try_get("total")?)?,
        refunded: amount(row.try_get("refunded")?)?,
        financial_status: row.try_get("financial_status")?,
        fulfillment_status: row.try_get("fulfillment_status")?,
        items: serde_json::from_str(row.try_get("items")?).map_err(undecodable)?,
    })
}

/// Reads a profile's id.
pub(super) fn profile_id(text: &str) -> Result<ProfileId, sqlx::Error> {
    ProfileId::parse(text).ok_or_else(|| undecodable(format!("{text:?} is no profile id")))
}

fn amount(text: &str) -> Result<Decimal, sqlx::Error> {
    text.parse().map_err(undecodable)
}

fn undecodable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}
