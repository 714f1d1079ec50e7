//! The queue on SQLite: the protocol of Redis, each step one transaction; a large call of `enqueue` is several where brands share.
//!
//! A row of `items` is in exactly one state: ready (`batch` null, `not_before_ms` 0), delayed (`batch` null), or held by a
//! batch. Dead letters are rows of `dead`. `leases` is the only record of which batches live. A payload is a row of `bodies`, written
//! once, and stays there until its item or dead letter is gone.

mod ack;
mod dead;
mod enqueue;
mod fetch;
mod reclaim;
mod rows;
mod shares;

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Sqlite, Transaction};
use tokio::sync::Notify;

use self::rows::{claim, failed, positive};
use super::db::Db;
use crate::domain::ids::BrandId;
use crate::ports::queue::{
    Acked, Batch, BatchId, Claim, DeadLetter, DeadPlace, Enqueued, Holding, MAX_FETCH, NewItem, POLL, Queue,
    QueueError, QueueSettings, QueueStats, Reclaimed, Repaired, Scope, Unfinished, claim_name, this_process,
};
use crate::ports::world::World;

/// The queue on SQLite.
pub struct SqliteQueue {
    db: Db,
    settings: QueueSettings,
    world: World,
    wake: Notify,
}

impl SqliteQueue {
    /// The queue in an open file.
    pub fn new(db: Db, settings: QueueSettings, world: World) -> Self {
        Self { db, settings, world, wake: Notify::new() }
    }

