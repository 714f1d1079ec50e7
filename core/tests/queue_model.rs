//! Every queue in step with the model: the same answers, and the same in its hands, after every step of any history.
//!
//! `PROPTEST_CASES` sets how many histories, `PROPTEST_RNG_SEED` which (ci/soak does both).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod model;
mod support;

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use model::{
    BACKLOG, CLAIM_TTL_MS, Entry, Fate, Held, LEASE_MS, LOW_BATCH, MAX_BYTES, MAX_DEAD, MAX_DEPTH, Model,
    New, Reply, Snapshot, T0, Transition, payload,
};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use support::back_door::{BackDoor, Raw};
use tokio::runtime::Runtime;
use tributary_core::adapters::redis::keys::Layout;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::queue::SqliteQueue;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::queue::{
    Batch, Idempotency, Item, NewItem, Priority, Queue, QueueError, QueueSettings, Then, Unfinished,
};
use tributary_core::ports::world::World;

/// Steps of a history, at most.
const STEPS: usize = 50;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// What is compared with the model.
trait Adapter {
    async fn open(clock: ManualClock, settings: QueueSettings) -> (Arc<dyn Queue>, BackDoor);
}

struct Sqlite;

impl Adapter for Sqlite {
    async fn open(clock: ManualClock, settings: QueueSettings) -> (Arc<dyn Queue>, BackDoor) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let db = Db::open_queue(&path).await.unwrap();
        (Arc::new(SqliteQueue::new(db, settings, World::on(clock))), BackDoor::file(path, folder).await)
    }
}

async fn on_redis(
    layout: Layout,
    clock: ManualClock,
    settings: QueueSettings,
    edit: impl Fn(&str) -> String,
) -> (Arc<dyn Queue>, BackDoor) {
    let redis = support::redis().await;
    let queue = RedisQueue::new(redis.clone(), "events", layout, settings, World::on(clock))
        .on_given_clock()
        .with_scripts_edited(edit);
    let back_door = BackDoor::redis(redis, queue.keys().clone(), layout);
    (Arc::new(queue), back_door)
}

struct Lists;

impl Adapter for Lists {
    async fn open(clock: ManualClock, settings: QueueSettings) -> (Arc<dyn Queue>, BackDoor) {
        on_redis(Layout::Lists, clock, settings, str::to_owned).await
    }
}

struct Streams;

impl Adapter for Streams {
    async fn open(clock: ManualClock, settings: QueueSettings) -> (Arc<dyn Queue>, BackDoor) {
        on_redis(Layout::Streams, clock, settings, str::to_owned).await
    }
}

/// A queue under test beside the model.
struct Subject<A> {
    queue: Arc<dyn Queue>,
    back_door: BackDoor,
    clock: ManualClock,
    /// Every batch that was ever fetched.
    batches: Vec<Batch>,
    /// The ids of items, by number.
    ids: HashMap<u64, String>,
    /// What the model held before the last step: it says which dead letters a step names.
    before: Model,
    _adapter: PhantomData<A>,
}

/// An item as the model knows it.
fn entry(item: &Item) -> Entry {
    let text = std::str::from_utf8(&item.payload).unwrap();
    let (n, rest) = text.split_once(' ').unwrap();
    let (key, brand) = rest.split_once(' ').unwrap();
    assert_eq!(item.brand, of(brand.parse().unwrap()), "an item stays its brand's");
    Entry {
        n: n.parse().unwrap(),
        priority: item.priority.index(),
        attempt: item.attempt,
        suspect: item.suspect,
        losses: item.losses,
        history: item.history.len(),
        key: key.parse().ok(),
        brand: brand.parse().unwrap(),
        bytes: text.len() as u64,
    }
}

fn of(brand: i64) -> Option<BrandId> {
    (brand != 0).then_some(BrandId(brand))
}

fn key_name(key: u8) -> String {
    format!("key-{key}")
}

