//! Reading customers.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::db::{begin, begin_reading, failed};
use super::processing::{ORDER, PgTx};
use crate::domain::customer360::{
    Asked, CustomerRecord, GROUPS, OrderTotals, RECENT_EVENTS, RelatedProfile, Revision, StoredConsent,
    StoredEvent,
};
use crate::domain::event::{EventKind, Source};
use crate::domain::history::Retold;
use crate::domain::identity::{Identifier, IdentifierKind, Standing, Tally};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::insights::{
    ACTIVITY, Activity, KnownProduct, ORDERS, PRODUCT_EVENTS, ProductEvent, product_ids,
};
use crate::domain::order::{Order, OrderRecord};
use crate::domain::profile::Profile;
use crate::ports::store::{BrandOrder, OrderParts, Store, StoreError, StoreStats, StoreTx, SuppressionKey};

/// Most statements of consent that are read of a customer.
const CONSENTS: i64 = 500;
/// Most related profiles that are read.
const RELATED: i64 = 20;

/// The store on PostgreSQL.
pub struct PgStore {
    pool: PgPool,
    suppression: SuppressionKey,
}

impl PgStore {
    /// The store in an open pool; `suppression` keys what is kept of erased customers.
    pub fn new(pool: PgPool, suppression: SuppressionKey) -> Self {
        Self { pool, suppression }
    }
}

#[async_trait]
impl Store for PgStore {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        Ok(Box::new(PgTx::new(begin(&self.pool).await?, self.suppression.clone())))
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

    async fn revision(&self, brand: BrandId, asked: &Asked) -> Result<Option<Revision>, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(failed)?;
        revision(&mut conn, brand, asked).await
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        // one snapshot: a merge between two of the reads must not tear the answer
        let mut tx = begin_reading(&self.pool, brand).await?;
        let Some(profile) = survivor(&mut tx, brand, id).await? else { return Ok(None) };
        let id = profile.id;
        let activity = activity(&mut tx, brand, id).await?;
        let orders = recent_orders(&mut tx, brand, id).await?;
        let related = if profile.standing.related { related(&mut tx, brand, id).await? } else { vec![] };
        let (all, trusted) = identifiers(&mut tx, brand, id).await?;
        Ok(Some(CustomerRecord {
            profile,
            identifiers: all,
            trusted,
            totals: totals(&mut tx, brand, id).await?,
            recent_events: recent_events(&mut tx, brand, id).await?,
            products: products(&mut tx, brand, &product_ids(&activity, &orders)).await?,
            consents: consents(&mut tx, brand, id, None, CONSENTS).await?,
            groups: groups(&mut tx, brand, id).await?,
            segments: segments(&mut tx, id).await?,
            activity,
            orders,
            related,
        }))
    }

    async fn body_topics(
        &self,
        brand: BrandId,
        shop: &str,
        digest: &[u8; 32],
    ) -> Result<Vec<String>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        sqlx::query_scalar(
            "select topic from webhook_bodies where brand_id = $1 and shop = $2 and digest = $3",
        )
        .bind(brand.0)
        .bind(shop)
        .bind(&digest[..])
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)
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

    async fn now_ms(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("select (extract(epoch from clock_timestamp()) * 1000)::bigint")
            .fetch_one(&self.pool)
            .await
            .map_err(failed)
    }
}

/// The profile itself, or the one that it was merged into.
/// Where a question leads now: a signpost may lead to another, since each merge adds one.
async fn revision(
    conn: &mut PgConnection,
    brand: BrandId,
    asked: &Asked,
) -> Result<Option<Revision>, StoreError> {
    let (id, identifier) = match asked {
        Asked::Id(id) => (Some(id.0), None),
        Asked::Identifier(identifier) => (None, Some(identifier)),
    };
    let row: Option<(Uuid, i64, i64, i64)> = sqlx::query_as(
        "with recursive trail as (
            select id, merged_into, revision from profiles where brand_id = $1 and id = coalesce($2,
                (select profile_id from identifiers where brand_id = $1 and kind = $3 and value = $4))
            union all
            select p.id, p.merged_into, p.revision from profiles p join trail t on p.id = t.merged_into and p.brand_id = $1
        )
        select trail.id, revision, count(o.id), coalesce(sum(o.version), 0)::bigint
        from trail left join orders o on o.profile_id = trail.id where merged_into is null group by trail.id, revision",
    )
    .bind(brand.0)
    .bind(id)
    .bind(identifier.map(|identifier| identifier.kind.as_str()))
    .bind(identifier.map(|identifier| identifier.value.as_str()))
    .fetch_optional(conn)
    .await
    .map_err(failed)?;
    Ok(row.map(|(id, profile, count, sum)| Revision { id: ProfileId(id), profile, orders: (count, sum) }))
}

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
        select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into, counts, merges,
            limited, related, known, trusted
        from trail where merged_into is null",
    )
    .bind(id.0)
    .bind(brand.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed)?;
    row.map(|row| profile(&row)).transpose()
}

