//! Every key that Tributary uses in Redis, in one place.
//!
//! All keys of one queue carry the same hash tag, so that a script's keys lie in one slot of a Redis Cluster.

/// The keys of one queue: `<space>:{<queue>:00}:<what>`. `00` is the shard; there is one by default.
#[derive(Clone, Debug)]
pub struct QueueKeys {
    tag: String,
    /// Waiting items by priority: pushed left, popped right.
    pub pending: [String; 3],
    /// Items that were lost with their worker, to be fetched alone.
    pub suspect: String,
    /// Markers that wake a worker; they carry no work.
    pub wake: String,
    /// Items that wait for a time: a sorted set by milliseconds since 1970.
    pub delayed: String,
    /// Batch ids by the end of their lease: the only record of what is in flight.
    pub leases: String,
    /// Dead letters by the time of their burial.
    pub dead: String,
    /// Counters.
    pub stats: String,
}

impl QueueKeys {
    /// The keys of queue `name` in the key space `space`.
    pub fn new(space: &str, name: &str) -> Self {
        let tag = format!("{space}:{{{name}:00}}");
        let key = |what: &str| format!("{tag}:{what}");
        Self {
            pending: [key("pending:0"), key("pending:1"), key("pending:2")],
            suspect: key("suspect"),
            wake: key("wake"),
            delayed: key("delayed"),
            leases: key("leases"),
            dead: key("dead"),
            stats: key("stats"),
            tag,
        }
    }

    /// What a batch's key begins with; the id follows.
    pub fn batch_prefix(&self) -> String {
        format!("{}:batch:", self.tag)
    }

    /// The list of a batch's items.
    pub fn batch(&self, id: &str) -> String {
        format!("{}:batch:{id}", self.tag)
    }

    /// The mark that an idempotency key was seen.
    pub fn claim(&self, key: &str) -> String {
        format!("{}:claim:{key}", self.tag)
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
    fn every_key_of_a_queue_shares_its_hash_tag() {
        let keys = QueueKeys::new("tributary", "events");
        let mut all = vec![&keys.suspect, &keys.wake, &keys.delayed, &keys.leases, &keys.dead, &keys.stats];
        all.extend(&keys.pending);
        let made = [keys.batch("b"), keys.claim("shopify:a.myshopify.com:w"), keys.batch_prefix()];
        for key in all.into_iter().chain(&made) {
            assert!(key.starts_with("tributary:{events:00}:"), "{key}");
        }
    }
}
