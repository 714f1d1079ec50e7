//! Resolving who the events of a batch are about: whose their identifiers are, and which of them speak of one customer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Rerun;
use crate::domain::event::{Event, Source};
use crate::domain::identity::{self, Group, Held, Linking, Standing, Tally};
use crate::domain::ids::ProfileId;
use crate::domain::profile::Profile;
use crate::ports::store::{BrandIdentifier, Claim, RelationKind, StoreError, StoreTx};
use crate::ports::world::World;
use crate::services::brand_cache::BrandRules;

/// How often a transaction looks again for identifiers that others were faster to claim.
const MAX_LOOKS: u32 = 4;

/// The identifiers that a batch speaks of, and what is known of their owners.
pub(super) struct Resolution {
    pub(super) identifiers: Vec<BrandIdentifier>,
    /// For each event, its identifiers as indices; with care, without those whose link must not be.
    of_event: Vec<Vec<usize>>,
    /// For each identifier, its owner.
    pub(super) owners: Vec<Option<ProfileId>>,
    /// For each identifier, who says that it is its owner's.
    pub(super) sources: Vec<Source>,
    /// For each identifier, the most trusted source that names somebody by it here.
    named: Vec<Source>,
    /// For each event, whether its links are beyond doubt.
    pub(super) firm: Vec<bool>,
    /// With care: identifiers that are taken away from profiles that had them by a public key's word.
    pub(super) taken: BTreeMap<usize, ProfileId>,
    /// Ids made by this transaction, which no profile has yet.
    pub(super) minted: BTreeSet<ProfileId>,
    /// Identifiers that this transaction gave away.
    pub(super) given: BTreeSet<usize>,
    /// With care: where the owners stood when links were left out.
    standings: HashMap<ProfileId, Standing>,
    /// With care: profiles to be flagged, with the limit.
    pub(super) limited: BTreeMap<ProfileId, String>,
    /// With care: links between profiles that a limit refused, and that are not known yet.
    pub(super) refused: BTreeMap<(ProfileId, ProfileId), String>,
}

