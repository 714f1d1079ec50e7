//! What every store must do, seen through the service that processes events.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use serde_json::json;
use support::{StoreUnderTest, postgres_store, sqlite_store, unlimited};
use tributary_core::domain::customer360::Customer360;
use tributary_core::domain::event::{Event, EventKind, Source, TraitUpdate};
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::order::{Item, Order, OrderUpdate, Refund};
use tributary_core::domain::time::{Timestamp, from_ms};
use tributary_core::domain::version::Version;
use tributary_core::ports::brands::{KeyGrant, KeyKind};
use tributary_core::ports::clock::Moment;
use tributary_core::ports::clock::{Clock, SystemClock};
use tributary_core::ports::locks::{Acquired, Lock, LockError, Locks};
use tributary_core::ports::store::BrandIdentifier;
use tributary_core::ports::store::{Claim, Store, StoreError};
use tributary_core::ports::world::World;
use tributary_core::services::brand_cache::BrandRules;
use tributary_core::services::events::{Processed, process};
use tributary_core::services::keys::{hash, new_key};

on_every_adapter!({ sqlite: crate::sqlite_store, postgres: crate::postgres_store } [
    an_event_takes_effect_once,
    events_that_share_an_identifier_are_one_customer,
    a_link_merges_profiles_and_old_ids_keep_resolving,
    a_chain_of_links_in_one_batch_merges_all,
    brands_see_only_their_own,
    the_newest_state_of_an_order_wins_in_any_order,
    money_is_exact,
    nobodys_events_are_kept,
    text_is_kept_byte_for_byte,
    a_transaction_that_is_dropped_leaves_nothing,
    concurrent_workers_agree_on_one_profile,
    opposite_merges_from_many_workers_lose_nothing,
    merges_are_right_under_locks_that_lie,
    a_fencing_token_is_taken_once_and_only_upwards,
    a_counter_that_ran_backwards_costs_a_run_and_no_merge,
    an_item_that_cannot_be_done_holds_up_no_other,
    a_lock_left_behind_holds_up_no_merge,
    brands_keys_and_shops_are_found_again,
]);

const BRAND: BrandId = BrandId(1);
const T0: i64 = 1_768_000_000_000;

fn user(value: &str) -> Identifier {
    Identifier::new(IdentifierKind::UserId, value).unwrap()
}

fn event(message_id: &str, users: &[&str]) -> Event {
    Event {
        name: Some("Thing Done".into()),
        received_at: from_ms(T0 + 5),
        identifiers: users.iter().map(|value| user(value)).collect(),
        body: json!({"properties": {"from": message_id}}).to_string(),
        ..Event::new(BRAND, message_id, EventKind::Track, from_ms(T0))
    }
}

fn order(id: &str, version: i64, total: &str) -> OrderUpdate {
    cancelled_order(id, version, total, None)
}

fn cancelled_order(id: &str, version: i64, total: &str, cancelled_at: Option<Timestamp>) -> OrderUpdate {
    let state = Order {
        name: Some(format!("#{id}")),
        ordered_at: from_ms(T0),
        cancelled_at,
        test: false,
        currency: "USD".into(),
        total: total.parse().unwrap(),
        current_total: None,
        presentment: None,
        financial_status: Some("paid".into()),
        fulfillment_status: None,
        items: vec![Item {
            product_id: Some("1".into()),
            sku: None,
            title: Some("Mug".into()),
            quantity: 2,
            price: "1.5".parse().unwrap(),
            gift_card: false,
        }],
    };
    OrderUpdate {
        shop: "a.myshopify.com".into(),
        id: id.into(),
        updated_at: from_ms(T0 + version),
        state: Some(Box::new(state)),
        ..OrderUpdate::default()
    }
}

async fn run(u: &StoreUnderTest, events: &[Event]) -> Processed {
    let world = World::real();
    process(&*u.store, &*u.locks, &world, &BrandRules::default(), events).await.unwrap()
}

async fn owner(u: &StoreUnderTest, value: &str) -> Option<ProfileId> {
    u.store.owner(BRAND, &user(value)).await.unwrap()
}

