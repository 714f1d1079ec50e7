//! Redis and the way to it misbehave; the queue's promises hold on both layouts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use backends::proxy::Proxy;
use backends::redis::{Fsync, Redis};
use backends::services::Services;
use support::back_door::BackDoor;
use tributary_core::adapters::redis::client::{RedisClient, RedisStartError};
use tributary_core::adapters::redis::keys::Layout;
use tributary_core::adapters::redis::locks::RedisLocks;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::locks::{Acquired, Locks};
use tributary_core::ports::queue::{
    Acked, Batch, Enqueued, Idempotency, Item, NewItem, Queue, QueueError, QueueSettings, Scope, Then,
    Unfinished,
};
use tributary_core::ports::world::World;

const LEASE: Duration = Duration::from_secs(10);
const LAYOUTS: [Layout; 2] = [Layout::Lists, Layout::Streams];

fn settings() -> QueueSettings {
    QueueSettings { lease: LEASE, ..QueueSettings::default() }
}

fn keyed(payload: &str) -> NewItem {
    NewItem {
        payload: payload.to_owned().into(),
        idempotency: Some(Idempotency::new(vec![payload.into()], payload.as_bytes())),
        ..NewItem::default()
    }
}

/// A queue seen twice: through a proxy, and straight; both on a clock of the test's own.
struct Split {
    proxy: Proxy,
    through: RedisQueue,
    straight: RedisQueue,
    back_door: BackDoor,
    clock: ManualClock,
}

async fn split(redis: &Redis, layout: Layout) -> Split {
    let proxy = Proxy::to(redis.address()).await.unwrap();
    let space = Services::fresh_key_space();
    let clock = ManualClock::at(1_800_000_000_000);
    let open = async |url: &str| {
        let client = RedisClient::connect(url, &space).await.unwrap();
        let queue = RedisQueue::new(client.clone(), "events", layout, settings(), World::on(clock.clone()));
        (client, queue.on_given_clock())
    };
    let (_, through) = open(&format!("redis://127.0.0.1:{}/0", proxy.port())).await;
    let (client, straight) = open(&redis.url()).await;
    let back_door = BackDoor::redis(client, straight.keys().clone(), layout);
    Split { proxy, through, straight, back_door, clock }
}

