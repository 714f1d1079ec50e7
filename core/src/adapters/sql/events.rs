//! Events and webhooks' bodies that have taken effect.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::codec::{Text, Time};
use super::read_as;
use super::statement::{Given, GivenOf};
use super::store::SqlStoreTx;
use crate::adapters::postgres;
use crate::domain::customer360::{EventKey, StoredEvent};
use crate::domain::event::{Event, Source};
use crate::domain::history::Retold;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::store::{BodyRow, EventId, EventRow, EventsTx, KnownEvents, StoreError};

/// The columns of an event, as it is read.
pub(in crate::adapters) const EVENT: &str = "events.message_id, events.kind, events.name, events.\"timestamp\", events.body, events.active, \
    events.source, events.received_at";

#[derive(FromRow)]
pub(in crate::adapters) struct StoredEventRow {
    message_id: String,
    kind: String,
    name: Option<String>,
    timestamp: Time,
    body: Text,
    active: bool,
    source: Option<i16>,
    received_at: Time,
}

#[derive(FromRow)]
pub(in crate::adapters) struct RetoldRow {
    #[sqlx(flatten)]
    event: StoredEvent,
    told_at: Option<Time>,
    sequence: Option<i64>,
}

read_as!(StoredEvent: StoredEventRow, Retold: RetoldRow);

impl From<StoredEventRow> for StoredEvent {
    fn from(row: StoredEventRow) -> Self {
        Self {
            source: Source::from_code(row.source, &row.kind),
            message_id: row.message_id,
            kind: row.kind,
            name: row.name,
            timestamp: row.timestamp.0,
            body: row.body.0,
            active: row.active,
            received_at: row.received_at.0,
        }
    }
}

impl From<RetoldRow> for Retold {
    fn from(row: RetoldRow) -> Self {
        Self {
            told_at: row.told_at.map_or(row.event.timestamp, |at| at.0),
            sequence: row.sequence.unwrap_or_default(),
            event: row.event,
        }
    }
}

/// Webhooks' bodies as rows: brand, shop, digest.
fn bodies<'v>(rows: &'v [BodyRow<'v>]) -> GivenOf<'v, BodyRow<'v>> {
    Given::of(rows)
        .column("brand", |row| row.brand)
        .column("shop", |row| row.shop)
        .column("digest", |row| &row.digest[..])
}

#[async_trait]
impl EventsTx for SqlStoreTx {
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError> {
        let asked = Given::of(events)
            .column("brand", |event| event.brand)
            .column("message", |event| &event.message_id)
            .rows();
        let rows: Vec<(BrandId, String, Option<ProfileId>)> = self
            .tx
            .sql(
                "select brand_id, message_id, profile_id from {given}
                join events on brand_id = given.brand and message_id = given.message",
            )
            .given(&asked)
            .all()
            .await?;
        let known = |(brand, message_id, profile)| (EventId { brand, message_id }, profile);
        Ok(rows.into_iter().map(known).collect())
    }

    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError> {
        let asked = bodies(rows).rows();
        if self.tx.is_postgres() {
            postgres::hot::lock_bodies(&mut self.tx, &asked).await?;
        }
        let found: Vec<(i64, String)> = self
            .tx
            .sql(
                "select given.place, topic from {given} join webhook_bodies as b
                on b.brand_id = given.brand and b.shop = given.shop and b.digest = given.digest",
            )
            .given(&asked)
            .all()
            .await?;
        let mut topics = vec![Vec::new(); rows.len()];
        for (place, topic) in found {
            if let Some(of) = usize::try_from(place - 1).ok().and_then(|place| topics.get_mut(place)) {
                of.push(topic);
            }
        }
        Ok(topics)
    }

    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError> {
        let claimed =
            bodies(rows).column("topic", |row| row.topic).column("message", |row| row.message_id).rows();
        // in the order given: two workers that want the same bodies wait for each other in one order
        let done = self
            .tx
            .sql(
                "insert into webhook_bodies (brand_id, shop, digest, topic, message_id, at)
                select brand, shop, digest, topic, message, $1 from {given} order by place on conflict do nothing",
            )
            .bind(at)
            .given(&claimed)
            .run()
            .await?;
        match done == rows.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("another worker took the same body".into())),
        }
    }

    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<EventId>, StoreError> {
        let added = Given::of(rows)
            .column("brand", |row| row.event.brand)
            .column("message", |row| &row.event.message_id)
            .column("profile", |row| row.profile)
            .column("kind", |row| row.event.kind.as_str())
            .column("name", |row| row.event.name.as_deref())
            .column("happened", |row| row.event.timestamp)
            .column("received", |row| row.event.received_at)
            .column("body", |row| &row.event.body)
            .column("active", |row| row.event.active)
            .column("shop", |row| row.event.shop.as_deref())
            .column("order_id", |row| row.event.order.as_ref().map(|order| order.id.as_str()))
            .column("source", |row| row.event.source.code())
            .column("told", |row| Some(row.event.told_at).filter(|at| *at != row.event.timestamp))
            .column("sequence", |row| Some(row.event.sequence).filter(|sequence| *sequence != 0))
            .rows();
        let rows: Vec<(BrandId, String)> = self
            .tx
            .sql(
                "insert into events (brand_id, message_id, profile_id, origin, kind, name, \"timestamp\", received_at, body,
                    active, shop, order_id, source, told_at, sequence)
                select brand, message, profile, profile, kind, name, happened, received, body::json, active, shop, order_id,
                    source, told, sequence
                from {given} where true
                on conflict do nothing returning brand_id, message_id",
            )
            .given(&added)
            .all()
            .await?;
        Ok(rows.into_iter().map(|(brand, message_id)| EventId { brand, message_id }).collect())
    }

    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError> {
        let blanked = Given::of(events)
            .column("brand", |(brand, _)| *brand)
            .column("message", |(_, message)| message)
            .rows();
        self.tx
            .sql(
                "update events set body = '{}' from {given}
                where events.brand_id = given.brand and events.message_id = given.message",
            )
            .given(&blanked)
            .run()
            .await?;
        Ok(())
    }

    async fn events_of(
        &mut self,
        id: ProfileId,
        after: Option<&EventKey>,
        limit: i64,
    ) -> Result<Vec<Retold>, StoreError> {
        self.tx
            .sql(format!("select {EVENT}, told_at, sequence from events where profile_id = $1"))
            .bind(id)
            .filter_two("(\"timestamp\", message_id) > ", after.map(|key| (key.timestamp, &key.message_id)))
            .push(" order by \"timestamp\", message_id limit ")
            .push_bind(limit)
            .all()
            .await
    }
}
