//! The steps of a worker's transaction. What asks about many rows passes them as one JSON array; what adds many rows adds
//! a hundred at a time.

use std::collections::{BTreeSet, HashMap, HashSet};

use async_trait::async_trait;
use serde_json::json;
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, Transaction};
use uuid::Uuid;

use super::customers::{brand_order, profile, profile_id, retold, standing};
use super::db::{failed, pieces};
use super::outbox;
use super::privacy::add_note;
use crate::domain::event::{Event, ProductPart, Source};
use crate::domain::history::{Merge, Retold};
use crate::domain::identity::{Counts, Identifier, IdentifierKind, Standing};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::Timestamp;
use crate::domain::version::Version;
use crate::ports::outbox::Stage;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::{
    BodyRow, BrandIdentifier, BrandOrder, Claim, ConsentRow, EventRow, GivenBack, KnownEvents, MergeRow,
    Move, OrderColumns, OrderKey, PrivacyRow, ProductRow, Relation, RelationKind, StoreError, StoreTx,
    SuppressionKey,
};

/// The columns of an order, as [`brand_order`] reads them.
pub(super) const ORDER: &str = "brand_id, shop, id, profile_id, updated_at, message_id, name, ordered_at, cancelled_at, test, currency, total, \
    refunded, financial_status, fulfillment_status, items, version, gift_cards, presentment, refunds, fulfillments, deleted_at, erased, parts";

/// A transaction on SQLite. It is the only one that writes, so it never meets a conflict and locks nothing more.
pub struct SqliteTx {
    tx: Transaction<'static, Sqlite>,
    suppression: SuppressionKey,
}

impl SqliteTx {
    pub(super) fn new(tx: Transaction<'static, Sqlite>, suppression: SuppressionKey) -> Self {
        Self { tx, suppression }
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

    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError> {
        let asked: Vec<_> =
            rows.iter().map(|row| json!([row.brand.0, row.shop, hex::encode(row.digest)])).collect();
        let found: Vec<(i64, String)> = sqlx::query_as(
            "select asked.key, topic from json_each(?1) asked join webhook_bodies
            on brand_id = asked.value ->> 0 and shop = asked.value ->> 1 and digest = unhex(asked.value ->> 2)",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut topics = vec![Vec::new(); rows.len()];
        for (place, topic) in found {
            if let Some(of) = usize::try_from(place).ok().and_then(|place| topics.get_mut(place)) {
                of.push(topic);
            }
        }
        Ok(topics)
    }

    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError> {
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into webhook_bodies (brand_id, shop, digest, topic, message_id, at) ",
            );
            insert.push_values(piece, |mut values, row| {
                values
                    .push_bind(row.brand.0)
                    .push_bind(row.shop)
                    .push_bind(&row.digest[..])
                    .push_bind(row.topic)
                    .push_bind(row.message_id)
                    .push_bind(at.timestamp_millis());
            });
            insert.push(" on conflict do nothing");
            let done = insert.build().execute(&mut *self.tx).await.map_err(failed)?;
            if done.rows_affected() != piece.len() as u64 {
                return Err(StoreError::Conflict("another worker took the same body".into()));
            }
        }
        Ok(())
    }