async fn customer(u: &StoreUnderTest, value: &str) -> Customer360 {
    let id = owner(u, value).await.unwrap_or_else(|| panic!("nobody owns {value}"));
    Customer360::of(u.store.customer(BRAND, id).await.unwrap().unwrap(), from_ms(T0))
}

async fn an_event_takes_effect_once(u: &StoreUnderTest) {
    let events = [event("m1", &["a"]), event("m1", &["a"]), event("m2", &["a"])];
    let done = run(u, &events).await;
    assert_eq!((done.effective, done.duplicates), (2, 1));
    let again = run(u, &events).await;
    assert_eq!((again.effective, again.duplicates), (0, 3));
    assert_eq!(customer(u, "a").await.events_count, 2);
    let stats = u.store.stats(BRAND).await.unwrap();
    assert_eq!((stats.profiles, stats.events, stats.orders), (1, 2, 0));
}

async fn events_that_share_an_identifier_are_one_customer(u: &StoreUnderTest) {
    run(u, &[event("m1", &["a", "b"]), event("m2", &["c"])]).await;
    run(u, &[event("m3", &["b", "d"])]).await;
    let found = customer(u, "d").await;
    assert_eq!(found.identifiers, [user("a"), user("b"), user("d")]);
    assert_eq!((found.events_count, found.recent_events.len()), (2, 2));
    assert_ne!(owner(u, "a").await, owner(u, "c").await);
}

async fn a_link_merges_profiles_and_old_ids_keep_resolving(u: &StoreUnderTest) {
    let mut old = event("m1", &["a"]);
    old.traits = vec![
        TraitUpdate { name: "plan".into(), value: json!("gold"), at: from_ms(T0 + 9) },
        TraitUpdate { name: "city".into(), value: json!("Rome"), at: from_ms(T0) },
    ];
    run(u, &[old]).await;
    tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    let mut young = event("m2", &["b"]);
    young.order = Some(order("1", 0, "10.00"));
    young.traits = vec![
        TraitUpdate { name: "plan".into(), value: json!("silver"), at: from_ms(T0 + 1) },
        TraitUpdate { name: "city".into(), value: json!(null), at: from_ms(T0 + 1) },
    ];
    run(u, &[young]).await;
    let (oldest, youngest) = (owner(u, "a").await.unwrap(), owner(u, "b").await.unwrap());
    run(u, &[event("m3", &["a", "b"])]).await;
    assert_eq!(owner(u, "b").await, Some(oldest), "the oldest survives");
    let by_old_id = Customer360::of(u.store.customer(BRAND, youngest).await.unwrap().unwrap(), from_ms(T0));
    assert_eq!(by_old_id, customer(u, "a").await);
    assert_eq!((by_old_id.id, by_old_id.events_count, by_old_id.orders_count), (oldest, 3, 1));
    assert_eq!(by_old_id.traits, BTreeMap::from([("plan".to_owned(), json!("gold"))]));
    assert_eq!(by_old_id.recent_events.len(), 3);
    assert_eq!(u.store.stats(BRAND).await.unwrap().profiles, 1);
}

async fn a_chain_of_links_in_one_batch_merges_all(u: &StoreUnderTest) {
    for (n, value) in ["a", "b", "c", "d"].iter().enumerate() {
        run(u, &[event(&format!("m{n}"), &[value])]).await;
    }
    let old: Vec<_> = [owner(u, "b").await, owner(u, "c").await, owner(u, "d").await].into();
    run(
        u,
        &[
            event("x1", &["a", "b"]),
            event("x2", &["c", "d"]),
            event("x3", &["e", "b"]),
            event("x4", &["d", "e"]),
        ],
    )
    .await;
    let found = customer(u, "e").await;
    assert_eq!((found.identifiers.len(), found.events_count), (5, 8));
    run(u, &[event("y1", &["f"])]).await;
    run(u, &[event("y2", &["a", "f"])]).await;
    for id in old {
        let by_old_id = u.store.customer(BRAND, id.unwrap()).await.unwrap().unwrap();
        assert_eq!((by_old_id.profile.id, by_old_id.profile.events_count), (found.id, 10));
    }
}

