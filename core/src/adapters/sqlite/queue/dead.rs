//! Dead letters.

use sqlx::{AssertSqlSafe, Row};

use super::enqueue::next_places;
use super::rows::{ITEM, dead_letter, failed, item, ms, signed, written};
use super::shares::{add_to_dead, add_to_share, count};
use super::{SqliteQueue, Tx};
use crate::domain::ids::BrandId;
use crate::ports::queue::{
    DeadLetter, DeadPlace, Item, MAX_DEAD_PAGE, Outcome, PUT_BACK, QueueError, STAGED_TTL, Scope, is_staged,
    this_process,
};

/// A dead letter that was taken out.
pub(super) struct Exhumed {
    pub(super) item: Item,
    /// Where its payload still is.
    body: i64,
    /// How many dead letters its brand has left, and their bytes.
    left: (u64, u64),
}

/// Takes a dead letter out, where there is one of that id; its payload stays.
pub(super) async fn exhume(tx: &mut Tx, id: &str) -> Result<Option<Exhumed>, QueueError> {
    let row = sqlx::query(AssertSqlSafe(format!("delete from dead where id = ?1 returning {ITEM}")))
        .bind(id)
        .fetch_optional(&mut **tx)
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let item = item(&row).map_err(failed)?;
    let history: String = row.try_get("history").map_err(failed)?;
    let bytes = i64::try_from(item.payload.len() + history.len()).unwrap_or(i64::MAX);
    let left = add_to_dead(tx, item.brand, -1, -bytes).await?;
    Ok(Some(Exhumed { item, body: row.try_get("body").map_err(failed)?, left }))
}

/// Puts a dead letter that was taken out back to pending, as it is, at a place.
pub(super) async fn put_back(tx: &mut Tx, letter: &Exhumed, place: i64) -> Result<(), QueueError> {
    let Exhumed { item, body, .. } = letter;
    sqlx::query(
        "insert into items (id, place, priority, enqueued_ms, attempt, suspect, losses, not_before_ms, claims,
            history, body, brand)
        values (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, ?8, ?9, ?10, ?11)",
    )
    .bind(&item.id)
    .bind(place)
    .bind(item.priority.index() as i64)
    .bind(item.enqueued_ms)
    .bind(item.attempt)
    .bind(item.suspect)
    .bind(item.losses)
    .bind(item.claims.join(","))
    .bind(written(&item.history))
    .bind(body)
    .bind(item.brand.map(|brand| brand.0))
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    add_to_share(tx, item.brand, 1, signed(item.payload.len() as u64)).await
}

/// Ends a dead letter, where there is one of that id; answers what its brand has left.
pub(super) async fn discard(tx: &mut Tx, id: &str, now: i64) -> Result<Option<(u64, u64)>, QueueError> {
    let Some(Exhumed { item, body, left }) = exhume(tx, id).await? else { return Ok(None) };
    sqlx::query("delete from bodies where id = ?1").bind(body).execute(&mut **tx).await.map_err(failed)?;
    finish(tx, id, &item.claims.join(","), Outcome::Discarded, now).await?;
    Ok(Some(left))
}

/// Drops a dead letter for want of room or because it is old; answers what its brand has left.
pub(super) async fn drop_letter(tx: &mut Tx, id: &str, now: i64) -> Result<Option<(u64, u64)>, QueueError> {
    let left = discard(tx, id, now).await?;
    count(tx, "dropped", usize::from(left.is_some())).await?;
    Ok(left)
}

