//! Whose an identifier is.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::statement::{Given, GivenOf};
use super::store::SqlStoreTx;
use crate::domain::event::Source;
use crate::domain::identity::{Counts, Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::store::{BrandIdentifier, Claim, IdentifiersTx, Owned, StoreError};

#[derive(FromRow)]
struct IdentifierRow {
    brand_id: BrandId,
    kind: String,
    value: String,
}

impl IdentifierRow {
    fn read(self) -> Result<BrandIdentifier, StoreError> {
        let kind = IdentifierKind::parse(&self.kind).ok_or_else(|| {
            StoreError::Invalid(format!("an identifier of the unknown kind {:?} in the store", self.kind))
        })?;
        Ok(BrandIdentifier::new(self.brand_id, Identifier { kind, value: self.value }))
    }
}

#[derive(FromRow)]
struct OwnerRow {
    #[sqlx(flatten)]
    identifier: IdentifierRow,
    profile_id: ProfileId,
    source: i16,
}

/// Identifiers as rows: brand, kind, value.
fn given<'v, T>(items: &'v [T], identifier: impl Fn(&'v T) -> &'v BrandIdentifier) -> GivenOf<'v, T> {
    Given::of(items)
        .column("brand", |item| identifier(item).brand)
        .column("kind", |item| identifier(item).identifier.kind.as_str())
        .column("value", |item| &identifier(item).identifier.value)
}

/// Where an identifier is one of those that are given.
const IS_GIVEN: &str = "identifiers.brand_id = given.brand and identifiers.kind = given.kind and identifiers.value = given.value";

#[async_trait]
impl IdentifiersTx for SqlStoreTx {
    async fn owners(&mut self, identifiers: &[BrandIdentifier]) -> Result<Vec<Owned>, StoreError> {
        let asked = given(identifiers, |identifier| identifier).rows();
        let owners = format!(
            "select identifiers.brand_id, identifiers.kind, identifiers.value, profile_id, source
            from {{given}} join identifiers on {IS_GIVEN}"
        );
        let rows: Vec<OwnerRow> = self.tx.sql(owners).given(&asked).all().await?;
        rows.into_iter()
            .map(|row| {
                let source = Source::from_code(Some(row.source), "");
                Ok(Owned { identifier: row.identifier.read()?, profile: row.profile_id, source })
            })
            .collect()
    }

    async fn claim(&mut self, claims: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError> {
        let claimed = given(claims, |claim| &claim.identifier)
            .column("profile", |claim| claim.profile)
            .column("source", |claim| claim.source.code())
            .rows();
        // in the order given: two workers that want the same identifiers wait for each other in one order
        let rows: Vec<IdentifierRow> = self
            .tx
            .sql(
                "insert into identifiers (brand_id, kind, value, profile_id, origin, source)
                select brand, kind, value, profile, profile, source from {given} order by place
                on conflict do nothing returning brand_id, kind, value",
            )
            .given(&claimed)
            .all()
            .await?;
        rows.into_iter().map(IdentifierRow::read).collect()
    }

    async fn disown(&mut self, from: &[(BrandIdentifier, ProfileId)]) -> Result<(), StoreError> {
        let owned = given(from, |(identifier, _)| identifier).column("profile", |(_, id)| *id).rows();
        let gone = self
            .tx
            .sql(
                "delete from identifiers where source = 0 and (brand_id, kind, value, profile_id) in (
                    select given.brand, given.kind, given.value, given.profile from {given})",
            )
            .given(&owned)
            .run()
            .await?;
        match gone == from.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("an identifier was moved concurrently".into())),
        }
    }

    async fn raise(
        &mut self,
        raised: &[(BrandIdentifier, Source)],
    ) -> Result<Vec<BrandIdentifier>, StoreError> {
        let given =
            given(raised, |(identifier, _)| identifier).column("source", |(_, source)| source.code()).rows();
        // Two statements, by what was there before: an update returns what it has written.
        let raise = |before| {
            format!(
                "update identifiers set source = greatest(identifiers.source, given.source) from {{given}}
                where {IS_GIVEN} and identifiers.source {before}
                returning identifiers.brand_id, identifiers.kind, identifiers.value"
            )
        };
        self.tx.sql(raise("> 0")).given(&given).run().await?;
        let rows: Vec<IdentifierRow> = self.tx.sql(raise("= 0")).given(&given).all().await?;
        rows.into_iter().map(IdentifierRow::read).collect()
    }

    async fn trusted_counts(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Counts>, StoreError> {
        let rows: Vec<(ProfileId, String, i64)> = self
            .tx
            .sql(
                "select profile_id, kind, count(*) from identifiers where profile_id = any($1) and source > 0
                group by profile_id, kind",
            )
            .list(ids.iter().copied())
            .all()
            .await?;
        let mut counts: HashMap<ProfileId, Counts> = HashMap::new();
        for (id, kind, count) in rows {
            let Some(kind) = IdentifierKind::parse(&kind) else { continue };
            counts.entry(id).or_default().add_of(kind, u32::try_from(count).unwrap_or(u32::MAX));
        }
        Ok(counts)
    }

    async fn suppressed(
        &mut self,
        identifiers: &[BrandIdentifier],
    ) -> Result<HashSet<BrandIdentifier>, StoreError> {
        let hashed: Vec<_> = identifiers
            .iter()
            .map(|of| (of.brand, self.suppression.hash(of.brand, &of.identifier).to_vec()))
            .collect();
        let asked = Given::of(&hashed)
            .column("brand", |(brand, _)| *brand)
            .column("hash", |(_, hash)| hash.as_slice())
            .rows();
        let found: Vec<(BrandId, Vec<u8>)> = self
            .tx
            .sql(
                "select suppressed.brand_id, suppressed.hash from {given}
                join suppressed on suppressed.brand_id = given.brand and suppressed.hash = given.hash",
            )
            .given(&asked)
            .all()
            .await?;
        let found: HashSet<(BrandId, Vec<u8>)> = found.into_iter().collect();
        let known = identifiers.iter().zip(&hashed).filter(|(_, hash)| found.contains(hash));
        Ok(known.map(|(identifier, _)| identifier.clone()).collect())
    }
}