impl<A: Adapter> Subject<A> {
    fn new_items(&self, items: &[New]) -> Vec<NewItem> {
        let first = self.before.drawn();
        let with_number = items.iter().zip(first..);
        with_number
            .map(|(new, n)| NewItem {
                payload: payload(n, new.key.map(|(key, _)| key), new.brand).into(),
                priority: Priority::at(new.priority),
                delay: Duration::from_millis(new.delay_ms.unsigned_abs()),
                brand: of(new.brand),
                public: new.public,
                idempotency: new.key.map(|(key, body)| Idempotency::new(vec![key_name(key)], &[body])),
            })
            .collect()
    }

    async fn step(&mut self, transition: &Transition) -> Reply {
        match transition {
            Transition::Enqueue(items) => match self.queue.enqueue(&self.new_items(items)).await {
                Ok(results) => Reply::Enqueued(results),
                Err(QueueError::Full { .. }) => Reply::Full,
                Err(error) => panic!("{error}"),
            },
            Transition::Fetch(want) => {
                let Some(batch) = self.queue.fetch(*want, Duration::ZERO).await.unwrap() else {
                    return Reply::Fetched(Vec::new());
                };
                let entries: Vec<Entry> = batch.items.iter().map(entry).collect();
                self.ids
                    .extend(entries.iter().zip(&batch.items).map(|(entry, item)| (entry.n, item.id.clone())));
                self.batches.push(batch);
                Reply::Fetched(entries)
            }
            Transition::Ack(batch, fates) => {
                let batch = &self.batches[*batch];
                let unfinished: Vec<Unfinished> = batch
                    .items
                    .iter()
                    .enumerate()
                    .filter_map(|(at, item)| {
                        let error = "no luck".to_owned();
                        let then = match fates[at % fates.len()] {
                            Fate::Done => return None,
                            Fate::Retry(ms) => {
                                Then::Retry { delay: Duration::from_millis(ms.unsigned_abs()), error }
                            }
                            Fate::Bury => Then::Bury { error },
                            Fate::Release => Then::Release,
                            Fate::Defer(ms) => {
                                Then::Defer { delay: Duration::from_millis(ms.unsigned_abs()) }
                            }
                        };
                        Some(Unfinished { item: item.clone(), then })
                    })
                    .collect();
                Reply::Acked(self.queue.ack(batch, &unfinished).await.unwrap())
            }
            Transition::Beat(batches) => {
                let ids: Vec<_> = batches.iter().map(|batch| self.batches[*batch].id.clone()).collect();
                let lost = self.queue.beat(&ids).await.unwrap();
                Reply::Lost(lost.iter().map(|id| self.number_of(&id.0).unwrap()).collect())
            }
            Transition::Kill => {
                self.clock.advance(LEASE_MS);
                Reply::Reclaimed(self.queue.reclaim().await.unwrap())
            }
            Transition::Clock(ms) => {
                self.clock.advance(*ms);
                Reply::Nothing
            }
            Transition::Reclaim => Reply::Reclaimed(self.queue.reclaim().await.unwrap()),
            Transition::Pause(paused) => {
                self.queue.set_paused(*paused).await.unwrap();
                Reply::Nothing
            }
            Transition::RetryDead(which) => {
                Reply::Count(self.queue.retry_dead(&self.dead_ids(which)).await.unwrap())
            }
            Transition::DiscardDead(which) => {
                Reply::Count(self.queue.discard_dead(&self.dead_ids(which)).await.unwrap())
            }
            Transition::DropDead(brand, age) => {
                Reply::Count(self.queue.drop_dead(of(*brand), self.back_door_now() - age).await.unwrap())
            }
            Transition::Repair => {
                let found = self.queue.repair().await.unwrap();
                Reply::Count(found.strays + found.repaired)
            }
        }
    }

    fn number_of(&self, batch: &str) -> Option<u64> {
        self.batches.iter().position(|held| held.id.0 == batch).map(|at| at as u64)
    }

    fn dead_ids(&self, which: &[usize]) -> Vec<String> {
        self.before.dead_numbers(which).iter().map(|n| self.ids[n].clone()).collect()
    }

