//! Leaving out the links that must not be: those over a limit, across a split, and between people whom trusted sources know apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::group::DisjointSets;
use super::{IdentifierKind, Standing, over_limit};
use crate::domain::ids::ProfileId;
use crate::domain::settings::Limits;

/// What [`prune`] decided.
#[derive(Debug, Default)]
pub struct Pruned {
    /// For each event, the identifiers that it keeps, as indices.
    pub of_event: Vec<Vec<usize>>,
    /// Profiles that were refused a link by a limit, with the limit.
    pub limited: BTreeMap<ProfileId, String>,
    /// Pairs of profiles, the smaller first, that an event would have linked, with the identifier that would have, and why not.
    pub refused: BTreeMap<(ProfileId, ProfileId), (usize, Refusal)>,
}

/// Why a link was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Split,
    /// Only a public key stated it.
    Untrusted,
    /// What they would have become is over this limit.
    Limit(String),
}

impl Refusal {
    /// In words, for a link by an identifier of that kind.
    pub fn reason(&self, kind: IdentifierKind) -> String {
        let kind = kind.as_str();
        match self {
            Self::Split => format!("a shared {kind}: they were split"),
            Self::Untrusted => format!(
                "a shared {kind}: a public key named both; an event that Shopify signs or a secret key sends, and that names \
                 both, would make them one"
            ),
            Self::Limit(limit) => format!("a shared {kind} would have made {limit}"),
        }
    }
}

/// What is known of an identifier when links are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What sort it is.
    pub kind: IdentifierKind,
    /// Whose it is, if anybody's.
    pub owner: Option<ProfileId>,
    /// Whether that is so by a trusted source's word.
    pub trusted: bool,
}

/// The sets that events make whose links are beyond doubt, and what trusted sources hold already.
struct Firm {
    sets: DisjointSets,
    /// The place of each known profile behind those of the identifiers.
    places: BTreeMap<ProfileId, usize>,
}

impl Firm {
    fn of<'e>(
        firm_events: impl Iterator<Item = &'e [usize]>,
        identifiers: &[Held],
        known: impl Fn(ProfileId) -> bool,
    ) -> Self {
        let owners: BTreeSet<ProfileId> = identifiers.iter().filter_map(|held| held.owner).collect();
        let known = owners.into_iter().filter(|owner| known(*owner)).enumerate();
        let places: BTreeMap<ProfileId, usize> =
            known.map(|(at, owner)| (owner, identifiers.len() + at)).collect();
        let mut sets = DisjointSets::new(identifiers.len() + places.len());
        for (place, held) in identifiers.iter().enumerate().filter(|(_, held)| held.trusted) {
            if let Some(profile) = held.owner.and_then(|owner| places.get(&owner)) {
                sets.join(place, *profile);
            }
        }
        for event in firm_events {
            for pair in event.windows(2) {
                sets.join(pair[0], pair[1]);
            }
        }
        Self { sets, places }
    }
}

/// How many people trusted sources know among those whom a group would make one customer. More than one means that only a public
/// key's word holds the group together.
///
/// `firm_events` lists the identifiers of each event that [`links_firmly`](crate::domain::event::Event::links_firmly), as indices.
pub fn people<'e>(
    firm_events: impl Iterator<Item = &'e [usize]> + Clone,
    identifiers: &[Held],
    known: impl Fn(ProfileId) -> bool,
) -> usize {
    let mut firm = Firm::of(firm_events.clone(), identifiers, known);
    let people = firm_events.filter_map(|event| event.first().copied()).chain(firm.places.values().copied());
    people.map(|place| firm.sets.root(place)).collect::<BTreeSet<_>>().len()
}

/// Identifiers that a trusted source says are somebody else's than whom a public key gave them to: they go to whom it says.
pub fn disowned<'e>(
    firm_events: impl Iterator<Item = &'e [usize]> + Clone,
    identifiers: &[Held],
    known: impl Fn(ProfileId) -> bool,
) -> BTreeSet<usize> {
    let mut firm = Firm::of(firm_events.clone(), identifiers, known);
    let mut taken = BTreeSet::new();
    // Somebody whom nobody trusted knows yet is whoever is named first.
    let mut becomes: BTreeMap<ProfileId, usize> = BTreeMap::new();
    for &place in firm_events.flatten() {
        let held = &identifiers[place];
        let Some(owner) = held.owner.filter(|_| !held.trusted) else { continue };
        let person = firm.sets.root(place);
        let whose = match firm.places.get(&owner) {
            Some(profile) => firm.sets.root(*profile),
            None => *becomes.entry(owner).or_insert(person),
        };
        if whose != person {
            taken.insert(place);
        }
    }
    taken
}

/// What an event that is pruned may do.
#[derive(Clone, Copy, Debug)]
pub struct Linking<'a> {
    /// Its identifiers, sorted by trust, as indices.
    pub identifiers: &'a [usize],
    /// Whether its links are beyond doubt.
    pub firm: bool,
    /// The limits of its brand.
    pub limits: &'a Limits,
}