async fn brands_see_only_their_own(u: &StoreUnderTest) {
    let mut theirs = event("m1", &["a"]);
    theirs.brand = BrandId(2);
    let done = run(u, &[event("m1", &["a"]), theirs]).await;
    assert_eq!(done.effective, 2, "the same message id and user id, two brands");
    let ours = owner(u, "a").await.unwrap();
    let other = u.store.owner(BrandId(2), &user("a")).await.unwrap().unwrap();
    assert_ne!(ours, other);
    assert!(u.store.customer(BrandId(2), ours).await.unwrap().is_none(), "also not by id");
    assert_eq!(u.store.stats(BrandId(2)).await.unwrap().events, 1);
}

async fn the_newest_state_of_an_order_wins_in_any_order(u: &StoreUnderTest) {
    let versions = [(0, "10.00", None), (5, "12.00", None), (9, "12.00", Some(from_ms(T0 + 9)))];
    let deliveries: Vec<Event> = versions
        .iter()
        .map(|(version, total, cancelled_at)| {
            let order = cancelled_order("1", *version, total, *cancelled_at);
            Event { order: Some(order), ..event(&format!("v{version}"), &["a"]) }
        })
        .collect();
    run(u, &[deliveries[1].clone()]).await;
    run(u, &[deliveries[0].clone()]).await;
    let found = customer(u, "a").await;
    assert_eq!((found.orders_count, found.revenue["USD"].as_str()), (1, "12.00"));
    run(u, &[deliveries[2].clone(), Event { order: Some(order("2", 0, "1.00")), ..event("w", &["a"]) }])
        .await;
    let found = customer(u, "a").await;
    assert_eq!(
        (found.orders_count, found.revenue["USD"].as_str()),
        (1, "1.00"),
        "a cancelled order does not count"
    );
    assert_eq!(found.recent_orders.len(), 2, "but it is shown");
    // The same version twice, by two deliveries: the greater message id, whichever comes first.
    let twin =
        |message: &str, total: &str| Event { order: Some(order("3", 0, total)), ..event(message, &["a"]) };
    run(u, &[twin("t2", "7.00")]).await;
    run(u, &[twin("t1", "5.00")]).await;
    assert_eq!(customer(u, "a").await.revenue["USD"], "8.00");
}

async fn money_is_exact(u: &StoreUnderTest) {
    let amounts = ["0.10", "0.20", "99999999999.99", "0.005"];
    let events: Vec<Event> = amounts
        .iter()
        .enumerate()
        .map(|(n, total)| Event {
            order: Some(order(&n.to_string(), 0, total)),
            ..event(&format!("m{n}"), &["a"])
        })
        .collect();
    run(u, &events).await;
    let mut yen = order("yen", 0, "300");
    yen.state.as_mut().unwrap().currency = "JPY".into();
    let refund = Refund {
        at_ms: T0,
        amount: "100".parse().unwrap(),
        currency: None,
        version: Version { at_ms: T0, sequence: 0, message_id: "r".into() },
    };
    yen.refunds.insert("1".into(), refund);
    run(u, &[Event { order: Some(yen), ..event("yen", &["a"]) }]).await;
    let found = customer(u, "a").await;
    assert_eq!(found.revenue["USD"], "100000000000.295");
    assert_eq!(found.average_order["USD"], "25000000000.07");
    assert_eq!((found.revenue["JPY"].as_str(), found.refunded["JPY"].as_str()), ("300", "100"));
    assert_eq!(found.recent_orders[1]["items"][0]["price"], "1.50");
}

async fn nobodys_events_are_kept(u: &StoreUnderTest) {
    let done = run(u, &[event("m1", &[]), event("m2", &[])]).await;
    assert_eq!(done.effective, 2);
    assert_eq!(run(u, &[event("m1", &[])]).await.duplicates, 1);
    let stats = u.store.stats(BRAND).await.unwrap();
    assert_eq!((stats.profiles, stats.events), (0, 2));
}

