//! The steps of a worker's transaction: one statement each, over arrays.

use std::collections::{BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Postgres, Row, Transaction};
use uuid::Uuid;

use super::customers::{brand_order, profile, retold, standing};
use super::db::failed;
use super::outbox;
use super::privacy::add_note;
use crate::domain::event::{Event, ProductPart, Source};
use crate::domain::history::{Merge, Retold};
use crate::domain::identity::{Counts, Identifier, IdentifierKind, Standing};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::{Timestamp, from_ms};
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::{
    BodyRow, BrandIdentifier, BrandOrder, Claim, ConsentRow, EventRow, GivenBack, KnownEvents, MergeRow,
    Move, OrderColumns, OrderKey, PrivacyRow, ProductRow, Relation, RelationKind, StoreError, StoreTx,
    SuppressionKey,
};

/// The columns of an order, as [`brand_order`] reads them.
pub(super) const ORDER: &str = "brand_id, shop, id, profile_id, updated_at, message_id, name, ordered_at, cancelled_at, test, currency, total, \
    refunded, financial_status, fulfillment_status, items::text as items, version, gift_cards, presentment, refunds, \
    fulfillments, deleted_at, erased, parts";

/// A transaction on PostgreSQL, READ COMMITTED: each statement sees what others have committed before it.
pub struct PgTx {
    tx: Transaction<'static, Postgres>,
    suppression: SuppressionKey,
}

