//! Bringing what waits in the outbox to its queue: in order, each item once, by itself.
//!
//! An item is enqueued under a key made of its own id, and stays in the outbox until its job has ended. Whoever dies between the
//! enqueue and the note of it leaves an item that is enqueued again, and known. A queue that does not know an item's key has forgotten the
//! item, and gets it again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::failpoint;
use crate::ports::fault::Fault;
use crate::ports::outbox::{Sent, Staged};
use crate::ports::queue::{
    Enqueued, Idempotency, Item, NewItem, Queue, QueueError, STAGED_KEPT, Then, Unfinished, staged_key,
};
use crate::ports::store::StoreError;
use crate::sampled::Sampled;
use crate::services::locks::{Granted, acquire};

/// Items that go at once.
const PAGE: usize = 500;
/// So many leases after it was enqueued, a queue is first asked whether it still has an item: whoever had the item under one has heard by
/// then that the lease is gone. Then after as long as the item is old, up to [`CHECK_AT_MOST`].
const CHECK_LEASES: u32 = 4;
/// See [`CHECK_LEASES`].
const CHECK_AT_MOST: Duration = Duration::from_secs(15 * 60);
/// Items that are asked for at once.
const CHECK_PAGE: usize = 500;
/// Items that a queue had forgotten.
static FORGOTTEN: Sampled = Sampled::new();
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
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue: it is unavailable, or full.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Brings everything that waits to its queue; answers how many items. Somebody else who does so already is left alone.
///
/// # Errors
/// When the store or a queue is unavailable; what was brought before stays so.
#[tracing::instrument(name = "drain_outbox", level = "debug", skip_all)]
pub async fn drain(context: &Context) -> Result<usize, DrainError> {
    let queues = context.outbox_targets.names();
    // A look costs one row, however often and by however many it is taken.
    if in_time(context, context.outbox.oldest(&queues, &[], 1)).await?.is_empty() {
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
        if in_time(context, context.outbox.oldest(&[queue], &over, 1)).await?.is_empty() {
            return Ok(brought);
        }
        let names = [format!("{LOCK}:{queue}")];
        let lock =
            match in_time(context, acquire(&*context.locks, Some(&*context.store), &names, LOCK_TTL, None))
                .await?
            {
                Granted::Held(lock) => Some(lock),
                Granted::Busy => return Ok(brought),
                Granted::Unreachable(_) => None,
            };
        let done = async {
            let page = in_time(context, context.outbox.oldest(&[queue], &over, PAGE)).await?;
            bring_page(context, page, &mut over).await
        };
        let done = done.await;
        if let Some(lock) = lock {
            let _ = context.locks.release(&lock).await;
        }
        brought += done?;
    }
}

async fn in_time<T>(
    context: &Context,
    step: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    context
        .world
        .timeout(STEP_TIMEOUT, step)
        .await
        .unwrap_or_else(|_| Err(StoreError::Unavailable(Fault::no_answer(STEP_TIMEOUT))))
}

/// Brings one page, in pieces that a queue can take at once; answers how many items their queue has. Notes brands that hold their
/// share.
async fn bring_page(
    context: &Context,
    page: Vec<Staged>,
    over: &mut Vec<BrandId>,
) -> Result<usize, DrainError> {
    let (outbox, now_ms) = (&context.outbox, context.world.now_ms());
    let mut done = 0;
    let mut rest = page;
    let mut most = PAGE;
    while let Some(first) = rest.first() {
        let Some(queue) = context.outbox_targets.named(&first.queue) else { break };
        let piece = &rest[..piece_of(&rest).min(most)];
        let items: Vec<NewItem> = piece.iter().map(|staged| known_again(staged, now_ms)).collect();
        let answer = context
            .world
            .timeout(STEP_TIMEOUT, queue.enqueue(&items))
            .await
            .unwrap_or_else(|_| Err(QueueError::Unavailable(Fault::no_answer(STEP_TIMEOUT))));
        let results = match answer {
            // There may be room, or memory, for fewer.
            Err(QueueError::Full { .. } | QueueError::Unavailable(_)) if piece.len() > 1 => {
                most = piece.len() / 2;
                continue;
            }
            answer => answer?,
        };
        failpoint::reached("outbox_enqueued_before_noted");
        let of = |what: &[Enqueued]| -> Vec<Uuid> {
            let both = piece.iter().zip(&results);
            both.filter(|(_, result)| what.contains(result)).map(|(staged, _)| staged.id).collect()
        };
        let (accepted, known, refused) =
            (of(&[Enqueued::Accepted]), of(&[Enqueued::Duplicate]), of(&[Enqueued::Conflict]));
        let (ours, elsewhere) = sort_known(&**queue, known).await?;
        let brought = [accepted, ours].concat();
        let waiting: HashSet<Uuid> = of(&[Enqueued::OverShare]).into_iter().collect();
        if !refused.is_empty() {
            tracing::error!(
                items = refused.len(),
                "items of the outbox have a key that came before with another body"
            );
            let why = "one of its keys was received before with another body";
            in_time(context, outbox.refuse(&refused, why)).await?;
        }
        in_time(context, outbox.sent(&brought, later(now_ms, first_check(queue)))).await?;
        if !elsewhere.is_empty() {
            in_time(context, outbox.remove(&elsewhere)).await?;
        }
        done += brought.len() + elsewhere.len();
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

/// Items that a queue knows already: those that the outbox brought before, by its own key, and those whose delivery came another way, by another
/// of their keys.
async fn sort_known(queue: &dyn Queue, known: Vec<Uuid>) -> Result<(Vec<Uuid>, Vec<Uuid>), QueueError> {
    let (mut ours, mut elsewhere) = (Vec::new(), Vec::new());
    for id in known {
        match queue.claim(&staged_key(id)).await? {
            Some(_) => ours.push(id),
            None => elsewhere.push(id),
        }
    }
    Ok((ours, elsewhere))
}

fn first_check(queue: &Arc<dyn Queue>) -> Duration {
    (queue.lease() * CHECK_LEASES).min(CHECK_AT_MOST)
}

fn later(now_ms: i64, wait: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX))
}

