//! What law and people ask for: all that is held on a customer, forgetting them, and a log of who did what.
//!
//! Erasing suppresses the customer's identifiers: what comes later - from the queue, from a dead letter that is retried, from a
//! shop that knows nothing of it - is not kept ([`crate::services::events`]). An order stands without its customer, because the
//! shop's accounts need it. The cache forgets at once, dead letters that speak of the customer are discarded.

mod letters;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;

use self::letters::Person;
use crate::context::Context;
use crate::domain::event::{ShopSubject, Subject};
use crate::domain::identity::Identifier;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time;
use crate::ports::cache::CacheError;
use crate::ports::fault::Fault;
use crate::ports::privacy::{AuditEntry, Erased, Erasure, PrivacyRequest, Tally};
use crate::ports::queue::QueueError;
use crate::ports::store::PrivacyAsks;
use crate::ports::store::{PrivacyRow, StoreError};
use crate::services::customer360;
use crate::services::rounds::panicked;

/// Rows that are read or deleted at once.
const PAGE: i64 = 1000;
/// Requests that are carried out at once.
const REQUESTS: i64 = 100;
/// Customers of a shop that are erased between two looks.
const CUSTOMERS: i64 = 100;
/// How often an erasure is tried that loses races against workers.
const MAX_TRIES: u32 = 20;
/// How long after a shop was redacted it is looked at again: longer than any process believes the old word, and works on it.
pub const REDACTION_SETTLES: Duration = Duration::from_secs(10);
/// The longest wait between two tries.
const RETRY_WAIT: Duration = Duration::from_millis(50);

/// Something that was done, for the log.
#[derive(Debug)]
pub struct Action {
    pub what: &'static str,
    pub subject: Option<ProfileId>,
    /// The rest. Never an identifier of a person.
    pub details: Value,
}

/// An entry of the audit log. `actor` is a key's id, a shop, or a word for what asked.
pub fn entry(context: &Context, brand: BrandId, actor: &str, action: Action) -> AuditEntry {
    AuditEntry {
        id: context.world.id(),
        brand,
        at: context.world.now(),
        actor: actor.to_owned(),
        action: action.what.to_owned(),
        subject: action.subject.map(|id| id.to_string()),
        details: action.details.to_string(),
    }
}

/// Adds to the audit log.
///
/// # Errors
/// The store's own.
pub async fn note(context: &Context, brand: BrandId, actor: &str, action: Action) -> Result<(), StoreError> {
    context.privacy.append_audit(&[entry(context, brand, actor, action)]).await
}

/// Forgets customers: everywhere, for good. What is to be forgotten is kept as a request until all of it is done, so a crash
/// in between loses nothing of it: [`carry_out`] does it again.
///
/// # Errors
/// The store's own; the queue's when its dead letters cannot be looked through.
#[tracing::instrument(name = "erase", skip_all, fields(brand = brand.0))]
pub async fn erase(
    context: &Context,
    brand: BrandId,
    what: &Erasure,
    actor: &str,
) -> Result<Erased, PrivacyError> {
    let subject = gathered(context, brand, what).await?;
    let id = request(context, brand, PrivacyAsks::Erase(subject.clone()), actor).await?;
    let erased = forget(context, brand, &subject, true, actor, id).await?;
    let result = outcome(context, brand, id, &subject, &erased).await?;
    context.privacy.complete_request(id, context.world.now(), &result.to_string(), true).await?;
    context.scrub().await;
    Ok(erased)
}

/// What an erasure came to, also where it was begun before and ended now.
async fn outcome(
    context: &Context,
    brand: BrandId,
    id: Uuid,
    subject: &Subject,
    erased: &Erased,
) -> Result<Value, StoreError> {
    let profiles: BTreeSet<ProfileId> = erased.profiles.iter().chain(&subject.profiles).copied().collect();
    let so_far = so_far(context, brand, id).await?;
    Ok(json!({"profiles": profiles, "events": so_far.events, "orders": so_far.orders}))
}

async fn so_far(context: &Context, brand: BrandId, id: Uuid) -> Result<Tally, StoreError> {
    Ok(context.privacy.request(brand, id).await?.map(|request| request.so_far).unwrap_or_default())
}

