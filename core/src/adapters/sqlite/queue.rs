//! The queue on SQLite: the protocol of the Redis lists, each step one transaction.
//!
//! A row of `items` is in exactly one state: ready (`batch` null, `not_before_ms` 0), delayed (`batch` null), or held by a
//! batch. Dead letters are rows of `dead`. `leases` is the only record of which batches live.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use super::db::{Db, pieces};
use crate::ports::clock::Clock;
use crate::ports::queue::{
    Acked, Batch, BatchId, DeadLetter, Enqueued, Item, MAX_FETCH, MAX_LOSSES, NewItem, POLL, Priority, Queue,
    QueueError, QueueSettings, QueueStats, Reclaimed, Then, Unfinished, lost_alone,
};

/// How long a count of the depth is believed before it is made again.
const DEPTH_AGE_MS: i64 = 1000;
/// Claims that one enqueue clears away when their time is over.
const CLAIMS_CLEARED: i64 = 100;

type Tx = Transaction<'static, Sqlite>;

/// The queue on SQLite.
pub struct SqliteQueue {
    db: Db,
    settings: QueueSettings,
    clock: Arc<dyn Clock>,
    wake: Notify,
    depth: Depth,
}

/// Pending and delayed items, counted at most every [`DEPTH_AGE_MS`]: counting costs what the queue is long.
#[derive(Default)]
struct Depth {
    items: AtomicU64,
    counted_ms: AtomicI64,
}

impl SqliteQueue {
    /// The queue in an open file.
    pub fn new(db: Db, settings: QueueSettings, clock: Arc<dyn Clock>) -> Self {
        Self { db, settings, clock, wake: Notify::new(), depth: Depth::default() }
    }

    async fn begin(&self) -> Result<Tx, QueueError> {
        self.db.begin().await.map_err(failed)
    }

    fn lease_end(&self) -> i64 {
        self.clock.now_ms() + ms(self.settings.lease)
    }

