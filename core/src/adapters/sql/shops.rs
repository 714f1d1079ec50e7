//! Shops that send webhooks.

use async_trait::async_trait;
use sqlx_macros::FromRow;

use super::brands::SqlBrands;
use super::codec::Time;
use super::read_as;
use crate::domain::ids::BrandId;
use crate::domain::time::Timestamp;
use crate::ports::brands::{Shop, Shops};
use crate::ports::store::StoreError;

/// The columns of a shop, as it is read.
pub(super) const SHOP: &str = "domain, brand_id, secret, previous_secret, uninstalled_at, redacted_at";

#[derive(FromRow)]
struct ShopRow {
    domain: String,
    brand_id: BrandId,
    secret: String,
    previous_secret: Option<String>,
    uninstalled_at: Option<Time>,
    redacted_at: Option<Time>,
}

read_as!(Shop: ShopRow);

impl From<ShopRow> for Shop {
    fn from(row: ShopRow) -> Self {
        Self {
            domain: row.domain,
            brand: row.brand_id,
            secret: row.secret,
            previous_secret: row.previous_secret,
            uninstalled_at: row.uninstalled_at.map(|at| at.0),
            redacted_at: row.redacted_at.map(|at| at.0),
        }
    }
}

#[async_trait]
impl Shops for SqlBrands {
    async fn add_shop(&self, domain: &str, brand: BrandId, secret: &str) -> Result<(), StoreError> {
        let add = "insert into shops (domain, brand_id, secret) values ($1, $2, $3)
            on conflict (domain) do update set secret = excluded.secret, uninstalled_at = null, redacted_at = null,
                previous_secret = case when shops.secret = excluded.secret then shops.previous_secret else shops.secret end
            where shops.brand_id = excluded.brand_id";
        match self.db.writing().await?.sql(add).bind(domain).bind(brand).bind(secret).run().await? {
            0 => Err(StoreError::Invalid(format!("the shop {domain} belongs to another brand"))),
            _ => Ok(()),
        }
    }

    async fn shops(&self, brand: BrandId) -> Result<Vec<Shop>, StoreError> {
        let shops = format!("select {SHOP} from shops where brand_id = $1 order by domain");
        self.db.looking_at(brand).await?.sql(shops).bind(brand).all().await
    }

    async fn shop_uninstalled(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        let uninstalled = "update shops set uninstalled_at = coalesce(uninstalled_at, $2) where domain = $1";
        self.db.writing().await?.sql(uninstalled).bind(domain).bind(at).run().await.map(drop)
    }

    async fn shop_redacted(&self, domain: &str, at: Timestamp) -> Result<(), StoreError> {
        let redacted = "update shops set redacted_at = coalesce(redacted_at, $2) where domain = $1";
        self.db.writing().await?.sql(redacted).bind(domain).bind(at).run().await.map(drop)
    }

    async fn shop(&self, domain: &str) -> Result<Option<Shop>, StoreError> {
        // The domain says which brand it is.
        let shop = format!("select {SHOP} from shops where domain = $1");
        self.db.looking().await?.sql(shop).bind(domain).optional().await
    }
}
