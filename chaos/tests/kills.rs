//! `kill -9` under load: nothing is lost, nothing takes effect twice.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use chaos::drill::{Drill, Victim, run};

async fn survives(victim: Victim, kills: usize) {
    survives_on("lists", victim, kills).await;
}

async fn survives_on(queue: &str, victim: Victim, kills: usize) {
    survives_over(queue, victim, kills, (6000, Duration::from_secs(5))).await;
}

async fn survives_over(queue: &str, victim: Victim, kills: usize, (events, over): (usize, Duration)) {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    println!("CHAOS_SEED={seed}");
    let drill = Drill {
        binary: env!("CARGO_BIN_EXE_chaos").into(),
        victim,
        kills,
        failpoint: None,
        queue: queue.into(),
        events,
        seed,
        over,
    };
    let outcome = run(&drill).await.unwrap();
    assert!(outcome.kills >= 1);
    assert_eq!(outcome.given_up, 0, "senders retry until it is back");
    assert!(outcome.is_clean(), "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_loses_nothing() {
    survives(Victim::Worker, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_loses_nothing_on_streams_either() {
    survives_on("streams", Victim::Worker, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_worker_loses_nothing() {
    survives(Victim::StoppedWorker, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_frozen_longer_than_its_lease_doubles_nothing() {
    survives(Victim::FrozenWorker, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_embedded_server_loses_nothing() {
    survives(Victim::EmbeddedServer, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_it_accepted() {
    survives(Victim::Server, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_redis_loses_nothing_that_was_accepted() {
    survives(Victim::Redis, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgresql_buries_nothing() {
    survives(Victim::Postgres, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_cut_again_and_again_buries_nobody() {
    survives_over("lists", Victim::Network, 0, (1500, Duration::from_secs(60))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_full_takes_everything_again_without_a_restart() {
    survives_over("lists", Victim::Disk, 3, (6000, Duration::from_secs(8))).await;
}