/// All identifiers of a profile, and those of them that are its own by a trusted source's word.
async fn identifiers(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<(Vec<Identifier>, Vec<Identifier>), StoreError> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select kind, value, source > 0 from identifiers where profile_id = $1 and brand_id = $2",
    )
    .bind(id.0)
    .bind(brand.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    let (mut all, mut trusted) = (Vec::with_capacity(rows.len()), Vec::new());
    for (kind, value, is_trusted) in rows {
        let Some(kind) = IdentifierKind::parse(&kind) else { continue };
        let identifier = Identifier { kind, value };
        if is_trusted {
            trusted.push(identifier.clone());
        }
        all.push(identifier);
    }
    Ok((all, trusted))
}

async fn totals(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderTotals>, StoreError> {
    let rows = sqlx::query(
        "select currency, count(*) as count, sum(revenue) as total, sum(refunded) as refunded,
            min(ordered_at) as first_ordered_at, max(ordered_at) as last_ordered_at
        from orders
        where profile_id = $1 and brand_id = $2 and counts
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
                first_ordered_at: row.try_get("first_ordered_at")?,
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
        "select message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at from events
        where profile_id = $1 and brand_id = $2
        order by \"timestamp\" desc, message_id desc limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(RECENT_EVENTS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
}

async fn activity(tx: &mut PgConnection, brand: BrandId, id: ProfileId) -> Result<Vec<Activity>, StoreError> {
    // bodies only where they are looked at
    let rows = sqlx::query(
        "select \"timestamp\", kind, name, active, case when kind = 'track' and name = any($3) then body::text end as body
        from events where profile_id = $1 and brand_id = $2
        order by \"timestamp\" desc, message_id desc limit $4",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(PRODUCT_EVENTS.map(|(name, _)| name))
    .bind(ACTIVITY as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let kind: String = row.try_get("kind")?;
            Ok(Activity {
                timestamp: row.try_get("timestamp")?,
                visit: row.try_get::<bool, _>("active")? && kind != EventKind::Shopify.as_str(),
                page: [EventKind::Page.as_str(), EventKind::Screen.as_str()].contains(&&*kind),
                name: row.try_get("name")?,
                product: row.try_get::<Option<&str>, _>("body")?.map(ProductEvent::of),
            })
        })
        .collect::<Result<_, sqlx::Error>>()
        .map_err(failed)
}

async fn products(
    tx: &mut PgConnection,
    brand: BrandId,
    ids: &[String],
) -> Result<Vec<KnownProduct>, StoreError> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let rows: Vec<(String, Option<String>, Option<String>)> = sqlx::query_as(
        "select id, title, category from products where brand_id = $1 and id = any($2) order by id, shop",
    )
    .bind(brand.0)
    .bind(ids)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(rows.into_iter().map(|(id, title, category)| KnownProduct { id, title, category }).collect())
}

/// What a customer said of consent, newest first, from before that statement, at most `limit`.
pub(super) async fn consents(
    conn: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
    before: Option<&StoredConsent>,
    limit: i64,
) -> Result<Vec<StoredConsent>, StoreError> {
    let rows = sqlx::query(
        "select channel, state, level, at, sequence, message_id, address, source from consents where profile_id = $1 and brand_id = $2
            and ($4::timestamptz is null or (at, message_id, channel) < ($4, $5, $6))
        order by at desc, message_id desc, channel desc limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(limit)
    .bind(before.map(|consent| consent.at))
    .bind(before.map(|consent| consent.message_id.as_str()))
    .bind(before.map(|consent| consent.channel.as_str()))
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter().map(consent).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// What a customer said of consent.
pub(super) fn consent(row: &PgRow) -> Result<StoredConsent, sqlx::Error> {
    Ok(StoredConsent {
        channel: row.try_get("channel")?,
        state: row.try_get("state")?,
        level: row.try_get("level")?,
        at: row.try_get("at")?,
        sequence: row.try_get("sequence")?,
        message_id: row.try_get("message_id")?,
        address: row.try_get("address")?,
        source: Source::from_code(row.try_get("source")?, ""),
    })
}

/// The segments that it belongs to, sorted.
async fn segments(tx: &mut PgConnection, id: ProfileId) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar("select segment from segment_members where profile_id = $1 order by segment")
        .bind(id.0)
        .fetch_all(tx)
        .await
        .map_err(failed)
}

async fn groups(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let rows = sqlx::query(
        "select * from (
            select distinct on (name) message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at from events
            where profile_id = $1 and brand_id = $2 and kind = 'group'
            order by name, \"timestamp\" desc, message_id desc) newest
        order by \"timestamp\" desc, message_id desc limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(GROUPS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
}

pub(super) async fn related(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<RelatedProfile>, StoreError> {
    let rows: Vec<(Uuid, String, String)> = sqlx::query_as(
        "select case when a = $1 then b else a end, kind, reason from relations
        where (a = $1 or b = $1) and brand_id = $2 order by at desc, a, b limit $3",
    )
    .bind(id.0)
    .bind(brand.0)
    .bind(RELATED)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(rows
        .into_iter()
        .map(|(id, kind, reason)| RelatedProfile { id: ProfileId(id), kind, reason })
        .collect())
}

async fn recent_orders(
    tx: &mut PgConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderRecord>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {ORDER} from orders where profile_id = $1 and brand_id = $2
        order by ordered_at desc, id desc limit $3"
    )))
    .bind(id.0)
    .bind(brand.0)
    .bind(ORDERS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(|row| Ok(brand_order(row)?.1)).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// A profile from all its columns, `traits::text`.
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
            standing: standing(row)?,
        })
    };
    read().map_err(failed)
}

