//! Lists, timelines, the history of identity.

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Postgres, QueryBuilder, Row};
use uuid::Uuid;

use super::customers::{profile, stored_event};
use super::db::{begin_reading, failed};
use super::processing::uuids;
use crate::domain::customer360::StoredEvent;
use crate::domain::history::Merge;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;
use crate::ports::directory::{After, Directory, MAX_FOUND, MAX_HISTORY, Search, Sort};
use crate::ports::store::StoreError;

/// The last character there is: a text that begins with another sorts before that other followed by it.
const LAST: char = char::MAX;

/// The directory on PostgreSQL.
pub struct PgDirectory {
    pool: PgPool,
}

impl PgDirectory {
    /// The directory in an open pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[async_trait]
impl Directory for PgDirectory {
    async fn list(
        &self,
        brand: BrandId,
        search: Option<&Search>,
        sort: Sort,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Profile>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let mut list = QueryBuilder::<Postgres>::new("");
        if let Some(search) = search {
            found(&mut list, brand, search);
        }
        list.push("select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into, counts, merges, limited, related, known, trusted from profiles where brand_id = ");
        list.push_bind(brand.0).push(" and merged_into is null");
        if search.is_some() {
            list.push(" and id in (select id from found)");
        }
        if sort == Sort::Name {
            list.push(" and name is not null");
        }
        if sort == Sort::LastSeen {
            list.push(" and last_seen is not null");
        }
        if let Some(after) = after {
            match sort {
                Sort::Newest => list.push(" and id < ").push_bind(after.id.0),
                Sort::Oldest => list.push(" and id > ").push_bind(after.id.0),
                Sort::LastSeen => list
                    .push(" and (last_seen, id) < (")
                    .push_bind(after.last_seen)
                    .push(", ")
                    .push_bind(after.id.0)
                    .push(")"),
                Sort::Name => list
                    .push(" and (name, id) > (")
                    .push_bind(after.name.as_deref())
                    .push(", ")
                    .push_bind(after.id.0)
                    .push(")"),
            };
        }
        list.push(match sort {
            Sort::Newest => " order by id desc limit ",
            Sort::Oldest => " order by id limit ",
            Sort::LastSeen => " order by last_seen desc, id desc limit ",
            Sort::Name => " order by name, id limit ",
        });
        let rows = list.push_bind(limit).build().fetch_all(&mut *tx).await.map_err(failed)?;
        rows.iter().map(profile).collect()
    }

    async fn identifiers(
        &self,
        brand: BrandId,
        ids: &[ProfileId],
    ) -> Result<Vec<(ProfileId, Identifier)>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows: Vec<(Uuid, String, String)> = sqlx::query_as(
            "select profile_id, kind, value from identifiers where profile_id = any($1) and brand_id = $2
            order by profile_id, kind, value",
        )
        .bind(uuids(ids))
        .bind(brand.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        Ok(rows
            .into_iter()
            .filter_map(|(id, kind, value)| {
                let kind = IdentifierKind::parse(&kind)?;
                Some((ProfileId(id), Identifier { kind, value }))
            })
            .collect())
    }

    async fn survivor(&self, brand: BrandId, id: ProfileId) -> Result<Option<ProfileId>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let found: Option<Uuid> = sqlx::query_scalar(
            "with recursive trail as (
                select id, merged_into from profiles where id = $1 and brand_id = $2
                union all
                select p.id, p.merged_into from profiles p join trail t on p.id = t.merged_into and p.brand_id = $2
            )
            select id from trail where merged_into is null",
        )
        .bind(id.0)
        .bind(brand.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        Ok(found.map(ProfileId))
    }

    async fn timeline(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let (at, message) = before.map(|(at, message)| (*at, message.as_str())).unzip();
        let rows = sqlx::query(
            "select message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at from events
            where profile_id = $1 and brand_id = $2 and ($3::timestamptz is null or (\"timestamp\", message_id) < ($3, $4))
            order by \"timestamp\" desc, message_id desc limit $5",
        )
        .bind(id.0)
        .bind(brand.0)
        .bind(at)
        .bind(message)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
    }

    async fn merges(&self, brand: BrandId, id: ProfileId) -> Result<Vec<Merge>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let rows = sqlx::query(
            "with recursive tree as (
                select id from profiles where id = $1 and brand_id = $2
                union
                select p.id from profiles p join tree on p.merged_into = tree.id
            )
            select id, survivor, loser, at, message_id, state::text as state, identifiers::text as identifiers, orders::text as orders, undone_at
            from merges where brand_id = $2 and (survivor in (select id from tree) or loser in (select id from tree))
            order by at desc, id desc limit $3",
        )
        .bind(id.0)
        .bind(brand.0)
        .bind(MAX_HISTORY)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed)?;
        rows.iter().map(merge).collect::<Result<_, _>>().map_err(failed)
    }

    async fn merge(&self, brand: BrandId, id: Uuid) -> Result<Option<Merge>, StoreError> {
        let mut tx = begin_reading(&self.pool, brand).await?;
        let row = sqlx::query(
            "select id, survivor, loser, at, message_id, state::text as state, identifiers::text as identifiers, orders::text as orders, undone_at
            from merges where id = $1 and brand_id = $2",
        )
        .bind(id)
        .bind(brand.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        row.map(|row| merge(&row)).transpose().map_err(failed)
    }
}

/// The profiles that a search finds, each way by an index.
fn found(list: &mut QueryBuilder<Postgres>, brand: BrandId, search: &Search) {
    list.push("with found as (select id from profiles where false");
    for (kind, prefix) in [
        (IdentifierKind::Email, &search.identifier),
        (IdentifierKind::Phone, &search.identifier),
        (IdentifierKind::UserId, &search.user_id),
    ] {
        let Some(prefix) = prefix else { continue };
        list.push(" union select * from (select profile_id from identifiers where brand_id = ")
            .push_bind(brand.0);
        list.push(" and kind = ").push_bind(kind.as_str());
        between(list, "value", prefix);
    }
    if let Some(prefix) = &search.name {
        for column in ["name", "surname"] {
            list.push(" union select * from (select id from profiles where brand_id = ").push_bind(brand.0);
            between(list, column, prefix);
        }
    }
    for order in &search.orders {
        list.push(" union select * from (select profile_id from orders where brand_id = ").push_bind(brand.0);
        list.push(" and profile_id is not null and name = ").push_bind(order.clone());
        list.push(" limit ").push_bind(MAX_FOUND).push(") o");
    }
    list.push(") ");
}

/// Texts that begin with `prefix`.
fn between(list: &mut QueryBuilder<Postgres>, column: &str, prefix: &str) {
    list.push(format!(" and {column} >= ")).push_bind(prefix.to_owned());
    list.push(format!(" and {column} < ")).push_bind(format!("{prefix}{LAST}"));
    list.push(" limit ").push_bind(MAX_FOUND).push(") f");
}

fn merge(row: &PgRow) -> Result<Merge, sqlx::Error> {
    fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
        serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
    }
    Ok(Merge {
        id: row.try_get("id")?,
        survivor: ProfileId(row.try_get("survivor")?),
        loser: ProfileId(row.try_get("loser")?),
        at: row.try_get("at")?,
        message_id: row.try_get("message_id")?,
        state: json(row.try_get("state")?)?,
        identifiers: json(row.try_get("identifiers")?)?,
        orders: json(row.try_get("orders")?)?,
        undone_at: row.try_get("undone_at")?,
    })
}