    async fn owners(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId, Source)>, StoreError> {
        let asked: Vec<_> = identifiers.iter().map(|(b, i)| json!([b.0, i.kind.as_str(), i.value])).collect();
        let rows: Vec<(i64, String, String, String, i16)> = sqlx::query_as(
            "select brand_id, kind, identifiers.value, profile_id, source from json_each(?1) asked
            join identifiers on brand_id = asked.value ->> 0 and kind = asked.value ->> 1
                and identifiers.value = asked.value ->> 2",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.into_iter()
            .map(|(brand, kind, value, owner, source)| {
                let owner = profile_id(&owner).map_err(failed)?;
                Ok((identifier(brand, &kind, value)?, owner, Source::from_code(Some(source), "")))
            })
            .collect()
    }

    async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError> {
        let mut given = Vec::with_capacity(claims.len());
        for piece in pieces(claims) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into identifiers (brand_id, kind, value, profile_id, origin, source) ",
            );
            insert.push_values(piece, |mut row, claim| {
                let (brand, identifier) = &claim.identifier;
                row.push_bind(brand.0)
                    .push_bind(identifier.kind.as_str())
                    .push_bind(&identifier.value)
                    .push_bind(claim.profile.to_string())
                    .push_bind(claim.profile.to_string())
                    .push_bind(claim.source.code());
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

    async fn disown(&mut self, from: &[(BrandIdentifier, ProfileId)]) -> Result<(), StoreError> {
        let given: Vec<_> = from
            .iter()
            .map(|((brand, identifier), profile)| {
                json!([brand.0, identifier.kind.as_str(), identifier.value, profile])
            })
            .collect();
        let gone = sqlx::query(
            "delete from identifiers where source = 0 and (brand_id, kind, value, profile_id) in (
                select given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3 from json_each(?1) given)",
        )
        .bind(json!(given).to_string())
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
        let given: Vec<_> = raised
            .iter()
            .map(|((brand, identifier), source)| {
                json!([brand.0, identifier.kind.as_str(), identifier.value, source.code()])
            })
            .collect();
        let given = json!(given).to_string();
        // Two statements, by what was there before: an update tells what it has written.
        let [public, other] = ["= 0", "> 0"].map(|before| {
            AssertSqlSafe(format!(
                "update identifiers set source = max(source, given.value ->> 3) from json_each(?1) given
                where brand_id = given.value ->> 0 and kind = given.value ->> 1 and identifiers.value = given.value ->> 2
                    and source {before} returning brand_id, kind, identifiers.value"
            ))
        });
        sqlx::query(other).bind(&given).execute(&mut *self.tx).await.map_err(failed)?;
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as(public).bind(&given).fetch_all(&mut *self.tx).await.map_err(failed)?;
        rows.into_iter().map(|(brand, kind, value)| identifier(brand, &kind, value)).collect()
    }

    async fn trusted_counts(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Counts>, StoreError> {
        let rows: Vec<(String, String, u32)> = sqlx::query_as(
            "select profile_id, kind, count(*) from json_each(?1) asked join identifiers on profile_id = asked.value
            where source > 0 group by profile_id, kind",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let mut counts: HashMap<ProfileId, Counts> = HashMap::new();
        for (id, kind, count) in rows {
            let Some(kind) = IdentifierKind::parse(&kind) else { continue };
            counts.entry(profile_id(&id).map_err(failed)?).or_default().add_of(kind, count);
        }
        Ok(counts)
    }

    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        let rows = sqlx::query(
            "select profiles.id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts, merges, limited,
                related, known, trusted
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
                "insert into events (brand_id, message_id, profile_id, origin, kind, name, \"timestamp\", received_at, body,
                active, shop, order_id, source, told_at, sequence) ",
            );
            insert.push_values(piece, |mut row, EventRow { event, profile }| {
                row.push_bind(event.brand.0)
                    .push_bind(&event.message_id)
                    .push_bind(profile.map(|id| id.to_string()))
                    .push_bind(profile.map(|id| id.to_string()))
                    .push_bind(event.kind.as_str())
                    .push_bind(event.name.as_deref())
                    .push_bind(event.timestamp.timestamp_millis())
                    .push_bind(event.received_at.timestamp_millis())
                    .push_bind(&event.body)
                    .push_bind(event.active)
                    .push_bind(event.shop.as_deref())
                    .push_bind(event.order.as_ref().map(|order| order.id.as_str()))
                    .push_bind(event.source.code())
                    .push_bind(
                        Some(event.told_at.timestamp_millis()).filter(|_| event.told_at != event.timestamp),
                    )
                    .push_bind(Some(event.sequence).filter(|sequence| *sequence != 0));
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
                "insert into profiles (id, brand_id, first_seen, last_seen, events_count, traits, merged_into, counts,
                merges, limited, related, name, surname, known, trusted) ",
            );
            insert.push_values(piece, |mut row, p| {
                let (name, surname) = p.names().unzip();
                row.push_bind(p.id.to_string())
                    .push_bind(p.brand.0)
                    .push_bind(p.first_seen.map(|at| at.timestamp_millis()))
                    .push_bind(p.last_seen.map(|at| at.timestamp_millis()))
                    .push_bind(p.events_count)
                    .push_bind(json!(p.traits).to_string())
                    .push_bind(p.merged_into.map(|id| id.to_string()))
                    .push_bind(json!(p.standing.all.counts).to_string())
                    .push_bind(p.standing.all.merges)
                    .push_bind(p.standing.limited.as_deref())
                    .push_bind(p.standing.related)
                    .push_bind(name)
                    .push_bind(surname)
                    .push_bind(p.standing.known)
                    .push_bind(json!(p.standing.trusted).to_string());
            });
            insert.push(
                " on conflict (id) do update set first_seen = excluded.first_seen, last_seen = excluded.last_seen,
                events_count = excluded.events_count, traits = excluded.traits, counts = excluded.counts,
                merges = excluded.merges, limited = excluded.limited, related = excluded.related,
                known = excluded.known, trusted = excluded.trusted, revision = profiles.revision + 1",
            );
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        // SQLite rewrites the indices of every column that an update sets, also to what it was: these change seldom
        let indexed: Vec<_> = profiles
            .iter()
            .map(|p| {
                let (name, surname) = p.names().unzip();
                json!([p.id, p.merged_into, name, surname])
            })
            .collect();
        sqlx::query(
            "update profiles set merged_into = now.value ->> 1, name = now.value ->> 2, surname = now.value ->> 3
            from json_each(?1) now where profiles.id = now.value ->> 0 and (merged_into is not now.value ->> 1
                or name is not now.value ->> 2 or surname is not now.value ->> 3)",
        )
        .bind(json!(indexed).to_string())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn suppressed(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<HashSet<BrandIdentifier>, StoreError> {
        // In upper case, as SQLite's hex() writes it.
        let hash = |(brand, i): &BrandIdentifier| hex::encode_upper(self.suppression.hash(*brand, i));
        let hashes: Vec<String> = identifiers.iter().map(hash).collect();
        let asked: Vec<_> =
            identifiers.iter().zip(&hashes).map(|((brand, _), hash)| json!([brand.0, hash])).collect();
        let found: Vec<String> = sqlx::query_scalar(
            "select hex(hash) from json_each(?1) asked
            join suppressed on brand_id = asked.value ->> 0 and hash = unhex(asked.value ->> 1)",
        )
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let found: HashSet<String> = found.into_iter().collect();
        let known = identifiers.iter().zip(&hashes).filter(|(_, hash)| found.contains(*hash));
        Ok(known.map(|(identifier, _)| identifier.clone()).collect())
    }

    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError> {
        let rows = sqlx::query(
            "select id, counts, merges, limited, related, known, trusted from profiles where id in (select value from json_each(?1))",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| Ok((profile_id(row.try_get("id")?)?, standing(row)?)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(failed)
    }

    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "select a, b, kind from relations
            where a in (select value from json_each(?1)) or b in (select value from json_each(?1))",
        )
        .bind(json!(ids).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        let known = |(a, b, kind): (String, String, String)| {
            Some((ProfileId::parse(&a)?, ProfileId::parse(&b)?, RelationKind::parse(&kind)?))
        };
        Ok(rows.into_iter().filter_map(known).collect())
    }

    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError> {
        for piece in pieces(relations) {
            let mut insert =
                QueryBuilder::<Sqlite>::new("insert into relations (a, b, brand_id, kind, reason, at) ");
            insert.push_values(piece, |mut row, relation| {
                row.push_bind(relation.a.to_string())
                    .push_bind(relation.b.to_string())
                    .push_bind(relation.brand.0)
                    .push_bind(relation.kind.as_str())
                    .push_bind(&relation.reason)
                    .push_bind(relation.at.timestamp_millis());
            });
            insert.push(" on conflict do nothing");
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError> {
        let given: Vec<_> = merges
            .iter()
            .map(|m| {
                let at = m.at.timestamp_millis();
                json!([m.id, m.brand.0, m.moved.into, m.moved.from, at, m.message_id, m.state])
            })
            .collect();
        sqlx::query(
            "insert into merges (id, brand_id, survivor, loser, at, message_id, state, identifiers, orders)
            select given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3, given.value ->> 4,
                given.value ->> 5, given.value ->> 6,
                (select coalesce(json_group_array(json_object('kind', kind, 'value', value)), '[]') from (
                    select kind, i.value from identifiers i where profile_id = given.value ->> 3 order by kind, i.value)),
                (select coalesce(json_group_array(json_array(shop, id)), '[]') from (
                    select shop, o.id from orders o where profile_id = given.value ->> 3 order by shop, o.id))
            from json_each(?1) given",
        )
        .bind(json!(given).to_string())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError> {
        let moved: Vec<_> = moves.iter().map(|m| json!([m.from, m.into])).collect();
        let moved = json!(moved).to_string();
        let owned = [
            "update identifiers set profile_id = moved.value ->> 1,
                origin = iif(exists (select 1 from profiles where profiles.id = origin), origin, moved.value ->> 1)
                from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update events set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update orders set profile_id = moved.value ->> 1, version = version + 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update consents set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update automation_runs set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update automation_actions set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            "update segment_changes set profile_id = moved.value ->> 1 from json_each(?1) moved where profile_id = moved.value ->> 0",
            // who is one now comes into nothing that either belonged to; what they belong to is asked anew
            "insert into segment_members (brand_id, segment, profile_id, since_ms)
                select brand_id, segment, moved.value ->> 1, since_ms from json_each(?1) moved
                join segment_members on profile_id = moved.value ->> 0 where true on conflict do nothing",
            "delete from segment_members where profile_id in (select value ->> 0 from json_each(?1))",
            "delete from segment_checks where profile_id in (select value ->> 0 from json_each(?1))",
        ];
        // a relation follows its profile; one between two that are one now is over
        let relations = [
            "insert into relations (a, b, brand_id, kind, reason, at)
            select min(a, b), max(a, b), brand_id, kind, reason, at from (
                select coalesce(ma.value ->> 1, a) as a, coalesce(mb.value ->> 1, b) as b, brand_id, kind, reason, at
                from relations
                left join json_each(?1) ma on a = ma.value ->> 0
                left join json_each(?1) mb on b = mb.value ->> 0
                where ma.value is not null or mb.value is not null) moved
            where a <> b on conflict do nothing",
            "delete from relations where a in (select value ->> 0 from json_each(?1))
                or b in (select value ->> 0 from json_each(?1))",
        ];
        for statement in owned.iter().chain(relations.iter().filter(|_| related)) {
            sqlx::query(*statement).bind(&moved).execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError> {
        let asked: Vec<_> = keys.iter().map(|(brand, shop, id)| json!([brand.0, shop, id])).collect();
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select {ORDER} from (select value ->> 0 as b, value ->> 1 as s, value ->> 2 as i from json_each(?1)) asked
            cross join orders on brand_id = b and shop = s and orders.id = i"
        )))
        .bind(json!(asked).to_string())
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(brand_order).collect::<Result<_, _>>().map_err(failed)
    }

    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError> {
        let mut written = 0;
        for piece in pieces(rows) {
            let columns: Vec<OrderColumns<'_>> =
                piece.iter().map(|(_, order)| OrderColumns::of(order)).collect::<Result<_, _>>()?;
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into orders (brand_id, shop, id, profile_id, origin, updated_at, message_id, name, ordered_at,
                cancelled_at, test, currency, total, refunded, financial_status, fulfillment_status, items, version,
                counts, revenue, gift_cards, presentment, refunds, fulfillments, deleted_at, erased, parts) ",
            );
            insert.push_values(piece.iter().zip(&columns), |mut row, ((brand, record), columns)| {
                let order = record.order();
                let Version { at_ms: updated_ms, message_id, .. } = record.version();
                row.push_bind(brand.0)
                    .push_bind(&record.shop)
                    .push_bind(&record.id)
                    .push_bind(record.profile.map(|id| id.to_string()))
                    .push_bind(record.profile.map(|id| id.to_string()))
                    .push_bind(updated_ms)
                    .push_bind(message_id)
                    .push_bind(order.and_then(|o| o.name.as_deref()))
                    .push_bind(record.ordered_at().timestamp_millis())
                    .push_bind(order.and_then(|o| o.cancelled_at).map(|at| at.timestamp_millis()))
                    .push_bind(order.is_some_and(|o| o.test))
                    .push_bind(columns.currency)
                    .push_bind(columns.total.to_string())
                    .push_bind(record.refunded().to_string())
                    .push_bind(order.and_then(|o| o.financial_status.as_deref()))
                    .push_bind(order.and_then(|o| o.fulfillment_status.as_deref()))
                    .push_bind(&columns.items)
                    .push_bind(record.revision + 1)
                    .push_bind(record.counts())
                    .push_bind(record.revenue().to_string())
                    .push_bind(columns.gift_cards.to_string())
                    .push_bind(columns.presentment.as_deref())
                    .push_bind(&columns.refunds)
                    .push_bind(&columns.fulfillments)
                    .push_bind(record.deleted_at.map(|at| at.timestamp_millis()))
                    .push_bind(record.erased)
                    .push_bind(columns.parts.as_deref());
            });
            insert.push(
                " on conflict (brand_id, shop, id) do update set profile_id = excluded.profile_id,
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
            );
            written += insert.build().execute(&mut *self.tx).await.map_err(failed)?.rows_affected();
        }
        match written == rows.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("an order was written meanwhile".into())),
        }
    }

    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError> {
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into products (brand_id, shop, id, title, category, vendor, price, deleted_at, title_told,
                category_told, vendor_told, price_told) ",
            );
            insert.push_values(piece, |mut row, ProductRow { brand, shop, product }| {
                row.push_bind(brand.0)
                    .push_bind(*shop)
                    .push_bind(&product.id)
                    .push_bind(product.title.as_deref())
                    .push_bind(product.category.as_deref())
                    .push_bind(product.vendor.as_deref())
                    .push_bind(product.price.map(|price| price.to_string()))
                    .push_bind(product.deleted_at.map(|at| at.timestamp_millis()));
                for part in ProductPart::ALL {
                    row.push_bind(product.versions.sortable(part));
                }
            });
            insert.push(" on conflict (brand_id, shop, id) do update set ");
            for column in ["title", "category", "vendor", "price"] {
                insert.push(format!(
                    "{column} = iif(excluded.{column}_told > products.{column}_told, excluded.{column}, products.{column}),
                    {column}_told = max(excluded.{column}_told, products.{column}_told), "
                ));
            }
            insert.push(
                "deleted_at = coalesce(min(products.deleted_at, excluded.deleted_at), products.deleted_at, excluded.deleted_at)",
            );
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError> {
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into consents (brand_id, message_id, channel, profile_id, origin, state, level, at, address, source,
                sequence) ",
            );
            insert.push_values(
                piece,
                |mut row, ConsentRow { brand, message_id, profile, source, sequence, consent }| {
                    row.push_bind(brand.0)
                        .push_bind(*message_id)
                        .push_bind(consent.channel.as_str())
                        .push_bind(profile.to_string())
                        .push_bind(profile.to_string())
                        .push_bind(&consent.state)
                        .push_bind(consent.level.as_deref())
                        .push_bind(consent.at.timestamp_millis())
                        .push_bind(consent.address.as_deref())
                        .push_bind(source.code())
                        .push_bind(sequence);
                },
            );
            insert.push(" on conflict do nothing");
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn ask(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError> {
        for piece in pieces(rows) {
            let mut insert = QueryBuilder::<Sqlite>::new(
                "insert into privacy_requests (id, brand_id, message_id, kind, subject, source, created_at, due_at) ",
            );
            insert.push_values(piece, |mut row, asked| {
                row.push_bind(asked.id.to_string())
                    .push_bind(asked.brand.0)
                    .push_bind(&asked.message_id)
                    .push_bind(asked.kind)
                    .push_bind(&asked.subject)
                    .push_bind(&asked.source)
                    .push_bind(asked.at.timestamp_millis())
                    .push_bind(asked.due.map(|due| due.timestamp_millis()));
            });
            insert.push(" on conflict do nothing");
            insert.build().execute(&mut *self.tx).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError> {
        let given: Vec<_> = events.iter().map(|(brand, message)| json!([brand.0, message])).collect();
        sqlx::query(
            "update events set body = '{}' from json_each(?1) given
            where brand_id = given.value ->> 0 and message_id = given.value ->> 1",
        )
        .bind(json!(given).to_string())
        .execute(&mut *self.tx)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError> {
        sqlx::query("update merges set state = ?2, identifiers = ?3, orders = ?4 where id = ?1")
            .bind(merge.id.to_string())
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
                    select ?2 as id union select p.id from profiles p join tree on p.merged_into = tree.id)
                update {table} set profile_id = ?2{} where profile_id = ?1 and origin in (select id from tree){}",
                // whoever has read an order before must read it again
                if table == "orders" { ", version = version + 1" } else { "" },
                if table == "identifiers" { " returning kind, value" } else { "" }
            ))
        };
        let identifiers: Vec<(String, String)> = sqlx::query_as(back("identifiers"))
            .bind(from.to_string())
            .bind(to.to_string())
            .fetch_all(&mut *self.tx)
            .await
            .map_err(failed)?;
        let mut counts = [0; 3];
        for (count, table) in counts.iter_mut().zip(["events", "orders", "consents"]) {
            let done = sqlx::query(back(table))
                .bind(from.to_string())
                .bind(to.to_string())
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
        let (at, message) = after.map(|(at, message)| (at.timestamp_millis(), message.as_str())).unzip();
        let rows = sqlx::query(
            "select message_id, kind, name, \"timestamp\", body, active, source, received_at, told_at, sequence from events
            where profile_id = ?1 and (?2 is null or (\"timestamp\", message_id) > (?2, ?3))
            order by \"timestamp\", message_id limit ?4",
        )
        .bind(id.to_string())
        .bind(at)
        .bind(message)
        .bind(limit)
        .fetch_all(&mut *self.tx)
        .await
        .map_err(failed)?;
        rows.iter().map(retold).collect::<Result<_, _>>().map_err(failed)
    }

    async fn undo_merge(&mut self, id: Uuid, at: Timestamp) -> Result<(), StoreError> {
        let done = sqlx::query("update merges set undone_at = ?2 where id = ?1 and undone_at is null")
            .bind(id.to_string())
            .bind(at.timestamp_millis())
            .execute(&mut *self.tx)
            .await
            .map_err(failed)?;
        match done.rows_affected() {
            0 => Err(StoreError::Conflict("the merge is undone already".into())),
            _ => Ok(()),
        }
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

    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        add_note(&mut self.tx, entry).await
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
