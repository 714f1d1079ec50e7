//! How often somebody may come, in events and bytes, not in requests: a bucket that a request may overdraw, so that a large one is let
//! in and paid for afterwards. (The crates that limit rates admit what they have room for, or nothing.)

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    paid_at: Mutex<Instant>,
}

impl Bucket {
    /// Full: a second's worth may come at once.
    pub fn new(per_second: NonZeroU32) -> Self {
        Self { per_second, paid_at: Mutex::new(Instant::now()) }
    }

    /// What it lets in, a second.
    pub fn per_second(&self) -> NonZeroU32 {
        self.per_second
    }

    /// Lets something in that costs so much, where there is room for one at all.
    ///
    /// # Errors
    /// How long to wait.
    pub fn take(&self, cost: u32) -> Result<(), Duration> {
        self.take_at(Instant::now(), cost)
    }

    /// Whether there is room for one.
    ///
    /// # Errors
    /// How long to wait.
    pub fn room(&self) -> Result<(), Duration> {
        self.take_at(Instant::now(), 0)
    }

    fn take_at(&self, now: Instant, cost: u32) -> Result<(), Duration> {
        let each = Duration::from_secs(1) / self.per_second.get();
        let burst = Duration::from_secs(1).saturating_sub(each);
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = paid_at.saturating_duration_since(now);
        if owed > burst {
            return Err(owed.saturating_sub(burst));
        }
        *paid_at = (*paid_at).max(now) + each.saturating_mul(cost);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_worth_comes_at_once_and_the_rest_as_it_is_paid() {
        let bucket = Bucket::new(NonZeroU32::new(5).unwrap());
        let at = |ms| Instant::now() + Duration::from_millis(ms);
        let began = at(0);
        assert!((0..5).all(|_| bucket.take_at(began, 1).is_ok()));
        assert!(bucket.take_at(began, 1).unwrap_err() <= Duration::from_millis(200));
        assert!(bucket.take_at(began + Duration::from_millis(201), 1).is_ok());
        assert!(bucket.take_at(began + Duration::from_millis(201), 1).is_err());
    }

    #[test]
    fn a_large_request_is_let_in_and_paid_for() {
        let bucket = Bucket::new(NonZeroU32::new(1).unwrap());
        let began = Instant::now() + Duration::from_secs(1);
        assert_eq!(bucket.take_at(began, 2500), Ok(()), "else it never could be");
        let wait = bucket.take_at(began, 1).unwrap_err();
        assert!(wait > Duration::from_secs(2490), "{wait:?}");
        assert!(bucket.take_at(began + Duration::from_secs(2500), 1).is_ok());
    }

    #[test]
    fn events_and_bytes_count_not_requests() {
        assert_eq!([cost(0, 0), cost(1, 300), cost(100, 30_000), cost(1, 32 * 1024)], [1, 1, 100, 16]);
        assert_eq!(cost(500, 2 * 1024 * 1024), 1024, "what is copied counts as often as it is copied");
    }
}
