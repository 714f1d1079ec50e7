//! What every queue must do, whatever it is made of.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use support::{LEASE, QueueUnderTest, redis_lists, redis_streams, sqlite_queue};
use tributary_core::domain::ids::BrandId;
use tributary_core::ports::queue::{
    Acked, Batch, BatchId, DeadLetter, DeadPlace, Enqueued, FAIR_EVERY, Holding, Idempotency, MAX_DEAD_PAGE,
    MAX_LOSSES, MAX_SURVIVED, NewItem, Outcome, Priority, QueueError, Reclaimed, Repaired, Scope, Then,
    Unfinished,
};

on_every_adapter!({ sqlite: crate::sqlite_queue, redis_lists: crate::redis_lists, redis_streams: crate::redis_streams } [
    items_come_out_in_the_order_they_went_in,
    what_is_acked_is_gone_and_leaves_nothing_behind,
    an_unacked_batch_comes_back_after_its_lease_and_not_before,
    a_beat_keeps_a_batch_and_its_absence_loses_it,
    whoever_lost_the_lease_changes_nothing,
    a_poison_item_takes_no_neighbour_along,
    losses_in_company_bury_nobody,
    a_worker_that_was_only_cut_off_buries_nobody,
    a_worker_that_comes_back_late_brings_its_item_back,
    an_item_that_keeps_its_worker_from_beating_is_buried_in_the_end,
    a_retry_waits_for_its_time_and_uses_an_attempt,
    a_release_returns_at_once_unharmed_and_in_order,
    a_buried_item_keeps_its_payload_and_its_reason,
    a_repeated_idempotency_key_is_a_duplicate_also_within_one_call,
    one_known_key_of_two_makes_a_duplicate,
    higher_priorities_come_first,
    a_delayed_item_waits,
    a_full_queue_takes_nothing_of_the_batch,
    a_brand_holds_its_share_and_holds_up_nobody,
    a_backlog_waits_behind_other_brands,
    a_backlog_of_large_items_comes_in_smaller_batches,
    a_brand_that_is_alone_has_its_backlog_in_whole_batches,
    a_call_is_taken_whole_however_it_is_written,
    a_brands_dead_letters_are_bounded_in_number_bytes_and_age,
    what_is_deferred_waits_and_uses_no_attempt,
    a_sleeping_worker_is_woken_by_an_enqueue,
    payloads_of_any_bytes_survive_loss_and_burial,
    many_workers_get_every_item_once,
    large_batches_pass_whole,
    a_paused_queue_hands_nothing_out_and_takes_everything_in,
    dead_letters_are_listed_put_back_and_discarded,
    a_failure_is_remembered_through_every_try,
    a_claim_says_when_by_whom_and_how_its_item_ended,
    a_known_key_with_another_body_is_a_conflict,
    of_deliveries_at_once_one_is_taken,
    a_claim_ends_with_its_time,
    the_lowest_priority_is_served_within_so_many_fetches,
    an_audit_finds_what_lost_its_lease,
]);

fn item(payload: &str) -> NewItem {
    NewItem { payload: Bytes::copy_from_slice(payload.as_bytes()), ..NewItem::default() }
}

async fn put(under_test: &QueueUnderTest, payloads: &[&str]) {
    let items: Vec<NewItem> = payloads.iter().map(|payload| item(payload)).collect();
    let results = under_test.queue.enqueue(&items).await.unwrap();
    assert_eq!(results, vec![Enqueued::Accepted; payloads.len()]);
}

async fn fetch(under_test: &QueueUnderTest, want: usize) -> Option<Batch> {
    under_test.queue.fetch(want, Duration::ZERO).await.unwrap()
}

fn payloads(batch: &Batch) -> Vec<&str> {
    batch.items.iter().map(|item| std::str::from_utf8(&item.payload).unwrap()).collect()
}

async fn done(under_test: &QueueUnderTest, batch: &Batch) {
    assert_eq!(under_test.queue.ack(batch, &[]).await.unwrap(), Acked::Done);
}

async fn lose(under_test: &QueueUnderTest) {
    under_test.pass(LEASE + Duration::from_millis(50)).await;
    under_test.queue.reclaim().await.unwrap();
}

async fn items_come_out_in_the_order_they_went_in(u: &QueueUnderTest) {
    put(u, &["1", "2"]).await;
    put(u, &["3"]).await;
    let first = fetch(u, 2).await.unwrap();
    assert_eq!(payloads(&first), ["1", "2"]);
    assert_eq!(payloads(&fetch(u, 2).await.unwrap()), ["3"]);
    assert!(fetch(u, 2).await.is_none());
    assert!(first.items.iter().all(|item| item.attempt == 0 && !item.suspect && item.losses == 0));
}

async fn what_is_acked_is_gone_and_leaves_nothing_behind(u: &QueueUnderTest) {
    put(u, &["1", "2"]).await;
    let batch = fetch(u, 10).await.unwrap();
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.in_flight), (0, 2));
    done(u, &batch).await;
    lose(u).await;
    assert!(fetch(u, 10).await.is_none());
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.in_flight, stats.delayed, stats.dead), (0, 0, 0, 0));
    assert_eq!((stats.enqueued, stats.acked, stats.oldest_age_ms), (2, 2, 0));
    assert_eq!(u.queue.ack(&batch, &[]).await.unwrap(), Acked::Lost, "a batch ends once");
}

