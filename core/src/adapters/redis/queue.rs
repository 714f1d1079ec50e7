//! The queue on Redis lists with batch leases. The protocol's steps are the scripts beside this file; here they are called.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisError, Script, Value, from_redis_value};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::client::RedisClient;
use super::element;
use super::keys::QueueKeys;
use crate::ports::clock::Clock;
use crate::ports::queue::{
    Acked, Batch, BatchId, DeadLetter, Enqueued, Item, MAX_FETCH, MAX_LOSSES, NewItem, Queue, QueueError,
    QueueSettings, QueueStats, Reclaimed, Then, Unfinished, lost_alone,
};

/// Delayed items that one fetch makes pending.
const PROMOTE: usize = 200;
/// Batches that one call reclaims: a script must not hold Redis up for long.
const RECLAIM: usize = 10;
/// How much longer than asked for the blocking command may take before its connection is given up.
const BLOCKING_GRACE: Duration = Duration::from_secs(2);

/// The queue on Redis.
pub struct RedisQueue {
    redis: RedisClient,
    keys: QueueKeys,
    settings: QueueSettings,
    clock: Arc<dyn Clock>,
    scripts: Scripts,
    /// Waiters take turns on it: whoever holds it is the one that blocks.
    waiting: Mutex<Option<MultiplexedConnection>>,
}

struct Scripts {
    enqueue: Script,
    fetch: Script,
    ack: Script,
    beat: Script,
    reclaim: Script,
    stats: Script,
}

impl RedisQueue {
    /// The queue `name` on `redis`.
    pub fn new(redis: RedisClient, name: &str, settings: QueueSettings, clock: Arc<dyn Clock>) -> Self {
        let keys = QueueKeys::new(redis.space(), name);
        let scripts = Scripts {
            enqueue: Script::new(include_str!("scripts/enqueue.lua")),
            fetch: Script::new(include_str!("scripts/fetch.lua")),
            ack: Script::new(include_str!("scripts/ack.lua")),
            beat: Script::new(include_str!("scripts/beat.lua")),
            reclaim: Script::new(include_str!("scripts/reclaim.lua")),
            stats: Script::new(include_str!("scripts/stats.lua")),
        };
        Self { redis, keys, settings, clock, scripts, waiting: Mutex::new(None) }
    }

