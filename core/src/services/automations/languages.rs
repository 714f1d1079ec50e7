//! Where expressions and templates run: never on a thread of the runtime, one question of a brand's API at a time, and within a
//! share of the time by brand. What one of them may use up is in [`crate::domain::automation::meter`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::sync::Cache;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

use crate::domain::automation::meter::{self, Panicked};
use crate::domain::ids::BrandId;
use crate::ports::clock::Moment;
use crate::ports::world::World;
use crate::priority;
use crate::stopwatch::Stopwatch;

/// How long a question of the API may take until it is given up. What it runs on ends by itself soon after, by its meter.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a question waits for the one before it of the same brand.
pub const QUEUE_PATIENCE: Duration = Duration::from_secs(5);
/// The share of a worker's time that a brand's expressions and templates get, over some seconds.
pub const SHARE: f64 = 0.2;
/// How much time a brand may have saved up, in seconds.
const BURST: f64 = 1.0;
/// Brands that are remembered.
const REMEMBERED: u64 = 100_000;

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanguageError {
    /// The brand asks already.
    #[error(
        "another expression or template of this brand is being evaluated, and one may be at a time; try again in a moment"
    )]
    Busy,
    /// It took longer than [`PATIENCE`].
    #[error("it was cancelled after {} seconds; ask for less", PATIENCE.as_secs())]
    Overdue,
    /// A defect of an engine.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// What brands use up.
#[derive(Clone)]
pub struct Languages {
    world: World,
    brands: Cache<BrandId, Arc<Brand>>,
}

struct Brand {
    one: Arc<Semaphore>,
    saved: Mutex<Saved>,
}

/// Time that a brand may still use, in seconds; less than none where it used more than its share.
struct Saved {
    seconds: f64,
    at: Moment,
}

impl Saved {
    fn at(&mut self, now: Moment) -> f64 {
        let passed = now.since(self.at).as_secs_f64();
        self.at = now;
        self.seconds = (self.seconds + passed * SHARE).min(BURST);
        self.seconds
    }
}

impl Languages {
    /// What brands have saved grows by that world's clock; what they use up is the machine's time.
    pub fn new(world: World) -> Self {
        Self { world, brands: Cache::new(REMEMBERED) }
    }

    fn of(&self, brand: BrandId) -> Arc<Brand> {
        self.brands.get_with(brand, || {
            let saved = Saved { seconds: BURST, at: self.world.monotonic() };
            Arc::new(Brand { one: Arc::new(Semaphore::new(1)), saved: Mutex::new(saved) })
        })
    }

    /// Answers a question of the API on a thread of its own.
    ///
    /// # Errors
    /// When the brand asks already, it takes too long, or an engine panics.
    pub async fn ask<T: Send + 'static>(
        &self,
        brand: BrandId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LanguageError> {
        let one = self.of(brand).one.clone();
        let permit = self.world.timeout(QUEUE_PATIENCE, one.acquire_owned()).await;
        // The semaphore is never closed.
        let permit = permit.map_err(|_| LanguageError::Busy)?.map_err(|_| LanguageError::Busy)?;
        // The thread keeps the permit: who gives it up has not had it done.
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // A worker's part holds the store's transaction, so it has to be quick; this one holds nothing.
            meter::deep(|| {
                priority::lower();
                work()
            })
        });
        match self.world.timeout(PATIENCE, working).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(Panicked.into()),
            Err(_) => Err(LanguageError::Overdue),
        }
    }

    /// Does a part of a worker's batch, and charges the time to its brand.
    ///
    /// # Errors
    /// When an engine panics.
    pub fn work<T: Send>(&self, brand: BrandId, work: impl FnOnce() -> T + Send) -> Result<T, Panicked> {
        let began = Stopwatch::start();
        let multi = Handle::try_current().is_ok_and(|on| on.runtime_flavor() == RuntimeFlavor::MultiThread);
        let done = if multi { tokio::task::block_in_place(|| meter::deep(work)) } else { meter::deep(work) };
        let of = self.of(brand);
        let mut saved = of.saved.lock().unwrap_or_else(PoisonError::into_inner);
        saved.at(self.world.monotonic());
        saved.seconds -= began.elapsed().as_secs_f64();
        done
    }

    /// How long a brand has to wait because it used up its share; `None` when it has not.
    pub fn wait(&self, brand: BrandId) -> Option<Duration> {
        let of = self.brands.get(&brand)?;
        let seconds = of.saved.lock().unwrap_or_else(PoisonError::into_inner).at(self.world.monotonic());
        (seconds < 0.0).then(|| Duration::from_secs_f64((-seconds / SHARE).min(60.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_brand_asks_one_thing_at_a_time_and_a_panic_is_an_answer() {
        let languages = Languages::new(World::real());
        let (release, held) = std::sync::mpsc::channel::<()>();
        let first = tokio::spawn({
            let languages = languages.clone();
            async move { languages.ask(BrandId(1), move || held.recv().is_ok()).await }
        });
        while languages.of(BrandId(1)).one.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // Another brand is answered meanwhile, and a panic is its own.
        assert_eq!(languages.ask(BrandId(2), || 1).await, Ok(1));
        assert_eq!(languages.ask(BrandId(2), || -> i32 { panic!("a defect") }).await, Err(Panicked.into()));
        let second = languages.ask(BrandId(1), || true);
        release.send(()).unwrap();
        assert_eq!((first.await.unwrap(), second.await), (Ok(true), Ok(true)));
    }

    #[test]
    fn who_uses_more_than_a_share_waits() {
        let languages = Languages::new(World::real());
        assert_eq!(languages.wait(BrandId(1)), None);
        languages.work(BrandId(1), || ()).unwrap();
        assert_eq!(languages.wait(BrandId(1)), None);
        languages.of(BrandId(1)).saved.lock().unwrap().seconds = -1.0;
        let wait = languages.wait(BrandId(1)).unwrap();
        assert!(wait > Duration::from_secs(4) && wait <= Duration::from_secs(5), "{wait:?}");
        assert_eq!(languages.wait(BrandId(2)), None);
    }
}
