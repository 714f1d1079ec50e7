//! A process dies at every named step between a request and its ack: nothing is lost, nothing takes effect twice.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use chaos::drill::{Drill, Failpoint, Victim, run};
use tributary_core::failpoint::{BUILT_IN, POINTS};

/// Who passes a point, and how often before it dies there.
const DRILLS: [(&str, &str, u32); 9] = [
    ("before_enqueue", "server", 20),
    ("claimed_before_reply", "server", 20),
    ("fetched_before_handler", "workers", 3),
    ("events_added_before_commit", "workers", 3),
    ("merge_checked_before_commit", "workers", 1),
    ("committed_in_part", "workers", 3),
    ("committed_before_ack", "workers", 3),
    ("acked_before_next", "workers", 3),
    ("outbox_enqueued_before_noted", "workers", 0),
];

#[test]
fn every_point_has_its_drill() {
    const { assert!(BUILT_IN, "a build for tests has failpoints") };
    assert_eq!(DRILLS.map(|(point, ..)| point), POINTS);
    assert_eq!(ON_SERVICES, POINTS);
    assert_eq!(EMBEDDED, &POINTS[..8]);
}

fn seed() -> u64 {
    let seed = std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5);
    println!("CHAOS_SEED={seed}");
    seed
}

async fn survives(point: &str, victim: Victim) {
    let (name, role, passes) = *DRILLS.iter().find(|(name, ..)| *name == point).unwrap();
    let role = if victim == Victim::EmbeddedServer { "server" } else { role };
    let redis_away = name.starts_with("outbox");
    let drill = Drill {
        binary: env!("CARGO_BIN_EXE_chaos").into(),
        victim,
        kills: 0,
        queue: "lists".into(),
        failpoint: Some(Failpoint { name: name.into(), passes, role, redis_away }),
        events: 2000,
        seed: seed(),
        over: Duration::from_secs(3),
    };
    let outcome = run(&drill).await.unwrap();
    assert!(outcome.kills >= 1, "it died there");
    assert_eq!(outcome.given_up, 0, "senders retry until it is back");
    assert!(outcome.is_clean(), "{outcome:#?}");
}

macro_rules! drills {
    ($profile:ident, $victim:expr, $names:ident, [$($point:ident),* $(,)?]) => {
        const $names: &[&str] = &[$( stringify!($point) ),*];
        mod $profile {
            $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
               async fn $point() { super::survives(stringify!($point), $victim).await } )*
        }
    };
}

drills!(
    services,
    super::Victim::Worker,
    ON_SERVICES,
    [
        before_enqueue,
        claimed_before_reply,
        fetched_before_handler,
        events_added_before_commit,
        merge_checked_before_commit,
        committed_in_part,
        committed_before_ack,
        acked_before_next,
        outbox_enqueued_before_noted,
    ]
);

// Embedded, the queue is never away without the store: there is nothing in the outbox.
drills!(
    embedded,
    super::Victim::EmbeddedServer,
    EMBEDDED,
    [
        before_enqueue,
        claimed_before_reply,
        fetched_before_handler,
        events_added_before_commit,
        merge_checked_before_commit,
        committed_in_part,
        committed_before_ack,
        acked_before_next,
    ]
);
