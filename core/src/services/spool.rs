//! A queue that goes on taking items in while the queue behind it is unavailable: they wait in the store's outbox.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::ports::clock::Moment;
use crate::ports::fault::Fault;
use crate::ports::outbox::Outbox;
use crate::ports::queue::{
    Acked, Batch, BatchId, Claim, DeadLetter, DeadPlace, Enqueued, Holding, NewItem, Queue, QueueError,
    QueueStats, Reclaimed, Repaired, Scope, Unfinished, is_over_share,
};
use crate::ports::store::StoreError;
use crate::ports::world::World;

/// How long the queue may take to answer before an item goes to the outbox. It may have taken the item all the same; then
/// the item comes twice, and has effect once.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the store may take.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the queue is left alone after it did not answer.
const LEFT_ALONE: Duration = Duration::from_secs(1);

/// The queue `inner`, with an outbox behind its `enqueue`. Everything else is the inner queue's.
pub struct SpooledQueue {
    inner: Arc<dyn Queue>,
    outbox: Arc<dyn Outbox>,
    name: &'static str,
    world: World,
    max_waiting: u64,
    /// Not to be asked before.
    unavailable_until: Mutex<Option<Moment>>,
    spooling: AtomicBool,
    /// How many items of a brand waited, or of all (`None`), and when that was counted: counting costs what the outbox is long.
    waiting: Mutex<HashMap<Option<BrandId>, (Moment, u64)>>,
}

impl SpooledQueue {
    /// Takes in for the queue `name`; at most `max_waiting` items wait in the outbox (0: any number).
    pub fn new(
        inner: Arc<dyn Queue>,
        name: &'static str,
        outbox: Arc<dyn Outbox>,
        world: World,
        max_waiting: u64,
    ) -> Self {
        Self {
            inner,
            outbox,
            name,
            world,
            max_waiting,
            unavailable_until: Mutex::new(None),
            spooling: AtomicBool::new(false),
            waiting: Mutex::default(),
        }
    }

    fn is_left_alone(&self) -> bool {
        let until = *self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| self.world.monotonic() < until)
    }

    fn leave_alone(&self, error: &QueueError) {
        *self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(self.world.monotonic() + LEFT_ALONE);
        if !self.spooling.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, queue = self.name, "the queue is unavailable; items are kept in the store");
        }
    }

    /// How many items of a brand wait; of all, where there is none.
    async fn count_waiting(&self, of: Option<BrandId>) -> Result<u64, StoreError> {
        let counted = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&of).copied();
        if let Some((at, waiting)) = counted
            && self.world.since(at) < LEFT_ALONE
        {
            return Ok(waiting);
        }
        let waiting = match of {
            Some(brand) => self.outbox.waiting_of(brand).await?,
            None => self.outbox.stats().await?.waiting,
        };
        let mut counts = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, (at, _)| self.world.since(*at) < LEFT_ALONE);
        counts.insert(of, (self.world.monotonic(), waiting));
        Ok(waiting)
    }

    async fn spool(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        let both_away = |error: &dyn std::fmt::Display| {
            QueueError::Unavailable(format!("neither the queue nor the store can be reached: {error}").into())
        };
        if self.max_waiting > 0 {
            let waiting = self.count_waiting(None).await.map_err(|error| both_away(&error))?;
            let over = self.over_share(items, waiting).await.map_err(|error| both_away(&error))?;
            let (out, within): (Vec<_>, Vec<_>) =
                items.iter().enumerate().partition(|(_, item)| over.contains(&(item.brand, item.share())));
            if !within.is_empty() && waiting + within.len() as u64 > self.max_waiting {
                return Err(QueueError::Full { holds: waiting, limit: self.max_waiting, unit: "items" });
            }
            if !out.is_empty() {
                let mut results = vec![Enqueued::OverShare; items.len()];
                let kept: Vec<NewItem> = within.iter().map(|(_, item)| (*item).clone()).collect();
                let added = self.add(&kept).await.map_err(|error| both_away(&error))?;
                for ((at, _), result) in within.into_iter().zip(added) {
                    results[at] = result;
                }
                return Ok(results);
            }
        }
        self.add(items).await.map_err(|error| both_away(&error))
    }

    async fn add(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, StoreError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let results = self.outbox.add(self.name, items, self.world.now_ms()).await?;
        metrics::counter!("tributary_spooled_items_total").increment(items.len() as u64);
        let mut counts = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut add = |of: Option<BrandId>, more: u64| {
            if let Some((_, waiting)) = counts.get_mut(&of) {
                *waiting += more;
            }
        };
        add(None, items.len() as u64);
        items.iter().filter(|item| item.brand.is_some()).for_each(|item| add(item.brand, 1));
        drop(counts);
        Ok(results)
    }

    /// Whose items are over their share, as in a queue.
    async fn over_share(
        &self,
        items: &[NewItem],
        waiting: u64,
    ) -> Result<HashSet<(Option<BrandId>, u64)>, StoreError> {
        let mut come = HashMap::<(BrandId, u64), u64>::new();
        for item in items {
            if let Some(brand) = item.brand {
                *come.entry((brand, item.share())).or_default() += 1;
            }
        }
        let mut over = HashSet::new();
        for ((brand, times), more) in come {
            let held = self.count_waiting(Some(brand)).await?;
            if is_over_share(times, held + more, waiting + more, self.max_waiting) {
                over.insert((Some(brand), times));
            }
        }
        Ok(over)
    }
}

