//! Links by which a customer takes consent back.

use crate::context::Context;
use crate::domain::automation::emitted;
use crate::domain::event::Channel;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::Timestamp;
use crate::ports::queue::{NewItem, within_share};
use crate::services::automations::links::{self, LinkError, Token};

/// What is signed of a link.
fn said(brand: BrandId, profile: ProfileId) -> String {
    format!("unsubscribe:email:{brand}:{profile}")
}

/// The link of a customer, signed with the brand's secret for links.
pub fn link(public_url: &str, secret: &str, brand: BrandId, profile: ProfileId) -> String {
    let subject = profile.to_string();
    links::link(public_url, "unsubscribe", (brand, &subject), secret, &said(brand, profile))
}

/// Whose link it is.
///
/// # Errors
/// [`LinkError::Unknown`] for what was not made here.
pub async fn whose(context: &Context, token: &str) -> Result<(BrandId, ProfileId), LinkError> {
    let token = Token::read(context, token).await?;
    let profile = ProfileId::parse(token.subject).ok_or(LinkError::Unknown)?;
    let good = |secret: &str| token.is_by(secret, &said(token.brand, profile));
    // Links that were sent when webhooks and links had one secret stay valid; nobody who was not a customer then has one.
    let of_old = |(secret, until): &(String, Timestamp)| {
        profile < ProfileId::first_at(until.timestamp_millis().saturating_add(1)) && good(secret)
    };
    match good(&token.secrets.link) || token.secrets.old_link.as_ref().is_some_and(of_old) {
        true => Ok((token.brand, profile)),
        false => Err(LinkError::Unknown),
    }
}

/// Takes a customer's consent to e-mail back, as an event of theirs.
///
/// # Errors
/// When the link is not valid, or store or queue are unavailable.
pub async fn unsubscribe(context: &Context, token: &str) -> Result<(), LinkError> {
    let (brand, profile) = whose(context, token).await?;
    let record = context.store.customer(brand, profile).await?.ok_or(LinkError::Unknown)?;
    let mut identifiers = record.identifiers;
    identifiers.sort();
    let identifier = identifiers.first().ok_or(LinkError::Unknown)?;
    let now_ms = context.world.now_ms();
    let message_id = format!("unsubscribe-{}", context.world.id());
    let body = emitted::unsubscribe(Channel::Email);
    let payload = emitted::envelope(brand, &message_id, identifier, &body, now_ms).unwrap_or_default();
    let item = NewItem { payload: payload.into(), brand: Some(brand), ..NewItem::default() };
    within_share(context.queue.enqueue(&[item]).await?)?;
    Ok(())
}
