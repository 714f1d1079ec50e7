//! What expressions and templates see of customers.

use std::collections::{BTreeMap, HashMap};

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::ProfileEvent;
use super::automations::SqlAutomationsTx;
use super::customers::{CONSENT, totals};
use super::database::Tx;
use super::events::EVENT;
use super::profiles::PROFILE;
use super::statement::Given;
use crate::adapters::{postgres, sqlite};
use crate::domain::automation::facts::{CONSENTS_SEEN, Facts};
use crate::domain::customer360::{StoredConsent, StoredEvent};
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::profile::Profile;
use crate::domain::time::from_ms;
use crate::ports::automations::FactsTx;
use crate::ports::store::StoreError;

#[derive(FromRow)]
struct ProfileConsent {
    profile_id: ProfileId,
    #[sqlx(flatten)]
    consent: StoredConsent,
}

#[derive(FromRow)]
struct BrandEvent {
    brand_id: BrandId,
    #[sqlx(flatten)]
    event: StoredEvent,
}

#[async_trait]
impl FactsTx for SqlAutomationsTx {
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, ProfileId>, StoreError> {
        let lock = "select id, merged_into from profiles where id = any($1) order by id for no key update";
        let mut all: HashMap<ProfileId, ProfileId> = HashMap::new();
        let mut asked: BTreeMap<ProfileId, Vec<ProfileId>> = ids.iter().map(|id| (*id, vec![*id])).collect();
        // Who was merged leads to the survivor, which is locked as well.
        while !asked.is_empty() {
            let rows: Vec<(ProfileId, Option<ProfileId>)> =
                self.tx.sql(lock).list(asked.keys().copied()).all().await?;
            let mut further: BTreeMap<ProfileId, Vec<ProfileId>> = BTreeMap::new();
            for (id, merged_into) in rows {
                let Some(from) = asked.remove(&id) else { continue };
                match merged_into {
                    Some(into) => further.entry(into).or_default().extend(from),
                    None => all.extend(from.into_iter().map(|asked| (asked, id))),
                }
            }
            asked = further;
        }
        Ok(all)
    }

    async fn facts(
        &mut self,
        ids: &[ProfileId],
        events: bool,
    ) -> Result<HashMap<ProfileId, Facts>, StoreError> {
        let tx = &mut self.tx;
        let profiles = format!("select {PROFILE} from profiles where id = any($1)");
        let profiles: Vec<Profile> = tx.sql(profiles).list(ids.iter().copied()).all().await?;
        let mut all: HashMap<ProfileId, Facts> =
            profiles.into_iter().map(|profile| (profile.id, Facts::of(profile))).collect();
        add_identifiers(tx, ids, &mut all).await?;
        for (id, totals) in totals(tx, ids).await? {
            if let Some(facts) = all.get_mut(&id) {
                facts.totals = totals;
            }
        }
        add_consents(tx, ids, &mut all).await?;
        let segments = "select profile_id, segment, since_ms from segment_members where profile_id = any($1)";
        let segments: Vec<(ProfileId, String, i64)> =
            tx.sql(segments).list(ids.iter().copied()).all().await?;
        for (id, segment, since_ms) in segments {
            if let Some(facts) = all.get_mut(&id) {
                facts.segments.insert(segment, since_ms);
            }
        }
        if events {
            match tx.is_postgres() {
                true => postgres::hot::see_recent(tx, &mut all).await?,
                false => sqlite::hot::see_recent(tx, &mut all).await?,
            }
        }
        for facts in all.values_mut() {
            facts.identifiers.sort();
            facts.trusted.sort();
        }
        Ok(all)
    }

    async fn events(
        &mut self,
        ids: &[(BrandId, String)],
    ) -> Result<HashMap<(BrandId, String), StoredEvent>, StoreError> {
        let asked =
            Given::of(ids).column("brand", |(brand, _)| *brand).column("message", |(_, id)| id).rows();
        let events = format!(
            "select events.brand_id, {EVENT} from {{given}}
            join events on events.brand_id = given.brand and events.message_id = given.message"
        );
        let rows: Vec<BrandEvent> = self.tx.sql(events).given(&asked).all().await?;
        Ok(rows.into_iter().map(|row| ((row.brand_id, row.event.message_id.clone()), row.event)).collect())
    }

    async fn events_since(
        &mut self,
        of: &[(ProfileId, i64)],
        names: &[String],
    ) -> Result<HashMap<ProfileId, Vec<StoredEvent>>, StoreError> {
        let asked =
            Given::of(of).column("profile", |(id, _)| *id).column("since", |(_, ms)| from_ms(*ms)).rows();
        let events = format!(
            "select events.profile_id, {EVENT} from {{given}}
            join events on events.profile_id = given.profile and events.\"timestamp\" >= given.since
            where events.name = any($1) order by events.\"timestamp\", events.message_id"
        );
        let rows: Vec<ProfileEvent> = self.tx.sql(events).list(names).given(&asked).all().await?;
        let mut all: HashMap<ProfileId, Vec<StoredEvent>> = HashMap::new();
        for row in rows {
            all.entry(row.profile_id).or_default().push(row.event);
        }
        Ok(all)
    }
}

async fn add_identifiers(
    tx: &mut Tx,
    ids: &[ProfileId],
    all: &mut HashMap<ProfileId, Facts>,
) -> Result<(), StoreError> {
    let identifiers =
        "select profile_id, kind, value, source > 0 from identifiers where profile_id = any($1)";
    let rows: Vec<(ProfileId, String, String, bool)> =
        tx.sql(identifiers).list(ids.iter().copied()).all().await?;
    for (id, kind, value, trusted) in rows {
        if let (Some(facts), Some(kind)) = (all.get_mut(&id), IdentifierKind::parse(&kind)) {
            facts.own(Identifier { kind, value }, trusted);
        }
    }
    Ok(())
}

/// The newest statement of each channel and address, by trusted sources and by others; of each customer at most [`CONSENTS_SEEN`].
async fn add_consents(
    tx: &mut Tx,
    ids: &[ProfileId],
    all: &mut HashMap<ProfileId, Facts>,
) -> Result<(), StoreError> {
    let consents = format!(
        "select * from (
            select newest.*, row_number() over (
                partition by profile_id order by source > 0 desc, at desc, sequence desc, message_id desc) as rank
            from (
                select profile_id, {CONSENT}, row_number() over (
                    partition by profile_id, channel, address, source > 0
                    order by at desc, sequence desc, message_id desc) as age
                from consents where profile_id = any($1)) as newest
            where age = 1) as seen
        where rank <= $2 order by profile_id, rank"
    );
    let rows: Vec<ProfileConsent> =
        tx.sql(consents).list(ids.iter().copied()).bind(CONSENTS_SEEN as i64).all().await?;
    for row in rows {
        if let Some(facts) = all.get_mut(&row.profile_id) {
            facts.consents.push(row.consent);
        }
    }
    Ok(())
}
