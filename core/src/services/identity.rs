//! What people do to a customer's identity: look at its history, preview and make a merge, undo one.
//!
//! A split gives back what a merge moved: identifiers, events, orders, consents by the profile they came to first, traits and
//! times made anew from the events. What came since stays where it is, because which of the two it was about is just what was in
//! doubt. The two are kept apart from then on: an event that names both stays with its most trusted identifier.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::context::Context;
use crate::domain::event::{Event, EventKind};
use crate::domain::history::{Merge, Rebuild, Snapshot};
use crate::domain::identity::{Counts, Identifier, Tally, over_limit};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::{Profile, Trait};
use crate::domain::time::{self, Timestamp};
use crate::ports::outbox::Stage;
use crate::ports::store::{MergeRow, Relation, RelationKind, StoreError, StoreTx};
use crate::services::automations::jobs::{Job, Signal};
use crate::services::customer360;
use crate::services::merge::{self, Grant, Taking};
use crate::services::privacy::{Action, entry};

/// How often a change is tried that loses races against workers.
const MAX_TRIES: u32 = 8;
/// Events that are read at once to make a profile anew.
const PAGE: i64 = 1000;

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no such customer or merge.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// It cannot be done, and why.
    #[error("{0}")]
    Refused(String),
    /// The store's own.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One merge, as people see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct MergeEntry {
    /// Its id.
    pub id: Uuid,
    /// The profile that took in.
    pub survivor: ProfileId,
    /// The profile that was taken in.
    pub merged: ProfileId,
    /// When.
    pub at: String,
    /// The event that linked the two.
    pub message_id: String,
    /// The identifiers that moved.
    pub identifiers: Vec<Identifier>,
    /// How many events the profile had that was taken in.
    pub events: i64,
    /// The ids of the orders that moved.
    pub orders: Vec<String>,
    /// When it was undone, if it was.
    pub undone_at: Option<String>,
}

impl From<Merge> for MergeEntry {
    fn from(merge: Merge) -> Self {
        Self {
            id: merge.id,
            survivor: merge.survivor,
            merged: merge.loser,
            at: time::format(merge.at),
            message_id: merge.message_id,
            identifiers: merge.identifiers,
            events: merge.state.events_count,
            orders: merge.orders.into_iter().map(|(_, id)| id).collect(),
            undone_at: merge.undone_at.map(time::format),
        }
    }
}

/// The merges that made a customer, newest first; `None` for nobody of this brand.
///
/// # Errors
/// The store's own.
pub async fn history(
    context: &Context,
    brand: BrandId,
    id: ProfileId,
) -> Result<Option<Vec<MergeEntry>>, StoreError> {
    let Some(id) = context.directory.survivor(brand, id).await? else { return Ok(None) };
    let merges = context.directory.merges(brand, id).await?;
    Ok(Some(merges.into_iter().map(MergeEntry::from).collect()))
}

/// What a merge of two customers would make.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = MergePreview)]
pub struct Preview {
    /// The profile that would survive: the older one.
    pub survivor: ProfileId,
    /// The one that would be taken in.
    pub merged: ProfileId,
    /// All identifiers.
    pub identifiers: Vec<Identifier>,
    /// The traits that would hold.
    pub traits: BTreeMap<String, Value>,
    /// Traits on which the two differ: what each says, the survivor's first.
    pub conflicts: BTreeMap<String, [Value; 2]>,
    /// How many events.
    pub events_count: i64,
    /// The limit that stops events from making this merge, if one does.
    pub limit: Option<String>,
    /// Whether the two were split before.
    pub split_before: bool,
}

/// What a merge of two customers would make.
///
/// # Errors
/// [`IdentityError::Unknown`] for nobody, [`IdentityError::Refused`] for one and the same.
pub async fn preview(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
) -> Result<Preview, IdentityError> {
    let [survivor, merged] = pair(context, brand, a, b).await?;
    let read = async |id| context.store.customer(brand, id).await?.ok_or(IdentityError::Unknown("customer"));
    let (one, other) = (read(survivor).await?, read(merged).await?);
    let mut identifiers: Vec<Identifier> = one.identifiers.into_iter().chain(other.identifiers).collect();
    identifiers.sort();
    let set = |profile: &Profile| -> BTreeMap<String, Value> {
        let held = profile.traits.iter().filter(|(_, held)| !held.value.is_null());
        held.map(|(name, held)| (name.clone(), held.value.clone())).collect()
    };
    let (own, theirs) = (set(&one.profile), set(&other.profile));
    let conflicts = own
        .iter()
        .filter_map(|(name, value)| {
            let other = theirs.get(name).filter(|other| *other != value)?;
            Some((name.clone(), [value.clone(), other.clone()]))
        })
        .collect();
    let (book, _) = context.brands.of(BTreeSet::from([brand])).await?;
    let parts = [(true, one.profile.standing.all), (true, other.profile.standing.all)];
    let limit = over_limit(parts.into_iter(), book.limits(brand));
    let split_before = one.related.iter().any(|r| r.id == merged && r.kind == RelationKind::Split.as_str());
    let (mut whole, mut gone) = (one.profile, other.profile);
    whole.absorb(&mut gone);
    let traits = set(&whole);
    Ok(Preview {
        survivor,
        merged,
        identifiers,
        traits,
        conflicts,
        events_count: whole.events_count,
        limit,
        split_before,
    })
}