async fn text_is_kept_byte_for_byte(u: &StoreUnderTest) {
    let body =
        "{ \"properties\" : {\"n\":12345678901234567890, \"f\":1.10, \"s\":\"\\u0000 ü ' \\\" \\\\\"} }";
    let mut strange = event("m'1\"ü", &["üser'; drop table events; --"]);
    strange.body = body.into();
    run(u, &[strange]).await;
    let id = owner(u, "üser'; drop table events; --").await.unwrap();
    let record = u.store.customer(BRAND, id).await.unwrap().unwrap();
    assert_eq!(
        (record.recent_events[0].body.as_str(), record.recent_events[0].message_id.as_str()),
        (body, "m'1\"ü")
    );
}

async fn a_transaction_that_is_dropped_leaves_nothing(u: &StoreUnderTest) {
    let one = event("m1", &["a"]);
    let mut tx = u.store.begin().await.unwrap();
    let id = ProfileId::first_at(T0);
    tx.claim(&[Claim {
        identifier: BrandIdentifier::new(BRAND, user("a")),
        profile: id,
        source: Source::Public,
    }])
    .await
    .unwrap();
    let rows = [tributary_core::ports::store::EventRow { event: &one, profile: Some(id) }];
    assert_eq!(tx.add_events(&rows).await.unwrap().len(), 1);
    drop(tx);
    assert_eq!(run(u, &[one]).await.effective, 1);
}