#[async_trait]
impl Queue for SpooledQueue {
    async fn enqueue(&self, items: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        if !self.is_left_alone() {
            let answer = self.world.timeout(PATIENCE, self.inner.enqueue(items)).await;
            let answer = answer.unwrap_or_else(|_| Err(QueueError::Unavailable(Fault::no_answer(PATIENCE))));
            match answer {
                Err(error @ QueueError::Unavailable(_)) => self.leave_alone(&error),
                answer => {
                    if answer.is_ok() && self.spooling.swap(false, Ordering::Relaxed) {
                        tracing::info!(queue = self.name, "the queue is back");
                    }
                    return answer;
                }
            }
        }
        match self.world.timeout(STORE_PATIENCE, self.spool(items)).await {
            Ok(answer) => answer,
            Err(_) => Err(QueueError::Unavailable(Fault::from(format!(
                "the queue is unavailable, and the store did not answer within {} s",
                STORE_PATIENCE.as_secs()
            )))),
        }
    }

    async fn fetch(&self, want: usize, wait: Duration) -> Result<Option<Batch>, QueueError> {
        self.inner.fetch(want, wait).await
    }

    async fn ack(&self, batch: &Batch, unfinished: &[Unfinished]) -> Result<Acked, QueueError> {
        self.inner.ack(batch, unfinished).await
    }

    async fn beat(&self, batches: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        self.inner.beat(batches).await
    }

    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        self.inner.reclaim().await
    }

    async fn stats(&self) -> Result<QueueStats, QueueError> {
        self.inner.stats().await
    }

    async fn dead(
        &self,
        of: Scope,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, QueueError> {
        self.inner.dead(of, after, limit).await
    }

    async fn dead_letter(&self, id: &str) -> Result<Option<DeadLetter>, QueueError> {
        self.inner.dead_letter(id).await
    }

    async fn retry_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.inner.retry_dead(ids).await
    }

    async fn discard_dead(&self, ids: &[String]) -> Result<u64, QueueError> {
        self.inner.discard_dead(ids).await
    }

    async fn drop_dead(&self, of: Option<BrandId>, before_ms: i64) -> Result<u64, QueueError> {
        self.inner.drop_dead(of, before_ms).await
    }

    async fn held_by(&self, brand: BrandId) -> Result<Holding, QueueError> {
        self.inner.held_by(brand).await
    }

    async fn set_paused(&self, paused: bool) -> Result<(), QueueError> {
        self.inner.set_paused(paused).await
    }

    async fn claim(&self, key: &str) -> Result<Option<Claim>, QueueError> {
        self.inner.claim(key).await
    }

    async fn repair(&self) -> Result<Repaired, QueueError> {
        self.inner.repair().await
    }

    fn lease(&self) -> Duration {
        self.inner.lease()
    }
}