    async fn refuse_over_limit(&self, more: usize) -> Result<(), QueueError> {
        let now = self.clock.now_ms();
        if self.settings.max_depth == 0 {
            return Ok(());
        }
        if (now - self.depth.counted_ms.load(Ordering::Relaxed)).abs() >= DEPTH_AGE_MS {
            // two counts, each within its index
            let waiting: i64 = sqlx::query_scalar(
                "select (select count(*) from items where batch is null and not_before_ms = 0)
                    + (select count(*) from items where batch is null and not_before_ms > 0)",
            )
            .fetch_one(&self.db.read)
            .await
            .map_err(failed)?;
            self.depth.items.store(u64::try_from(waiting).unwrap_or_default(), Ordering::Relaxed);
            self.depth.counted_ms.store(now, Ordering::Relaxed);
        }
        let depth = self.depth.items.load(Ordering::Relaxed);
        if depth + more as u64 > self.settings.max_depth {
            return Err(QueueError::Full { depth, limit: self.settings.max_depth });
        }
        self.depth.items.fetch_add(more as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn take(&self, want: usize) -> Result<Option<Batch>, QueueError> {
        let now = self.clock.now_ms();
        // A look costs no write: an idle worker leaves the disk alone.
        let something: bool = sqlx::query_scalar(
            "select exists (select 1 from items where batch is null and not_before_ms = 0)
                or exists (select 1 from items where batch is null and not_before_ms > 0 and not_before_ms <= ?1)",
        )
        .bind(now)
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)?;
        if !something {
            return Ok(None);
        }
        let mut tx = self.begin().await?;
        sqlx::query(
            "update items set not_before_ms = 0 where batch is null and not_before_ms > 0 and not_before_ms <= ?1",
        )
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
        let id = Uuid::now_v7().simple().to_string();
        // what was lost before is taken alone, and first
        let mut rows = hold(&mut tx, &id, true, 1).await?;
        if rows.is_empty() {
            rows = hold(&mut tx, &id, false, want).await?;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        sqlx::query("insert into leases (batch, deadline_ms) values (?1, ?2)")
            .bind(&id)
            .bind(self.lease_end())
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let mut held: Vec<(i64, Item)> = rows
            .iter()
            .map(|row| Ok((row.try_get("seq")?, item(row)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        held.sort_by_key(|(seq, item)| (item.priority, *seq));
        let items: Vec<Item> = held.into_iter().map(|(_, item)| item).collect();
        if items.len() == want || items[0].suspect {
            // there may be more: let the next sleeper look
            self.wake.notify_one();
        }
        Ok(Some(Batch { id: BatchId(id), items }))
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        self.refuse_over_limit(items.len()).await?;
        let now = self.clock.now_ms();
        let mut tx = self.begin().await?;
        let mut results = Vec::with_capacity(items.len());
        for item in items {
            results.push(self.claim(&mut tx, item, now).await?);
        }
        let accepted: Vec<&NewItem> = items
            .iter()
            .zip(&results)
            .filter(|(_, result)| **result == Enqueued::Accepted)
            .map(|(item, _)| item)
            .collect();
        for piece in pieces(&accepted) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into items (id, priority, enqueued_ms, attempt, suspect, losses, not_before_ms, payload) ",
            );
            insert.push_values(piece, |mut row, item| {
                let not_before = if item.delay.is_zero() { 0 } else { now + ms(item.delay) };
                row.push_bind(Uuid::now_v7().simple().to_string())
                    .push_bind(item.priority.index() as i64)
                    .push_bind(now)
                    .push("0, 0, 0")
                    .push_bind(not_before)
                    .push_bind(&item.payload[..]);
            });
            insert.build().execute(&mut *tx).await.map_err(failed)?;
        }
        count(&mut tx, "enqueued", accepted.len()).await?;
        count(&mut tx, "duplicates", items.len() - accepted.len()).await?;
        tx.commit().await.map_err(failed)?;
        self.wake.notify_one();
        Ok(results)
    }

    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError> {
        let want = want.clamp(1, MAX_FETCH);
        // Registered before the look: what comes in between is not missed.
        let woken = self.wake.notified();
        match self.take(want).await? {
            None if !wait.is_zero() => {
                let _ = tokio::time::timeout(wait.min(POLL), woken).await;
                self.take(want).await
            }
            taken => Ok(taken),
        }
    }

    async fn ack(&self, batch: &BatchId, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        let now = self.clock.now_ms();
        let mut tx = self.begin().await?;
        let ours = sqlx::query("delete from leases where batch = ?1")
            .bind(&batch.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if ours.rows_affected() == 0 {
            return Ok(Acked::Lost);
        }
        for Unfinished { item, then } in unfinished {
            match then {
                Then::Retry { delay } => {
                    sqlx::query(
                        "update items set batch = null, attempt = attempt + 1, not_before_ms = ?3
                        where batch = ?1 and id = ?2",
                    )
                    .bind(&batch.0)
                    .bind(&item.id)
                    .bind(now + ms(*delay).max(1))
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                    count(&mut tx, "retried", 1).await?;
                }
                Then::Bury { error } => {
                    bury(&mut tx, &batch.0, &item.id, error, now).await?;
                    count(&mut tx, "buried", 1).await?;
                }
                Then::Release => {
                    sqlx::query("update items set batch = null where batch = ?1 and id = ?2")
                        .bind(&batch.0)
                        .bind(&item.id)
                        .execute(&mut *tx)
                        .await
                        .map_err(failed)?;
                }
            }
        }
        let done = sqlx::query("delete from items where batch = ?1")
            .bind(&batch.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        count(&mut tx, "acked", usize::try_from(done.rows_affected()).unwrap_or_default()).await?;
        tx.commit().await.map_err(failed)?;
        if unfinished.iter().any(|u| u.then == Then::Release) {
            self.wake.notify_one();
        }
        Ok(Acked::Done)
    }

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        let mut tx = self.begin().await?;
        let mut lost = Vec::new();
        for batch in batches {
            let extended = sqlx::query("update leases set deadline_ms = ?2 where batch = ?1")
                .bind(&batch.0)
                .bind(self.lease_end())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            if extended.rows_affected() == 0 {
                lost.push(batch.clone());
            }
        }
        tx.commit().await.map_err(failed)?;
        Ok(lost)
    }

    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        let now = self.clock.now_ms();
        let expired: bool =
            sqlx::query_scalar("select exists (select 1 from leases where deadline_ms <= ?1)")
                .bind(now)
                .fetch_one(&self.db.read)
                .await
                .map_err(failed)?;
        if !expired {
            return Ok(Reclaimed::default());
        }
        let mut tx = self.begin().await?;
        let batches: Vec<String> =
            sqlx::query_scalar("delete from leases where deadline_ms <= ?1 returning batch")
                .bind(now)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
        let mut done = Reclaimed::default();
        for batch in batches {
            let items: Vec<(String, i64)> = sqlx::query_as("select id, losses from items where batch = ?1")
                .bind(&batch)
                .fetch_all(&mut *tx)
                .await
                .map_err(failed)?;
            let alone = i64::from(items.len() == 1);
            if let [(id, losses)] = items.as_slice()
                && losses + 1 >= i64::from(MAX_LOSSES)
            {
                sqlx::query("update items set losses = losses + 1 where batch = ?1")
                    .bind(&batch)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                bury(&mut tx, &batch, id, &lost_alone(), now).await?;
                done.buried += 1;
            } else {
                sqlx::query(
                    "update items set batch = null, suspect = 1, losses = losses + ?2 where batch = ?1",
                )
                .bind(&batch)
                .bind(alone)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
                done.returned += items.len() as u64;
            }
        }
        count(&mut tx, "reclaimed", usize::try_from(done.returned).unwrap_or_default()).await?;
        count(&mut tx, "buried", usize::try_from(done.buried).unwrap_or_default()).await?;
        tx.commit().await.map_err(failed)?;
        self.wake.notify_one();
        Ok(done)
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        let (pending, in_flight, delayed, dead, oldest): (i64, i64, i64, i64, Option<i64>) = sqlx::query_as(
            "select (select count(*) from items where batch is null and not_before_ms = 0),
                (select count(*) from items where batch is not null),
                (select count(*) from items where batch is null and not_before_ms > 0),
                (select count(*) from dead),
                (select enqueued_ms from items where batch is null and not_before_ms = 0 order by seq limit 1)",
        )
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)?;
        let counters: Vec<(String, i64)> = sqlx::query_as("select name, value from counters")
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        let positive = |n: i64| u64::try_from(n).unwrap_or_default();
        let ever = |name: &str| {
            counters.iter().find(|(held, _)| held == name).map_or(0, |(_, value)| positive(*value))
        };
        Ok(QueueStats {
            pending: positive(pending),
            in_flight: positive(in_flight),
            delayed: positive(delayed),
            dead: positive(dead),
            oldest_age_ms: oldest.map_or(0, |at| positive(self.clock.now_ms() - at)),
            enqueued: ever("enqueued"),
            duplicates: ever("duplicates"),
            acked: ever("acked"),
            retried: ever("retried"),
            reclaimed: ever("reclaimed"),
            buried: ever("buried"),
        })
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let rows = sqlx::query("select * from dead order by seq desc limit ?1")
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok(DeadLetter {
                    item: item(row)?,
                    error: row.try_get("error")?,
                    buried_ms: row.try_get("buried_ms")?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    fn lease(&self) -> Duration {
        self.settings.lease
    }
}

impl SqliteQueue {
    /// Remembers the item's idempotency keys, unless one of them is remembered already.
    async fn claim(&self, tx: &mut Tx, item: &NewItem, now: i64) -> Result<Enqueued, QueueError> {
        if item.idempotency_keys.is_empty() {
            return Ok(Enqueued::Accepted);
        }
        sqlx::query("delete from claims where key in (select key from claims where until_ms <= ?1 limit ?2)")
            .bind(now)
            .bind(CLAIMS_CLEARED)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        for key in &item.idempotency_keys {
            let seen: bool =
                sqlx::query_scalar("select exists (select 1 from claims where key = ?1 and until_ms > ?2)")
                    .bind(key)
                    .bind(now)
                    .fetch_one(&mut **tx)
                    .await
                    .map_err(failed)?;
            if seen {
                return Ok(Enqueued::Duplicate);
            }
        }
        for key in &item.idempotency_keys {
            sqlx::query("insert or replace into claims (key, until_ms) values (?1, ?2)")
                .bind(key)
                .bind(now + ms(self.settings.claim_ttl))
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
        }
        Ok(Enqueued::Accepted)
    }
}

async fn hold(tx: &mut Tx, batch: &str, suspect: bool, most: usize) -> Result<Vec<SqliteRow>, QueueError> {
    sqlx::query(
        "update items set batch = ?1 where seq in (
            select seq from items where batch is null and not_before_ms = 0 and suspect = ?2
            order by priority, seq limit ?3)
        returning *",
    )
    .bind(batch)
    .bind(suspect)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(&mut **tx)
    .await
    .map_err(failed)
}

async fn bury(tx: &mut Tx, batch: &str, id: &str, error: &str, now: i64) -> Result<(), QueueError> {
    sqlx::query(
        "insert into dead (id, priority, enqueued_ms, attempt, suspect, losses, error, buried_ms, payload)
        select id, priority, enqueued_ms, attempt, suspect, losses, ?3, ?4, payload from items
        where batch = ?1 and id = ?2",
    )
    .bind(batch)
    .bind(id)
    .bind(error)
    .bind(now)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    sqlx::query("delete from items where batch = ?1 and id = ?2")
        .bind(batch)
        .bind(id)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn count(tx: &mut Tx, name: &str, by: usize) -> Result<(), QueueError> {
    if by > 0 {
        sqlx::query(
            "insert into counters (name, value) values (?1, ?2)
            on conflict (name) do update set value = value + excluded.value",
        )
        .bind(name)
        .bind(i64::try_from(by).unwrap_or_default())
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

fn item(row: &SqliteRow) -> Result<Item, sqlx::Error> {
    Ok(Item {
        id: row.try_get("id")?,
        enqueued_ms: row.try_get("enqueued_ms")?,
        attempt: row.try_get("attempt")?,
        suspect: row.try_get("suspect")?,
        losses: row.try_get("losses")?,
        priority: Priority::at(usize::try_from(row.try_get::<i64, _>("priority")?).unwrap_or(usize::MAX)),
        payload: Bytes::from(row.try_get::<Vec<u8>, _>("payload")?),
    })
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn failed(error: sqlx::Error) -> QueueError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            QueueError::Unexpected(error.to_string())
        }
        _ => QueueError::Unavailable(error.to_string()),
    }
}
