//! Bringing what waits in the outbox to its queue: in order, each item once, by itself.
//!
//! An item is enqueued under a key made of its own id, and removed from the outbox afterwards. Whoever dies between the two
//! leaves an item that is enqueued again, and known.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::context::Context;
use crate::failpoint;
use crate::ports::locks::{Acquired, Lock};
use crate::ports::outbox::{Outbox, Staged};
use crate::ports::queue::{Enqueued, Idempotency, NewItem, Queue, QueueError};
use crate::ports::store::StoreError;

/// Items that go at once.
const PAGE: usize = 500;
/// How long an item's own key is remembered: longer than anybody needs who died between enqueue and removal.
const KEY_TTL: Duration = Duration::from_secs(60 * 60);
/// How long one process may bring a page without another joining in. It saves work; the keys make it right.
const LOCK_TTL: Duration = Duration::from_secs(10);
/// The lock's name.
const LOCK: &str = "outbox";

/// Why bringing stopped before the outbox was empty.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue: it is away, or full.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// The queues that the outbox leads to, by name: not through a decorator that would put items back into it.
#[derive(Clone)]
pub struct Outlets(pub Vec<(&'static str, Arc<dyn Queue>)>);

impl Outlets {
    fn named(&self, name: &str) -> Option<&Arc<dyn Queue>> {
        self.0.iter().find(|(queue, _)| *queue == name).map(|(_, queue)| queue)
    }
}

/// Brings everything that waits to its queue; answers how many items. Somebody else who does so already is left alone.
///
/// # Errors
/// When the store or a queue is away; what was brought before stays so.
pub async fn drain(context: &Context) -> Result<usize, DrainError> {
    let mut brought = 0;
    loop {
        let page = context.outbox.oldest(PAGE).await?;
        if page.is_empty() {
            return Ok(brought);
        }
        let Some(lock) = lock(context).await else { return Ok(brought) };
        // Read again under the lock: somebody else may just have brought them.
        let page = context.outbox.oldest(PAGE).await;
        let done = match page {
            Ok(page) => bring(&*context.outbox, &context.outlets, &page, context.clock.now_ms()).await,
            Err(error) => Err(error.into()),
        };
        if let Some(lock) = lock {
            let _ = context.locks.release(&lock).await;
        }
        brought += done?;
    }
}

/// The lock, or nothing where the locks are away; `None` when somebody else has it.
async fn lock(context: &Context) -> Option<Option<Lock>> {
    // The fencing token is of no use here; but where the counter is forgotten, it must not fall behind.
    let names = [LOCK.to_owned()];
    let mut seed = None;
    loop {
        match context.locks.acquire(&names, LOCK_TTL, seed).await {
            Ok(Acquired::Held(lock)) => return Some(Some(lock)),
            Ok(Acquired::Busy) => return None,
            Ok(Acquired::Forgotten) => seed = Some(context.store.last_fence().await.ok()?),
            Err(_) => return Some(None),
        }
    }
}

/// Brings one page; answers how many items are out of the outbox.
async fn bring(
    outbox: &dyn Outbox,
    outlets: &Outlets,
    page: &[Staged],
    now_ms: i64,
) -> Result<usize, DrainError> {
    let mut done = 0;
    // Neighbours for the same queue go together.
    for run in page.chunk_by(|a, b| a.queue == b.queue) {
        let ids: Vec<Uuid> = run.iter().map(|staged| staged.id).collect();
        let Some(queue) = outlets.named(&run[0].queue) else {
            let why = format!("there is no queue {:?}", run[0].queue);
            tracing::error!(items = ids.len(), why, "the outbox holds items that lead nowhere");
            outbox.refuse(&ids, &why).await?;
            continue;
        };
        let items: Vec<NewItem> = run.iter().map(|staged| known_again(staged, now_ms)).collect();
        let results = queue.enqueue(&items).await?;
        failpoint::reached("outbox_pushed_before_delete");
        let (refused, brought): (Vec<_>, Vec<_>) =
            ids.into_iter().zip(&results).partition(|(_, result)| **result == Enqueued::Conflict);
        let only = |pairs: Vec<(Uuid, &Enqueued)>| pairs.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        let (refused, brought) = (only(refused), only(brought));
        if !refused.is_empty() {
            tracing::error!(
                items = refused.len(),
                "items of the outbox have a key that came before with another body"
            );
            outbox.refuse(&refused, "a key of its came before with another body").await?;
        }
        done += brought.len();
        outbox.remove(&brought).await?;
    }
    Ok(done)
}

/// The item with a key of its own beside those it has, and what is left of its delay.
fn known_again(staged: &Staged, now_ms: i64) -> NewItem {
    let own = format!("outbox:{}", staged.id);
    let idempotency = match &staged.item.idempotency {
        Some(known) => {
            let keys = known.keys.iter().cloned().chain([own]).collect();
            Idempotency { keys, ..known.clone() }
        }
        None => Idempotency { keys: vec![own], digest: "outbox".into(), ttl: Some(KEY_TTL) },
    };
    let waited = Duration::from_millis(u64::try_from(now_ms - staged.staged_ms).unwrap_or_default());
    NewItem {
        idempotency: Some(idempotency),
        delay: staged.item.delay.saturating_sub(waited),
        ..staged.item.clone()
    }
}
