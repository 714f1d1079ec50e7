//! Reading customers.

use async_trait::async_trait;
use rust_decimal::Decimal;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::db::failed;
use super::processing::PgTx;
use crate::domain::customer360::{CustomerRecord, OrderTotals, RECENT_EVENTS, RECENT_ORDERS, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::Order;
use crate::domain::profile::Profile;
use crate::ports::store::{Store, StoreError, StoreStats, StoreTx};

/// The store on PostgreSQL.
pub struct PgStore {
    pool: PgPool,
}

impl PgStore {
    /// The store in an open pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl Store for PgStore {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        Ok(Box::new(PgTx::new(self.pool.begin().await.map_err(failed)?)))
    }

    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError> {
        let found: Option<Uuid> = sqlx::query_scalar(
            "select profile_id from identifiers where brand_id = $1 and kind = $2 and value = $3",
        )
        .bind(brand.0)
        .bind(identifier.kind.as_str())
        .bind(&identifier.value)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)?;
        Ok(found.map(ProfileId))
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        // one snapshot: a merge between two of the reads must not tear the answer
        let mut tx =
            self.pool.begin_with("begin isolation level repeatable read read only").await.map_err(failed)?;
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
            .fetch_one(&self.pool)
            .await
            .map_err(failed)
    }

    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError> {
        let (profiles, events, orders) = sqlx::query_as(
            "select (select count(*) from profiles where brand_id = $1 and merged_into is null),
                (select count(*) from events where brand_id = $1),
                (select count(*) from orders where brand_id = $1)",
        )
        .bind(brand.0)
        .fetch_one(&self.pool)
        .await
        .map_err(failed)?;
        Ok(StoreStats { profiles, events, orders })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("select 1").execute(&self.pool).await.map_err(failed)?;
        Ok(())
    }
}

/// The profile itself, or the one that it was merged into.
async fn survivor(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Option<Profile>, StoreError> {
    // a signpost may lead to another: each merge adds one
    let row = sqlx::query(
        "with recursive trail as (
            select * from profiles where id = $1 and brand_id = $2
            union all
            select p.* from profiles p join trail t on p.id = t.merged_into and p.brand_id = $2
        )
        select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into
        from trail where merged_into is null",
    )
    .bind(id.0)
    .bind(brand.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed)?;
    row.map(|row| profile(&row)).transpose()
}

async fn identifiers(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<Identifier>, StoreError> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("select kind, value from identifiers where profile_id = $1 and brand_id = $2")
            .bind(id.0)
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
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderTotals>, StoreError> {
    let rows = sqlx::query(
        "select currency, count(*) as count, sum(total) as total, sum(refunded) as refunded,
            max(ordered_at) as last_ordered_at
        from orders
        where profile_id = $1 and brand_id = $2 and not test and cancelled_at is null
        group by currency order by currency",
    )
    .bind(id.0)
    .bind(brand.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            Ok(OrderTotals {
                currency: row.try_get("currency")?,
                count: u64::try_from(row.try_get::<i64, _>("count")?).unwrap_or_default(),
                total: row.try_get::<Decimal, _>("total")?,
                refunded: row.try_get::<Decimal, _>("refunded")?,
                last_ordered_at: row.try_get("last_ordered_at")?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(failed)
}

async fn recent_events(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let rows = sqlx::query(
        "select message_id, kind, name, \"timestamp\", body::text as body from events
        where profile_id = $1 and brand_id = $2
        order by \"timestamp\" desc, message_id desc limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(RECENT_EVENTS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            Ok(StoredEvent {
                message_id: row.try_get("message_id")?,
                kind: row.try_get("kind")?,
                name: row.try_get("name")?,
                timestamp: row.try_get("timestamp")?,
                body: row.try_get("body")?,
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(failed)
}

async fn recent_orders(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<Order>, StoreError> {
    let rows = sqlx::query(
        "select shop, id, name, ordered_at, updated_at, cancelled_at, test, currency, total, refunded,
            financial_status, fulfillment_status, items::text as items
        from orders where profile_id = $1 and brand_id = $2
        order by ordered_at desc, id desc limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(RECENT_ORDERS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(order).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// A profile from `id, brand_id, first_seen, last_seen, events_count, traits::text, merged_into`.
pub(super) fn profile(row: &PgRow) -> Result<Profile, StoreError> {
    let traits: String = row.try_get("traits").map_err(failed)?;
    let read = || -> Result<Profile, sqlx::Error> {
        Ok(Profile {
            id: ProfileId(row.try_get("id")?),
            brand: BrandId(row.try_get("brand_id")?),
            first_seen: row.try_get("first_seen")?,
            last_seen: row.try_get("last_seen")?,
            events_count: row.try_get("events_count")?,
            traits: serde_json::from_str(&traits).map_err(|error| sqlx::Error::Decode(error.into()))?,
            merged_into: row.try_get::<Option<Uuid>, _>("merged_into")?.map(ProfileId),
        })
    };
    read().map_err(failed)
}

fn order(row: &PgRow) -> Result<Order, sqlx::Error> {
    let items: String = row.try_get("items")?;
    Ok(Order {
        shop: row.try_get("shop")?,
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        ordered_at: row.try_get("ordered_at")?,
        updated_at: row.try_get("updated_at")?,
        cancelled_at: row.try_get("cancelled_at")?,
        test: row.try_get("test")?,
        currency: row.try_get("currency")?,
        total: row.try_get("total")?,
        refunded: row.try_get("refunded")?,
        financial_status: row.try_get("financial_status")?,
        fulfillment_status: row.try_get("fulfillment_status")?,
        items: serde_json::from_str(&items).map_err(|error| sqlx::Error::Decode(error.into()))?,
    })
}
