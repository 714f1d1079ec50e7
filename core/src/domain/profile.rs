//! A customer's profile: how events change it, and how two become one.
//!
//! Invariant: both operations commute. Traits keep the newest value that a trusted source stated, or else the newest of all, by
//! its [`Version`](super::version::Version); times keep their extremes, counters add up; so any order of events and merges ends in the same profile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::{Event, Source};
use super::identity::Standing;
use super::ids::{BrandId, ProfileId};
use super::json::is_default;
use super::time::Timestamp;

/// Traits of this prefix are tags: `tag:vip` is true for whoever is tagged `vip`. Each is a trait of its own, so that tags that
/// are given at once do not overwrite each other.
pub const TAG: &str = "tag:";

/// The most traits of a profile. Beyond it the newest are kept, by the same order that decides between two values.
pub const MAX_TRAITS: usize = 300;
/// The largest trait, in bytes of JSON. A larger one stays in its event and is not taken over.
pub const MAX_TRAIT_BYTES: usize = 4096;

/// How much of a name is searched, in characters.
const MAX_NAME_CHARS: usize = 200;

/// A trait's value, and what decides between two: whether its source is trusted, then its [`Version`](super::version::Version).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trait {
    /// When the value was true, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: i64,
    /// What comes later of two with the same time.
    #[serde(rename = "q", default, skip_serializing_if = "is_default")]
    pub sequence: i64,
    /// The event that said so.
    #[serde(rename = "m")]
    pub message_id: String,
    /// The value; null means unset.
    #[serde(rename = "v")]
    pub value: Value,
    #[serde(rename = "s", default, skip_serializing_if = "Source::is_public")]
    pub source: Source,
}

impl Trait {
    /// What decides between two.
    fn weight(&self) -> (bool, i64, i64, &str) {
        (self.source.is_trusted(), self.at_ms, self.sequence, &self.message_id)
    }
}

/// A profile as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its id; the smallest of merged profiles survives.
    pub id: ProfileId,
    pub brand: BrandId,
    /// When the customer was first seen, by the events' own time.
    pub first_seen: Option<Timestamp>,
    /// When the customer was last seen, by the events' own time.
    pub last_seen: Option<Timestamp>,
    /// How many events took effect.
    pub events_count: i64,
    /// What is known of the customer.
    pub traits: BTreeMap<String, Trait>,
    /// Where it went, if it was merged away.
    pub merged_into: Option<ProfileId>,
    /// Its place in the web of identifiers.
    pub standing: Standing,
}

