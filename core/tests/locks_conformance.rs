//! What every kind of locks must do, and what a merge under them must not depend on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::{LocksUnderTest, memory_locks, redis_locks, sqlite_store};
use tributary_core::ports::locks::{Acquired, Lock};
use tributary_core::ports::store::StoreError;
use tributary_core::ports::world::World;
use tributary_core::services::merge::{LockOptions, with_merge_lock};
use tributary_core::testing::UnavailableLocks;

on_every_adapter!({ memory: crate::memory_locks, redis: crate::redis_locks } [
    one_holder_at_a_time_all_or_nothing,
    nobody_but_the_holder_extends_or_releases,
    a_lock_ends_with_its_time,
    fencing_tokens_rise_and_a_forgotten_counter_says_so,
    the_lock_behaves_as_its_model_under_any_interleaving,
    work_runs_alone_and_is_dropped_when_its_lock_is_lost,
]);

const LONG: Duration = Duration::from_secs(60);
/// Short enough to be waited for twice, long enough for a slow machine to extend it.
const SHORT: Duration = Duration::from_millis(450);

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn held(u: &LocksUnderTest, what: &[&str], ttl: Duration) -> Option<Lock> {
    match u.locks.acquire(&names(what), ttl, Some(0)).await.unwrap() {
        Acquired::Held(lock) => Some(lock),
        Acquired::Busy => None,
        Acquired::Forgotten => panic!("a seed was given"),
    }
}

async fn one_holder_at_a_time_all_or_nothing(u: &LocksUnderTest) {
    let first = held(u, &["a", "b"], LONG).await.unwrap();
    assert_eq!(held(u, &["b", "c"], LONG).await, None);
    assert!(held(u, &["c"], LONG).await.is_some(), "c was not left locked");
    assert!(u.locks.release(&first).await.unwrap());
    assert!(held(u, &["a"], LONG).await.is_some());
}

async fn nobody_but_the_holder_extends_or_releases(u: &LocksUnderTest) {
    let lock = held(u, &["a"], LONG).await.unwrap();
    let thief = Lock { token: "another".into(), ..lock.clone() };
    assert_eq!(u.locks.extend(&thief, LONG).await.unwrap(), None);
    assert!(!u.locks.release(&thief).await.unwrap());
    assert_eq!(held(u, &["a"], LONG).await, None, "it is held as before");
    u.pass(Duration::from_millis(50)).await;
    assert!(u.locks.extend(&lock, LONG).await.unwrap().unwrap() > lock.valid_until);
    assert!(u.locks.release(&lock).await.unwrap());
    assert!(!u.locks.release(&lock).await.unwrap(), "once");
}

async fn a_lock_ends_with_its_time(u: &LocksUnderTest) {
    let lock = held(u, &["a", "b"], Duration::from_millis(300)).await.unwrap();
    assert!(lock.valid_until > u.world.monotonic());
    u.pass(Duration::from_millis(350)).await;
    assert!(lock.valid_until < u.world.monotonic(), "its holder knows");
    let next = held(u, &["a"], LONG).await.unwrap();
    assert!(next.fence > lock.fence);
    assert_eq!(u.locks.extend(&lock, LONG).await.unwrap(), None, "a part of it is another's");
    assert!(!u.locks.release(&lock).await.unwrap());
    assert_eq!(held(u, &["a"], LONG).await, None, "the next holder kept it");
}

async fn fencing_tokens_rise_and_a_forgotten_counter_says_so(u: &LocksUnderTest) {
    assert_eq!(u.locks.acquire(&names(&["a"]), LONG, None).await.unwrap(), Acquired::Forgotten);
    let mut last = 41;
    for name in ["a", "b", "c"] {
        let Acquired::Held(lock) = u.locks.acquire(&names(&[name]), LONG, Some(41)).await.unwrap() else {
            panic!("{name} is free")
        };
        assert_eq!(lock.fence, last + 1);
        last = lock.fence;
    }
    let Acquired::Held(lock) = u.locks.acquire(&names(&["d"]), LONG, None).await.unwrap() else {
        panic!("the counter is known by now")
    };
    assert_eq!(lock.fence, last + 1);
    u.forget().await;
    assert_eq!(u.locks.acquire(&names(&["e"]), LONG, None).await.unwrap(), Acquired::Forgotten);
}

