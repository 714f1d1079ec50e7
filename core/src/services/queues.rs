//! Looking after a queue: what people do to it from outside, over HTTP and at a terminal.
//!
//! All brands share a queue. Whoever asks for one brand sees and touches only its dead letters; a letter of no brand is an
//! operator's ([`Scope::All`]).

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::ports::clock::Moment;
use crate::ports::queue::{
    DeadLetter, DeadPlace, Failure, MAX_DEAD_PAGE, Priority, Queue, QueueError, QueueStats, Scope,
};
use crate::ports::world::World;

/// How far back rates look.
const RATES_OVER: Duration = Duration::from_secs(60);
/// How often they are sampled.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Whether a letter is theirs.
fn covers(scope: Scope, letter: &DeadLetter) -> bool {
    match scope {
        Scope::All => true,
        Scope::Brand(brand) => letter.item.brand == Some(brand),
        Scope::Nobody => letter.item.brand.is_none(),
    }
}

#[derive(Clone, Debug)]
pub enum Which {
    /// Those of these ids.
    Ids(Vec<String>),
    /// All that are there now.
    All,
}

/// A dead letter, for people.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = DeadLetter)]
pub struct Letter {
    pub id: String,
    /// Why it was buried.
    pub error: String,
    /// When, in milliseconds since 1970.
    pub buried_ms: i64,
    /// When it was enqueued.
    pub enqueued_ms: i64,
    pub priority: Priority,
    pub attempts: u32,
    /// Losses of its worker suffered alone.
    pub losses: u32,
    /// What went wrong, oldest first.
    pub history: Vec<Failure>,
    /// What was enqueued, where it is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, serde_json::Value>>)]
    pub item: Option<Box<RawValue>>,
    /// What was enqueued, where it is not, as far as it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<String>,
}

impl From<DeadLetter> for Letter {
    fn from(letter: DeadLetter) -> Self {
        let json = serde_json::from_slice::<Box<RawValue>>(&letter.item.payload).ok();
        let bytes = json.is_none().then(|| String::from_utf8_lossy(&letter.item.payload).into_owned());
        Self {
            error: letter.error().to_owned(),
            id: letter.item.id,
            buried_ms: letter.buried_ms,
            enqueued_ms: letter.item.enqueued_ms,
            priority: letter.item.priority,
            attempts: letter.item.attempt,
            losses: letter.item.losses,
            history: letter.item.history,
            item: json,
            bytes,
        }
    }
}

/// A page of dead letters, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = DeadLetterPage)]
pub struct Page {
    pub letters: Vec<Letter>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}

/// Lists dead letters, newest first: at most `limit` (capped at [`MAX_DEAD_PAGE`]), after that place.
///
/// # Errors
/// The queue's own.
pub async fn letters(
    queue: &dyn Queue,
    scope: Scope,
    after: Option<DeadPlace>,
    limit: usize,
) -> Result<Page, QueueError> {
    let limit = limit.clamp(1, MAX_DEAD_PAGE);
    let found = queue.dead(scope, after.as_ref(), limit).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|last| last.place().to_string());
    Ok(Page { letters: found.into_iter().map(Letter::from).collect(), next })
}

/// The dead letter of that id.
///
/// # Errors
/// The queue's own.
pub async fn letter(queue: &dyn Queue, scope: Scope, id: &str) -> Result<Option<Letter>, QueueError> {
    let found = queue.dead_letter(id).await?;
    Ok(found.filter(|letter| covers(scope, letter)).map(Letter::from))
}

/// Puts dead letters back to pending; answers how many.
///
/// # Errors
/// The queue's own; what was put back before stays so.
pub async fn retry(queue: &dyn Queue, scope: Scope, which: Which) -> Result<u64, QueueError> {
    let mut back = 0;
    for ids in chosen(queue, scope, which).await?.chunks(MAX_DEAD_PAGE) {
        back += queue.retry_dead(ids).await?;
    }
    Ok(back)
}