    /// All that the queue holds, read past it; panics where something lies about that is nobody's.
    async fn snapshot(&self) -> Snapshot {
        let Raw { places, delayed, batches, dead, claims, paused, shares, dead_shares } =
            self.back_door.read().await;
        let entries = |items: &[Item]| items.iter().map(entry).collect();
        let by_number =
            |items: &[Item]| items.iter().map(entry).map(|e| (e.n, e)).collect::<BTreeMap<_, _>>();
        let at = |item: &Item| entry(item).n;
        let mut snapshot = Snapshot {
            pending: [0, 1, 2].map(|place: usize| entries(&places[place])),
            released: [3, 4, 5].map(|place: usize| entries(&places[place])),
            suspects: entries(&places[6]),
            delayed: delayed.iter().map(|(due, item)| ((*due, at(item)), entry(item))).collect(),
            batches: batches
                .iter()
                .map(|(id, end, items)| {
                    let number = self.number_of(id).unwrap_or(u64::MAX);
                    (number, (*end, by_number(items)))
                })
                .collect(),
            dead: dead.iter().map(|(buried, item)| ((*buried, at(item)), entry(item))).collect(),
            paused,
            shares,
            dead_shares: dead_shares.iter().map(|(brand, (letters, _))| (*brand, *letters)).collect(),
            ..Snapshot::default()
        };
        let now = self.back_door_now();
        for key in 0..4 {
            let Some((until, claim)) = claims.get(&Idempotency::new(vec![key_name(key)], b"").names()[0])
            else {
                continue;
            };
            if *until > now {
                let body =
                    [0, 1].into_iter().find(|body| Idempotency::new(vec![], &[*body]).digest == claim.digest);
                let outcome = claim.finished.as_ref().map(|finished| finished.outcome);
                // An item that nobody has fetched yet has told nobody its id.
                let known = self.ids.iter().find(|(_, id)| **id == claim.item).map(|(n, _)| *n);
                let n =
                    known.or_else(|| self.before.number_of_claim(key).filter(|n| !self.ids.contains_key(n)));
                let n = n.unwrap_or(u64::MAX);
                snapshot.claims.insert(key, Held { body: body.unwrap(), n, until: *until, outcome });
            }
        }
        let stats = self.queue.stats().await.unwrap();
        let counters = [
            ("enqueued", stats.enqueued),
            ("duplicates", stats.duplicates),
            ("conflicts", stats.conflicts),
            ("acked", stats.acked),
            ("retried", stats.retried),
            ("reclaimed", stats.reclaimed),
            ("buried", stats.buried),
            ("discarded", stats.discarded),
            ("dropped", stats.dropped),
            ("strays", stats.strays),
        ];
        let bytes: u64 = snapshot.shares.values().map(|(_, bytes)| bytes).sum();
        assert_eq!(stats.bytes, bytes, "what stats says is what is there");
        snapshot.counters = counters.into_iter().filter(|(_, value)| *value > 0).collect();
        let waiting =
            |places: &[std::collections::VecDeque<Entry>]| places.iter().map(|p| p.len()).sum::<usize>();
        let pending = waiting(&snapshot.pending) + waiting(&snapshot.released) + snapshot.suspects.len();
        let in_flight: usize = snapshot.batches.values().map(|(_, items)| items.len()).sum();
        assert_eq!(
            (stats.pending, stats.in_flight, stats.delayed, stats.dead, stats.paused),
            (
                pending as u64,
                in_flight as u64,
                snapshot.delayed.len() as u64,
                snapshot.dead.len() as u64,
                paused
            ),
            "what stats says is what is there"
        );
        snapshot
    }

    fn back_door_now(&self) -> i64 {
        tributary_core::ports::clock::Clock::now_ms(&self.clock)
    }
}

/// The comparison, over an adapter.
struct InStep<A>(PhantomData<A>);

