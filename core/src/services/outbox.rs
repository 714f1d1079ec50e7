//! Bringing what waits in the outbox to its queue: in order, each item once, by itself.
//!
//! An item is enqueued under a key made of its own id, and removed from the outbox afterwards. Whoever dies between the two
//! leaves an item that is enqueued again, and known.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::failpoint;
use crate::ports::locks::{Acquired, Lock};
use crate::ports::outbox::{Outbox, Staged};
use crate::ports::queue::{Enqueued, Idempotency, NewItem, Queue, QueueError};
use crate::ports::store::StoreError;
use crate::services::locks::acquire;

/// Items that go at once.
const PAGE: usize = 500;
/// How long an item's own key is remembered: longer than anybody needs who died between enqueue and removal.
const KEY_TTL: Duration = Duration::from_secs(60 * 60);
/// Bytes after which a page is long enough.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// How long the store or a queue may take for a step. A connection that died in silence answers nothing, ever.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one process may bring a page without another joining in. It saves work; the keys make it right.
const LOCK_TTL: Duration = Duration::from_secs(10);
/// What the locks' names begin with.
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
    fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    fn named(&self, name: &str) -> Option<&Arc<dyn Queue>> {
        self.0.iter().find(|(queue, _)| *queue == name).map(|(_, queue)| queue)
    }
}

/// Brings everything that waits to its queue; answers how many items. Somebody else who does so already is left alone.
///
/// # Errors
/// When the store or a queue is away; what was brought before stays so.
pub async fn drain(context: &Context) -> Result<usize, DrainError> {
    let queues = context.outlets.names();
    // A look costs one row, however often and by however many it is taken.
    if in_time(context.outbox.oldest(&queues, &[], 1)).await?.is_empty() {
        return Ok(0);
    }
    // Each by itself: what a full queue does not take holds up no other's.
    let mut brought = Ok(0);
    for queue in queues {
        match (drain_one(context, queue).await, &mut brought) {
            (Ok(more), Ok(items)) => *items += more,
            (Err(error), Ok(_)) => brought = Err(error),
            (_, Err(_)) => {}
        }
    }
    brought
}

/// Brings what waits for one queue.
async fn drain_one(context: &Context, queue: &'static str) -> Result<usize, DrainError> {
    let mut brought = 0;
    // What the queue does not take of a brand that holds its share waits, and holds up nobody else's.
    let mut over = Vec::new();
    loop {
        if in_time(context.outbox.oldest(&[queue], &over, 1)).await?.is_empty() {
            return Ok(brought);
        }
        let Some(lock) = lock(context, queue).await? else { return Ok(brought) };
        let done = async {
            let page = in_time(context.outbox.oldest(&[queue], &over, PAGE)).await?;
            bring(&*context.outbox, &context.outlets, page, context.clock.now_ms(), &mut over).await
        };
        let done = done.await;
        if let Some(lock) = lock {
            let _ = context.locks.release(&lock).await;
        }
        brought += done?;
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(STEP_TIMEOUT, step).await.unwrap_or_else(|_| {
        Err(StoreError::Unavailable(format!("no answer in {} s", STEP_TIMEOUT.as_secs())))
    })
}

/// The lock, or nothing where the locks are away; `None` when somebody else has it.
async fn lock(context: &Context, queue: &str) -> Result<Option<Option<Lock>>, StoreError> {
    let names = [format!("{LOCK}:{queue}")];
    let answer = in_time(acquire(&*context.locks, &*context.store, &names, LOCK_TTL, None)).await?;
    Ok(match answer {
        Ok(Acquired::Held(lock)) => Some(Some(lock)),
        Ok(_) => None,
        Err(_) => Some(None),
    })
}

/// Brings one page, in pieces that a queue can take at once; answers how many items are out of the outbox. Notes brands that hold their
/// share.
async fn bring(
    outbox: &dyn Outbox,
    outlets: &Outlets,
    page: Vec<Staged>,
    now_ms: i64,
    over: &mut Vec<BrandId>,
) -> Result<usize, DrainError> {
    let mut done = 0;
    let mut rest = page;
    let mut most = PAGE;
    while let Some(first) = rest.first() {
        let Some(queue) = outlets.named(&first.queue) else { break };
        let piece = &rest[..piece_of(&rest).min(most)];
        let items: Vec<NewItem> = piece.iter().map(|staged| known_again(staged, now_ms)).collect();
        let answer = tokio::time::timeout(STEP_TIMEOUT, queue.enqueue(&items)).await.unwrap_or_else(|_| {
            Err(QueueError::Unavailable(format!("no answer in {} s", STEP_TIMEOUT.as_secs())))
        });
        let results = match answer {
            // There may be room, or memory, for fewer.
            Err(QueueError::Full { .. } | QueueError::Unavailable(_)) if piece.len() > 1 => {
                most = piece.len() / 2;
                continue;
            }
            answer => answer?,
        };
        failpoint::reached("outbox_pushed_before_delete");
        let of = |what: &[Enqueued]| -> Vec<Uuid> {
            let both = piece.iter().zip(&results);
            both.filter(|(_, result)| what.contains(result)).map(|(staged, _)| staged.id).collect()
        };
        let (brought, refused) = (of(&[Enqueued::Accepted, Enqueued::Duplicate]), of(&[Enqueued::Conflict]));
        let waiting: HashSet<Uuid> = of(&[Enqueued::OverShare]).into_iter().collect();
        if !refused.is_empty() {
            tracing::error!(
                items = refused.len(),
                "items of the outbox have a key that came before with another body"
            );
            in_time(outbox.refuse(&refused, "a key of its came before with another body")).await?;
        }
        in_time(outbox.remove(&brought)).await?;
        done += brought.len();
        let tried = piece.len();
        match waiting.len() {
            0 => {}
            // The first of these has to wait for others of its brand to leave, and the rest of them with it.
            1 => over.extend(
                piece.iter().filter(|staged| waiting.contains(&staged.id)).filter_map(|s| s.item.brand),
            ),
            // There may be room for fewer.
            more => most = more / 2,
        }
        let mut at = 0;
        rest.retain(|staged| {
            at += 1;
            let stays = at > tried || waiting.contains(&staged.id);
            stays && staged.item.brand.is_none_or(|brand| !over.contains(&brand))
        });
    }
    Ok(done)
}

/// How many of the first items go together: neighbours for one queue, within [`PAGE_BYTES`], at least one.
fn piece_of(items: &[Staged]) -> usize {
    let mut bytes = 0;
    let fits = items.iter().take_while(|staged| {
        bytes += staged.item.payload.len();
        staged.queue == items[0].queue && bytes <= PAGE_BYTES
    });
    fits.count().max(1)
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