/// Calls until there is an answer, as producers and workers do.
async fn until_answered<T>(call: impl AsyncFn() -> Result<T, QueueError>) -> (T, bool) {
    let mut failed = false;
    for _ in 0..50 {
        match call().await {
            Ok(answer) => return (answer, failed),
            Err(QueueError::Unavailable(_)) => failed = true,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("no answer");
}

/// Whatever part of an answer is lost: an item is in once, comes out until it is acked, and then is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_cut_anywhere_loses_and_doubles_nothing() {
    let redis = Redis::start(Fsync::EverySecond).await.unwrap();
    for layout in LAYOUTS {
        let s = split(&redis, layout).await;
        let mut cuts = 0;
        for bytes in 0..48 {
            let name = format!("item-{bytes}");
            s.proxy.cut_answers_after(bytes);
            let (taken, failed) = until_answered(async || s.through.enqueue(&[keyed(&name)]).await).await;
            let expected =
                if failed { vec![Enqueued::Duplicate, Enqueued::Accepted] } else { vec![Enqueued::Accepted] };
            assert!(expected.contains(&taken[0]), "{taken:?}");
            assert_eq!(s.straight.stats().await.unwrap().pending, 1, "once, after {bytes} bytes");

            s.proxy.cut_answers_after(bytes * 8);
            let (batch, _) = until_answered(async || s.through.fetch(10, Duration::ZERO).await).await;
            let batch =
                batch.expect("a batch whose answer was lost is handed out again, not left to its lease");
            assert!(!batch.items[0].suspect);
            assert_eq!(batch.items[0].payload, name);

            s.proxy.cut_answers_after(bytes / 4);
            let (lost, _) =
                until_answered(async || s.through.beat(std::slice::from_ref(&batch.id)).await).await;
            assert_eq!(lost, []);
            s.proxy.cut_answers_after(bytes / 4);
            let (acked, failed) = until_answered(async || s.through.ack(&batch, &[]).await).await;
            assert!(acked == Acked::Done || failed, "lost is for whoever had no answer to the first try");
            let stats = s.straight.stats().await.unwrap();
            assert_eq!((stats.pending, stats.in_flight, stats.delayed, stats.dead), (0, 0, 0, 0));
            s.back_door.read().await;
            cuts = s.proxy.mend();
        }
        assert!(cuts > 48, "{layout:?}: the proxy did cut: {cuts} times");
        let stats = s.straight.stats().await.unwrap();
        assert_eq!((stats.enqueued, stats.acked), (48, 48));
    }
}

/// A batch with every kind of end, acked through answers that are cut: the same as acked once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ack_repeated_after_a_lost_answer_is_as_one() {
    let redis = Redis::start(Fsync::EverySecond).await.unwrap();
    for layout in LAYOUTS {
        for bytes in 0..4 {
            let s = split(&redis, layout).await;
            let items: Vec<NewItem> = ["a", "b", "c", "d"].iter().map(|name| keyed(name)).collect();
            s.straight.enqueue(&items).await.unwrap();
            let batch = s.through.fetch(10, Duration::ZERO).await.unwrap().unwrap();
            let of = |at: usize, then: Then| Unfinished { item: batch.items[at].clone(), then };
            let unfinished = [
                of(1, Then::Retry { delay: Duration::from_secs(5), error: "no".into() }),
                of(2, Then::Bury { error: "no".into() }),
                of(3, Then::Release),
            ];
            s.proxy.cut_answers_after(bytes);
            until_answered(async || s.through.ack(&batch, &unfinished).await).await;
            s.proxy.mend();
            let stats = s.straight.stats().await.unwrap();
            assert_eq!((stats.pending, stats.in_flight, stats.delayed, stats.dead), (1, 0, 1, 1));
            assert_eq!((stats.acked, stats.retried, stats.buried), (1, 1, 1));
            s.back_door.read().await;
        }
    }
}

async fn on(redis: &Redis, layout: Layout) -> (RedisClient, Arc<RedisQueue>) {
    let client = RedisClient::connect(&redis.url(), &Services::fresh_key_space()).await.unwrap();
    let queue = RedisQueue::new(client.clone(), "events", layout, settings(), World::real());
    (client, Arc::new(queue))
}

