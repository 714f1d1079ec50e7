//! Reading customers.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rust_decimal::Decimal;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::db::{Db, failed};
use super::processing::{ORDER, SqliteTx};
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
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::store::{BrandOrder, OrderParts, Store, StoreError, StoreStats, StoreTx, SuppressionKey};

/// Most statements of consent that are read of a customer.
const CONSENTS: i64 = 500;
/// Most related profiles that are read.
const RELATED: i64 = 20;

/// The store on SQLite.
pub struct SqliteStore {
    db: Db,
    suppression: SuppressionKey,
}

impl SqliteStore {
    /// The store in an open file; `suppression` keys what is kept of erased customers.
    pub fn new(db: Db, suppression: SuppressionKey) -> Self {
        Self { db, suppression }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        Ok(Box::new(SqliteTx::new(self.db.begin().await.map_err(failed)?, self.suppression.clone())))
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

    async fn revision(&self, brand: BrandId, asked: &Asked) -> Result<Option<Revision>, StoreError> {
        let mut conn = self.db.read.acquire().await.map_err(failed)?;
        revision(&mut conn, brand, asked).await
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        // one snapshot: a merge between two of the reads must not tear the answer
        let mut tx = self.db.read.begin_with("begin").await.map_err(failed)?;
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
        sqlx::query_scalar(
            "select topic from webhook_bodies where brand_id = ?1 and shop = ?2 and digest = ?3",
        )
        .bind(brand.0)
        .bind(shop)
        .bind(&digest[..])
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)
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

    async fn now_ms(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("select cast(unixepoch('subsec') * 1000 as integer)")
            .fetch_one(&self.db.read)
            .await
            .map_err(failed)
    }
}

/// The profile itself, or the one that it was merged into.
/// Where a question leads now: a signpost may lead to another, since each merge adds one.
async fn revision(
    conn: &mut SqliteConnection,
    brand: BrandId,
    asked: &Asked,
) -> Result<Option<Revision>, StoreError> {
    let (id, identifier) = match asked {
        Asked::Id(id) => (Some(id.to_string()), None),
        Asked::Identifier(identifier) => (None, Some(identifier)),
    };
    let row: Option<(String, i64, i64, i64)> = sqlx::query_as(
        "with recursive trail as (
            select id, merged_into, revision from profiles where brand_id = ?1 and id = coalesce(?2,
                (select profile_id from identifiers where brand_id = ?1 and kind = ?3 and value = ?4))
            union all
            select p.id, p.merged_into, p.revision from profiles p join trail t on p.id = t.merged_into and p.brand_id = ?1
        )
        select trail.id, revision, count(o.id), coalesce(sum(o.version), 0)
        from trail left join orders o on o.profile_id = trail.id where merged_into is null group by trail.id, revision",
    )
    .bind(brand.0)
    .bind(id)
    .bind(identifier.map(|identifier| identifier.kind.as_str()))
    .bind(identifier.map(|identifier| identifier.value.as_str()))
    .fetch_optional(conn)
    .await
    .map_err(failed)?;
    row.map(|(id, profile, count, sum)| Ok(Revision { id: profile_id(&id)?, profile, orders: (count, sum) }))
        .transpose()
        .map_err(failed)
}

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
        select id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, merges, limited, related, known, trusted
        from trail where merged_into is null",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed)?;
    row.map(|row| profile(&row)).transpose().map_err(failed)
}

