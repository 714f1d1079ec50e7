//! The queue on Redis, on lists or on streams. The protocol's steps are the scripts beside this file, written once; the
//! two layouts are what the steps are written in.

mod dead;
mod reply;
mod scripts;
mod wait;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, Script, Value, from_redis_value};
use tokio::sync::Mutex;

use self::reply::{byte_strings, failed, json, page, read_claim, unexpected};
use self::scripts::Scripts;
use super::client::{RedisClient, RedisStartError};
use super::element;
use super::keys::{Layout, QueueKeys};
use super::{escaped, ms, ttl_ms};
use crate::domain::ids::BrandId;
use crate::ports::queue::{
    Acked, Batch, BatchId, Claim, DeadLetter, DeadPlace, Enqueued, FAIR_EVERY, Holding, Item, LOST, LOW_STEP,
    MAX_DEAD_PAGE, MAX_FETCH, MAX_LOSSES, MAX_PROMOTE, MAX_RECLAIM, MAX_SURVIVED, NewItem, PUT_BACK, Queue,
    QueueError, QueueSettings, QueueStats, Reclaimed, Repaired, SURVIVED, Scope, Then, Unfinished,
    claim_name, leaving, lost_alone, this_process,
};
use crate::ports::world::World;

/// Keys that one step of the repair's SCAN looks at.
const SCAN_COUNT: usize = 1000;

/// The queue on Redis.
pub struct RedisQueue {
    redis: RedisClient,
    layout: Layout,
    keys: QueueKeys,
    settings: QueueSettings,
    world: World,
    /// Redis' own clock is the queue's, except in tests that own the time.
    clock_is_given: bool,
    scripts: Scripts,
    /// Waiters take turns on it: whoever holds it is the one that blocks.
    waiting: Mutex<Option<MultiplexedConnection>>,
    /// Batches that were asked for by a call without an answer.
    in_doubt: StdMutex<Vec<String>>,
}

impl RedisQueue {
    /// The queue `name` on `redis`.
    pub fn new(
        redis: RedisClient,
        name: &str,
        layout: Layout,
        settings: QueueSettings,
        world: World,
    ) -> Self {
        let keys = QueueKeys::new(redis.space(), name, layout);
        let settings = settings.within(redis.max_memory());
        let scripts = Scripts::of(layout, str::to_owned);
        Self {
            redis,
            layout,
            keys,
            settings,
            world,
            clock_is_given: false,
            scripts,
            waiting: Mutex::new(None),
            in_doubt: StdMutex::default(),
        }
    }

    /// Refuses to start where items lie in the other layout: nobody would ever fetch them.
    ///
    /// # Errors
    /// [`RedisStartError::OtherLayout`], or Redis' own.
    pub async fn refuse_other_layout(&self, name: &str) -> Result<(), RedisStartError> {
        let other = self.layout.other();
        let keys = QueueKeys::new(self.redis.space(), name, other);
        let mut connection = self.redis.shared();
        let mut items: u64 = 0;
        for place in keys.places() {
            let length = if other == Layout::Lists { "LLEN" } else { "XLEN" };
            items += Cmd::new().arg(length).arg(place).query_async::<u64>(&mut connection).await?;
        }
        items += Cmd::new().arg("ZCARD").arg(keys.leases()).query_async::<u64>(&mut connection).await?;
        if items == 0 {
            return Ok(());
        }
        Err(RedisStartError::OtherLayout { asked: self.layout.as_str(), holds: other.as_str() })
    }

    /// For tests: the clock that was given is the queue's, instead of Redis'.
    #[doc(hidden)]
    pub fn on_given_clock(self) -> Self {
        Self { clock_is_given: true, ..self }
    }

    /// For tests that take a guard out of the scripts, to see that its absence is noticed.
    #[doc(hidden)]
    pub fn with_scripts_edited(self, edit: impl Fn(&str) -> String) -> Self {
        Self { scripts: Scripts::of(self.layout, edit), ..self }
    }

    pub fn keys(&self) -> &QueueKeys {
        &self.keys
    }

    /// Runs a step and reads its answer.
    async fn run<T: FromRedisValue>(
        &self,
        step: &Script,
        args: impl FnOnce(&mut Cmd),
    ) -> Result<T, QueueError> {
        from_redis_value(self.run_raw(step, args).await?).map_err(unexpected)
    }

