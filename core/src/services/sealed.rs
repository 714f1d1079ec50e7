//! The tenants, with their secrets sealed: a decorator over the port ([`crate::services::seal`]). Beneath it no secret is plain,
//! above it none is sealed.

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::domain::time::Timestamp;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::ports::tenants::{
    BrandSecrets, Ended, KeyGrant, KeyRecord, NewKey, Refusal, SecretPlace, Shop, StoredSecret, Tenants,
};
use crate::services::seal::{SealError, SecretKeys};

/// The tenants of `inner`, sealed.
pub struct SealedTenants {
    inner: Arc<dyn Tenants>,
    keys: SecretKeys,
}

impl SealedTenants {
    /// Seals what `inner` holds plain or under an older key, and answers how many secrets that were. Several processes may do so
    /// at once: a secret is replaced only where it is still what was read.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] where a secret was sealed under a key that is not here.
    pub async fn open(inner: Arc<dyn Tenants>, keys: SecretKeys) -> Result<(Self, usize), StoreError> {
        let mut stale = Vec::new();
        for StoredSecret { place, held } in inner.stored_secrets().await? {
            if keys.is_fresh(&held) {
                continue;
            }
            let name = place.name();
            let text = keys.open(&held, &name).map_err(fault)?;
            let fresh = keys.seal(&text, &name).map_err(fault)?;
            stale.push((StoredSecret { place, held }, fresh));
        }
        if !stale.is_empty() {
            inner.replace_secrets(&stale).await?;
        }
        Ok((Self { inner, keys }, stale.len()))
    }

    fn seal(&self, text: &str, place: &SecretPlace) -> Result<String, StoreError> {
        self.keys.seal(text, &place.name()).map_err(fault)
    }

    fn unseal(&self, held: &str, place: &SecretPlace) -> Result<String, StoreError> {
        self.keys.open(held, &place.name()).map_err(fault)
    }

    fn opened(&self, shop: Shop) -> Result<Shop, StoreError> {
        let place = SecretPlace::Shop { brand: shop.brand, domain: shop.domain.clone(), previous: false };
        let previous = shop.previous_secret.as_deref().map(|held| self.unseal(held, &place)).transpose()?;
        Ok(Shop { secret: self.unseal(&shop.secret, &place)?, previous_secret: previous, ..shop })
    }

