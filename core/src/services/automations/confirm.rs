//! Links by which whoever reads an e-mail address confirms that it is theirs and that they want marketing there (double opt-in).
//! From then on the address is as good as one that the brand itself told.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::context::Context;
use crate::domain::automation::emitted;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::BrandId;
use crate::ports::queue::NewItem;
use crate::services::automations::signing;
use crate::services::automations::unsubscribe::UnsubscribeError as LinkError;

/// The longest link that is looked at, in bytes: an address has at most 255 characters.
const MAX_TOKEN_BYTES: usize = 2048;

fn mac(secret: &str, brand: BrandId, address: &str) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.chain_update(format!("confirm:email:{brand}:{address}").as_bytes())
}

/// The link for an address, signed with the brand's secret for links.
pub fn link(public_url: &str, secret: &str, brand: BrandId, address: &str) -> String {
    let signed = URL_SAFE_NO_PAD.encode(mac(secret, brand, address).finalize().into_bytes());
    let address = URL_SAFE_NO_PAD.encode(address);
    format!("{}/confirm/{brand}.{address}.{signed}", public_url.trim_end_matches('/'))
}

/// Whose link it is: the brand, and the address.
///
/// # Errors
/// [`LinkError::Unknown`] for what was not made here.
pub async fn whose(context: &Context, token: &str) -> Result<(BrandId, Identifier), LinkError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(LinkError::Unknown);
    }
    let mut parts = token.splitn(3, '.');
    let (brand, address, signed) = (parts.next(), parts.next(), parts.next());
    let brand = brand.and_then(|text| text.parse().ok()).map(BrandId);
    let decoded = |text: Option<&str>| text.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    let address = decoded(address).and_then(|bytes| String::from_utf8(bytes).ok());
    let (Some(brand), Some(address), Some(signed)) = (brand, address, decoded(signed)) else {
        return Err(LinkError::Unknown);
    };
    if !context.tenants.brands().await?.iter().any(|(id, _)| *id == brand) {
        return Err(LinkError::Unknown);
    }
    let secrets = signing::secrets(context, brand).await?;
    mac(&secrets.link, brand, &address).verify_slice(&signed).map_err(|_| LinkError::Unknown)?;
    let identifier = Identifier::new(IdentifierKind::Email, &address).ok_or(LinkError::Unknown)?;
    Ok((brand, identifier))
}

/// Takes the confirmation, as an event of whoever has the address.
///
/// # Errors
/// When the link is not valid, nobody has the address any more, or store or queue are away.
pub async fn confirm(context: &Context, token: &str) -> Result<(), LinkError> {
    let (brand, identifier) = whose(context, token).await?;
    // Who was erased meanwhile does not come back by an old link.
    context.store.owner(brand, &identifier).await?.ok_or(LinkError::Unknown)?;
    let now_ms = context.clock.now_ms();
    let message_id = format!("confirm-{}", uuid::Uuid::now_v7());
    let body = emitted::confirmed(&identifier.value);
    let payload = emitted::vouched(brand, &message_id, &identifier, &body, now_ms).unwrap_or_default();
    context.queue.enqueue(&[NewItem { payload: payload.into(), ..NewItem::default() }]).await?;
    Ok(())
}