/// All that is known of whom an erasure is about: what is cached and who is spoken of in dead letters is known only before.
async fn gathered(context: &Context, brand: BrandId, what: &Erasure) -> Result<Subject, StoreError> {
    let mut profiles: BTreeSet<ProfileId> = what.profiles.iter().copied().collect();
    let mut identifiers: BTreeSet<Identifier> = what.identifiers.iter().cloned().collect();
    for identifier in &what.identifiers {
        profiles.extend(context.store.owner(brand, identifier).await?);
    }
    for id in profiles.clone() {
        profiles.extend(context.customer_search.survivor(brand, id).await?);
    }
    let ids: Vec<ProfileId> = profiles.iter().copied().collect();
    for id in &ids {
        let merges = context.customer_search.merges(brand, *id).await?;
        profiles.extend(merges.iter().filter(|merge| merge.undone_at.is_none()).map(|merge| merge.absorbed));
    }
    identifiers
        .extend(context.customer_search.identifiers(brand, &ids).await?.into_iter().map(|(_, own)| own));
    Ok(Subject { identifiers: identifiers.into_iter().collect(), profiles: profiles.into_iter().collect() })
}

/// The erasure itself. Done again, it changes nothing in the store, and cleans what is beside it.
async fn forget(
    context: &Context,
    brand: BrandId,
    subject: &Subject,
    suppress: bool,
    actor: &str,
    request: Uuid,
) -> Result<Erased, PrivacyError> {
    // Before anything is gone: both are needed afterwards.
    context.queue.stats().await?;
    context.automation_queue.stats().await?;
    context.cache.ping().await.map_err(unavailable)?;
    let rules = context.brand_cache.rules(brand).await?;
    let what = Erasure {
        profiles: subject.profiles.clone(),
        identifiers: if suppress { subject.identifiers.clone() } else { Vec::new() },
        suppress,
        only_empty: false,
        request: Some(request),
    };
    let erased = erased(context, brand, &what).await?;
    let profiles: BTreeSet<ProfileId> = erased.profiles.iter().chain(&subject.profiles).copied().collect();
    let known: BTreeSet<Identifier> =
        erased.identifiers.iter().chain(&subject.identifiers).cloned().collect();
    let (profiles, names): (Vec<ProfileId>, Vec<Identifier>) =
        (profiles.into_iter().collect(), known.iter().cloned().collect());
    customer360::forget(context, brand, &profiles, &names).await.map_err(unavailable)?;
    let mut letters = 0;
    if suppress {
        let person = Person { brand, rules: &rules, identifiers: &known, profiles: &profiles };
        letters = letters::discard_about(context, &person).await?;
        for request in context.privacy.named_exports(brand).await? {
            let named = subject_of(&request)
                .is_ok_and(|subject: Subject| subject.identifiers.iter().any(|i| known.contains(i)));
            if named {
                let result = request.result.as_deref().unwrap_or("{}");
                let at = request.done_at.unwrap_or_else(|| context.world.now());
                context.privacy.complete_request(request.id, at, result, true).await?;
            }
        }
    }
    let details = json!({
        "profiles": erased.profiles.len(), "events": erased.events, "orders": erased.orders, "dead_letters": letters,
        "suppressed": suppress,
    });
    note(context, brand, actor, Action { what: "erase", subject: profiles.first().copied(), details })
        .await?;
    Ok(erased)
}

fn unavailable(error: CacheError) -> StoreError {
    StoreError::Unavailable(Fault::of(error))
}

