//! What the routes work with.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tributary_core::context::Context;
use tributary_core::domain::ids::ProfileId;
use tributary_core::ports::brands::key_id;
use tributary_core::ports::clock::Moment;
use tributary_core::ports::world::World;
use tributary_core::services::health::{self, Alarms, Health};
use tributary_core::services::ingest::Ingest;
use tributary_core::services::keys::hash;
use tributary_core::services::privacy::{Action, note};
use tributary_core::services::queues::{RateMeter, SAMPLE_EVERY};
use workers::http::Bounds;
use workers::telemetry::PrometheusHandle;

use crate::audit::{Looks, NOTED_EVERY};
use crate::auth::{Keys, Secret, USED_EVERY};
use crate::error::ApiError;
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

/// Shared by all requests. A clone is a pointer: routes and layers clone their state several times a request.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What all requests work with.
pub struct Shared {
    pub context: Context,
    /// Takes items into the queue.
    pub ingest: Ingest,
    pub keys: Arc<Keys>,
    pub settings: Settings,
    pub metrics: PrometheusHandle,
    /// When the server started.
    pub started: Moment,
    /// Who looked at what, until it is noted.
    pub looks: Arc<Looks>,
    /// What was refused, until it is written.
    pub refusals: Arc<Refusals>,
    /// What the queue did lately.
    pub rates: Arc<RateMeter>,
    /// The last verdict that a stranger asked for, and when.
    health: Mutex<Recent>,
}

/// A verdict, and when it was made.
type Recent = Option<(Moment, Arc<Health>)>;

/// How old a verdict may be that strangers hear: each asks store, queue and cache.
const HEALTH_TTL: Duration = Duration::from_secs(1);

impl AppState {
    /// Starts what the routes need. Must be called within a tokio runtime.
    pub fn new(context: Context, metrics: PrometheusHandle, settings: Settings) -> Self {
        let started = context.world.monotonic();
        let rates = Arc::new(RateMeter::new(context.world.clone()));
        tokio::spawn(sample(context.clone(), Arc::downgrade(&rates)));
        let keys =
            Arc::new(Keys::new(context.brand_ports.clone(), context.world.clone(), settings.sender_limit));
        tokio::spawn(tell_used(context.world.clone(), Arc::downgrade(&keys)));
        let looks = Arc::new(Looks::default());
        tokio::spawn(tell_looks(context.clone(), Arc::downgrade(&looks)));
        let refusals = Arc::new(Refusals::default());
        tokio::spawn(write_refusals(context.clone(), Arc::downgrade(&refusals)));
        Self(Arc::new(Shared {
            looks,
            refusals,
            rates,
            health: Mutex::default(),
            ingest: Ingest::start(context.queue.clone()),
            keys,
            context,
            settings,
            metrics,
            started,
        }))
    }
}

impl AppState {
    /// The verdict, at most a second old: for who asks as often as they like.
    pub async fn recent_health(&self) -> Arc<Health> {
        let mut held = self.health.lock().await;
        if let Some((at, health)) = &*held
            && self.context.world.since(*at) < HEALTH_TTL
        {
            return health.clone();
        }
        let health = Arc::new(health::check(&self.context, self.settings.alarms).await);
        *held = Some((self.context.world.monotonic(), health.clone()));
        health
    }

    /// Counts a key that was refused for its brand, where it has one, in the audit log. Never its text.
    pub(crate) async fn refused(&self, key: Option<&str>, error: &ApiError) -> Result<(), ApiError> {
        let Some(key) = key else { return Ok(()) };
        if !error.is_a_refusal() {
            return Ok(());
        }
        let id = hash(key);
        let Some(grant) = self.keys.known(&id) else { return Ok(()) };
        let actor = format!("key {}", key_id(&id));
        Ok(self.looks.count(&self.context, (grant.brand, &actor), "key_refused", None).await?)
    }

    /// Counts that a key looked at something, and at whom.
    ///
    /// # Errors
    /// 503 when it cannot be noted any more.
    pub async fn looked(
        &self,
        secret: &Secret,
        what: &'static str,
        subject: Option<ProfileId>,
    ) -> Result<(), ApiError> {
        Ok(self.looks.count(&self.context, (secret.brand, &secret.actor), what, subject).await?)
    }

    /// Notes what a key is about to do, does it, and notes where it was not done after all.
    ///
    /// # Errors
    /// 503 when it cannot be noted: then it is not done. Else the deed's own.
    pub async fn audited<T, E: Into<ApiError>>(
        &self,
        secret: &Secret,
        what: &'static str,
        details: Value,
        deed: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ApiError> {
        let action = Action { what, subject: None, details: details.clone() };
        note(&self.context, secret.brand, &secret.actor, action).await?;
        match deed.await {
            Ok(done) => Ok(done),
            Err(error) => {
                let mut details = details;
                details["not_done"] = what.into();
                let action = Action { what: "not_done", subject: None, details };
                if let Err(error) = note(&self.context, secret.brand, &secret.actor, action).await {
                    tracing::warn!(%error, what, "that something was not done could not be noted");
                }
                Err(error.into())
            }
        }
    }
}

/// Notes the queue's counters now and then, as long as somebody asks for rates.
async fn sample(context: Context, rates: Weak<RateMeter>) {
    while let Some(rates) = rates.upgrade() {
        if let Ok(stats) = context.queue.stats().await {
            rates.sample(&stats);
        }
        drop(rates);
        context.world.sleep(SAMPLE_EVERY).await;
    }
}

/// Tells the store when keys were last used, as long as anybody asks for keys.
async fn tell_used(world: World, keys: Weak<Keys>) {
    loop {
        world.sleep(USED_EVERY).await;
        let Some(keys) = keys.upgrade() else { return };
        keys.tell_used().await;
    }
}

/// Writes what was refused, as long as anybody serves.
async fn write_refusals(context: Context, refusals: Weak<Refusals>) {
    loop {
        context.world.sleep(WRITTEN_EVERY).await;
        let Some(refusals) = refusals.upgrade() else { return };
        refusals.write(&context.brand_ports).await;
    }
}

/// Notes who looked at what, as long as anybody serves.
async fn tell_looks(context: Context, looks: Weak<Looks>) {
    loop {
        context.world.sleep(NOTED_EVERY).await;
        let Some(looks) = looks.upgrade() else { return };
        if let Err(error) = looks.tell(&context).await {
            metrics::counter!("tributary_audit_failed_total").increment(1);
            tracing::warn!(%error, "reads of customers are recorded in the audit log later");
        }
    }
}
