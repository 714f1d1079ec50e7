//! Ending a batch, and extending its lease.

use std::time::Duration;

use super::dead::finish;
use super::enqueue::next_places;
use super::reclaim::survived;
use super::rows::{failed, ms, signed, written};
use super::shares::{add_to_share, count};
use super::{SqliteQueue, Tx};
use crate::ports::queue::{Acked, Batch, BatchId, Item, Outcome, QueueError, Then, Unfinished, leaving};

impl SqliteQueue {
    pub(super) async fn end_batch(
        &self,
        batch: &Batch,
        unfinished: &[Unfinished],
    ) -> Result<Acked, QueueError> {
        let now = self.world.now_ms();
        let mut tx = self.begin().await?;
        let ours = sqlx::query("delete from leases where batch = ?1")
            .bind(&batch.id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        if ours.rows_affected() == 0 {
            survived(&mut tx, &batch.id.0, now).await?;
            tx.commit().await.map_err(failed)?;
            return Ok(Acked::Lost);
        }
        for (brand, (items, bytes)) in leaving(batch, unfinished) {
            add_to_share(&mut tx, brand, -signed(items), -signed(bytes)).await?;
        }
        let mut place = match unfinished.len() {
            0 => 0,
            count => next_places(&mut tx, count).await?,
        };
        for one in unfinished {
            self.settle(&mut tx, &batch.id.0, one, place).await?;
            place += i64::from(one.then == Then::Release);
        }
        sqlx::query("delete from bodies where id in (select body from items where batch = ?1)")
            .bind(&batch.id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let done = sqlx::query("delete from items where batch = ?1")
            .bind(&batch.id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let is_done = |item: &&Item| unfinished.iter().all(|other| other.item.id != item.id);
        for item in batch.items.iter().filter(|item| !item.claims.is_empty()).filter(is_done) {
            finish(&mut tx, &item.id, &item.claims.join(","), Outcome::Done, now).await?;
        }
        count(&mut tx, "acked", usize::try_from(done.rows_affected()).unwrap_or_default()).await?;
        tx.commit().await.map_err(failed)?;
        if unfinished.iter().any(|u| u.then == Then::Release) {
            self.wake.notify_one();
        }
        Ok(Acked::Done)
    }

    /// Does with an item of a batch what is said; `place` is where it goes if it is released.
    async fn settle(
        &self,
        tx: &mut Tx,
        batch: &str,
        Unfinished { item, then }: &Unfinished,
        place: i64,
    ) -> Result<(), QueueError> {
        let now = self.world.now_ms();
        let after = |delay: Duration| now.saturating_add(ms(delay).max(1));
        let statement = match then {
            Then::Bury { error } => {
                self.bury(tx, batch, item, error).await?;
                return count(tx, "buried", 1).await;
            }
            Then::Retry { delay, error } => {
                count(tx, "retried", 1).await?;
                sqlx::query(
                    "update items set batch = null, attempt = attempt + 1, not_before_ms = ?3, history = ?4, released = 0
                    where batch = ?1 and id = ?2",
                )
                .bind(batch)
                .bind(&item.id)
                .bind(after(*delay))
                .bind(written(&item.history_with(now, error)))
            }
            Then::Defer { delay } => sqlx::query(
                "update items set batch = null, not_before_ms = ?3, released = 0 where batch = ?1 and id = ?2",
            )
            .bind(batch)
            .bind(&item.id)
            .bind(after(*delay)),
            Then::Release => sqlx::query(
                "update items set batch = null, suspect = ?4, released = 1 - ?4, place = ?3
                where batch = ?1 and id = ?2",
            )
            .bind(batch)
            .bind(&item.id)
            .bind(place)
            .bind(item.suspect),
        };
        statement.execute(&mut **tx).await.map_err(failed)?;
        Ok(())
    }

    pub(super) async fn extend(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        let mut tx = self.begin().await?;
        let mut lost = Vec::new();
        for batch in batches {
            let extended = sqlx::query("update leases set deadline_ms = ?2 where batch = ?1")
                .bind(&batch.0)
                .bind(self.world.now_ms() + ms(self.settings.lease))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            if extended.rows_affected() == 0 {
                survived(&mut tx, &batch.0, self.world.now_ms()).await?;
                lost.push(batch.clone());
            }
        }
        tx.commit().await.map_err(failed)?;
        Ok(lost)
    }
}