impl<A: Adapter + 'static> StateMachineTest for InStep<A> {
    type SystemUnderTest = Subject<A>;
    type Reference = Model;

    fn init_test(model: &Model) -> Subject<A> {
        RUNTIME.block_on(async {
            let clock = ManualClock::at(T0);
            let settings = QueueSettings {
                lease: Duration::from_millis(LEASE_MS.unsigned_abs()),
                claim_ttl: Duration::from_millis(CLAIM_TTL_MS.unsigned_abs()),
                max_depth: MAX_DEPTH,
                max_bytes: MAX_BYTES,
                backlog: BACKLOG,
                low_batch: LOW_BATCH,
                low_bytes: usize::MAX,
                max_dead: MAX_DEAD,
                max_dead_bytes: u64::MAX >> 1,
            };
            let (queue, back_door) = A::open(clock.clone(), settings).await;
            Subject {
                queue,
                back_door,
                clock,
                batches: Vec::new(),
                ids: HashMap::new(),
                before: model.clone(),
                _adapter: PhantomData,
            }
        })
    }

    fn apply(mut subject: Subject<A>, model: &Model, transition: Transition) -> Subject<A> {
        let reply = RUNTIME.block_on(subject.step(&transition));
        assert_eq!(reply, model.reply, "the answer to {transition:?}");
        subject.before = model.clone();
        subject
    }

    fn check_invariants(subject: &Subject<A>, model: &Model) {
        assert_eq!(RUNTIME.block_on(subject.snapshot()), model.holds);
    }

    fn teardown(subject: Subject<A>, _: Model) {
        RUNTIME.block_on(subject.back_door.clear());
    }
}

/// Follows histories; the first that parts from the model is shrunk and told.
fn follow<A: Adapter + 'static>(cases: u32, shrink: bool) -> Result<(), String> {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: if shrink { 2000 } else { 0 },
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config.clone());
    runner
        .run(&Model::sequential_strategy(1..=STEPS), |(model, transitions, seen)| {
            // counts the steps that a shrinking may start from
            let seen = seen.filter(|_| shrink);
            let run = || InStep::<A>::test_sequential(config.clone(), model, transitions, seen);
            std::panic::catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                TestCaseError::fail(text.unwrap_or_else(|| "a panic without words".into()))
            })
        })
        .map_err(|error| error.to_string())
}

fn keeps_in_step<A: Adapter + 'static>(cases: u32) {
    follow::<A>(support::cases(cases), true).unwrap_or_else(|difference| panic!("{difference}"));
}

#[test]
fn sqlite_keeps_in_step_with_the_model() {
    keeps_in_step::<Sqlite>(96);
}

#[test]
fn redis_lists_keep_in_step_with_the_model() {
    keeps_in_step::<Lists>(256);
}

#[test]
fn redis_streams_keep_in_step_with_the_model() {
    keeps_in_step::<Streams>(256);
}

