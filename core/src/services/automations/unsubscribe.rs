//! Links by which a customer takes consent back. They are signed with a secret of their own: who may see what signs webhooks can
//! make none.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::context::Context;
use crate::domain::automation::emitted;
use crate::domain::event::Channel;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::queue::{NewItem, QueueError};
use crate::ports::store::StoreError;
use crate::services::automations::signing;

/// What signs a customer's link.
fn mac(secret: &str, brand: BrandId, profile: ProfileId) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.chain_update(format!("unsubscribe:email:{brand}:{profile}").as_bytes())
}

/// The link of a customer, signed with the brand's secret for links.
pub fn link(public_url: &str, secret: &str, brand: BrandId, profile: ProfileId) -> String {
    let signed = URL_SAFE_NO_PAD.encode(mac(secret, brand, profile).finalize().into_bytes());
    format!("{}/unsubscribe/{brand}.{profile}.{signed}", public_url.trim_end_matches('/'))
}

/// Why a link does nothing.
#[derive(Debug, thiserror::Error)]
pub enum UnsubscribeError {
    /// It was not made here, or its customer is gone.
    #[error("the link is not valid")]
    Unknown,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Whose link it is.
///
/// # Errors
/// [`UnsubscribeError::Unknown`] for what was not made here.
pub async fn whose(context: &Context, token: &str) -> Result<(BrandId, ProfileId), UnsubscribeError> {
    let mut parts = token.splitn(3, '.');
    let (brand, profile, signed) = (parts.next(), parts.next(), parts.next());
    let brand = brand.and_then(|text| text.parse().ok()).map(BrandId);
    let profile = profile.and_then(ProfileId::parse);
    let signed = signed.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let (Some(brand), Some(profile), Some(signed)) = (brand, profile, signed) else {
        return Err(UnsubscribeError::Unknown);
    };
    if !context.tenants.brands().await?.iter().any(|(id, _)| *id == brand) {
        return Err(UnsubscribeError::Unknown);
    }
    let secrets = signing::secrets(context, brand).await?;
    let good = |secret: &str| mac(secret, brand, profile).verify_slice(&signed).is_ok();
    // Links that were sent when webhooks and links had one secret stay valid; nobody who was not a customer then has one.
    let of_old = |(secret, until): &(String, Timestamp)| {
        profile < ProfileId::first_at(until.timestamp_millis().saturating_add(1)) && good(secret)
    };
    match good(&secrets.link) || secrets.old_link.as_ref().is_some_and(of_old) {
        true => Ok((brand, profile)),
        false => Err(UnsubscribeError::Unknown),
    }
}

/// Takes a customer's consent to e-mail back, as an event of theirs.
///
/// # Errors
/// When the link is not valid, or store or queue are away.
pub async fn unsubscribe(context: &Context, token: &str) -> Result<(), UnsubscribeError> {
    let (brand, profile) = whose(context, token).await?;
    let record = context.store.customer(brand, profile).await?.ok_or(UnsubscribeError::Unknown)?;
    let mut identifiers = record.identifiers;
    identifiers.sort();
    let identifier = identifiers.first().ok_or(UnsubscribeError::Unknown)?;
    let now_ms = context.clock.now_ms();
    let message_id = format!("unsubscribe-{}", uuid::Uuid::now_v7());
    let body = emitted::unsubscribe(Channel::Email);
    let payload = emitted::envelope(brand, &message_id, identifier, &body, now_ms).unwrap_or_default();
    context.queue.enqueue(&[NewItem { payload: payload.into(), ..NewItem::default() }]).await?;
    Ok(())
}
