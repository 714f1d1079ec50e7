//! What is recorded of a merge, and how a profile is made again when one is undone.
//!
//! Traits keep the value that weighs most: see [`Trait`]. So a profile's traits are the newest of what its events say and of
//! what it held before; whatever another profile's events said is left out.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::customer360::StoredEvent;
use super::event::{EventKind, believed};
use super::identity::Identifier;
use super::ids::ProfileId;
use super::profile::{Profile, Trait};
use super::time::{Timestamp, iso};
use super::{shopify, tracking};

/// A profile as it was before it was merged away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the customer was first seen.
    #[serde(with = "iso")]
    pub first_seen: Option<Timestamp>,
    /// When the customer was last seen.
    #[serde(with = "iso")]
    pub last_seen: Option<Timestamp>,
    /// How many events had taken effect.
    pub events_count: i64,
    /// How many profiles it had taken in.
    pub merges: u32,
    /// Of them, those whom a trusted source knew, as it did this one.
    #[serde(default)]
    pub trusted_merges: u32,
    pub traits: BTreeMap<String, Trait>,
}

impl Snapshot {
    pub fn of(profile: &Profile) -> Self {
        Self {
            first_seen: profile.first_seen,
            last_seen: profile.last_seen,
            events_count: profile.events_count,
            merges: profile.standing.all.merges,
            trusted_merges: profile.standing.trusted.merges,
            traits: profile.traits.clone(),
        }
    }
}

/// A merge, as it was recorded.
#[derive(Clone, Debug)]
pub struct Merge {
    pub id: uuid::Uuid,
    /// The profile that took in.
    pub survivor: ProfileId,
    /// The profile that was taken in.
    pub absorbed: ProfileId,
    pub at: Timestamp,
    /// The event that linked the two.
    pub message_id: String,
    /// The profile that was taken in, as it was.
    pub state: Snapshot,
    /// The identifiers that moved.
    pub identifiers: Vec<Identifier>,
    /// The orders that moved: shop, and Shopify's id.
    pub orders: Vec<(String, String)>,
    /// When it was undone, if it was.
    pub undone_at: Option<Timestamp>,
}

/// An event as the store keeps it, with what decides between what it says and what others say.
#[derive(Clone, Debug)]
pub struct Retold {
    pub event: StoredEvent,
    /// From when what it says holds.
    pub told_at: Timestamp,
    /// What comes later of two with the same time.
    pub sequence: i64,
}

/// Makes a profile again out of what was known and what its events say.
#[derive(Debug)]
pub struct Rebuild {
    profile: Profile,
    /// What was known before and is not from elsewhere.
    held: BTreeMap<String, Trait>,
    seen: Option<(Timestamp, Timestamp)>,
}

impl Rebuild {
    /// Begins with `profile`, which has the numbers that it is to have, and with the traits `held` before, except
    /// those that the messages `elsewhere` said.
    pub fn new(mut profile: Profile, held: BTreeMap<String, Trait>, elsewhere: &BTreeSet<String>) -> Self {
        profile.traits.clear();
        let held = held.into_iter().filter(|(_, held)| !elsewhere.contains(&held.message_id)).collect();
        Self { profile, held, seen: None }
    }

    /// Takes in one of its events.
    pub fn event(&mut self, Retold { event, told_at, sequence }: &Retold) {
        let updates = match EventKind::parse(&event.kind) {
            Some(EventKind::Shopify) => {
                shopify::traits_again(event.name.as_deref().unwrap_or_default(), &event.body, event.timestamp)
            }
            Some(kind) => tracking::traits_again(kind, &event.body, *told_at),
            None => Vec::new(),
        };
        for update in updates {
            if !event.source.may_set(&update.name) {
                continue;
            }
            let offered = Trait {
                at_ms: believed(update.at, event.received_at).timestamp_millis(),
                sequence: *sequence,
                message_id: event.message_id.clone(),
                value: update.value,
                source: event.source,
            };
            self.profile.offer(&update.name, offered);
        }
        if event.active {
            let (first, last) = self.seen.unwrap_or((event.timestamp, event.timestamp));
            self.seen = Some((first.min(event.timestamp), last.max(event.timestamp)));
        }
    }

    /// The profile. `doubtful` are the times that may have come from the other profile: they stand only where its own events
    /// say so.
    pub fn done(mut self, doubtful: &Snapshot) -> Profile {
        for (name, held) in self.held {
            self.profile.offer(&name, held);
        }
        let (first, last) = self.seen.unzip();
        if self.profile.first_seen == doubtful.first_seen || self.profile.first_seen.is_none() {
            self.profile.first_seen = first;
        }
        if self.profile.last_seen == doubtful.last_seen || self.profile.last_seen.is_none() {
            self.profile.last_seen = last;
        }
        self.profile
    }
}
