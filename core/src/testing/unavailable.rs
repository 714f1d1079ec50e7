use std::time::Duration;

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::ports::clock::Moment;
use crate::ports::locks::{Acquired, Lock, LockError, Locks};
use crate::ports::queue::{
    Acked, Batch, BatchId, Claim, DeadLetter, DeadPlace, Enqueued, Holding, NewItem, Queue, QueueError,
    QueueSettings, QueueStats, Reclaimed, Repaired, Scope, Unfinished,
};

/// A queue that is unavailable.
pub struct UnavailableQueue;

fn unavailable<T>() -> Result<T, QueueError> {
    Err(QueueError::Unavailable("the test says so".into()))
}

#[async_trait]
impl Queue for UnavailableQueue {
    async fn enqueue(&self, _: &[NewItem]) -> Result<Vec<Enqueued>, QueueError> {
        unavailable()
    }
    async fn fetch(&self, _: usize, _: Duration) -> Result<Option<Batch>, QueueError> {
        unavailable()
    }
    async fn ack(&self, _: &Batch, _: &[Unfinished]) -> Result<Acked, QueueError> {
        unavailable()
    }
    async fn beat(&self, _: &[BatchId]) -> Result<Vec<BatchId>, QueueError> {
        unavailable()
    }
    async fn reclaim(&self) -> Result<Reclaimed, QueueError> {
        unavailable()
    }
    async fn stats(&self) -> Result<QueueStats, QueueError> {
        unavailable()
    }
    async fn dead(&self, _: Scope, _: Option<&DeadPlace>, _: usize) -> Result<Vec<DeadLetter>, QueueError> {
        unavailable()
    }
    async fn dead_letter(&self, _: &str) -> Result<Option<DeadLetter>, QueueError> {
        unavailable()
    }
    async fn retry_dead(&self, _: &[String]) -> Result<u64, QueueError> {
        unavailable()
    }
    async fn discard_dead(&self, _: &[String]) -> Result<u64, QueueError> {
        unavailable()
    }
    async fn drop_dead(&self, _: Option<BrandId>, _: i64) -> Result<u64, QueueError> {
        unavailable()
    }
    async fn held_by(&self, _: BrandId) -> Result<Holding, QueueError> {
        unavailable()
    }
    async fn set_paused(&self, _: bool) -> Result<(), QueueError> {
        unavailable()
    }
    async fn claim(&self, _: &str) -> Result<Option<Claim>, QueueError> {
        unavailable()
    }
    async fn repair(&self) -> Result<Repaired, QueueError> {
        unavailable()
    }
    fn lease(&self) -> Duration {
        QueueSettings::default().lease
    }
}

/// Locks that are unavailable.
pub struct UnavailableLocks;

fn no_locks<T>() -> Result<T, LockError> {
    Err(LockError("the test says so".into()))
}

#[async_trait]
impl Locks for UnavailableLocks {
    async fn acquire(&self, _: &[String], _: Duration, _: Option<i64>) -> Result<Acquired, LockError> {
        no_locks()
    }
    async fn extend(&self, _: &Lock, _: Duration) -> Result<Option<Moment>, LockError> {
        no_locks()
    }
    async fn release(&self, _: &Lock) -> Result<bool, LockError> {
        no_locks()
    }
}