/// Fetches as a worker does, errors and all, until there is something; and how long that took.
async fn next(queue: &RedisQueue) -> (Batch, Duration) {
    let began = Instant::now();
    loop {
        match queue.fetch(1, Duration::from_secs(1)).await {
            Ok(Some(batch)) => return (batch, began.elapsed()),
            Ok(None) => {}
            Err(error) => assert!(matches!(error, QueueError::Unavailable(_)), "{error}"),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the worker did not resume");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// BRPOP's window in most queues: the one who waits is cut off. Here it waits for a marker, and resumes by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_connections_and_flushed_scripts_are_survived() {
    let redis = Redis::start(Fsync::EverySecond).await.unwrap();
    for layout in LAYOUTS {
        let (client, queue) = on(&redis, layout).await;
        let other = RedisClient::connect(&redis.url(), "other").await.unwrap();
        for round in 0..6 {
            let waiter = {
                let queue = queue.clone();
                tokio::spawn(async move { next(&queue).await })
            };
            tokio::time::sleep(Duration::from_millis(100)).await;
            if round % 2 == 0 {
                let mut kill = redis::cmd("CLIENT");
                kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
                kill.exec_async(&mut other.shared()).await.unwrap();
            }
            if round % 3 == 0 {
                let mut flush = redis::cmd("SCRIPT");
                flush.arg("FLUSH").exec_async(&mut other.shared()).await.unwrap();
            }
            let name = format!("item-{round}");
            until_answered(async || queue.enqueue(&[keyed(&name)]).await).await;
            let (batch, after) = waiter.await.unwrap();
            assert!(after < Duration::from_secs(10), "{after:?}");
            assert_eq!(batch.items[0].payload, name);
            assert_eq!(until_answered(async || queue.ack(&batch, &[]).await).await.0, Acked::Done);
        }
        let left: Vec<String> = redis::cmd("KEYS")
            .arg(format!("{}:*:batch:*", client.space()))
            .query_async(&mut client.shared())
            .await
            .unwrap();
        assert_eq!(left, Vec::<String>::new());
    }
}

/// The users' worst: workers that never resume after Redis was unavailable. Ten seconds are the promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_resume_by_themselves_after_a_restart() {
    let mut redis = Redis::start(Fsync::Always).await.unwrap();
    for layout in LAYOUTS {
        let (_, queue) = on(&redis, layout).await;
        queue.enqueue(&[keyed("held"), keyed("waiting")]).await.unwrap();
        let held = queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { next(&queue).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        redis.kill().unwrap();
        assert!(queue.stats().await.is_err());
        tokio::time::sleep(Duration::from_millis(700)).await;
        redis.restart().await.unwrap();
        let back = Instant::now();
        // One of the three had "waiting" before the kill; each of the others gets one of these.
        for name in ["one", "two"] {
            until_answered(async || queue.enqueue(&[keyed(name)]).await).await;
        }
        for waiter in waiters {
            let (batch, _) = waiter.await.unwrap();
            assert_eq!(until_answered(async || queue.ack(&batch, &[]).await).await.0, Acked::Done);
        }
        assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
        assert_eq!(queue.ack(&held, &[]).await.unwrap(), Acked::Done, "the lease outlived the restart");
        let stats = queue.stats().await.unwrap();
        assert_eq!((stats.acked, stats.pending, stats.in_flight), (4, 0, 0));
    }
}

/// In Redis Cluster a script whose keys lie in two slots is refused; so it is here, where all slots are on one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_script_keeps_to_one_slot_of_a_cluster() {
    let redis = Redis::start_with(Fsync::EverySecond, &["--cluster-enabled", "yes"]).await.unwrap();
    let client = RedisClient::connect(&redis.url(), "space").await.unwrap();
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("ADDSLOTSRANGE").arg(0).arg(16_383).exec_async(&mut client.shared()).await.unwrap();
    let ready = Instant::now();
    loop {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut client.shared()).await.unwrap();
        if info.contains("cluster_state:ok") {
            break;
        }
        assert!(ready.elapsed() < Duration::from_secs(20), "{info}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut slots_used = std::collections::HashMap::new();
    for layout in LAYOUTS {
        let clock = ManualClock::at(1_800_000_000_000);
        let queue = RedisQueue::new(client.clone(), "events", layout, settings(), World::on(clock.clone()));
        let queue = queue.on_given_clock();
        let items: Vec<NewItem> = (0..6).map(|n| keyed(&format!("{layout:?}-{n}"))).collect();
        queue.enqueue(&items).await.unwrap();
        let batch = queue.fetch(4, Duration::from_millis(10)).await.unwrap().unwrap();
        let of = |at: usize, then: Then| Unfinished { item: batch.items[at].clone(), then };
        let ends = [
            of(0, Then::Bury { error: "no".into() }),
            of(1, Then::Release),
            of(2, Then::Retry { delay: Duration::from_secs(1), error: "no".into() }),
        ];
        queue.beat(std::slice::from_ref(&batch.id)).await.unwrap();
        assert_eq!(queue.ack(&batch, &ends).await.unwrap(), Acked::Done);
        queue.fetch(10, Duration::ZERO).await.unwrap().unwrap();
        clock.advance(10_000);
        assert_eq!(queue.reclaim().await.unwrap().returned, 3);
        let dead = queue.dead(Scope::All, None, 10).await.unwrap();
        assert_eq!(queue.retry_dead(&[dead[0].item.id.clone()]).await.unwrap(), 1);
        queue.discard_dead(&["nobody".into()]).await.unwrap();
        queue.set_paused(true).await.unwrap();
        queue.repair().await.unwrap();
        queue.stats().await.unwrap();
        queue.set_paused(false).await.unwrap();
    }
    let locks = RedisLocks::new(client.clone(), World::real());
    let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    let Acquired::Held(lock) = locks.acquire(&names, LEASE, Some(0)).await.unwrap() else { panic!("free") };
    assert!(locks.extend(&lock, LEASE).await.unwrap().is_some());

    // What the scripts made lies where they were let in: one slot for the queue, one for the locks.
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut client.shared()).await.unwrap();
    assert!(keys.len() > 10, "{keys:?}");
    for key in keys {
        let mut slot = redis::cmd("CLUSTER");
        let slot: i64 = slot.arg("KEYSLOT").arg(&key).query_async(&mut client.shared()).await.unwrap();
        slots_used.entry(slot).or_insert_with(Vec::new).push(key);
    }
    assert_eq!(slots_used.len(), 2, "{slots_used:?}");
    assert!(locks.release(&lock).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_may_evict_the_queue_is_refused() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let args = ["--maxmemory-policy", policy, "--maxmemory", "100mb"];
        let redis = Redis::start_with(Fsync::EverySecond, &args).await.unwrap();
        match RedisClient::connect(&redis.url(), "space").await.map(|_| ()) {
            Err(error @ RedisStartError::Evicts(_)) => {
                assert!(error.to_string().contains("noeviction"), "it says what would be right: {error}");
            }
            other => panic!("{policy}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_answers_what_was_asked_before_and_begins_nothing_more() {
    let redis = Redis::start(Fsync::Always).await.unwrap();
    for layout in LAYOUTS {
        let (client, queue) = on(&redis, layout).await;
        let asked: Vec<_> = (0..20)
            .map(|n| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.enqueue(&[keyed(&n.to_string())]).await })
            })
            .collect();
        tokio::task::yield_now().await;
        client.close().await;
        let mut taken = 0;
        for one in asked {
            match one.await.unwrap() {
                Ok(_) => taken += 1,
                Err(error) => assert!(matches!(error, QueueError::Unavailable(_)), "{error}"),
            }
        }
        assert!(matches!(queue.fetch(1, Duration::from_secs(1)).await, Err(QueueError::Unavailable(_))));
        let again = RedisClient::connect(&redis.url(), client.space()).await.unwrap();
        let queue = RedisQueue::new(again, "events", layout, settings(), World::real());
        assert_eq!(
            queue.stats().await.unwrap().pending,
            taken,
            "what was answered is there, and nothing else"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_layout_strands_nothing() {
    let redis = Redis::start(Fsync::EverySecond).await.unwrap();
    for layout in LAYOUTS {
        let (client, queue) = on(&redis, layout).await;
        let other = RedisQueue::new(client, "events", layout.other(), settings(), World::real());
        other.refuse_other_layout("events").await.unwrap();
        queue.enqueue(&[keyed("1")]).await.unwrap();
        let error = other.refuse_other_layout("events").await.unwrap_err();
        assert!(matches!(error, RedisStartError::OtherLayout { .. }), "{error}");
        let batch = queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
        assert!(other.refuse_other_layout("events").await.is_err(), "in flight is not done");
        queue.ack(&batch, &[]).await.unwrap();
        other.refuse_other_layout("events").await.unwrap();
    }
}

/// A full Redis takes nothing in, and says so; what it holds is processed all the same: retries that are due, burials,
/// beats, and what a dead worker held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_refuses_and_lets_go_of_what_it_has() {
    let redis = Redis::start_with(Fsync::EverySecond, &["--maxmemory", "12mb"]).await.unwrap();
    for layout in LAYOUTS {
        let s = split(&redis, layout).await;
        let queue = &s.straight;
        let large = |delay| NewItem { payload: vec![b'x'; 50_000].into(), delay, ..NewItem::default() };
        queue.enqueue(&vec![large(Duration::from_secs(1)); 2]).await.unwrap();
        queue.enqueue(&vec![large(Duration::ZERO); 2]).await.unwrap();
        let held = queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
        let poison = queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
        for _ in 0..2 {
            // lost alone twice already
            s.clock.advance(10_000);
            queue.beat(std::slice::from_ref(&held.id)).await.unwrap();
            assert_eq!(queue.reclaim().await.unwrap().returned, 1);
            queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
        }
        drop(poison);
        // By what is no queue's: a queue leaves room.
        let mut fillers = 0;
        let mut connection = RedisClient::connect(&redis.url(), "filler").await.unwrap().shared();
        let full = loop {
            let mut set = redis::cmd("SET");
            set.arg(format!("filler:{fillers}")).arg(vec![b'x'; 50_000]);
            match set.exec_async(&mut connection).await {
                Ok(()) => fillers += 1,
                Err(error) => break error.to_string(),
            }
            assert!(fillers < 1000, "it is full by now");
        };
        assert!(full.contains("OOM"), "{full}");
        let error = queue.enqueue(&[large(Duration::ZERO)]).await.unwrap_err();
        assert!(matches!(error, QueueError::Unavailable(_)), "{error}");
        // Full as it is: the beat, the burial after the third loss, the delayed that are due.
        s.clock.advance(10_000);
        assert_eq!(queue.beat(std::slice::from_ref(&held.id)).await.unwrap(), []);
        let reclaimed = queue.reclaim().await.unwrap();
        assert_eq!((reclaimed.returned, reclaimed.buried), (0, 1));
        assert_eq!(queue.ack(&held, &[]).await.unwrap(), Acked::Done);
        let mut worked = 2;
        while let Some(batch) = queue.fetch(10, Duration::ZERO).await.unwrap() {
            worked += batch.items.len();
            queue.ack(&batch, &[]).await.unwrap();
        }
        assert_eq!((worked, queue.stats().await.unwrap().delayed), (4, 0));
        for n in 0..fillers {
            redis::cmd("DEL").arg(format!("filler:{n}")).exec_async(&mut connection).await.unwrap();
        }
        s.back_door.clear().await;
    }
}

/// What a flood leaves behind - dead letters, and what waits - takes a part of a small memory: another brand goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_brand_cannot_fill_the_memory_that_others_need() {
    let redis = Redis::start_with(Fsync::EverySecond, &["--maxmemory", "24mb"]).await.unwrap();
    for layout in LAYOUTS {
        let client = RedisClient::connect(&redis.url(), &Services::fresh_key_space()).await.unwrap();
        let settings = QueueSettings { max_depth: 0, ..QueueSettings::default() };
        let queue = RedisQueue::new(client, "events", layout, settings, World::real());
        let of = |brand| NewItem {
            payload: vec![b'z'; 30_000].into(),
            brand: Some(BrandId(brand)),
            public: true,
            ..NewItem::default()
        };
        for _ in 0..100 {
            queue.enqueue(&vec![of(1); 15]).await.unwrap();
            let Some(batch) = queue.fetch(15, Duration::ZERO).await.unwrap() else { continue };
            let bury = |item: &Item| Unfinished {
                item: item.clone(),
                then: Then::Bury { error: "too deep".into() },
            };
            let letters: Vec<Unfinished> = batch.items.iter().map(bury).collect();
            queue.ack(&batch, &letters).await.unwrap();
        }
        for _ in 0..100 {
            queue.enqueue(&vec![of(1); 15]).await.unwrap();
        }
        let held = queue.held_by(BrandId(1)).await.unwrap();
        assert!(held.items > 50 && held.dead > 10, "a flood it was: {held:?}");
        assert_eq!(queue.enqueue(&[of(2)]).await.unwrap(), [Enqueued::Accepted]);
    }
}