/// What may happen to locks.
#[derive(Clone, Debug)]
enum Step {
    /// A client asks for some of the names.
    Acquire(Vec<usize>),
    /// The holder of an earlier guard extends it, whether it is still its or not.
    Extend(usize),
    Release(usize),
    /// A lock's time ends, or somebody deletes it.
    Expire(usize),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => proptest::sample::subsequence(vec![0, 1, 2, 3], 1..=3).prop_map(Step::Acquire),
        2 => (0_usize..16).prop_map(Step::Extend),
        3 => (0_usize..16).prop_map(Step::Release),
        2 => (0_usize..4).prop_map(Step::Expire),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Runs the steps against a model that is a map from name to guard, and says where they part.
async fn follow(u: &LocksUnderTest, steps: &[Step]) -> Result<(), TestCaseError> {
    u.clear().await;
    let mut holder: HashMap<&str, usize> = HashMap::new();
    let mut grants: Vec<Lock> = Vec::new();
    for step in steps {
        match step {
            Step::Acquire(which) => {
                let wanted: Vec<&str> = which.iter().map(|at| NAMES[*at]).collect();
                let free = wanted.iter().all(|name| !holder.contains_key(name));
                let got = held(u, &wanted, LONG).await;
                prop_assert_eq!(got.is_some(), free, "two holders, or none: {:?}", wanted);
                if let Some(lock) = got {
                    prop_assert!(
                        grants.last().is_none_or(|last| last.fence < lock.fence),
                        "a token came again"
                    );
                    holder.extend(wanted.into_iter().map(|name| (name, grants.len())));
                    grants.push(lock);
                }
            }
            Step::Extend(_) | Step::Release(_) if grants.is_empty() => {}
            Step::Extend(at) => {
                let at = at % grants.len();
                let lock = grants[at].clone();
                let whole = lock.names.iter().all(|name| holder.get(name.as_str()) == Some(&at));
                prop_assert_eq!(u.locks.extend(&lock, LONG).await.unwrap().is_some(), whole);
            }
            Step::Release(at) => {
                let at = at % grants.len();
                let lock = grants[at].clone();
                let whole = lock.names.iter().all(|name| holder.get(name.as_str()) == Some(&at));
                prop_assert_eq!(u.locks.release(&lock).await.unwrap(), whole);
                holder.retain(|_, guard| *guard != at);
            }
            Step::Expire(at) => {
                u.end(NAMES[*at]).await;
                holder.remove(NAMES[*at]);
            }
        }
    }
    for name in NAMES {
        prop_assert_eq!(held(u, &[name], LONG).await.is_none(), holder.contains_key(name), "{}", name);
    }
    Ok(())
}

/// Generates cases and follows them; the first that fails is shrunk.
async fn check(u: &LocksUnderTest, cases: u32) -> Result<(), String> {
    let mut runner =
        TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        runner.run(&steps(), |steps| handle.block_on(follow(u, &steps))).map_err(|error| error.to_string())
    })
}

async fn the_lock_behaves_as_its_model_under_any_interleaving(u: &LocksUnderTest) {
    check(u, support::cases(64)).await.unwrap();
}

