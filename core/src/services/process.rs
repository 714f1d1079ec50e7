//! Processing a batch of events: who they are about, what they change, in one transaction.
//!
//! The steps, each one statement whatever the batch's size:
//! 1. leave out events that took effect before;
//! 2. look up who owns the identifiers, and group the events into customers;
//! 3. claim identifiers that nobody owns; where another worker was faster, look again;
//! 4. where profiles are to be merged, take their merge lock ([`crate::services::merge`]), and let the store check its
//!    fencing token;
//! 5. lock the profiles, sorted; if one was merged away meanwhile, start again;
//! 6. add the events, apply them to the profiles, merge the profiles that they link, write orders; commit.
//!
//! Step 1 and the unique key of step 6 make the effect happen once, whatever the queue delivers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::event::Event;
use crate::domain::identity::{self, Group};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::failpoint;
use crate::ports::clock::Clock;
use crate::ports::locks::Locks;
use crate::ports::store::{
    BrandIdentifier, EventRow, KnownEvents, Move, OrderRow, Store, StoreError, StoreTx,
};
use crate::services::merge::{self, Grant, Taking};

/// How often a batch is run that loses races, before it goes back to the queue.
const MAX_RUNS: u32 = 8;
/// Runs after which a merge goes on without the lock that somebody else holds.
const RUNS_UNDER_LOCK: u32 = 4;
/// The longest wait before a batch that lost a race is run again; drawn anew each time, and longer with each run.
const RERUN_WAIT: Duration = Duration::from_millis(20);
/// How often a transaction looks again for identifiers that others were faster to claim.
const MAX_LOOKS: u32 = 4;

/// What a batch did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processed {
    /// Events that took effect.
    pub effective: usize,
    /// Events that had taken effect before.
    pub duplicates: usize,
    /// Profiles that changed, now or when duplicates took effect: their cached answers must go.
    pub touched: Vec<(BrandId, ProfileId)>,
}

/// Processes `events` in one transaction.
///
/// # Errors
/// [`StoreError::Conflict`] when it lost too many races; else the store's own. Nothing has taken effect then.
pub async fn process(
    store: &dyn Store,
    locks: &dyn Locks,
    clock: &Arc<dyn Clock>,
    events: &[Event],
) -> Result<Processed, StoreError> {
    let mut run = 1;
    let mut seed = None;
    loop {
        let lost = match once(store, locks, clock, events, seed, run).await {
            Err(lost @ (StoreError::Conflict(_) | StoreError::Fenced(_))) if run < MAX_RUNS => lost,
            outcome => return outcome,
        };
        metrics::counter!("tributary_process_conflicts_total").increment(1);
        tracing::debug!(run, %lost, "run again");
        if matches!(lost, StoreError::Fenced(_)) {
            // The tokens' counter ran backwards: a restart from an old copy, or a failover.
            seed = Some(store.last_fence().await?);
        }
        tokio::time::sleep(RERUN_WAIT.mul_f64(rand::random::<f64>() * f64::from(run))).await;
        run += 1;
    }
}

/// One run. `seed` is the highest fencing token that was used, where the locks' counter is known to be behind.
async fn once(
    store: &dyn Store,
    locks: &dyn Locks,
    clock: &Arc<dyn Clock>,
    events: &[Event],
    seed: Option<i64>,
    run: u32,
) -> Result<Processed, StoreError> {
    let mut tx = store.begin().await?;
    let known = tx.known_events(events).await?;
    let fresh = first_of_each(events, &known);
    // A worker may have died between its commit and dropping the cached answers: whoever gets its items does it.
    let touched: BTreeSet<(BrandId, ProfileId)> =
        known.iter().filter_map(|((brand, _), profile)| Some((*brand, (*profile)?))).collect();
    if fresh.is_empty() {
        return Ok(Processed {
            effective: 0,
            duplicates: events.len(),
            touched: touched.into_iter().collect(),
        });
    }
    let mut cast = Cast::of(&fresh);
    let groups = cast.settle(&mut *tx, clock).await?;
    let merging = merging(&groups, &cast, &fresh);
    let batch = Settled { events, fresh, cast, groups, touched };
    if merging.is_empty() {
        return finish(tx, batch, &[], None).await;
    }
    let ids: Vec<ProfileId> = merging.iter().map(|(_, id)| *id).collect();
    if run > RUNS_UNDER_LOCK {
        // Whoever holds the lock may be dead, or slow. It only saves work: the store decides.
        return finish(tx, batch, &ids, Some(Grant::none())).await;
    }
    // One try: a transaction must not wait for a lock whose holder may wait for this transaction.
    let names = merging.iter().map(|(brand, id)| merge::lock_name(*brand, *id)).collect();
    let taking = Taking { seed, inside_transaction: true, ..Taking::default() };
    merge::with_merge_lock(locks, store, names, taking, |grant| async move {
        finish(tx, batch, &ids, Some(grant)).await
    })
    .await
}

