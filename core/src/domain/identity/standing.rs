//! What limits count of a profile.

use serde::{Deserialize, Serialize};

use super::{Identifier, IdentifierKind, KINDS};
use crate::domain::settings::Limits;

/// How many identifiers a profile has of each kind, in the order of [`IdentifierKind::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts([u32; KINDS]);

impl Counts {
    pub fn add(&mut self, kind: IdentifierKind) {
        self.add_of(kind, 1);
    }

    /// Counts so many more.
    pub fn add_of(&mut self, kind: IdentifierKind, more: u32) {
        self.0[kind as usize] += more;
    }

    pub fn remove(&mut self, kind: IdentifierKind) {
        self.0[kind as usize] = self.0[kind as usize].saturating_sub(1);
    }

    /// Counts all of `other`'s, too.
    pub fn add_all(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, more)| *own += more);
    }

    pub fn take(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, less)| *own = own.saturating_sub(less));
    }

    pub fn of(&self, kind: IdentifierKind) -> u32 {
        self.0[kind as usize]
    }

    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}

impl<'i> FromIterator<&'i Identifier> for Counts {
    fn from_iter<I: IntoIterator<Item = &'i Identifier>>(identifiers: I) -> Self {
        let mut counts = Self::default();
        identifiers.into_iter().for_each(|identifier| counts.add(identifier.kind));
        counts
    }
}

/// What limits count of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub counts: Counts,
    /// Profiles that it has taken in.
    pub merges: u32,
}

/// What a profile's place in the web of identifiers comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All identifiers, and all profiles that it has taken in.
    pub all: Tally,
    /// Of them, the identifiers that are its own by a trusted source's word, and the profiles that a trusted source knew, too. Limits
    /// of what a trusted source says count these alone: whatever public keys add is in nobody's way but their own.
    pub trusted: Tally,
    /// The first limit that refused it a link, for people.
    pub limited: Option<String>,
    /// Whether there are relations that speak of it: a merge must look at them.
    pub related: bool,
    /// Whether a trusted source knows who it is: it named identifiers of the profile in an event about a person.
    pub known: bool,
}

impl Standing {
    /// Counts one identifier more.
    pub fn add(&mut self, kind: IdentifierKind, trusted: bool) {
        self.all.counts.add(kind);
        if trusted {
            self.trusted.counts.add(kind);
        }
    }

    /// Becomes what the two are as one; `merges` where both are profiles.
    pub fn take_in(&mut self, other: Self, merges: bool) {
        self.all.take_in(&other.all, merges);
        self.trusted.take_in(&other.trusted, merges && self.known && other.known);
        self.limited = self.limited.take().or(other.limited);
        self.related |= other.related;
        self.known |= other.known;
    }
}

impl Tally {
    fn take_in(&mut self, other: &Self, merges: bool) {
        self.counts.add_all(&other.counts);
        self.merges += other.merges + u32::from(merges);
    }
}

/// Which limit is in the way of making one of `parts`; `None` when none is. A part that brings nothing of a kind does not
/// pass that kind's limit, so a profile that is beyond one still takes what it does not forbid. A part is a profile, with its
/// tally, or (`false`) what is nobody's yet.
pub fn over_limit(parts: impl Iterator<Item = (bool, Tally)>, limits: &Limits) -> Option<String> {
    let (mut whole, mut giving, mut profiles, mut with_any) = (Tally::default(), [0; KINDS], 0, 0);
    for (exists, part) in parts {
        whole.take_in(&part, false);
        giving.iter_mut().zip(part.counts.0).for_each(|(giving, count)| *giving += u32::from(count > 0));
        profiles += u32::from(exists);
        with_any += u32::from(part.counts.total() > 0);
    }
    for kind in IdentifierKind::ALL {
        let most = limits.of(kind);
        // Several of a kind at once count as several parts: a part of new identifiers is not within a limit by itself.
        if giving[kind as usize] > 1 && whole.counts.of(kind) > most {
            return Some(format!("more than {most} identifiers of the kind {}", kind.as_str()));
        }
    }
    if with_any > 1 && whole.counts.total() > limits.identifiers {
        return Some(format!("more than {} identifiers", limits.identifiers));
    }
    let merges = whole.merges + profiles.saturating_sub(1);
    (profiles > 1 && merges > limits.merges).then(|| format!("more than {} merges", limits.merges))
}
