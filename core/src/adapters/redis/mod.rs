//! Redis: the queue, the locks and the cache of the services profile. Redis commands and keys occur nowhere else.

pub mod cache;
pub mod client;
pub mod element;
pub mod keys;
pub mod locks;
pub mod queue;

use std::time::Duration;

/// Milliseconds, as Redis takes them.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A time to live, as Redis takes it: not 0, which it refuses.
fn ttl_ms(duration: Duration) -> u64 {
    ms(duration).max(1)
}

/// A text as a part of a pattern that means nothing but itself.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if "*?[]\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect()
}
