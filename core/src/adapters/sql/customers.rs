//! Reading one customer.

use sqlx_macros::FromRow;

use super::codec::{Text, Time};
use super::database::{BrandTx, Tx};
use super::events::EVENT;
use super::orders::ORDER;
use super::profiles::PROFILE;
use super::read_as;
use crate::adapters::{postgres, sqlite};
use crate::domain::customer360::{
    CustomerRecord, CustomerRef, GROUPS, RECENT_EVENTS, RelatedProfile, Revision, StoredConsent, StoredEvent,
};
use crate::domain::event::EventKind;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::ProfileId;
use crate::domain::insights::{
    ACTIVITY, Activity, KnownProduct, ORDERS, PRODUCT_EVENTS, ProductEvent, product_ids,
};
use crate::domain::order::OrderRecord;
use crate::domain::profile::Profile;
use crate::ports::store::StoreError;

/// Most statements of consent that are read of a customer.
const CONSENTS: i64 = 500;
/// Most related profiles that are read.
const RELATED: i64 = 20;
/// The columns of a statement of consent, as it is read.
pub(super) const CONSENT: &str = "channel, state, level, at, sequence, message_id, address, source";

#[derive(FromRow)]
struct ActivityRow {
    timestamp: Time,
    kind: String,
    name: Option<String>,
    active: bool,
    body: Option<Text>,
}

#[derive(FromRow)]
struct ProductRow {
    id: String,
    title: Option<String>,
    category: Option<String>,
}

#[derive(FromRow)]
struct RelatedRow {
    id: ProfileId,
    kind: String,
    reason: String,
}

read_as!(Activity: ActivityRow, KnownProduct: ProductRow, RelatedProfile: RelatedRow);

impl From<ActivityRow> for Activity {
    fn from(row: ActivityRow) -> Self {
        Self {
            timestamp: row.timestamp.0,
            visit: row.active && row.kind != EventKind::Shopify.as_str(),
            page: [EventKind::Page.as_str(), EventKind::Screen.as_str()].contains(&&*row.kind),
            name: row.name,
            product: row.body.map(|body| ProductEvent::of(&body.0)),
        }
    }
}

impl From<ProductRow> for KnownProduct {
    fn from(row: ProductRow) -> Self {
        Self { id: row.id, title: row.title, category: row.category }
    }
}

impl From<RelatedRow> for RelatedProfile {
    fn from(row: RelatedRow) -> Self {
        Self { id: row.id, kind: row.kind, reason: row.reason }
    }
}

/// All of a customer, in the transaction's one snapshot: a merge between two of the reads does not tear the answer.
pub(super) async fn customer(tx: &mut BrandTx, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
    let Some(profile) = survivor(tx, id).await? else { return Ok(None) };
    let id = profile.id;
    let activity = activity(tx, id).await?;
    let orders = recent_orders(tx, id).await?;
    let related = if profile.standing.related { related(tx, id).await? } else { vec![] };
    let (identifiers, trusted) = identifiers(tx, id).await?;
    Ok(Some(CustomerRecord {
        profile,
        identifiers,
        trusted,
        totals: totals(tx, &[id]).await?.remove(&id).unwrap_or_default(),
        recent_events: recent_events(tx, id).await?,
        products: products(tx, &product_ids(&activity, &orders)).await?,
        consents: consents(tx, id, None, CONSENTS).await?,
        groups: groups(tx, id).await?,
        segments: segments(tx, id).await?,
        activity,
        orders,
        related,
    }))
}

/// The sums of customers' orders that count, by currency.
pub(super) async fn totals(tx: &mut Tx, ids: &[ProfileId]) -> Result<super::Totals, StoreError> {
    if tx.is_postgres() { postgres::hot::totals(tx, ids).await } else { sqlite::hot::totals(tx, ids).await }
}

/// The profile that owns an identifier.
pub(super) async fn owner(
    tx: &mut BrandTx,
    identifier: &Identifier,
) -> Result<Option<ProfileId>, StoreError> {
    let brand = tx.brand();
    tx.sql("select profile_id from identifiers where brand_id = $1 and kind = $2 and value = $3")
        .bind(brand)
        .bind(identifier.kind.as_str())
        .bind(&identifier.value)
        .scalar()
        .await
}

/// Whom a question is about now, and of which revision. One profile may have been merged into another, and that into a third.
pub(super) async fn revision(tx: &mut BrandTx, asked: &CustomerRef) -> Result<Option<Revision>, StoreError> {
    let brand = tx.brand();
    let (id, identifier) = match asked {
        CustomerRef::Id(id) => (Some(*id), None),
        CustomerRef::Identifier(identifier) => (None, Some(identifier)),
    };
    let row: Option<(ProfileId, i64, i64, i64)> = tx
        .sql(
            "with recursive trail as (
                select id, merged_into, revision from profiles where brand_id = $1 and id = coalesce($2,
                    (select profile_id from identifiers where brand_id = $1 and kind = $3 and value = $4))
                union all
                select p.id, p.merged_into, p.revision from profiles p join trail t on p.id = t.merged_into and p.brand_id = $1
            )
            select trail.id, revision, count(o.id), coalesce(sum(o.version), 0)::bigint
            from trail left join orders o on o.profile_id = trail.id where merged_into is null group by trail.id, revision",
        )
        .bind(brand)
        .bind(id)
        .bind(identifier.map(|identifier| identifier.kind.as_str()))
        .bind(identifier.map(|identifier| identifier.value.as_str()))
        .optional()
        .await?;
    Ok(row.map(|(id, profile, count, sum)| Revision { id, profile, orders: (count, sum) }))
}

