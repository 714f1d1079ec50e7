//! Every key that Tributary uses in Redis, in one place.
//!
//! All keys of one queue carry the same hash tag, and so do all of the locks: a script's keys lie in one slot of a Redis
//! Cluster.

/// How a queue lies in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Lists, and a list a batch.
    #[default]
    Lists,
    /// Streams with a consumer group, and a consumer a batch.
    Streams,
}

impl Layout {
    /// The name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lists => "lists",
            Self::Streams => "streams",
        }
    }

    pub fn other(self) -> Self {
        match self {
            Self::Lists => Self::Streams,
            Self::Streams => Self::Lists,
        }
    }
}

/// The keys of one queue: `<space>:{<queue>:00}:<what>`. `00` is the shard; there is one by default.
///
/// The two layouts share what is alike in both (delayed, dead letters, claims, counters), and no more: the leases of the
/// one must not be reclaimed by the other.
#[derive(Clone, Debug)]
pub struct QueueKeys {
    tag: String,
    all: [String; 16],
}

impl QueueKeys {
    /// The keys of queue `name` in the key space `space`.
    pub fn new(space: &str, name: &str, layout: Layout) -> Self {
        let tag = format!("{space}:{{{name}:00}}");
        let shared = |what: &str| format!("{tag}:{what}");
        let own = |what: &str| match layout {
            Layout::Lists => shared(what),
            Layout::Streams => shared(&format!("stream-{what}")),
        };
        let all = [
            // waiting items by priority
            own("pending:0"),
            own("pending:1"),
            own("pending:2"),
            // what was released, by priority: fetched before the waiting
            own("released:0"),
            own("released:1"),
            own("released:2"),
            // items that were lost with their worker: fetched alone, before all
            own("suspect"),
            // markers that wake a worker; they carry no work
            shared("wake"),
            // items that wait for a time: a sorted set by milliseconds since 1970
            shared("delayed"),
            // batch ids by the end of their lease: the only record of who holds what
            own("leases"),
            // ids of dead letters by the time of their burial, and the letters by id
            shared("dead"),
            shared("letters"),
            shared("stats"),
            shared("paused"),
            // what brands hold, by brand: items and bytes; and what they have of dead letters
            shared("shares"),
            shared("dead-shares"),
        ];
        Self { tag, all }
    }

    /// All that a script is given, in its order (scripts/common.lua).
    pub fn all(&self) -> &[String] {
        &self.all
    }

    /// Where items wait, and whoever of them was lost.
    pub fn places(&self) -> &[String] {
        &self.all[..7]
    }

    pub fn wake(&self) -> &str {
        &self.all[7]
    }

    pub fn leases(&self) -> &str {
        &self.all[9]
    }

    /// Dead letters by time.
    pub fn dead(&self) -> &str {
        &self.all[10]
    }

    /// Dead letters of a brand by time; 0 for those of none.
    pub fn dead_of(&self, brand: i64) -> String {
        format!("{}:{brand}", self.dead())
    }

    pub fn shares(&self) -> &str {
        &self.all[14]
    }

    /// What brands have of dead letters.
    pub fn dead_shares(&self) -> &str {
        &self.all[15]
    }

    /// Dead letters by id.
    pub fn letters(&self) -> &str {
        &self.all[11]
    }

    /// What keys begin with that the scripts make: `<tag>:batch:<id>`, `<tag>:claim:<name>` and
    /// `<tag>:dead:<brand>`.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The list of a batch's items.
    pub fn batch(&self, id: &str) -> String {
        format!("{}:batch:{id}", self.tag)
    }

    /// What is remembered under an idempotency key of that name.
    pub fn claim(&self, name: &str) -> String {
        format!("{}:claim:{name}", self.tag)
    }
}

/// The keys of the locks: `<space>:{locks:00}:<what>`.
#[derive(Clone, Debug)]
pub struct LockKeys {
    tag: String,
}

impl LockKeys {
    /// The keys in the key space `space`.
    pub fn new(space: &str) -> Self {
        Self { tag: format!("{space}:{{locks:00}}") }
    }

    /// The lock of that name.
    pub fn lock(&self, name: &str) -> String {
        format!("{}:lock:{name}", self.tag)
    }

    /// The last fencing token that was given out.
    pub fn fence(&self) -> String {
        format!("{}:fence", self.tag)
    }
}

/// The key of a cached answer.
pub fn cache(space: &str, key: &str) -> String {
    format!("{space}:cache:{key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_script_shares_its_hash_tag() {
        for layout in [Layout::Lists, Layout::Streams] {
            let keys = QueueKeys::new("tributary", "events", layout);
            let made = [keys.batch("b"), keys.claim("0af3"), keys.dead_of(7)];
            for key in keys.all().iter().chain(&made) {
                assert!(key.starts_with("tributary:{events:00}:"), "{key}");
            }
        }
        let locks = LockKeys::new("tributary");
        for key in [locks.lock("a"), locks.fence()] {
            assert!(key.starts_with("tributary:{locks:00}:"), "{key}");
        }
    }

    #[test]
    fn the_layouts_share_only_what_is_alike_in_both() {
        let [lists, streams] =
            [Layout::Lists, Layout::Streams].map(|layout| QueueKeys::new("t", "events", layout));
        let shared: Vec<&str> = lists
            .all()
            .iter()
            .filter(|key| streams.all().contains(key))
            .filter_map(|key| key.rsplit(':').next())
            .collect();
        assert_eq!(
            shared,
            ["wake", "delayed", "dead", "letters", "stats", "paused", "shares", "dead-shares"]
        );
    }
}
