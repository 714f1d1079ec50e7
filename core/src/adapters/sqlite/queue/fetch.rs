//! Fetching: which items a batch has.

use sqlx::AssertSqlSafe;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::enqueue::next_places;
use super::rows::{ITEM, failed, item, ms};
use super::shares::{count, is_shared};
use super::{SqliteQueue, Tx};
use crate::ports::queue::{Batch, BatchId, FAIR_EVERY, Item, LOW_STEP, MAX_PROMOTE, Priority, QueueError};

/// Which items were lost before.
pub(super) const SUSPECTS: &str = "suspect = 1 order by place";

/// What is ready, by priority.
pub(super) const READY: [&str; 3] = [
    "suspect = 0 and priority = 0 order by released desc, place",
    "suspect = 0 and priority = 1 order by released desc, place",
    "suspect = 0 and priority = 2 order by released desc, place",
];

/// The counter that every [`FAIR_EVERY`]th fetch is known by.
pub(super) const FETCHES: &str = "fetches";

/// Makes what is due pending, behind what waits.
pub(super) async fn promote(tx: &mut Tx, now: i64) -> Result<(), QueueError> {
    let due: Vec<i64> = sqlx::query_scalar(
        "select seq from items where batch is null and not_before_ms > 0 and not_before_ms <= ?1
        order by not_before_ms, id limit ?2",
    )
    .bind(now)
    .bind(MAX_PROMOTE as i64)
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)?;
    if due.is_empty() {
        return Ok(());
    }
    let mut place = next_places(tx, due.len()).await?;
    for seq in due {
        sqlx::query("update items set not_before_ms = 0, place = ?2 where seq = ?1")
            .bind(seq)
            .bind(place)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        place += 1;
    }
    Ok(())
}

/// Puts at most `most` ready items under a batch; `which` is one of this file's own clauses.
pub(super) async fn hold(
    tx: &mut Tx,
    batch: &str,
    most: usize,
    which: &'static str,
) -> Result<Vec<SqliteRow>, QueueError> {
    let statement = format!(
        "update items set batch = ?1 where seq in (
            select seq from items where batch is null and not_before_ms = 0 and {which} limit ?2)
        returning {ITEM}, released, place"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(batch)
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)
}

impl SqliteQueue {
    pub(super) async fn take(&self, want: usize) -> Result<Option<Batch>, QueueError> {
        let now = self.world.now_ms();
        if !self.anything_ready(now).await? {
            return Ok(None);
        }
        let mut tx = self.begin().await?;
        let paused: bool = sqlx::query_scalar("select exists (select 1 from paused)")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed)?;
        if paused {
            return Ok(None);
        }
        promote(&mut tx, now).await?;
        let id = self.world.id().simple().to_string();
        let fetches: Option<i64> = sqlx::query_scalar("select value from counters where name = ?1")
            .bind(FETCHES)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        // Every so often the last are first: the lowest priority before the highest, and suspects after all.
        let last_first = (fetches.unwrap_or_default().unsigned_abs() + 1).is_multiple_of(FAIR_EVERY);
        let rows = self.hold_next(&mut tx, &id, want, last_first).await?;
        if rows.is_empty() {
            // what was promoted stays so
            tx.commit().await.map_err(failed)?;
            return Ok(None);
        }
        count(&mut tx, FETCHES, 1).await?;
        sqlx::query("insert into leases (batch, deadline_ms) values (?1, ?2)")
            .bind(&id)
            .bind(now + ms(self.settings.lease))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let more: bool = sqlx::query_scalar(
            "select exists (select 1 from items indexed by items_ready where batch is null and not_before_ms = 0)",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let items = in_order(&rows, last_first).map_err(failed)?;
        if more {
            self.wake.notify_one();
        }
        Ok(Some(Batch { id: BatchId(id), items }))
    }

    /// Whether a fetch would find anything. A look costs no write: an idle worker leaves the disk alone.
    async fn anything_ready(&self, now: i64) -> Result<bool, QueueError> {
        sqlx::query_scalar(
            "select not exists (select 1 from paused) and (
                exists (select 1 from items indexed by items_ready where batch is null and not_before_ms = 0)
                or exists (select 1 from items where batch is null and not_before_ms > 0 and not_before_ms <= ?1))",
        )
        .bind(now)
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)
    }

    /// Holds the items that are next: a suspect alone, else what is ready, by priority; the other way round where the last are first.
    async fn hold_next(
        &self,
        tx: &mut Tx,
        id: &str,
        want: usize,
        last_first: bool,
    ) -> Result<Vec<SqliteRow>, QueueError> {
        let mut rows = Vec::new();
        if !last_first {
            rows = hold(tx, id, 1, SUSPECTS).await?;
        }
        // What has low priority is fetched by itself. One priority after the other: the index is in this order.
        let turns: [&[usize]; 2] = if last_first { [&[2], &[1, 0]] } else { [&[0, 1], &[2]] };
        for turn in turns {
            if !rows.is_empty() {
                break;
            }
            for priority in turn {
                let is_low = *priority == Priority::Low.index();
                if is_low && is_shared(tx).await? {
                    rows.extend(self.hold_low(tx, id, want).await?);
                } else if rows.len() < want {
                    rows.extend(hold(tx, id, want - rows.len(), READY[*priority]).await?);
                }
            }
        }
        if rows.is_empty() && last_first {
            rows = hold(tx, id, 1, SUSPECTS).await?;
        }
        Ok(rows)
    }

    /// Some items of low priority, where brands share the queue: nobody waits long for them.
    async fn hold_low(&self, tx: &mut Tx, id: &str, want: usize) -> Result<Vec<SqliteRow>, QueueError> {
        let most = want.min(self.settings.low_batch);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while rows.len() < most && bytes < self.settings.low_bytes {
            let step = LOW_STEP.min(most - rows.len());
            let more = hold(tx, id, step, READY[Priority::Low.index()]).await?;
            for row in &more {
                bytes += row.try_get::<&[u8], _>("payload").map_err(failed)?.len();
            }
            let is_last = more.len() < step;
            rows.extend(more);
            if is_last {
                break;
            }
        }
        Ok(rows)
    }
}

/// The items of rows in the order in which they are processed.
fn in_order(rows: &[SqliteRow], last_first: bool) -> Result<Vec<Item>, sqlx::Error> {
    let mut held: Vec<(i64, i64, Item)> = rows
        .iter()
        .map(|row| Ok((row.try_get("released")?, row.try_get("place")?, item(row)?)))
        .collect::<Result<_, sqlx::Error>>()?;
    held.sort_by_key(|(released, place, item)| {
        let priority = i64::try_from(item.priority.index()).unwrap_or_default();
        (if last_first { -priority } else { priority }, -released, *place)
    });
    Ok(held.into_iter().map(|(.., item)| item).collect())
}