impl Resolution {
    pub(super) fn of(events: &[Cow<'_, Event>]) -> Self {
        let mut places: BTreeMap<BrandIdentifier, usize> = BTreeMap::new();
        for event in events {
            for identifier in &event.identifiers {
                places.insert(BrandIdentifier::new(event.brand, identifier.clone()), 0);
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
                    .map(|identifier| places[&BrandIdentifier::new(event.brand, identifier.clone())])
                    .collect()
            })
            .collect();
        let identifiers: Vec<BrandIdentifier> = places.into_keys().collect();
        let mut resolution = Self {
            owners: vec![None; identifiers.len()],
            sources: vec![Source::Public; identifiers.len()],
            named: vec![Source::Public; identifiers.len()],
            firm: events.iter().map(|event| event.links_firmly()).collect(),
            taken: BTreeMap::new(),
            identifiers,
            of_event,
            minted: BTreeSet::new(),
            given: BTreeSet::new(),
            standings: HashMap::new(),
            limited: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        resolution.name(events);
        resolution
    }

    /// Notes of each identifier who names somebody by it, by what the events keep.
    fn name(&mut self, events: &[Cow<'_, Event>]) {
        self.named.fill(Source::Public);
        for (at, event) in events.iter().enumerate().filter(|(at, _)| self.firm[*at]) {
            for place in &self.of_event[at] {
                self.named[*place] = self.named[*place].max(event.source);
            }
        }
    }

    /// Gives every identifier an owner, and groups the events by theirs.
    pub(super) async fn resolve(
        &mut self,
        tx: &mut dyn StoreTx,
        world: &World,
        rules: &BrandRules,
        events: &[Cow<'_, Event>],
        strict: bool,
    ) -> Result<Vec<Group>, Rerun> {
        let whole = strict.then(|| self.of_event.clone());
        for _ in 0..MAX_LOOKS {
            self.look(tx).await?;
            if let Some(whole) = &whole {
                self.prune(tx, rules, events, whole).await?;
            }
            let groups = identity::group(&self.of_event, &self.owners);
            let claims = self.claims(&groups, world);
            if claims.is_empty() {
                return self.checked(tx, groups, strict).await;
            }
            let claimed: BTreeSet<&BrandIdentifier> = claims.iter().map(|claim| &claim.identifier).collect();
            self.taken.retain(|place, _| claimed.contains(&self.identifiers[*place]));
            let taken: Vec<(BrandIdentifier, ProfileId)> =
                self.taken.iter().map(|(place, from)| (self.identifiers[*place].clone(), *from)).collect();
            if !taken.is_empty() {
                tx.disown(&taken).await?;
            }
            let given: HashSet<BrandIdentifier> = tx.claim(&claims).await?.into_iter().collect();
            if !taken.is_empty() && given.len() < claims.len() {
                return Err(StoreError::Conflict(
                    "an identifier that was removed was claimed concurrently".into(),
                )
                .into());
            }
            for claim in &claims {
                if given.contains(&claim.identifier) {
                    let place = self.place(&claim.identifier);
                    self.owners[place] = Some(claim.profile);
                    self.sources[place] = claim.source;
                    self.given.insert(place);
                }
            }
            if given.len() == claims.len() {
                let groups = identity::group(&self.of_event, &self.owners);
                return self.checked(tx, groups, strict).await;
            }
        }
        Err(StoreError::Conflict("others kept claiming the same identifiers".into()).into())
    }

    /// Whether what was given away may stay so.
    async fn checked(
        &self,
        tx: &mut dyn StoreTx,
        groups: Vec<Group>,
        strict: bool,
    ) -> Result<Vec<Group>, Rerun> {
        if self.given.is_empty() {
            return Ok(groups);
        }
        // An identifier that was given to somebody in one round, and left out of all events in the next, would be nobody's for good.
        let grouped = || groups.iter().flat_map(|group| &group.identifiers).copied().collect::<BTreeSet<_>>();
        if strict && !self.given.is_subset(&grouped()) {
            return Err(StoreError::Conflict("others were faster, and a limit was reached".into()).into());
        }
        // Only now: whoever erases somebody claims their identifiers first, so one of the two sees the other.
        let claimed: Vec<BrandIdentifier> =
            self.given.iter().map(|place| self.identifiers[*place].clone()).collect();
        match (tx.suppressed(&claimed).await?.is_empty(), strict) {
            (true, _) => Ok(groups),
            (false, false) => Err(Rerun::Strictly),
            (false, true) => Err(StoreError::Conflict("a customer is being erased".into()).into()),
        }
    }

    /// Leaves out the links that must not be.
    async fn prune(
        &mut self,
        tx: &mut dyn StoreTx,
        rules: &BrandRules,
        events: &[Cow<'_, Event>],
        whole: &[Vec<usize>],
    ) -> Result<(), StoreError> {
        let owners: Vec<ProfileId> =
            self.owners.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        self.standings = tx.standings(&owners).await?;
        let relations = match self.standings.values().any(|standing| standing.related) {
            true => tx.relations(&owners).await?,
            false => BTreeSet::new(),
        };
        let mut standings = self.standings.clone();
        let held = self.held();
        let known = |id: ProfileId| standings.get(&id).is_some_and(|standing| standing.known);
        let firm: Vec<&[usize]> =
            whole.iter().zip(&self.firm).filter(|(_, firm)| **firm).map(|(of, _)| of.as_slice()).collect();
        for place in identity::disowned(firm.iter().copied(), &held, known) {
            if let Some(owner) = self.owners[place].take() {
                standings
                    .entry(owner)
                    .or_default()
                    .all
                    .counts
                    .remove(self.identifiers[place].identifier.kind);
                self.taken.insert(place, owner);
            }
        }
        for place in &self.given {
            if let Some(owner) = self.owners[*place] {
                let trusted = self.sources[*place].is_trusted();
                standings.entry(owner).or_default().add(self.identifiers[*place].identifier.kind, trusted);
            }
        }
        let apart = relations
            .iter()
            .filter(|(.., kind)| *kind == RelationKind::Split)
            .map(|(a, b, _)| (*a, *b))
            .collect();
        let linking: Vec<Linking<'_>> = events
            .iter()
            .zip(whole)
            .zip(&self.firm)
            .map(|((event, of), firm)| Linking {
                identifiers: of,
                firm: *firm,
                limits: rules.limits(event.brand),
            })
            .collect();
        let pruned = identity::prune(&linking, &self.held(), &standings, &apart);
        self.of_event = pruned.of_event;
        self.name(events);
        let flagged =
            |id: &ProfileId| self.standings.get(id).is_none_or(|standing| standing.limited.is_some());
        self.limited = pruned.limited.into_iter().filter(|(id, _)| !flagged(id)).collect();
        self.refused = pruned
            .refused
            .into_iter()
            .filter(|((a, b), _)| {
                !apart.contains(&(*a, *b)) && !relations.contains(&(*a, *b, RelationKind::Refused))
            })
            // Of profiles that exist: what this transaction makes is told by what it does not link.
            .filter(|((a, b), _)| self.standings.contains_key(a) && self.standings.contains_key(b))
            .map(|(pair, (place, refusal))| (pair, refusal.reason(self.identifiers[place].identifier.kind)))
            .collect();
        Ok(())
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
        for owned in tx.owners(&open).await? {
            let place = self.place(&owned.identifier);
            self.owners[place] = Some(owned.profile);
            self.sources[place] = owned.source;
        }
        Ok(())
    }

    /// What is known of each identifier.
    fn held(&self) -> Vec<Held> {
        (0..self.identifiers.len()).map(|place| self.held_at(place)).collect()
    }

    fn held_at(&self, place: usize) -> Held {
        let owner = self.owners[place];
        let trusted = owner.is_some() && self.sources[place].is_trusted();
        Held { kind: self.identifiers[place].identifier.kind, owner, trusted }
    }

    /// Identifiers of which a trusted source says now, too, whose they are.
    pub(super) fn raised(&self, groups: &[Group]) -> Vec<(BrandIdentifier, Source)> {
        let mut raised = BTreeMap::new();
        for &event in groups.iter().flat_map(|group| &group.events).filter(|event| self.firm[**event]) {
            for &place in
                self.of_event[event].iter().filter(|place| self.named[**place] > self.sources[**place])
            {
                raised.insert(self.identifiers[place].clone(), self.named[place]);
            }
        }
        raised.into_iter().collect()
    }

    /// How many people trusted sources know among those of a group.
    fn people(&self, group: &Group, known: impl Fn(ProfileId) -> bool) -> usize {
        let firm = || group.events.iter().filter(|event| self.firm[**event]);
        // Most groups are one by what makes them a group at all.
        if firm().count() + group.owners.iter().filter(|owner| known(**owner)).count() < 2 {
            return 1;
        }
        let places: BTreeMap<usize, usize> =
            group.identifiers.iter().enumerate().map(|(at, place)| (*place, at)).collect();
        // What this transaction gave away says nothing yet of who somebody is.
        let held = |place: &usize| match self.given.contains(place) {
            true => Held { kind: self.identifiers[*place].identifier.kind, owner: None, trusted: false },
            false => self.held_at(*place),
        };
        let held: Vec<Held> = group.identifiers.iter().map(held).collect();
        let of_event: Vec<Vec<usize>> =
            firm().map(|event| self.of_event[*event].iter().map(|place| places[place]).collect()).collect();
        identity::people(of_event.iter().map(Vec::as_slice), &held, known)
    }

    /// Identifiers without an owner, with the profile that is to have them: the oldest of their group, or a new one.
    fn claims(&mut self, groups: &[Group], world: &World) -> Vec<Claim> {
        let mut claims = Vec::new();
        for group in groups {
            let mut home = group.owners.first().copied();
            for &place in group.identifiers.iter().filter(|place| self.owners[**place].is_none()) {
                let profile = *home.get_or_insert_with(|| {
                    let minted = ProfileId(world.id());
                    self.minted.insert(minted);
                    minted
                });
                let (identifier, source) = (self.identifiers[place].clone(), self.named[place]);
                claims.push(Claim { identifier, profile, source });
            }
        }
        claims.sort();
        claims
    }

    pub(super) fn place(&self, identifier: &BrandIdentifier) -> usize {
        self.identifiers.binary_search(identifier).expect("a store answers only what it was asked")
    }
}

/// Locks the profiles that exist. A profile that is gone or merged away means that the look was too old.
pub(super) async fn lock(
    tx: &mut dyn StoreTx,
    groups: &[Group],
    resolution: &Resolution,
    run: u32,
) -> Result<BTreeMap<ProfileId, Profile>, StoreError> {
    let ids: BTreeSet<ProfileId> = groups
        .iter()
        .flat_map(|group| &group.owners)
        .filter(|id| !resolution.minted.contains(id))
        .chain(resolution.limited.keys())
        .chain(resolution.refused.keys().flat_map(|(a, b)| [a, b]))
        .chain(resolution.taken.values())
        .copied()
        .collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<ProfileId> = ids.into_iter().collect();
    let locked = tx.lock(&ids).await?;
    if locked.len() != ids.len() {
        // Whoever was erased concurrently is gone with all identifiers: looking again shows it.
        return Err(match run {
            1 | 2 => StoreError::Conflict("a customer was erased concurrently".into()),
            _ => StoreError::Invalid("an identifier belongs to a profile that is not there".into()),
        });
    }
    if locked.iter().any(|profile| profile.merged_into.is_some()) {
        return Err(StoreError::Conflict("a profile was merged concurrently".into()));
    }
    Ok(locked.into_iter().map(|profile| (profile.id, profile)).collect())
}

/// Whether the groups may be, now that their profiles are locked.
pub(super) fn check_limits(
    groups: &[Group],
    resolution: &Resolution,
    events: &[Cow<'_, Event>],
    profiles: &BTreeMap<ProfileId, Profile>,
    rules: &BrandRules,
    strict: bool,
) -> Result<(), Rerun> {
    if strict {
        let moved =
            profiles.values().any(|p| resolution.standings.get(&p.id).is_none_or(|seen| *seen != p.standing));
        return match moved {
            true => Err(StoreError::Conflict("a profile gained identifiers concurrently".into()).into()),
            false => Ok(()),
        };
    }
    for group in groups {
        let existing: Vec<&Profile> = group.owners.iter().filter_map(|id| profiles.get(id)).collect();
        if existing.len() > 1 && existing.iter().any(|profile| profile.standing.related) {
            return Err(Rerun::Strictly);
        }
        let known = |id: ProfileId| profiles.get(&id).is_some_and(|profile| profile.standing.known);
        if resolution.people(group, known) > 1 {
            return Err(Rerun::Strictly);
        }
        let given = group.identifiers.iter().filter(|place| resolution.given.contains(place));
        let new = given.map(|place| {
            let mut one = Tally::default();
            one.counts.add(resolution.identifiers[*place].identifier.kind);
            (false, one)
        });
        // Of all, whoever says it: with care it is seen whether what is said counts that.
        let parts = existing.iter().map(|p| (true, p.standing.all)).chain(new);
        if identity::over_limit(parts, rules.limits(events[group.events[0]].brand)).is_some() {
            return Err(Rerun::Strictly);
        }
    }
    Ok(())
}
