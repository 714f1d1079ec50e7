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
    /// They were split.
    Split,
    /// Only a public key told of it.
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
/// `firm_events` lists the identifiers of each event that [`links_firmly`](super::event::Event::links_firmly), as indices.
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
    // Somebody whom nobody trusted knows yet is whoever is told of first.
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
    // Every identifier is a set of its own to begin with; those of one owner are one, with that owner's standing.
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
    // What an event beyond doubt keeps is trusted from then on.
    let mut trusted: Vec<bool> =
        identifiers.iter().map(|held| held.owner.is_some() && held.trusted).collect();
    let mut pruned = Pruned { of_event: vec![Vec::new(); events.len()], ..Pruned::default() };
    let firm_first = events.iter().enumerate().filter(|(_, event)| event.firm);
    for (at, event) in firm_first.chain(events.iter().enumerate().filter(|(_, event)| !event.firm)) {
        let mut kept: Vec<usize> = Vec::with_capacity(event.identifiers.len());
        for &place in event.identifiers {
            let theirs = sets.root(place);
            let ours = kept.first().map_or(theirs, |first| sets.root(*first));
            let raises = event.firm && !trusted[place];
            if ours == theirs {
                if raises && let Some((_, standing)) = whole.get_mut(&ours) {
                    standing.trusted.counts.add(identifiers[place].kind);
                    trusted[place] = true;
                }
                kept.push(place);
                continue;
            }
            let ((our_profiles, own), (their_profiles, other)) = (&whole[&ours], &whole[&theirs]);
            let mut other = other.clone();
            if raises {
                other.trusted.counts.add(identifiers[place].kind);
            }
            let split = our_profiles
                .iter()
                .flat_map(|a| their_profiles.iter().map(move |b| (*a.min(b), *a.max(b))))
                .find(|pair| apart.contains(pair));
            let doubtful = !event.firm && own.known && other.known;
            let exist = [!our_profiles.is_empty(), !their_profiles.is_empty()];
            let refusal = if doubtful {
                Some(Refusal::Untrusted)
            } else {
                let counted = [own, &other].map(|part| if event.firm { part.trusted } else { part.all });
                let limit = over_limit(exist.into_iter().zip(counted), event.limits).map(Refusal::Limit);
                limit.or(split.map(|_| Refusal::Split))
            };
            let Some(refusal) = refusal else {
                let mut joined = own.clone();
                joined.take_in(other, exist == [true, true]);
                let profiles = [our_profiles.as_slice(), their_profiles].concat();
                sets.join(ours, theirs);
                whole.insert(sets.root(ours), (profiles, joined));
                trusted[place] |= raises;
                kept.push(place);
                continue;
            };
            if let Refusal::Limit(limit) = &refusal {
                for profile in our_profiles.iter().chain(their_profiles) {
                    pruned.limited.entry(*profile).or_insert_with(|| limit.clone());
                }
            }
            if let (Some(a), Some(b)) = (our_profiles.iter().min(), their_profiles.iter().min()) {
                pruned.refused.entry((*a.min(b), *a.max(b))).or_insert((place, refusal));
            }
        }
        if let Some(first) = kept.first().filter(|_| event.firm) {
            let root = sets.root(*first);
            if let Some((_, standing)) = whole.get_mut(&root) {
                standing.known = true;
            }
        }
        pruned.of_event[at] = kept;
    }
    pruned
}