/// Where a profile stands, from `counts, merges, limited, related, known, trusted`.
pub(super) fn standing(row: &PgRow) -> Result<Standing, sqlx::Error> {
    Ok(Standing {
        all: Tally {
            counts: json(row.try_get("counts")?)?,
            merges: u32::try_from(row.try_get::<i32, _>("merges")?).unwrap_or_default(),
        },
        trusted: json(row.try_get("trusted")?)?,
        limited: row.try_get("limited")?,
        related: row.try_get("related")?,
        known: row.try_get("known")?,
    })
}

/// An event from `message_id, kind, name, timestamp, body::text, active, source, received_at`.
pub(super) fn stored_event(row: &PgRow) -> Result<StoredEvent, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    Ok(StoredEvent {
        message_id: row.try_get("message_id")?,
        source: Source::from_code(row.try_get("source")?, &kind),
        kind,
        name: row.try_get("name")?,
        timestamp: row.try_get("timestamp")?,
        body: row.try_get("body")?,
        active: row.try_get("active")?,
        received_at: row.try_get("received_at")?,
    })
}

/// An event of which `told_at, sequence` were read, too.
pub(super) fn retold(row: &PgRow) -> Result<Retold, sqlx::Error> {
    let event = stored_event(row)?;
    Ok(Retold {
        told_at: row.try_get::<Option<_>, _>("told_at")?.unwrap_or(event.timestamp),
        sequence: row.try_get::<Option<_>, _>("sequence")?.unwrap_or_default(),
        event,
    })
}

/// An order from [`ORDER`].
pub(super) fn brand_order(row: &PgRow) -> Result<BrandOrder, sqlx::Error> {
    let updated_at: DateTime<Utc> = row.try_get("updated_at")?;
    let message_id: String = row.try_get("message_id")?;
    let refunds: Option<&str> = row.try_get("refunds")?;
    let presentment: Option<&str> = row.try_get("presentment")?;
    // nothing but what happened to it is known of an order without a message
    let state = if message_id.is_empty() {
        None
    } else {
        let mut order = Order {
            name: row.try_get("name")?,
            ordered_at: row.try_get("ordered_at")?,
            cancelled_at: row.try_get("cancelled_at")?,
            test: row.try_get("test")?,
            currency: row.try_get("currency")?,
            total: row.try_get("total")?,
            current_total: None,
            presentment: presentment.map(json).transpose()?,
            financial_status: row.try_get("financial_status")?,
            fulfillment_status: row.try_get("fulfillment_status")?,
            items: json(row.try_get("items")?)?,
        };
        let parts: OrderParts =
            row.try_get::<Option<&str>, _>("parts")?.map(json).transpose()?.unwrap_or_default();
        let versions = parts.complete(&mut order, updated_at.timestamp_millis(), message_id);
        Some((order, versions))
    };
    let record = OrderRecord {
        shop: row.try_get("shop")?,
        id: row.try_get("id")?,
        profile: row.try_get::<Option<Uuid>, _>("profile_id")?.map(ProfileId),
        state,
        refunds: refunds.map(json).transpose()?.unwrap_or_default(),
        fulfillments: json(row.try_get("fulfillments")?)?,
        deleted_at: row.try_get("deleted_at")?,
        erased: row.try_get("erased")?,
        revision: row.try_get("version")?,
    };
    // before there were refunds one by one there was their sum
    let sum: Decimal = row.try_get("refunded")?;
    let record = if refunds.is_none() { record.with_refunds_in_sum(sum) } else { record };
    Ok((BrandId(row.try_get("brand_id")?), record))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}