/// A batch whose customers are known.
struct Settled<'e> {
    events: &'e [Event],
    /// Those that take effect.
    fresh: Vec<&'e Event>,
    cast: Cast,
    groups: Vec<Group>,
    /// Profiles whose cached answers must go.
    touched: BTreeSet<(BrandId, ProfileId)>,
}

/// The rest of the transaction: the profiles `merging` are merged under `grant`.
async fn finish(
    mut tx: Box<dyn StoreTx>,
    batch: Settled<'_>,
    merging: &[ProfileId],
    grant: Option<Grant>,
) -> Result<Processed, StoreError> {
    let Settled { events, fresh, cast, groups, mut touched } = batch;
    let mut profiles = lock(&mut *tx, &groups, &cast.minted).await?;
    if let Some(grant) = &grant {
        tx.fence(merging, grant.fence).await?;
    }
    let homes = homes(&groups, fresh.len());
    let rows: Vec<EventRow<'_>> =
        fresh.iter().zip(&homes).map(|(event, home)| EventRow { event, profile: *home }).collect();
    let added = tx.add_events(&rows).await?;
    let moves = merge(&groups, &cast, &fresh, &mut profiles);
    for (event, home) in fresh.iter().zip(&homes) {
        if let Some(profile) = home.and_then(|id| profiles.get_mut(&id))
            && added.contains(&(event.brand, event.message_id.clone()))
        {
            profile.apply(event);
        }
    }
    touched.extend(profiles.values().map(|p| (p.brand, p.id)));
    if !profiles.is_empty() {
        tx.save_profiles(&profiles.into_values().collect::<Vec<_>>()).await?;
    }
    if !moves.is_empty() {
        tx.move_owned(&moves).await?;
    }
    let orders = newest_orders(&rows, &added);
    if !orders.is_empty() {
        tx.save_orders(&orders).await?;
    }
    failpoint::reached("events_added_before_commit");
    if let Some(grant) = &grant {
        failpoint::reached("merge_checked_before_commit");
        if !grant.is_valid() {
            return Err(StoreError::Conflict("the merge's lock ran out before the commit".into()));
        }
    }
    tx.commit().await?;
    Ok(Processed {
        effective: added.len(),
        duplicates: events.len() - added.len(),
        touched: touched.into_iter().collect(),
    })
}

/// The events that are not known, the first of each message id, sorted by it.
fn first_of_each<'e>(events: &'e [Event], known: &KnownEvents) -> Vec<&'e Event> {
    let mut fresh: Vec<&Event> =
        events.iter().filter(|e| !known.contains_key(&(e.brand, e.message_id.clone()))).collect();
    fresh.sort_by(|a, b| (a.brand, &a.message_id).cmp(&(b.brand, &b.message_id)));
    fresh.dedup_by(|later, first| (later.brand, &later.message_id) == (first.brand, &first.message_id));
    fresh
}

/// The identifiers that a batch speaks of, and what is known of their owners.
struct Cast {
    /// Sorted, each once.
    identifiers: Vec<BrandIdentifier>,
    /// For each event, its identifiers as indices.
    of_event: Vec<Vec<usize>>,
    /// For each identifier, its owner.
    owners: Vec<Option<ProfileId>>,
    /// Ids made by this transaction, which no profile has yet.
    minted: BTreeSet<ProfileId>,
}

impl Cast {
    fn of(events: &[&Event]) -> Self {
        let mut places: BTreeMap<BrandIdentifier, usize> = BTreeMap::new();
        for event in events {
            for identifier in &event.identifiers {
                places.insert((event.brand, identifier.clone()), 0);
            }
        }
        for (place, at) in places.values_mut().enumerate() {
            *at = place;
        }
        let of_event = events
            .iter()
            .map(|event| {
                event
                    .identifiers
                    .iter()
                    .map(|identifier| places[&(event.brand, identifier.clone())])
                    .collect()
            })
            .collect();
        let identifiers: Vec<BrandIdentifier> = places.into_keys().collect();
        Self { owners: vec![None; identifiers.len()], identifiers, of_event, minted: BTreeSet::new() }
    }

    /// Gives every identifier an owner, and groups the events by theirs.
    async fn settle(
        &mut self,
        tx: &mut dyn StoreTx,
        clock: &Arc<dyn Clock>,
    ) -> Result<Vec<Group>, StoreError> {
        for _ in 0..MAX_LOOKS {
            self.look(tx).await?;
            let groups = identity::group(&self.of_event, &self.owners);
            let claims = self.claims(&groups, clock);
            if claims.is_empty() {
                return Ok(groups);
            }
            let given: HashSet<BrandIdentifier> = tx.claim(&claims).await?.into_iter().collect();
            for (identifier, profile) in &claims {
                if given.contains(identifier) {
                    let place = self.place(identifier);
                    self.owners[place] = Some(*profile);
                }
            }
            if given.len() == claims.len() {
                return Ok(identity::group(&self.of_event, &self.owners));
            }
        }
        Err(StoreError::Conflict("others kept claiming the same identifiers".into()))
    }

