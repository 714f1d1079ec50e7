//! What every outbox must do, and how what waits in it comes to its queue.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{ContextUnderTest, embedded_context, services_context};
use tributary_core::context::EVENTS_QUEUE;
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::outbox::OutboxTargets;
use tributary_core::ports::outbox::Stage;
use tributary_core::ports::queue::{
    Enqueued, Idempotency, NewItem, Priority, Queue, QueueError, QueueSettings, Then, Unfinished,
};
use tributary_core::ports::world::World;
use tributary_core::services::outbox::{DrainError, check, drain, ended};
use tributary_core::services::spool::SpooledQueue;
use tributary_core::testing::UnavailableQueue;

on_every_adapter!({ embedded: crate::embedded_context, services: crate::services_context } [
    what_is_staged_is_there_if_and_only_if_the_transaction_commits,
    what_waits_reaches_its_queue_in_order_once_and_whole,
    whoever_dies_between_enqueue_and_removal_doubles_nothing,
    a_repeated_delivery_is_known_among_those_that_wait,
    a_key_with_another_body_is_set_aside_and_holds_nobody_up,
    a_queue_that_is_away_or_unknown_loses_nothing,
    drains_at_once_bring_each_item_once,
    an_item_stays_until_its_job_has_ended,
    what_a_queue_has_forgotten_it_gets_again,
    what_came_another_way_is_not_brought_again_and_again,
    an_item_is_known_for_as_long_as_it_waits,
    a_queue_with_room_for_a_few_gets_a_few,
    a_brand_over_its_share_waits_and_holds_up_nobody,
    what_waits_for_a_queue_that_is_away_has_shares_too,
    deliveries_at_once_fail_nobody,
]);

const NOW: i64 = 1_768_000_000_000;

fn item(payload: &str) -> NewItem {
    NewItem { payload: payload.to_owned().into(), ..NewItem::default() }
}

fn keyed(payload: &str, key: &str) -> NewItem {
    NewItem { idempotency: Some(Idempotency::new(vec![key.into()], payload.as_bytes())), ..item(payload) }
}

fn numbered(range: std::ops::Range<usize>) -> Vec<NewItem> {
    range.map(|n| item(&n.to_string())).collect()
}

async fn add(u: &ContextUnderTest, items: &[NewItem]) -> Vec<Enqueued> {
    u.context.outbox.add(EVENTS_QUEUE, items, u.context.world.now_ms()).await.unwrap()
}

async fn worked_off(u: &ContextUnderTest) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(batch) = u.context.queue.fetch(300, Duration::ZERO).await.unwrap() {
        seen.extend(batch.items.iter().map(|item| String::from_utf8_lossy(&item.payload).into_owned()));
        u.context.queue.ack(&batch, &[]).await.unwrap();
    }
    seen
}

async fn waiting(u: &ContextUnderTest) -> (u64, u64) {
    let stats = u.context.outbox.stats().await.unwrap();
    (stats.waiting, stats.refused)
}

async fn what_is_staged_is_there_if_and_only_if_the_transaction_commits(u: &ContextUnderTest) {
    let stages: Vec<Stage> =
        numbered(0..3).into_iter().map(|item| Stage { queue: EVENTS_QUEUE.into(), item }).collect();
    let mut dropped = u.context.store.begin().await.unwrap();
    dropped.stage(&stages, NOW).await.unwrap();
    drop(dropped);
    assert_eq!(waiting(u).await, (0, 0));
    assert_eq!(drain(&u.context).await.unwrap(), 0);
    let mut kept = u.context.store.begin().await.unwrap();
    kept.stage(&stages, NOW).await.unwrap();
    kept.commit().await.unwrap();
    let stats = u.context.outbox.stats().await.unwrap();
    assert_eq!((stats.waiting, stats.oldest_ms), (3, Some(NOW)));
    assert_eq!(drain(&u.context).await.unwrap(), 3);
    assert_eq!(worked_off(u).await, ["0", "1", "2"]);
}