/// Makes one customer of two, whatever the limits say: a person has looked. Answers the survivor and the merge's id.
///
/// # Errors
/// As [`preview`].
pub async fn merge_two(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
    actor: &str,
) -> Result<(ProfileId, Uuid), IdentityError> {
    let mut tries = 1;
    let (survivor, id) = loop {
        let [survivor, merged] = pair(context, brand, a, b).await?;
        let names = vec![merge::lock_name(brand, survivor), merge::lock_name(brand, merged)];
        let work = |grant: Grant| merge_under(context, brand, (survivor, merged), actor, grant);
        match merge::with_merge_lock(&*context.locks, &*context.store, names, patient(), work).await {
            Ok(id) => break (survivor, id),
            Err(StoreError::Conflict(_) | StoreError::Fenced(_)) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    };
    Ok((survivor, id))
}

async fn merge_under(
    context: &Context,
    brand: BrandId,
    (survivor, merged): (ProfileId, ProfileId),
    actor: &str,
    grant: Grant,
) -> Result<Uuid, StoreError> {
    let mut tx = context.store.begin_for(brand).await?;
    let mut held = locked(&mut *tx, &[survivor, merged]).await?;
    let (Some(mut whole), Some(mut gone)) = (held.remove(&survivor), held.remove(&merged)) else {
        return Err(StoreError::Conflict("a customer was erased meanwhile".into()));
    };
    if whole.merged_into.is_some() || gone.merged_into.is_some() {
        return Err(StoreError::Conflict("a profile was merged meanwhile".into()));
    }
    tx.fence(&[survivor, merged], grant.fence).await?;
    let row = MergeRow::new(&gone, survivor, format!("by hand: {actor}"), context.clock.now());
    let related = gone.standing.related;
    whole.absorb(&mut gone);
    tx.record_merges(std::slice::from_ref(&row)).await?;
    tx.save_profiles(&[whole, gone]).await?;
    tx.move_owned(&[row.moved], related).await?;
    stage_signals(context, &mut *tx, row.brand, &[survivor]).await?;
    let details = serde_json::json!({"merge": row.id, "merged": merged});
    let action = Action { what: "merge", subject: Some(survivor), details };
    tx.note(&entry(context, row.brand, actor, action)).await?;
    committed(tx, &grant).await?;
    Ok(row.id)
}

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
pub async fn split(context: &Context, brand: BrandId, id: Uuid, actor: &str) -> Result<Split, IdentityError> {
    let mut tries = 1;
    let done = loop {
        let merge = context.directory.merge(brand, id).await?.ok_or(IdentityError::Unknown("merge"))?;
        if let Some(at) = merge.undone_at {
            return Err(IdentityError::Refused(format!("the merge was undone at {}", time::format(at))));
        }
        let from = context
            .directory
            .survivor(brand, merge.survivor)
            .await?
            .ok_or(IdentityError::Unknown("customer"))?;
        let names = vec![merge::lock_name(brand, from), merge::lock_name(brand, merge.loser)];
        let above = above(context, brand, &merge, from).await?;
        let work = |grant: Grant| split_under(context, brand, (&merge, actor), &above, from, grant);
        match merge::with_merge_lock(&*context.locks, &*context.store, names, patient(), work).await {
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
    grant: Grant,
) -> Result<Split, StoreError> {
    let now = context.clock.now();
    let mut tx = context.store.begin_for(brand).await?;
    // Also those between the two: another split of the same chain must not move what this one gives back.
    let between: Vec<ProfileId> = above.iter().map(|merge| merge.loser).collect();
    let mut held = locked(&mut *tx, &[&[from, merge.loser], &between[..]].concat()).await?;
    let (rest, back) = parted(&mut held, merge, above, from)?;
    let mut ids = [from, merge.loser];
    ids.sort();
    tx.fence(&ids, grant.fence).await?;
    tx.undo_merge(merge.id, now).await?;
    let given = tx.give_back(from, merge.loser).await?;
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
    let action = Action { what: "split", subject: Some(merge.loser), details };
    tx.note(&entry(context, brand, actor, action)).await?;
    committed(tx, &grant).await?;
    Ok(Split {
        restored: merge.loser,
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
        above.iter().all(|one| held.get(&one.loser).is_some_and(|p| p.merged_into == Some(one.survivor)));
    let end = above.last().map_or(merge.survivor, |one| one.survivor);
    let (Some(rest), Some(back)) = (held.remove(&from), held.remove(&merge.loser)) else {
        return Err(StoreError::Conflict("a customer was erased meanwhile".into()));
    };
    if !led || end != from || rest.merged_into.is_some() || back.merged_into != Some(merge.survivor) {
        return Err(StoreError::Conflict("a profile was merged or split meanwhile".into()));
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
    let all = context.directory.merges(brand, from).await?;
    let mut path = Vec::new();
    let mut at = merge.survivor;
    while at != from {
        let Some(next) = all.iter().find(|one| one.loser == at && one.undone_at.is_none()) else { break };
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

/// A profile made anew from its events and from what it `held`, without what others said.
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
    // What an event of this profile said stands; what nobody's event says any more was retained, and stands unless it is told.
    elsewhere.retain(|message| known.get(&(brand, message.clone())).is_none_or(|owner| *owner != Some(id)));
    elsewhere
        .extend(known.into_iter().filter(|(_, owner)| *owner != Some(id)).map(|((_, message), _)| message));
    let mut rebuild = Rebuild::new(profile, held, &elsewhere);
    let mut after: Option<(Timestamp, String)> = None;
    loop {
        let page = tx.events_of(id, after.as_ref(), PAGE).await?;
        page.iter().for_each(|told| rebuild.event(told));
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => {
                after = Some((last.event.timestamp, last.event.message_id.clone()))
            }
            _ => return Ok(rebuild.done(doubtful)),
        }
    }
}

/// The two customers that are meant now, the older first.
async fn pair(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
) -> Result<[ProfileId; 2], IdentityError> {
    let now =
        async |id| context.directory.survivor(brand, id).await?.ok_or(IdentityError::Unknown("customer"));
    let mut both = [now(a).await?, now(b).await?];
    if both[0] == both[1] {
        return Err(IdentityError::Refused("these two are one customer already".into()));
    }
    both.sort();
    Ok(both)
}

/// Locks profiles, in order.
async fn locked(tx: &mut dyn StoreTx, ids: &[ProfileId]) -> Result<BTreeMap<ProfileId, Profile>, StoreError> {
    let ids: Vec<ProfileId> = ids.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    Ok(tx.lock(&ids).await?.into_iter().map(|profile| (profile.id, profile)).collect())
}

/// What these customers belong to is asked anew.
async fn stage_signals(
    context: &Context,
    tx: &mut dyn StoreTx,
    brand: BrandId,
    ids: &[ProfileId],
) -> Result<(), StoreError> {
    let signal = |id: &ProfileId| Job::Signal(Signal { brand, profile: *id, events: Vec::new() }).stage();
    let stages: Vec<Stage> = ids.iter().map(signal).collect();
    tx.stage(&stages, context.clock.now_ms()).await
}

async fn committed(tx: Box<dyn StoreTx>, grant: &Grant) -> Result<(), StoreError> {
    if !grant.is_valid() {
        return Err(StoreError::Conflict("the merge's lock ran out before the commit".into()));
    }
    tx.commit().await
}

fn patient() -> Taking {
    Taking { patience: std::time::Duration::from_secs(2), ..Taking::default() }
}

/// Ways that led to the profile that was split lead elsewhere now.
async fn forget_ways(context: &Context, brand: BrandId, split: &Split) -> Result<(), StoreError> {
    let merges = context.directory.merges(brand, split.restored).await?;
    let ids: BTreeSet<ProfileId> =
        merges.iter().flat_map(|merge| [merge.loser, merge.survivor]).chain([split.restored]).collect();
    let ids: Vec<ProfileId> = ids.into_iter().filter(|id| *id != split.from).collect();
    let keys = customer360::ways(&context.suppression, brand, &ids, &split.identifiers);
    if let Err(error) = context.cache.remove(&keys).await {
        tracing::warn!(%error, "cached ways could not be dropped; they grow old by themselves");
    }
    Ok(())
}
