//! The holder of a merge lock is stopped by SIGSTOP for longer than the lock lasts, and goes on as if nothing had been. Two
//! processes then believe that they hold it; one of them commits.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and the processes talk by lines"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::services;
use tributary_core::adapters::postgres;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::locks::RedisLocks;
use tributary_core::adapters::sql::{Database, SqlStore};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::profile::Profile;
use tributary_core::ports::locks::Locks;
use tributary_core::ports::store::{Store, StoreError, SuppressionKey};
use tributary_core::ports::world::World;
use tributary_core::services::merge::{LockOptions, lock_name, with_merge_lock};

const TTL: Duration = Duration::from_millis(600);
/// How long the holder works, so that it can be stopped meanwhile.
const WORK: Duration = Duration::from_millis(300);
const BRAND: BrandId = BrandId(1);

/// The store and the locks that `HOLDER` names, and the profile to be merged.
async fn open(holder: &str) -> (SqlStore, RedisLocks, ProfileId) {
    let [database, redis, space, profile] = holder.split('|').collect::<Vec<_>>()[..] else {
        panic!("{holder}")
    };
    let db = Database::postgres(postgres::db::open(database, 4).await.unwrap(), World::real());
    let store = SqlStore::new(db, SuppressionKey::new([7; 32]));
    let locks = RedisLocks::new(RedisClient::connect(redis, space).await.unwrap(), World::real());
    (store, locks, ProfileId::parse(profile).unwrap())
}

/// Merges under the lock, by the token's word alone: `believing` leaves out what a holder's own clock would tell it.
async fn merge(holder: &str, believing: bool, say_held: bool) -> Result<i64, StoreError> {
    let (store, locks, profile) = open(holder).await;
    let token = if believing {
        let names = [lock_name(BRAND, profile)];
        let fence = match locks.acquire(&names, TTL, Some(0)).await.unwrap() {
            tributary_core::ports::locks::Acquired::Held(lock) => lock.fence,
            other => panic!("{other:?}"),
        };
        if say_held {
            println!("held");
        }
        tokio::time::sleep(WORK).await;
        stamp(&store, profile, fence).await?;
        fence
    } else {
        let options = LockOptions { ttl: TTL, ..LockOptions::default() };
        with_merge_lock(&locks, &store, &World::real(), vec![lock_name(BRAND, profile)], options, |guard| {
            let store = &store;
            async move {
                if say_held {
                    println!("held");
                }
                tokio::time::sleep(WORK).await;
                let fence = guard.fence.unwrap();
                if !guard.is_valid() {
                    return Err(StoreError::Conflict("the lock ran out".into()));
                }
                stamp(store, profile, fence).await?;
                Ok(fence)
            }
        })
        .await?
    };
    Ok(token)
}

async fn stamp(store: &SqlStore, profile: ProfileId, fence: i64) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    tx.lock(&[profile]).await?;
    tx.fence(&[profile], Some(fence)).await?;
    tx.commit().await
}

/// Played by a process of its own, started by the test below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a role, not a test"]
async fn holder() {
    let believing = std::env::var("BELIEVING").is_ok();
    match merge(&std::env::var("HOLDER").unwrap(), believing, true).await {
        Ok(fence) => println!("committed {fence}"),
        Err(error) => println!("refused {error:?}"),
    }
}

fn lines(child: &mut std::process::Child) -> impl Iterator<Item = String> + use<> {
    // the test harness writes on the first line before us
    BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_was_stopped_longer_than_its_lock_commits_nothing() {
    let services = services().await;
    let database = services.fresh_database().await.unwrap();
    for believing in [true, false] {
        let space = backends::services::Services::fresh_key_space();
        let profile = ProfileId::first_at(1_768_000_000_000);
        let names = format!("{database}|{}|{space}|{profile}", services.redis_url);
        let (store, ..) = open(&names).await;
        let mut tx = store.begin().await.unwrap();
        tx.save_profiles(&[Profile::new(profile, BRAND)]).await.unwrap();
        tx.commit().await.unwrap();

        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "holder", "--ignored", "--nocapture"]).env("HOLDER", &names);
        if believing {
            command.env("BELIEVING", "1");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = lines(&mut child);
        assert!(said.any(|line| line.ends_with("held")), "the holder holds it");
        let signal = |name: &str| {
            let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
        };
        signal("-STOP");
        tokio::time::sleep(TTL + Duration::from_millis(200)).await;
        let ours = merge(&names, true, false).await.expect("its time is over: the lock is free");
        signal("-CONT");
        let end = said.find(|line| line.starts_with("committed") || line.starts_with("refused")).unwrap();
        assert!(end.starts_with("refused"), "two holders, one commit: {end}");
        assert_eq!(
            end.contains("Fenced"),
            believing,
            "by the store's check, or by its own clock before: {end}"
        );
        assert_eq!(store.last_fence().await.unwrap(), ours, "what we committed is what is there");
        child.wait().unwrap();
    }
}
