//! Brands, and what they have: keys, shops, secrets.

mod brand;
mod keys;
mod refusals;
mod secrets;
mod shops;

use std::sync::Arc;

pub use self::brand::Brands;
pub use self::keys::{ApiKeys, Ended, KeyGrant, KeyKind, KeyRecord, NewKey, key_id};
pub use self::refusals::{REFUSALS_LISTED, Refusal, Refusals};
pub use self::secrets::{BrandSecrets, SecretPlace, Secrets, StoredSecret};
pub use self::shops::{Shop, Shops};

/// The ports of brands and of what they have.
#[derive(Clone)]
pub struct BrandPorts {
    /// Brands and their settings.
    pub brands: Arc<dyn Brands>,
    pub keys: Arc<dyn ApiKeys>,
    /// What was refused of whom.
    pub refusals: Arc<dyn Refusals>,
    pub shops: Arc<dyn Shops>,
    pub secrets: Arc<dyn Secrets>,
}
