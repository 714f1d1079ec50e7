//! A brand's own secrets: what signs its webhooks, and what signs the links in its e-mails. Each is made when it is first asked for.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::domain::time;
use crate::ports::brands::BrandSecrets;
use crate::ports::store::StoreError;
use crate::services::brand_cache::SETTINGS_TTL;
use crate::services::privacy::{Action, entry};

/// What a signing secret begins with, by the Standard Webhooks scheme.
pub const PREFIX: &str = "whsec_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// The brand's secrets. After a rotation a process believes the old ones for [`SETTINGS_TTL`], within the grace of both.
///
/// # Errors
/// When the store is unavailable.
pub async fn secrets(context: &Context, brand: BrandId) -> Result<BrandSecrets, StoreError> {
    if let Some(known) = context.known.secrets.fresh(&brand) {
        return Ok(known);
    }
    let fresh = BrandSecrets {
        signing: random(context, PREFIX),
        link: random(context, ""),
        ..BrandSecrets::default()
    };
    let secrets = context.brand_ports.secrets.secrets(brand, &fresh).await?;
    context.known.secrets.put(brand, secrets.clone(), SETTINGS_TTL, SETTINGS_TTL);
    Ok(secrets)
}

impl BrandSecrets {
    /// All that sign webhooks at a time: within a rotation's grace both the new one and the old.
    pub fn signing_at(&self, now: time::Timestamp) -> Vec<String> {
        let old = self.previous_signing.as_ref().filter(|(_, until)| now < *until);
        std::iter::once(&self.signing).chain(old.map(|(text, _)| text)).cloned().collect()
    }
}

/// Gives the brand a new signing secret. For `grace` webhooks are signed with the old one, too. Answers the new one.
///
/// # Errors
/// When the store is unavailable.
pub async fn rotate(
    context: &Context,
    brand: BrandId,
    grace: Duration,
    actor: &str,
) -> Result<BrandSecrets, StoreError> {
    // There must be one before it.
    secrets(context, brand).await?;
    let until = context.world.now() + grace;
    let details = json!({"grace_s": grace.as_secs()});
    let note =
        entry(context, brand, actor, Action { what: "signing_secret_rotated", subject: None, details });
    context.brand_ports.secrets.rotate_signing(brand, &random(context, PREFIX), until, Some(&note)).await?;
    context.known.secrets.forget(&brand);
    secrets(context, brand).await
}

fn random(context: &Context, prefix: &str) -> String {
    format!("{prefix}{}", STANDARD.encode(context.world.bytes::<SECRET_BYTES>()))
}
