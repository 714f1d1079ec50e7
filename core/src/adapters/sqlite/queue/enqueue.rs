//! Enqueueing: who is let in, idempotency keys, and writing.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;
use sqlx::{QueryBuilder, Sqlite};

use super::super::db::pieces;
use super::rows::{failed, ms, signed};
use super::shares::{Held, add_to_share, count};
use super::{SqliteQueue, Tx};
use crate::domain::ids::BrandId;
use crate::ports::queue::{
    Enqueued, NewItem, Priority, QueueError, QueueSettings, STAGED_KEPT, is_over_share, is_staged,
};

/// Claims that one enqueue clears away when their time is over.
pub(super) const CLAIMS_CLEARED: i64 = 100;

/// Items, and bytes of payload, of a call that are written in one transaction where brands share the queue: others' writes, and the
/// worker's, go in between.
pub(super) const WRITTEN_AT_ONCE: (usize, usize) = (250, 256 * 1024);

/// What is to become of what comes.
#[derive(Default)]
pub(super) struct Admissions {
    /// Brands that hold their share already, each with the share.
    over: HashSet<(Option<BrandId>, u64)>,
    /// How many items brands hold, with what was let in since.
    hold: HashMap<Option<BrandId>, u64>,
    /// See `shares::is_shared`.
    shared: bool,
}

/// How many of these items are written in one transaction: at least one.
pub(super) fn written_at_once(items: &[NewItem]) -> usize {
    let (most, most_bytes) = WRITTEN_AT_ONCE;
    let mut bytes = 0;
    let fit = items.iter().take(most).take_while(|item| {
        bytes += item.payload.len();
        bytes <= most_bytes
    });
    fit.count().max(1)
}

/// The first of so many places behind all others.
pub(super) async fn next_places(tx: &mut Tx, count: usize) -> Result<i64, QueueError> {
    let last: i64 =
        sqlx::query_scalar("update counters set value = value + ?1 where name = 'place' returning value")
            .bind(i64::try_from(count).unwrap_or_default())
            .fetch_one(&mut **tx)
            .await
            .map_err(failed)?;
    Ok(last - i64::try_from(count).unwrap_or_default() + 1)
}

impl SqliteQueue {
    pub(super) async fn enqueue_all(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
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
        let now = self.world.now_ms();
        let mut place = next_places(tx, items.len()).await?;
        let mut results = Vec::with_capacity(items.len());
        let mut taken = BTreeMap::<Option<BrandId>, Held>::new();
        let mut accepted: Vec<(String, i64, Priority, &NewItem)> = Vec::with_capacity(items.len());
        for item in items {
            let id = self.world.id().simple().to_string();
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
}
