//! What becomes of profiles that events link, and of those that a limit keeps apart.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::resolve::Resolution;
use crate::domain::event::Event;
use crate::domain::identity::Group;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;
use crate::ports::store::BrandIdentifier;
use crate::ports::store::{MergeRow, Move, Relation, RelationKind};
use crate::ports::world::World;

/// Flags profiles that a limit stopped, and relates those that it kept apart.
pub(super) fn flag(
    resolution: &Resolution,
    profiles: &mut BTreeMap<ProfileId, Profile>,
    now: Timestamp,
) -> Vec<Relation> {
    for (id, limit) in &resolution.limited {
        if let Some(profile) = profiles.get_mut(id) {
            profile.standing.limited.get_or_insert_with(|| limit.clone());
        }
    }
    let mut relations = Vec::new();
    for ((a, b), reason) in &resolution.refused {
        // One of them may have been merged into another within this batch.
        let at = |id: &ProfileId| profiles.get(id).map(|profile| profile.merged_into.unwrap_or(*id));
        let (Some(a), Some(b)) = (at(a), at(b)) else { continue };
        if a == b {
            continue;
        }
        let Some(brand) = profiles.get(&a).map(|profile| profile.brand) else { continue };
        for id in [a, b] {
            if let Some(profile) = profiles.get_mut(&id) {
                profile.standing.related = true;
            }
        }
        relations.push(Relation {
            brand,
            a: a.min(b),
            b: a.max(b),
            kind: RelationKind::Refused,
            reason: reason.clone(),
            at: now,
        });
    }
    relations
}

/// The profiles that exist and are to become one with others, sorted.
pub(super) fn merging(
    groups: &[Group],
    resolution: &Resolution,
    events: &[Cow<'_, Event>],
) -> BTreeSet<(BrandId, ProfileId)> {
    let mut merging = BTreeSet::new();
    for group in groups {
        let existing: Vec<ProfileId> =
            group.owners.iter().filter(|id| !resolution.minted.contains(id)).copied().collect();
        if existing.len() > 1 {
            let brand = events[group.events[0]].brand;
            merging.extend(existing.into_iter().map(|id| (brand, id)));
        }
    }
    merging
}

/// The profile of each event: the oldest owner of its group.
pub(super) fn homes(groups: &[Group], events: usize) -> Vec<Option<ProfileId>> {
    let mut homes = vec![None; events];
    for group in groups {
        for &event in &group.events {
            homes[event] = group.owners.first().copied();
        }
    }
    homes
}

/// What merging came to.
pub(super) struct Merged {
    pub(super) moves: Vec<Move>,
    pub(super) records: Vec<MergeRow>,
    /// Whether relations speak of any of them.
    pub(super) related: bool,
}

/// Makes one profile of each group, and says what is to move. `trusted` are the places of identifiers that are so by these events.
pub(super) fn merge(
    world: &World,
    groups: &[Group],
    resolution: &Resolution,
    trusted: &BTreeSet<usize>,
    events: &[Cow<'_, Event>],
    profiles: &mut BTreeMap<ProfileId, Profile>,
    now: Timestamp,
) -> Merged {
    for &place in trusted.difference(&resolution.given) {
        if let Some(profile) = resolution.owners[place].and_then(|owner| profiles.get_mut(&owner)) {
            profile.standing.trusted.counts.add(resolution.identifiers[place].identifier.kind);
        }
    }
    let mut merged = Merged { moves: Vec::new(), records: Vec::new(), related: false };
    for group in groups {
        let Some(&survivor) = group.owners.first() else { continue };
        let first = &events[group.events[0]];
        let brand = first.brand;
        let mut whole = profiles.remove(&survivor).unwrap_or_else(|| Profile::new(survivor, brand));
        for &place in group.identifiers.iter().filter(|place| resolution.given.contains(place)) {
            let is_trusted = resolution.sources[place].is_trusted() || trusted.contains(&place);
            whole.standing.add(resolution.identifiers[place].identifier.kind, is_trusted);
        }
        for &absorbed in group.owners.iter().skip(1) {
            let moved = Move { from: absorbed, into: survivor };
            merged.moves.push(moved);
            // A minted id that lost its race has identifiers, but no profile.
            if !resolution.minted.contains(&absorbed)
                && let Some(profile) = profiles.get_mut(&absorbed)
            {
                merged.related |= profile.standing.related;
                let linking = group.events.iter().map(|at| &events[*at]);
                let linking = linking
                    .filter(|event| links(resolution, event, absorbed))
                    .map(|event| &event.message_id)
                    .min()
                    .unwrap_or(&first.message_id);
                merged.records.push(MergeRow::new(world.id(), profile, survivor, linking.clone(), now));
                whole.absorb(profile);
            }
        }
        whole.standing.known |= group.events.iter().any(|event| resolution.firm[*event]);
        profiles.insert(survivor, whole);
    }
    merged
}

/// Whether an event speaks of a profile and of somebody else.
fn links(resolution: &Resolution, event: &Event, profile: ProfileId) -> bool {
    let owners: BTreeSet<ProfileId> = event
        .identifiers
        .iter()
        .filter_map(|identifier| {
            let place = resolution
                .identifiers
                .binary_search(&BrandIdentifier::new(event.brand, identifier.clone()))
                .ok()?;
            resolution.owners[place]
        })
        .collect();
    owners.len() > 1 && owners.contains(&profile)
}
