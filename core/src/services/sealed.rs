//! The ports of brands, with their secrets sealed: a decorator over the port ([`crate::services::seal`]). Beneath it no secret is plain,
//! above it none is sealed.

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::brands::{BrandPorts, BrandSecrets, SecretPlace, Secrets, Shop, Shops, StoredSecret};
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::services::seal::{SealError, SecretKeys};

/// Shops and secrets, sealed.
#[derive(Clone)]
struct Sealed {
    shops: Arc<dyn Shops>,
    secrets: Arc<dyn Secrets>,
    keys: SecretKeys,
}

/// The ports of `inner`, with their secrets sealed. Seals what `inner` holds plain or under an older key; returns how many secrets
/// that were. Several processes may do so at once: a secret is replaced only where it is still what was read.
///
/// # Errors
/// [`StoreError::Invalid`] where a secret was sealed under a key that is not here.
pub async fn open(inner: BrandPorts, keys: SecretKeys) -> Result<(BrandPorts, usize), StoreError> {
    let mut stale = Vec::new();
    for StoredSecret { place, held } in inner.secrets.stored_secrets().await? {
        if keys.is_fresh(&held) {
            continue;
        }
        let name = place.name();
        let text = keys.open(&held, &name).map_err(fault)?;
        let fresh = keys.seal(&text, &name).map_err(fault)?;
        stale.push((StoredSecret { place, held }, fresh));
    }
    if !stale.is_empty() {
        inner.secrets.replace_secrets(&stale).await?;
    }
    let sealed = Sealed { shops: inner.shops.clone(), secrets: inner.secrets.clone(), keys };
    let brand_ports = BrandPorts { shops: Arc::new(sealed.clone()), secrets: Arc::new(sealed), ..inner };
    Ok((brand_ports, stale.len()))
}

impl Sealed {
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
impl Shops for Sealed {
    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        // Sealed again, the same secret would look like another, and push the one before it out.
        let held = self.shops.shop(domain).await?.filter(|shop| shop.brand == brand);
        let same = match held {
            Some(shop) => {
                let text = shop.secret.clone();
                (self.opened(shop)?.secret == secret).then_some(text)
            }
            None => None,
        };
        let place = SecretPlace::Shop { brand, domain: domain.to_owned(), previous: false };
        let sealed = same.map_or_else(|| self.seal(secret, &place), Ok)?;
        self.shops.add_shop(domain, brand, &sealed).await
    }

    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError> {
        self.shops.shops(brand).await?.into_iter().map(|shop| self.opened(shop)).collect()
    }

    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        self.shops.shop_uninstalled(domain, at).await
    }

    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        self.shops.shop_redacted(domain, at).await
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        self.shops.shop(domain).await?.map(|shop| self.opened(shop)).transpose()
    }
}

#[async_trait]
impl Secrets for Sealed {
    async fn secrets(&self, brand: BrandId, fresh: &BrandSecrets) -> Result<BrandSecrets, StoreError> {
        let sealed = BrandSecrets {
            signing: self.seal(&fresh.signing, &SecretPlace::Signing { brand, previous: false })?,
            link: self.seal(&fresh.link, &SecretPlace::Link { brand, old: false })?,
            ..BrandSecrets::default()
        };
        self.secrets_opened(brand, self.secrets.secrets(brand, &sealed).await?)
    }

    async fn rotate_signing(
        &self,
        brand: BrandId,
        fresh: &str,
        until: Timestamp,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        let sealed = self.seal(fresh, &SecretPlace::Signing { brand, previous: false })?;
        self.secrets.rotate_signing(brand, &sealed, until, note).await
    }

    async fn suppression_key(&self, fresh: &str) -> Result<String, StoreError> {
        let held = self.secrets.suppression_key(&self.seal(fresh, &SecretPlace::Suppression)?).await?;
        self.unseal(&held, &SecretPlace::Suppression)
    }

    async fn stored_secrets(&self) -> Result<Vec<StoredSecret>, StoreError> {
        self.secrets.stored_secrets().await
    }

    async fn replace_secrets(&self, fresh: &[(StoredSecret, String)]) -> Result<(), StoreError> {
        self.secrets.replace_secrets(fresh).await
    }
}