/// The profile itself, or the one that it was merged into.
pub(super) async fn survivor(tx: &mut BrandTx, id: ProfileId) -> Result<Option<Profile>, StoreError> {
    let brand = tx.brand();
    let survivor = format!(
        "with recursive trail as (
            select id, merged_into from profiles where id = $1 and brand_id = $2
            union all
            select p.id, p.merged_into from profiles p join trail t on p.id = t.merged_into and p.brand_id = $2
        )
        select {} from profiles where id = (select id from trail where merged_into is null)",
        PROFILE
    );
    tx.sql(survivor).bind(id).bind(brand).optional().await
}

/// All identifiers of a profile, and those of them that are its own by a trusted source's word.
async fn identifiers(
    tx: &mut BrandTx,
    id: ProfileId,
) -> Result<(Vec<Identifier>, Vec<Identifier>), StoreError> {
    let brand = tx.brand();
    let rows: Vec<(String, String, bool)> = tx
        .sql("select kind, value, source > 0 from identifiers where profile_id = $1 and brand_id = $2")
        .bind(id)
        .bind(brand)
        .all()
        .await?;
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

async fn recent_events(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<StoredEvent>, StoreError> {
    let brand = tx.brand();
    let recent = format!(
        "select {EVENT} from events where profile_id = $1 and brand_id = $2
        order by \"timestamp\" desc, message_id desc limit $3"
    );
    tx.sql(recent).bind(id).bind(brand).bind(RECENT_EVENTS as i64).all().await
}

async fn activity(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<Activity>, StoreError> {
    let brand = tx.brand();
    // bodies only where they are looked at
    tx.sql(
        "select \"timestamp\", kind, name, active, case when kind = 'track' and name = any($3) then body end as body
        from events where profile_id = $1 and brand_id = $2
        order by \"timestamp\" desc, message_id desc limit $4",
    )
    .bind(id)
    .bind(brand)
    .list(PRODUCT_EVENTS.map(|(name, _)| name))
    .bind(ACTIVITY as i64)
    .all()
    .await
}

async fn products(tx: &mut BrandTx, ids: &[String]) -> Result<Vec<KnownProduct>, StoreError> {
    if ids.is_empty() {
        return Ok(vec![]);
    }
    let brand = tx.brand();
    tx.sql("select id, title, category from products where brand_id = $1 and id = any($2) order by id, shop")
        .bind(brand)
        .list(ids)
        .all()
        .await
}

/// What a customer said of consent, newest first, from before that statement, at most `limit`.
pub(super) async fn consents(
    tx: &mut BrandTx,
    id: ProfileId,
    before: Option<&StoredConsent>,
    limit: i64,
) -> Result<Vec<StoredConsent>, StoreError> {
    let brand = tx.brand();
    let consents = format!("select {CONSENT} from consents where profile_id = $1 and brand_id = $2");
    let mut consents = tx.sql(consents).bind(id).bind(brand);
    if let Some(StoredConsent { at, message_id, channel, .. }) = before {
        consents = consents
            .push(" and (at, message_id, channel) < (")
            .push_bind(*at)
            .push(", ")
            .push_bind(message_id)
            .push(", ")
            .push_bind(channel)
            .push(")");
    }
    consents.push(" order by at desc, message_id desc, channel desc limit ").push_bind(limit).all().await
}

/// The segments that it belongs to, sorted.
async fn segments(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<String>, StoreError> {
    let segments = "select segment from segment_members where profile_id = $1 order by segment";
    tx.sql(segments).bind(id).scalars().await
}

async fn groups(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<StoredEvent>, StoreError> {
    let brand = tx.brand();
    let groups = format!(
        "select * from (
            select {EVENT}, row_number() over (partition by name order by \"timestamp\" desc, message_id desc) as age
            from events where profile_id = $1 and brand_id = $2 and kind = 'group') as newest
        where age = 1 order by \"timestamp\" desc, message_id desc limit $3"
    );
    tx.sql(groups).bind(id).bind(brand).bind(GROUPS as i64).all().await
}

async fn related(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<RelatedProfile>, StoreError> {
    let brand = tx.brand();
    tx.sql(
        "select case when a = $1 then b else a end as id, kind, reason from relations
        where (a = $1 or b = $1) and brand_id = $2 order by at desc, a, b limit $3",
    )
    .bind(id)
    .bind(brand)
    .bind(RELATED)
    .all()
    .await
}

async fn recent_orders(tx: &mut BrandTx, id: ProfileId) -> Result<Vec<OrderRecord>, StoreError> {
    let brand = tx.brand();
    let orders = format!(
        "select {ORDER} from orders where profile_id = $1 and brand_id = $2 order by ordered_at desc, id desc limit $3"
    );
    tx.sql(orders).bind(id).bind(brand).bind(ORDERS as i64).all().await
}
