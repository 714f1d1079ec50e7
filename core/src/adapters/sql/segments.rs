//! Segments, and who belongs to them.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx_macros::FromRow;
use uuid::Uuid;

use super::automations::{SqlAutomations, SqlAutomationsTx};
use super::codec::Id;
use super::read_as;
use super::statement::Given;
use crate::domain::automation::segment::{Change, SegmentRow};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::automations::{Check, Member, Segments, SegmentsTx};
use crate::ports::store::StoreError;

/// Before the id of every profile.
const FIRST: ProfileId = ProfileId(Uuid::nil());

#[derive(FromRow)]
struct StoredSegmentRow {
    brand_id: BrandId,
    name: String,
    expression: String,
    description: Option<String>,
    created_ms: i64,
    updated_ms: i64,
}

#[derive(FromRow)]
struct ChangeRow {
    id: Id,
    brand_id: BrandId,
    segment: String,
    profile_id: ProfileId,
    entered: bool,
    at_ms: i64,
}

read_as!(SegmentRow: StoredSegmentRow, Change: ChangeRow);

impl From<StoredSegmentRow> for SegmentRow {
    fn from(row: StoredSegmentRow) -> Self {
        Self {
            brand: row.brand_id,
            name: row.name,
            expression: row.expression,
            description: row.description,
            created_ms: row.created_ms,
            updated_ms: row.updated_ms,
        }
    }
}

impl From<ChangeRow> for Change {
    fn from(row: ChangeRow) -> Self {
        Self {
            id: row.id.0,
            brand: row.brand_id,
            segment: row.segment,
            profile: row.profile_id,
            entered: row.entered,
            at_ms: row.at_ms,
        }
    }
}

#[async_trait]
impl Segments for SqlAutomations {
    async fn segments(&self, brand: BrandId) -> Result<Vec<SegmentRow>, StoreError> {
        let segments = "select brand_id, name, expression, description, created_ms, updated_ms from segments
            where brand_id = $1 order by name";
        self.db.looking_at(brand).await?.sql(segments).bind(brand).all().await
    }

    async fn delete_segment(&self, brand: BrandId, name: &str) -> Result<bool, StoreError> {
        let mut tx = self.db.brand(brand).await?;
        for of_segment in [
            "delete from segment_members where brand_id = $1 and segment = $2",
            "delete from segment_changes where brand_id = $1 and segment = $2",
        ] {
            tx.sql(of_segment).bind(brand).bind(name).run().await?;
        }
        let delete = "delete from segments where brand_id = $1 and name = $2";
        let deleted = tx.sql(delete).bind(brand).bind(name).run().await?;
        tx.commit().await?;
        Ok(deleted > 0)
    }

    async fn members(
        &self,
        brand: BrandId,
        segment: &str,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<Member>, StoreError> {
        let members = "select profile_id, since_ms from segment_members
            where brand_id = $1 and segment = $2 and profile_id > $3 order by profile_id limit $4";
        let mut tx = self.db.looking_at(brand).await?;
        let rows: Vec<(ProfileId, i64)> =
            tx.sql(members).bind(brand).bind(segment).bind(after.unwrap_or(FIRST)).bind(limit).all().await?;
        Ok(rows.into_iter().map(|(profile, since_ms)| Member { profile, since_ms }).collect())
    }

    async fn member_counts(&self, brand: BrandId) -> Result<HashMap<String, i64>, StoreError> {
        let counts = "select segment, count(*) from segment_members where brand_id = $1 group by segment";
        let counts: Vec<(String, i64)> =
            self.db.looking_at(brand).await?.sql(counts).bind(brand).all().await?;
        Ok(counts.into_iter().collect())
    }

    async fn changes(
        &self,
        brand: BrandId,
        segment: Option<&str>,
        profile: Option<ProfileId>,
        before: Option<Uuid>,
        limit: i64,
    ) -> Result<Vec<Change>, StoreError> {
        let changes = "select id, brand_id, segment, profile_id, entered, at_ms from segment_changes where brand_id = $1";
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(changes)
            .bind(brand)
            .filter("segment = ", segment)
            .filter("profile_id = ", profile)
            .filter("id < ", before)
            .push(" order by id desc limit ")
            .push_bind(limit)
            .all()
            .await
    }

    async fn profiles(
        &self,
        brand: BrandId,
        after: Option<ProfileId>,
        limit: i64,
    ) -> Result<Vec<ProfileId>, StoreError> {
        let profiles = "select id from profiles
            where brand_id = $1 and merged_into is null and id > $2 order by id limit $3";
        let mut tx = self.db.looking_at(brand).await?;
        tx.sql(profiles).bind(brand).bind(after.unwrap_or(FIRST)).bind(limit).scalars().await
    }
}

#[async_trait]
impl SegmentsTx for SqlAutomationsTx {
    async fn take_unfilled(&mut self) -> Result<Vec<BrandId>, StoreError> {
        let take = "update brands set segments_filled = true where not segments_filled returning id";
        self.tx.sql(take).scalars().await
    }

