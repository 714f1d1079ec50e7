//! Lists of customers, their timelines, the history of their identity.

use async_trait::async_trait;
use uuid::Uuid;

use super::customers;
use super::database::Database;
use super::events::EVENT;
use super::merges::MERGE;
use super::profiles::PROFILE;
use super::statement::Statement;
use crate::domain::customer360::{EventKey, StoredEvent};
use crate::domain::history::Merge;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::ports::customer_search::{After, CustomerSearch, MAX_FOUND, MAX_HISTORY, Search, Sort};
use crate::ports::store::StoreError;

/// The last character there is: a text that begins with another sorts before that other followed by it.
const LAST: char = char::MAX;

/// The directory of customers.
pub struct SqlCustomerSearch {
    db: Database,
}

impl SqlCustomerSearch {
    /// The directory in an open database.
    pub fn new(db: Database) -> Self {
        Self { db }
    }
}

#[async_trait]
impl CustomerSearch for SqlCustomerSearch {
    async fn list(
        &self,
        brand: BrandId,
        search: Option<&Search>,
        sort: Sort,
        after: Option<&After>,
        limit: i64,
    ) -> Result<Vec<Profile>, StoreError> {
        let mut tx = self.db.looking_at(brand).await?;
        let mut list = tx.sql("");
        if let Some(search) = search {
            list = found(list, brand, search);
        }
        list = list
            .push(&format!("select {PROFILE} from profiles where brand_id = "))
            .push_bind(brand)
            .push(" and merged_into is null");
        if search.is_some() {
            list = list.push(" and id in (select id from found)");
        }
        list = list.push(match sort {
            Sort::Name => " and name is not null",
            Sort::LastSeen => " and last_seen is not null",
            Sort::Newest | Sort::Oldest => "",
        });
        if let Some(After { id, last_seen, name }) = after {
            list = match sort {
                Sort::Newest => list.push(" and id < ").push_bind(*id),
                Sort::Oldest => list.push(" and id > ").push_bind(*id),
                Sort::LastSeen => list
                    .push(" and (last_seen, id) < (")
                    .push_bind(*last_seen)
                    .push(", ")
                    .push_bind(*id)
                    .push(")"),
                Sort::Name => list
                    .push(" and (name, id) > (")
                    .push_bind(name.as_deref())
                    .push(", ")
                    .push_bind(*id)
                    .push(")"),
            };
        }
        list.push(match sort {
            Sort::Newest => " order by id desc limit ",
            Sort::Oldest => " order by id limit ",
            Sort::LastSeen => " order by last_seen desc, id desc limit ",
            Sort::Name => " order by name, id limit ",
        })
        .push_bind(limit)
        .all()
        .await
    }

    async fn identifiers(
        &self,
        brand: BrandId,
        ids: &[ProfileId],
    ) -> Result<Vec<(ProfileId, Identifier)>, StoreError> {
        let identifiers =
            "select profile_id, kind, value from identifiers where profile_id = any($1) and brand_id = $2
            order by profile_id, kind, value";
        let mut tx = self.db.looking_at(brand).await?;
        let rows: Vec<(ProfileId, String, String)> =
            tx.sql(identifiers).list(ids.iter().copied()).bind(brand).all().await?;
        let known = |(id, kind, value): (_, String, _)| {
            Some((id, Identifier { kind: IdentifierKind::parse(&kind)?, value }))
        };
        Ok(rows.into_iter().filter_map(known).collect())
    }

    async fn survivor(&self, brand: BrandId, id: ProfileId) -> Result<Option<ProfileId>, StoreError> {
        let survivor = customers::survivor(&mut self.db.looking_at(brand).await?, id).await?;
        Ok(survivor.map(|profile| profile.id))
    }

    async fn timeline(
        &self,
        brand: BrandId,
        id: ProfileId,
        before: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(format!("select {EVENT} from events where profile_id = $1 and brand_id = $2"))
            .bind(id)
            .bind(brand)
            .filter_two("(\"timestamp\", message_id) < ", before.map(|key| (key.timestamp, &key.message_id)))
            .push(" order by \"timestamp\" desc, message_id desc limit ")
            .push_bind(limit)
            .all()
            .await
    }

    async fn merges(&self, brand: BrandId, id: ProfileId) -> Result<Vec<Merge>, StoreError> {
        let merges = format!(
            "with recursive tree as (
                select id from profiles where id = $1 and brand_id = $2
                union
                select p.id from profiles p join tree on p.merged_into = tree.id
            ), theirs as (
                select id from merges where survivor in (select id from tree)
                union
                select id from merges where loser in (select id from tree)
            )
            select {MERGE} from merges where brand_id = $2 and id in (select id from theirs)
            order by at desc, id desc limit $3"
        );
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(merges).bind(id).bind(brand).bind(MAX_HISTORY).all().await
    }

    async fn merge(&self, brand: BrandId, id: Uuid) -> Result<Option<Merge>, StoreError> {
        let merge = format!("select {MERGE} from merges where id = $1 and brand_id = $2");
        self.db.looking_at(brand).await?.sql(merge).bind(id).bind(brand).optional().await
    }
}

/// The profiles that a search finds, each way by an index.
fn found<'t, 'v>(list: Statement<'t, 'v>, brand: BrandId, search: &'v Search) -> Statement<'t, 'v> {
    let mut list = list.push("with found as (select null::uuid as id where false");
    for (kind, prefix) in [
        (IdentifierKind::Email, &search.identifier),
        (IdentifierKind::Phone, &search.identifier),
        (IdentifierKind::UserId, &search.user_id),
    ] {
        let Some(prefix) = prefix else { continue };
        list = list
            .push(" union select * from (select profile_id from identifiers where brand_id = ")
            .push_bind(brand)
            .push(" and kind = ")
            .push_bind(kind.as_str());
        list = between(list, "value", prefix);
    }
    if let Some(prefix) = &search.name {
        for column in ["name", "surname"] {
            list =
                list.push(" union select * from (select id from profiles where brand_id = ").push_bind(brand);
            list = between(list, column, prefix);
        }
    }
    for order in &search.orders {
        list = list
            .push(" union select * from (select profile_id from orders where brand_id = ")
            .push_bind(brand)
            .push(" and profile_id is not null and name = ")
            .push_bind(order)
            .push(" limit ")
            .push_bind(MAX_FOUND)
            .push(") o");
    }
    list.push(") ")
}

/// Texts that begin with `prefix`.
fn between<'t, 'v>(list: Statement<'t, 'v>, column: &str, prefix: &'v str) -> Statement<'t, 'v> {
    list.push(&format!(" and {column} >= "))
        .push_bind(prefix)
        .push(&format!(" and {column} < "))
        .push_bind(format!("{prefix}{LAST}"))
        .push(" limit ")
        .push_bind(MAX_FOUND)
        .push(") f")
}
