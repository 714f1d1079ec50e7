//! What the routes work with.

use std::num::NonZeroU32;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tributary_core::context::Context;
use tributary_core::ports::queue::Queue;
use tributary_core::services::health::{self, Alarms, Health};
use tributary_core::services::ingest::Ingest;
use tributary_core::services::queues::{RateMeter, SAMPLE_EVERY};
use workers::http::Bounds;
use workers::telemetry::PrometheusHandle;

use crate::audit::{Looks, NOTED_EVERY};
use crate::auth::{Keys, USED_EVERY};
use crate::inside::Monitor;
use crate::refusals::{Refusals, WRITTEN_EVERY};

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long Customer360 answers are cached.
    pub cache_ttl: Duration,
    pub alarms: Alarms,
    /// Who may see what concerns all brands.
    pub monitor: Monitor,
    /// Events a second that a write key, or a shop, may send, unless its own limit is set.
    pub sender_limit: Option<NonZeroU32>,
    /// How many connections there may be.
    pub connections: Bounds,
    /// After how many days a new secret key ends, unless told otherwise; never, unless set.
    pub key_days: Option<u32>,
}

/// Shared by all requests.
#[derive(Clone)]
pub struct AppState {
    pub context: Context,
    /// Takes items into the queue.
    pub ingest: Ingest,
    pub keys: Arc<Keys>,
    pub settings: Settings,
    pub metrics: PrometheusHandle,
    /// When the server started.
    pub started: Instant,
    /// Who looked at what, until it is noted.
    pub looks: Arc<Looks>,
    /// What was refused, until it is written.
    pub refusals: Arc<Refusals>,
    /// What the queue did lately.
    pub rates: Arc<RateMeter>,
    /// The last verdict that a stranger asked for, and when.
    health: Arc<Mutex<Recent>>,
}

/// A verdict, and when it was made.
type Recent = Option<(Instant, Arc<Health>)>;

/// How old a verdict may be that strangers hear: each asks store, queue and cache.
const HEALTH_TTL: Duration = Duration::from_secs(1);

impl AppState {
    /// Starts what the routes need. Must be called within a tokio runtime.
    pub fn new(context: Context, metrics: PrometheusHandle, settings: Settings) -> Self {
        let rates = Arc::new(RateMeter::default());
        tokio::spawn(sample(context.queue.clone(), Arc::downgrade(&rates)));
        let keys = Arc::new(Keys::new(context.tenants.clone(), context.clock.clone(), settings.sender_limit));
        tokio::spawn(tell_used(Arc::downgrade(&keys)));
        let looks = Arc::new(Looks::default());
        tokio::spawn(tell_looks(context.clone(), Arc::downgrade(&looks)));
        let refusals = Arc::new(Refusals::default());
        tokio::spawn(write_refusals(context.clone(), Arc::downgrade(&refusals)));
        Self {
            looks,
            refusals,
            rates,
            health: Arc::default(),
            ingest: Ingest::start(context.queue.clone()),
            keys,
            context,
            settings,
            metrics,
            started: Instant::now(),
        }
    }
}

impl AppState {
    /// The verdict, at most a second old: for who asks as often as they like.
    pub async fn recent_health(&self) -> Arc<Health> {
        let mut held = self.health.lock().await;
        if let Some((at, health)) = &*held
            && at.elapsed() < HEALTH_TTL
        {
            return health.clone();
        }
        let health = Arc::new(health::check(&self.context, self.settings.alarms).await);
        *held = Some((Instant::now(), health.clone()));
        health
    }
}

/// Notes the queue's counters now and then, as long as somebody asks for rates.
async fn sample(queue: Arc<dyn Queue>, rates: Weak<RateMeter>) {
    while let Some(rates) = rates.upgrade() {
        if let Ok(stats) = queue.stats().await {
            rates.sample(&stats);
        }
        drop(rates);
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
}

/// Tells the store when keys were last used, as long as anybody asks for keys.
async fn tell_used(keys: Weak<Keys>) {
    loop {
        tokio::time::sleep(USED_EVERY).await;
        let Some(keys) = keys.upgrade() else { return };
        keys.tell_used().await;
    }
}

/// Writes what was refused, as long as anybody serves.
async fn write_refusals(context: Context, refusals: Weak<Refusals>) {
    loop {
        tokio::time::sleep(WRITTEN_EVERY).await;
        let Some(refusals) = refusals.upgrade() else { return };
        refusals.write(&context.tenants).await;
    }
}

/// Notes who looked at what, as long as anybody serves.
async fn tell_looks(context: Context, looks: Weak<Looks>) {
    loop {
        tokio::time::sleep(NOTED_EVERY).await;
        let Some(looks) = looks.upgrade() else { return };
        if let Err(error) = looks.tell(&context).await {
            metrics::counter!("tributary_audit_failed_total").increment(1);
            tracing::warn!(%error, "looks at customers are noted in the audit log later");
        }
    }
}