    fn secrets_opened(&self, brand: BrandId, held: BrandSecrets) -> Result<BrandSecrets, StoreError> {
        let signing = SecretPlace::Signing { brand, previous: false };
        let link = SecretPlace::Link { brand, old: false };
        let with_time = |held: Option<(String, Timestamp)>, place: &SecretPlace| {
            held.map(|(text, at)| Ok::<_, StoreError>((self.unseal(&text, place)?, at))).transpose()
        };
        Ok(BrandSecrets {
            signing: self.unseal(&held.signing, &signing)?,
            previous_signing: with_time(held.previous_signing, &signing)?,
            link: self.unseal(&held.link, &link)?,
            old_link: with_time(held.old_link, &link)?,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn fault(error: SealError) -> StoreError {
    let help = match &error {
        SealError::OtherKey { .. } => {
            ": give the key that they were sealed under (TRIBUTARY_SECRET_KEY, or secret.key in the data folder), or name it as the previous one"
        }
        SealError::Broken => "",
    };
    StoreError::Invalid(format!("{error}{help}"))
}

#[async_trait]
impl Tenants for SealedTenants {
    async fn add_brand(&self, name: &str) -> Result<BrandId, StoreError> {
        self.inner.add_brand(name).await
    }

    async fn brand(&self, name: &str) -> Result<Option<BrandId>, StoreError> {
        self.inner.brand(name).await
    }

    async fn brands(&self) -> Result<Vec<(BrandId, String)>, StoreError> {
        self.inner.brands().await
    }

    async fn settings(&self, brand: BrandId) -> Result<BrandSettings, StoreError> {
        self.inner.settings(brand).await
    }

    async fn set_settings(
        &self,
        brand: BrandId,
        settings: &BrandSettings,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        self.inner.set_settings(brand, settings, note).await
    }

    async fn email_domains(&self, brand: BrandId) -> Result<Option<Vec<String>>, StoreError> {
        self.inner.email_domains(brand).await
    }

    async fn set_email_domains(
        &self,
        brand: BrandId,
        domains: Option<&[String]>,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        self.inner.set_email_domains(brand, domains, note).await
    }

    async fn add_key(
        &self,
        key: &NewKey<'_>,
        now: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        self.inner.add_key(key, now, note).await
    }

    async fn key(&self, hash: &[u8; 32]) -> Result<Option<KeyGrant>, StoreError> {
        self.inner.key(hash).await
    }

    async fn keys(&self, brand: BrandId) -> Result<Vec<KeyRecord>, StoreError> {
        self.inner.keys(brand).await
    }

    async fn revoke_key(
        &self,
        brand: BrandId,
        id: &str,
        at: Timestamp,
        cascade: bool,
        note: Option<&AuditEntry>,
    ) -> Result<Option<Ended>, StoreError> {
        self.inner.revoke_key(brand, id, at, cascade, note).await
    }

    async fn limit_key(
        &self,
        brand: BrandId,
        id: &str,
        limit: Option<u32>,
        note: Option<&AuditEntry>,
    ) -> Result<bool, StoreError> {
        self.inner.limit_key(brand, id, limit, note).await
    }

    async fn keys_used(&self, used: &[(String, Timestamp)]) -> Result<(), StoreError> {
        self.inner.keys_used(used).await
    }

    async fn add_refusals(&self, refusals: &[Refusal]) -> Result<(), StoreError> {
        self.inner.add_refusals(refusals).await
    }

    async fn refusals(&self, brand: BrandId) -> Result<Vec<Refusal>, StoreError> {
        self.inner.refusals(brand).await
    }

    async fn secrets(&self, brand: BrandId, fresh: &BrandSecrets) -> Result<BrandSecrets, StoreError> {
        let sealed = BrandSecrets {
            signing: self.seal(&fresh.signing, &SecretPlace::Signing { brand, previous: false })?,
            link: self.seal(&fresh.link, &SecretPlace::Link { brand, old: false })?,
            ..BrandSecrets::default()
        };
        self.secrets_opened(brand, self.inner.secrets(brand, &sealed).await?)
    }

    async fn rotate_signing(
        &self,
        brand: BrandId,
        fresh: &str,
        until: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let sealed = self.seal(fresh, &SecretPlace::Signing { brand, previous: false })?;
        self.inner.rotate_signing(brand, &sealed, until, note).await
    }

    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        // Sealed anew, the same secret would look like another, and push the one before it out.
        let held = self.inner.shop(domain).await?.filter(|shop| shop.brand == brand);
        let same = match held {
            Some(shop) => {
                let text = shop.secret.clone();
                (self.opened(shop)?.secret == secret).then_some(text)
            }
            None => None,
        };
        let place = SecretPlace::Shop { brand, domain: domain.to_owned(), previous: false };
        let sealed = same.map_or_else(|| self.seal(secret, &place), Ok)?;
        self.inner.add_shop(domain, brand, &sealed).await
    }

    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError> {
        self.inner.shops(brand).await?.into_iter().map(|shop| self.opened(shop)).collect()
    }

    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        self.inner.shop_uninstalled(domain, at).await
    }

    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        self.inner.shop_redacted(domain, at).await
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        self.inner.shop(domain).await?.map(|shop| self.opened(shop)).transpose()
    }

    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError> {
        let held = self.inner.suppression_key(&self.seal(fresh, &SecretPlace::Suppression)?).await?;
        self.unseal(&held, &SecretPlace::Suppression)
    }

    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError> {
        self.inner.stored_secrets().await
    }

    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError> {
        self.inner.replace_secrets(fresh).await
    }
}
