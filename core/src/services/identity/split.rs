//! Splits: a merge is undone.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use uuid::Uuid;

use super::{IdentityError, MAX_TRIES, PAGE, committed, locked, patient, stage_signals};
use crate::context::Context;
use crate::domain::customer360::EventKey;
use crate::domain::event::{Event, EventKind};
use crate::domain::history::{Merge, Rebuild, Snapshot};
use crate::domain::identity::{Counts, Identifier, Tally};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::{Profile, Trait};
use crate::domain::time::{self, Timestamp};
use crate::ports::store::EventId;
use crate::ports::store::{Relation, RelationKind, StoreError, StoreTx};
use crate::services::customer360;
use crate::services::merge::{self, LockGuard};
use crate::services::privacy::{Action, entry};

/// What a split did.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct Split {
    /// The profile that stands by itself again.
    pub restored: ProfileId,
    /// The profile that it was taken out of.
    pub from: ProfileId,
    /// The identifiers that went back.
    pub identifiers: Vec<Identifier>,
    /// How many events went back.
    pub events: u64,
    /// How many orders went back.
    pub orders: u64,
}

/// Undoes a merge.
///
/// # Errors
/// [`IdentityError::Unknown`] where the brand has no such merge, [`IdentityError::Refused`] where it is undone already.
#[tracing::instrument(name = "split", skip_all, fields(brand = brand.0))]
pub async fn split(context: &Context, brand: BrandId, id: Uuid, actor: &str) -> Result<Split, IdentityError> {
    let mut tries = 1;
    let done = loop {
        let merge = context.customer_search.merge(brand, id).await?.ok_or(IdentityError::Unknown("merge"))?;
        if let Some(at) = merge.undone_at {
            return Err(IdentityError::Refused(format!("the merge was undone at {}", time::format(at))));
        }
        let from = context
            .customer_search
            .survivor(brand, merge.survivor)
            .await?
            .ok_or(IdentityError::Unknown("customer"))?;
        let names = vec![merge::lock_name(brand, from), merge::lock_name(brand, merge.absorbed)];
        let above = above(context, brand, &merge, from).await?;
        let work = |guard: LockGuard| split_under(context, brand, (&merge, actor), &above, from, guard);
        match merge::with_merge_lock(&*context.locks, &*context.store, &context.world, names, patient(), work)
            .await
        {
            Ok(done) => break done,
            Err(StoreError::Conflict(_) | StoreError::Fenced(_)) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    };
    forget_ways(context, brand, &done).await?;
    Ok(done)
}

async fn split_under(
    context: &Context,
    brand: BrandId,
    (merge, actor): (&Merge, &str),
    above: &[Merge],
    from: ProfileId,
    guard: LockGuard,
) -> Result<Split, StoreError> {
    let now = context.world.now();
    let mut tx = context.store.begin_for(brand).await?;
    // Also those between the two: another split of the same chain must not move what this one gives back.
    let between: Vec<ProfileId> = above.iter().map(|merge| merge.absorbed).collect();
    let mut held = locked(&mut *tx, &[&[from, merge.absorbed], &between[..]].concat()).await?;
    let (rest, back) = parted(&mut held, merge, above, from)?;
    let mut ids = [from, merge.absorbed];
    ids.sort();
    tx.fence(&ids, guard.fence).await?;
    tx.undo_merge(merge.id, now).await?;
    let given = tx.give_back(from, merge.absorbed).await?;
    let counts: Counts = given.identifiers.iter().collect();
    let events = i64::try_from(given.events).unwrap_or(i64::MAX);
    let (rest, back) = both_rebuilt(&mut *tx, merge, (rest, back), (counts, events)).await?;
    tx.save_profiles(&[rest, back]).await?;
    for carried in above {
        tx.rewrite_merge(&without(carried, merge, &given.identifiers, events)).await?;
    }
    let apart = Relation {
        brand,
        a: ids[0],
        b: ids[1],
        kind: RelationKind::Split,
        reason: format!("the merge {} was undone", merge.id),
        at: now,
    };
    tx.relate(&[apart]).await?;
    stage_signals(context, &mut *tx, brand, &ids).await?;
    let details = serde_json::json!({
        "merge": merge.id, "from": from, "events": given.events, "orders": given.orders,
    });
    let action = Action { what: "split", subject: Some(merge.absorbed), details };
    tx.append_audit(&entry(context, brand, actor, action)).await?;
    committed(tx, &guard).await?;
    Ok(Split {
        restored: merge.absorbed,
        from,
        identifiers: given.identifiers,
        events: given.events,
        orders: given.orders,
    })
}

/// The profile that a merge is taken out of, and the one that is given back, where both are still what the merge made of them.
fn parted(
    held: &mut BTreeMap<ProfileId, Profile>,
    merge: &Merge,
    above: &[Merge],
    from: ProfileId,
) -> Result<(Profile, Profile), StoreError> {
    let led =
        above.iter().all(|one| held.get(&one.absorbed).is_some_and(|p| p.merged_into == Some(one.survivor)));
    let end = above.last().map_or(merge.survivor, |one| one.survivor);
    let (Some(rest), Some(back)) = (held.remove(&from), held.remove(&merge.absorbed)) else {
        return Err(StoreError::Conflict("a customer was erased concurrently".into()));
    };
    if !led || end != from || rest.merged_into.is_some() || back.merged_into != Some(merge.survivor) {
        return Err(StoreError::Conflict("a profile was merged or split concurrently".into()));
    }
    Ok((rest, back))
}

/// Both profiles as their events make them, after identifiers and events have gone back.
async fn both_rebuilt(
    tx: &mut dyn StoreTx,
    merge: &Merge,
    (mut rest, mut back): (Profile, Profile),
    (counts, events): (Counts, i64),
) -> Result<(Profile, Profile), StoreError> {
    let brand = rest.brand;
    let mut ids = [rest.id, back.id];
    ids.sort();
    rest.events_count = (rest.events_count - events).max(0);
    rest.standing.all.counts.take(&counts);
    rest.standing.all.merges = rest.standing.all.merges.saturating_sub(merge.state.merges + 1);
    rest.standing.related = true;
    rest.standing.limited = None;
    let said_there: BTreeSet<String> = {
        let theirs = &merge.state.traits;
        let same = rest.traits.iter().filter(|(name, held)| theirs.get(*name) == Some(*held));
        same.map(|(_, held)| held.message_id.clone()).collect()
    };
    let held = std::mem::take(&mut rest.traits);
    let rest = rebuilt(tx, brand, rest, held, said_there, &merge.state).await?;
    back.merged_into = None;
    back.events_count = events;
    back.first_seen = merge.state.first_seen;
    back.last_seen = merge.state.last_seen;
    back.standing.all = Tally { counts, merges: merge.state.merges };
    back.standing.related = true;
    let mut rest = rest;
    let trusted = tx.trusted_counts(&ids).await?;
    for profile in [&mut rest, &mut back] {
        profile.standing.known = trusted.contains_key(&profile.id);
        profile.standing.trusted.counts = trusted.get(&profile.id).copied().unwrap_or_default();
    }
    let were_known = rest.standing.known && back.standing.known;
    let gone = merge.state.trusted_merges + u32::from(were_known);
    rest.standing.trusted.merges = rest.standing.trusted.merges.saturating_sub(gone);
    back.standing.trusted.merges = merge.state.trusted_merges;
    let held = merge.state.traits.clone();
    let back = rebuilt(tx, brand, back, held, BTreeSet::new(), &Snapshot::default()).await?;
    Ok((rest, back))
}

/// The merges that carried on what `merge` brought: their records speak of it, too.
async fn above(
    context: &Context,
    brand: BrandId,
    merge: &Merge,
    from: ProfileId,
) -> Result<Vec<Merge>, StoreError> {
    let all = context.customer_search.merges(brand, from).await?;
    let mut path = Vec::new();
    let mut at = merge.survivor;
    while at != from {
        let Some(next) = all.iter().find(|one| one.absorbed == at && one.undone_at.is_none()) else { break };
        at = next.survivor;
        path.push(next.clone());
    }
    Ok(path)
}

/// A merge's record without what another brought that was undone.
fn without(merge: &Merge, undone: &Merge, identifiers: &[Identifier], events: i64) -> Merge {
    let mut merge = merge.clone();
    merge.state.traits.retain(|name, held| undone.state.traits.get(name) != Some(held));
    merge.state.events_count = (merge.state.events_count - events).max(0);
    merge.state.merges = merge.state.merges.saturating_sub(undone.state.merges + 1);
    merge.state.trusted_merges = merge.state.trusted_merges.saturating_sub(undone.state.trusted_merges + 1);
    // Times that may have come from the other are found out from the events, should this one be undone, too.
    if merge.state.first_seen == undone.state.first_seen {
        merge.state.first_seen = None;
    }
    if merge.state.last_seen == undone.state.last_seen {
        merge.state.last_seen = None;
    }
    merge.identifiers.retain(|identifier| !identifiers.contains(identifier));
    merge.orders.retain(|order| !undone.orders.contains(order));
    merge
}

/// A profile made again from its events and from what it `held`, without what others said.
async fn rebuilt(
    tx: &mut dyn StoreTx,
    brand: BrandId,
    profile: Profile,
    held: BTreeMap<String, Trait>,
    mut elsewhere: BTreeSet<String>,
    doubtful: &Snapshot,
) -> Result<Profile, StoreError> {
    let id = profile.id;
    let said: Vec<Event> = held
        .values()
        .map(|held| Event::new(brand, held.message_id.clone(), EventKind::Identify, Timestamp::default()))
        .collect();
    let known = if said.is_empty() { Default::default() } else { tx.known_events(&said).await? };
    // What an event of this profile said stands; what nobody's event says any more was retained, and stands unless it is stated.
    let of = |message: &String| EventId { brand, message_id: message.clone() };
    elsewhere.retain(|message| known.get(&of(message)).is_none_or(|owner| *owner != Some(id)));
    elsewhere
        .extend(known.into_iter().filter(|(_, owner)| *owner != Some(id)).map(|(event, _)| event.message_id));
    let mut rebuild = Rebuild::new(profile, held, &elsewhere);
    let mut after: Option<EventKey> = None;
    loop {
        let page = tx.events_of(id, after.as_ref(), PAGE).await?;
        page.iter().for_each(|stated| rebuild.event(stated));
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => {
                after = Some(last.event.key());
            }
            _ => return Ok(rebuild.done(doubtful)),
        }
    }
}

/// Ways that led to the profile that was split lead elsewhere now.
async fn forget_ways(context: &Context, brand: BrandId, split: &Split) -> Result<(), StoreError> {
    let merges = context.customer_search.merges(brand, split.restored).await?;
    let ids: BTreeSet<ProfileId> =
        merges.iter().flat_map(|merge| [merge.absorbed, merge.survivor]).chain([split.restored]).collect();
    let ids: Vec<ProfileId> = ids.into_iter().filter(|id| *id != split.from).collect();
    let keys = customer360::aliases(&context.suppression, brand, &ids, &split.identifiers);
    if let Err(error) = context.cache.remove(&keys).await {
        tracing::warn!(%error, "cached aliases could not be removed; they expire");
    }
    Ok(())
}