/// Writes how an item ended beside its claims, where they are still its own.
pub(super) async fn finish(
    tx: &mut Tx,
    id: &str,
    claims: &str,
    outcome: Outcome,
    now: i64,
) -> Result<(), QueueError> {
    for name in claims.split(',').filter(|name| !name.is_empty()) {
        sqlx::query(
            "update claims set finished_ms = ?3, outcome = ?4, by = ?5, until_ms = min(until_ms, ?6)
            where key = ?1 and item = ?2",
        )
        .bind(name)
        .bind(id)
        .bind(now)
        .bind(outcome.as_str())
        .bind(this_process())
        .bind(if is_staged(name) { now.saturating_add(ms(STAGED_TTL)) } else { i64::MAX })
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

impl SqliteQueue {
    /// Buries an item; a brand's oldest letters make room for it.
    pub(super) async fn bury(
        &self,
        tx: &mut Tx,
        batch: &str,
        item: &Item,
        error: &str,
    ) -> Result<(), QueueError> {
        let now = self.world.now_ms();
        let history = written(&item.history_with(now, error));
        sqlx::query(
            "insert into dead (id, priority, enqueued_ms, attempt, suspect, losses, brand, claims, history, buried_ms, body)
            select id, priority, enqueued_ms, attempt, suspect, losses, brand, claims, ?3, ?4, body from items
            where batch = ?1 and id = ?2",
        )
        .bind(batch)
        .bind(&item.id)
        .bind(&history)
        .bind(now)
        .execute(&mut **tx)
        .await
        .map_err(failed)?;
        sqlx::query("delete from items where batch = ?1 and id = ?2")
            .bind(batch)
            .bind(&item.id)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        finish(tx, &item.id, &item.claims.join(","), Outcome::Dead, now).await?;
        let bytes = item.payload.len() + history.len();
        let (mut letters, mut held) =
            add_to_dead(tx, item.brand, 1, i64::try_from(bytes).unwrap_or(i64::MAX)).await?;
        while letters > 1 && (letters > self.settings.max_dead || held > self.settings.max_dead_bytes) {
            let oldest: Option<String> =
                sqlx::query_scalar("select id from dead where brand is ?1 order by buried_ms, id limit 1")
                    .bind(item.brand.map(|brand| brand.0))
                    .fetch_optional(&mut **tx)
                    .await
                    .map_err(failed)?;
            let Some(oldest) = oldest else { break };
            (letters, held) = drop_letter(tx, &oldest, now).await?.unwrap_or_default();
        }
        Ok(())
    }

    pub(super) async fn list_dead(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        // two texts, so that each has its index
        let (of, brand) = match of {
            Scope::All => ("?4 is null", None),
            Scope::Brand(brand) => ("brand is ?4", Some(brand.0)),
            Scope::Nobody => ("brand is ?4", None),
        };
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ITEM}, buried_ms from dead where {of} and (?1 is null or (buried_ms, id) < (?1, ?2))
            order by buried_ms desc, id desc limit ?3"
        )))
        .bind(after.map(|place| place.buried_ms))
        .bind(after.map(|place| place.id.as_str()))
        .bind(limit.clamp(1, MAX_DEAD_PAGE) as i64)
        .bind(brand)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(dead_letter).collect::<Result<_, _>>().map_err(failed)
    }

    pub(super) async fn find_dead(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        let row = sqlx::query(AssertSqlSafe(format!("select {ITEM}, buried_ms from dead where id = ?1")))
            .bind(id)
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.as_ref().map(dead_letter).transpose().map_err(failed)
    }

    pub(super) async fn retry_letters(&self, ids: &[String]) -> Result<u64, QueueError> {
        let now = self.world.now_ms();
        let mut tx = self.begin().await?;
        let mut place = next_places(&mut tx, ids.len()).await?;
        let mut back = 0;
        for id in ids.iter().take(MAX_DEAD_PAGE) {
            let Some(mut letter) = exhume(&mut tx, id).await? else { continue };
            (letter.item.attempt, letter.item.losses) = (0, 0);
            letter.item.history = letter.item.history_with(now, PUT_BACK);
            sqlx::query("delete from losses where item = ?1")
                .bind(id)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            put_back(&mut tx, &letter, place).await?;
            place += 1;
            back += 1;
        }
        tx.commit().await.map_err(failed)?;
        self.wake.notify_one();
        Ok(back)
    }

    pub(super) async fn discard_letters(&self, ids: &[String]) -> Result<u64, QueueError> {
        let now = self.world.now_ms();
        let mut tx = self.begin().await?;
        let mut discarded = 0;
        for id in ids.iter().take(MAX_DEAD_PAGE) {
            if discard(&mut tx, id, now).await?.is_some() {
                discarded += 1;
            }
        }
        count(&mut tx, "discarded", discarded).await?;
        tx.commit().await.map_err(failed)?;
        Ok(discarded as u64)
    }

    pub(super) async fn drop_letters(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError> {
        let now = self.world.now_ms();
        let mut tx = self.begin().await?;
        let old: Vec<String> = sqlx::query_scalar(
            "select id from dead where brand is ?1 and buried_ms < ?2 order by buried_ms, id limit ?3",
        )
        .bind(of.map(|brand| brand.0))
        .bind(before_ms)
        .bind(MAX_DEAD_PAGE as i64)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        for id in &old {
            drop_letter(&mut tx, id, now).await?;
        }
        tx.commit().await.map_err(failed)?;
        Ok(old.len() as u64)
    }
}