/// All identifiers of a profile, and those of them that are its own by a trusted source's word.
async fn identifiers(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<(Vec<Identifier>, Vec<Identifier>), StoreError> {
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select kind, value, source > 0 from identifiers where profile_id = ?1 and brand_id = ?2",
    )
    .bind(id.to_string())
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
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderTotals>, StoreError> {
    // SQLite would add decimals up as floats: the sums are made here
    let rows = sqlx::query(
        "select currency, revenue, refunded, ordered_at from orders where profile_id = ?1 and brand_id = ?2 and counts",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(summed(rows.iter().map(counted).collect::<Result<Vec<_>, _>>().map_err(failed)?))
}

/// An order that counts: its currency, revenue, refunds, and when it was placed.
pub(super) type Counted = (String, Decimal, Decimal, Timestamp);

/// One from `currency, revenue, refunded, ordered_at`.
pub(super) fn counted(row: &SqliteRow) -> Result<Counted, sqlx::Error> {
    Ok((
        row.try_get("currency")?,
        amount(row.try_get("revenue")?)?,
        amount(row.try_get("refunded")?)?,
        from_ms(row.try_get("ordered_at")?),
    ))
}

/// Their sums, by currency.
pub(super) fn summed(orders: Vec<Counted>) -> Vec<OrderTotals> {
    let mut sums: BTreeMap<String, OrderTotals> = BTreeMap::new();
    for (currency, total, refunded, ordered_at) in orders {
        let sum = sums.entry(currency.clone()).or_insert_with(|| OrderTotals {
            currency,
            count: 0,
            total: Decimal::ZERO,
            refunded: Decimal::ZERO,
            first_ordered_at: ordered_at,
            last_ordered_at: ordered_at,
        });
        sum.count += 1;
        sum.total += total;
        sum.refunded += refunded;
        sum.first_ordered_at = sum.first_ordered_at.min(ordered_at);
        sum.last_ordered_at = sum.last_ordered_at.max(ordered_at);
    }
    sums.into_values().collect()
}

async fn recent_events(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let rows = sqlx::query(
        "select message_id, kind, name, \"timestamp\", body, active, source, received_at from events
        where profile_id = ?1 and brand_id = ?2
        order by \"timestamp\" desc, message_id desc limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(RECENT_EVENTS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
}

async fn activity(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<Activity>, StoreError> {
    // bodies only where they are looked at
    let rows = sqlx::query(
        "select \"timestamp\", kind, name, active,
            case when kind = 'track' and name in (select value from json_each(?3)) then body end as body
        from events where profile_id = ?1 and brand_id = ?2
        order by \"timestamp\" desc, message_id desc limit ?4",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(serde_json::json!(PRODUCT_EVENTS.map(|(name, _)| name)).to_string())
    .bind(ACTIVITY as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let kind: String = row.try_get("kind")?;
            Ok(Activity {
                timestamp: from_ms(row.try_get("timestamp")?),
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
    tx: &mut SqliteConnection,
    brand: BrandId,
    ids: &[String],
) -> Result<Vec<KnownProduct>, StoreError> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let rows: Vec<(String, Option<String>, Option<String>)> = sqlx::query_as(
        "select id, title, category from products
        where brand_id = ?1 and id in (select value from json_each(?2)) order by id, shop",
    )
    .bind(brand.0)
    .bind(serde_json::json!(ids).to_string())
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(rows.into_iter().map(|(id, title, category)| KnownProduct { id, title, category }).collect())
}

/// What a customer said of consent, newest first, from before that statement, at most `limit`.
pub(super) async fn consents(
    conn: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
    before: Option<&StoredConsent>,
    limit: i64,
) -> Result<Vec<StoredConsent>, StoreError> {
    let rows = sqlx::query(
        "select channel, state, level, at, sequence, message_id, address, source from consents where profile_id = ?1 and brand_id = ?2
            and (?4 is null or (at, message_id, channel) < (?4, ?5, ?6))
        order by at desc, message_id desc, channel desc limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(limit)
    .bind(before.map(|consent| consent.at.timestamp_millis()))
    .bind(before.map(|consent| consent.message_id.as_str()))
    .bind(before.map(|consent| consent.channel.as_str()))
    .fetch_all(conn)
    .await
    .map_err(failed)?;
    rows.iter().map(consent).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// One from `channel, state, level, at, sequence, message_id, address, source`.
pub(super) fn consent(row: &SqliteRow) -> Result<StoredConsent, sqlx::Error> {
    Ok(StoredConsent {
        channel: row.try_get("channel")?,
        state: row.try_get("state")?,
        level: row.try_get("level")?,
        at: from_ms(row.try_get("at")?),
        sequence: row.try_get("sequence")?,
        message_id: row.try_get("message_id")?,
        address: row.try_get("address")?,
        source: Source::from_code(row.try_get("source")?, ""),
    })
}

/// The segments that it belongs to, sorted.
async fn segments(tx: &mut SqliteConnection, id: ProfileId) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar("select segment from segment_members where profile_id = ?1 order by segment")
        .bind(id.to_string())
        .fetch_all(tx)
        .await
        .map_err(failed)
}

async fn groups(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<StoredEvent>, StoreError> {
    let rows = sqlx::query(
        "select * from (
            select message_id, kind, name, \"timestamp\", body, active, source, received_at,
                row_number() over (partition by name order by \"timestamp\" desc, message_id desc) as place
            from events where profile_id = ?1 and brand_id = ?2 and kind = 'group')
        where place = 1 order by \"timestamp\" desc, message_id desc limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(GROUPS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
}

pub(super) async fn related(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<RelatedProfile>, StoreError> {
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "select iif(a = ?1, b, a), kind, reason from relations
        where (a = ?1 or b = ?1) and brand_id = ?2 order by at desc, a, b limit ?3",
    )
    .bind(id.to_string())
    .bind(brand.0)
    .bind(RELATED)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.into_iter()
        .map(|(id, kind, reason)| Ok(RelatedProfile { id: profile_id(&id)?, kind, reason }))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(failed)
}

async fn recent_orders(
    tx: &mut SqliteConnection,
    brand: BrandId,
    id: ProfileId,
) -> Result<Vec<OrderRecord>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(format!(
        "select {ORDER} from orders where profile_id = ?1 and brand_id = ?2
        order by ordered_at desc, id desc limit ?3"
    )))
    .bind(id.to_string())
    .bind(brand.0)
    .bind(ORDERS as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed)?;
    rows.iter().map(|row| Ok(brand_order(row)?.1)).collect::<Result<_, sqlx::Error>>().map_err(failed)
}

/// A profile from all its columns.
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
        standing: standing(row)?,
    })
}

/// Where a profile stands, from `counts, merges, limited, related, known, trusted`.
pub(super) fn standing(row: &SqliteRow) -> Result<Standing, sqlx::Error> {
    Ok(Standing {
        all: Tally { counts: json(row.try_get("counts")?)?, merges: row.try_get("merges")? },
        trusted: json(row.try_get("trusted")?)?,
        limited: row.try_get("limited")?,
        related: row.try_get("related")?,
        known: row.try_get("known")?,
    })
}

/// An event from `message_id, kind, name, timestamp, body, active, source, received_at`.
pub(super) fn stored_event(row: &SqliteRow) -> Result<StoredEvent, sqlx::Error> {
    let kind: String = row.try_get("kind")?;
    Ok(StoredEvent {
        message_id: row.try_get("message_id")?,
        source: Source::from_code(row.try_get("source")?, &kind),
        kind,
        name: row.try_get("name")?,
        timestamp: from_ms(row.try_get("timestamp")?),
        body: row.try_get("body")?,
        active: row.try_get("active")?,
        received_at: from_ms(row.try_get("received_at")?),
    })
}

/// An event of which `told_at, sequence` were read, too.
pub(super) fn retold(row: &SqliteRow) -> Result<Retold, sqlx::Error> {
    let event = stored_event(row)?;
    Ok(Retold {
        told_at: row.try_get::<Option<i64>, _>("told_at")?.map_or(event.timestamp, from_ms),
        sequence: row.try_get::<Option<_>, _>("sequence")?.unwrap_or_default(),
        event,
    })
}

/// An order from [`ORDER`].
pub(super) fn brand_order(row: &SqliteRow) -> Result<BrandOrder, sqlx::Error> {
    let message_id: String = row.try_get("message_id")?;
    let refunds: Option<&str> = row.try_get("refunds")?;
    let presentment: Option<&str> = row.try_get("presentment")?;
    let profile: Option<&str> = row.try_get("profile_id")?;
    // nothing but what happened to it is known of an order without a message
    let state = if message_id.is_empty() {
        None
    } else {
        let mut order = Order {
            name: row.try_get("name")?,
            ordered_at: from_ms(row.try_get("ordered_at")?),
            cancelled_at: row.try_get::<Option<i64>, _>("cancelled_at")?.map(from_ms),
            test: row.try_get("test")?,
            currency: row.try_get("currency")?,
            total: amount(row.try_get("total")?)?,
            current_total: None,
            presentment: presentment.map(json).transpose()?,
            financial_status: row.try_get("financial_status")?,
            fulfillment_status: row.try_get("fulfillment_status")?,
            items: json(row.try_get("items")?)?,
        };
        let parts: OrderParts =
            row.try_get::<Option<&str>, _>("parts")?.map(json).transpose()?.unwrap_or_default();
        let versions = parts.complete(&mut order, row.try_get("updated_at")?, message_id);
        Some((order, versions))
    };
    let record = OrderRecord {
        shop: row.try_get("shop")?,
        id: row.try_get("id")?,
        profile: profile.map(profile_id).transpose()?,
        state,
        refunds: refunds.map(json).transpose()?.unwrap_or_default(),
        fulfillments: json(row.try_get("fulfillments")?)?,
        deleted_at: row.try_get::<Option<i64>, _>("deleted_at")?.map(from_ms),
        erased: row.try_get("erased")?,
        revision: row.try_get("version")?,
    };
    // before there were refunds one by one there was their sum
    let sum = amount(row.try_get("refunded")?)?;
    let record = if refunds.is_none() { record.with_refunds_in_sum(sum) } else { record };
    Ok((BrandId(row.try_get("brand_id")?), record))
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(undecodable)
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