/// Discards dead letters; answers how many.
///
/// # Errors
/// The queue's own; what was discarded before stays so.
pub async fn discard(queue: &dyn Queue, scope: Scope, which: Which) -> Result<u64, QueueError> {
    let mut gone = 0;
    for ids in chosen(queue, scope, which).await?.chunks(MAX_DEAD_PAGE) {
        gone += queue.discard_dead(ids).await?;
    }
    Ok(gone)
}

/// The ids that are meant and covered, oldest first. Gathered before anything is done: a letter that dies again at once is
/// not put back for ever.
async fn chosen(queue: &dyn Queue, scope: Scope, which: Which) -> Result<Vec<String>, QueueError> {
    let mut ids = Vec::new();
    match which {
        Which::Ids(asked) => {
            for id in asked {
                if queue.dead_letter(&id).await?.is_some_and(|letter| covers(scope, &letter)) {
                    ids.push(id);
                }
            }
        }
        Which::All => {
            let mut after: Option<DeadPlace> = None;
            loop {
                let found = queue.dead(scope, after.as_ref(), MAX_DEAD_PAGE).await?;
                let Some(last) = found.last() else { break };
                after = Some(last.place());
                ids.extend(found.iter().map(|letter| letter.item.id.clone()));
            }
            ids.reverse();
        }
    }
    Ok(ids)
}

/// What a queue did lately, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
#[schema(as = QueueRates)]
pub struct Rates {
    pub enqueued_per_s: f64,
    pub acked_per_s: f64,
    pub retried_per_s: f64,
    pub buried_per_s: f64,
    /// Over how long, in seconds; 0 when there is nothing to compare with yet.
    pub over_s: f64,
}

/// Makes rates of counters.
pub struct RateMeter {
    world: World,
    samples: Mutex<VecDeque<(Moment, QueueStats)>>,
}

impl RateMeter {
    /// A meter whose seconds are that world's.
    pub fn new(world: World) -> Self {
        Self { world, samples: Mutex::default() }
    }

    /// Notes the counters as they are.
    pub fn sample(&self, stats: &QueueStats) {
        let now = self.world.monotonic();
        let mut samples = self.samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        samples.push_back((now, stats.clone()));
        while samples.len() > 2 && samples.get(1).is_some_and(|(at, _)| now.since(*at) >= RATES_OVER) {
            samples.pop_front();
        }
    }

    /// The rates from the oldest sample, at most about a minute ago, to `stats`.
    #[expect(clippy::cast_precision_loss, reason = "a rate is a float")]
    pub fn rates(&self, stats: &QueueStats) -> Rates {
        let samples = self.samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some((at, then)) = samples.front() else { return Rates::default() };
        let over_s = self.world.since(*at).as_secs_f64();
        if over_s < 0.5 {
            return Rates::default();
        }
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / over_s;
        Rates {
            enqueued_per_s: rate(stats.enqueued, then.enqueued),
            acked_per_s: rate(stats.acked, then.acked),
            retried_per_s: rate(stats.retried, then.retried),
            buried_per_s: rate(stats.buried, then.buried),
            over_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::clock::ManualClock;

    #[test]
    fn rates_are_of_the_last_minute() {
        let clock = ManualClock::at(0);
        let meter = RateMeter::new(World::on(clock.clone()));
        let at = |enqueued| QueueStats { enqueued, ..QueueStats::default() };
        assert_eq!(meter.rates(&at(5)), Rates::default());
        for seconds in 0..40 {
            meter.sample(&at(seconds * 50));
            clock.advance(SAMPLE_EVERY.as_millis().try_into().unwrap());
        }
        let rates = meter.rates(&at(40 * 50));
        assert!((rates.enqueued_per_s - 10.0).abs() < 1e-9, "{rates:?}");
        assert!((60.0..=70.0).contains(&rates.over_s), "{rates:?}");
    }
}
