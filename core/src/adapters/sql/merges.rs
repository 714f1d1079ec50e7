//! What becomes of two profiles: merges, splits, relations.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde_json::{Value, json};
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::codec::{Id, Json, Time};
use super::statement::Given;
use super::store::SqlStoreTx;
use super::{owned, read_as};
use crate::domain::history::{Merge, Snapshot};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::ProfileId;
use crate::domain::time::Timestamp;
use crate::ports::store::{GivenBack, MergeRow, MergesTx, Move, Relation, RelationKind, StoreError};

/// The columns of a merge, as it is read.
pub(super) const MERGE: &str = "id, survivor, loser, at, message_id, state, identifiers, orders, undone_at";

#[derive(FromRow)]
pub(super) struct StoredMergeRow {
    id: Id,
    survivor: ProfileId,
    loser: ProfileId,
    at: Time,
    message_id: String,
    state: Json<Snapshot>,
    identifiers: Json<Vec<Identifier>>,
    orders: Json<Vec<(String, String)>>,
    undone_at: Option<Time>,
}

read_as!(Merge: StoredMergeRow);

impl From<StoredMergeRow> for Merge {
    fn from(row: StoredMergeRow) -> Self {
        Self {
            id: row.id.0,
            survivor: row.survivor,
            absorbed: row.loser,
            at: row.at.0,
            message_id: row.message_id,
            state: row.state.0,
            identifiers: row.identifiers.0,
            orders: row.orders.0,
            undone_at: row.undone_at.map(|at| at.0),
        }
    }
}

#[async_trait]
impl MergesTx for SqlStoreTx {
    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError> {
        let relations = "select a, b, kind from relations where a = any($1) or b = any($1)";
        let rows: Vec<(ProfileId, ProfileId, String)> =
            self.tx.sql(relations).list(ids.iter().copied()).all().await?;
        let known = |(a, b, kind): (_, _, String)| Some((a, b, RelationKind::parse(&kind)?));
        Ok(rows.into_iter().filter_map(known).collect())
    }

    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError> {
        let given = Given::of(relations)
            .column("a", |r| r.a)
            .column("b", |r| r.b)
            .column("brand", |r| r.brand)
            .column("kind", |r| r.kind.as_str())
            .column("reason", |r| &r.reason)
            .column("since", |r| r.at)
            .rows();
        self.tx
            .sql(
                "insert into relations (a, b, brand_id, kind, reason, at)
                select a, b, brand, kind, reason, since from {given} where true on conflict do nothing",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }

    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError> {
        let absorbed = || merges.iter().map(|merge| merge.moved.from);
        let identifiers: Vec<(ProfileId, String, String)> = self
            .tx
            .sql(
                "select profile_id, kind, value from identifiers where profile_id = any($1)
                order by kind, value",
            )
            .list(absorbed())
            .all()
            .await?;
        let orders: Vec<(ProfileId, String, String)> = self
            .tx
            .sql("select profile_id, shop, id from orders where profile_id = any($1) order by shop, id")
            .list(absorbed())
            .all()
            .await?;
        let mut moved: BTreeMap<ProfileId, (Vec<Value>, Vec<Value>)> = BTreeMap::new();
        for (id, kind, value) in identifiers {
            moved.entry(id).or_default().0.push(json!({"kind": kind, "value": value}));
        }
        for (id, shop, order) in orders {
            moved.entry(id).or_default().1.push(json!([shop, order]));
        }
        let of = |merge: &MergeRow| moved.get(&merge.moved.from).cloned().unwrap_or_default();
        let given = Given::of(merges)
            .column("id", |merge| merge.id)
            .column("brand", |merge| merge.brand)
            .column("survivor", |merge| merge.moved.into)
            .column("loser", |merge| merge.moved.from)
            .column("merged_at", |merge| merge.at)
            .column("message", |merge| &merge.message_id)
            .column("state", |merge| json!(merge.state).to_string())
            .column("identifiers", |merge| Value::from(of(merge).0).to_string())
            .column("orders", |merge| Value::from(of(merge).1).to_string())
            .rows();
        self.tx
            .sql(
                "insert into merges (id, brand_id, survivor, loser, at, message_id, state, identifiers, orders)
                select id, brand, survivor, loser, merged_at, message, state::json, identifiers::json, orders::json
                from {given}",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }

    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError> {
        owned::merge(&mut self.tx, moves, related).await
    }

    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError> {
        self.tx
            .sql(
                "update merges set state = $2::json, identifiers = $3::json, orders = $4::json where id = $1",
            )
            .bind(merge.id)
            .bind(json!(merge.state).to_string())
            .bind(json!(merge.identifiers).to_string())
            .bind(json!(merge.orders).to_string())
            .run()
            .await?;
        Ok(())
    }

    async fn give_back(&mut self, from: ProfileId, to: ProfileId) -> Result<GivenBack, StoreError> {
        let returned = owned::split(&mut self.tx, from, to).await?;
        let read =
            |(kind, value): (String, String)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value });
        Ok(GivenBack {
            identifiers: returned.identifiers.into_iter().filter_map(read).collect(),
            events: returned.events,
            orders: returned.orders,
        })
    }

    async fn undo_merge(&mut self, id: Uuid, at: Timestamp) -> Result<(), StoreError> {
        let undo = "update merges set undone_at = $2 where id = $1 and undone_at is null";
        match self.tx.sql(undo).bind(id).bind(at).run().await? {
            0 => Err(StoreError::Conflict("the merge is undone already".into())),
            _ => Ok(()),
        }
    }
}
