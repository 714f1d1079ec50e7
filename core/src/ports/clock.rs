//! Time, passed in, so that tests and simulations own it.
//!
//! A clock has two scales. The wall clock says what is written down (milliseconds since 1970, UTC), and may be set back. The monotonic
//! one only says how much time passed: leases, caches, limits and waits go by it.
//!
//! What waits for another machine (a database, Redis, a receiver of webhooks) has its time limit from tokio, in the adapter that waits:
//! a clock that stands still must not make a broken connection wait for ever.

use std::collections::BTreeSet;
use std::ops::Add;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::domain::time::{Timestamp, from_ms};

/// A point on a clock's monotonic scale. It can be compared with points of the same clock alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// How long after `earlier` it is; zero where it is before.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Moment {
    /// How long after the beginning of its clock it is.
    pub fn since_origin(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}

/// Says what time it is, and waits.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970, UTC.
    fn now_ms(&self) -> i64;

    /// Now, on the monotonic scale.
    fn monotonic(&self) -> Moment;

    /// Ends once `time` has passed on the monotonic scale.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// The wall clock's time as a point in time.
    fn now(&self) -> Timestamp {
        from_ms(self.now_ms())
    }
}

/// What took longer than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it took too long")]
pub struct TimedOut;

/// What `work` returns, if it ends within `time` of `clock`; it is dropped otherwise.
///
/// # Errors
/// [`TimedOut`].
pub async fn timeout<T>(
    clock: &dyn Clock,
    time: Duration,
    work: impl Future<Output = T>,
) -> Result<T, TimedOut> {
    let over = clock.sleep(time);
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = over => Err(TimedOut),
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// Where this process' monotonic scale begins.
#[expect(clippy::disallowed_methods, reason = "the machine's clock is read here alone")]
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the machine's clock is read here alone")]
    fn now_ms(&self) -> i64 {
        chrono::Utc::now().timestamp_millis()
    }

    fn monotonic(&self) -> Moment {
        Moment(ORIGIN.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "the machine's clock is read here alone")]
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(time).boxed()
    }
}

/// For how long work must have got nowhere before [`ManualClock::drive`] moves the clock.
const IDLE: Duration = Duration::from_millis(5);
/// For how long work may get nowhere at all.
const STUCK: Duration = Duration::from_secs(30);
/// How far [`ManualClock::drive`] moves it at most.
const NEAR: Duration = Duration::from_millis(500);

/// A clock that stands still until it is moved; clones are the same clock.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Manual>);

#[derive(Debug)]
struct Manual {
    wall_ms: AtomicI64,
    passed: watch::Sender<Duration>,
    /// When those who sleep are to wake, each with a number of its own.
    wakes: Mutex<BTreeSet<(Duration, u64)>>,
    sleeps: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `ms` (milliseconds since 1970, UTC).
    pub fn at(ms: i64) -> Self {
        Self(Arc::new(Manual {
            wall_ms: AtomicI64::new(ms),
            passed: watch::Sender::new(Duration::ZERO),
            wakes: Mutex::default(),
            sleeps: AtomicU64::new(0),
        }))
    }

    /// Moves it on by `ms`, and wakes who has slept long enough. Less than nothing sets the wall clock back, and no more than that.
    pub fn advance(&self, ms: i64) {
        self.0.wall_ms.fetch_add(ms, Ordering::SeqCst);
        let more = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        self.0.passed.send_modify(|passed| *passed = passed.saturating_add(more));
    }