async fn an_unacked_batch_comes_back_after_its_lease_and_not_before(u: &QueueUnderTest) {
    put(u, &["1", "2"]).await;
    let batch = fetch(u, 10).await.unwrap();
    u.queue.reclaim().await.unwrap();
    assert!(fetch(u, 10).await.is_none(), "the lease holds");
    u.pass(LEASE + Duration::from_millis(50)).await;
    let reclaimed = u.queue.reclaim().await.unwrap();
    assert_eq!((reclaimed.returned, reclaimed.buried), (2, 0));
    let again = fetch(u, 10).await.unwrap();
    assert_ne!(again.id, batch.id);
    assert_eq!(payloads(&again), ["1"], "what was lost is fetched alone");
    assert!(again.items[0].suspect);
    assert_eq!(payloads(&fetch(u, 10).await.unwrap()), ["2"]);
    assert_eq!(u.queue.stats().await.unwrap().reclaimed, 2);
}

async fn a_beat_keeps_a_batch_and_its_absence_loses_it(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let batch = fetch(u, 10).await.unwrap();
    for _ in 0..3 {
        u.pass(LEASE * 2 / 3).await;
        assert_eq!(u.queue.beat(std::slice::from_ref(&batch.id)).await.unwrap(), []);
        assert_eq!(u.queue.reclaim().await.unwrap().returned, 0);
    }
    lose(u).await;
    let unknown = BatchId("never-fetched".into());
    let lost = u.queue.beat(&[batch.id.clone(), unknown.clone()]).await.unwrap();
    assert_eq!(lost, [batch.id, unknown]);
}

async fn whoever_lost_the_lease_changes_nothing(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let old = fetch(u, 10).await.unwrap();
    lose(u).await;
    let new = fetch(u, 10).await.unwrap();
    let stale = [
        Unfinished { item: old.items[0].clone(), then: Then::Release },
        Unfinished { item: old.items[0].clone(), then: Then::Bury { error: "stale".into() } },
        Unfinished {
            item: old.items[0].clone(),
            then: Then::Retry { delay: Duration::ZERO, error: "stale".into() },
        },
    ];
    for unfinished in stale.iter().map(std::slice::from_ref).chain([&[][..]]) {
        assert_eq!(u.queue.ack(&old, unfinished).await.unwrap(), Acked::Lost);
    }
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.in_flight, stats.delayed, stats.dead), (0, 1, 0, 0));
    done(u, &new).await;
}

async fn a_poison_item_takes_no_neighbour_along(u: &QueueUnderTest) {
    put(u, &["good", "poison", "fine"]).await;
    let mut worked = HashSet::new();
    // A worker dies whenever it holds the poison; what it holds besides is not acked either.
    for _ in 0..40 {
        let Some(batch) = fetch(u, 10).await else {
            if u.queue.stats().await.unwrap().in_flight == 0 {
                break;
            }
            lose(u).await;
            continue;
        };
        if payloads(&batch).contains(&"poison") {
            continue;
        }
        worked.extend(payloads(&batch).into_iter().map(str::to_owned));
        done(u, &batch).await;
    }
    assert_eq!(worked, HashSet::from(["good".to_owned(), "fine".to_owned()]));
    let dead = u.queue.dead(Scope::All, None, 10).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].item.payload, "poison");
    assert_eq!(dead[0].item.losses, MAX_LOSSES);
    assert_eq!(dead[0].item.attempt, 0, "a loss is no failed attempt");
    assert!(dead[0].error().contains("lost"), "{}", dead[0].error());
}

async fn losses_in_company_bury_nobody(u: &QueueUnderTest) {
    put(u, &["1", "2"]).await;
    fetch(u, 10).await.unwrap();
    lose(u).await;
    for expected in ["1", "2"] {
        let batch = fetch(u, 10).await.unwrap();
        assert_eq!((payloads(&batch), batch.items[0].losses), (vec![expected], 0));
        done(u, &batch).await;
    }
}

async fn a_worker_that_was_only_cut_off_buries_nobody(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    for round in 0..MAX_LOSSES * 2 {
        let batch = fetch(u, 10).await.unwrap();
        assert_eq!(batch.items[0].losses, u32::from(round > 0), "the last one is known when it comes back");
        lose(u).await;
        // Two ways to hear of it.
        if round % 2 == 0 {
            assert_eq!(u.queue.beat(std::slice::from_ref(&batch.id)).await.unwrap(), [batch.id]);
        } else {
            assert_eq!(u.queue.ack(&batch, &[]).await.unwrap(), Acked::Lost);
        }
    }
    let batch = fetch(u, 10).await.unwrap();
    done(u, &batch).await;
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.dead, stats.buried), (0, 0, 0));
}

