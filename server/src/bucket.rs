//! How often somebody may come, in events and bytes, not in requests: a bucket that a request may overdraw, so that a large one is let
//! in and paid for afterwards. (The crates that limit rates admit what they have room for, or nothing.)

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tributary_core::ports::clock::Moment;

/// Bytes that count as one event; an event of more counts as several.
pub const UNIT_BYTES: usize = 2 * 1024;

/// What a request with so many events, of so many bytes in all, counts as.
pub fn cost(events: usize, bytes: usize) -> u32 {
    u32::try_from(events.max(bytes.div_ceil(UNIT_BYTES)).max(1)).unwrap_or(u32::MAX)
}

/// A second's worth of room, that fills again all the time.
#[derive(Debug)]
pub struct Bucket {
    per_second: NonZeroU32,
    /// When all that was let in will have been paid for.
    paid_at: Mutex<Moment>,
}

impl Bucket {
    /// Full: a second's worth may come at once.
    pub fn new(per_second: NonZeroU32, now: Moment) -> Self {
        Self { per_second, paid_at: Mutex::new(now) }
    }

    /// What it lets in, a second.
    pub fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// Lets something in that costs so much, where there is room for one at all.
    ///
    /// # Errors
    /// How long to wait.
    pub fn take(&self, now: Moment, cost: u32) -> Result<(), Duration> {
        let each = Duration::from_secs(1) / self.per_second.get();
        let burst = Duration::from_secs(1).saturating_sub(each);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = paid_at.since(now);
        if owed > burst {
            return Err(owed.saturating_sub(burst));
        }
        *paid_at = (*paid_at).max(now) + each.saturating_mul(cost);
        Ok(())
    }

    /// Whether there is room for one.
    ///
    /// # Errors
    /// How long to wait.
    pub fn room(&self, now: Moment) -> Result<(), Duration> {
        self.take(now, 0)
    }
}

#[cfg(test)]
mod tests {
    use tributary_core::ports::clock::{Clock, SystemClock};

    use super::*;

    #[test]
    fn a_second_s_worth_comes_at_once_and_the_rest_as_it_is_paid() {
        let began = SystemClock.monotonic();
        let bucket = Bucket::new(NonZeroU32::new(5).unwrap(), began);
        assert!((0..5).all(|_| bucket.take(began, 1).is_ok()));
        assert!(bucket.take(began, 1).unwrap_err() <= Duration::from_millis(200));
        assert!(bucket.take(began + Duration::from_millis(201), 1).is_ok());
        assert!(bucket.take(began + Duration::from_millis(201), 1).is_err());
    }

    #[test]
    fn a_large_request_is_let_in_and_paid_for() {
        let began = SystemClock.monotonic();
        let bucket = Bucket::new(NonZeroU32::new(1).unwrap(), began);
        assert_eq!(bucket.take(began, 2500), Ok(()), "else it never could be");
        let wait = bucket.take(began, 1).unwrap_err();
        assert!(wait > Duration::from_secs(2490), "{wait:?}");
        assert!(bucket.take(began + Duration::from_secs(2500), 1).is_ok());
    }

    #[test]
    fn events_and_bytes_count_not_requests() {
        assert_eq!([cost(0, 0), cost(1, 300), cost(100, 30_000), cost(1, 32 * 1024)], [1, 1, 100, 16]);
        assert_eq!(cost(500, 2 * 1024 * 1024), 1024, "what is copied counts as often as it is copied");
    }
}
