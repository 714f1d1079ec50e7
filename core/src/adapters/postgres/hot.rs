//! Statements that have a form of their own on PostgreSQL: what SQLite has no words for, and what is faster so.

use std::collections::HashMap;

use sqlx_macros::FromRow;

use crate::adapters::sql::codec::{Money, Time};
use crate::adapters::sql::database::Tx;
use crate::adapters::sql::events::EVENT;
use crate::adapters::sql::statement::Given;
use crate::adapters::sql::{ProfileEvent, Totals};
use crate::domain::automation::facts::{EVENTS_SEEN, Facts};
use crate::domain::customer360::OrderTotals;
use crate::domain::ids::ProfileId;
use crate::ports::store::StoreError;

/// PostgreSQL's clock, in milliseconds since 1970.
pub(in crate::adapters) const NOW_MS: &str = "select (extract(epoch from clock_timestamp()) * 1000)::bigint";

/// Keeps webhooks' bodies to this transaction: whoever has the same body under another topic waits, and then sees this one. A row
/// cannot be locked that is not there yet.
pub(in crate::adapters) async fn lock_bodies(tx: &mut Tx, bodies: &Given<'_>) -> Result<(), StoreError> {
    tx.sql(
        "select pg_advisory_xact_lock(body) from (
            select distinct hashtextextended(brand || ' ' || shop || ' ' || encode(digest, 'hex'), 0) as body
            from {given} order by body) as bodies",
    )
    .given(bodies)
    .run()
    .await?;
    Ok(())
}

#[derive(FromRow)]
struct TotalsRow {
    profile_id: ProfileId,
    currency: String,
    count: i64,
    total: Money,
    refunded: Money,
    first_ordered_at: Time,
    last_ordered_at: Time,
}

/// The sums of customers' orders that count, by currency. PostgreSQL adds decimals exactly, and need not send the orders.
pub(in crate::adapters) async fn totals(tx: &mut Tx, ids: &[ProfileId]) -> Result<Totals, StoreError> {
    let rows: Vec<TotalsRow> = tx
        .sql(
            "select profile_id, currency, count(*) as count, sum(revenue) as total, sum(refunded) as refunded,
                min(ordered_at) as first_ordered_at, max(ordered_at) as last_ordered_at
            from orders where profile_id = any($1) and counts group by profile_id, currency order by currency",
        )
        .list(ids.iter().copied())
        .all()
        .await?;
    let mut totals: Totals = HashMap::new();
    for row in rows {
        totals.entry(row.profile_id).or_default().push(OrderTotals {
            currency: row.currency,
            count: row.count.cast_unsigned(),
            total: row.total.0,
            refunded: row.refunded.0,
            first_ordered_at: row.first_ordered_at.0,
            last_ordered_at: row.last_ordered_at.0,
        });
    }
    Ok(totals)
}

/// Shows customers' newest events to their facts, in one statement: one a customer would be a round trip each. They are read one after
/// the other, because the messages of a page of customers would be too much to hold.
pub(in crate::adapters) async fn see_recent(
    tx: &mut Tx,
    facts: &mut HashMap<ProfileId, Facts>,
) -> Result<(), StoreError> {
    let ids: Vec<ProfileId> = facts.keys().copied().collect();
    let recent = format!(
        "select p.id as profile_id, e.* from unnest($1::uuid[]) as p (id) cross join lateral (
            select {EVENT} from events where profile_id = p.id order by \"timestamp\" desc, message_id desc limit $2) e"
    );
    let mut rows = tx.sql(recent).list(ids).bind(EVENTS_SEEN as i64).stream::<ProfileEvent>()?;
    while let Some(row) = futures::TryStreamExt::try_next(&mut rows).await? {
        if let Some(facts) = facts.get_mut(&row.profile_id) {
            facts.saw(row.event);
        }
    }
    Ok(())
}