    /// Does `work`, and whenever it gets nowhere moves the clock on to the next wake, if that is near: so that what retries after a moment
    /// does. What waits for longer stays asleep, and so do limits of time.
    ///
    /// # Panics
    /// When the work waits for what is not near: nobody would move the clock.
    pub async fn drive<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut stuck = Duration::ZERO;
        loop {
            #[expect(clippy::disallowed_methods, reason = "how long a machine gets nowhere is its own time")]
            match tokio::time::timeout(IDLE, &mut work).await {
                Ok(done) => return done,
                Err(_) => match self.until_next_wake() {
                    Some(next) if next <= NEAR => {
                        stuck = Duration::ZERO;
                        self.advance(i64::try_from(next.as_micros().div_ceil(1000)).unwrap_or(0));
                    }
                    next => {
                        stuck += IDLE;
                        assert!(stuck < STUCK, "the work waits, and the next to wake is {next:?} away");
                    }
                },
            }
        }
    }

    /// How long it is until the first of those who still sleep wakes; `None` where nobody does.
    pub fn until_next_wake(&self) -> Option<Duration> {
        let now = *self.0.passed.borrow();
        let wakes = self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        // Whose time has come may not have been asked yet: it sleeps no longer.
        wakes.iter().find(|(at, _)| *at > now).map(|(at, _)| at.saturating_sub(now))
    }
}

/// Somebody who sleeps: leaves the clock's list also where the sleep is given up.
struct Sleeper {
    clock: Arc<Manual>,
    wake: (Duration, u64),
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.clock.wakes.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.wake);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.0.wall_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Moment {
        Moment(*self.0.passed.borrow())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let mut passed = self.0.passed.subscribe();
        let at = passed.borrow().saturating_add(time);
        let wake = (at, self.0.sleeps.fetch_add(1, Ordering::Relaxed));
        self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner).insert(wake);
        let sleeper = Sleeper { clock: self.0.clone(), wake };
        async move {
            // As a whole: else the block would hold a copy of the number, and the sleeper would leave the list at once.
            let sleeper = sleeper;
            // The sender lives as long as the sleeper does.
            let _ = passed.wait_for(|passed| *passed >= sleeper.wake.0).await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_sleeps_on_a_manual_clock_wakes_when_it_is_moved_and_not_before() {
        let clock = ManualClock::at(1_000);
        assert_eq!(clock.until_next_wake(), None);
        let (mut short, mut long) =
            (clock.sleep(Duration::from_millis(10)), clock.sleep(Duration::from_secs(3600)));
        assert_eq!(clock.until_next_wake(), Some(Duration::from_millis(10)));
        clock.advance(9);
        assert_eq!((&mut short).now_or_never(), None);
        clock.advance(1);
        assert_eq!((&mut short).now_or_never(), Some(()));
        drop(short);
        assert_eq!((&mut long).now_or_never(), None);
        assert_eq!(clock.until_next_wake(), Some(Duration::from_millis(3_600_000 - 10)));
        drop(long);
        assert_eq!((clock.until_next_wake(), clock.now_ms()), (None, 1_010));
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_set_back_makes_nothing_younger() {
        let clock = ManualClock::at(1_000);
        let began = clock.monotonic();
        clock.advance(100);
        clock.advance(-500);
        assert_eq!((clock.now_ms(), clock.monotonic().since(began)), (600, Duration::from_millis(100)));
    }

    #[tokio::test]
    async fn a_clock_that_is_driven_wakes_what_retries_and_not_what_waits() {
        let clock = ManualClock::at(0);
        let work = async {
            clock.sleep(Duration::from_millis(20)).await;
            clock.sleep(Duration::from_millis(30)).await;
        };
        let mut long = clock.sleep(Duration::from_secs(60));
        clock.drive(work).await;
        assert_eq!(clock.now_ms(), 50);
        assert_eq!((&mut long).now_or_never(), None);
    }

    #[tokio::test]
    async fn work_is_given_up_when_its_time_is_over() {
        let clock = ManualClock::at(0);
        assert_eq!(timeout(&clock, Duration::from_secs(1), async { 5 }).await, Ok(5));
        let waiting = timeout(&clock, Duration::from_secs(1), std::future::pending::<()>());
        let moved = async { clock.advance(1_000) };
        assert_eq!(tokio::join!(waiting, moved).0, Err(TimedOut));
    }
}
