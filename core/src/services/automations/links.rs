//! Links in e-mails: `PUBLIC_URL/PAGE/BRAND.SUBJECT.SIGNATURE`, each page with a subject of its own. They are signed with a secret of
//! their own: who may see what signs webhooks can make none.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::ports::brands::BrandSecrets;
use crate::ports::queue::QueueError;
use crate::ports::store::StoreError;
use crate::services::automations::signing;

/// The longest link that is looked at, in bytes: an address has at most 255 characters.
const MAX_TOKEN_BYTES: usize = 2048;

/// Why a link does nothing.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It was not made here, or whom it means is gone.
    #[error("the link is not valid")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What signs `said`: the page, the brand and the subject.
fn mac(secret: &str, said: &str) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.chain_update(said.as_bytes())
}

/// A link to a page; `subject` is what stands in it.
pub(super) fn link(
    public_url: &str,
    page: &str,
    (brand, subject): (BrandId, &str),
    secret: &str,
    said: &str,
) -> String {
    let signed = URL_SAFE_NO_PAD.encode(mac(secret, said).finalize().into_bytes());
    format!("{}/{page}/{brand}.{subject}.{signed}", public_url.trim_end_matches('/'))
}

/// The last part of a link, read, and not verified yet.
pub(super) struct Token<'t> {
    pub(super) brand: BrandId,
    pub(super) subject: &'t str,
    pub(super) secrets: BrandSecrets,
    signed: Vec<u8>,
}

impl<'t> Token<'t> {
    /// Reads a token of a brand that is here.
    ///
    /// # Errors
    /// [`LinkError::Unknown`] for what has not the form of one.
    pub(super) async fn read(context: &Context, token: &'t str) -> Result<Self, LinkError> {
        let (brand, subject, signed) = parts(token).ok_or(LinkError::Unknown)?;
        if !context.brand_ports.brands.brands().await?.iter().any(|(id, _)| *id == brand) {
            return Err(LinkError::Unknown);
        }
        let secrets = signing::secrets(context, brand).await?;
        Ok(Self { brand, subject, secrets, signed })
    }

    /// Whether a secret signed `said`.
    pub(super) fn is_by(&self, secret: &str, said: &str) -> bool {
        mac(secret, said).verify_slice(&self.signed).is_ok()
    }
}

fn parts(token: &str) -> Option<(BrandId, &str, Vec<u8>)> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let mut parts = token.splitn(3, '.');
    let (brand, subject, signed) = (parts.next()?, parts.next()?, parts.next()?);
    Some((BrandId(brand.parse().ok()?), subject, URL_SAFE_NO_PAD.decode(signed).ok()?))
}
