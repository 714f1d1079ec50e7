//! Processing a batch on a real store: what becomes of each item, whatever its neighbours are.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use futures::future::BoxFuture;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::{ContextUnderTest, embedded_context, services_context};
use tributary_core::domain::backoff::MAX_ATTEMPTS;
use tributary_core::domain::event::Source;
use tributary_core::domain::identity::{Identifier, IdentifierKind};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::settings::BrandSettings;
use tributary_core::ports::clock::Clock;
use tributary_core::ports::clock::Moment;
use tributary_core::ports::clock::SystemClock;
use tributary_core::ports::queue::{Item, NewItem, Then};
use tributary_core::ports::store::BrandIdentifier;
use tributary_core::ports::store::Claim;
use tributary_core::ports::world::World;
use tributary_core::services::events::handle::handle_batch;
use tributary_core::services::privacy::retain;

on_every_adapter!({ embedded: crate::embedded_context, services: crate::services_context } [
    one_item_that_the_store_refuses_fails_alone,
    an_item_is_tried_so_often_and_then_buried,
    a_panic_takes_no_neighbour_along,
    a_retention_without_end_keeps_no_other_brands_from_ending,
]);

const BRAND: BrandId = BrandId(1);

/// Items as a worker fetches them: one of `count`, at `bad`, is about an identifier whose profile is not there.
async fn items(u: &ContextUnderTest, count: usize, bad: usize) -> Vec<Item> {
    let ghost = Identifier::new(IdentifierKind::UserId, "ghost").unwrap();
    let mut tx = u.context.store.begin().await.unwrap();
    tx.claim(&[Claim {
        identifier: BrandIdentifier::new(BRAND, ghost),
        profile: ProfileId::first_at(1_768_000_000_000),
        source: Source::Public,
    }])
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let envelope = |n: usize| {
        let user = if n == bad { "ghost" } else { "alive" };
        format!(
            r#"{{"brand":1,"received_ms":1768000000000,"origin":"segment","body":{{"type":"track","event":"E","userId":"{user}","messageId":"m{bad}-{n}"}}}}"#
        )
    };
    let new: Vec<NewItem> =
        (0..count).map(|n| NewItem { payload: envelope(n).into(), ..NewItem::default() }).collect();
    u.context.queue.enqueue(&new).await.unwrap();
    u.context.queue.fetch(count, Duration::ZERO).await.unwrap().unwrap().items
}

async fn one_item_that_the_store_refuses_fails_alone(u: &ContextUnderTest) {
    for bad in [0, 5, 15] {
        let items = items(u, 16, bad).await;
        let before = u.context.store.stats(BRAND).await.unwrap().events;
        let worked = handle_batch(&u.context, &items).await;
        assert!(worked.store_unavailable.is_none());
        let failed: Vec<&str> = worked.unfinished.iter().map(|u| u.item.id.as_str()).collect();
        assert_eq!(failed, [items[bad].id.as_str()], "it alone");
        assert!(
            matches!(&worked.unfinished[0].then, Then::Retry { error, .. } if error.contains("not there"))
        );
        assert_eq!((worked.effective, worked.duplicates), (15, 0));
        let events = u.context.store.stats(BRAND).await.unwrap().events;
        assert_eq!(events - before, 15);
    }
}

async fn an_item_is_tried_so_often_and_then_buried(u: &ContextUnderTest) {
    let mut items = items(u, 1, 0).await;
    for attempt in 0..MAX_ATTEMPTS {
        items[0].attempt = attempt;
        let worked = handle_batch(&u.context, &items).await;
        let last = attempt + 1 == MAX_ATTEMPTS;
        match &worked.unfinished[0].then {
            Then::Retry { .. } => assert!(!last, "attempt {attempt} was one too many"),
            Then::Bury { error } => {
                assert!(last, "buried after {attempt} attempts");
                assert!(error.contains(&format!("failed {MAX_ATTEMPTS} times")), "{error}");
            }
            Then::Release | Then::Defer { .. } => panic!("a refusal is no outage"),
        }
    }
}

/// Panics so many times, as arithmetic on a brand's number might, and is right from then on.
struct Panics(AtomicU32);

impl Clock for Panics {
    fn now_ms(&self) -> i64 {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(left.is_err(), "a clock that panics");
        1_768_000_000_000
    }

    fn monotonic(&self) -> Moment {
        SystemClock.monotonic()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        SystemClock.sleep(time)
    }
}

async fn a_panic_takes_no_neighbour_along(u: &ContextUnderTest) {
    let items = items(u, 16, 99).await;
    let mut context = u.context.clone();
    // The whole, its first half, and so on: until one is alone.
    context.world = World::on(Panics(AtomicU32::new(5)));
    let worked = handle_batch(&context, &items).await;
    assert!(worked.store_unavailable.is_none());
    let failed: Vec<&str> = worked.unfinished.iter().map(|u| u.item.id.as_str()).collect();
    assert_eq!(failed, [items[0].id.as_str()], "it alone");
    assert!(matches!(&worked.unfinished[0].then, Then::Retry { error, .. } if error.contains("panicked")));
    assert_eq!(worked.effective, 15);
}

/// Settings from before their bounds were checked are still in stores.
async fn a_retention_without_end_keeps_no_other_brands_from_ending(u: &ContextUnderTest) {
    let (first, second) = (
        u.context.brand_ports.brands.add_brand("endless").await.unwrap(),
        u.context.brand_ports.brands.add_brand("thirty days").await.unwrap(),
    );
    let endless = BrandSettings { retention_days: Some(u32::MAX), ..BrandSettings::default() };
    u.context.brand_cache.set(first, &endless, None).await.unwrap();
    let short = BrandSettings { retention_days: Some(30), ..BrandSettings::default() };
    u.context.brand_cache.set(second, &short, None).await.unwrap();
    let event = |brand: BrandId| {
        let body = r#"{"type":"track","event":"E","userId":"old","messageId":"old"}"#;
        let text =
            format!(r#"{{"brand":{brand},"received_ms":1600000000000,"origin":"segment","body":{body}}}"#);
        NewItem { payload: text.into(), ..NewItem::default() }
    };
    u.context.queue.enqueue(&[event(first), event(second)]).await.unwrap();
    let batch = u.context.queue.fetch(2, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(handle_batch(&u.context, &batch.items).await.effective, 2);
    assert_eq!(retain(&u.context).await.unwrap(), 1);
    assert_eq!(u.context.store.stats(first).await.unwrap().events, 1);
    assert_eq!(u.context.store.stats(second).await.unwrap().events, 0);
}