/// Guards of the scripts, each as a line that can be taken out.
const GUARDS: [(&str, &str, &str); 18] = [
    (
        "the token check of ack",
        "if not redis.call('ZSCORE', LEASES, id) then -- guard: token",
        "if false then",
    ),
    (
        "the claim in the enqueue",
        "redis.call('SET', TAG .. ':claim:' .. name, claim, 'PX', string.format('%.0f', kept)) -- guard: claim",
        "",
    ),
    ("the lease with the pop", "redis.call('ZADD', LEASES, NOW + lease, id) -- guard: lease", ""),
    ("the beat", "redis.call('ZADD', LEASES, NOW + tonumber(ARGV[4]), ARGV[i]) -- guard: beat", ""),
    ("the pause", "if redis.call('EXISTS', PAUSED) == 1 then return {} end -- guard: pause", ""),
    (
        "suspects alone",
        "if not last_first then taken = take(SUSPECT, id, 1) end",
        "if not last_first then taken = take(SUSPECT, id, 5) end",
    ),
    (
        "the wait for a delay",
        "redis.call('ZADD', DELAYED, NOW + delay, element)",
        "redis.call('ZADD', DELAYED, NOW, element)",
    ),
    (
        "the limit of losses",
        "if item.losses >= tonumber(ARGV[5]) or",
        "if item.losses > tonumber(ARGV[5]) or",
    ),
    ("the worker that comes back", "redis.call('HSET', key, batch, '1') -- guard: survived", ""),
    ("the owner of a claim", "if owner == id then", "if owner then"),
    ("the count of a share", "redis.call('HINCRBY', SHARES, brand, items) -- guard: share", ""),
    (
        "the share of items",
        "one.over = (most > 0 and would > one.times * (most - held - one.items)) -- guard: share of items",
        "one.over = false",
    ),
    (
        "the share of bytes",
        "or (most_bytes > 0 and would_bytes > one.times * (most_bytes - held_bytes - one.bytes)) -- guard: share of bytes",
        "",
    ),
    (
        "the backlog",
        "and backlog > 0 and before + its[1] >= backlog then -- guard: backlog",
        "and false then",
    ),
    (
        "the small batches of what has low priority",
        "if shared then most_low = math.min(want, tonumber(ARGV[9])) end -- guard: low batch",
        "",
    ),
    ("low priority by itself", "if #taken > 0 then break end -- guard: low alone", ""),
    (
        "the bound of dead letters",
        "if letters <= 1 or (letters <= most and bytes <= most_bytes) then break end -- guard: letters",
        "if letters then break end",
    ),
    ("the turn of the last", "turn % tonumber(ARGV[8]) == 0", "turn % tonumber(ARGV[8]) == -1"),
];
/// Histories within which the absence of a guard must be seen.
const NOTICED_WITHIN: u32 = 600;

struct Without<const GUARD: usize, const STREAMS: bool>;

impl<const GUARD: usize, const STREAMS: bool> Adapter for Without<GUARD, STREAMS> {
    async fn open(clock: ManualClock, settings: QueueSettings) -> (Arc<dyn Queue>, BackDoor) {
        let (what, line, instead) = GUARDS[GUARD];
        let edited = std::cell::Cell::new(false);
        let layout = if STREAMS { Layout::Streams } else { Layout::Lists };
        let opened = on_redis(layout, clock, settings, |script| {
            edited.set(edited.get() || script.contains(line));
            script.replace(line, instead)
        })
        .await;
        assert!(edited.get(), "{what} is where it was");
        opened
    }
}

/// What a difference from the model says, and a broken test does not.
const PARTED: [&str; 4] =
    ["left == right", "held by nobody", "is of an empty batch", "keys that are nobody's"];

fn is_missed<const GUARD: usize, const STREAMS: bool>() {
    let (what, ..) = GUARDS[GUARD];
    let parted = follow::<Without<GUARD, STREAMS>>(NOTICED_WITHIN, false)
        .expect_err("nobody noticed that a guard was missing");
    assert!(PARTED.iter().any(|words| parted.contains(words)), "{what}: caught for another reason: {parted}");
}

macro_rules! counter_tests {
    ($($name:ident: $guard:literal),* $(,)?) => {
        mod missed {
            $( #[test]
               fn $name() {
                   super::is_missed::<$guard, false>();
                   super::is_missed::<$guard, true>();
               } )*
        }
    };
}

counter_tests!(
    the_token_check: 0,
    the_claim_in_the_enqueue: 1,
    the_lease_with_the_pop: 2,
    the_beat: 3,
    the_pause: 4,
    suspects_alone: 5,
    the_wait_for_a_delay: 6,
    the_limit_of_losses: 7,
    the_worker_that_comes_back: 8,
    the_owner_of_a_claim: 9,
    the_count_of_a_share: 10,
    the_share_of_items: 11,
    the_share_of_bytes: 12,
    the_backlog: 13,
    the_small_batches_of_low_priority: 14,
    low_priority_by_itself: 15,
    the_bound_of_dead_letters: 16,
    the_turn_of_the_last: 17,
);