    /// Looks up the owners of identifiers that have none yet.
    async fn look(&mut self, tx: &mut dyn StoreTx) -> Result<(), StoreError> {
        let open: Vec<BrandIdentifier> = self
            .identifiers
            .iter()
            .zip(&self.owners)
            .filter(|(_, owner)| owner.is_none())
            .map(|(identifier, _)| identifier.clone())
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        for (identifier, owner) in tx.owners(&open).await? {
            let place = self.place(&identifier);
            self.owners[place] = Some(owner);
        }
        Ok(())
    }

    /// Identifiers without an owner, with the profile that is to have them: the oldest of their group, or a new one.
    fn claims(&mut self, groups: &[Group], clock: &Arc<dyn Clock>) -> Vec<(BrandIdentifier, ProfileId)> {
        let mut claims = Vec::new();
        for group in groups {
            let mut home = group.owners.first().copied();
            for &place in group.identifiers.iter().filter(|place| self.owners[**place].is_none()) {
                let profile = *home.get_or_insert_with(|| {
                    let minted = ProfileId::new(clock.now_ms());
                    self.minted.insert(minted);
                    minted
                });
                claims.push((self.identifiers[place].clone(), profile));
            }
        }
        claims.sort();
        claims
    }

    fn place(&self, identifier: &BrandIdentifier) -> usize {
        self.identifiers.binary_search(identifier).expect("a store answers only what it was asked")
    }
}

/// Locks the profiles that exist. A profile that is gone or merged away means that the look was too old.
async fn lock(
    tx: &mut dyn StoreTx,
    groups: &[Group],
    minted: &BTreeSet<ProfileId>,
) -> Result<BTreeMap<ProfileId, Profile>, StoreError> {
    let ids: BTreeSet<ProfileId> =
        groups.iter().flat_map(|group| &group.owners).filter(|id| !minted.contains(id)).copied().collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<ProfileId> = ids.into_iter().collect();
    let locked = tx.lock(&ids).await?;
    if locked.len() != ids.len() {
        return Err(StoreError::Invalid("an identifier belongs to a profile that is not there".into()));
    }
    if locked.iter().any(|profile| profile.merged_into.is_some()) {
        return Err(StoreError::Conflict("a profile was merged meanwhile".into()));
    }
    Ok(locked.into_iter().map(|profile| (profile.id, profile)).collect())
}

/// The profiles that exist and are to become one with others, sorted.
fn merging(groups: &[Group], cast: &Cast, events: &[&Event]) -> BTreeSet<(BrandId, ProfileId)> {
    let mut merging = BTreeSet::new();
    for group in groups {
        let existing: Vec<ProfileId> =
            group.owners.iter().filter(|id| !cast.minted.contains(id)).copied().collect();
        if existing.len() > 1 {
            let brand = events[group.events[0]].brand;
            merging.extend(existing.into_iter().map(|id| (brand, id)));
        }
    }
    merging
}

/// The profile of each event: the oldest owner of its group.
fn homes(groups: &[Group], events: usize) -> Vec<Option<ProfileId>> {
    let mut homes = vec![None; events];
    for group in groups {
        for &event in &group.events {
            homes[event] = group.owners.first().copied();
        }
    }
    homes
}

/// Makes one profile of each group, and says what is to move.
fn merge(
    groups: &[Group],
    cast: &Cast,
    events: &[&Event],
    profiles: &mut BTreeMap<ProfileId, Profile>,
) -> Vec<Move> {
    let mut moves = Vec::new();
    for group in groups {
        let Some(&survivor) = group.owners.first() else { continue };
        let brand = events[group.events[0]].brand;
        let mut whole = profiles.remove(&survivor).unwrap_or_else(|| Profile::new(survivor, brand));
        for &loser in group.owners.iter().skip(1) {
            moves.push(Move { from: loser, into: survivor });
            // A minted id that lost its race has identifiers, but no profile.
            if !cast.minted.contains(&loser)
                && let Some(profile) = profiles.get_mut(&loser)
            {
                whole.absorb(profile);
            }
        }
        profiles.insert(survivor, whole);
    }
    moves
}

/// The newest state of each order among the events that were added.
fn newest_orders<'e>(rows: &[EventRow<'e>], added: &HashSet<(BrandId, String)>) -> Vec<OrderRow<'e>> {
    let mut newest: HashMap<(BrandId, &str, &str), OrderRow<'e>> = HashMap::new();
    for EventRow { event, profile } in rows {
        let Some(order) = &event.order else { continue };
        if !added.contains(&(event.brand, event.message_id.clone())) {
            continue;
        }
        let row = OrderRow { brand: event.brand, message_id: &event.message_id, order, profile: *profile };
        let held = newest.entry((event.brand, &order.shop, &order.id)).or_insert(row);
        if (order.updated_at, row.message_id) > (held.order.updated_at, held.message_id) {
            *held = row;
        }
    }
    let mut orders: Vec<OrderRow<'e>> = newest.into_values().collect();
    orders.sort_by(|a, b| (a.brand, &a.order.shop, &a.order.id).cmp(&(b.brand, &b.order.shop, &b.order.id)));
    orders
}
