//! Forgetting customers and shops.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::database::{BrandTx, Tx};
use super::owned;
use super::statement::Given;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::ProfileId;
use crate::domain::time::Timestamp;
use crate::ports::privacy::{Erased, Erasure};
use crate::ports::store::{StoreError, SuppressionKey};

/// Forgets customers, in the transaction, and commits it.
pub(super) async fn erase(
    mut tx: BrandTx,
    what: &Erasure,
    at: Timestamp,
    suppression: &SuppressionKey,
) -> Result<Erased, StoreError> {
    let nobody = claim(&mut tx, &what.identifiers).await?;
    // Everybody who was merged into them, and everything that they were merged into, is one customer.
    let ids = tree(&mut tx, what, nobody).await?;
    let locked = "select id from profiles where id = any($1) order by id for update";
    tx.sql(locked).list(ids.iter().copied()).scalars::<ProfileId>().await?;
    // Whoever was merged between the look and the lock is seen now.
    if tree(&mut tx, what, nobody).await? != ids {
        return Err(StoreError::Conflict("a profile was merged concurrently".into()));
    }
    // Seen again since it was looked at: then it stays.
    if what.only_empty && has_any(&mut tx, &ids).await? {
        return Ok(Erased::default());
    }
    let deleted = owned::erase_first(&mut tx, &ids, nobody).await?;
    let mut forgotten: BTreeSet<Identifier> = deleted
        .into_iter()
        .filter_map(|(kind, value)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value }))
        .collect();
    forgotten.extend(what.identifiers.iter().cloned());
    let forgotten: Vec<Identifier> = forgotten.into_iter().collect();
    if what.suppress {
        suppress(&mut tx, &forgotten, at, suppression).await?;
    }
    forget_undone_merges(&mut tx, &forgotten).await?;
    let customers = "select count(*) from profiles where id = any($1) and merged_into is null";
    let (customers,): (i64,) = tx.sql(customers).list(ids.iter().copied()).one().await?;
    let deleted = owned::erase_rest(&mut tx, &ids).await?;
    if let Some(request) = what.request {
        tx.sql(
            "update privacy_requests set customers = customers + $2, events = events + $3, orders = orders + $4
            where id = $1",
        )
        .bind(request)
        .bind(customers)
        .bind(deleted.events.cast_signed())
        .bind(deleted.orders.cast_signed())
        .run()
        .await?;
    }
    tx.commit().await?;
    Ok(Erased { profiles: ids, identifiers: forgotten, events: deleted.events, orders: deleted.orders })
}

/// Claims identifiers under nobody's name, who is returned. A transaction that claims one of them just now is waited for, and its
/// profile is found; one that claims it later waits for this one, and sees what is suppressed.
async fn claim(tx: &mut BrandTx, identifiers: &[Identifier]) -> Result<ProfileId, StoreError> {
    let nobody = ProfileId(tx.id());
    let brand = tx.brand();
    let mut sorted = identifiers.to_vec();
    sorted.sort();
    let given = Given::of(&sorted)
        .column("kind", |identifier| identifier.kind.as_str())
        .column("value", |identifier| &identifier.value)
        .rows();
    tx.sql(
        "insert into identifiers (brand_id, kind, value, profile_id, origin)
        select $1, kind, value, $2, $2 from {given} order by place on conflict do nothing",
    )
    .bind(brand)
    .bind(nobody)
    .given(&given)
    .run()
    .await?;
    Ok(nobody)
}

/// The profiles that are asked for, what they were merged into, and everybody who was merged into these, sorted.
async fn tree(tx: &mut BrandTx, what: &Erasure, nobody: ProfileId) -> Result<Vec<ProfileId>, StoreError> {
    let brand = tx.brand();
    let given = Given::of(&what.identifiers)
        .column("kind", |identifier| identifier.kind.as_str())
        .column("value", |identifier| &identifier.value)
        .rows();
    let mut asked: Vec<ProfileId> = tx
        .sql(
            "select profile_id from {given} join identifiers as i
            on i.brand_id = $1 and i.kind = given.kind and i.value = given.value where i.profile_id <> $2",
        )
        .bind(brand)
        .bind(nobody)
        .given(&given)
        .scalars()
        .await?;
    asked.extend(&what.profiles);
    tx.sql(
        "with recursive up as (
            select id, merged_into from profiles where id = any($2) and brand_id = $1
            union select p.id, p.merged_into from profiles p join up on p.id = up.merged_into and p.brand_id = $1
        ), tree as (
            select id from up
            union select p.id from profiles p join tree on p.merged_into = tree.id and p.brand_id = $1
        )
        select id from tree order by id",
    )
    .bind(brand)
    .list(asked)
    .scalars()
    .await
}

async fn has_any(tx: &mut Tx, ids: &[ProfileId]) -> Result<bool, StoreError> {
    let any = "select exists (select 1 from events where profile_id = any($1))
        or exists (select 1 from orders where profile_id = any($1))";
    let (any,) = tx.sql(any).list(ids.iter().copied()).one().await?;
    Ok(any)
}

async fn suppress(
    tx: &mut BrandTx,
    identifiers: &[Identifier],
    at: Timestamp,
    key: &SuppressionKey,
) -> Result<(), StoreError> {
    let brand = tx.brand();
    let given = Given::of(identifiers)
        .column("hash", |identifier| key.hash(brand, identifier).to_vec())
        .column("kind", |identifier| identifier.kind.as_str())
        .rows();
    tx.sql(
        "insert into suppressed (brand_id, hash, kind, at, keyed)
        select $1, hash, kind, $2, true from {given} where true on conflict do nothing",
    )
    .bind(brand)
    .bind(at)
    .given(&given)
    .run()
    .await?;
    Ok(())
}

/// Records of merges that were undone belong to none of the profiles any more, and may name their identifiers.
async fn forget_undone_merges(tx: &mut BrandTx, forgotten: &[Identifier]) -> Result<(), StoreError> {
    let brand = tx.brand();
    let given = Given::of(forgotten)
        .column("kind", |identifier| identifier.kind.as_str())
        .column("value", |identifier| &identifier.value)
        .rows();
    tx.sql(
        "delete from merges where brand_id = $1 and undone_at is not null and exists (
            select 1 from json_array_elements(merges.identifiers) as held join {given}
            on held.value ->> 'kind' = given.kind and held.value ->> 'value' = given.value)",
    )
    .bind(brand)
    .given(&given)
    .run()
    .await?;
    Ok(())
}

/// Deletes what is left of a shop, at most `limit` rows a table, and commits. Returns how many.
pub(super) async fn erase_shop(
    mut tx: BrandTx,
    shop: &str,
    limit: i64,
    request: Uuid,
) -> Result<u64, StoreError> {
    let brand = tx.brand();
    let mut deleted = 0;
    for statement in [
        "delete from events where (brand_id, message_id) in (
            select brand_id, message_id from events where brand_id = $1 and shop = $2 and profile_id is null limit $3)",
        "delete from orders where (brand_id, shop, id) in (
            select brand_id, shop, id from orders where brand_id = $1 and shop = $2 and profile_id is null limit $3)",
        "delete from products where (brand_id, shop, id) in (
            select brand_id, shop, id from products where brand_id = $1 and shop = $2 limit $3)",
    ] {
        deleted += tx.sql(statement).bind(brand).bind(shop).bind(limit).run().await?;
    }
    tx.sql("update privacy_requests set other_rows = other_rows + $2 where id = $1")
        .bind(request)
        .bind(deleted.cast_signed())
        .run()
        .await?;
    tx.commit().await?;
    Ok(deleted)
}