/// Leaves out of each event the identifiers whose link would pass a limit, join what was split, or make two people one whom
/// trusted sources know, on a public key's word: the least trusted goes first, so the event stays with its most trusted identifier.
/// (Segment calls that demoting.) Events whose links are beyond doubt come first, whatever their place.
///
/// `standing` speaks of each owner; `apart` holds pairs that were split, the smaller id first.
pub fn prune(
    events: &[Linking<'_>],
    identifiers: &[Held],
    standing: &HashMap<ProfileId, Standing>,
    apart: &BTreeSet<(ProfileId, ProfileId)>,
) -> Pruned {
    let mut pruning = Pruning::new(events.len(), identifiers, standing, apart);
    let firm_first = events.iter().enumerate().filter(|(_, event)| event.firm);
    for (at, event) in firm_first.chain(events.iter().enumerate().filter(|(_, event)| !event.firm)) {
        pruning.link(at, event);
    }
    pruning.pruned
}

struct Pruning<'p> {
    identifiers: &'p [Held],
    apart: &'p BTreeSet<(ProfileId, ProfileId)>,
    /// Every identifier is a set of its own to begin with; those of one owner are one.
    sets: DisjointSets,
    /// The profiles of each set, by its root, and where they stand together.
    whole: HashMap<usize, (Vec<ProfileId>, Standing)>,
    /// What an event beyond doubt keeps is trusted from then on.
    trusted: Vec<bool>,
    pruned: Pruned,
}

impl<'p> Pruning<'p> {
    fn new(
        events: usize,
        identifiers: &'p [Held],
        standing: &HashMap<ProfileId, Standing>,
        apart: &'p BTreeSet<(ProfileId, ProfileId)>,
    ) -> Self {
        let mut sets = DisjointSets::new(identifiers.len());
        let mut first_of_owner: BTreeMap<ProfileId, usize> = BTreeMap::new();
        for (place, held) in identifiers.iter().enumerate() {
            if let Some(owner) = held.owner {
                let first = *first_of_owner.entry(owner).or_insert(place);
                sets.join(first, place);
            }
        }
        let mut whole: HashMap<usize, (Vec<ProfileId>, Standing)> = HashMap::new();
        for (place, held) in identifiers.iter().enumerate() {
            let root = sets.root(place);
            whole.entry(root).or_insert_with(|| match held.owner {
                Some(owner) => (vec![owner], standing.get(&owner).cloned().unwrap_or_default()),
                None => {
                    let mut new = Standing::default();
                    new.add(held.kind, false);
                    (vec![], new)
                }
            });
        }
        let trusted = identifiers.iter().map(|held| held.owner.is_some() && held.trusted).collect();
        let pruned = Pruned { of_event: vec![Vec::new(); events], ..Pruned::default() };
        Self { identifiers, apart, sets, whole, trusted, pruned }
    }

    /// Links the identifiers of an event, but those whose link must not be.
    fn link(&mut self, at: usize, event: &Linking<'_>) {
        let mut kept: Vec<usize> = Vec::with_capacity(event.identifiers.len());
        for &place in event.identifiers {
            let theirs = self.sets.root(place);
            let ours = kept.first().map_or(theirs, |first| self.sets.root(*first));
            let raises = event.firm && !self.trusted[place];
            if ours == theirs {
                if raises && let Some((_, standing)) = self.whole.get_mut(&ours) {
                    standing.trusted.counts.add(self.identifiers[place].kind);
                    self.trusted[place] = true;
                }
                kept.push(place);
            } else if self.join(event, place, (ours, theirs), raises) {
                kept.push(place);
            }
        }
        if let Some(first) = kept.first().filter(|_| event.firm) {
            let root = self.sets.root(*first);
            if let Some((_, standing)) = self.whole.get_mut(&root) {
                standing.known = true;
            }
        }
        self.pruned.of_event[at] = kept;
    }

    /// Makes one of two sets that an event links by an identifier, unless that must not be. Returns whether it did.
    fn join(
        &mut self,
        event: &Linking<'_>,
        place: usize,
        (ours, theirs): (usize, usize),
        raises: bool,
    ) -> bool {
        let ((our_profiles, own), (their_profiles, other)) = (&self.whole[&ours], &self.whole[&theirs]);
        let mut other = other.clone();
        if raises {
            other.trusted.counts.add(self.identifiers[place].kind);
        }
        let exist = [!our_profiles.is_empty(), !their_profiles.is_empty()];
        let refusal = if !event.firm && own.known && other.known {
            Some(Refusal::Untrusted)
        } else {
            let counted = [own, &other].map(|part| if event.firm { part.trusted } else { part.all });
            let limit = over_limit(exist.into_iter().zip(counted), event.limits).map(Refusal::Limit);
            limit.or_else(|| self.were_split(our_profiles, their_profiles).then_some(Refusal::Split))
        };
        let Some(refusal) = refusal else {
            let mut joined = own.clone();
            joined.take_in(other, exist == [true, true]);
            let profiles = [our_profiles.as_slice(), their_profiles].concat();
            self.sets.join(ours, theirs);
            self.whole.insert(self.sets.root(ours), (profiles, joined));
            self.trusted[place] |= raises;
            return true;
        };
        if let Refusal::Limit(limit) = &refusal {
            for profile in our_profiles.iter().chain(their_profiles) {
                self.pruned.limited.entry(*profile).or_insert_with(|| limit.clone());
            }
        }
        if let (Some(a), Some(b)) = (our_profiles.iter().min(), their_profiles.iter().min()) {
            self.pruned.refused.entry((*a.min(b), *a.max(b))).or_insert((place, refusal));
        }
        false
    }

    fn were_split(&self, ours: &[ProfileId], theirs: &[ProfileId]) -> bool {
        let mut pairs = ours.iter().flat_map(|a| theirs.iter().map(move |b| (*a.min(b), *a.max(b))));
        pairs.any(|pair| self.apart.contains(&pair))
    }
}