impl PgTx {
    pub(super) fn new(tx: Transaction<'static, Postgres>, suppression: SuppressionKey) -> Self {
        Self { tx, suppression }
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

    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError> {
        let (brands, shops, digests, _) = bodies(rows);
        // Whoever has the same body under another topic waits, and then sees this one: a row cannot be locked that is not there yet.
        sqlx::query(
            "select pg_advisory_xact_lock(body) from (
                select distinct hashtextextended(b || ' ' || s || ' ' || encode(d, 'hex'), 0) as body
                from unnest($1::bigint[], $2::text[], $3::bytea[]) as asked (b, s, d) order by body) as bodies",
        )
        .bind(&brands)
        .bind(&shops)
        .bind(&digests)
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        let found: Vec<(i64, String)> = sqlx::query_as(
            "select place, topic from unnest($1::bigint[], $2::text[], $3::bytea[]) with ordinality as asked (b, s, d, place)
            join webhook_bodies on brand_id = b and shop = s and digest = d",
        )
        .bind(brands)
        .bind(shops)
        .bind(digests)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut topics = vec![Vec::new(); rows.len()];
        for (place, topic) in found {
            if let Some(of) = usize::try_from(place - 1).ok().and_then(|place| topics.get_mut(place)) {
                of.push(topic);
            }
        }
        Ok(topics)
    }

    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError> {
        let (brands, shops, digests, topics) = bodies(rows);
        // in the order given: two workers that want the same bodies wait for each other in one order
        let done = sqlx::query(
            "insert into webhook_bodies (brand_id, shop, digest, topic, message_id, at)
            select b, s, d, t, m, $6 from unnest($1::bigint[], $2::text[], $3::bytea[], $4::text[], $5::text[])
                with ordinality as given (b, s, d, t, m, place) order by place
            on conflict do nothing",
        )
        .bind(brands)
        .bind(shops)
        .bind(digests)
        .bind(topics)
        .bind(rows.iter().map(|row| row.message_id).collect::<Vec<_>>())
        .bind(at)
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        match done.rows_affected() == rows.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("another worker took the same body".into())),
        }
    }

    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId, Source)>, StoreError> {
        let Columns { brands, kinds, values } = Columns::of(identifiers.iter());
        let rows: Vec<(i64, String, String, Uuid, i16)> = sqlx::query_as(
            "select brand_id, kind, value, profile_id, source from identifiers
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
            .map(|(brand, kind, value, owner, source)| {
                let source = Source::from_code(Some(source), "");
                Ok((identifier(brand, &kind, value)?, ProfileId(owner), source))
            })
            .collect()
    }

    async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError> {
        let Columns { brands, kinds, values } = Columns::of(claims.iter().map(|claim| &claim.identifier));
        let profiles: Vec<Uuid> = claims.iter().map(|claim| claim.profile.0).collect();
        // in the order given: two workers that want the same identifiers wait for each other in one order
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "insert into identifiers (brand_id, kind, value, profile_id, origin, source)
            select b, k, v, p, p, s from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::smallint[])
                with ordinality as claimed (b, k, v, p, s, place) order by place
            on conflict do nothing
            returning brand_id, kind, value",
        )
        .bind(brands)
        .bind(kinds)
        .bind(values)
        .bind(profiles)
        .bind(claims.iter().map(|claim| claim.source.code()).collect::<Vec<_>>())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter().map(|(brand, kind, value)| identifier(brand, &kind, value)).collect()
    }

    async fn disown(&mut self, from: &[(BrandIdentifier, ProfileId)]) -> Result<(), StoreError> {
        let Columns { brands, kinds, values } = Columns::of(from.iter().map(|(identifier, _)| identifier));
        let gone = sqlx::query(
            "delete from identifiers using unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[]) as given (b, k, v, p)
            where brand_id = b and kind = k and value = v and profile_id = p and source = 0",
        )
        .bind(brands)
        .bind(kinds)
        .bind(values)
        .bind(from.iter().map(|(_, profile)| profile.0).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        if gone.rows_affected() != from.len() as u64 {
            return Err(StoreError::Conflict("an identifier went elsewhere meanwhile".into()));
        }
        Ok(())
    }

    async fn raise(
        &mut self,
        raised: &[(BrandIdentifier, Source)],
    ) -> Result<Vec<BrandIdentifier>, StoreError> {
        let Columns { brands, kinds, values } = Columns::of(raised.iter().map(|(identifier, _)| identifier));
        // The answer sees what was there before the update.
        let rows: Vec<(i64, String, String)> = sqlx::query_as(
            "with given as (select * from unnest($1::bigint[], $2::text[], $3::text[], $4::smallint[]) as given (b, k, v, s)),
            raised as (update identifiers set source = greatest(source, s) from given
                where brand_id = b and kind = k and value = v)
            select b, k, v from given join identifiers on brand_id = b and kind = k and value = v where source = 0",
        )
        .bind(brands)
        .bind(kinds)
        .bind(values)
        .bind(raised.iter().map(|(_, source)| source.code()).collect::<Vec<_>>())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter().map(|(brand, kind, value)| identifier(brand, &kind, value)).collect()
    }

    async fn trusted_counts(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Counts>, StoreError> {
        let rows: Vec<(Uuid, String, i64)> = sqlx::query_as(
            "select profile_id, kind, count(*) from identifiers where profile_id = any($1) and source > 0
            group by profile_id, kind",
        )
        .bind(uuids(ids))
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut counts: HashMap<ProfileId, Counts> = HashMap::new();
        for (id, kind, count) in rows {
            let Some(kind) = IdentifierKind::parse(&kind) else { continue };
            counts.entry(ProfileId(id)).or_default().add_of(kind, u32::try_from(count).unwrap_or(u32::MAX));
        }
        Ok(counts)
    }

    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(
            "select id, brand_id, first_seen, last_seen, events_count, traits::text as traits, merged_into, counts, merges,
                limited, related, known, trusted
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
            "insert into events (brand_id, message_id, profile_id, origin, kind, name, \"timestamp\", received_at, body,
                active, shop, order_id, source, told_at, sequence)
            select b, m, p, p, k, n, t, r, body::json, a, s, o, source, told, sequence
            from unnest($1::bigint[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::timestamptz[],
                $7::timestamptz[], $8::text[], $9::boolean[], $10::text[], $11::text[], $12::smallint[],
                $13::timestamptz[], $14::bigint[])
                as given (b, m, p, k, n, t, r, body, a, s, o, source, told, sequence)
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
        .bind(events().map(|e| e.active).collect::<Vec<_>>())
        .bind(events().map(|e| e.shop.as_deref()).collect::<Vec<_>>())
        .bind(events().map(|e| e.order.as_ref().map(|order| order.id.as_str())).collect::<Vec<_>>())
        .bind(events().map(|e| e.source.code()).collect::<Vec<_>>())
        .bind(events().map(|e| Some(e.told_at).filter(|at| *at != e.timestamp)).collect::<Vec<_>>())
        .bind(events().map(|e| Some(e.sequence).filter(|sequence| *sequence != 0)).collect::<Vec<_>>())
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
        let names: Vec<Option<(String, String)>> = profiles.iter().map(Profile::names).collect();
        sqlx::query(
            "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, merges,
                limited, related, name, surname, known, trusted)
            select i, b, f, l, c, t::json, m, counts, merges, limited, related, name, surname, known, trusted
            from unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::text[],
                $7::uuid[], $8::text[], $9::integer[], $10::text[], $11::boolean[], $12::text[], $13::text[], $14::boolean[],
                $15::text[])
                as given (i, b, f, l, c, t, m, counts, merges, limited, related, name, surname, known, trusted)
            on conflict (id) do update set first_seen = excluded.first_seen, last_seen = excluded.last_seen,
                events_count = excluded.events_count, traits = excluded.traits, merged_into = excluded.merged_into,
                counts = excluded.counts, merges = excluded.merges, limited = excluded.limited,
                related = excluded.related, name = excluded.name, surname = excluded.surname,
                known = excluded.known, trusted = excluded.trusted, revision = profiles.revision + 1",
        )
        .bind(profiles.iter().map(|p| p.id.0).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.brand.0).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.first_seen).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.last_seen).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.events_count).collect::<Vec<_>>())
        .bind(traits)
        .bind(profiles.iter().map(|p| p.merged_into.map(|id| id.0)).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| serde_json::json!(p.standing.all.counts).to_string()).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| i32::try_from(p.standing.all.merges).unwrap_or(i32::MAX)).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.standing.limited.as_deref()).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.standing.related).collect::<Vec<_>>())
        .bind(names.iter().map(|n| n.as_ref().map(|n| n.0.as_str())).collect::<Vec<_>>())
        .bind(names.iter().map(|n| n.as_ref().map(|n| n.1.as_str())).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| p.standing.known).collect::<Vec<_>>())
        .bind(profiles.iter().map(|p| serde_json::json!(p.standing.trusted).to_string()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn suppressed(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<HashSet<BrandIdentifier>, StoreError> {
        let hashes: Vec<Vec<u8>> =
            identifiers.iter().map(|(brand, i)| self.suppression.hash(*brand, i).to_vec()).collect();
        let found: Vec<Vec<u8>> = sqlx::query_scalar(
            "select hash from suppressed join unnest($1::bigint[], $2::bytea[]) as asked (b, h) on brand_id = b and hash = h",
        )
        .bind(identifiers.iter().map(|(brand, _)| brand.0).collect::<Vec<_>>())
        .bind(&hashes)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let found: HashSet<Vec<u8>> = found.into_iter().collect();
        let known = identifiers.iter().zip(&hashes).filter(|(_, hash)| found.contains(*hash));
        Ok(known.map(|(identifier, _)| identifier.clone()).collect())
    }

    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError> {
        let rows = sqlx::query(
            "select id, counts, merges, limited, related, known, trusted from profiles where id = any($1)",
        )
        .bind(uuids(ids))
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| Ok((ProfileId(row.try_get("id")?), standing(row)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError> {
        let rows: Vec<(Uuid, Uuid, String)> =
            sqlx::query_as("select a, b, kind from relations where a = any($1) or b = any($1)")
                .bind(uuids(ids))
                .fetch_all(&mut *self.tx)
                .await
                .map_err(failed)?;
        let known = |(a, b, kind): (Uuid, Uuid, String)| {
            Some((ProfileId(a), ProfileId(b), RelationKind::parse(&kind)?))
        };
        Ok(rows.into_iter().filter_map(known).collect())
    }

    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into relations (a, b, brand_id, kind, reason, at)
            select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::timestamptz[])
            on conflict do nothing",
        )
        .bind(relations.iter().map(|r| r.a.0).collect::<Vec<_>>())
        .bind(relations.iter().map(|r| r.b.0).collect::<Vec<_>>())
        .bind(relations.iter().map(|r| r.brand.0).collect::<Vec<_>>())
        .bind(relations.iter().map(|r| r.kind.as_str()).collect::<Vec<_>>())
        .bind(relations.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>())
        .bind(relations.iter().map(|r| r.at).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into merges (id, brand_id, survivor, loser, at, message_id, state, identifiers, orders)
            select i, b, s, l, a, m, st::json,
                (select coalesce(json_agg(json_build_object('kind', kind, 'value', value) order by kind, value), '[]')
                    from identifiers where profile_id = l),
                (select coalesce(json_agg(json_build_array(shop, o.id) order by shop, o.id), '[]')
                    from orders o where profile_id = l)
            from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::timestamptz[], $6::text[], $7::text[])
                as given (i, b, s, l, a, m, st)",
        )
        .bind(merges.iter().map(|m| m.id).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.brand.0).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.moved.into.0).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.moved.from.0).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.at).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.message_id.as_str()).collect::<Vec<_>>())
        .bind(merges.iter().map(|m| m.state.as_str()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError> {
        let from: Vec<Uuid> = moves.iter().map(|m| m.from.0).collect();
        let into: Vec<Uuid> = moves.iter().map(|m| m.into.0).collect();
        let owned = [
            "update identifiers set profile_id = i,
                origin = case when exists (select 1 from profiles where id = origin) then origin else i end
                from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update events set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update orders set profile_id = i, version = version + 1 from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update consents set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update automation_runs set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update automation_actions set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            "update segment_changes set profile_id = i from unnest($1::uuid[], $2::uuid[]) as moved (f, i) where profile_id = f",
            // who is one now comes into nothing that either belonged to; what they belong to is asked anew
            "insert into segment_members (brand_id, segment, profile_id, since_ms)
                select brand_id, segment, i, since_ms from unnest($1::uuid[], $2::uuid[]) as moved (f, i)
                join segment_members on profile_id = f on conflict do nothing",
            "delete from segment_members where profile_id = any($1) and cardinality($2::uuid[]) > 0",
            "delete from segment_checks where profile_id = any($1) and cardinality($2::uuid[]) > 0",
        ];
        // a relation follows its profile; one between two that are one now is over
        let relations = [
            "insert into relations (a, b, brand_id, kind, reason, at)
            select least(a, b), greatest(a, b), brand_id, kind, reason, at from (
                select coalesce(ma.i, a) as a, coalesce(mb.i, b) as b, brand_id, kind, reason, at from relations
                left join unnest($1::uuid[], $2::uuid[]) as ma (f, i) on a = ma.f
                left join unnest($1::uuid[], $2::uuid[]) as mb (f, i) on b = mb.f
                where a = any($1) or b = any($1)) moved
            where a <> b on conflict do nothing",
            "delete from relations where (a = any($1) or b = any($1)) and cardinality($2::uuid[]) > 0",
        ];
        for statement in owned.iter().chain(relations.iter().filter(|_| related)) {
            sqlx::query(*statement).bind(&from).bind(&into).execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ORDER} from orders
            join unnest($1::bigint[], $2::text[], $3::text[]) as asked (b, s, i) on brand_id = b and shop = s and id = i"
        )))
        .bind(keys.iter().map(|key| key.0.0).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.1.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.2.as_str()).collect::<Vec<_>>())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(brand_order).collect::<Result<_, _>>().map_err(failed)
    }

    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError> {
        let written: Vec<OrderColumns<'_>> =
            rows.iter().map(|(_, order)| OrderColumns::of(order)).collect::<Result<_, _>>()?;
        let of = || rows.iter().map(|(_, order)| order);
        let states = || of().map(|order| order.order());
        let done = sqlx::query(
            "insert into orders (brand_id, shop, id, profile_id, origin, updated_at, message_id, name, ordered_at,
                cancelled_at, test, currency, total, refunded, financial_status, fulfillment_status, items, version,
                counts, revenue, gift_cards, presentment, refunds, fulfillments, deleted_at, erased, parts)
            select b, s, i, p, p, u, m, n, o, c, t, cur, tot, refd, fin, ful, items::json, v, cnt, rev, gc, pre, refs, fuls,
                del, era, parts
            from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::timestamptz[], $6::text[], $7::text[],
                $8::timestamptz[], $9::timestamptz[], $10::boolean[], $11::text[], $12::numeric[], $13::numeric[],
                $14::text[], $15::text[], $16::text[], $17::integer[], $18::boolean[], $19::numeric[], $20::numeric[],
                $21::text[], $22::text[], $23::text[], $24::timestamptz[],
                $25::boolean[], $26::text[]) as given (b, s, i, p, u, m, n, o, c, t, cur, tot, refd, fin, ful, items, v, cnt,
                rev, gc, pre, refs, fuls, del, era, parts)
            on conflict (brand_id, shop, id) do update set profile_id = excluded.profile_id,
                origin = case when orders.profile_id = excluded.profile_id then orders.origin else excluded.origin end,
                updated_at = excluded.updated_at, message_id = excluded.message_id, name = excluded.name,
                ordered_at = excluded.ordered_at, cancelled_at = excluded.cancelled_at, test = excluded.test,
                currency = excluded.currency, total = excluded.total, refunded = excluded.refunded,
                financial_status = excluded.financial_status, fulfillment_status = excluded.fulfillment_status,
                items = excluded.items, version = excluded.version, counts = excluded.counts,
                revenue = excluded.revenue, gift_cards = excluded.gift_cards, presentment = excluded.presentment,
                refunds = excluded.refunds, fulfillments = excluded.fulfillments, deleted_at = excluded.deleted_at,
                erased = excluded.erased, parts = excluded.parts
            where orders.version = excluded.version - 1",
        )
        .bind(rows.iter().map(|(brand, _)| brand.0).collect::<Vec<_>>())
        .bind(of().map(|o| o.shop.as_str()).collect::<Vec<_>>())
        .bind(of().map(|o| o.id.as_str()).collect::<Vec<_>>())
        .bind(of().map(|o| o.profile.map(|p| p.0)).collect::<Vec<_>>())
        .bind(of().map(|o| from_ms(o.version().at_ms)).collect::<Vec<_>>())
        .bind(of().map(|o| o.version().message_id).collect::<Vec<_>>())
        .bind(states().map(|o| o.and_then(|o| o.name.as_deref())).collect::<Vec<_>>())
        .bind(of().map(|o| o.ordered_at()).collect::<Vec<_>>())
        .bind(states().map(|o| o.and_then(|o| o.cancelled_at)).collect::<Vec<_>>())
        .bind(states().map(|o| o.is_some_and(|o| o.test)).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.currency).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.total).collect::<Vec<_>>())
        .bind(of().map(|o| o.refunded()).collect::<Vec<_>>())
        .bind(states().map(|o| o.and_then(|o| o.financial_status.as_deref())).collect::<Vec<_>>())
        .bind(states().map(|o| o.and_then(|o| o.fulfillment_status.as_deref())).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.items.as_str()).collect::<Vec<_>>())
        .bind(of().map(|o| o.revision + 1).collect::<Vec<_>>())
        .bind(of().map(|o| o.counts()).collect::<Vec<_>>())
        .bind(of().map(|o| o.revenue()).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.gift_cards).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.presentment.as_deref()).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.refunds.as_str()).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.fulfillments.as_str()).collect::<Vec<_>>())
        .bind(of().map(|o| o.deleted_at).collect::<Vec<_>>())
        .bind(of().map(|o| o.erased).collect::<Vec<_>>())
        .bind(written.iter().map(|w| w.parts.as_deref()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        // What was not written had been written meanwhile; the rows are locked now, so the next run sees them.
        match done.rows_affected() == rows.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("an order was written meanwhile".into())),
        }
    }

    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError> {
        let of = || rows.iter().map(|row| &row.product);
        let told = |part: ProductPart| of().map(|p| p.versions.sortable(part)).collect::<Vec<_>>();
        sqlx::query(
            "insert into products as p (brand_id, shop, id, title, category, vendor, price, deleted_at, title_told, category_told,
                vendor_told, price_told)
            select * from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::numeric[],
                $8::timestamptz[], $9::text[], $10::text[], $11::text[], $12::text[])
            on conflict (brand_id, shop, id) do update set
                title = case when excluded.title_told > p.title_told then excluded.title else p.title end,
                title_told = greatest(excluded.title_told, p.title_told),
                category = case when excluded.category_told > p.category_told then excluded.category else p.category end,
                category_told = greatest(excluded.category_told, p.category_told),
                vendor = case when excluded.vendor_told > p.vendor_told then excluded.vendor else p.vendor end,
                vendor_told = greatest(excluded.vendor_told, p.vendor_told),
                price = case when excluded.price_told > p.price_told then excluded.price else p.price end,
                price_told = greatest(excluded.price_told, p.price_told),
                deleted_at = least(p.deleted_at, excluded.deleted_at)",
        )
        .bind(rows.iter().map(|row| row.brand.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.shop).collect::<Vec<_>>())
        .bind(of().map(|p| p.id.as_str()).collect::<Vec<_>>())
        .bind(of().map(|p| p.title.as_deref()).collect::<Vec<_>>())
        .bind(of().map(|p| p.category.as_deref()).collect::<Vec<_>>())
        .bind(of().map(|p| p.vendor.as_deref()).collect::<Vec<_>>())
        .bind(of().map(|p| p.price).collect::<Vec<_>>())
        .bind(of().map(|p| p.deleted_at).collect::<Vec<_>>())
        .bind(told(ProductPart::Title))
        .bind(told(ProductPart::Category))
        .bind(told(ProductPart::Vendor))
        .bind(told(ProductPart::Price))
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError> {
        let of = || rows.iter().map(|row| row.consent);
        sqlx::query(
            "insert into consents (brand_id, message_id, channel, profile_id, origin, state, level, at, address, source, sequence)
            select b, m, c, p, p, s, l, a, d, o, q from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[], $5::text[],
                $6::text[], $7::timestamptz[], $8::text[], $9::smallint[], $10::bigint[])
                as given (b, m, c, p, s, l, a, d, o, q)
            on conflict do nothing",
        )
        .bind(rows.iter().map(|row| row.brand.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.message_id).collect::<Vec<_>>())
        .bind(of().map(|c| c.channel.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.profile.0).collect::<Vec<_>>())
        .bind(of().map(|c| c.state.as_str()).collect::<Vec<_>>())
        .bind(of().map(|c| c.level.as_deref()).collect::<Vec<_>>())
        .bind(of().map(|c| c.at).collect::<Vec<_>>())
        .bind(of().map(|c| c.address.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.source.code()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.sequence).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn ask(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError> {
        sqlx::query(
            "insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at, due_at)
            select * from unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[], $8::timestamptz[])
            on conflict do nothing",
        )
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.brand.0).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.message_id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.kind).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.subject.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.source.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.at).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.due).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError> {
        sqlx::query(
            "update events set body = '{}' from unnest($1::bigint[], $2::text[]) as given (b, m) where brand_id = b and message_id = m",
        )
        .bind(events.iter().map(|(brand, _)| brand.0).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError> {
        sqlx::query(
            "update merges set state = $2::json, identifiers = $3::json, orders = $4::json where id = $1",
        )
        .bind(merge.id)
        .bind(serde_json::json!(merge.state).to_string())
        .bind(serde_json::json!(merge.identifiers).to_string())
        .bind(serde_json::json!(merge.orders).to_string())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn give_back(&mut self, from: ProfileId, to: ProfileId) -> Result<GivenBack, StoreError> {
        // those who were merged into it before go along
        let back = |table: &str| {
            AssertSqlSafe(format!(
                "with recursive tree as (
                    select $2::uuid as id union select p.id from profiles p join tree on p.merged_into = tree.id)
                update {table} set profile_id = $2{} where profile_id = $1 and origin in (select id from tree){}",
                // whoever has read an order before must read it again
                if table == "orders" { ", version = version + 1" } else { "" },
                if table == "identifiers" { " returning kind, value" } else { "" }
            ))
        };
        let identifiers: Vec<(String, String)> = sqlx::query_as(back("identifiers"))
            .bind(from.0)
            .bind(to.0)
            .fetch_all(&mut *self.tx)
            .await
            .map_err(failed)?;
        let mut counts = [0; 3];
        for (count, table) in counts.iter_mut().zip(["events", "orders", "consents"]) {
            let done = sqlx::query(back(table))
                .bind(from.0)
                .bind(to.0)
                .execute(&mut *self.tx)
                .await
                .map_err(failed)?;
            *count = done.rows_affected();
        }
        Ok(GivenBack {
            identifiers: identifiers
                .into_iter()
                .filter_map(|(kind, value)| Some(Identifier { kind: IdentifierKind::parse(&kind)?, value }))
                .collect(),
            events: counts[0],
            orders: counts[1],
        })
    }

    async fn events_of(
        &mut self,
        id: ProfileId,
        after: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<Retold>, StoreError> {
        let (at, message) = after.map(|(at, message)| (*at, message.as_str())).unzip();
        let rows = sqlx::query(
            "select message_id, kind, name, \"timestamp\", body::text as body, active, source, received_at, told_at, sequence
            from events
            where profile_id = $1 and ($2::timestamptz is null or (\"timestamp\", message_id) > ($2, $3))
            order by \"timestamp\", message_id limit $4",
        )
        .bind(id.0)
        .bind(at)
        .bind(message)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(retold).collect::<Result<_, _>>().map_err(failed)
    }

    async fn undo_merge(&mut self, id: Uuid, at: Timestamp) -> Result<(), StoreError> {
        let done = sqlx::query("update merges set undone_at = $2 where id = $1 and undone_at is null")
            .bind(id)
            .bind(at)
            .execute(&mut *self.tx)
            .await
            .map_err(failed)?;
        match done.rows_affected() {
            0 => Err(StoreError::Conflict("the merge is undone already".into())),
            _ => Ok(()),
        }
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

    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        add_note(&mut self.tx, entry).await
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.tx.commit().await.map_err(failed)
    }
}

pub(super) fn uuids(ids: &[ProfileId]) -> Vec<Uuid> {
    ids.iter().map(|id| id.0).collect()
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

/// Brands, shops, digests, topics.
type BodyColumns<'r> = (Vec<i64>, Vec<&'r str>, Vec<&'r [u8]>, Vec<&'r str>);

/// The columns of bodies.
fn bodies<'r>(rows: &'r [BodyRow<'_>]) -> BodyColumns<'r> {
    (
        rows.iter().map(|row| row.brand.0).collect(),
        rows.iter().map(|row| row.shop).collect(),
        rows.iter().map(|row| &row.digest[..]).collect(),
        rows.iter().map(|row| row.topic).collect(),
    )
}
