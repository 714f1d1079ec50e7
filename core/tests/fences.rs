//! Fencing tokens in the store: whatever the locks give out, a profile's committed tokens rise, strictly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::{StoreUnderTest, postgres_store, sqlite_store};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::profile::Profile;
use tributary_core::ports::store::Store;
use tributary_core::ports::world::World;

on_every_adapter!({ sqlite: crate::sqlite_store, postgres: crate::postgres_store } [
    committed_tokens_of_a_profile_rise_strictly,
]);

const PROFILES: usize = 3;

/// A holder's try: which profiles, under which token, and whether it dies before the commit.
#[derive(Clone, Debug)]
struct Try {
    profiles: Vec<usize>,
    token: i64,
    dies: bool,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one =
        (proptest::sample::subsequence(vec![0, 1, 2], 1..=PROFILES), 1_i64..8, proptest::bool::weighted(0.2));
    proptest::collection::vec(one.prop_map(|(profiles, token, dies)| Try { profiles, token, dies }), 1..20)
}

/// What a holder makes of its token: the token itself, but where a check is to be caught.
type Stamp<'a> = &'a (dyn Fn(i64) -> i64 + Sync);

/// Profiles that nobody has merged.
async fn fresh_profiles(store: &dyn Store) -> Vec<ProfileId> {
    let ids: Vec<ProfileId> = (0..PROFILES).map(|_| ProfileId(World::real().id())).collect();
    let profiles: Vec<Profile> = ids.iter().map(|id| Profile::new(*id, BrandId(1))).collect();
    let mut tx = store.begin().await.unwrap();
    tx.save_profiles(&profiles).await.unwrap();
    tx.commit().await.unwrap();
    ids
}

async fn follow(store: &dyn Store, stamp: Stamp<'_>, tries: &[Try]) -> Result<(), TestCaseError> {
    let mut ids = fresh_profiles(store).await;
    ids.sort();
    let mut last = [0_i64; PROFILES];
    for Try { profiles, token, dies } in tries {
        let chosen: Vec<ProfileId> = profiles.iter().map(|at| ids[*at]).collect();
        let rises = profiles.iter().all(|at| last[*at] < *token);
        let mut tx = store.begin().await.unwrap();
        prop_assert_eq!(tx.lock(&chosen).await.unwrap().len(), chosen.len());
        let stamped = tx.fence(&chosen, Some(stamp(*token))).await;
        prop_assert_eq!(stamped.is_ok(), rises, "token {} after {:?}", token, last);
        if stamped.is_ok() && !dies {
            tx.commit().await.unwrap();
            for at in profiles {
                last[*at] = *token;
            }
        }
    }
    Ok(())
}

fn check(store: &dyn Store, stamp: Stamp<'_>, cases: u32) -> Result<(), String> {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        TestRunner::new(config)
            .run(&tries(), |tries| handle.block_on(follow(store, stamp, &tries)))
            .map_err(|error| error.to_string())
    })
}

async fn committed_tokens_of_a_profile_rise_strictly(u: &StoreUnderTest) {
    check(&*u.store, &|token| token, support::cases(48)).unwrap();
}

/// As a store would whose check is `<=` instead of `<`: each stamp is a little higher than its token, so that the same token passes
/// again, and a lower one does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_a_token_twice_is_caught() {
    let on = sqlite_store().await;
    let stamps = AtomicI64::new(0);
    let lax = |token| token * 1_000_000 + stamps.fetch_add(1, Ordering::SeqCst);
    assert!(check(&*on.store, &lax, 200).is_err(), "nobody noticed that the check was not strict");
}
