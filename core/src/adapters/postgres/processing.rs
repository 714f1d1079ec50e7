//! The steps of a worker's transaction: one statement each, over arrays.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::customers::profile;
use super::db::failed;
use super::outbox;
use crate::domain::event::Event;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::ports::outbox::Stage;
use crate::ports::store::{BrandIdentifier, EventRow, KnownEvents, Move, OrderRow, StoreError, StoreTx};

/// A transaction on PostgreSQL, READ COMMITTED: each statement sees what others have committed before it.
pub struct PgTx {
    tx: Transaction<'static, Postgres>,
}

impl PgTx {
    pub(super) fn new(tx: Transaction<'static, Postgres>) -> Self {
        Self { tx }
    }
}

#[async_trait]
impl StoreTx for PgTx {
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError> {
        let brands: Vec<i64> = events.iter().map(|e| e.brand.0).collect();
        let messages: Vec<&str> = events.iter().map(|e| e.message_id.as_str()).collect();
        let rows: Vec<(i64, String, Option<Uuid>)> = sqlx::query_as(
            "select brand_id, message_id, profile_id from events
            join unnest($1::bigint[], $2::text[]) as asked (b, m) on brand_id = b and message_id = m",
        )
        .bind(brands)
        .bind(messages)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(rows
            .into_iter()
            .map(|(brand, message, profile)| ((BrandId(brand), message), profile.map(ProfileId)))
            .collect())
    }

    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId)>, StoreError> {
        let Columns { brands, kinds, values } = Columns::of(identifiers.iter());
        let rows: Vec<(i64, String, String, Uuid)> = sqlx::query_as(
            "select brand_id, kind, value, profile_id from identifiers
            join unnest($1::bigint[], $2::text[], $3::text[]) as asked (b, k, v)
            on brand_id = b and kind = k and value = v",
        )
        .bind(brands)
        .bind(kinds)
        .bind(values)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(brand, kind, value, owner)| Ok((identifier(brand, &kind, value)?, ProfileId(owner))))
            .collect()
    }

    async fn claim(
        &mut self,
        claims: &[(BrandIdentifier, ProfileId)],
    ) -> Result<Vec<BrandIdentifier>, StoreError> {
        let Columns { brands, kinds, values } = Columns::of(claims.iter().map(|(identifier, _)| identifier));
        let profiles: Vec<Uuid> = claims.iter().map(|(_, profile)| profile.0).collect();
        // in the order given: two workers that want the same identifiers wait for each other in one order
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "insert into identifiers (brand_id, kind, value, profile_id)
            select b, k, v, p from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[])
                with ordinality as claimed (b, k, v, p, place) order by place
            on conflict do nothing
            returning brand_id, kind, value",
        )
        .bind(brands)
        .bind(kinds)
        .bind(values)
        .bind(profiles)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter().map(|(brand, kind, value)| identifier(brand, &kind, value)).collect()
    }

    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(
            "select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into
            from profiles where id = any($1) order by id for update",
        )
        .bind(ids)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(profile).collect()
    }

    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<(BrandId, String)>, StoreError> {
        let events = || rows.iter().map(|row| row.event);
        let added: Vec<(i64, String)> = sqlx::query_as(
            "insert into events (brand_id, message_id, profile_id, kind, name, \"timestamp\", received_at, body)
            select b, m, p, k, n, t, r, body::json
            from unnest($1::bigint[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::timestamptz[],
                $7::timestamptz[], $8::text[]) as given (b, m, p, k, n, t, r, body)
            on conflict do nothing
            returning brand_id, message_id",
        )
        .bind(events().map(|e| e.brand.0).collect::<Vec<_>>())
        .bind(events().map(|e| e.message_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.profile.map(|p| p.0)).collect::<Vec<_>>())
        .bind(events().map(|e| e.kind.as_str()).collect::<Vec<_>>())
        .bind(events().map(|e| e.name.as_deref()).collect::<Vec<_>>())
        .bind(events().map(|e| e.timestamp).collect::<Vec<_>>())
        .bind(events().map(|e| e.received_at).collect::<Vec<_>>())
        .bind(events().map(|e| e.body.as_str()).collect::<Vec<_>>())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(added.into_iter().map(|(brand, message)| (BrandId(brand), message)).collect())
    }

    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError> {
        let traits: Vec<String> = profiles
            .iter()
            .map(|p| serde_json::to_string(&p.traits))
            .collect::<Result<_, _>>()
            .map_err(|error| StoreError::Invalid(format!("traits: {error}")))?;
        sqlx::query(
            "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, merged_into)
            select i, b, f, l, c, t::json, m
            from unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::text[],
                $7::uuid[]) as given (i, b, f, l, c, t, m)
            on conflict (id) do update set first_seen = excluded.first_seen, last_seen = excluded.last_seen,
                events_count = excluded.events_count, traits = excluded.traits, merged_into = excluded.merged_into",
        )
        .bind(profiles.iter().map(|p| p.id.0).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.brand.0).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.first_seen).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.last_seen).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.events_count).collect::<Vec<_>>())
        .bind(traits)
        .bind(profiles.iter().map(|p| p.merged_into.map(|id| id.0)).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn move_owned(&mut self, moves: &[Move]) -> Result<(), StoreError> {
        let from: Vec<Uuid> = moves.iter().map(|m| m.from.0).collect();
        let into: Vec<Uuid> = moves.iter().map(|m| m.into.0).collect();
        for statement in [
            "update identifiers set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update events set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update orders set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
        ] {
            sqlx::query(statement).bind(&from).bind(&into).execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn save_orders(&mut self, rows: &[OrderRow<'_>]) -> Result<(), StoreError> {
        let orders = || rows.iter().map(|row| row.order);
        let items: Vec<String> = orders()
            .map(|o| serde_json::to_string(&o.items))
            .collect::<Result<_, _>>()
            .map_err(|error| StoreError::Invalid(format!("order items: {error}")))?;
        sqlx::query(
            "insert into orders (brand_id, shop, id, profile_id, updated_at, message_id, name, ordered_at, cancelled_at,
                test, currency, total, refunded, financial_status, fulfillment_status, items)
            select b, s, i, p, u, m, n, o, c, t, cur, tot, ref, fin, ful, items::json
            from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::text[], $7::text[],
                $8::timestamptz[], $9::timestamptz[], $10::boolean[], $11::text[], $12::numeric[], $13::numeric[],
                $14::text[], $15::text[], $16::text[])
                as given (b, s, i, p, u, m, n, o, c, t, cur, tot, ref, fin, ful, items)
            on conflict (brand_id, shop, id) do update set profile_id = excluded.profile_id,
                updated_at = excluded.updated_at, message_id = excluded.message_id, name = excluded.name,
                ordered_at = excluded.ordered_at, cancelled_at = excluded.cancelled_at, test = excluded.test,
                currency = excluded.currency, total = excluded.total, refunded = excluded.refunded,
                financial_status = excluded.financial_status, fulfillment_status = excluded.fulfillment_status,
                items = excluded.items
            where (excluded.updated_at, excluded.message_id) > (orders.updated_at, orders.message_id)",
        )
        .bind(rows.iter().map(|row| row.brand.0).collect::<Vec<_>>())
        .bind(orders().map(|o| o.shop.as_str()).collect::<Vec<_>>())
        .bind(orders().map(|o| o.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.profile.map(|p| p.0)).collect::<Vec<_>>())
        .bind(orders().map(|o| o.updated_at).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.message_id).collect::<Vec<_>>())
        .bind(orders().map(|o| o.name.as_deref()).collect::<Vec<_>>())
        .bind(orders().map(|o| o.ordered_at).collect::<Vec<_>>())
        .bind(orders().map(|o| o.cancelled_at).collect::<Vec<_>>())
        .bind(orders().map(|o| o.test).collect::<Vec<_>>())
        .bind(orders().map(|o| o.currency.as_str()).collect::<Vec<_>>())
        .bind(orders().map(|o| o.total).collect::<Vec<_>>())
        .bind(orders().map(|o| o.refunded).collect::<Vec<_>>())
        .bind(orders().map(|o| o.financial_status.as_deref()).collect::<Vec<_>>())
        .bind(orders().map(|o| o.fulfillment_status.as_deref()).collect::<Vec<_>>())
        .bind(items)
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let stamped = sqlx::query(
            "with next as (select coalesce($2, max(fence) + 1) as token from profiles where id = any($1))
            update profiles set fence = next.token from next where id = any($1) and fence < next.token",
        )
        .bind(&ids)
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

/// Identifiers as columns, for unnest.
struct Columns<'a> {
    brands: Vec<i64>,
    kinds: Vec<&'a str>,
    values: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(identifiers: impl Iterator<Item = &'a BrandIdentifier> + Clone) -> Self {
        Self {
            brands: identifiers.clone().map(|(brand, _)| brand.0).collect(),
            kinds: identifiers.clone().map(|(_, identifier)| identifier.kind.as_str()).collect(),
            values: identifiers.map(|(_, identifier)| identifier.value.as_str()).collect(),
        }
    }
}

fn identifier(brand: i64, kind: &str, value: String) -> Result<BrandIdentifier, StoreError> {
    let kind = IdentifierKind::parse(kind).ok_or_else(|| {
        StoreError::Invalid(format!("an identifier of the unknown kind {kind:?} in the store"))
    })?;
    Ok((BrandId(brand), Identifier { kind, value }))
}
