//! Secrets of brands and of the system.

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::brands::{SqlBrands, note_and_commit};
use super::codec::Time;
use super::read_as;
use super::shops::SHOP;
use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::brands::{BrandSecrets, SecretPlace, Secrets, Shop, StoredSecret};
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;

/// The columns of a brand's secrets, as they are read.
const SECRETS: &str = "signing_secret, previous_signing_secret, previous_signing_until, link_secret, old_link_secret, old_link_until";
/// The row of the key of suppressions.
const SUPPRESSION: &str = "suppression";

#[derive(FromRow)]
struct SecretsRow {
    signing_secret: Option<String>,
    previous_signing_secret: Option<String>,
    previous_signing_until: Option<Time>,
    link_secret: Option<String>,
    old_link_secret: Option<String>,
    old_link_until: Option<Time>,
}

#[derive(FromRow)]
struct SecretsOf {
    id: BrandId,
    #[sqlx(flatten)]
    secrets: SecretsRow,
}

read_as!(BrandSecrets: SecretsRow);

impl From<SecretsRow> for BrandSecrets {
    fn from(row: SecretsRow) -> Self {
        let until = |at: Time| at.0;
        Self {
            signing: row.signing_secret.unwrap_or_default(),
            previous_signing: row.previous_signing_secret.zip(row.previous_signing_until.map(until)),
            link: row.link_secret.unwrap_or_default(),
            old_link: row.old_link_secret.zip(row.old_link_until.map(until)),
        }
    }
}

impl SecretsRow {
    /// The one that lies in that place.
    fn held(&self, place: &SecretPlace) -> Option<&String> {
        match place {
            SecretPlace::Signing { previous: false, .. } => self.signing_secret.as_ref(),
            SecretPlace::Signing { previous: true, .. } => self.previous_signing_secret.as_ref(),
            SecretPlace::Link { old: false, .. } => self.link_secret.as_ref(),
            SecretPlace::Link { old: true, .. } => self.old_link_secret.as_ref(),
            SecretPlace::Shop { .. } | SecretPlace::Suppression => None,
        }
    }
}

impl SqlBrands {
    async fn held_suppression_key(&self) -> Result<Option<String>, StoreError> {
        let key = "select secret from system_secrets where name = $1";
        self.db.looking().await?.sql(key).bind(SUPPRESSION).scalar().await
    }
}

#[async_trait]
impl Secrets for SqlBrands {
    async fn secrets(&self, brand: BrandId, fresh: &BrandSecrets) -> Result<BrandSecrets, StoreError> {
        let held = format!(
            "select {SECRETS} from brands where id = $1 and signing_secret is not null and link_secret is not null"
        );
        if let Some(secrets) = self.db.looking_at(brand).await?.sql(held).bind(brand).optional().await? {
            return Ok(secrets);
        }
        let mut tx = self.db.brand(brand).await?;
        let complete = format!(
            "update brands set signing_secret = coalesce(signing_secret, $2), link_secret = coalesce(link_secret, $3)
            where id = $1 returning {SECRETS}"
        );
        let secrets = tx.sql(complete).bind(brand).bind(&fresh.signing).bind(&fresh.link).optional().await?;
        tx.commit().await?;
        secrets.ok_or_else(|| StoreError::Invalid(format!("there is no brand {brand}")))
    }

    async fn rotate_signing(
        &self,
        brand: BrandId,
        fresh: &str,
        until: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let mut tx = self.db.brand(brand).await?;
        let rotate =
            "update brands set previous_signing_secret = signing_secret, previous_signing_until = $3,
            signing_secret = $2 where id = $1";
        tx.sql(rotate).bind(brand).bind(fresh).bind(until).run().await?;
        note_and_commit(tx, note).await
    }

    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError> {
        let add = "insert into system_secrets (name, secret) values ($1, $2) on conflict do nothing";
        self.db.writing().await?.sql(add).bind(SUPPRESSION).bind(fresh).run().await?;
        let held = self.held_suppression_key().await?;
        held.ok_or_else(|| StoreError::Invalid("the suppression key is not in the store".into()))
    }

    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError> {
        let mut found = Vec::new();
        let shops = format!("select {SHOP} from shops order by domain");
        let shops: Vec<Shop> = self.db.looking().await?.sql(shops).all().await?;
        for Shop { domain, brand, secret, previous_secret, .. } in shops {
            let place = |previous| SecretPlace::Shop { brand, domain: domain.clone(), previous };
            found.push(StoredSecret { place: place(false), held: secret });
            found.extend(previous_secret.map(|held| StoredSecret { place: place(true), held }));
        }
        let brands = format!("select id, {SECRETS} from brands order by id");
        let brands: Vec<SecretsOf> = self.db.looking().await?.sql(brands).all().await?;
        for SecretsOf { id, secrets } in brands {
            for place in SecretPlace::of_brand(id) {
                let held = secrets.held(&place).cloned();
                found.extend(held.map(|held| StoredSecret { place, held }));
            }
        }
        let key = self.held_suppression_key().await?;
        found.extend(key.map(|held| StoredSecret { place: SecretPlace::Suppression, held }));
        Ok(found)
    }

    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError> {
        let mut tx = self.db.every_brand().await?;
        for (StoredSecret { place, held }, fresh) in fresh {
            let (table, row, column) = place.columns();
            let replace =
                tx.sql(format!("update {table} set {column} = $3 where {row} = $1 and {column} = $2"));
            let replace = match place {
                SecretPlace::Shop { domain, .. } => replace.bind(domain),
                SecretPlace::Signing { brand, .. } | SecretPlace::Link { brand, .. } => replace.bind(*brand),
                SecretPlace::Suppression => replace.bind(SUPPRESSION),
            };
            replace.bind(held).bind(fresh).run().await?;
        }
        tx.commit().await?;
        self.db.scrub().await;
        Ok(())
    }
}