    async fn take(&self, want: usize) -> Result<Option<Batch>, QueueError> {
        let id = Uuid::now_v7().simple().to_string();
        let batch = self.keys.batch(&id);
        let [high, normal, low] = &self.keys.pending;
        let k = &self.keys;
        let keys =
            [high, normal, low, &k.suspect, &k.wake, &k.delayed, &k.leases, &batch].map(String::as_str);
        let answer = self
            .redis
            .run(&self.scripts.fetch, &keys, |command| {
                command.arg(want).arg(ms(self.settings.lease)).arg(&id).arg(PROMOTE);
            })
            .await
            .map_err(failed)?;
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
                    item: Item {
                        id: Uuid::now_v7().simple().to_string(),
                        enqueued_ms: self.clock.now_ms(),
                        attempt: 0,
                        suspect: false,
                        losses: 0,
                        priority: crate::ports::queue::Priority::Normal,
                        payload: bytes,
                    },
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
            self.ack(&batch.id, &foreign).await?;
            return Ok(None);
        }
        Ok(Some(batch))
    }

    /// Waits for a marker. Markers carry no work, so one that is popped for a connection that just died costs a poll.
    async fn wait_for_marker(&self, wait: Duration) {
        let turn = async {
            let mut slot = self.waiting.lock().await;
            let connection = match slot.take() {
                Some(connection) => Ok(connection),
                None => self.redis.blocking().await,
            };
            let Ok(mut connection) = connection else {
                // Redis is away; the wait is spent by the caller's time limit.
                return std::future::pending().await;
            };
            let mut command = Cmd::new();
            command.arg("BRPOP").arg(&self.keys.wake).arg(wait.as_secs_f64());
            let answer =
                tokio::time::timeout(wait + BLOCKING_GRACE, command.exec_async(&mut connection)).await;
            if matches!(answer, Ok(Ok(()))) {
                *slot = Some(connection);
            }
        };
        let _ = tokio::time::timeout(wait + BLOCKING_GRACE, turn).await;
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let [high, normal, low] = &self.keys.pending;
        let k = &self.keys;
        let claims: Vec<String> =
            items.iter().flat_map(|item| &item.idempotency_keys).map(|key| k.claim(key)).collect();
        let mut keys: Vec<&str> =
            [high, normal, low, &k.wake, &k.delayed, &k.stats].map(String::as_str).to_vec();
        keys.extend(claims.iter().map(String::as_str));
        let now = self.clock.now_ms();
        let answer = self
            .redis
            .run(&self.scripts.enqueue, &keys, |command| {
                command.arg(self.settings.max_depth).arg(ms(self.settings.claim_ttl));
                for item in items {
                    let fresh = Item {
                        id: Uuid::now_v7().simple().to_string(),
                        enqueued_ms: now,
                        attempt: 0,
                        suspect: false,
                        losses: 0,
                        priority: item.priority,
                        payload: item.payload.clone(),
                    };
                    command
                        .arg(item.priority.index() + 1)
                        .arg(ms(item.delay))
                        .arg(item.idempotency_keys.len())
                        .arg(element::write(&fresh));
                }
            })
            .await
            .map_err(failed)?;
        let answer: Vec<i64> = from_redis_value(answer).map_err(unexpected)?;
        match answer.split_first() {
            Some((-1, duplicates)) => {
                let mut results = vec![Enqueued::Accepted; items.len()];
                for index in duplicates {
                    let at = usize::try_from(index - 1).ok().and_then(|at| results.get_mut(at));
                    *at.ok_or_else(|| unexpected(index))? = Enqueued::Duplicate;
                }
                Ok(results)
            }
            Some((depth, [])) => Err(QueueError::Full {
                depth: u64::try_from(*depth).unwrap_or_default(),
                limit: self.settings.max_depth,
            }),
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

    async fn ack(&self, batch: &BatchId, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        let [high, normal, low] = &self.keys.pending;
        let k = &self.keys;
        let list = k.batch(&batch.0);
        let keys = [high, normal, low, &k.suspect, &k.wake, &k.delayed, &k.leases, &list, &k.dead, &k.stats]
            .map(String::as_str);
        let answer = self
            .redis
            .run(&self.scripts.ack, &keys, |command| {
                command.arg(&batch.0);
                for Unfinished { item, then } in unfinished {
                    match then {
                        Then::Retry { delay } => {
                            let tried = Item { attempt: item.attempt + 1, ..item.clone() };
                            command.arg("retry").arg(ms(*delay)).arg(element::write(&tried));
                        }
                        Then::Bury { error } => {
                            command.arg("bury").arg(0).arg(element::write_dead(item, error));
                        }
                        Then::Release => {
                            let place = if item.suspect { 4 } else { item.priority.index() + 1 };
                            command.arg("release").arg(place).arg(element::write(item));
                        }
                    }
                }
            })
            .await
            .map_err(failed)?;
        match from_redis_value(answer).map_err(unexpected)? {
            1 => Ok(Acked::Done),
            0 => Ok(Acked::Lost),
            other => Err(unexpected(other)),
        }
    }

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        let answer = self
            .redis
            .run(&self.scripts.beat, &[&self.keys.leases], |command| {
                command.arg(ms(self.settings.lease));
                for batch in batches {
                    command.arg(&batch.0);
                }
            })
            .await
            .map_err(failed)?;
        let lost: Vec<String> = from_redis_value(answer).map_err(unexpected)?;
        Ok(lost.into_iter().map(BatchId).collect())
    }

    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        let k = &self.keys;
        let keys = [&k.leases, &k.suspect, &k.wake, &k.dead, &k.stats].map(String::as_str);
        let why = serde_json::Value::from(lost_alone()).to_string();
        let answer = self
            .redis
            .run(&self.scripts.reclaim, &keys, |command| {
                command.arg(k.batch_prefix()).arg(RECLAIM).arg(MAX_LOSSES).arg(why);
            })
            .await
            .map_err(failed)?;
        let (returned, buried) = from_redis_value(answer).map_err(unexpected)?;
        Ok(Reclaimed { returned, buried })
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        let [high, normal, low] = &self.keys.pending;
        let k = &self.keys;
        let keys =
            [high, normal, low, &k.suspect, &k.delayed, &k.leases, &k.dead, &k.stats].map(String::as_str);
        let answer = self
            .redis
            .run(&self.scripts.stats, &keys, |command| {
                command.arg(k.batch_prefix());
            })
            .await
            .map_err(failed)?;
        type Counters = std::collections::HashMap<String, u64>;
        let (pending, in_flight, delayed, dead, oldest_age_ms, counters): (
            u64,
            u64,
            u64,
            u64,
            i64,
            Counters,
        ) = from_redis_value(answer).map_err(unexpected)?;
        let ever = |name: &str| counters.get(name).copied().unwrap_or_default();
        Ok(QueueStats {
            pending,
            in_flight,
            delayed,
            dead,
            oldest_age_ms: u64::try_from(oldest_age_ms).unwrap_or_default(),
            enqueued: ever("enqueued"),
            duplicates: ever("duplicates"),
            acked: ever("acked"),
            retried: ever("retried"),
            reclaimed: ever("reclaimed"),
            buried: ever("buried"),
        })
    }

    async fn dead(&self, limit: usize) -> Result<Vec<DeadLetter>, QueueError> {
        let mut command = Cmd::new();
        command.arg("ZREVRANGE").arg(&self.keys.dead).arg(0).arg(limit.saturating_sub(1)).arg("WITHSCORES");
        let pairs: Vec<(Vec<u8>, f64)> =
            command.query_async(&mut self.redis.shared()).await.map_err(failed)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "milliseconds since 1970 are whole and far below 2^53"
        )]
        let letters =
            pairs.into_iter().filter_map(|(bytes, at)| element::read_dead(&bytes.into(), at as i64));
        Ok(letters.collect())
    }

    fn lease(&self) -> Duration {
        self.settings.lease
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn byte_strings(answer: Value) -> Result<Vec<Bytes>, QueueError> {
    let Value::Array(values) = answer else { return Err(unexpected(format!("{answer:?}"))) };
    values
        .into_iter()
        .map(|value| match value {
            Value::BulkString(bytes) => Ok(Bytes::from(bytes)),
            other => Err(unexpected(format!("{other:?}"))),
        })
        .collect()
}

/// A script that fails is a defect; everything else on the way to Redis is an outage.
fn failed(error: RedisError) -> QueueError {
    match error.kind() {
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse => unexpected(error),
        _ => QueueError::Unavailable(error.to_string()),
    }
}

fn unexpected(what: impl ToString) -> QueueError {
    QueueError::Unexpected(what.to_string())
}