    async fn change_members(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let given = Given::of(changes)
            .column("id", |change| change.id)
            .column("brand", |change| change.brand)
            .column("of_segment", |change| &change.segment)
            .column("profile", |change| change.profile)
            .column("enters", |change| change.entered)
            .column("changed_ms", |change| change.at_ms)
            .rows();
        for statement in [
            "insert into segment_changes (id, brand_id, segment, profile_id, entered, at_ms)
            select id, brand, of_segment, profile, enters, changed_ms from {given}",
            "insert into segment_members (brand_id, segment, profile_id, since_ms)
            select brand, of_segment, profile, changed_ms from {given} where enters on conflict do nothing",
            "delete from segment_members where (brand_id, segment, profile_id) in (
                select brand, of_segment, profile from {given} where not enters)",
            // Customer360 lists them: an answer from before is old
            "update profiles set revision = revision + 1 where id in (select profile from {given})",
        ] {
            self.tx.sql(statement).given(&given).run().await?;
        }
        Ok(())
    }

    async fn set_checks(&mut self, checks: &[Check]) -> Result<(), StoreError> {
        let (due, never): (Vec<&Check>, Vec<&Check>) =
            checks.iter().partition(|check| check.due_ms.is_some());
        let given = Given::of(&due)
            .column("profile", |check| check.profile)
            .column("brand", |check| check.brand)
            .column("due_ms", |check| check.due_ms)
            .rows();
        self.tx
            .sql(
                "insert into segment_checks (profile_id, brand_id, due_ms)
                select profile, brand, due_ms from {given} where true
                on conflict (profile_id) do update set due_ms = excluded.due_ms",
            )
            .given(&given)
            .run()
            .await?;
        if never.is_empty() {
            return Ok(());
        }
        let never = never.into_iter().map(|check| check.profile);
        self.tx.sql("delete from segment_checks where profile_id = any($1)").list(never).run().await?;
        Ok(())
    }

    async fn save_segment(&mut self, row: &SegmentRow) -> Result<(), StoreError> {
        self.tx
            .sql(
                "insert into segments (brand_id, name, expression, description, created_ms, updated_ms)
                values ($1, $2, $3, $4, $5, $6)
                on conflict (brand_id, name) do update set expression = excluded.expression,
                    description = excluded.description, updated_ms = excluded.updated_ms",
            )
            .bind(row.brand)
            .bind(&row.name)
            .bind(&row.expression)
            .bind(row.description.as_deref())
            .bind(row.created_ms)
            .bind(row.updated_ms)
            .run()
            .await?;
        Ok(())
    }

    async fn take_due_checks(
        &mut self,
        now_ms: i64,
        limit: i64,
    ) -> Result<Vec<(BrandId, ProfileId)>, StoreError> {
        let take = "delete from segment_checks where profile_id in (
                select profile_id from segment_checks where due_ms <= $1 order by due_ms limit $2 for update skip locked)
            returning brand_id, profile_id";
        self.tx.sql(take).bind(now_ms).bind(limit).all().await
    }
}
