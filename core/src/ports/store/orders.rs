//! What shops tell besides: orders, products, consent.

use async_trait::async_trait;

use super::StoreError;
use crate::domain::event::{Consent, Product, Source};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;

/// Which order of which brand. They sort by brand, shop and id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey {
    pub brand: BrandId,
    pub shop: String,
    /// Shopify's id of the order.
    pub id: String,
}

/// An order, and whose it is.
#[derive(Clone, Debug)]
pub struct BrandOrder {
    pub brand: BrandId,
    pub record: OrderRecord,
}

impl BrandOrder {
    pub fn key(&self) -> OrderKey {
        OrderKey { brand: self.brand, shop: self.record.shop.clone(), id: self.record.id.clone() }
    }
}

/// What a delivery says of a product.
#[derive(Clone, Debug)]
pub struct ProductRow<'a> {
    pub brand: BrandId,
    pub shop: &'a str,
    pub product: Product,
}

/// What an event says of consent.
#[derive(Clone, Copy, Debug)]
pub struct ConsentRow<'a> {
    pub brand: BrandId,
    pub message_id: &'a str,
    pub profile: ProfileId,
    pub source: Source,
    /// What comes later of two with the same time.
    pub sequence: i64,
    pub consent: &'a Consent,
}

/// Orders, products and consent, in a transaction.
#[async_trait]
pub trait OrdersTx: Send {
    /// What is known of these orders. `keys` must be sorted.
    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError>;

    /// Writes orders. [`StoreError::Conflict`] when another transaction wrote one since it was read. `rows` must be sorted.
    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError>;

    /// Writes products where they are newer than what is there; one that was deleted stays deleted. `rows` holds each product once, sorted.
    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError>;

    /// Adds what customers said of consent.
    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError>;
}