/// Removes items of a batch from the outbox whose jobs have ended: done, or buried. Called before the ack: whoever dies in between gets
/// them again, and removes nothing.
///
/// # Errors
/// When the store cannot be reached: [`check`] removes them later.
pub async fn ended(context: &Context, items: &[Item], unfinished: &[Unfinished]) -> Result<(), StoreError> {
    let unfinished_ids: HashSet<&str> = unfinished
        .iter()
        .filter(|other| !matches!(other.then, Then::Bury { .. }))
        .map(|other| other.item.id.as_str())
        .collect();
    let ended = items.iter().filter(|item| !unfinished_ids.contains(item.id.as_str()));
    let ids: Vec<Uuid> = ended.filter_map(Item::staged).collect();
    if ids.is_empty() {
        return Ok(());
    }
    in_time(context, context.outbox.remove(&ids)).await
}

/// Asks the queues whether they still have what the outbox gave them some time ago. What a queue has forgotten - its data was lost, or is
/// an old copy - waits again; what has ended is removed. Answers how many items were forgotten.
///
/// # Errors
/// When the store or a queue cannot be reached.
#[tracing::instrument(name = "check_outbox", level = "debug", skip_all)]
pub async fn check(context: &Context) -> Result<usize, DrainError> {
    let mut forgotten_in_all = 0;
    loop {
        let now_ms = context.world.now_ms();
        let page = in_time(context, context.outbox.to_check(now_ms, CHECK_PAGE)).await?;
        if page.is_empty() {
            return Ok(forgotten_in_all);
        }
        let (mut ended, mut forgotten) = (Vec::new(), Vec::new());
        let mut there: BTreeMap<i64, Vec<Uuid>> = BTreeMap::new();
        for Sent { id, queue, staged_ms } in page {
            let claim = match context.outbox_targets.named(&queue) {
                Some(queue) => queue.claim(&staged_key(id)).await?.map(|claim| claim.finished.is_some()),
                // Of a version that knows more queues.
                None => Some(false),
            };
            match claim {
                None => forgotten.push(id),
                Some(true) => ended.push(id),
                Some(false) => {
                    let age = Duration::from_millis(u64::try_from(now_ms - staged_ms).unwrap_or_default());
                    let wait = age.clamp(first_check(&context.queue), CHECK_AT_MOST);
                    there.entry(later(now_ms, wait)).or_default().push(id);
                }
            }
        }
        in_time(context, context.outbox.remove(&ended)).await?;
        for (at_ms, ids) in there {
            in_time(context, context.outbox.sent(&ids, at_ms)).await?;
        }
        in_time(context, context.outbox.forgotten(&forgotten)).await?;
        if forgotten.is_empty() {
            continue;
        }
        forgotten_in_all += forgotten.len();
        metrics::counter!("tributary_outbox_forgotten_total").increment(forgotten.len() as u64);
        if let Some(times) = FORGOTTEN.happened(forgotten.len() as u64) {
            tracing::warn!(times, "a queue has forgotten jobs that the store knows: they are enqueued again");
        }
    }
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
    let own = staged_key(staged.id);
    let idempotency = match &staged.item.idempotency {
        Some(known) => {
            let keys = known.keys.iter().cloned().chain([own]).collect();
            Idempotency { keys, ..known.clone() }
        }
        None => Idempotency { keys: vec![own], digest: "outbox".into(), ttl: Some(STAGED_KEPT) },
    };
    let waited = Duration::from_millis(u64::try_from(now_ms - staged.staged_ms).unwrap_or_default());
    NewItem {
        idempotency: Some(idempotency),
        delay: staged.item.delay.saturating_sub(waited),
        ..staged.item.clone()
    }
}
