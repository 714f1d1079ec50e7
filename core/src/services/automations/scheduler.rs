//! Finding what is due. It looks at the first entry of three indexes, however much waits behind it.

use std::sync::Arc;

use crate::context::Context;
use crate::domain::automation::definition::{Definition, Trigger, Weekday};
use crate::domain::automation::quiet;
use crate::domain::automation::segment::own_names;
use crate::domain::settings::BrandSettings;
use crate::domain::time::Timestamp;
use crate::ports::automations::DueRun;
use crate::ports::store::StoreError;
use crate::services::automations::jobs::{Job, Signal};
use crate::services::outbox;

/// Most runs and customers that are taken at once.
const PAGE: i64 = 1000;
/// Most schedules that are taken at once.
const SCHEDULES: i64 = 100;
/// A queued run that nobody has touched for so long has lost its job: longer than any try waits for the next.
const STUCK_MS: i64 = 26 * 3_600_000;

/// Puts what is due into the queue; answers how many jobs.
///
/// # Errors
/// When the store is unavailable: nothing was taken then.
#[tracing::instrument(name = "enqueue_due", level = "debug", skip_all)]
pub async fn enqueue_due(context: &Context) -> Result<usize, StoreError> {
    let mut woken = 0;
    loop {
        let now = context.world.now();
        let now_ms = now.timestamp_millis();
        if !context.automations.is_due(now_ms, now_ms - STUCK_MS).await? {
            return Ok(woken);
        }
        let mut tx = context.automations.begin().await?;
        let mut stages = Vec::new();
        for DueRun { brand, run, revision } in tx.take_due_runs(now_ms, now_ms - STUCK_MS, PAGE).await? {
            stages.push(Job::Run { brand, run, revision }.stage());
        }
        for (brand, profile) in tx.take_due_checks(now_ms, PAGE).await? {
            stages.push(Job::Signal(Signal { brand, profile, events: Vec::new() }).stage());
        }
        for row in tx.due_schedules(now_ms, SCHEDULES).await? {
            // One brand's settings that cannot be read keep no other brand's schedules from coming up.
            let settings = match context.brand_cache.settings(row.brand).await {
                Ok(settings) => settings,
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, brand = %row.brand, "a brand's settings cannot be read; its schedules are in UTC");
                    Arc::default()
                }
            };
            let definition: Option<Definition> = serde_json::from_str(&row.definition).ok();
            let next = definition.and_then(|definition| fires(&definition, &settings, now));
            tx.set_fires(row.id, next.map(|at| at.timestamp_millis())).await?;
            // Missed ones - the system was down - come up once.
            let at_ms = row.fires_ms.unwrap_or(now_ms);
            stages.push(Job::Schedule { brand: row.brand, automation: row.id, at_ms, after: None }.stage());
        }
        if stages.is_empty() {
            // Another process was faster.
            return Ok(woken);
        }
        tx.stage(&stages, now_ms).await?;
        tx.commit().await?;
        woken += stages.len();
        metrics::counter!("tributary_automations_woken_total").increment(stages.len() as u64);
        // Now, not when somebody next looks into the outbox. Who cannot leaves it to them.
        let _ = outbox::drain(context).await;
    }
}

/// Asks the customers of brands what they belong to who were never asked: those who were there before there were segments.
///
/// # Errors
/// When the store is unavailable.
pub async fn fill_once(context: &Context) -> Result<(), StoreError> {
    let mut tx = context.automations.begin().await?;
    let brands = tx.take_unfilled().await?;
    let stages: Vec<_> = brands
        .into_iter()
        .map(|brand| Job::Fill { brand, segments: own_names(), after: None }.stage())
        .collect();
    tx.stage(&stages, context.world.now_ms()).await?;
    tx.commit().await
}

/// When an automation's schedule next comes up, if it has one.
pub fn fires(definition: &Definition, settings: &BrandSettings, now: Timestamp) -> Option<Timestamp> {
    let Trigger::Schedule { at, weekdays, .. } = &definition.trigger else { return None };
    let zone = settings.timezone.as_deref().and_then(quiet::zone).unwrap_or(chrono_tz::UTC);
    let days: Vec<chrono::Weekday> = weekdays.iter().map(|day: &Weekday| (*day).into()).collect();
    Some(quiet::next(now, zone, quiet::hour(at)?, &days))
}