/// Each guard of the scripts, taken out: the property above notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_without_one_of_its_guards_is_caught() {
    for (guard, instead) in [
        ("  if redis.call('EXISTS', KEYS[i]) == 1 then return 0 end -- guard: exclusion", ""),
        ("  if redis.call('GET', KEYS[i]) ~= ARGV[1] then return 0 end -- guard: owner", ""),
        ("  if redis.call('GET', KEYS[i]) == ARGV[1] then -- guard: owner", "  if true then"),
        ("redis.call('SET', KEYS[1], string.format('%.0f', fence))", ""),
    ] {
        let edited = std::cell::Cell::new(0);
        let u = support::redis_locks_edited(|script| {
            edited.set(edited.get() + script.matches(guard).count());
            script.replace(guard, instead)
        })
        .await;
        assert_eq!(edited.get(), 1, "the guard is where it was: {guard}");
        let parted = check(&u, 300).await.expect_err("nobody noticed that a guard was missing");
        let seen = ["two holders", "a token came again", "assertion failed: `(left == right)`"];
        assert!(
            seen.iter().any(|what| parted.contains(what)),
            "{guard}: caught for another reason: {parted}"
        );
    }
}

async fn work_runs_alone_and_is_dropped_when_its_lock_is_lost(u: &LocksUnderTest) {
    let on = sqlite_store().await;
    let store = on.store.clone();
    let inside = Arc::new(AtomicUsize::new(0));
    let options = LockOptions { patience: LONG, ..LockOptions::default() };
    let mut workers = Vec::new();
    for worker in 0..6 {
        let (locks, world) = (u.locks.clone(), u.world.clone());
        let (store, inside) = (store.clone(), inside.clone());
        workers.push(tokio::spawn(async move {
            // from both ends: sorting keeps them from holding half each
            let mut wanted = names(&["x", "y", "z"]);
            wanted.rotate_left(worker % 3);
            with_merge_lock(&*locks, &*store, &world, wanted, options, |guard| async move {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "somebody else is inside");
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(guard.is_valid());
                inside.fetch_sub(1, Ordering::SeqCst);
                Ok(guard.fence.unwrap())
            })
            .await
            .unwrap()
        }));
    }
    // Those who wait for each other's lock wait by its clock.
    while workers.iter().any(|worker| !worker.is_finished()) {
        u.pass(Duration::from_millis(50)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut fences = Vec::new();
    for worker in workers {
        fences.push(worker.await.unwrap());
    }
    fences.sort_unstable();
    assert!(fences.windows(2).all(|pair| pair[0] < pair[1]), "{fences:?}");

    // Extended while it works, beyond its time to live; and dropped when somebody steals it.
    let short = LockOptions { ttl: SHORT, ..LockOptions::default() };
    let worked = with_merge_lock(&*u.locks, &*store, &u.world, names(&["x"]), short, |guard| async move {
        u.pass(SHORT * 2).await;
        Ok(guard.is_valid())
    });
    assert_eq!(worked.await, Ok(true));
    let stolen = with_merge_lock(&*u.locks, &*store, &u.world, names(&["x"]), short, |_| async {
        u.end("x").await;
        assert!(held(u, &["x"], LONG).await.is_some());
        // The next extension finds out.
        u.pass(SHORT).await;
        std::future::pending::<Result<(), StoreError>>().await
    });
    let dropped = tokio::time::timeout(Duration::from_secs(10), stolen).await.expect("it is dropped");
    assert!(matches!(dropped, Err(StoreError::Conflict(_))), "{dropped:?}");
    assert_eq!(held(u, &["x"], LONG).await, None, "the thief's lock is not released");
    let busy =
        with_merge_lock(&*u.locks, &*store, &u.world, names(&["x"]), LockOptions::default(), |_| async {
            Ok(())
        });
    assert!(matches!(busy.await, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn without_reachable_locks_work_goes_on_under_the_stores_own_tokens() {
    let on = sqlite_store().await;
    let store = on.store.clone();
    let world = World::real();
    let worked = with_merge_lock(
        &UnavailableLocks,
        &*store,
        &world,
        names(&["x"]),
        LockOptions::default(),
        |guard| async move { Ok((guard.fence, guard.is_valid())) },
    );
    assert_eq!(worked.await, Ok((None, true)));
}