async fn a_worker_that_comes_back_late_brings_its_item_back(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let mut lost = Vec::new();
    for _ in 0..MAX_LOSSES {
        lost.push(fetch(u, 10).await.unwrap());
        lose(u).await;
    }
    assert_eq!(u.queue.stats().await.unwrap().dead, 1);
    for _ in 0..2 {
        assert_eq!(u.queue.beat(&[lost[1].id.clone()]).await.unwrap().len(), 1);
    }
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.dead), (1, 0));
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!((payloads(&batch), batch.items[0].losses), (vec!["1"], MAX_LOSSES - 1));
    assert!(batch.items[0].suspect);
    lose(u).await;
    assert_eq!(u.queue.stats().await.unwrap().dead, 1, "the others' losses count still");
    let id = &batch.items[0].id;
    assert_eq!(u.queue.discard_dead(std::slice::from_ref(id)).await.unwrap(), 1);
    u.queue.beat(&[batch.id]).await.unwrap();
    assert_eq!(u.queue.stats().await.unwrap().pending, 0, "what was discarded stays so");
    let held = u.queue.held_by(BrandId(1)).await.unwrap();
    assert_eq!(held, Holding::default());
}

async fn an_item_that_keeps_its_worker_from_beating_is_buried_in_the_end(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    for _ in 0..MAX_SURVIVED {
        let batch = fetch(u, 10).await.unwrap();
        lose(u).await;
        u.queue.beat(&[batch.id]).await.unwrap();
    }
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.pending, stats.dead), (0, 1));
}

async fn a_retry_waits_for_its_time_and_uses_an_attempt(u: &QueueUnderTest) {
    put(u, &["1", "2"]).await;
    let batch = fetch(u, 10).await.unwrap();
    let delay = Duration::from_millis(600);
    let unfinished =
        [Unfinished { item: batch.items[0].clone(), then: Then::Retry { delay, error: "no luck".into() } }];
    assert_eq!(u.queue.ack(&batch, &unfinished).await.unwrap(), Acked::Done);
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.delayed, stats.acked, stats.retried), (1, 1, 1));
    assert!(fetch(u, 10).await.is_none(), "too early");
    u.pass(delay + Duration::from_millis(50)).await;
    let again = fetch(u, 10).await.unwrap();
    assert_eq!((payloads(&again), again.items[0].attempt), (vec!["1"], 1));
    assert_eq!(again.items[0].id, batch.items[0].id);
    assert!(!again.items[0].suspect);
}

async fn a_release_returns_at_once_unharmed_and_in_order(u: &QueueUnderTest) {
    put(u, &["1", "2", "3"]).await;
    let batch = fetch(u, 2).await.unwrap();
    let unfinished: Vec<Unfinished> =
        batch.items.iter().map(|item| Unfinished { item: item.clone(), then: Then::Release }).collect();
    assert_eq!(u.queue.ack(&batch, &unfinished).await.unwrap(), Acked::Done);
    let again = fetch(u, 10).await.unwrap();
    assert_eq!(payloads(&again), ["1", "2", "3"]);
    assert_eq!(again.items[..2], batch.items);
}

async fn a_buried_item_keeps_its_payload_and_its_reason(u: &QueueUnderTest) {
    put(u, &["good", "bad"]).await;
    let batch = fetch(u, 10).await.unwrap();
    let error = "invalid_event: \"quoted\"\nand a second line";
    let unfinished = [Unfinished { item: batch.items[1].clone(), then: Then::Bury { error: error.into() } }];
    assert_eq!(u.queue.ack(&batch, &unfinished).await.unwrap(), Acked::Done);
    let dead = u.queue.dead(Scope::All, None, 10).await.unwrap();
    assert_eq!((dead.len(), dead[0].error()), (1, error));
    assert_eq!((&dead[0].item.id, &dead[0].item.payload), (&batch.items[1].id, &batch.items[1].payload));
    assert_eq!(u.queue.dead_letter(&dead[0].item.id).await.unwrap().as_ref(), Some(&dead[0]));
    assert_eq!(u.queue.dead_letter("nobody").await.unwrap(), None);
    assert!(dead[0].buried_ms >= dead[0].item.enqueued_ms);
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.acked, stats.buried, stats.dead, stats.in_flight), (1, 1, 1, 0));
}

async fn a_repeated_idempotency_key_is_a_duplicate_also_within_one_call(u: &QueueUnderTest) {
    let keyed = |payload: &str, key: &str| NewItem {
        idempotency: Some(Idempotency::new(vec![key.into()], payload.as_bytes())),
        ..item(payload)
    };
    let results =
        u.queue.enqueue(&[keyed("1", "a"), keyed("1", "a"), keyed("2", "b"), item("3")]).await.unwrap();
    assert_eq!(results, [Enqueued::Accepted, Enqueued::Duplicate, Enqueued::Accepted, Enqueued::Accepted]);
    assert_eq!(u.queue.enqueue(&[keyed("2", "b")]).await.unwrap(), [Enqueued::Duplicate]);
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!(payloads(&batch), ["1", "2", "3"]);
    done(u, &batch).await;
    assert_eq!(
        u.queue.enqueue(&[keyed("1", "a")]).await.unwrap(),
        [Enqueued::Duplicate],
        "also after the work is done"
    );
    assert_eq!(u.queue.stats().await.unwrap().duplicates, 3);
}

