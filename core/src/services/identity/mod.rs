//! What people do to a customer's identity: look at its history, preview and make a merge, undo one.
//!
//! A split gives back what a merge moved: identifiers, events, orders, consents by the profile they came to first, traits and
//! times made again from the events. What came since stays where it is, because which of the two it was about is just what was in
//! doubt. The two are kept apart from then on: an event that names both stays with its most trusted identifier.

mod split;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

pub use self::split::{Split, split};
use crate::context::Context;
use crate::domain::history::Merge;
use crate::domain::identity::{Identifier, over_limit};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::{self};
use crate::ports::outbox::Stage;
use crate::ports::store::{MergeRow, RelationKind, StoreError, StoreTx};
use crate::services::automations::jobs::{Job, Signal};
use crate::services::merge::{self, LockGuard, LockOptions};
use crate::services::privacy::{Action, entry};

/// How often a change is tried that loses races against workers.
const MAX_TRIES: u32 = 8;
/// Events that are read at once to make a profile again.
const PAGE: i64 = 1000;

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no such customer or merge.
    #[error("there is no such {0}")]
    Unknown(&'static str),
    /// It cannot be done, and why.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One merge, as people see it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct MergeEntry {
    /// The id, as paths name it.
    pub id: Uuid,
    /// The profile that took in.
    pub survivor: ProfileId,
    /// The profile that was taken in.
    pub merged: ProfileId,
    /// When that happened, as ISO 8601.
    pub at: String,
    /// The event that linked the two.
    pub message_id: String,
    /// The identifiers that moved.
    pub identifiers: Vec<Identifier>,
    /// How many events the profile had that was taken in.
    pub events: i64,
    /// The ids of the orders that moved.
    pub orders: Vec<String>,
    /// When it was undone, if it was.
    pub undone_at: Option<String>,
}

impl From<Merge> for MergeEntry {
    fn from(merge: Merge) -> Self {
        Self {
            id: merge.id,
            survivor: merge.survivor,
            merged: merge.absorbed,
            at: time::format(merge.at),
            message_id: merge.message_id,
            identifiers: merge.identifiers,
            events: merge.state.events_count,
            orders: merge.orders.into_iter().map(|(_, id)| id).collect(),
            undone_at: merge.undone_at.map(time::format),
        }
    }
}

/// The merges that made a customer, newest first; `None` for nobody of this brand.
///
/// # Errors
/// The store's own.
#[tracing::instrument(name = "history", skip_all, fields(brand = brand.0))]
pub async fn history(
    context: &Context,
    brand: BrandId,
    id: ProfileId,
) -> Result<Option<Vec<MergeEntry>>, StoreError> {
    let Some(id) = context.customer_search.survivor(brand, id).await? else { return Ok(None) };
    let merges = context.customer_search.merges(brand, id).await?;
    Ok(Some(merges.into_iter().map(MergeEntry::from).collect()))
}

/// What a merge of two customers would make.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[schema(as = MergePreview)]
pub struct Preview {
    /// The profile that would survive: the older one.
    pub survivor: ProfileId,
    /// The one that would be taken in.
    pub merged: ProfileId,
    /// All identifiers that lead to the profile.
    pub identifiers: Vec<Identifier>,
    /// The traits that would hold.
    pub traits: BTreeMap<String, Value>,
    /// Traits on which the two differ: what each says, the survivor's first.
    pub conflicts: BTreeMap<String, [Value; 2]>,
    /// How many events the profile has.
    pub events_count: i64,
    /// The limit that stops events from making this merge, if one does.
    pub limit: Option<String>,
    /// Whether the two were split before.
    pub split_before: bool,
}

/// What a merge of two customers would make.
///
/// # Errors
/// [`IdentityError::Unknown`] for nobody, [`IdentityError::Refused`] for one and the same.
#[tracing::instrument(name = "preview_merge", skip_all, fields(brand = brand.0))]
pub async fn preview(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
) -> Result<Preview, IdentityError> {
    let [survivor, merged] = pair(context, brand, a, b).await?;
    let read = async |id| context.store.customer(brand, id).await?.ok_or(IdentityError::Unknown("customer"));
    let (one, other) = (read(survivor).await?, read(merged).await?);
    let mut identifiers: Vec<Identifier> = one.identifiers.into_iter().chain(other.identifiers).collect();
    identifiers.sort();
    let set = |profile: &Profile| -> BTreeMap<String, Value> {
        let held = profile.traits.iter().filter(|(_, held)| !held.value.is_null());
        held.map(|(name, held)| (name.clone(), held.value.clone())).collect()
    };
    let (own, theirs) = (set(&one.profile), set(&other.profile));
    let conflicts = own
        .iter()
        .filter_map(|(name, value)| {
            let other = theirs.get(name).filter(|other| *other != value)?;
            Some((name.clone(), [value.clone(), other.clone()]))
        })
        .collect();
    let (brand_rules, _) = context.brand_cache.of(BTreeSet::from([brand])).await?;
    let parts = [(true, one.profile.standing.all), (true, other.profile.standing.all)];
    let limit = over_limit(parts.into_iter(), brand_rules.limits(brand));
    let split_before = one.related.iter().any(|r| r.id == merged && r.kind == RelationKind::Split.as_str());
    let (mut whole, mut gone) = (one.profile, other.profile);
    whole.absorb(&mut gone);
    let traits = set(&whole);
    Ok(Preview {
        survivor,
        merged,
        identifiers,
        traits,
        conflicts,
        events_count: whole.events_count,
        limit,
        split_before,
    })
}

