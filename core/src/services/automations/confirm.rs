//! Links by which whoever reads an e-mail address confirms that it is theirs and that they want marketing there (double opt-in).
//! From then on the address is as good as one that the brand itself stated.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::context::Context;
use crate::domain::automation::emitted;
use crate::domain::identity::{Identifier, IdentifierKind};
use crate::domain::ids::BrandId;
use crate::ports::queue::{NewItem, within_share};
use crate::services::automations::links::{self, LinkError, Token};

/// What is signed of a link.
fn said(brand: BrandId, address: &str) -> String {
    format!("confirm:email:{brand}:{address}")
}

/// The link for an address, signed with the brand's secret for links.
pub fn link(public_url: &str, secret: &str, brand: BrandId, address: &str) -> String {
    let subject = URL_SAFE_NO_PAD.encode(address);
    links::link(public_url, "confirm", (brand, &subject), secret, &said(brand, address))
}

/// Whose link it is: the brand, and the address.
///
/// # Errors
/// [`LinkError::Unknown`] for what was not made here.
pub async fn whose(context: &Context, token: &str) -> Result<(BrandId, Identifier), LinkError> {
    let token = Token::read(context, token).await?;
    let address = URL_SAFE_NO_PAD.decode(token.subject).map_err(|_| LinkError::Unknown)?;
    let address = String::from_utf8(address).map_err(|_| LinkError::Unknown)?;
    if !token.is_by(&token.secrets.link, &said(token.brand, &address)) {
        return Err(LinkError::Unknown);
    }
    let identifier = Identifier::new(IdentifierKind::Email, &address).ok_or(LinkError::Unknown)?;
    Ok((token.brand, identifier))
}

/// Takes the confirmation, as an event of whoever has the address.
///
/// # Errors
/// When the link is not valid, nobody has the address any more, or store or queue are unavailable.
pub async fn confirm(context: &Context, token: &str) -> Result<(), LinkError> {
    let (brand, identifier) = whose(context, token).await?;
    // Who was erased meanwhile does not come back by an old link.
    context.store.owner(brand, &identifier).await?.ok_or(LinkError::Unknown)?;
    let now_ms = context.world.now_ms();
    let message_id = format!("confirm-{}", context.world.id());
    let body = emitted::confirmed(&identifier.value);
    let payload = emitted::vouched(brand, &message_id, &identifier, &body, now_ms).unwrap_or_default();
    let item = NewItem { payload: payload.into(), brand: Some(brand), ..NewItem::default() };
    within_share(context.queue.enqueue(&[item]).await?)?;
    Ok(())
}