async fn one_known_key_of_two_makes_a_duplicate(u: &QueueUnderTest) {
    let keyed = |keys: &[&str]| NewItem {
        idempotency: Some(Idempotency::new(keys.iter().map(|key| (*key).to_owned()).collect(), b"x")),
        ..item("x")
    };
    assert_eq!(u.queue.enqueue(&[keyed(&["webhook-1", "event-1"])]).await.unwrap(), [Enqueued::Accepted]);
    assert_eq!(u.queue.enqueue(&[keyed(&["webhook-2", "event-1"])]).await.unwrap(), [Enqueued::Duplicate]);
    assert_eq!(u.queue.enqueue(&[keyed(&["webhook-2", "event-2"])]).await.unwrap(), [Enqueued::Accepted]);
}

async fn higher_priorities_come_first(u: &QueueUnderTest) {
    let of = |priority, payload| NewItem { priority, ..item(payload) };
    let items = [
        of(Priority::Low, "low"),
        of(Priority::Normal, "normal"),
        of(Priority::High, "high"),
        of(Priority::High, "higher"),
    ];
    u.queue.enqueue(&items).await.unwrap();
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!(payloads(&batch), ["high", "higher", "normal"]);
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!((payloads(&batch), batch.items[0].priority), (vec!["low"], Priority::Low), "by itself");
}

async fn a_delayed_item_waits(u: &QueueUnderTest) {
    let later = NewItem { delay: Duration::from_millis(600), priority: Priority::High, ..item("later") };
    u.queue.enqueue(&[later, item("now")]).await.unwrap();
    assert_eq!(payloads(&fetch(u, 10).await.unwrap()), ["now"]);
    assert!(fetch(u, 10).await.is_none());
    u.pass(Duration::from_millis(650)).await;
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!((payloads(&batch), batch.items[0].priority), (vec!["later"], Priority::High));
}

/// Enqueues so many of a brand's items, one by one; answers how many were taken.
async fn flood(u: &QueueUnderTest, brand: i64, public: bool, calls: usize) -> usize {
    let items = vec![NewItem { brand: Some(BrandId(brand)), public, ..item("x") }; 50];
    let mut taken = 0;
    for _ in 0..calls {
        let results = u.queue.enqueue(&items).await.unwrap();
        taken += results.iter().filter(|result| **result == Enqueued::Accepted).count();
    }
    taken
}

async fn a_brand_holds_its_share_and_holds_up_nobody(u: &QueueUnderTest) {
    assert_eq!(flood(u, 1, true, 60).await, 1500, "a public key: as much as is free, of 3,000");
    assert_eq!(flood(u, 1, false, 60).await, 900, "its other sources: four times as much as is free");
    let held = u.queue.held_by(BrandId(1)).await.unwrap();
    assert_eq!((held.items, held.bytes, held.dead), (2400, 2400, 0));
    for brand in 2..6 {
        let room = 3000 - u.queue.stats().await.unwrap().pending;
        let taken = flood(u, brand, false, 60).await as u64;
        assert!(taken < room && (taken > 0 || room < 100), "brand {brand}: {taken} of {room}");
    }
    let [mine, theirs] = [1, 9].map(|brand| NewItem { brand: Some(BrandId(brand)), ..item("both") });
    let results = u.queue.enqueue(&[mine.clone(), theirs]).await.unwrap();
    assert_eq!(results, [Enqueued::OverShare, Enqueued::Accepted], "in one call, too");
    // what is processed makes room
    let batch = fetch(u, 1000).await.unwrap();
    assert_eq!(
        u.queue.enqueue(std::slice::from_ref(&mine)).await.unwrap(),
        [Enqueued::OverShare],
        "held is not done"
    );
    done(u, &batch).await;
    let its = |batch: &Batch| batch.items.iter().filter(|item| item.brand == Some(BrandId(1))).count() as u64;
    let mut gone = its(&batch);
    while gone < 1000 {
        let batch = fetch(u, 1000).await.unwrap();
        done(u, &batch).await;
        gone += its(&batch);
    }
    assert_eq!(u.queue.enqueue(&[mine]).await.unwrap(), [Enqueued::Accepted]);
    assert_eq!(u.queue.held_by(BrandId(1)).await.unwrap().items, 2400 - gone + 1);
}

async fn a_backlog_waits_behind_other_brands(u: &QueueUnderTest) {
    flood(u, 1, false, 8).await;
    let theirs = NewItem { brand: Some(BrandId(2)), ..item("theirs") };
    u.queue.enqueue(&[theirs]).await.unwrap();
    // all that came before the backlog was one, and theirs; then the rest, by and by
    let first = fetch(u, 1000).await.unwrap();
    assert!(first.items.iter().all(|item| item.priority == Priority::Normal));
    assert_eq!((first.items.len(), payloads(&first)[100]), (101, "theirs"));
    for _ in 0..3 {
        let next = fetch(u, 1000).await.unwrap();
        assert!(next.items.iter().all(|item| item.priority == Priority::Low));
        assert_eq!(next.items.len(), 100, "nobody waits for all of it");
        done(u, &next).await;
    }
    done(u, &first).await;
}