    pub(super) async fn begin(&self) -> Result<Tx, QueueError> {
        self.db.begin().await.map_err(failed)
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        self.enqueue_all(items).await
    }

    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError> {
        let want = want.clamp(1, MAX_FETCH);
        // Registered before the look: what comes in between is not missed.
        let woken = self.wake.notified();
        match self.take(want).await? {
            None if !wait.is_zero() => {
                let _ = self.world.timeout(wait.min(POLL), woken).await;
                self.take(want).await
            }
            taken => Ok(taken),
        }
    }

    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        self.end_batch(batch, unfinished).await
    }

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        self.extend(batches).await
    }

    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        self.reclaim_expired().await
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        type Numbers = (i64, i64, i64, i64, i64, Option<i64>, bool);
        let (pending, in_flight, delayed, bytes, dead, oldest, paused): Numbers =
            sqlx::query_as(
                "select (select count(*) from items where batch is null and not_before_ms = 0),
                (select count(*) from items where batch is not null),
                (select count(*) from items where batch is null and not_before_ms > 0),
                (select coalesce(sum(bytes), 0) from shares),
                (select count(*) from dead),
                (select enqueued_ms from items where batch is null and not_before_ms = 0 order by seq limit 1),
                exists (select 1 from paused)",
            )
            .fetch_one(&self.db.read)
            .await
            .map_err(failed)?;
        let counters: Vec<(String, i64)> = sqlx::query_as("select name, value from counters")
            .fetch_all(&self.db.read)
            .await
            .map_err(failed)?;
        let mut stats = QueueStats {
            pending: positive(pending),
            in_flight: positive(in_flight),
            delayed: positive(delayed),
            bytes: positive(bytes),
            dead: positive(dead),
            paused,
            oldest_age_ms: oldest.map_or(0, |at| positive(self.world.now_ms() - at)),
            ..QueueStats::default()
        };
        stats.count(|name| {
            counters.iter().find(|(held, _)| held == name).map_or(0, |(_, value)| positive(*value))
        });
        Ok(stats)
    }

    async fn dead(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        self.list_dead(of, after, limit).await
    }

    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        self.find_dead(id).await
    }

    async fn retry_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.retry_letters(ids).await
    }

    async fn discard_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.discard_letters(ids).await
    }

    async fn drop_dead(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError> {
        self.drop_letters(of, before_ms).await
    }

    async fn held_by(&self, brand: BrandId) -> Result<Holding, QueueError> {
        let held: Option<(i64, i64, i64, i64)> =
            sqlx::query_as("select items, bytes, dead, dead_bytes from shares where brand = ?1")
                .bind(brand.0)
                .fetch_optional(&self.db.read)
                .await
                .map_err(failed)?;
        let (items, bytes, dead, dead_bytes) = held.unwrap_or_default();
        Ok(Holding {
            items: positive(items),
            bytes: positive(bytes),
            dead: positive(dead),
            dead_bytes: positive(dead_bytes),
        })
    }

    async fn set_paused(&self, paused: bool) -> Result<(), QueueError> {
        let mut tx = self.begin().await?;
        sqlx::query("delete from paused").execute(&mut *tx).await.map_err(failed)?;
        if paused {
            sqlx::query("insert into paused (since_ms, by) values (?1, ?2)")
                .bind(self.world.now_ms())
                .bind(this_process())
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        tx.commit().await.map_err(failed)?;
        self.wake.notify_one();
        Ok(())
    }

    async fn claim(&self, key: &str) -> Result<Option<Claim>, QueueError> {
        let row = sqlx::query("select * from claims where key = ?1 and until_ms > ?2")
            .bind(claim_name(key))
            .bind(self.world.now_ms())
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.as_ref().map(claim).transpose().map_err(failed)
    }

    async fn repair(&self) -> Result<Repaired, QueueError> {
        self.repair_strays().await
    }

    fn lease(&self) -> Duration {
        self.settings.lease
    }
}

type Tx = Transaction<'static, Sqlite>;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use sqlx::{ConnectOptions, Connection};

    use super::*;
    use crate::ports::world::World;

    #[tokio::test]
    async fn what_an_older_version_left_is_served_with_its_payload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let mut before = sqlx_macros::migrate!("migrations/sqlite_queue");
        before.migrations = Cow::Owned(before.iter().filter(|step| step.version <= 3).cloned().collect());
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut file = options.connect().await.unwrap();
        before.run_direct(None, &mut file, false).await.unwrap();
        for n in [5, 6] {
            sqlx::query(
                "insert into items (seq, id, place, priority, enqueued_ms, attempt, suspect, losses, not_before_ms, payload)
                values (?1, ?2, ?1, 1, 0, 0, 0, 0, 0, cast(?2 as blob))",
            )
            .bind(n)
            .bind(format!("item {n}"))
            .execute(&mut file)
            .await
            .unwrap();
        }
        sqlx::query(
            "insert into dead (seq, id, priority, enqueued_ms, attempt, suspect, losses, buried_ms, payload)
            values (5, 'dead', 1, 0, 0, 0, 0, 0, cast('dead' as blob))",
        )
        .execute(&mut file)
        .await
        .unwrap();
        file.close().await.unwrap();

        let db = Db::open_queue(&path).await.unwrap();
        let queue = SqliteQueue::new(db.clone(), QueueSettings::default(), World::real());
        // its place is less than what was there had for a number
        queue.enqueue(&[NewItem { payload: "new".into(), ..NewItem::default() }]).await.unwrap();
        assert_eq!(queue.retry_dead(&["dead".into()]).await.unwrap(), 1);
        let batch = queue.fetch(10, Duration::ZERO).await.unwrap().unwrap();
        let mut payloads: Vec<&[u8]> = batch.items.iter().map(|item| &item.payload[..]).collect();
        payloads.sort_unstable();
        assert_eq!(payloads, [&b"dead"[..], b"item 5", b"item 6", b"new"]);
        assert_eq!(queue.ack(&batch, &[]).await.unwrap(), Acked::Done);
        let left: i64 = sqlx::query_scalar("select count(*) from bodies").fetch_one(&db.read).await.unwrap();
        assert_eq!(left, 0);
        db.close().await;
        assert!(!folder.path().join("queue.db-wal").exists(), "the log is folded in");
    }
}
