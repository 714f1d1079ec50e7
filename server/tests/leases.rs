//! The worker's own part in a lease: it beats while it works, and stops working when the lease is lost.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{Connection, SqliteConnection};
use support::{On, TestApp, answer};
use tokio_util::sync::CancellationToken;
use tributary_core::domain::customer360::{CustomerRecord, CustomerRef, Revision};
use tributary_core::domain::identity::Identifier;
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::ports::clock::{Clock, ManualClock};
use tributary_core::ports::queue::QueueSettings;
use tributary_core::ports::store::{Store, StoreError, StoreStats, StoreTx};
use workers::event;

const LEASE: Duration = Duration::from_secs(3);
/// How long the slow store takes to open a transaction.
const SLOW: Duration = Duration::from_secs(8);

/// How far the clock moves at once, in milliseconds.
const STEP_MS: i64 = 50;

/// A store that takes its time, and says how far its callers came.
struct Slow {
    clock: ManualClock,
    inner: Arc<dyn Store>,
    begun: AtomicUsize,
    opened: AtomicUsize,
}

#[async_trait]
impl Store for Slow {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.clock.sleep(SLOW).await;
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.inner.begin().await
    }
    async fn begin_for(&self, brand: BrandId) -> Result<Box<dyn StoreTx>, StoreError> {
        self.inner.begin_for(brand).await
    }
    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError> {
        self.inner.owner(brand, identifier).await
    }
    async fn revision(&self, brand: BrandId, asked: &CustomerRef) -> Result<Option<Revision>, StoreError> {
        self.inner.revision(brand, asked).await
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        self.inner.customer(brand, id).await
    }
    async fn body_topics(
        &self,
        brand: BrandId,
        shop: &str,
        digest: &[u8; 32],
    ) -> Result<Vec<String>, StoreError> {
        self.inner.body_topics(brand, shop, digest).await
    }
    async fn last_fence(&self) -> Result<i64, StoreError> {
        self.inner.last_fence().await
    }
    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError> {
        self.inner.stats(brand).await
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.inner.now_ms().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_beats_while_it_works_and_stops_when_its_lease_is_lost() {
    let settings = QueueSettings { lease: LEASE, ..QueueSettings::default() };
    let clock = ManualClock::at(1_780_000_000_000);
    let app = TestApp::start_with_at(On::Embedded, settings, &clock).await;
    // It moves on and on, some times faster than the machine's.
    let ticking = clock.clone();
    let ticks = tokio::spawn(async move {
        loop {
            ticking.advance(STEP_MS);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let slow = Arc::new(Slow {
        clock: clock.clone(),
        inner: app.context.store.clone(),
        begun: AtomicUsize::new(0),
        opened: AtomicUsize::new(0),
    });
    let mut context = app.context.clone();
    context.store = slow.clone();
    let stop = CancellationToken::new();
    let options = event::Options { concurrency: 1, batch: 10, grace: Duration::from_secs(5) };
    let worker = tokio::spawn(event::run(context, options, stop.clone()));
    let send = async |id: &str| {
        let event = json!({"event": "E", "userId": "u", "messageId": id}).to_string();
        assert_eq!(answer(app.post("/v1/track", event)).await.0, 200);
    };
    let until = async |what: &str, reached: &dyn Fn() -> bool| {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !reached() {
            assert!(tokio::time::Instant::now() < end, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };

    // Three leases long, and nobody else gets it.
    send("m1").await;
    until("the transaction opens", &|| slow.opened.load(Ordering::SeqCst) == 1).await;
    app.client().drain(Duration::from_secs(10), |_| {}).await.unwrap();
    let stats = app.context.queue.stats().await.unwrap();
    assert_eq!((stats.reclaimed, stats.acked), (0, 1), "the beats kept it");

    // Lost while it works: the work is dropped where it stands, before its transaction.
    send("m2").await;
    until("the work begins", &|| slow.begun.load(Ordering::SeqCst) == 2).await;
    let mut file = SqliteConnection::connect(&format!("sqlite://{}", app.data().join("queue.db").display()))
        .await
        .unwrap();
    sqlx::query("delete from leases").execute(&mut file).await.unwrap();
    clock.sleep(SLOW + LEASE).await;
    assert_eq!(slow.opened.load(Ordering::SeqCst), 1, "nothing was opened under a lost lease");
    assert_eq!(app.context.queue.repair().await.unwrap().strays, 1, "and what it held is found");
    until("it is delivered again", &|| slow.opened.load(Ordering::SeqCst) == 2).await;
    app.client().drain(Duration::from_secs(10), |_| {}).await.unwrap();
    stop.cancel();
    worker.await.unwrap();
    ticks.abort();
    app.stop().await;
}