impl Profile {
    /// The tags that it has, sorted: its own, and those that Shopify lists in one text.
    pub fn tags(&self) -> Vec<&str> {
        let traits = &self.traits;
        let given = traits.iter().filter(|(_, held)| held.value == Value::Bool(true));
        let mut tags: Vec<&str> = given.filter_map(|(name, _)| name.strip_prefix(TAG)).collect();
        // Shopify's older bodies and its order files list them in one text, which is old where a tag was taken away since.
        if let Some(list) = traits.get("tags").filter(|list| list.source.is_trusted()) {
            let is_gone = |tag: &str| {
                let own = traits.get(&format!("{TAG}{tag}"));
                own.is_some_and(|own| own.value == Value::Bool(false) && own.at_ms >= list.at_ms)
            };
            let listed = list.value.as_str().unwrap_or_default().split(',').map(str::trim);
            tags.extend(listed.filter(|tag| !tag.is_empty() && !is_gone(tag)));
        }
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// A profile of nobody yet.
    pub fn new(id: ProfileId, brand: BrandId) -> Self {
        Self {
            id,
            brand,
            first_seen: None,
            last_seen: None,
            events_count: 0,
            traits: BTreeMap::new(),
            merged_into: None,
            standing: Standing::default(),
        }
    }

    /// Takes in an event. The caller has made sure that it takes effect only once.
    pub fn apply(&mut self, event: &Event) {
        self.events_count += 1;
        if event.active {
            self.seen(event.timestamp, event.timestamp);
        }
        for update in &event.traits {
            let offered = Trait {
                at_ms: update.at.timestamp_millis(),
                sequence: event.sequence,
                message_id: event.message_id.clone(),
                value: update.value.clone(),
                source: event.source,
            };
            self.offer(&update.name, offered);
        }
    }

    /// Takes in all of `other`, and marks it as merged into this one.
    pub fn absorb(&mut self, other: &mut Self) {
        self.events_count += std::mem::take(&mut other.events_count);
        if let (Some(first), Some(last)) = (other.first_seen.take(), other.last_seen.take()) {
            self.seen(first, last);
        }
        for (name, offered) in std::mem::take(&mut other.traits) {
            self.offer(&name, offered);
        }
        self.standing.take_in(std::mem::take(&mut other.standing), true);
        other.merged_into = Some(self.id);
    }

    /// The customer's name in lower case for searching, as "first last" and "last first".
    pub fn names(&self) -> Option<(String, String)> {
        let text = |names: &[&str]| {
            let held = names.iter().find_map(|name| self.traits.get(*name)?.value.as_str());
            held.map(|text| text.trim().to_lowercase().replace('\0', "")).filter(|text| !text.is_empty())
        };
        let (first, last) = (text(&["firstName", "first_name"]), text(&["lastName", "last_name"]));
        let both = |a: &Option<String>, b: &Option<String>| -> String {
            let joined = [a, b].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
            joined.chars().take(MAX_NAME_CHARS).collect()
        };
        match (&first, &last) {
            (None, None) => {
                let whole = text(&["name"])?;
                let surname = whole.rsplit(' ').next().unwrap_or_default().to_owned();
                Some((both(&Some(whole), &None), surname))
            }
            _ => Some((both(&first, &last), both(&last, &first))),
        }
    }

    fn seen(&mut self, first: Timestamp, last: Timestamp) {
        self.first_seen = Some(self.first_seen.map_or(first, |at| at.min(first)));
        self.last_seen = Some(self.last_seen.map_or(last, |at| at.max(last)));
    }

    /// Sets a trait where `offered` weighs more than what is there.
    pub fn offer(&mut self, name: &str, offered: Trait) {
        let stands = self.traits.get(name).is_some_and(|held| held.weight() >= offered.weight());
        if !stands {
            self.traits.insert(name.to_owned(), offered);
            self.forget_oldest();
        }
    }

    /// Keeps [`MAX_TRAITS`]. What is older than all of these stays out whenever it comes, so this commutes, too.
    fn forget_oldest(&mut self) {
        if self.traits.len() > MAX_TRAITS {
            let oldest = self.traits.iter().min_by_key(|(name, held)| (held.weight(), *name));
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.traits.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::{EventKind, TraitUpdate};
    use crate::domain::time::from_ms;

    fn event(number: usize, at: i64, active: bool, traits: &[(u8, u8)]) -> Event {
        Event {
            traits: traits
                .iter()
                .map(|(name, value)| TraitUpdate {
                    name: format!("t{name}"),
                    value: (*value).into(),
                    at: from_ms(at),
                })
                .collect(),
            active,
            ..Event::new(BrandId(1), format!("m{number}"), EventKind::Identify, from_ms(at))
        }
    }

    #[test]
    fn a_profile_keeps_its_newest_traits_whatever_their_order() {
        let events: Vec<Event> = (0..MAX_TRAITS + 50)
            .map(|n| {
                let mut one = event(n, n as i64, true, &[(0, 0)]);
                one.traits[0].name = format!("trait {}", n * 7 % 1000);
                one
            })
            .collect();
        let (mut there, mut back) = (
            Profile::new(ProfileId::first_at(1), BrandId(1)),
            Profile::new(ProfileId::first_at(1), BrandId(1)),
        );
        events.iter().for_each(|event| there.apply(event));
        events.iter().rev().for_each(|event| back.apply(event));
        assert_eq!(there.traits.len(), MAX_TRAITS);
        assert_eq!(there.traits.values().map(|held| held.at_ms).min(), Some(50));
        assert_eq!(there.traits, back.traits);
        assert_eq!(there.events_count, back.events_count);
    }

    proptest! {
        /// However the events are shuffled and dealt to profiles that merge later, the end is the same.
        #[test]
        fn any_order_of_events_and_merges_ends_in_the_same_profile(
            drawn in prop::collection::vec((0_i64..5, any::<bool>(), prop::collection::vec((0_u8..3, 0_u8..9), 0..3), 0_usize..3, any::<u32>()), 1..20),
        ) {
            let events: Vec<_> = drawn.iter().enumerate().map(|(n, (at, active, traits, ..))| {
                let mut unique = traits.clone();
                unique.sort();
                unique.dedup_by_key(|t| t.0);
                event(n, *at, *active, &unique)
            }).collect();
            let id = ProfileId::first_at(1);
            let mut plain = Profile::new(id, BrandId(1));
            for event in &events {
                plain.apply(event);
            }
            let mut order: Vec<usize> = (0..events.len()).collect();
            order.sort_by_key(|n| drawn[*n].4);
            let mut parts = vec![Profile::new(id, BrandId(1)), Profile::new(ProfileId::first_at(2), BrandId(1)), Profile::new(ProfileId::first_at(3), BrandId(1))];
            for n in order {
                parts[drawn[n].3].apply(&events[n]);
            }
            let mut last = parts.pop().unwrap();
            let mut middle = parts.pop().unwrap();
            middle.absorb(&mut last);
            parts[0].absorb(&mut middle);
            plain.standing.all.merges = 2;
            prop_assert_eq!(&parts[0], &plain);
            prop_assert_eq!((last.events_count, last.merged_into), (0, Some(middle.id)));
        }
    }
}