async fn what_waits_reaches_its_queue_in_order_once_and_whole(u: &ContextUnderTest) {
    for from in [0, 700, 1400] {
        add(u, &numbered(from..from + 700)).await;
    }
    let strange = NewItem {
        payload: (0..=255_u8).collect::<Vec<u8>>().into(),
        priority: Priority::Low,
        delay: Duration::from_secs(3600),
        ..NewItem::default()
    };
    add(u, std::slice::from_ref(&strange)).await;
    let staged = u.context.outbox.oldest(&[EVENTS_QUEUE], &[], 5000).await.unwrap().pop().unwrap();
    assert_eq!((&staged.item.payload, staged.item.priority), (&strange.payload, strange.priority));
    assert_eq!(staged.item.delay, strange.delay);
    assert_eq!(drain(&u.context).await.unwrap(), 2101);
    assert_eq!((waiting(u).await, drain(&u.context).await.unwrap()), ((0, 0), 0));
    assert_eq!(u.context.queue.stats().await.unwrap().delayed, 1, "its delay goes on");
    let expected: Vec<String> = (0..2100).map(|n| n.to_string()).collect();
    assert_eq!(worked_off(u).await, expected);
}

/// Items that their queue is said to have: all of them are asked for at once.
async fn sent(u: &ContextUnderTest) -> usize {
    let all = u.context.outbox.to_check(i64::MAX, 100).await.unwrap();
    let ids: Vec<_> = all.iter().map(|sent| sent.id).collect();
    u.context.outbox.sent(&ids, 0).await.unwrap();
    ids.len()
}

