//! How long to wait before the next try: exponential, with full jitter, so that a crowd of failures does not return as one.

use std::time::Duration;

/// The wait before the first retry, before jitter.
pub const RETRY_BASE: Duration = Duration::from_secs(1);
/// No retry waits longer than this.
pub const RETRY_CAP: Duration = Duration::from_secs(15 * 60);
/// No retry comes sooner than this.
pub const RETRY_FLOOR: Duration = Duration::from_millis(250);
/// How often an item is tried before it goes to the dead letters.
pub const MAX_ATTEMPTS: u32 = 12;

/// The wait after failed attempt number `attempt` (1 is the first), for a `roll` drawn evenly from 0..1.
pub fn full_jitter(attempt: u32, roll: f64) -> Duration {
    jittered(RETRY_BASE, RETRY_CAP, attempt, roll).max(RETRY_FLOOR)
}

/// `roll` of `base * 2^(attempt-1)`, at most `cap`.
pub fn jittered(base: Duration, cap: Duration, attempt: u32, roll: f64) -> Duration {
    let doubled = base.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(cap).mul_f64(roll.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_never_fall_below_the_floor() {
        assert_eq!(full_jitter(1, 1.0), Duration::from_secs(1));
        assert_eq!(full_jitter(4, 1.0), Duration::from_secs(8));
        assert_eq!(full_jitter(4, 0.5), Duration::from_secs(4));
        assert_eq!(full_jitter(40, 1.0), RETRY_CAP);
        assert_eq!(full_jitter(u32::MAX, 1.0), RETRY_CAP);
        assert_eq!(full_jitter(3, 0.0), RETRY_FLOOR);
    }
}
