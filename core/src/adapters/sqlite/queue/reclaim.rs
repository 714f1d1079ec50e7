//! Batches whose lease ran out, and the losses of items.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::dead::{exhume, put_back};
use super::enqueue::next_places;
use super::rows::{ITEM, failed, item, ms, signed, written};
use super::shares::{add_to_share, count};
use super::{SqliteQueue, Tx};
use crate::ports::queue::{
    Item, LOST, MAX_LOSSES, MAX_RECLAIM, MAX_SURVIVED, QueueError, Reclaimed, Repaired, SURVIVED, lost_alone,
};

/// How long losses are kept.
pub(super) const LOSSES_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Notes a loss that an item suffered alone; answers how many count against it, and how many it suffered in all. Those of a day ago are
/// forgotten.
pub(super) async fn lose(tx: &mut Tx, item: &str, batch: &str, now: i64) -> Result<(u32, u32), QueueError> {
    sqlx::query("delete from losses where at_ms < ?1")
        .bind(now.saturating_sub(ms(LOSSES_TTL)))
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    sqlx::query("insert or ignore into losses (batch, item, at_ms) values (?1, ?2, ?3)")
        .bind(batch)
        .bind(item)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    losses(tx, item).await
}

pub(super) async fn losses(tx: &mut Tx, item: &str) -> Result<(u32, u32), QueueError> {
    sqlx::query_as("select count(*) filter (where survived = 0), count(*) from losses where item = ?1")
        .bind(item)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)
}

/// Whoever asks for a batch after it was lost lives: the loss was the worker's, and counts no more against the item. An item that was
/// buried for it comes back.
pub(super) async fn survived(tx: &mut Tx, batch: &str, now: i64) -> Result<(), QueueError> {
    let item: Option<String> =
        sqlx::query_scalar("update losses set survived = 1 where batch = ?1 and survived = 0 returning item")
            .bind(batch)
            .fetch_optional(&mut **tx)
            .await
            .map_err(failed)?;
    let Some(id) = item else { return Ok(()) };
    let buried: bool = sqlx::query_scalar("select exists (select 1 from dead where id = ?1 and lost = 1)")
        .bind(&id)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)?;
    if !buried {
        return Ok(());
    }
    let Some(mut letter) = exhume(tx, &id).await? else { return Ok(()) };
    (letter.item.losses, _) = losses(tx, &id).await?;
    letter.item.history = letter.item.history_with(now, SURVIVED);
    let place = next_places(tx, 1).await?;
    put_back(tx, &letter, place).await
}

impl SqliteQueue {
    pub(super) async fn reclaim_expired(&self) -> Result<Reclaimed, QueueError> {
        let now = self.world.now_ms();
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
        let batches: Vec<String> = sqlx::query_scalar(
            "select batch from leases where deadline_ms <= ?1 order by deadline_ms, batch limit ?2",
        )
        .bind(now)
        .bind(MAX_RECLAIM as i64)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        let mut done = Reclaimed::default();
        for batch in batches {
            self.reclaim_batch(&mut tx, &batch, &mut done).await?;
            sqlx::query("delete from leases where batch = ?1")
                .bind(&batch)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        }
        count(&mut tx, "reclaimed", usize::try_from(done.returned).unwrap_or_default()).await?;
        count(&mut tx, "buried", usize::try_from(done.buried).unwrap_or_default()).await?;
        tx.commit().await.map_err(failed)?;
        self.wake.notify_one();
        Ok(done)
    }

    /// Gives a batch's items back; one that was lost alone too often is buried.
    async fn reclaim_batch(&self, tx: &mut Tx, batch: &str, done: &mut Reclaimed) -> Result<(), QueueError> {
        let now = self.world.now_ms();
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ITEM} from items where batch = ?1 order by priority, released desc, place"
        )))
        .bind(batch)
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let items: Vec<Item> = rows.iter().map(item).collect::<Result<_, _>>().map_err(failed)?;
        let alone = items.len() == 1;
        let mut place = next_places(tx, items.len()).await?;
        for mut item in items {
            item.suspect = true;
            let mut in_all = 0;
            if alone {
                (item.losses, in_all) = lose(tx, &item.id, batch, now).await?;
            }
            sqlx::query("update items set suspect = 1, losses = ?3 where batch = ?1 and id = ?2")
                .bind(batch)
                .bind(&item.id)
                .bind(item.losses)
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
            if item.losses >= MAX_LOSSES || in_all >= MAX_SURVIVED {
                add_to_share(tx, item.brand, -1, -signed(item.payload.len() as u64)).await?;
                self.bury(tx, batch, &item, &lost_alone()).await?;
                sqlx::query("update dead set lost = ?2 where id = ?1")
                    .bind(&item.id)
                    .bind(in_all < MAX_SURVIVED)
                    .execute(&mut **tx)
                    .await
                    .map_err(failed)?;
                done.buried += 1;
            } else {
                sqlx::query(
                    "update items set batch = null, released = 0, place = ?3, history = ?4
                    where batch = ?1 and id = ?2",
                )
                .bind(batch)
                .bind(&item.id)
                .bind(place)
                .bind(written(&item.history_with(now, LOST)))
                .execute(&mut **tx)
                .await
                .map_err(failed)?;
                place += 1;
                done.returned += 1;
            }
        }
        Ok(())
    }

    pub(super) async fn repair_strays(&self) -> Result<Repaired, QueueError> {
        let now = self.world.now_ms();
        let mut tx = self.begin().await?;
        let strays = sqlx::query_scalar::<_, i64>(
            "select count(*) from items where batch is not null and batch not in (select batch from leases)",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        if strays > 0 {
            sqlx::query(
                "insert into leases (batch, deadline_ms) select distinct batch, ?1 from items
                where batch is not null and batch not in (select batch from leases)",
            )
            .bind(now)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        }
        sqlx::query("update shares set used = 0 where not exists (select 1 from items) and not exists (select 1 from leases)")
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let strays = usize::try_from(strays).unwrap_or_default();
        count(&mut tx, "strays", strays).await?;
        tx.commit().await.map_err(failed)?;
        Ok(Repaired { strays: strays as u64, repaired: 0 })
    }
}
