//! A brand's own secrets: what signs its webhooks, and what signs the links in its e-mails. Each is made when it is first asked for.

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use moka::sync::Cache;
use rand::Rng;
use serde_json::json;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::domain::time;
use crate::ports::store::StoreError;
use crate::ports::tenants::BrandSecrets;
use crate::services::brands::SETTINGS_TTL;
use crate::services::privacy::{Action, entry};

/// What a signing secret begins with, by the Standard Webhooks scheme.
pub const PREFIX: &str = "whsec_";
/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;
/// Most brands whose secrets are remembered.
const REMEMBERED: u64 = 10_000;

/// A process may serve several stores, in tests.
static KNOWN: LazyLock<Cache<(uuid::Uuid, BrandId), BrandSecrets>> =
    LazyLock::new(|| Cache::builder().max_capacity(REMEMBERED).time_to_live(SETTINGS_TTL).build());

/// The brand's secrets. After a rotation a process believes the old ones for [`SETTINGS_TTL`], within the grace of both.
///
/// # Errors
/// When the store is unavailable.
pub async fn secrets(context: &Context, brand: BrandId) -> Result<BrandSecrets, StoreError> {
    let key = (context.id, brand);
    if let Some(known) = KNOWN.get(&key) {
        return Ok(known);
    }
    let fresh = BrandSecrets { signing: random(PREFIX), link: random(""), ..BrandSecrets::default() };
    let secrets = context.tenants.secrets.secrets(brand, &fresh).await?;
    KNOWN.insert(key, secrets.clone());
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
    let until = context.clock.now() + grace;
    let details = json!({"grace_s": grace.as_secs()});
    let note =
        entry(context, brand, actor, Action { what: "signing_secret_rotated", subject: None, details });
    context.tenants.secrets.rotate_signing(brand, &random(PREFIX), until, Some(&note)).await?;
    KNOWN.invalidate(&(context.id, brand));
    secrets(context, brand).await
}

fn random(prefix: &str) -> String {
    let mut random = [0_u8; SECRET_BYTES];
    rand::rng().fill_bytes(&mut random);
    format!("{prefix}{}", STANDARD.encode(random))
}