/// Makes one customer of two, whatever the limits say: a person has looked. Answers the survivor and the merge's id.
///
/// # Errors
/// As [`preview`].
#[tracing::instrument(name = "merge", skip_all, fields(brand = brand.0))]
pub async fn merge_two(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
    actor: &str,
) -> Result<(ProfileId, Uuid), IdentityError> {
    let mut tries = 1;
    let (survivor, id) = loop {
        let [survivor, merged] = pair(context, brand, a, b).await?;
        let names = vec![merge::lock_name(brand, survivor), merge::lock_name(brand, merged)];
        let work = |guard: LockGuard| merge_under(context, brand, (survivor, merged), actor, guard);
        match merge::with_merge_lock(&*context.locks, &*context.store, &context.world, names, patient(), work)
            .await
        {
            Ok(id) => break (survivor, id),
            Err(StoreError::Conflict(_) | StoreError::Fenced(_)) if tries < MAX_TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    };
    Ok((survivor, id))
}

async fn merge_under(
    context: &Context,
    brand: BrandId,
    (survivor, merged): (ProfileId, ProfileId),
    actor: &str,
    guard: LockGuard,
) -> Result<Uuid, StoreError> {
    let mut tx = context.store.begin_for(brand).await?;
    let mut held = locked(&mut *tx, &[survivor, merged]).await?;
    let (Some(mut whole), Some(mut gone)) = (held.remove(&survivor), held.remove(&merged)) else {
        return Err(StoreError::Conflict("a customer was erased concurrently".into()));
    };
    if whole.merged_into.is_some() || gone.merged_into.is_some() {
        return Err(StoreError::Conflict("a profile was merged concurrently".into()));
    }
    tx.fence(&[survivor, merged], guard.fence).await?;
    let row =
        MergeRow::new(context.world.id(), &gone, survivor, format!("by hand: {actor}"), context.world.now());
    let related = gone.standing.related;
    whole.absorb(&mut gone);
    tx.record_merges(std::slice::from_ref(&row)).await?;
    tx.save_profiles(&[whole, gone]).await?;
    tx.move_owned(&[row.moved], related).await?;
    stage_signals(context, &mut *tx, row.brand, &[survivor]).await?;
    let details = serde_json::json!({"merge": row.id, "merged": merged});
    let action = Action { what: "merge", subject: Some(survivor), details };
    tx.append_audit(&entry(context, row.brand, actor, action)).await?;
    committed(tx, &guard).await?;
    Ok(row.id)
}

/// The two customers that are meant now, the older first.
async fn pair(
    context: &Context,
    brand: BrandId,
    a: ProfileId,
    b: ProfileId,
) -> Result<[ProfileId; 2], IdentityError> {
    let now = async |id| {
        context.customer_search.survivor(brand, id).await?.ok_or(IdentityError::Unknown("customer"))
    };
    let mut both = [now(a).await?, now(b).await?];
    if both[0] == both[1] {
        return Err(IdentityError::Refused("these two are one customer already".into()));
    }
    both.sort();
    Ok(both)
}

/// Locks profiles, in order.
async fn locked(tx: &mut dyn StoreTx, ids: &[ProfileId]) -> Result<BTreeMap<ProfileId, Profile>, StoreError> {
    let ids: Vec<ProfileId> = ids.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    Ok(tx.lock(&ids).await?.into_iter().map(|profile| (profile.id, profile)).collect())
}

/// What these customers belong to is asked again.
async fn stage_signals(
    context: &Context,
    tx: &mut dyn StoreTx,
    brand: BrandId,
    ids: &[ProfileId],
) -> Result<(), StoreError> {
    let signal = |id: &ProfileId| Job::Signal(Signal { brand, profile: *id, events: Vec::new() }).stage();
    let stages: Vec<Stage> = ids.iter().map(signal).collect();
    tx.stage(&stages, context.world.now_ms()).await
}

async fn committed(tx: Box<dyn StoreTx>, guard: &LockGuard) -> Result<(), StoreError> {
    if !guard.is_valid() {
        return Err(StoreError::Conflict("the merge's lock ran out before the commit".into()));
    }
    tx.commit().await
}

fn patient() -> LockOptions {
    LockOptions { patience: std::time::Duration::from_secs(2), ..LockOptions::default() }
}
