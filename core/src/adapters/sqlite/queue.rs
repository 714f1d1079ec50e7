//! The queue on SQLite: the protocol of Redis, each step one transaction; a large call of `enqueue` is several where brands share.
//!
//! A row of `items` is in exactly one state: ready (`batch` null, `not_before_ms` 0), delayed (`batch` null), or held by a
//! batch. Dead letters are rows of `dead`. `leases` is the only record of which batches live. A payload is a row of `bodies`, written
//! once, and stays there until its item or dead letter is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use super::db::{Db, pieces};
use crate::domain::ids::BrandId;
use crate::ports::clock::Clock;
use crate::ports::queue::{
    Acked, Audited, Batch, BatchId, Claim, DeadLetter, DeadPlace, Enqueued, FAIR_EVERY, Failure, Finished,
    Holding, Item, LOST, LOW_STEP, MAX_DEAD_PAGE, MAX_FETCH, MAX_LOSSES, MAX_PROMOTE, MAX_RECLAIM,
    MAX_SURVIVED, NewItem, Outcome, POLL, PUT_BACK, Priority, Queue, QueueError, QueueSettings, QueueStats,
    Reclaimed, STAGED_KEPT, STAGED_TTL, SURVIVED, Scope, Then, Unfinished, claim_name, is_over_share,
    is_staged, leaving, lost_alone, this_process,
};

/// Claims that one enqueue clears away when their time is over.
const CLAIMS_CLEARED: i64 = 100;
/// How long losses are kept.
const LOSSES_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The columns of an item or a dead letter.
const ITEM: &str = "id, enqueued_ms, attempt, suspect, losses, priority, brand, claims, history, body,
    (select payload from bodies where bodies.id = body) as payload";
/// Items, and bytes of payload, of a call that are written in one transaction where brands share the queue: others' writes, and the
/// worker's, go in between.
const WRITTEN_AT_ONCE: (usize, usize) = (250, 256 * 1024);
/// Which items were lost before.
const SUSPECTS: &str = "suspect = 1 order by place";
/// What is ready, by priority.
const READY: [&str; 3] = [
    "suspect = 0 and priority = 0 order by released desc, place",
    "suspect = 0 and priority = 1 order by released desc, place",
    "suspect = 0 and priority = 2 order by released desc, place",
];
/// The counter that every [`FAIR_EVERY`]th fetch is known by.
const FETCHES: &str = "fetches";

type Tx = Transaction<'static, Sqlite>;

/// Items and their bytes.
#[derive(Clone, Copy, Default)]
struct Held {
    items: u64,
    bytes: u64,
}

impl Held {
    fn add(&mut self, items: u64, bytes: u64) {
        self.items += items;
        self.bytes += bytes;
    }
}

/// What is to become of what comes.
#[derive(Default)]
struct Admissions {
    /// Brands that hold their share already, each with the share.
    over: HashSet<(Option<BrandId>, u64)>,
    /// How many items brands hold, with what was let in since.
    hold: HashMap<Option<BrandId>, u64>,
    /// See [`is_shared`].
    shared: bool,
}

impl From<(i64, i64)> for Held {
    fn from((items, bytes): (i64, i64)) -> Self {
        Self { items: positive(items), bytes: positive(bytes) }
    }
}

/// The queue on SQLite.
pub struct SqliteQueue {
    db: Db,
    settings: QueueSettings,
    clock: Arc<dyn Clock>,
    wake: Notify,
}

impl SqliteQueue {
    /// The queue in an open file.
    pub fn new(db: Db, settings: QueueSettings, clock: Arc<dyn Clock>) -> Self {
        Self { db, settings, clock, wake: Notify::new() }
    }

    async fn begin(&self) -> Result<Tx, QueueError> {
        self.db.begin().await.map_err(failed)
    }

