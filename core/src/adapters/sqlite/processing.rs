//! The steps of a worker's transaction. What asks about many rows passes them as one JSON array; what adds many rows adds
//! a hundred at a time.

use std::collections::HashSet;

use async_trait::async_trait;
use serde_json::json;
use sqlx::{QueryBuilder, Sqlite, Transaction};

use super::customers::{profile, profile_id};
use super::db::{failed, pieces};
use super::outbox;
use crate::domain::event::Event;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::ports::outbox::Stage;
use crate::ports::store::{BrandIdentifier, EventRow, KnownEvents, Move, OrderRow, StoreError, StoreTx};

/// A transaction on SQLite. It is the only one that writes, so it never meets a conflict and locks nothing more.
pub struct SqliteTx {
    tx: Transaction<'static, Sqlite>,
}

impl SqliteTx {
    pub(super) fn new(tx: Transaction<'static, Sqlite>) -> Self {
        Self { tx }
    }
}

#[async_trait]
impl StoreTx for SqliteTx {
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError> {
        let asked: Vec<_> = events.iter().map(|e| json!([e.brand.0, e.message_id])).collect();
        let rows: Vec<(i64, String, Option<String>)> = sqlx::query_as(
            "select brand_id, message_id, profile_id from json_each(?1) asked
            join events on brand_id = asked.value ->> 0 and message_id = asked.value ->> 1",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(brand, message, profile)| {
                let profile = profile.as_deref().map(profile_id).transpose().map_err(failed)?;
                Ok(((BrandId(brand), message), profile))
            })
            .collect()
    }

    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId)>, StoreError> {
        let asked: Vec<_> = identifiers.iter().map(|(b, i)| json!([b.0, i.kind.as_str(), i.value])).collect();
        let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
            "select brand_id, kind, identifiers.value, profile_id from json_each(?1) asked
            join identifiers on brand_id = asked.value ->> 0 and kind = asked.value ->> 1
                and identifiers.value = asked.value ->> 2",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(brand, kind, value, owner)| {
                Ok((identifier(brand, &kind, value)?, profile_id(&owner).map_err(failed)?))
            })
            .collect()
    }

    async fn claim(
        &mut self,
        claims: &[(BrandIdentifier, ProfileId)],
    ) -> Result<Vec<BrandIdentifier>, StoreError> {
        let mut given = Vec::with_capacity(claims.len());
        for piece in pieces(claims) {
            let mut insert =
                QueryBuilder::<Sqlite>::new("insert into identifiers (brand_id, kind, value, profile_id) ");
            insert.push_values(piece, |mut row, ((brand, identifier), profile)| {
                row.push_bind(brand.0)
                    .push_bind(identifier.kind.as_str())
                    .push_bind(&identifier.value)
                    .push_bind(profile.to_string());
            });
            insert.push(" on conflict do nothing returning brand_id, kind, value");
            let rows: Vec<(i64, String, String)> =
                insert.build_query_as().fetch_all(&mut *self.tx).await.map_err(failed)?;
            for (brand, kind, value) in rows {
                given.push(identifier(brand, &kind, value)?);
            }
        }
        Ok(given)
    }

    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        let rows = sqlx::query(
            "select profiles.id, brand_id, first_seen, last_seen, events_count, traits, merged_into
            from json_each(?1) asked join profiles on profiles.id = asked.value",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(profile).collect::<Result<_, _>>().map_err(failed)
    }

    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<(BrandId, String)>, StoreError> {
        let mut added = HashSet::with_capacity(rows.len());
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into events (brand_id, message_id, profile_id, kind, name, \"timestamp\", received_at, body) ",
            );
            insert.push_values(piece, |mut row, EventRow { event, profile }| {
                row.push_bind(event.brand.0)
                    .push_bind(&event.message_id)
                    .push_bind(profile.map(|id| id.to_string()))
                    .push_bind(event.kind.as_str())
                    .push_bind(event.name.as_deref())
                    .push_bind(event.timestamp.timestamp_millis())
                    .push_bind(event.received_at.timestamp_millis())
                    .push_bind(&event.body);
            });
            insert.push(" on conflict do nothing returning brand_id, message_id");
            let keys: Vec<(i64, String)> =
                insert.build_query_as().fetch_all(&mut *self.tx).await.map_err(failed)?;
            added.extend(keys.into_iter().map(|(brand, message)| (BrandId(brand), message)));
        }
        Ok(added)
    }

    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError> {
        for piece in pieces(profiles) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, merged_into) ",
            );
            insert.push_values(piece, |mut row, p| {
                row.push_bind(p.id.to_string())
                    .push_bind(p.brand.0)
                    .push_bind(p.first_seen.map(|at| at.timestamp_millis()))
                    .push_bind(p.last_seen.map(|at| at.timestamp_millis()))
                    .push_bind(p.events_count)
                    .push_bind(json!(p.traits).to_string())
                    .push_bind(p.merged_into.map(|id| id.to_string()));
            });
            insert.push(
                " on conflict (id) do update set first_seen = excluded.first_seen, last_seen = excluded.last_seen,
                events_count = excluded.events_count, traits = excluded.traits, merged_into = excluded.merged_into",
            );
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn move_owned(&mut self, moves: &[Move]) -> Result<(), StoreError> {
        let moved: Vec<_> = moves.iter().map(|m| json!([m.from, m.into])).collect();
        let moved = json!(moved).to_string();
        for statement in [
            "update identifiers set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update events set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update orders set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
        ] {
            sqlx::query(statement).bind(&moved).execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn save_orders(&mut self, rows: &[OrderRow<'_>]) -> Result<(), StoreError> {
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into orders (brand_id, shop, id, profile_id, updated_at, message_id, name, ordered_at,
                cancelled_at, test, currency, total, refunded, financial_status, fulfillment_status, items) ",
            );
            insert.push_values(piece, |mut row, OrderRow { brand, message_id, order, profile }| {
                row.push_bind(brand.0)
                    .push_bind(&order.shop)
                    .push_bind(&order.id)
                    .push_bind(profile.map(|id| id.to_string()))
                    .push_bind(order.updated_at.timestamp_millis())
                    .push_bind(*message_id)
                    .push_bind(order.name.as_deref())
                    .push_bind(order.ordered_at.timestamp_millis())
                    .push_bind(order.cancelled_at.map(|at| at.timestamp_millis()))
                    .push_bind(order.test)
                    .push_bind(&order.currency)
                    .push_bind(order.total.to_string())
                    .push_bind(order.refunded.to_string())
                    .push_bind(order.financial_status.as_deref())
                    .push_bind(order.fulfillment_status.as_deref())
                    .push_bind(json!(order.items).to_string());
            });
            insert.push(
                " on conflict (brand_id, shop, id) do update set profile_id = excluded.profile_id,
                updated_at = excluded.updated_at, message_id = excluded.message_id, name = excluded.name,
                ordered_at = excluded.ordered_at, cancelled_at = excluded.cancelled_at, test = excluded.test,
                currency = excluded.currency, total = excluded.total, refunded = excluded.refunded,
                financial_status = excluded.financial_status, fulfillment_status = excluded.fulfillment_status,
                items = excluded.items
                where (excluded.updated_at, excluded.message_id) > (orders.updated_at, orders.message_id)",
            );
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError> {
        let asked = json!(ids.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string();
        let stamped = sqlx::query(
            "with asked as (select value as id from json_each(?1)),
                next as (select coalesce(?2, max(fence) + 1) as token from profiles where id in (select id from asked))
            update profiles set fence = (select token from next)
            where id in (select id from asked) and fence < (select token from next)",
        )
        .bind(asked)
        .bind(token)
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        if stamped.rows_affected() == ids.len() as u64 {
            Ok(())
        } else {
            Err(StoreError::Fenced(token.unwrap_or_default()))
        }
    }

    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError> {
        outbox::insert(&mut self.tx, stages, now_ms).await.map(|_| ())
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.tx.commit().await.map_err(failed)
    }
}

fn identifier(brand: i64, kind: &str, value: String) -> Result<BrandIdentifier, StoreError> {
    let kind = IdentifierKind::parse(kind).ok_or_else(|| {
        StoreError::Invalid(format!("an identifier of the unknown kind {kind:?} in the store"))
    })?;
    Ok((BrandId(brand), Identifier { kind, value }))
}