    async fn run_raw(&self, step: &Script, args: impl FnOnce(&mut Cmd)) -> Result<Value, QueueError> {
        let run = self.redis.run(step, self.keys.all(), |command| {
            command.arg(self.keys.tag()).arg(this_process());
            match self.clock_is_given {
                true => command.arg(self.world.now_ms()),
                false => command.arg(""),
            };
            args(command);
        });
        run.await.map_err(failed)
    }

    async fn take(&self, want: usize) -> Result<Option<Batch>, QueueError> {
        // A batch may have been taken by a call whose answer was lost: it is asked for again, not left to the end of its lease.
        let asked_before = self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(id) = asked_before
            && let Some(batch) = self.take_as(id, want, true).await?
        {
            return Ok(Some(batch));
        }
        self.take_as(self.world.id().simple().to_string(), want, false).await
    }

    async fn take_as(&self, id: String, want: usize, in_doubt: bool) -> Result<Option<Batch>, QueueError> {
        let answer = self
            .run_raw(&self.scripts.fetch, |command| {
                let lease = ms(self.settings.lease);
                command.arg(want).arg(lease).arg(&id).arg(MAX_PROMOTE).arg(FAIR_EVERY);
                command.arg(self.settings.low_batch).arg(self.settings.low_bytes).arg(LOW_STEP);
                command.arg(u8::from(in_doubt)).arg(json(SURVIVED));
            })
            .await
            .inspect_err(|_| {
                self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
            })?;
        let elements = byte_strings(answer)?;
        if elements.is_empty() {
            return Ok(None);
        }
        let mut items = Vec::with_capacity(elements.len());
        let mut foreign = Vec::new();
        for bytes in elements {
            match element::read(&bytes) {
                Some(item) => items.push(item),
                // Not ours, and not to be lost: it goes to the dead letters whole.
                None => foreign.push(Unfinished {
                    item: self.fresh(&NewItem { payload: bytes, ..NewItem::default() }),
                    then: Then::Bury { error: "not an item of this queue".into() },
                }),
            }
        }
        let batch = Batch { id: BatchId(id), items };
        if !foreign.is_empty() {
            // The good neighbours go back as they were; the next fetch has them without the stranger.
            foreign.extend(
                batch.items.iter().map(|item| Unfinished { item: item.clone(), then: Then::Release }),
            );
            self.ack(&batch, &foreign).await?;
            return Ok(None);
        }
        Ok(Some(batch))
    }

    fn fresh(&self, item: &NewItem) -> Item {
        Item {
            id: self.world.id().simple().to_string(),
            enqueued_ms: self.world.now_ms(),
            attempt: 0,
            suspect: false,
            losses: 0,
            priority: item.priority,
            brand: item.brand,
            claims: item.idempotency.as_ref().map(|known| known.names()).unwrap_or_default(),
            history: Vec::new(),
            payload: item.payload.clone(),
        }
    }