    /// What is to become of what comes: a brand may hold so many times the room that stays free. What it may not holds up nobody else.
    async fn admissions(&self, tx: &mut Tx, items: &[NewItem]) -> Result<Admissions, QueueError> {
        let QueueSettings { max_depth, max_bytes, .. } = self.settings;
        let mut come = BTreeMap::<(Option<BrandId>, u64), Held>::new();
        for item in items {
            come.entry((item.brand, item.share())).or_default().add(1, item.payload.len() as u64);
        }
        let brands: Vec<i64> = come.keys().filter_map(|(brand, _)| Some((*brand)?.0)).collect();
        let held: Vec<(Option<i64>, i64, i64, i64)> = sqlx::query_as(
            "select null, coalesce(sum(items), 0), coalesce(sum(bytes), 0), coalesce(sum(used), 0) from shares
            union all select brand, items, bytes, used from shares where brand in (select value from json_each(?1))",
        )
        .bind(json!(brands).to_string())
        .fetch_all(&mut **tx)
        .await
        .map_err(failed)?;
        let shared = held.iter().any(|(brand, .., brands)| brand.is_none() && *brands > 1);
        let held: HashMap<Option<BrandId>, Held> = held
            .into_iter()
            .map(|(brand, items, bytes, _)| (brand.map(BrandId), Held::from((items, bytes))))
            .collect();
        let all = held.get(&None).copied().unwrap_or_default();
        let mut admissions = Admissions { shared, ..Admissions::default() };
        let (mut want, mut largest) = (Held::default(), Held::default());
        for (who @ (brand, times), more) in come {
            let mut would = held.get(&brand).copied().filter(|_| brand.is_some()).unwrap_or_default();
            admissions.hold.insert(brand, would.items);
            would.add(more.items, more.bytes);
            largest = Held { items: largest.items.max(more.items), bytes: largest.bytes.max(more.bytes) };
            if brand.is_some()
                && (is_over_share(times, would.items, all.items + more.items, max_depth)
                    || is_over_share(times, would.bytes, all.bytes + more.bytes, max_bytes))
            {
                admissions.over.insert(who);
            } else {
                want.add(more.items, more.bytes);
            }
        }
        // Where nobody is let in, the largest of them has to fit, or it is the queue that is full.
        let asked = if want.items > 0 { want } else { largest };
        for (held, more, limit, unit) in
            [(all.items, asked.items, max_depth, "items"), (all.bytes, asked.bytes, max_bytes, "bytes")]
        {
            if limit > 0 && held + more > limit {
                return Err(QueueError::Full { holds: held, limit, unit });
            }
        }
        Ok(admissions)
    }

    /// Puts items in, as far as their brands are let in; what they take counts from then on.
    async fn put(
        &self,
        tx: &mut Tx,
        items: &[NewItem],
        admissions: &mut Admissions,
    ) -> Result<Vec<Enqueued>, QueueError> {
        let now = self.clock.now_ms();
        let mut place = next_places(tx, items.len()).await?;
        let mut results = Vec::with_capacity(items.len());
        let mut taken = BTreeMap::<Option<BrandId>, Held>::new();
        let mut accepted: Vec<(String, i64, Priority, &NewItem)> = Vec::with_capacity(items.len());
        for item in items {
            let id = Uuid::now_v7().simple().to_string();
            let is_over = admissions.over.contains(&(item.brand, item.share()));
            let result = self.take_claims(tx, item, &id, now, is_over).await?;
            if result == Enqueued::Accepted {
                taken.entry(item.brand).or_default().add(1, item.payload.len() as u64);
                let (backlog, holds) =
                    (self.settings.backlog, admissions.hold.entry(item.brand).or_default());
                *holds += 1;
                let is_late = item.brand.is_some() && backlog > 0 && *holds > backlog;
                let priority =
                    if is_late && item.priority == Priority::Normal { Priority::Low } else { item.priority };
                accepted.push((id, place, priority, item));
                place += 1;
            }
            results.push(result);
        }
        for piece in pieces(&accepted) {
            let mut insert = QueryBuilder::<Sqlite>::new("insert into bodies (id, payload) ");
            insert.push_values(piece, |mut row, (_, place, _, item)| {
                row.push_bind(place).push_bind(&item.payload[..]);
            });
            insert.build().execute(&mut **tx).await.map_err(failed)?;
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into items (id, place, priority, enqueued_ms, attempt, suspect, losses, not_before_ms, brand, claims, body) ",
            );
            insert.push_values(piece, |mut row, (id, place, priority, item)| {
                let not_before = if item.delay.is_zero() { 0 } else { now.saturating_add(ms(item.delay)) };
                row.push_bind(id)
                    .push_bind(place)
                    .push_bind(priority.index() as i64)
                    .push_bind(now)
                    .push("0, 0, 0")
                    .push_bind(not_before)
                    .push_bind(item.brand.map(|brand| brand.0))
                    .push_bind(
                        item.idempotency.as_ref().map(|known| known.names().join(",")).unwrap_or_default(),
                    )
                    .push_bind(place);
            });
            insert.build().execute(&mut **tx).await.map_err(failed)?;
        }
        for (brand, Held { items, bytes }) in taken {
            add_to_share(tx, brand, signed(items), signed(bytes)).await?;
        }
        let refused = |what| results.iter().filter(|result| **result == what).count();
        count(tx, "enqueued", accepted.len()).await?;
        count(tx, "duplicates", refused(Enqueued::Duplicate)).await?;
        count(tx, "conflicts", refused(Enqueued::Conflict)).await?;
        Ok(results)
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