async fn erased(context: &Context, brand: BrandId, what: &Erasure) -> Result<Erased, StoreError> {
    let mut tries = 1;
    loop {
        match context.privacy.erase(brand, what, context.world.now()).await {
            Err(StoreError::Conflict(_)) if tries < MAX_TRIES => {
                tries += 1;
                context.world.sleep(RETRY_WAIT.mul_f64(context.world.fraction())).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whom, or which shop, a request is about.
fn subject_of<T: DeserializeOwned>(request: &PrivacyRequest) -> Result<T, StoreError> {
    let text = request.subject.as_deref().unwrap_or_default();
    serde_json::from_str(text)
        .map_err(|error| StoreError::Invalid(format!("the request's subject cannot be read: {error}")))
}

/// Why something was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PrivacyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A request, as people see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct RequestEntry {
    /// The id, as paths name it.
    pub id: Uuid,
    /// `export`, `erase` or `erase_shop`.
    pub kind: String,
    /// Who asked: a shop, a key, or the command line.
    pub source: String,
    /// When it was asked for, as ISO 8601.
    pub created_at: String,
    /// When it will be carried out, where it waits; until then it can be stopped.
    pub due_at: Option<String>,
    /// When it was carried out or stopped, if it was.
    pub done_at: Option<String>,
    /// What came of it.
    pub result: Option<Value>,
}

impl From<&PrivacyRequest> for RequestEntry {
    fn from(request: &PrivacyRequest) -> Self {
        Self {
            id: request.id,
            kind: request.kind.clone(),
            source: request.source.clone(),
            created_at: time::format(request.created_at),
            due_at: request.due_at.map(time::format),
            done_at: request.done_at.map(time::format),
            result: request.result.as_deref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

/// The customers that a request is about, as they are now.
///
/// # Errors
/// The store's own.
pub async fn subjects(context: &Context, request: &PrivacyRequest) -> Result<Vec<ProfileId>, StoreError> {
    // One whose subject was forgotten is about nobody.
    let subject: Subject = subject_of(request).unwrap_or_default();
    let mut found = BTreeSet::new();
    for identifier in &subject.identifiers {
        found.extend(context.store.owner(request.brand, identifier).await?);
    }
    for id in subject.profiles {
        found.extend(context.customer_search.survivor(request.brand, id).await?);
    }
    Ok(found.into_iter().collect())
}

/// Keeps a request, to be carried out by whoever runs [`carry_out`]. Answers its id.
///
/// # Errors
/// The store's own.
pub async fn request(
    context: &Context,
    brand: BrandId,
    asks: PrivacyAsks,
    source: &str,
) -> Result<Uuid, StoreError> {
    let id = context.world.id();
    let row = PrivacyRow {
        id,
        brand,
        message_id: format!("request:{id}"),
        asks,
        source: source.to_owned(),
        at: context.world.now(),
        due: None,
    };
    context.privacy.add_request(&row).await?;
    Ok(id)
}

/// Stops a request that is not due yet: it is never carried out. Answers whether the brand has such a request.
///
/// # Errors
/// The store's own.
pub async fn stop(context: &Context, brand: BrandId, id: Uuid, actor: &str) -> Result<bool, StoreError> {
    let action = Action { what: "request_stopped", subject: None, details: json!({"request": id}) };
    let note = entry(context, brand, actor, action);
    let result = json!({"stopped_by": actor}).to_string();
    context.privacy.stop(id, context.world.now(), &result, &note).await
}

/// Carries out what waits. Answers how many requests that were. A request that was half done is done again from the
/// beginning, which changes nothing that was done; one that fails holds up no other.
///
/// # Errors
/// When the store cannot be asked what waits.
#[tracing::instrument(name = "carry_out_requests", level = "debug", skip_all)]
pub async fn carry_out(context: &Context) -> Result<usize, PrivacyError> {
    let mut done = 0;
    for request in &context.privacy.open_requests(context.world.now(), REQUESTS).await? {
        let carried = AssertUnwindSafe(carry_out_one(context, request)).catch_unwind().await;
        let Ok(carried) = carried else {
            panicked("privacy");
            tracing::error!(request = %request.id, "a privacy request panicked; it is retried, and the others continue");
            continue;
        };
        match carried {
            Ok(None) => {}
            Ok(Some((result, forget))) => {
                context
                    .privacy
                    .complete_request(request.id, context.world.now(), &result.to_string(), forget)
                    .await?;
                if forget {
                    context.scrub().await;
                }
                tracing::info!(request = %request.id, kind = request.kind, "carried out a privacy request");
                done += 1;
            }
            Err(error) => {
                tracing::warn!(%error, request = %request.id, kind = request.kind, "a privacy request waits; it is tried again");
            }
        }
    }
    Ok(done)
}

/// What came of a request, and whether its subject is to be forgotten; `None` where it is to be looked at again.
async fn carry_out_one(
    context: &Context,
    request: &PrivacyRequest,
) -> Result<Option<(Value, bool)>, PrivacyError> {
    let actor = request.source.as_str();
    match request.kind.as_str() {
        // The shop's owner fetches it under the request's id; what is held is read then.
        "export" => Ok(Some((json!({"customers": subjects(context, request).await?}), false))),
        "erase_shop" => Ok(erase_shop(context, request, actor).await?.map(|result| (result, true))),
        _ => {
            let subject: Subject = subject_of(request)?;
            let what = Erasure {
                profiles: subject.profiles,
                identifiers: subject.identifiers,
                ..Erasure::default()
            };
            let subject = gathered(context, request.brand, &what).await?;
            context.privacy.save_subject(request.id, &json!(subject).to_string()).await?;
            let erased = forget(context, request.brand, &subject, true, actor, request.id).await?;
            let result = outcome(context, request.brand, request.id, &subject, &erased).await?;
            Ok(Some((result, true)))
        }
    }
}

/// Forgets every customer that a shop reported, and everything else that it reported. Their identifiers are not suppressed: nobody
/// has asked for that. It is done once nobody can believe any more that the shop is as it was: what was under way then is gone, too.
async fn erase_shop(
    context: &Context,
    request: &PrivacyRequest,
    actor: &str,
) -> Result<Option<Value>, PrivacyError> {
    let ShopSubject { shop, begun, mut dead_letters } = subject_of(request)?;
    if !begun {
        context.brand_ports.shops.shop_redacted(&shop, context.world.now()).await?;
        let begun = ShopSubject { shop: shop.clone(), begun: true, dead_letters };
        context.privacy.save_subject(request.id, &json!(begun).to_string()).await?;
    }
    let known = context.brand_ports.shops.shop(&shop).await?;
    let since = known.as_ref().and_then(|shop| shop.redacted_at);
    if known.is_some() && since.is_none() {
        // Added again meanwhile: what it tells now is new.
        return Ok(Some(json!({"ended": "the shop was added again"})));
    }
    loop {
        let profiles = context.privacy.customers_of_shop(request.brand, &shop, CUSTOMERS).await?;
        if profiles.is_empty() {
            break;
        }
        let what = Erasure { profiles, ..Erasure::default() };
        let subject = gathered(context, request.brand, &what).await?;
        forget(context, request.brand, &subject, false, actor, request.id).await?;
    }
    while context.privacy.erase_shop(request.brand, &shop, PAGE, request.id).await? > 0 {}
    let discarded = letters::discard_of_shop(context, request.brand, &shop).await?;
    if discarded > 0 {
        dead_letters += discarded;
        let counted = ShopSubject { shop: shop.clone(), begun: true, dead_letters };
        context.privacy.save_subject(request.id, &json!(counted).to_string()).await?;
    }
    let settled =
        since.is_none_or(|at| (context.world.now() - at).to_std().is_ok_and(|age| age > REDACTION_SETTLES));
    if !settled {
        return Ok(None);
    }
    // Of all rounds, also of those before a restart.
    let Tally { customers, events, orders, rows } = so_far(context, request.brand, request.id).await?;
    Ok(Some(json!({
        "customers": customers, "events": events, "orders": orders, "rows": rows, "dead_letters": dead_letters,
    })))
}

/// Lets identifiers be known again that were suppressed. Answers how many.
///
/// # Errors
/// The store's own.
pub async fn unsuppress(
    context: &Context,
    brand: BrandId,
    identifiers: &[Identifier],
    actor: &str,
) -> Result<u64, StoreError> {
    // Before it is done: it is not done where it cannot be noted.
    let details = json!({"identifiers": identifiers.len()});
    note(context, brand, actor, Action { what: "unsuppress", subject: None, details }).await?;
    context.privacy.unsuppress(brand, identifiers).await
}

/// Deletes what is older than its brand keeps events, and profiles of which nothing is left. Answers how many events. What fails
/// for one brand keeps it from no other.
///
/// # Errors
/// The first of the store's or queue's own, once every brand had its turn.
#[tracing::instrument(name = "delete_expired_events", level = "debug", skip_all)]
pub async fn retain(context: &Context) -> Result<u64, PrivacyError> {
    let (mut deleted, mut failed) = (0, None);
    // What a process of an older version kept meanwhile.
    if let Err(error) = context.privacy.key_suppressions(PAGE).await {
        tracing::warn!(%error, "suppressions of an older version could not be keyed; they stay as they are for now");
        failed = Some(error.into());
    }
    if let Err(error) = letters::drop_old(context, None, None).await {
        tracing::warn!(%error, "old dead letters of no brand could not be dropped; they stay for now");
        failed.get_or_insert(error);
    }
    for (brand, _) in context.brand_ports.brands.brands().await? {
        match AssertUnwindSafe(retain_of(context, brand)).catch_unwind().await {
            Ok(Ok(events)) => deleted += events,
            Ok(Err(error)) => {
                tracing::warn!(%error, %brand, "a brand's old events could not be deleted; they stay for now");
                failed.get_or_insert(error);
            }
            Err(_) => {
                panicked("retention");
                tracing::error!(%brand, "deleting a brand's old events panicked; the other brands' are deleted");
            }
        }
    }
    failed.map_or(Ok(deleted), Err)
}

async fn retain_of(context: &Context, brand: BrandId) -> Result<u64, PrivacyError> {
    let mut deleted = 0;
    let settings = context.brand_ports.brands.settings(brand).await?;
    letters::drop_old(context, Some(brand), settings.retention_days).await?;
    let Some(days) = settings.retention_days else { return Ok(0) };
    let before = time::minus(context.world.now(), time::days(i64::from(days)));
    loop {
        let page = context.privacy.delete_expired_events(brand, before, PAGE).await?;
        deleted += page;
        if page < PAGE as u64 {
            break;
        }
    }
    loop {
        let profiles = context.privacy.inactive_profiles(brand, before, CUSTOMERS).await?;
        if profiles.is_empty() {
            break;
        }
        for id in profiles {
            // Nobody asked to be forgotten: who comes back is known again, and who has come back meanwhile stays.
            let what = Erasure { profiles: vec![id], only_empty: true, ..Erasure::default() };
            let gone = erased(context, brand, &what).await?;
            customer360::forget(context, brand, &gone.profiles, &gone.identifiers)
                .await
                .map_err(unavailable)?;
        }
    }
    Ok(deleted)
}