async fn a_backlog_of_large_items_comes_in_smaller_batches(u: &QueueUnderTest) {
    let large = NewItem { brand: Some(BrandId(1)), ..item(&"x".repeat(20 << 10)) };
    u.queue.enqueue(&vec![large.clone(); 200]).await.unwrap();
    u.queue.enqueue(&[NewItem { brand: Some(BrandId(2)), ..item("theirs") }]).await.unwrap();
    let first = fetch(u, 1000).await.unwrap();
    assert_eq!(first.items.len(), 101, "what is no backlog comes as it is");
    let mut sizes = Vec::new();
    while let Some(next) = fetch(u, 1000).await {
        sizes.push(next.items.len());
        done(u, &next).await;
    }
    assert_eq!(sizes.iter().sum::<usize>(), 100);
    assert!(sizes.iter().all(|size| *size <= 16), "{sizes:?}");
    done(u, &first).await;
}

async fn a_brand_that_is_alone_has_its_backlog_in_whole_batches(u: &QueueUnderTest) {
    flood(u, 1, false, 8).await;
    let sizes = [fetch(u, 1000).await.unwrap().items.len(), fetch(u, 1000).await.unwrap().items.len()];
    assert_eq!(sizes, [100, 300]);
}

async fn a_call_is_taken_whole_however_it_is_written(u: &QueueUnderTest) {
    let of = |brand, n: usize, key: Option<usize>| NewItem {
        brand: Some(BrandId(brand)),
        idempotency: key.map(|key| Idempotency::new(vec![key.to_string()], b"x")),
        ..item(&format!("{brand} {n}"))
    };
    u.queue.enqueue(&[of(1, 0, None), of(2, 0, None)]).await.unwrap();
    // every third under a key, of which there are 200
    let large: Vec<NewItem> =
        (0..900).map(|n| of(1, n, n.is_multiple_of(3).then_some(n / 3 % 200))).collect();
    let results = u.queue.enqueue(&large).await.unwrap();
    let wanted =
        |n: usize| if n.is_multiple_of(3) && n >= 600 { Enqueued::Duplicate } else { Enqueued::Accepted };
    assert_eq!(results, (0..900).map(wanted).collect::<Vec<_>>());
    let mut came = Vec::new();
    while let Some(batch) = fetch(u, 1000).await {
        came.extend(payloads(&batch).into_iter().map(str::to_owned));
        done(u, &batch).await;
    }
    let sent = (0..900).filter(|n| wanted(*n) == Enqueued::Accepted).map(|n| format!("1 {n}"));
    let first = ["1 0".to_owned(), "2 0".to_owned()];
    assert_eq!(came, first.into_iter().chain(sent).collect::<Vec<_>>(), "each once, and in order");
}

async fn a_brands_dead_letters_are_bounded_in_number_bytes_and_age(u: &QueueUnderTest) {
    let of = |brand: i64, payload: &str| NewItem { brand: Some(BrandId(brand)), ..item(payload) };
    let names = async |scope: Scope| -> Vec<String> {
        let letters = u.queue.dead(scope, None, MAX_DEAD_PAGE).await.unwrap();
        letters.iter().map(|l| String::from_utf8_lossy(&l.item.payload).into_owned()).collect()
    };
    u.queue.enqueue(&[of(2, "theirs"), item("nobody's")]).await.unwrap();
    bury(u, &fetch(u, 10).await.unwrap(), "no").await;
    for n in 0..60 {
        let key = Idempotency::new(vec![format!("k{n}")], b"x");
        let keyed = NewItem { idempotency: Some(key), ..of(1, &n.to_string()) };
        u.queue.enqueue(&[keyed]).await.unwrap();
        bury(u, &fetch(u, 10).await.unwrap(), "no").await;
    }
    let newest: Vec<String> = (10..60).rev().map(|n| n.to_string()).collect();
    assert_eq!(names(Scope::Brand(BrandId(1))).await, newest, "the oldest go");
    assert_eq!(names(Scope::Brand(BrandId(2))).await, ["theirs"], "and nobody else's");
    assert_eq!(names(Scope::Nobody).await, ["nobody's"]);
    assert_eq!(u.queue.stats().await.unwrap().dropped, 10);
    let ended = u.queue.claim("k3").await.unwrap().unwrap().finished.unwrap();
    assert_eq!(ended.outcome, Outcome::Discarded);

    for n in 0..4 {
        let large = format!("{n}{}", "z".repeat(400_000));
        u.queue.enqueue(&[of(1, &large)]).await.unwrap();
        bury(u, &fetch(u, 10).await.unwrap(), "no").await;
    }
    let firsts: Vec<char> =
        names(Scope::Brand(BrandId(1))).await.iter().filter_map(|p| p.chars().next()).collect();
    assert_eq!(firsts, ['3', '2'], "a megabyte is two of them");
    let held = u.queue.held_by(BrandId(1)).await.unwrap();
    assert!(held.dead == 2 && (800_000..810_000).contains(&held.dead_bytes), "{held:?}");
    let huge = "h".repeat(1_500_000);
    u.queue.enqueue(&[of(1, &huge)]).await.unwrap();
    bury(u, &fetch(u, 10).await.unwrap(), "no").await;
    assert_eq!(names(Scope::Brand(BrandId(1))).await, [huge], "the newest stays, however large");

    let buried = u.queue.dead(Scope::Brand(BrandId(1)), None, 1).await.unwrap()[0].buried_ms;
    assert_eq!(u.queue.drop_dead(Some(BrandId(1)), buried).await.unwrap(), 0);
    assert_eq!(u.queue.drop_dead(Some(BrandId(1)), buried + 1).await.unwrap(), 1);
    assert_eq!(u.queue.drop_dead(None, buried + 1).await.unwrap(), 1);
    assert_eq!(names(Scope::All).await, ["theirs"]);
    assert_eq!(u.queue.held_by(BrandId(1)).await.unwrap(), Holding::default());
}

