//! Adding shops.

use std::collections::HashMap;

use crate::context::Context;
use crate::domain::ids::BrandId;
use crate::ports::brands::Shop;
use crate::ports::store::StoreError;

/// Why a shop was not added.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShopError {
    /// The app's secret is that of another brand's shop: whoever sends for one could send for the other.
    #[error(
        "another brand's shop has this secret; each brand needs an app of its own, because a webhook's signature tells apps apart, not shops"
    )]
    SharedSecret,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Adds a shop, or gives it a new secret.
///
/// # Errors
/// [`ShopError::SharedSecret`] where another brand's shop has the secret.
pub async fn add_shop(
    context: &Context,
    domain: &str,
    brand: BrandId,
    secret: &str,
) -> Result<(), ShopError> {
    let brand_ports = &context.brand_ports;
    for (other, _) in brand_ports.brands.brands().await?.into_iter().filter(|(other, _)| *other != brand) {
        let shared = |shop: Shop| shop.secret == secret || shop.previous_secret.as_deref() == Some(secret);
        if brand_ports.shops.shops(other).await?.into_iter().any(shared) {
            return Err(ShopError::SharedSecret);
        }
    }
    Ok(brand_ports.shops.add_shop(domain, brand, secret).await?)
}

/// Warns of shops of two brands that share a secret: from before that was refused.
///
/// # Errors
/// The store's own.
pub async fn warn_of_shared_secrets(context: &Context) -> Result<(), StoreError> {
    let mut first: HashMap<String, Shop> = HashMap::new();
    for (brand, _) in context.brand_ports.brands.brands().await? {
        for shop in context.brand_ports.shops.shops(brand).await? {
            let other = first.entry(shop.secret.clone()).or_insert_with(|| shop.clone());
            if other.brand != shop.brand {
                tracing::warn!(
                    shop = shop.domain,
                    other = other.domain,
                    "shops of two brands share a secret: whoever sends for one can send for the other; give each brand an app of its own"
                );
            }
        }
    }
    Ok(())
}
