//! An order as the customer's profile knows it.
//!
//! Deliveries of one order arrive in any order and more than once; the newest `(updated_at, message_id)` wins, so every
//! sequence of the same deliveries ends in the same order.

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::time::Timestamp;

/// The state of an order that one delivery reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// The shop's domain: order ids are the shop's.
    pub shop: String,
    /// Shopify's id.
    pub id: String,
    /// What people call it, for example `#1001`.
    pub name: Option<String>,
    /// When the customer ordered.
    pub ordered_at: Timestamp,
    /// The version: the newest wins.
    pub updated_at: Timestamp,
    /// When it was cancelled, if it was.
    pub cancelled_at: Option<Timestamp>,
    /// A test order, which counts nowhere.
    pub test: bool,
    /// The shop's currency, ISO 4217.
    pub currency: String,
    /// What the customer owes in all, in `currency`.
    pub total: Decimal,
    /// What was paid back, in `currency`.
    pub refunded: Decimal,
    /// Shopify's payment state.
    pub financial_status: Option<String>,
    /// Shopify's shipping state.
    pub fulfillment_status: Option<String>,
    /// What was bought.
    pub items: Vec<Item>,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Shopify's product id.
    pub product_id: Option<String>,
    /// The shop's own article number.
    pub sku: Option<String>,
    /// What it is called.
    pub title: Option<String>,
    /// How many.
    pub quantity: i64,
    /// The price of one, in the order's currency.
    pub price: Decimal,
}

impl Order {
    /// Whether the order counts into a customer's orders and revenue: neither a test nor cancelled.
    pub fn counts(&self) -> bool {
        !self.test && self.cancelled_at.is_none()
    }
}
