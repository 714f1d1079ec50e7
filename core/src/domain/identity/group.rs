//! Grouping events that share an identifier, directly or through others.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::ids::ProfileId;

/// Events and identifiers that belong to one customer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub events: Vec<usize>,
    pub identifiers: Vec<usize>,
    /// Profiles that own one of the identifiers. The smallest is the oldest: it survives.
    pub owners: BTreeSet<ProfileId>,
}

/// Groups events by the identifiers they share and by the profiles that already own these.
///
/// `event_identifiers[e]` lists the identifiers of event `e` as indices into `owners`, which holds each identifier's
/// present owner. An event without identifiers is in no group. Groups come in order of their first event.
pub fn group(event_identifiers: &[Vec<usize>], owners: &[Option<ProfileId>]) -> Vec<Group> {
    let mut sets = DisjointSets::new(owners.len());
    let mut first_of_owner: BTreeMap<ProfileId, usize> = BTreeMap::new();
    for (identifier, owner) in owners.iter().enumerate() {
        if let Some(owner) = owner {
            let first = *first_of_owner.entry(*owner).or_insert(identifier);
            sets.join(first, identifier);
        }
    }
    for identifiers in event_identifiers {
        for pair in identifiers.windows(2) {
            sets.join(pair[0], pair[1]);
        }
    }
    let mut place: BTreeMap<usize, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (event, identifiers) in event_identifiers.iter().enumerate() {
        if let Some(&first) = identifiers.first() {
            let root = sets.root(first);
            let at = *place.entry(root).or_insert_with(|| {
                groups.push(Group::default());
                groups.len() - 1
            });
            groups[at].events.push(event);
        }
    }
    for (identifier, owner) in owners.iter().enumerate() {
        if let Some(&at) = place.get(&sets.root(identifier)) {
            groups[at].identifiers.push(identifier);
            groups[at].owners.extend(owner);
        }
    }
    groups
}

/// Union-find with path halving.
pub(super) struct DisjointSets(Vec<usize>);

impl DisjointSets {
    pub(super) fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    pub(super) fn root(&mut self, mut of: usize) -> usize {
        while self.0[of] != of {
            self.0[of] = self.0[self.0[of]];
            of = self.0[of];
        }
        of
    }

    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}
