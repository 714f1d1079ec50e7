//! Processing a batch of events: who they are about, what they change, in one transaction.
//!
//! The steps, each one statement whatever the batch's size:
//! 1. leave out events that took effect before;
//! 2. look up who owns the identifiers, and group the events into customers;
//! 3. claim identifiers that nobody owns; where another worker was faster, look again;
//! 4. where profiles are to be merged, take their merge lock ([`crate::services::merge`]), and let the store check its
//!    fencing token;
//! 5. lock the profiles, sorted; if one was merged away meanwhile, start again;
//! 6. add the events, apply them to the profiles, merge the profiles that they link, write orders and what else they say; commit.
//!
//! Step 1 and the unique key of step 6 make the effect happen once, whatever the queue delivers.
//!
//! Limits, splits, erased customers and links between two people that only a public key tells of are rare, so a batch is first run as if there were none. Where a check finds one, the
//! batch is run again strictly: after step 2 it asks for the profiles' state, and leaves out the links that must not be.

mod effects;
mod fresh;
pub mod handle;
mod merges;
mod resolve;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::effects::{save_orders, save_the_rest};
use self::fresh::{first_of_each, forget_erased, leave_out_replays};
use self::merges::{Merged, flag, homes, merge, merging};
use self::resolve::{Resolution, check_limits, lock};
use crate::domain::event::Event;
use crate::domain::identity::Group;
use crate::domain::ids::ProfileId;
use crate::domain::profile::Profile;
use crate::domain::time::{Timestamp, from_ms};
use crate::failpoint;
use crate::ports::locks::Locks;
use crate::ports::store::EventId;
use crate::ports::store::{EventRow, MergeRow, Move, Relation, Store, StoreError, StoreTx};
use crate::ports::world::World;
use crate::services::automations::jobs;
use crate::services::brand_cache::BrandRules;
use crate::services::merge::{self as locking, LockGuard, LockOptions};

/// How often a batch is run that loses races, before it goes back to the queue.
const MAX_RUNS: u32 = 8;
/// Runs after which a merge goes on without the lock that somebody else holds.
const RUNS_UNDER_LOCK: u32 = 4;
/// The longest wait before a batch that lost a race is run again; drawn again each time, and longer with each run.
const RERUN_WAIT: Duration = Duration::from_millis(20);

/// What a batch did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processed {
    /// Events that took effect.
    pub effective: usize,
    /// Events that had taken effect before.
    pub duplicates: usize,
}

/// Why a run had no effect.
enum Rerun {
    /// It met a limit, a split or somebody who was erased: it is run again, and looks at these before it claims anything.
    Strictly,
    /// The store failed, or another transaction was faster.
    Failed(StoreError),
}

impl From<StoreError> for Rerun {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Processes `events` in one transaction.
///
/// # Errors
/// [`StoreError::Conflict`] when it lost too many races; else the store's own. Nothing has taken effect then.
#[tracing::instrument(name = "process_events", skip_all, fields(events = events.len()))]
pub async fn process(
    store: &dyn Store,
    locks: &dyn Locks,
    world: &World,
    rules: &BrandRules,
    events: &[Event],
) -> Result<Processed, StoreError> {
    let mut try_ = Try { run: 1, seed: None, strict: false };
    loop {
        let lost = match run(store, locks, world, rules, events, try_).await {
            Ok(processed) => return Ok(processed),
            Err(Rerun::Strictly) => {
                try_.strict = true;
                continue;
            }
            Err(Rerun::Failed(lost @ (StoreError::Conflict(_) | StoreError::Fenced(_))))
                if try_.run < MAX_RUNS =>
            {
                lost
            }
            Err(Rerun::Failed(error)) => return Err(error),
        };
        metrics::counter!("tributary_process_conflicts_total").increment(1);
        tracing::debug!(try_.run, %lost, "run again");
        if matches!(lost, StoreError::Fenced(_)) {
            // The tokens' counter ran backwards: a restart from an old copy, or a failover.
            try_.seed = Some(store.last_fence().await?);
        }
        world.sleep(RERUN_WAIT.mul_f64(world.fraction() * f64::from(try_.run))).await;
        try_.run += 1;
    }
}

/// How a run is done.
#[derive(Clone, Copy)]
struct Try {
    run: u32,
    /// The highest fencing token that was used, where the locks' counter is known to be behind.
    seed: Option<i64>,
    /// Whether limits, splits and erased customers are looked at before anything is claimed.
    strict: bool,
}

async fn run(
    store: &dyn Store,
    locks: &dyn Locks,
    world: &World,
    rules: &BrandRules,
    events: &[Event],
    try_: Try,
) -> Result<Processed, Rerun> {
    let mut tx = store.begin().await?;
    let known = tx.known_events(events).await?;
    let mut fresh = first_of_each(events, &known);
    leave_out_replays(&mut *tx, world, &mut fresh).await?;
    if fresh.is_empty() {
        return Ok(Processed { effective: 0, duplicates: events.len() });
    }
    if try_.strict {
        forget_erased(&mut *tx, &mut fresh).await?;
    }
    let mut resolution = Resolution::of(&fresh);
    let groups = resolution.resolve(&mut *tx, world, rules, &fresh, try_.strict).await?;
    let merging = merging(&groups, &resolution, &fresh);
    let now = from_ms(world.now_ms());
    let batch = Resolved { world, count: events.len(), fresh, resolution, groups, now, try_ };
    if merging.is_empty() {
        return finish(tx, batch, rules, &[], None).await;
    }
    let ids: Vec<ProfileId> = merging.iter().map(|(_, id)| *id).collect();
    if try_.run > RUNS_UNDER_LOCK {
        // Whoever holds the lock may be dead, or slow. It only saves work: the store decides.
        return finish(tx, batch, rules, &ids, Some(LockGuard::none(world))).await;
    }
    // One try: a transaction must not wait for a lock whose holder may wait for this transaction.
    let names = merging.iter().map(|(brand, id)| locking::lock_name(*brand, *id)).collect();
    let options = LockOptions { seed: try_.seed, inside_transaction: true, ..LockOptions::default() };
    locking::with_merge_lock(locks, store, world, names, options, |guard| async move {
        match finish(tx, batch, rules, &ids, Some(guard)).await {
            Ok(done) => Ok(Ok(done)),
            Err(Rerun::Strictly) => Ok(Err(Rerun::Strictly)),
            Err(Rerun::Failed(error)) => Err(error),
        }
    })
    .await?
}

/// A batch whose customers are known.
struct Resolved<'e> {
    world: &'e World,
    /// How many events there were.
    count: usize,
    /// Those that take effect.
    fresh: Vec<Cow<'e, Event>>,
    resolution: Resolution,
    groups: Vec<Group>,
    now: Timestamp,
    try_: Try,
}