    async fn take(&self, want: usize) -> Result<Option<Batch>, QueueError> {
        let now = self.clock.now_ms();
        // A look costs no write: an idle worker leaves the disk alone.
        let something: bool = sqlx::query_scalar(
            "select not exists (select 1 from paused) and (
                exists (select 1 from items where batch is null and not_before_ms = 0)
                or exists (select 1 from items where batch is null and not_before_ms > 0 and not_before_ms <= ?1))",
        )
        .bind(now)
        .fetch_one(&self.db.read)
        .await
        .map_err(failed)?;
        if !something {
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
        let id = Uuid::now_v7().simple().to_string();
        let fetches: Option<i64> = sqlx::query_scalar("select value from counters where name = ?1")
            .bind(FETCHES)
            .fetch_optional(&mut *tx)
            .await
            .map_err(failed)?;
        // Every so often the last are first: the lowest priority before the highest, and suspects after all.
        let last_first = (fetches.unwrap_or_default().unsigned_abs() + 1).is_multiple_of(FAIR_EVERY);
        let mut rows = Vec::new();
        if !last_first {
            // what was lost before is taken alone
            rows = hold(&mut tx, &id, 1, SUSPECTS).await?;
        }
        // What has low priority comes by itself. One priority after the other: the index is in this order.
        let turns: [&[usize]; 2] = if last_first { [&[2], &[1, 0]] } else { [&[0, 1], &[2]] };
        for turn in turns {
            if !rows.is_empty() {
                break;
            }
            for priority in turn {
                let is_low = *priority == Priority::Low.index();
                if is_low && is_shared(&mut tx).await? {
                    rows.extend(self.hold_low(&mut tx, &id, want).await?);
                } else if rows.len() < want {
                    rows.extend(hold(&mut tx, &id, want - rows.len(), READY[*priority]).await?);
                }
            }
        }
        if rows.is_empty() && last_first {
            rows = hold(&mut tx, &id, 1, SUSPECTS).await?;
        }
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
            "select exists (select 1 from items where batch is null and not_before_ms = 0)",
        )
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let mut held: Vec<(i64, i64, Item)> = rows
            .iter()
            .map(|row| Ok((row.try_get("released")?, row.try_get("place")?, item(row)?)))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        held.sort_by_key(|(released, place, item)| {
            let priority = i64::try_from(item.priority.index()).unwrap_or_default();
            (if last_first { -priority } else { priority }, -released, *place)
        });
        let items: Vec<Item> = held.into_iter().map(|(.., item)| item).collect();
        if more {
            self.wake.notify_one();
        }
        Ok(Some(Batch { id: BatchId(id), items }))
    }

    /// Remembers the item's idempotency keys, unless one of them is remembered already, or its brand is over its share.
    async fn take_claims(
        &self,
        tx: &mut Tx,
        item: &NewItem,
        id: &str,
        now: i64,
        is_over: bool,
    ) -> Result<Enqueued, QueueError> {
        let fresh = if is_over { Enqueued::OverShare } else { Enqueued::Accepted };
        let Some(known) = &item.idempotency else { return Ok(fresh) };
        sqlx::query("delete from claims where key in (select key from claims where until_ms <= ?1 limit ?2)")
            .bind(now)
            .bind(CLAIMS_CLEARED)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        for key in known.names() {
            let seen: Option<String> =
                sqlx::query_scalar("select digest from claims where key = ?1 and until_ms > ?2")
                    .bind(key)
                    .bind(now)
                    .fetch_optional(&mut **tx)
                    .await
                    .map_err(failed)?;
            match seen {
                Some(digest) if digest == known.digest => return Ok(Enqueued::Duplicate),
                Some(_) => return Ok(Enqueued::Conflict),
                None => {}
            }
        }
        if is_over {
            return Ok(fresh);
        }
        let ttl = known.ttl.unwrap_or(self.settings.claim_ttl);
        for key in known.names() {
            let kept = if is_staged(&key) { ttl.max(STAGED_KEPT) } else { ttl };
            sqlx::query(
                "insert or replace into claims (key, until_ms, digest, item, claimed_ms) values (?1, ?2, ?3, ?4, ?5)",
            )
            .bind(key)
            .bind(now.saturating_add(ms(kept).max(1)))
            .bind(&known.digest)
            .bind(id)
            .bind(now)
            .execute(&mut **tx)
            .await
            .map_err(failed)?;
        }
        Ok(fresh)
    }

    /// Buries an item; a brand's oldest letters make room for it.
    async fn bury(&self, tx: &mut Tx, batch: &str, item: &Item, error: &str) -> Result<(), QueueError> {
        let now = self.clock.now_ms();
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
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        let mut results = Vec::with_capacity(items.len());
        let mut admissions = None;
        while results.len() < items.len() {
            let mut tx = self.begin().await?;
            // For all of the call at once: what is let in is not refused half-way.
            let admissions = match &mut admissions {
                Some(known) => known,
                None => admissions.insert(self.admissions(&mut tx, items).await?),
            };
            let left = &items[results.len()..];
            let count = if admissions.shared { written_at_once(left) } else { left.len() };
            let part = self.put(&mut tx, &left[..count], admissions).await?;
            tx.commit().await.map_err(failed)?;
            self.wake.notify_one();
            results.extend(part);
        }
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

    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        let now = self.clock.now_ms();
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
        for Unfinished { item, then } in unfinished {
            match then {
                Then::Retry { delay, error } => {
                    sqlx::query(
                        "update items set batch = null, attempt = attempt + 1, not_before_ms = ?3, history = ?4,
                            released = 0
                        where batch = ?1 and id = ?2",
                    )
                    .bind(&batch.id.0)
                    .bind(&item.id)
                    .bind(now.saturating_add(ms(*delay).max(1)))
                    .bind(written(&item.history_with(now, error)))
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                    count(&mut tx, "retried", 1).await?;
                }
                Then::Bury { error } => {
                    self.bury(&mut tx, &batch.id.0, item, error).await?;
                    count(&mut tx, "buried", 1).await?;
                }
                Then::Defer { delay } => {
                    sqlx::query(
                        "update items set batch = null, not_before_ms = ?3, released = 0 where batch = ?1 and id = ?2",
                    )
                    .bind(&batch.id.0)
                    .bind(&item.id)
                    .bind(now.saturating_add(ms(*delay).max(1)))
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                }
                Then::Release => {
                    sqlx::query(
                        "update items set batch = null, suspect = ?4, released = 1 - ?4, place = ?3
                        where batch = ?1 and id = ?2",
                    )
                    .bind(&batch.id.0)
                    .bind(&item.id)
                    .bind(place)
                    .bind(item.suspect)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                    place += 1;
                }
            }
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

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        let mut tx = self.begin().await?;
        let mut lost = Vec::new();
        for batch in batches {
            let extended = sqlx::query("update leases set deadline_ms = ?2 where batch = ?1")
                .bind(&batch.0)
                .bind(self.clock.now_ms() + ms(self.settings.lease))
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
            if extended.rows_affected() == 0 {
                survived(&mut tx, &batch.0, self.clock.now_ms()).await?;
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
            let rows = sqlx::query(AssertSqlSafe(format!(
                "select {ITEM} from items where batch = ?1 order by priority, released desc, place"
            )))
            .bind(&batch)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
            let items: Vec<Item> = rows.iter().map(item).collect::<Result<_, _>>().map_err(failed)?;
            let alone = items.len() == 1;
            let mut place = next_places(&mut tx, items.len()).await?;
            for mut item in items {
                item.suspect = true;
                let mut in_all = 0;
                if alone {
                    (item.losses, in_all) = lose(&mut tx, &item.id, &batch, now).await?;
                }
                sqlx::query("update items set suspect = 1, losses = ?3 where batch = ?1 and id = ?2")
                    .bind(&batch)
                    .bind(&item.id)
                    .bind(item.losses)
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                if item.losses >= MAX_LOSSES || in_all >= MAX_SURVIVED {
                    add_to_share(&mut tx, item.brand, -1, -signed(item.payload.len() as u64)).await?;
                    self.bury(&mut tx, &batch, &item, &lost_alone()).await?;
                    sqlx::query("update dead set lost = ?2 where id = ?1")
                        .bind(&item.id)
                        .bind(in_all < MAX_SURVIVED)
                        .execute(&mut *tx)
                        .await
                        .map_err(failed)?;
                    done.buried += 1;
                } else {
                    sqlx::query(
                        "update items set batch = null, released = 0, place = ?3, history = ?4
                        where batch = ?1 and id = ?2",
                    )
                    .bind(&batch)
                    .bind(&item.id)
                    .bind(place)
                    .bind(written(&item.history_with(now, LOST)))
                    .execute(&mut *tx)
                    .await
                    .map_err(failed)?;
                    place += 1;
                    done.returned += 1;
                }
            }
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
            oldest_age_ms: oldest.map_or(0, |at| positive(self.clock.now_ms() - at)),
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

    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        let row = sqlx::query(AssertSqlSafe(format!("select {ITEM}, buried_ms from dead where id = ?1")))
            .bind(id)
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.as_ref().map(dead_letter).transpose().map_err(failed)
    }

    async fn retry_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        let now = self.clock.now_ms();
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

    async fn discard_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        let now = self.clock.now_ms();
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

    async fn drop_dead(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError> {
        let now = self.clock.now_ms();
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
                .bind(self.clock.now_ms())
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
            .bind(self.clock.now_ms())
            .fetch_optional(&self.db.read)
            .await
            .map_err(failed)?;
        row.as_ref().map(claim).transpose().map_err(failed)
    }

    async fn audit(&self) -> Result<Audited, QueueError> {
        let now = self.clock.now_ms();
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
        Ok(Audited { strays: strays as u64, repaired: 0 })
    }

    fn lease(&self) -> Duration {
        self.settings.lease
    }
}

/// How many of these items are written in one transaction: at least one.
fn written_at_once(items: &[NewItem]) -> usize {
    let (most, most_bytes) = WRITTEN_AT_ONCE;
    let mut bytes = 0;
    let fit = items.iter().take(most).take_while(|item| {
        bytes += item.payload.len();
        bytes <= most_bytes
    });
    fit.count().max(1)
}

/// The first of so many places behind all others.
async fn next_places(tx: &mut Tx, count: usize) -> Result<i64, QueueError> {
    let last: i64 =
        sqlx::query_scalar("update counters set value = value + ?1 where name = 'place' returning value")
            .bind(i64::try_from(count).unwrap_or_default())
            .fetch_one(&mut **tx)
            .await
            .map_err(failed)?;
    Ok(last - i64::try_from(count).unwrap_or_default() + 1)
}

/// Makes what is due pending, behind what waits.
async fn promote(tx: &mut Tx, now: i64) -> Result<(), QueueError> {
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
async fn hold(
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

/// Adds to what a brand holds.
async fn add_to_share(tx: &mut Tx, brand: Option<BrandId>, items: i64, bytes: i64) -> Result<(), QueueError> {
    sqlx::query(
        "insert into shares (brand, items, bytes, used) values (?1, ?2, ?3, 1)
        on conflict (brand) do update set items = items + excluded.items, bytes = bytes + excluded.bytes, used = 1",
    )
    .bind(number(brand))
    .bind(items)
    .bind(bytes)
    .execute(&mut **tx)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Adds to what a brand has of dead letters; answers how many there are, and their bytes.
async fn add_to_dead(
    tx: &mut Tx,
    brand: Option<BrandId>,
    letters: i64,
    bytes: i64,
) -> Result<(u64, u64), QueueError> {
    let held: (i64, i64) = sqlx::query_as(
        "insert into shares (brand, dead, dead_bytes) values (?1, ?2, ?3)
        on conflict (brand) do update set dead = dead + excluded.dead, dead_bytes = dead_bytes + excluded.dead_bytes
        returning dead, dead_bytes",
    )
    .bind(number(brand))
    .bind(letters)
    .bind(bytes)
    .fetch_one(&mut **tx)
    .await
    .map_err(failed)?;
    Ok((positive(held.0), positive(held.1)))
}

/// A dead letter that was taken out.
struct Exhumed {
    item: Item,
    /// Where its payload still is.
    body: i64,
    /// How many dead letters its brand has left, and their bytes.
    left: (u64, u64),
}

/// Takes a dead letter out, where there is one of that id; its payload stays.
async fn exhume(tx: &mut Tx, id: &str) -> Result<Option<Exhumed>, QueueError> {
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
async fn put_back(tx: &mut Tx, letter: &Exhumed, place: i64) -> Result<(), QueueError> {
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

/// Notes a loss that an item suffered alone; answers how many count against it, and how many it suffered in all. Those of a day ago are
/// forgotten.
async fn lose(tx: &mut Tx, item: &str, batch: &str, now: i64) -> Result<(u32, u32), QueueError> {
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

async fn losses(tx: &mut Tx, item: &str) -> Result<(u32, u32), QueueError> {
    sqlx::query_as("select count(*) filter (where survived = 0), count(*) from losses where item = ?1")
        .bind(item)
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)
}

/// Whoever asks for a batch after it was lost lives: the loss was the worker's, and counts no more against the item. An item that was
/// buried for it comes back.
async fn survived(tx: &mut Tx, batch: &str, now: i64) -> Result<(), QueueError> {
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

/// Ends a dead letter, where there is one of that id; answers what its brand has left.
async fn discard(tx: &mut Tx, id: &str, now: i64) -> Result<Option<(u64, u64)>, QueueError> {
    let Some(Exhumed { item, body, left }) = exhume(tx, id).await? else { return Ok(None) };
    sqlx::query("delete from bodies where id = ?1").bind(body).execute(&mut **tx).await.map_err(failed)?;
    finish(tx, id, &item.claims.join(","), Outcome::Discarded, now).await?;
    Ok(Some(left))
}

/// Drops a dead letter for want of room or because it is old; answers what its brand has left.
async fn drop_letter(tx: &mut Tx, id: &str, now: i64) -> Result<Option<(u64, u64)>, QueueError> {
    let left = discard(tx, id, now).await?;
    count(tx, "dropped", usize::from(left.is_some())).await?;
    Ok(left)
}

/// Whether more than one brand has put something in since the queue was last found empty.
async fn is_shared(tx: &mut Tx) -> Result<bool, QueueError> {
    sqlx::query_scalar("select count(*) > 1 from shares where used = 1")
        .fetch_one(&mut **tx)
        .await
        .map_err(failed)
}

fn number(brand: Option<BrandId>) -> i64 {
    brand.map_or(0, |brand| brand.0)
}

fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Writes how an item ended beside its claims, where they are still its own.
async fn finish(tx: &mut Tx, id: &str, claims: &str, outcome: Outcome, now: i64) -> Result<(), QueueError> {
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
    let (claims, history): (String, String) = (row.try_get("claims")?, row.try_get("history")?);
    Ok(Item {
        id: row.try_get("id")?,
        enqueued_ms: row.try_get("enqueued_ms")?,
        attempt: row.try_get("attempt")?,
        suspect: row.try_get("suspect")?,
        losses: row.try_get("losses")?,
        priority: Priority::at(usize::try_from(row.try_get::<i64, _>("priority")?).unwrap_or(usize::MAX)),
        brand: row.try_get::<Option<i64>, _>("brand")?.map(BrandId),
        claims: claims.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        history: match history.as_str() {
            "[]" => Vec::new(),
            text => serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))?,
        },
        payload: Bytes::from(row.try_get::<Vec<u8>, _>("payload")?),
    })
}

fn dead_letter(row: &SqliteRow) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter { item: item(row)?, buried_ms: row.try_get("buried_ms")? })
}

fn claim(row: &SqliteRow) -> Result<Claim, sqlx::Error> {
    let outcome: Option<String> = row.try_get("outcome")?;
    let finished = match outcome.as_deref().and_then(Outcome::parse) {
        Some(outcome) => {
            Some(Finished { at_ms: row.try_get("finished_ms")?, outcome, by: row.try_get("by")? })
        }
        None => None,
    };
    Ok(Claim {
        item: row.try_get("item")?,
        digest: row.try_get("digest")?,
        claimed_ms: row.try_get("claimed_ms")?,
        finished,
    })
}

fn written(history: &[Failure]) -> String {
    // Numbers and texts: writing them to memory cannot fail.
    serde_json::to_string(history).expect("a history is always JSON")
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

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use sqlx::{ConnectOptions, Connection};

    use super::*;
    use crate::ports::clock::SystemClock;

    #[tokio::test]
    async fn what_an_older_version_left_is_served_with_its_payload() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let mut before = sqlx::migrate!("migrations/sqlite_queue");
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
        let queue = SqliteQueue::new(db.clone(), QueueSettings::default(), Arc::new(SystemClock));
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
