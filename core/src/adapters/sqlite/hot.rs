//! Statements that have a form of their own on SQLite: what PostgreSQL has other words for, and what is faster so.

use std::collections::{BTreeMap, HashMap};

use sqlx_macros::FromRow;

use crate::adapters::sql::Totals;
use crate::adapters::sql::codec::{Money, Time};
use crate::adapters::sql::database::Tx;
use crate::adapters::sql::events::EVENT;
use crate::domain::automation::facts::{EVENTS_SEEN, Facts};
use crate::domain::customer360::{OrderTotals, StoredEvent};
use crate::domain::ids::ProfileId;
use crate::ports::store::StoreError;

/// SQLite's clock, in milliseconds since 1970.
pub(in crate::adapters) const NOW_MS: &str = "select cast(unixepoch('subsec') * 1000 as integer)";

#[derive(FromRow)]
struct CountedRow {
    profile_id: ProfileId,
    currency: String,
    revenue: Money,
    refunded: Money,
    ordered_at: Time,
}

/// The sums of customers' orders that count, by currency. They are made here: SQLite would add decimals up as floats.
pub(in crate::adapters) async fn totals(tx: &mut Tx, ids: &[ProfileId]) -> Result<Totals, StoreError> {
    let rows: Vec<CountedRow> = tx
        .sql(
            "select profile_id, currency, revenue, refunded, ordered_at from orders
            where profile_id = any($1) and counts",
        )
        .list(ids.iter().copied())
        .all()
        .await?;
    let mut sums: HashMap<ProfileId, BTreeMap<String, OrderTotals>> = HashMap::new();
    for row in rows {
        let at = row.ordered_at.0;
        let of_currency = sums.entry(row.profile_id).or_default().entry(row.currency.clone());
        let sum = of_currency.or_insert_with(|| OrderTotals {
            currency: row.currency,
            count: 0,
            total: rust_decimal::Decimal::ZERO,
            refunded: rust_decimal::Decimal::ZERO,
            first_ordered_at: at,
            last_ordered_at: at,
        });
        sum.count += 1;
        sum.total += row.revenue.0;
        sum.refunded += row.refunded.0;
        sum.first_ordered_at = sum.first_ordered_at.min(at);
        sum.last_ordered_at = sum.last_ordered_at.max(at);
    }
    Ok(sums.into_iter().map(|(id, sums)| (id, sums.into_values().collect())).collect())
}

/// Shows customers' newest events to their facts, a customer at a time: a limit for each needs a statement for each, and no
/// network lies between. They are read one after the other, because the messages of a page of customers would be too much to hold.
pub(in crate::adapters) async fn see_recent(
    tx: &mut Tx,
    facts: &mut HashMap<ProfileId, Facts>,
) -> Result<(), StoreError> {
    let recent = format!(
        "select {EVENT} from events where profile_id = $1 order by \"timestamp\" desc, message_id desc limit $2"
    );
    for (id, facts) in facts {
        let mut rows = tx.sql(recent.as_str()).bind(*id).bind(EVENTS_SEEN as i64).stream::<StoredEvent>()?;
        while let Some(event) = futures::TryStreamExt::try_next(&mut rows).await? {
            facts.saw(event);
        }
    }
    Ok(())
}