async fn concurrent_workers_agree_on_one_profile(u: &StoreUnderTest) {
    let world = World::real();
    let mut workers = Vec::new();
    for worker in 0..6 {
        let (store, locks, world) = (u.store.clone(), u.locks.clone(), world.clone());
        workers.push(tokio::spawn(async move {
            for n in 0..8 {
                let events = [
                    event(&format!("{worker}-{n}"), &["shared", &format!("own-{worker}")]),
                    event(&format!("everybodys-{n}"), &["shared"]),
                ];
                retrying(&*store, &*locks, &world, &events).await;
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let found = customer(u, "shared").await;
    assert_eq!((found.events_count, found.identifiers.len()), (6 * 8 + 8, 7));
    assert_eq!(u.store.stats(BRAND).await.unwrap().profiles, 1);
}

async fn opposite_merges_from_many_workers_lose_nothing(u: &StoreUnderTest) {
    opposite_merges(u, u.locks.clone()).await;
    let last = u.store.last_fence().await.unwrap();
    assert!(last >= 23, "each of 23 merges, at least, had a token of its own: {last}");
}

/// Locks that say yes to everybody, with tokens that repeat and run backwards: what a failover can make of Redis.
struct Lying(AtomicI64);

#[async_trait::async_trait]
impl Locks for Lying {
    async fn acquire(
        &self,
        names: &[String],
        ttl: Duration,
        seed: Option<i64>,
    ) -> Result<Acquired, LockError> {
        let fence = seed.unwrap_or_default() + 1 + self.0.fetch_add(1, Ordering::SeqCst) % 3;
        let valid_until = SystemClock.monotonic() + ttl;
        Ok(Acquired::Held(Lock { names: names.to_vec(), token: "everybody's".into(), fence, valid_until }))
    }

    async fn extend(&self, lock: &Lock, _: Duration) -> Result<Option<Moment>, LockError> {
        Ok(Some(lock.valid_until))
    }

    async fn release(&self, _: &Lock) -> Result<bool, LockError> {
        Ok(true)
    }
}

async fn merges_are_right_under_locks_that_lie(u: &StoreUnderTest) {
    opposite_merges(u, Arc::new(Lying(AtomicI64::new(0)))).await;
}

async fn a_fencing_token_is_taken_once_and_only_upwards(u: &StoreUnderTest) {
    run(u, &[event("m1", &["a"]), event("m2", &["b"])]).await;
    let mut ids = vec![owner(u, "a").await.unwrap(), owner(u, "b").await.unwrap()];
    ids.sort();
    let stamp = async |ids: &[ProfileId], token: Option<i64>, commit: bool| {
        let mut tx = u.store.begin().await.unwrap();
        tx.lock(ids).await.unwrap();
        let stamped = tx.fence(ids, token).await;
        if stamped.is_ok() && commit {
            tx.commit().await.unwrap();
        }
        stamped
    };
    assert_eq!(u.store.last_fence().await.unwrap(), 0);
    assert_eq!(stamp(&ids, Some(7), false).await, Ok(()), "undone with its transaction");
    assert_eq!(stamp(&ids[..1], Some(7), true).await, Ok(()));
    for (token, outcome) in [
        (6, Err(StoreError::Fenced(6))),
        (7, Err(StoreError::Fenced(7))),
        (8, Ok(())),
        (8, Err(StoreError::Fenced(8))),
    ] {
        assert_eq!(stamp(&ids, Some(token), true).await, outcome, "{token}");
    }
    assert_eq!(u.store.last_fence().await.unwrap(), 8);
    assert_eq!(stamp(&ids, None, true).await, Ok(()), "without a lock the store draws the next");
    assert_eq!(u.store.last_fence().await.unwrap(), 9);
}

async fn a_counter_that_ran_backwards_costs_a_run_and_no_merge(u: &StoreUnderTest) {
    run(u, &[event("m1", &["a"]), event("m2", &["b"]), event("m3", &["c"])]).await;
    run(u, &[event("l1", &["a", "b"])]).await;
    let before = u.store.last_fence().await.unwrap();
    assert!(before >= 1);
    // Redis comes back from an old copy: its tokens begin again, far below.
    let mut tx = u.store.begin().await.unwrap();
    let id = owner(u, "a").await.unwrap();
    tx.lock(&[id]).await.unwrap();
    tx.fence(&[id], Some(before + 1000)).await.unwrap();
    tx.commit().await.unwrap();
    run(u, &[event("l2", &["a", "c"])]).await;
    assert_eq!(customer(u, "c").await.identifiers.len(), 3);
    assert!(u.store.last_fence().await.unwrap() > before + 1000);
}

async fn an_item_that_cannot_be_done_holds_up_no_other(u: &StoreUnderTest) {
    // An identifier of a profile that is not there: half a restore, or a hand in the data.
    let gone = ProfileId::first_at(T0);
    let mut tx = u.store.begin().await.unwrap();
    let claimed = tx
        .claim(&[Claim {
            identifier: BrandIdentifier::new(BRAND, user("ghost")),
            profile: gone,
            source: Source::Public,
        }])
        .await
        .unwrap();
    assert_eq!(claimed.len(), 1);
    tx.commit().await.unwrap();
    let world = World::real();
    let events: Vec<Event> =
        (0..8).map(|n| event(&format!("m{n}"), &[if n == 5 { "ghost" } else { "alive" }])).collect();
    let refused = process(&*u.store, &*u.locks, &world, &BrandRules::default(), &events).await;
    assert!(
        matches!(refused, Err(StoreError::Invalid(_))),
        "no race that another run could win: {refused:?}"
    );
    let others: Vec<Event> = events.iter().filter(|event| event.message_id != "m5").cloned().collect();
    assert_eq!(
        process(&*u.store, &*u.locks, &world, &BrandRules::default(), &others).await.unwrap().effective,
        7
    );
}

/// Somebody who holds every lock, and never lets go: a worker that died in its merge.
struct Hoarding;

#[async_trait::async_trait]
impl Locks for Hoarding {
    async fn acquire(&self, _: &[String], _: Duration, _: Option<i64>) -> Result<Acquired, LockError> {
        Ok(Acquired::Busy)
    }

    async fn extend(&self, _: &Lock, _: Duration) -> Result<Option<Moment>, LockError> {
        Ok(None)
    }

    async fn release(&self, _: &Lock) -> Result<bool, LockError> {
        Ok(false)
    }
}

async fn a_lock_left_behind_holds_up_no_merge(u: &StoreUnderTest) {
    run(u, &[event("m1", &["a"]), event("m2", &["b"])]).await;
    let world = World::real();
    let merged = process(&*u.store, &Hoarding, &world, &BrandRules::default(), &[event("l1", &["a", "b"])])
        .await
        .unwrap();
    assert_eq!(merged.effective, 1);
    assert_eq!(customer(u, "a").await, customer(u, "b").await);
    assert!(u.store.last_fence().await.unwrap() > 0, "under a token that the store drew");
}

async fn opposite_merges(u: &StoreUnderTest, locks: Arc<dyn Locks>) {
    let world = World::real();
    let seeds: Vec<Event> = (0..24).map(|n| event(&format!("s{n}"), &[&format!("u{n}")])).collect();
    for seed in &seeds {
        run(u, std::slice::from_ref(seed)).await;
    }
    let mut workers = Vec::new();
    for worker in 0..6_usize {
        let (store, locks, world) = (u.store.clone(), locks.clone(), world.clone());
        workers.push(tokio::spawn(async move {
            for n in 0..23_usize {
                // Every worker links neighbours, each in another order, so that merges meet from both ends.
                let at = (n * (worker * 2 + 1) + worker * 4) % 23;
                let (one, other) = (format!("u{at}"), format!("u{}", at + 1));
                let events = [event(&format!("l{worker}-{at}"), &[&one, &other])];
                retrying(&*store, &*locks, &world, &events).await;
            }
        }));
    }
    for worker in workers {
        worker.await.unwrap();
    }
    let found = customer(u, "u0").await;
    assert_eq!(found.identifiers.len(), 24);
    assert_eq!(u.store.stats(BRAND).await.unwrap().profiles, 1);
    let events = u.store.stats(BRAND).await.unwrap().events;
    assert_eq!(found.events_count, events, "no event counted twice or lost in a merge");
    assert_eq!(customer(u, "u23").await, found);
}

/// PostgreSQL's row-level security: a role that owns nothing special, a transaction for one brand, statements that forget the brand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_for_one_brand_sees_no_other_whatever_it_asks() {
    use sqlx::{AssertSqlSafe, Connection, PgConnection};

    let url = support::services().await.fresh_database().await.unwrap();
    let pool = tributary_core::adapters::postgres::db::open(&url, 4).await.unwrap();
    let u = StoreUnderTest::on(pool, support::memory_locks().await.locks);
    run(&u, &[event("m1", &["a"]), Event { brand: BrandId(2), ..event("m2", &["b"]) }]).await;
    let mut database = PgConnection::connect(&url).await.unwrap();
    let role = format!("shopkeeper_{}", uuid::Uuid::now_v7().simple());
    for statement in [
        format!("create role {role}"),
        format!("grant select, insert, update, delete on all tables in schema public to {role}"),
        format!("set role {role}"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut database).await.unwrap();
    }
    // Who says nothing sees nothing; who works for every brand has to say so, and sees one where a brand is said besides.
    for (said, every, wanted) in
        [("", "", 0), ("", "on", 2), ("1", "on", 1), ("1", "", 1), ("2", "", 1), ("3", "on", 0)]
    {
        let mut tx = database.begin().await.unwrap();
        sqlx::query(
            "select set_config('tributary.brand', $1, true), set_config('tributary.every_brand', $2, true)",
        )
        .bind(said)
        .bind(every)
        .execute(&mut *tx)
        .await
        .unwrap();
        for table in ["profiles", "identifiers", "events"] {
            let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
                .fetch_one(&mut *tx)
                .await
                .unwrap();
            assert_eq!(count, wanted, "{table}, for {said:?}");
        }
        if !said.is_empty() {
            let foreign = sqlx::query("update events set brand_id = 9").execute(&mut *tx).await;
            assert!(wanted == 0 || foreign.is_err(), "nothing is moved to another brand");
        }
        tx.rollback().await.unwrap();
    }
    // Every table with a brand has the wall.
    let bare: Vec<String> = sqlx::query_scalar(
        "select table_name::text from information_schema.columns join pg_class on relname = table_name
        where table_schema = 'public' and not (relrowsecurity and relforcerowsecurity)
            and (column_name = 'brand_id' or table_name in ('brands', 'outbox', 'outbox_claims'))",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    assert_eq!(bare, [] as [String; 0]);
}

/// As docker-compose.yml sets it up: an ordinary role that owns the database, and runs the migrations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_owner_runs_everything_and_stands_before_the_wall_itself() {
    use sqlx::{AssertSqlSafe, Connection, PgConnection};

    let url = support::services().await.fresh_database().await.unwrap();
    let mut superuser = PgConnection::connect(&url).await.unwrap();
    let role = format!("owner_{}", uuid::Uuid::now_v7().simple());
    let mut owned = url::Url::parse(&url).unwrap();
    let database = owned.path().trim_start_matches('/').to_owned();
    for statement in [
        format!("create role {role} login password 'ordinary'"),
        format!("alter database {database} owner to {role}"),
        format!("alter schema public owner to {role}"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
    }
    owned.set_username(&role).unwrap();
    owned.set_password(Some("ordinary")).unwrap();
    let pool = tributary_core::adapters::postgres::db::open(owned.as_str(), 4).await.unwrap();
    let u = StoreUnderTest::on(pool, support::memory_locks().await.locks);
    brands_keys_and_shops_are_found_again(&u).await;
    run(&u, &[event("m1", &["a"]), Event { brand: BrandId(2), ..event("m2", &["b"]) }]).await;
    assert_eq!(customer(&u, "a").await.events_count, 1);

    let mut hand = PgConnection::connect(owned.as_str()).await.unwrap();
    for table in ["brands", "api_keys", "shops", "profiles", "events", "outbox"] {
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&mut hand)
            .await
            .unwrap();
        assert_eq!(count, 0, "{table}, by the owner's own hand");
    }
}

/// As the queue would: a batch that lost too many races is delivered again.
async fn retrying(store: &dyn Store, locks: &dyn Locks, world: &World, events: &[Event]) {
    for _ in 0..50 {
        match process(store, locks, world, &unlimited(BRAND), events).await {
            Err(StoreError::Conflict(_) | StoreError::Fenced(_)) => {}
            outcome => {
                outcome.unwrap();
                return;
            }
        }
    }
    panic!("fifty conflicts in a row");
}

async fn brands_keys_and_shops_are_found_again(u: &StoreUnderTest) {
    let brand_ports = &u.brand_ports;
    let brand = brand_ports.brands.add_brand("Acme").await.unwrap();
    assert_eq!(brand_ports.brands.brand("Acme").await.unwrap(), Some(brand));
    assert!(matches!(brand_ports.brands.add_brand("Acme").await, Err(StoreError::Invalid(_))));
    let other = brand_ports.brands.add_brand("Other").await.unwrap();
    assert_eq!(
        brand_ports.brands.brands().await.unwrap(),
        [(brand, "Acme".to_owned()), (other, "Other".to_owned())]
    );

    let key = new_key(brand_ports, &World::real(), brand, KeyKind::Secret).await.unwrap();
    assert_eq!(brand_ports.keys.key(&hash(&key)).await.unwrap(), Some(KeyGrant::new(brand, KeyKind::Secret)));
    assert_eq!(brand_ports.keys.key(&hash("sk_unknown")).await.unwrap(), None);

    brand_ports.shops.add_shop("a.myshopify.com", brand, "first").await.unwrap();
    brand_ports.shops.add_shop("a.myshopify.com", brand, "second").await.unwrap();
    brand_ports.shops.add_shop("a.myshopify.com", brand, "second").await.unwrap();
    let shop = brand_ports.shops.shop("a.myshopify.com").await.unwrap().unwrap();
    assert_eq!((shop.secret.as_str(), shop.previous_secret.as_deref()), ("second", Some("first")));
    assert!(matches!(
        brand_ports.shops.add_shop("a.myshopify.com", other, "x").await,
        Err(StoreError::Invalid(_))
    ));
    assert_eq!(brand_ports.shops.shop("b.myshopify.com").await.unwrap(), None);
}
