//! Lists, timelines, the history of identity.

use async_trait::async_trait;
use serde_json::json;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use uuid::Uuid;

use super::customers::{profile, profile_id, stored_event};
use super::db::{Db, failed};
use crate::domain::customer360::StoredEvent;
use crate::domain::history::Merge;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::directory::{After, Directory, MAX_FOUND, MAX_HISTORY, Search, Sort};
use crate::ports::store::StoreError;

/// The last character there is: a text that begins with another sorts before that other followed by it.
const LAST: char = char::MAX;

/// The directory on SQLite.
pub struct SqliteDirectory {
    db: Db,
}

impl SqliteDirectory {
    /// The directory in an open file.
    pub fn new(db: Db) -> Self {
        Self { db }
    }
}

#[async_trait]
impl Directory for SqliteDirectory {
    async fn list(
        &self,
        brand: BrandId,
        search: Option<&Search>,
        sort: Sort,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Profile>, StoreError> {
        let mut list = QueryBuilder::<Sqlite>::new("");
        if let Some(search) = search {
            found(&mut list, brand, search);
        }
        list.push("select id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, merges, limited, related, known, trusted from profiles where brand_id = ");
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
                Sort::Newest => list.push(" and id < ").push_bind(after.id.to_string()),
                Sort::Oldest => list.push(" and id > ").push_bind(after.id.to_string()),
                Sort::LastSeen => list
                    .push(" and (last_seen, id) < (")
                    .push_bind(after.last_seen.map(|at| at.timestamp_millis()))
                    .push(", ")
                    .push_bind(after.id.to_string())
                    .push(")"),
                Sort::Name => list
                    .push(" and (name, id) > (")
                    .push_bind(after.name.as_deref())
                    .push(", ")
                    .push_bind(after.id.to_string())
                    .push(")"),
            };
        }
        list.push(match sort {
            Sort::Newest => " order by id desc limit ",
            Sort::Oldest => " order by id limit ",
            Sort::LastSeen => " order by last_seen desc, id desc limit ",
            Sort::Name => " order by name, id limit ",
        });
        let rows = list.push_bind(limit).build().fetch_all(&self.db.read).await.map_err(failed)?;
        rows.iter().map(profile).collect::<Result<_, _>>().map_err(failed)
    }

    async fn identifiers(
        &self,
        brand: BrandId,
        ids: &[ProfileId],
    ) -> Result<Vec<(ProfileId, Identifier)>, StoreError> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "select profile_id, kind, value from identifiers where profile_id in (select value from json_each(?1)) and brand_id = ?2
            order by profile_id, kind, value",
        )
        .bind(json!(ids).to_string())
        .bind(brand.0)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .filter_map(|(id, kind, value)| {
                let kind = IdentifierKind::parse(&kind)?;
                Some(profile_id(&id).map(|id| (id, Identifier { kind, value })))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn survivor(&self, brand: BrandId, id: ProfileId) -> Result<Option<ProfileId>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "with recursive trail as (
                select id, merged_into from profiles where id = ?1 and brand_id = ?2
                union all
                select p.id, p.merged_into from profiles p join trail t on p.id = t.merged_into and p.brand_id = ?2
            )
            select id from trail where merged_into is null",
        )
        .bind(id.to_string())
        .bind(brand.0)
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)?;
        found.map(|id| profile_id(&id)).transpose().map_err(failed)
    }

    async fn timeline(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let (at, message) = before.map(|(at, message)| (at.timestamp_millis(), message.as_str())).unzip();
        let rows = sqlx::query(
            "select message_id, kind, name, \"timestamp\", body, active, source, received_at from events
            where profile_id = ?1 and brand_id = ?2 and (?3 is null or (\"timestamp\", message_id) < (?3, ?4))
            order by \"timestamp\" desc, message_id desc limit ?5",
        )
        .bind(id.to_string())
        .bind(brand.0)
        .bind(at)
        .bind(message)
        .bind(limit)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(stored_event).collect::<Result<_, _>>().map_err(failed)
    }

    async fn merges(&self, brand: BrandId, id: ProfileId) -> Result<Vec<Merge>, StoreError> {
        let rows = sqlx::query(
            "with recursive tree as (
                select id from profiles where id = ?1 and brand_id = ?2
                union
                select p.id from profiles p join tree on p.merged_into = tree.id
            )
            select id, survivor, loser, at, message_id, state, identifiers, orders, undone_at
            from merges where brand_id = ?2 and (survivor in (select id from tree) or loser in (select id from tree))
            order by at desc, id desc limit ?3",
        )
        .bind(id.to_string())
        .bind(brand.0)
        .bind(MAX_HISTORY)
        .fetch_all(&self.db.read)
        .await
        .map_err(failed)?;
        rows.iter().map(merge).collect::<Result<_, _>>().map_err(failed)
    }

    async fn merge(&self, brand: BrandId, id: Uuid) -> Result<Option<Merge>, StoreError> {
        let row = sqlx::query(
            "select id, survivor, loser, at, message_id, state, identifiers, orders, undone_at
            from merges where id = ?1 and brand_id = ?2",
        )
        .bind(id.to_string())
        .bind(brand.0)
        .fetch_optional(&self.db.read)
        .await
        .map_err(failed)?;
        row.map(|row| merge(&row)).transpose().map_err(failed)
    }
}

/// The profiles that a search finds, each way by an index.
fn found(list: &mut QueryBuilder<Sqlite>, brand: BrandId, search: &Search) {
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
fn between(list: &mut QueryBuilder<Sqlite>, column: &str, prefix: &str) {
    list.push(format!(" and {column} >= ")).push_bind(prefix.to_owned());
    list.push(format!(" and {column} < ")).push_bind(format!("{prefix}{LAST}"));
    list.push(" limit ").push_bind(MAX_FOUND).push(") f");
}

fn merge(row: &SqliteRow) -> Result<Merge, sqlx::Error> {
    fn json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, sqlx::Error> {
        serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
    }
    Ok(Merge {
        id: uuid(row.try_get("id")?)?,
        survivor: profile_id(row.try_get("survivor")?)?,
        loser: profile_id(row.try_get("loser")?)?,
        at: from_ms(row.try_get("at")?),
        message_id: row.try_get("message_id")?,
        state: json(row.try_get("state")?)?,
        identifiers: json(row.try_get("identifiers")?)?,
        orders: json(row.try_get("orders")?)?,
        undone_at: row.try_get::<Option<i64>, _>("undone_at")?.map(from_ms),
    })
}

/// Reads an id.
pub(super) fn uuid(text: &str) -> Result<Uuid, sqlx::Error> {
    Uuid::try_parse(text).map_err(|error| sqlx::Error::Decode(error.into()))
}