async fn an_item_stays_until_its_job_has_ended(u: &ContextUnderTest) {
    add(u, &numbered(0..4)).await;
    assert_eq!((drain(&u.context).await.unwrap(), sent(u).await), (4, 4));
    let queue = &u.context.queue;
    let batch = queue.fetch(4, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((check(&u.context).await.unwrap(), sent(u).await), (0, 4), "they are in hand");
    // One is buried, one is tried again, one is left to whoever comes next.
    let [buried, retried, released] = [
        Then::Bury { error: "no".into() },
        Then::Retry { delay: Duration::ZERO, error: "no".into() },
        Then::Release,
    ];
    let unfinished: Vec<Unfinished> = batch.items[1..]
        .iter()
        .cloned()
        .zip([buried, retried, released])
        .map(|(item, then)| Unfinished { item, then })
        .collect();
    ended(&u.context, &batch.items, &unfinished).await.unwrap();
    assert_eq!(sent(u).await, 2);
    queue.ack(&batch, &unfinished).await.unwrap();
    // Acked by one who died before it could remove them: the queue says that they have ended.
    while let Some(batch) = queue.fetch(4, Duration::from_millis(50)).await.unwrap() {
        queue.ack(&batch, &[]).await.unwrap();
    }
    assert_eq!((check(&u.context).await.unwrap(), sent(u).await, waiting(u).await), (0, 0, (0, 0)));
}

async fn what_a_queue_has_forgotten_it_gets_again(u: &ContextUnderTest) {
    add(u, &[keyed("1", "a"), item("2"), item("3")]).await;
    drain(&u.context).await.unwrap();
    let batch = u.context.queue.fetch(1, Duration::ZERO).await.unwrap().unwrap();
    ended(&u.context, &batch.items, &[]).await.unwrap();
    u.context.queue.ack(&batch, &[]).await.unwrap();
    assert_eq!(sent(u).await, 2);
    u.forget_queues().await;
    assert_eq!((check(&u.context).await.unwrap(), waiting(u).await), (2, (2, 0)));
    assert_eq!(
        (drain(&u.context).await.unwrap(), worked_off(u).await),
        (2, vec!["2".to_owned(), "3".to_owned()])
    );
}

/// The queue took a delivery, and its answer came too late: the outbox has it, too.
async fn what_came_another_way_is_not_brought_again_and_again(u: &ContextUnderTest) {
    let delivery = keyed("1", "a");
    // Past the decorator that would put it into the outbox.
    let targets = &u.context.outbox_targets.0;
    let (_, queue) = targets.iter().find(|(name, _)| *name == EVENTS_QUEUE).unwrap();
    assert_eq!(queue.enqueue(std::slice::from_ref(&delivery)).await.unwrap(), [Enqueued::Accepted]);
    add(u, &[delivery]).await;
    assert_eq!((drain(&u.context).await.unwrap(), sent(u).await, waiting(u).await), (1, 0, (0, 0)));
    assert_eq!((check(&u.context).await.unwrap(), worked_off(u).await), (0, vec!["1".to_owned()]));
}

async fn an_item_is_known_for_as_long_as_it_waits(u: &ContextUnderTest) {
    let short =
        Idempotency { ttl: Some(Duration::from_millis(20)), ..Idempotency::new(vec!["a".into()], b"1") };
    add(u, &[NewItem { idempotency: Some(short), ..item("1") }]).await;
    drain(&u.context).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((sent(u).await, check(&u.context).await.unwrap(), waiting(u).await), (1, 0, (0, 0)));
    assert_eq!(worked_off(u).await, ["1"]);
}

async fn whoever_dies_between_enqueue_and_removal_doubles_nothing(u: &ContextUnderTest) {
    add(u, &numbered(0..5)).await;
    let left_behind = u.context.outbox.oldest(&[EVENTS_QUEUE], &[], 10).await.unwrap();
    drain(&u.context).await.unwrap();
    // As if the removal had not come to pass: what was there is there again.
    u.put_back(&left_behind).await;
    assert_eq!(waiting(u).await.0, 5);
    assert_eq!(drain(&u.context).await.unwrap(), 5);
    assert_eq!(worked_off(u).await, ["0", "1", "2", "3", "4"]);
}

async fn a_repeated_delivery_is_known_among_those_that_wait(u: &ContextUnderTest) {
    let results = add(u, &[keyed("1", "a"), keyed("1", "a"), item("2"), keyed("other", "a")]).await;
    assert_eq!(results, [Enqueued::Accepted, Enqueued::Duplicate, Enqueued::Accepted, Enqueued::Conflict]);
    assert_eq!(add(u, &[keyed("1", "a")]).await, [Enqueued::Duplicate]);
    drain(&u.context).await.unwrap();
    assert_eq!(worked_off(u).await.len(), 2);
    assert_eq!(u.context.queue.enqueue(&[keyed("1", "a")]).await.unwrap(), [Enqueued::Duplicate]);
    // What the queue knew from before is known when the item comes to it.
    add(u, &[keyed("1", "a"), item("3")]).await;
    drain(&u.context).await.unwrap();
    assert_eq!((worked_off(u).await, waiting(u).await), (vec!["3".to_owned()], (0, 0)));
}

async fn a_key_with_another_body_is_set_aside_and_holds_nobody_up(u: &ContextUnderTest) {
    u.context.queue.enqueue(&[keyed("first", "a")]).await.unwrap();
    add(u, &[item("1"), keyed("other", "a"), item("2")]).await;
    assert_eq!(drain(&u.context).await.unwrap(), 2);
    assert_eq!(waiting(u).await, (0, 1), "accepted, so it is kept for people to look at");
    assert_eq!(worked_off(u).await, ["first", "1", "2"]);
}

async fn a_queue_that_is_away_or_unknown_loses_nothing(u: &ContextUnderTest) {
    u.context.outbox.add("nowhere", &[item("x")], NOW).await.unwrap();
    add(u, &[item("1")]).await;
    let mut away = u.context.clone();
    away.outbox_targets = OutboxTargets(vec![(EVENTS_QUEUE, Arc::new(UnavailableQueue) as Arc<dyn Queue>)]);
    let error = drain(&away).await.unwrap_err();
    assert!(matches!(error, DrainError::Queue(QueueError::Unavailable(_))), "{error}");
    assert_eq!(drain(&u.context).await.unwrap(), 1);
    assert_eq!(worked_off(u).await, ["1"]);
    assert_eq!(waiting(u).await, (1, 0), "what another version knows the queue of waits for it");
}

async fn a_queue_with_room_for_a_few_gets_a_few(u: &ContextUnderTest) {
    add(u, &numbered(0..90)).await;
    let small = u.reopened(QueueSettings { max_depth: 40, ..QueueSettings::default() }).await;
    for _ in 0..2 {
        let error = drain(&small).await.unwrap_err();
        assert!(matches!(error, DrainError::Queue(QueueError::Full { .. })), "{error}");
        let seen = worked_off(u).await;
        assert!(!seen.is_empty(), "as many as there is room for");
        u.context.outbox.oldest(&[EVENTS_QUEUE], &[], 1).await.unwrap();
    }
    while let Err(error) = drain(&small).await {
        assert!(matches!(error, DrainError::Queue(QueueError::Full { .. })), "{error}");
        worked_off(u).await;
    }
    assert_eq!(waiting(u).await, (0, 0));
}

async fn a_brand_over_its_share_waits_and_holds_up_nobody(u: &ContextUnderTest) {
    let of = |brand: i64, public: bool, names: std::ops::Range<usize>| -> Vec<NewItem> {
        let item = |item: NewItem| NewItem { brand: Some(BrandId(brand)), public, ..item };
        numbered(names).into_iter().map(item).collect()
    };
    add(u, &of(1, true, 0..90)).await;
    add(u, &of(2, false, 90..95)).await;
    let small = u.reopened(QueueSettings { max_depth: 40, ..QueueSettings::default() }).await;
    drain(&small).await.unwrap();
    let held = async |brand| small.queue.held_by(BrandId(brand)).await.unwrap().items;
    assert_eq!((held(1).await, held(2).await), (17, 5), "as much as stays free, and all");
    assert_eq!(waiting(u).await, (73, 0));
    let mut seen = worked_off(u).await;
    for _ in 0..20 {
        drain(&small).await.unwrap();
        seen.extend(worked_off(u).await);
    }
    assert_eq!(waiting(u).await, (0, 0));
    seen.retain(|name| name.parse::<u32>().unwrap() < 90);
    assert_eq!(seen, (0..90).map(|n| n.to_string()).collect::<Vec<_>>(), "each once, in order");
}

async fn what_waits_for_a_queue_that_is_away_has_shares_too(u: &ContextUnderTest) {
    let world = World::real();
    let spooled =
        SpooledQueue::new(Arc::new(UnavailableQueue), EVENTS_QUEUE, u.context.outbox.clone(), world, 40);
    let of = |brand: i64, public: bool| NewItem { brand: Some(BrandId(brand)), public, ..item("x") };
    let mut taken = 0;
    for _ in 0..40 {
        let result = spooled.enqueue(&[of(1, true)]).await.unwrap();
        taken += usize::from(result == [Enqueued::Accepted]);
    }
    assert_eq!(taken, 20, "what a public key sent: as much as is free");
    let both = spooled.enqueue(&[of(1, true), of(1, false), of(2, true)]).await.unwrap();
    assert_eq!(both, [Enqueued::OverShare, Enqueued::Accepted, Enqueued::Accepted]);
    assert_eq!(waiting(u).await, (22, 0));
}

async fn deliveries_at_once_fail_nobody(u: &ContextUnderTest) {
    let long = "k".repeat(5000);
    let calls: Vec<_> = (0..12)
        .map(|n| {
            let (context, long) = (u.context.clone(), long.clone());
            tokio::spawn(async move {
                let mut items = vec![keyed("1", &long), keyed("2", "b"), item(&format!("own {n}"))];
                if n % 2 == 0 {
                    items.swap(0, 1);
                }
                context.outbox.add(EVENTS_QUEUE, &items, NOW).await.unwrap()
            })
        })
        .collect();
    let mut accepted = 0;
    for call in calls {
        accepted += call.await.unwrap().iter().filter(|result| **result == Enqueued::Accepted).count();
    }
    assert_eq!((accepted, waiting(u).await.0), (14, 14), "twelve of their own, and each delivery once");
}

async fn drains_at_once_bring_each_item_once(u: &ContextUnderTest) {
    add(u, &numbered(0..1200)).await;
    let drains: Vec<_> = (0..4)
        .map(|_| {
            let context = u.context.clone();
            tokio::spawn(async move { drain(&context).await.unwrap() })
        })
        .collect();
    for one in drains {
        one.await.unwrap();
    }
    drain(&u.context).await.unwrap();
    let expected: Vec<String> = (0..1200).map(|n| n.to_string()).collect();
    assert_eq!(worked_off(u).await, expected);
}
