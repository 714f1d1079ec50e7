//! The jobs of the automations queue. They name things and say nothing of customers: what was erased meanwhile stays erased.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::context::AUTOMATIONS_QUEUE;
use crate::domain::automation::run::Run;
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::outbox::Stage;
use crate::ports::queue::{NewItem, Priority};
use crate::ports::store::EventRow;
use crate::services::brand_cache::BrandRules;
use crate::services::brand_cache::SETTINGS_TTL;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Something happened to a customer.
    Signal(Signal),
    /// A run is to go on.
    Run {
        brand: BrandId,
        run: Uuid,
        /// At which revision: it has gone on already if it stands at another.
        revision: i64,
    },
    /// A schedule came up: runs begin for the members of its segment, a page at a time.
    Schedule {
        brand: BrandId,
        automation: Uuid,
        /// When it came up, in milliseconds since 1970.
        at_ms: i64,
        /// Those after this one.
        after: Option<ProfileId>,
    },
    /// All customers are asked again what they belong to, a page at a time, because segments are new or other.
    Fill {
        brand: BrandId,
        /// Which segments those are: who comes into them by this starts no run.
        segments: Vec<String>,
        /// Those after this one.
        after: Option<ProfileId>,
    },
    /// An automation's e-mails are to be sent to whoever writes it.
    Trial {
        brand: BrandId,
        /// Under which id it was asked for.
        trial: Uuid,
    },
}

/// Something happened to a customer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    pub brand: BrandId,
    pub profile: ProfileId,
    /// By which events, by message id; by none, where time or a merge did it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
}

impl Job {
    /// Reads what [`Job::stage`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(payload).map_err(|error| format!("not a job of an automation: {error}"))
    }

    /// The job for a run as it stands.
    pub fn of(run: &Run) -> Self {
        Self::Run { brand: run.brand, run: run.id, revision: run.revision }
    }

    pub fn brand(&self) -> BrandId {
        match self {
            Self::Signal(signal) => signal.brand,
            Self::Run { brand, .. }
            | Self::Schedule { brand, .. }
            | Self::Fill { brand, .. }
            | Self::Trial { brand, .. } => *brand,
        }
    }

    /// The job for the outbox.
    pub fn stage(&self) -> Stage {
        let priority = match self {
            Self::Trial { .. } => Priority::High,
            Self::Run { .. } | Self::Signal(_) => Priority::Normal,
            Self::Schedule { .. } | Self::Fill { .. } => Priority::Low,
        };
        // These types always write: every key is a string, every number whole.
        let payload = serde_json::to_vec(self).unwrap_or_default().into();
        // The first page of a filling begins when every process has heard of what is to be filled.
        let delay = match self {
            Self::Fill { after: None, .. } => SETTINGS_TTL + Duration::from_secs(1),
            _ => Duration::ZERO,
        };
        let item = NewItem { payload, priority, delay, brand: Some(self.brand()), ..NewItem::default() };
        Stage { queue: AUTOMATIONS_QUEUE.to_owned(), item }
    }
}

/// The signals of a batch: of events that took effect, and of profiles whose orders changed, or that others were merged into.
pub(crate) fn signals(
    rules: &BrandRules,
    effective: &[EventRow<'_>],
    changed: &BTreeSet<(BrandId, ProfileId)>,
) -> Vec<Stage> {
    let mut of: BTreeMap<(BrandId, ProfileId), BTreeSet<&str>> = BTreeMap::new();
    for EventRow { event, profile } in effective {
        let (Some(profile), Some(interests)) = (profile, rules.interests.get(&event.brand)) else { continue };
        if interests.concern(event) {
            of.entry((event.brand, *profile)).or_default().insert(&event.message_id);
        }
    }
    for (brand, profile) in changed {
        if rules.interests.get(brand).is_some_and(|interests| interests.any()) {
            of.entry((*brand, *profile)).or_default();
        }
    }
    let signal = |((brand, profile), events): (_, BTreeSet<&str>)| {
        let events = events.into_iter().map(str::to_owned).collect();
        Job::Signal(Signal { brand, profile, events }).stage()
    };
    of.into_iter().map(signal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_reads_as_it_was_written() {
        let id = ProfileId::first_at(5);
        for job in [
            Job::Signal(Signal { brand: BrandId(1), profile: id, events: vec!["a".into()] }),
            Job::Run { brand: BrandId(1), run: Uuid::nil(), revision: 3 },
            Job::Schedule { brand: BrandId(1), automation: Uuid::nil(), at_ms: 5, after: Some(id) },
            Job::Fill { brand: BrandId(1), segments: vec!["a".into()], after: None },
            Job::Trial { brand: BrandId(1), trial: Uuid::nil() },
        ] {
            assert_eq!(Job::read(&job.stage().item.payload), Ok(job));
        }
        assert!(Job::read(b"{}").unwrap_err().contains("not a job"));
    }
}