/// The rest of the transaction: the profiles `merging` are merged under `guard`.
async fn finish(
    mut tx: Box<dyn StoreTx>,
    batch: Resolved<'_>,
    rules: &BrandRules,
    merging: &[ProfileId],
    guard: Option<LockGuard>,
) -> Result<Processed, Rerun> {
    let Resolved { world, count, fresh, resolution, groups, now, try_ } = batch;
    let mut profiles = lock(&mut *tx, &groups, &resolution, try_.run).await?;
    check_limits(&groups, &resolution, &fresh, &profiles, rules, try_.strict)?;
    if let Some(guard) = &guard {
        tx.fence(merging, guard.fence).await?;
    }
    let raised = resolution.raised(&groups);
    // By what the store says: another transaction may have raised them since they were looked up.
    let trusted: BTreeSet<usize> = match raised.is_empty() {
        true => BTreeSet::new(),
        false => tx.raise(&raised).await?.iter().map(|identifier| resolution.place(identifier)).collect(),
    };
    for (place, from) in &resolution.taken {
        if let Some(profile) = profiles.get_mut(from) {
            profile.standing.all.counts.remove(resolution.identifiers[*place].identifier.kind);
        }
    }
    let homes = homes(&groups, fresh.len());
    let rows: Vec<EventRow<'_>> =
        fresh.iter().zip(&homes).map(|(event, home)| EventRow { event, profile: *home }).collect();
    let added = tx.add_events(&rows).await?;
    let effective: Vec<EventRow<'_>> =
        rows.into_iter().filter(|row| added.contains(&EventId::of(row.event))).collect();
    let Merged { moves, records, related } =
        merge(world, &groups, &resolution, &trusted, &fresh, &mut profiles, now);
    for EventRow { event, profile } in &effective {
        if let Some(profile) = profile.and_then(|id| profiles.get_mut(&id)) {
            profile.apply(event);
        }
    }
    let relations = flag(&resolution, &mut profiles, now);
    save_profiles(&mut *tx, profiles, &records, &moves, related, &relations).await?;
    let mut changed = BTreeSet::new();
    save_orders(&mut *tx, &effective, &mut changed).await?;
    save_the_rest(&mut *tx, world, rules, &effective, now).await?;
    changed.extend(records.iter().map(|record| (record.brand, record.moved.into)));
    changed
        .extend(resolution.taken.iter().map(|(place, from)| (resolution.identifiers[*place].brand, *from)));
    let signals = jobs::signals(rules, &effective, &changed);
    if !signals.is_empty() {
        tx.stage(&signals, now.timestamp_millis()).await?;
    }
    failpoint::reached("events_added_before_commit");
    if let Some(guard) = &guard {
        failpoint::reached("merge_checked_before_commit");
        if !guard.is_valid() {
            return Err(StoreError::Conflict("the merge's lock ran out before the commit".into()).into());
        }
    }
    tx.commit().await?;
    Ok(Processed { effective: effective.len(), duplicates: count - effective.len() })
}

/// Writes profiles and what became of them.
async fn save_profiles(
    tx: &mut dyn StoreTx,
    profiles: BTreeMap<ProfileId, Profile>,
    records: &[MergeRow],
    moves: &[Move],
    related: bool,
    relations: &[Relation],
) -> Result<(), StoreError> {
    if !profiles.is_empty() {
        tx.save_profiles(&profiles.into_values().collect::<Vec<_>>()).await?;
    }
    if !records.is_empty() {
        tx.record_merges(records).await?;
    }
    if !moves.is_empty() {
        tx.move_owned(moves, related).await?;
    }
    if !relations.is_empty() {
        tx.relate(relations).await?;
    }
    Ok(())
}