async fn what_is_deferred_waits_and_uses_no_attempt(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let batch = fetch(u, 10).await.unwrap();
    let then = Then::Defer { delay: Duration::from_millis(600) };
    u.queue.ack(&batch, &[Unfinished { item: batch.items[0].clone(), then }]).await.unwrap();
    assert!(fetch(u, 10).await.is_none());
    u.pass(Duration::from_millis(650)).await;
    let again = fetch(u, 10).await.unwrap();
    assert_eq!(again.items, batch.items, "as it was: no attempt, no history");
    done(u, &again).await;
}

async fn a_full_queue_takes_nothing_of_the_batch(u: &QueueUnderTest) {
    let keyed = NewItem { idempotency: Some(Idempotency::new(vec!["k".into()], b"x")), ..item("x") };
    let mut items = vec![item("x"); 3000];
    items.push(keyed.clone());
    match u.queue.enqueue(&items).await {
        Err(QueueError::Full { limit: 3000, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(fetch(u, 10).await.is_none());
    assert_eq!(
        u.queue.enqueue(&[keyed]).await.unwrap(),
        [Enqueued::Accepted],
        "a refused key is not remembered"
    );
}

async fn a_sleeping_worker_is_woken_by_an_enqueue(u: &QueueUnderTest) {
    let queue = u.queue.clone();
    let sleeper = tokio::spawn(async move { queue.fetch(10, Duration::from_secs(20)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = tokio::time::Instant::now();
    put(u, &["1"]).await;
    let batch = sleeper.await.unwrap().unwrap();
    let woken_after = before.elapsed();
    // SQLite's worker looks every second anyhow; Redis' would sleep for twenty.
    let batch = match batch {
        Some(batch) => batch,
        None => fetch(u, 10).await.unwrap(),
    };
    assert_eq!(payloads(&batch), ["1"]);
    assert!(woken_after < Duration::from_secs(10), "{woken_after:?}");
}

async fn payloads_of_any_bytes_survive_loss_and_burial(u: &QueueUnderTest) {
    let bytes = Bytes::from((0..=255).chain([b'\n', 0, b'%']).collect::<Vec<u8>>());
    let strange = NewItem { payload: bytes.clone(), ..NewItem::default() };
    let big_number = item("{\"id\":12345678901234567890123,\"x\":1.10}");
    u.queue.enqueue(&[strange, big_number.clone()]).await.unwrap();
    fetch(u, 10).await.unwrap();
    lose(u).await;
    let first = fetch(u, 10).await.unwrap();
    assert_eq!(first.items[0].payload, bytes);
    let unfinished = [Unfinished { item: first.items[0].clone(), then: Then::Bury { error: "x".into() } }];
    u.queue.ack(&first, &unfinished).await.unwrap();
    assert_eq!(u.queue.dead(Scope::All, None, 1).await.unwrap()[0].item.payload, bytes);
    assert_eq!(fetch(u, 10).await.unwrap().items[0].payload, big_number.payload);
}

async fn many_workers_get_every_item_once(u: &QueueUnderTest) {
    const ITEMS: usize = 400;
    let mut workers = Vec::new();
    for _ in 0..4 {
        let queue = u.queue.clone();
        workers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            let mut idle = 0;
            while idle < 3 {
                match queue.fetch(7, Duration::from_millis(300)).await.unwrap() {
                    Some(batch) => {
                        idle = 0;
                        mine.extend(batch.items.iter().map(|item| item.payload.clone()));
                        assert_eq!(queue.ack(&batch, &[]).await.unwrap(), Acked::Done);
                    }
                    None => idle += 1,
                }
            }
            mine
        }));
    }
    for from in (0..ITEMS).step_by(20) {
        let items: Vec<NewItem> = (from..from + 20).map(|n| item(&n.to_string())).collect();
        u.queue.enqueue(&items).await.unwrap();
    }
    // Who waits for items on a clock that stands still waits until it is moved.
    while workers.iter().any(|worker| !worker.is_finished()) {
        u.pass(Duration::from_millis(100)).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    assert_eq!(all.len(), ITEMS);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), ITEMS);
}

async fn large_batches_pass_whole(u: &QueueUnderTest) {
    let names: Vec<String> = (0..1700).map(|n| n.to_string()).collect();
    put(u, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut seen = Vec::new();
    while let Some(batch) = fetch(u, 1000).await {
        seen.extend(payloads(&batch).into_iter().map(str::to_owned));
        done(u, &batch).await;
    }
    assert_eq!(seen, names);
}

fn keyed(payload: &str, key: &str) -> NewItem {
    let known = Idempotency::new(vec![key.into()], payload.as_bytes());
    NewItem { idempotency: Some(known), ..item(payload) }
}

async fn bury(u: &QueueUnderTest, batch: &Batch, error: &str) {
    let bury = |item: &_| Unfinished { item: Clone::clone(item), then: Then::Bury { error: error.into() } };
    let unfinished: Vec<Unfinished> = batch.items.iter().map(bury).collect();
    assert_eq!(u.queue.ack(batch, &unfinished).await.unwrap(), Acked::Done);
}

async fn a_paused_queue_hands_nothing_out_and_takes_everything_in(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let held = fetch(u, 1).await.unwrap();
    u.queue.set_paused(true).await.unwrap();
    put(u, &["2"]).await;
    assert!(fetch(u, 10).await.is_none());
    assert!(u.queue.stats().await.unwrap().paused);
    done(u, &held).await;
    u.queue.set_paused(true).await.unwrap();
    u.queue.set_paused(false).await.unwrap();
    assert!(!u.queue.stats().await.unwrap().paused);
    assert_eq!(payloads(&fetch(u, 10).await.unwrap()), ["2"]);
}

async fn dead_letters_are_listed_put_back_and_discarded(u: &QueueUnderTest) {
    for name in ["1", "2", "3", "4"] {
        put(u, &[name]).await;
        bury(u, &fetch(u, 10).await.unwrap(), &format!("no {name}")).await;
        u.pass(Duration::from_millis(2)).await;
    }
    let all = u.queue.dead(Scope::All, None, MAX_DEAD_PAGE).await.unwrap();
    let names = |letters: &[DeadLetter]| -> Vec<String> {
        letters.iter().map(|letter| String::from_utf8_lossy(&letter.item.payload).into_owned()).collect()
    };
    assert_eq!(names(&all), ["4", "3", "2", "1"]);
    let page = u.queue.dead(Scope::All, Some(&all[1].place()), 1).await.unwrap();
    assert_eq!((names(&page), page[0].error()), (vec!["2".to_owned()], "no 2"));
    assert_eq!(DeadPlace::parse(&all[1].place().to_string()), Some(all[1].place()));

    let ids = [all[0].item.id.clone(), all[1].item.id.clone(), "nobody".into()];
    assert_eq!(u.queue.retry_dead(&ids).await.unwrap(), 2);
    assert_eq!(u.queue.retry_dead(&ids).await.unwrap(), 0, "they are there no more");
    assert_eq!(u.queue.discard_dead(&[all[2].item.id.clone(), "nobody".into()]).await.unwrap(), 1);
    assert_eq!(names(&u.queue.dead(Scope::All, None, 10).await.unwrap()), ["1"]);
    let gone = u.queue.dead(Scope::All, Some(&all[1].place()), 10).await.unwrap();
    assert_eq!(names(&gone), ["1"], "a place outlives its letter");
    let back = fetch(u, 10).await.unwrap();
    assert_eq!(payloads(&back), ["4", "3"]);
    assert!(back.items.iter().all(|item| item.attempt == 0 && item.losses == 0 && item.history.len() == 2));
    done(u, &back).await;
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.dead, stats.buried, stats.discarded, stats.acked), (1, 4, 1, 2));
}

async fn a_failure_is_remembered_through_every_try(u: &QueueUnderTest) {
    put(u, &["1"]).await;
    let errors = ["first \"quoted\"", "second\nline"];
    for error in errors {
        let batch = fetch(u, 10).await.unwrap();
        let then = Then::Retry { delay: Duration::from_millis(1), error: error.into() };
        u.queue.ack(&batch, &[Unfinished { item: batch.items[0].clone(), then }]).await.unwrap();
        u.pass(Duration::from_millis(20)).await;
    }
    fetch(u, 10).await.unwrap();
    lose(u).await;
    bury(u, &fetch(u, 10).await.unwrap(), "at last").await;
    let letter = u.queue.dead(Scope::All, None, 10).await.unwrap().pop().unwrap();
    let history: Vec<&str> = letter.item.history.iter().map(|failure| failure.error.as_str()).collect();
    assert_eq!(history, [errors[0], errors[1], "its worker was lost", "at last"]);
    assert!(letter.item.history.is_sorted_by_key(|failure| failure.at_ms));
    assert_eq!((letter.item.attempt, letter.item.losses), (2, 1));
}

async fn a_claim_says_when_by_whom_and_how_its_item_ended(u: &QueueUnderTest) {
    assert_eq!(u.queue.claim("a").await.unwrap(), None);
    u.queue.enqueue(&[keyed("1", "a"), keyed("2", "b"), keyed("3", "c")]).await.unwrap();
    let open = u.queue.claim("a").await.unwrap().unwrap();
    assert_eq!(open.finished, None);
    let batch = fetch(u, 10).await.unwrap();
    assert_eq!(open.item, batch.items[0].id);
    let released = [Unfinished { item: batch.items[2].clone(), then: Then::Release }];
    let mut unfinished = released.to_vec();
    unfinished.push(Unfinished { item: batch.items[1].clone(), then: Then::Bury { error: "bad".into() } });
    u.queue.ack(&batch, &unfinished).await.unwrap();
    let claim = async |key: &str| u.queue.claim(key).await.unwrap().unwrap();
    let ended = claim("a").await.finished.unwrap();
    assert_eq!(
        (ended.outcome, ended.by.as_str()),
        (Outcome::Done, tributary_core::ports::queue::this_process())
    );
    assert!(ended.at_ms >= open.claimed_ms);
    assert_eq!(claim("b").await.finished.unwrap().outcome, Outcome::Dead);
    assert_eq!(claim("c").await.finished, None);
    let dead = u.queue.dead(Scope::All, None, 1).await.unwrap().pop().unwrap();
    u.queue.discard_dead(&[dead.item.id]).await.unwrap();
    assert_eq!(claim("b").await.finished.unwrap().outcome, Outcome::Discarded);
    assert_eq!(u.queue.enqueue(&[keyed("2", "b")]).await.unwrap(), [Enqueued::Duplicate]);
}

async fn a_known_key_with_another_body_is_a_conflict(u: &QueueUnderTest) {
    let results = u.queue.enqueue(&[keyed("1", "a"), keyed("other", "a"), keyed("1", "a")]).await.unwrap();
    assert_eq!(results, [Enqueued::Accepted, Enqueued::Conflict, Enqueued::Duplicate]);
    assert_eq!(payloads(&fetch(u, 10).await.unwrap()), ["1"]);
    let stats = u.queue.stats().await.unwrap();
    assert_eq!((stats.enqueued, stats.conflicts, stats.duplicates), (1, 1, 1));
}

async fn of_deliveries_at_once_one_is_taken(u: &QueueUnderTest) {
    let calls: Vec<_> = (0..12)
        .map(|n| {
            let queue = u.queue.clone();
            let item = keyed(if n == 7 { "other" } else { "same" }, "key");
            tokio::spawn(async move { (n, queue.enqueue(&[item]).await.unwrap()[0]) })
        })
        .collect();
    let mut results = Vec::new();
    for call in calls {
        results.push(call.await.unwrap());
    }
    let accepted: Vec<usize> =
        results.iter().filter(|(_, result)| *result == Enqueued::Accepted).map(|(n, _)| *n).collect();
    assert_eq!(accepted.len(), 1, "{results:?}");
    for (n, result) in &results {
        let alike = (*n == 7) == (accepted[0] == 7);
        let expected = match *n == accepted[0] {
            true => Enqueued::Accepted,
            false if alike => Enqueued::Duplicate,
            false => Enqueued::Conflict,
        };
        assert_eq!(*result, expected, "{n} of {results:?}");
    }
    assert_eq!(u.queue.stats().await.unwrap().pending, 1);
}

async fn a_claim_ends_with_its_time(u: &QueueUnderTest) {
    let mut short = keyed("1", "a");
    short.idempotency.as_mut().unwrap().ttl = Some(Duration::from_millis(300));
    u.queue.enqueue(&[short.clone(), keyed("2", "b")]).await.unwrap();
    u.pass(Duration::from_millis(350)).await;
    assert_eq!(u.queue.claim("a").await.unwrap(), None);
    assert_eq!(
        u.queue.enqueue(&[short, keyed("2", "b")]).await.unwrap(),
        [Enqueued::Accepted, Enqueued::Duplicate]
    );
    let batch = fetch(u, 10).await.unwrap();
    done(u, &batch).await;
    assert_eq!(u.queue.claim("a").await.unwrap().unwrap().item, batch.items[2].id, "the second one's");
}

async fn the_lowest_priority_is_served_within_so_many_fetches(u: &QueueUnderTest) {
    let of = |priority| NewItem { priority, ..item("x") };
    u.queue.enqueue(&[of(Priority::Low), of(Priority::Normal)]).await.unwrap();
    for fetches in 1..=FAIR_EVERY {
        u.queue.enqueue(&[of(Priority::High), of(Priority::High)]).await.unwrap();
        let batch = fetch(u, 2).await.unwrap();
        done(u, &batch).await;
        if batch.items[0].priority == Priority::Low {
            assert_eq!((fetches, batch.items.len()), (FAIR_EVERY, 1), "it comes by itself");
            return;
        }
    }
    panic!("high items kept the low one waiting");
}

async fn an_audit_finds_what_lost_its_lease(u: &QueueUnderTest) {
    put(u, &["1", "2", "3"]).await;
    let batch = fetch(u, 2).await.unwrap();
    assert_eq!(u.queue.repair().await.unwrap(), Repaired::default(), "nothing is astray");
    u.forget_leases().await;
    u.pass(LEASE + Duration::from_millis(50)).await;
    assert_eq!(u.queue.reclaim().await.unwrap(), Reclaimed::default(), "no lease says that it is there");
    assert_eq!(u.queue.repair().await.unwrap().strays, 2);
    assert_eq!(u.queue.reclaim().await.unwrap().returned, 2);
    assert_eq!(u.queue.ack(&batch, &[]).await.unwrap(), Acked::Lost);
    assert_eq!(u.queue.repair().await.unwrap(), Repaired::default());
    for expected in ["1", "2", "3"] {
        let batch = fetch(u, 10).await.unwrap();
        assert_eq!(payloads(&batch), [expected]);
        done(u, &batch).await;
    }
}