    /// Batches that hold items, leased or not.
    async fn batches(&self) -> Result<Vec<String>, QueueError> {
        let mut connection = self.redis.shared();
        let mut found = BTreeSet::new();
        match self.layout {
            Layout::Lists => {
                let prefix = self.keys.batch("");
                let mut cursor = 0_u64;
                loop {
                    let mut command = Cmd::new();
                    command.arg("SCAN").arg(cursor).arg("MATCH").arg(format!("{}*", escaped(&prefix)));
                    command.arg("COUNT").arg(SCAN_COUNT);
                    let (next, keys): (u64, Vec<String>) =
                        command.query_async(&mut connection).await.map_err(failed)?;
                    found.extend(keys.into_iter().map(|key| key[prefix.len()..].to_owned()));
                    if next == 0 {
                        break;
                    }
                    cursor = next;
                }
            }
            Layout::Streams => {
                for place in self.keys.places() {
                    let mut command = Cmd::new();
                    command.arg("XINFO").arg("CONSUMERS").arg(place).arg("workers");
                    let consumers: Vec<HashMap<String, Value>> =
                        match command.query_async(&mut connection).await {
                            Ok(consumers) => consumers,
                            // No stream, or no group yet: nothing has been fetched.
                            Err(error) if !error.is_io_error() && !error.is_timeout() => continue,
                            Err(error) => return Err(failed(error)),
                        };
                    let names =
                        consumers.into_iter().filter_map(|mut of| from_redis_value(of.remove("name")?).ok());
                    found.extend(names.collect::<Vec<String>>());
                }
            }
        }
        Ok(found.into_iter().collect())
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let answer: Vec<i64> = self
            .run(&self.scripts.enqueue, |command| {
                command.arg(self.settings.max_depth).arg(self.settings.max_bytes).arg(self.settings.backlog);
                for item in items {
                    let fresh = self.fresh(item);
                    let known = item.idempotency.as_ref();
                    let ttl = known.and_then(|known| known.ttl).unwrap_or(self.settings.claim_ttl);
                    command
                        .arg(item.priority.index() + 1)
                        .arg(ms(item.delay))
                        .arg(ttl_ms(ttl))
                        .arg(known.map_or("-", |known| &known.digest))
                        .arg(element::claims(&fresh.claims))
                        .arg(element::brand(item.brand))
                        .arg(item.share())
                        .arg(item.payload.len())
                        .arg(element::write(&fresh));
                }
            })
            .await?;
        match answer.split_first() {
            Some((-1, refused)) => {
                let mut results = vec![Enqueued::Accepted; items.len()];
                for code in refused {
                    let at = usize::try_from(*code / 4).ok().and_then(|at| at.checked_sub(1));
                    let place = at.and_then(|at| results.get_mut(at)).ok_or_else(|| unexpected(code))?;
                    *place = match code % 4 {
                        1 => Enqueued::Duplicate,
                        2 => Enqueued::Conflict,
                        3 => Enqueued::OverShare,
                        _ => return Err(unexpected(code)),
                    };
                }
                Ok(results)
            }
            Some((holds, [what])) => {
                let (limit, unit) = match what {
                    1 => (self.settings.max_depth, "items"),
                    _ => (self.settings.max_bytes, "bytes"),
                };
                Err(QueueError::Full { holds: u64::try_from(*holds).unwrap_or_default(), limit, unit })
            }
            _ => Err(unexpected(format!("{answer:?}"))),
        }
    }

    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError> {
        let want = want.clamp(1, MAX_FETCH);
        match self.take(want).await? {
            None if !wait.is_zero() => {
                self.wait_for_marker(wait).await;
                self.take(want).await
            }
            taken => Ok(taken),
        }
    }

    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        let claimed: Vec<&Item> = batch
            .items
            .iter()
            .filter(|item| !item.claims.is_empty())
            .filter(|item| unfinished.iter().all(|other| other.item.id != item.id))
            .collect();
        let leave = leaving(batch, unfinished);
        let now = self.world.now_ms();
        let answer = self
            .run(&self.scripts.ack, |command| {
                command.arg(&batch.id.0).arg(json(SURVIVED));
                command.arg(self.settings.max_dead).arg(self.settings.max_dead_bytes);
                command.arg(leave.len());
                for (brand, (items, bytes)) in &leave {
                    command.arg(element::brand(*brand)).arg(items).arg(bytes);
                }
                command.arg(claimed.len());
                for item in claimed {
                    command.arg(&item.id).arg(element::claims(&item.claims));
                }
                for Unfinished { item, then } in unfinished {
                    match then {
                        Then::Retry { delay, error } => {
                            let tried = Item {
                                attempt: item.attempt + 1,
                                history: item.history_with(now, error),
                                ..item.clone()
                            };
                            command.arg("retry").arg(ms(*delay).max(1)).arg(element::write(&tried));
                        }
                        Then::Bury { error } => {
                            let buried = Item { history: item.history_with(now, error), ..item.clone() };
                            command.arg("bury").arg(0).arg(element::write(&buried));
                        }
                        Then::Defer { delay } => {
                            command.arg("defer").arg(ms(*delay).max(1)).arg(element::write(item));
                        }
                        Then::Release => {
                            command.arg("release").arg(0).arg(element::write(item));
                        }
                    }
                }
            })
            .await?;
        match answer {
            1 => Ok(Acked::Done),
            0 => Ok(Acked::Lost),
            other => Err(unexpected(other)),
        }
    }

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        let lost: Vec<String> = self
            .run(&self.scripts.beat, |command| {
                command.arg(ms(self.settings.lease)).arg(json(SURVIVED));
                for batch in batches {
                    command.arg(&batch.0);
                }
            })
            .await?;
        Ok(lost.into_iter().map(BatchId).collect())
    }

    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        let (returned, buried) = self
            .run(&self.scripts.reclaim, |command| {
                command.arg(MAX_RECLAIM).arg(MAX_LOSSES).arg(json(LOST)).arg(json(&lost_alone()));
                command.arg(self.settings.max_dead).arg(self.settings.max_dead_bytes).arg(MAX_SURVIVED);
            })
            .await?;
        Ok(Reclaimed { returned, buried })
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        type Numbers = (u64, u64, u64, u64, i64, bool, HashMap<String, u64>, i64);
        let (pending, in_flight, delayed, dead, age, paused, counters, bytes): Numbers =
            self.run(&self.scripts.stats, |_| {}).await?;
        let mut stats = QueueStats {
            pending,
            in_flight,
            delayed,
            bytes: u64::try_from(bytes).unwrap_or_default(),
            dead,
            paused,
            oldest_age_ms: u64::try_from(age).unwrap_or_default(),
            ..QueueStats::default()
        };
        stats.count(|name| counters.get(name).copied().unwrap_or_default());
        Ok(stats)
    }

    async fn dead(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        self.dead_page(of, after, limit).await
    }

    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        let mut command = Cmd::new();
        command.arg("ZSCORE").arg(self.keys.dead()).arg(id);
        let at: Option<f64> = command.query_async(&mut self.redis.shared()).await.map_err(failed)?;
        match at {
            Some(at) => Ok(self.letters(&[(id.to_owned(), at)]).await?.pop()),
            None => Ok(None),
        }
    }

    async fn retry_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.run(&self.scripts.retry_dead, |command| {
            command.arg(json(PUT_BACK)).arg(page(ids));
        })
        .await
    }

    async fn discard_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.run(&self.scripts.discard_dead, |command| {
            command.arg(page(ids));
        })
        .await
    }

    async fn drop_dead(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError> {
        self.run(&self.scripts.drop_dead, |command| {
            command.arg(element::brand(of)).arg(MAX_DEAD_PAGE).arg(before_ms);
        })
        .await
    }

    async fn held_by(&self, brand: BrandId) -> Result<Holding, QueueError> {
        let mut connection = self.redis.shared();
        let fields = [brand.0.to_string(), format!("{}:b", brand.0)];
        let mut numbers = Vec::with_capacity(4);
        for key in [self.keys.shares(), self.keys.dead_shares()] {
            let mut command = Cmd::new();
            command.arg("HMGET").arg(key).arg(&fields);
            let held: Vec<Option<i64>> = command.query_async(&mut connection).await.map_err(failed)?;
            numbers
                .extend(held.into_iter().map(|n| u64::try_from(n.unwrap_or_default()).unwrap_or_default()));
        }
        match numbers[..] {
            [items, bytes, dead, dead_bytes] => Ok(Holding { items, bytes, dead, dead_bytes }),
            _ => Err(unexpected("not four numbers")),
        }
    }

    async fn set_paused(&self, paused: bool) -> Result<(), QueueError> {
        let _: i64 = self
            .run(&self.scripts.pause, |command| {
                command.arg(u8::from(paused));
            })
            .await?;
        Ok(())
    }

    async fn claim(&self, key: &str) -> Result<Option<Claim>, QueueError> {
        let mut command = Cmd::new();
        command.arg("GET").arg(self.keys.claim(&claim_name(key)));
        let held: Option<String> = command.query_async(&mut self.redis.shared()).await.map_err(failed)?;
        held.map(|text| read_claim(&text).ok_or_else(|| unexpected(text))).transpose()
    }

    async fn repair(&self) -> Result<Repaired, QueueError> {
        let batches = self.batches().await?;
        let (strays, repaired) = self
            .run(&self.scripts.repair, |command| {
                command.arg(SCAN_COUNT).arg(batches);
            })
            .await?;
        Ok(Repaired { strays, repaired })
    }

    fn lease(&self) -> Duration {
        self.settings.lease
    }
}
