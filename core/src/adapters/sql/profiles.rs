//! Profiles.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use serde_json::json;
use sqlx_macros::FromRow;

use super::codec::{Count, Json, Time};
use super::database::Tx;
use super::read_as;
use super::statement::Given;
use super::store::SqlStoreTx;
use crate::domain::identity::{Counts, Standing, Tally};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::{Profile, Trait};
use crate::ports::store::{ProfilesTx, StoreError};

/// The columns of a profile, as it is read.
pub(super) const PROFILE: &str = "profiles.id, profiles.brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, \
    merges, limited, related, known, trusted";

#[derive(FromRow)]
pub(super) struct ProfileRow {
    id: ProfileId,
    brand_id: BrandId,
    first_seen: Option<Time>,
    last_seen: Option<Time>,
    events_count: i64,
    traits: Json<BTreeMap<String, Trait>>,
    merged_into: Option<ProfileId>,
    #[sqlx(flatten)]
    standing: Standing,
}

#[derive(FromRow)]
pub(super) struct StandingRow {
    counts: Json<Counts>,
    merges: Count,
    limited: Option<String>,
    related: bool,
    known: bool,
    trusted: Json<Tally>,
}

read_as!(Profile: ProfileRow, Standing: StandingRow);

impl From<ProfileRow> for Profile {
    fn from(row: ProfileRow) -> Self {
        Self {
            id: row.id,
            brand: row.brand_id,
            first_seen: row.first_seen.map(|at| at.0),
            last_seen: row.last_seen.map(|at| at.0),
            events_count: row.events_count,
            traits: row.traits.0,
            merged_into: row.merged_into,
            standing: row.standing,
        }
    }
}

impl From<StandingRow> for Standing {
    fn from(row: StandingRow) -> Self {
        Self {
            all: Tally { counts: row.counts.0, merges: row.merges.0 },
            trusted: row.trusted.0,
            limited: row.limited,
            related: row.related,
            known: row.known,
        }
    }
}

/// Where one of many profiles stands.
#[derive(FromRow)]
struct StandingOf {
    id: ProfileId,
    #[sqlx(flatten)]
    standing: Standing,
}

#[async_trait]
impl ProfilesTx for SqlStoreTx {
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        let locked = format!("select {PROFILE} from profiles where id = any($1) order by id for update");
        self.tx.sql(locked).list(ids.iter().copied()).all().await
    }

    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError> {
        let rows: Vec<_> = profiles.iter().map(|profile| (profile, profile.names().unzip())).collect();
        let given = Given::of(&rows)
            .column("id", |(p, _)| p.id)
            .column("brand", |(p, _)| p.brand)
            .column("first_seen", |(p, _)| p.first_seen)
            .column("last_seen", |(p, _)| p.last_seen)
            .column("events_count", |(p, _)| p.events_count)
            .column("traits", |(p, _)| json!(p.traits).to_string())
            .column("merged_into", |(p, _)| p.merged_into)
            .column("counts", |(p, _)| json!(p.standing.all.counts).to_string())
            .column("merges", |(p, _)| p.standing.all.merges)
            .column("limited", |(p, _)| p.standing.limited.as_deref())
            .column("related", |(p, _)| p.standing.related)
            .column("name", |(_, (name, _))| name.as_deref())
            .column("surname", |(_, (_, surname))| surname.as_deref())
            .column("known", |(p, _)| p.standing.known)
            .column("trusted", |(p, _)| json!(p.standing.trusted).to_string())
            .rows();
        // SQLite rewrites the indices of every column that an update sets, also to what it was. These change seldom.
        let indexed = match self.tx.is_postgres() {
            true => "merged_into = excluded.merged_into, name = excluded.name, surname = excluded.surname,",
            false => "",
        };
        let save = format!(
            "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, merges, limited,
                related, name, surname, known, trusted)
            select id, brand, first_seen, last_seen, events_count, traits::json, merged_into, counts, merges, limited, related,
                name, surname, known, trusted
            from {{given}} where true
            on conflict (id) do update set {indexed} first_seen = excluded.first_seen, last_seen = excluded.last_seen,
                events_count = excluded.events_count, traits = excluded.traits, counts = excluded.counts,
                merges = excluded.merges, limited = excluded.limited, related = excluded.related, known = excluded.known,
                trusted = excluded.trusted, revision = profiles.revision + 1"
        );
        self.tx.sql(save).given(&given).run().await?;
        if self.tx.is_postgres() {
            return Ok(());
        }
        save_indexed(&mut self.tx, &rows).await
    }

    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError> {
        let standings =
            "select id, counts, merges, limited, related, known, trusted from profiles where id = any($1)";
        let rows: Vec<StandingOf> = self.tx.sql(standings).list(ids.iter().copied()).all().await?;
        Ok(rows.into_iter().map(|row| (row.id, row.standing)).collect())
    }

    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError> {
        let stamped = self
            .tx
            .sql(
                "with next as (select coalesce($2, max(fence) + 1) as token from profiles where id = any($1))
                update profiles set fence = (select token from next)
                where id = any($1) and fence < (select token from next)",
            )
            .list(ids.iter().copied())
            .bind(token)
            .run()
            .await?;
        match stamped == ids.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Fenced(token.unwrap_or_default())),
        }
    }
}

/// First and last name, and last and first name, in lower case.
type Names = (Option<String>, Option<String>);

/// Writes the columns that indices are over, where they changed.
async fn save_indexed(tx: &mut Tx, rows: &[(&Profile, Names)]) -> Result<(), StoreError> {
    let given = Given::of(rows)
        .column("id", |(p, _)| p.id)
        .column("merged_into", |(p, _)| p.merged_into)
        .column("name", |(_, (name, _))| name.as_deref())
        .column("surname", |(_, (_, surname))| surname.as_deref())
        .rows();
    tx.sql(
        "update profiles set merged_into = given.merged_into, name = given.name, surname = given.surname
        from {given} where profiles.id = given.id and (profiles.merged_into is distinct from given.merged_into
            or profiles.name is distinct from given.name or profiles.surname is distinct from given.surname)",
    )
    .given(&given)
    .run()
    .await?;
    Ok(())
}
