//! An order as the customer's profile knows it: a state, and what happened to it.
//!
//! Deliveries about one order arrive in any order and more than once. [`OrderRecord::apply`] takes them in so that every
//! sequence of the same deliveries ends in the same record: the newest state wins by `(updated_at, message_id)`, each refund
//! and each fulfillment by its own, and a deleted order stays deleted. A refund may come before its order.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::ids::ProfileId;
use super::money::{self, minor_digits};
use super::time::{Timestamp, from_ms};

/// The state of an order that one delivery reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What people call it, for example `#1001`.
    pub name: Option<String>,
    /// When the customer ordered.
    pub ordered_at: Timestamp,
    /// When it was cancelled, if it was.
    pub cancelled_at: Option<Timestamp>,
    /// A test order, which counts nowhere.
    pub test: bool,
    /// The shop's currency, ISO 4217.
    pub currency: String,
    /// What the customer owes in all, in `currency`.
    pub total: Decimal,
    /// What of it bought gift cards: money taken in advance, which is revenue when the card is used.
    pub gift_cards: Decimal,
    /// The total in the currency that the customer saw, where that is another.
    pub presentment: Option<Amount>,
    /// Shopify's payment state.
    pub financial_status: Option<String>,
    /// Shopify's shipping state.
    pub fulfillment_status: Option<String>,
    /// What was bought.
    pub items: Vec<Item>,
}

/// An amount in a currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// How much.
    pub amount: Decimal,
    /// ISO 4217.
    pub currency: String,
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
    /// Whether it is a gift card.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gift_card: bool,
}

/// What decides between two reports of the same thing: the newer time (milliseconds since 1970), then the greater message id.
pub type Version = (i64, String);

/// Money that was paid back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// When, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: i64,
    /// How much, in the currency of its payment; `None` for the order's.
    #[serde(rename = "a")]
    pub amount: Decimal,
    /// See `amount`.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Which report this is from.
    #[serde(rename = "v")]
    pub version: Version,
}

/// A parcel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fulfillment {
    /// Shopify's state of it.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// When it was made, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: i64,
    /// Who carries it.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub company: Option<String>,
    /// The carrier's number.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub number: Option<String>,
    /// Which report this is from.
    #[serde(rename = "v")]
    pub version: Version,
}

/// What one delivery says of an order. Parts without a version of their own have the delivery's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderUpdate {
    /// The shop's domain: order ids are the shop's.
    pub shop: String,
    /// Shopify's id.
    pub id: String,
    /// The state's version: the newest wins.
    pub updated_at: Timestamp,
    /// The whole state, if the delivery has it.
    pub state: Option<Box<Order>>,
    /// Refunds by Shopify's id.
    pub refunds: BTreeMap<String, Refund>,
    /// Fulfillments by Shopify's id.
    pub fulfillments: BTreeMap<String, Fulfillment>,
    /// When the order was deleted.
    pub deleted_at: Option<Timestamp>,
}

impl OrderUpdate {
    /// Without times after `latest`, which would win over all that is told later.
    pub fn clamp(&mut self, latest: Timestamp) {
        let latest_ms = latest.timestamp_millis();
        self.updated_at = self.updated_at.min(latest);
        self.deleted_at = self.deleted_at.map(|at| at.min(latest));
        if let Some(state) = &mut self.state {
            state.ordered_at = state.ordered_at.min(latest);
            state.cancelled_at = state.cancelled_at.map(|at| at.min(latest));
        }
        for refund in self.refunds.values_mut() {
            refund.at_ms = refund.at_ms.min(latest_ms);
            refund.version.0 = refund.version.0.min(latest_ms);
        }
        for parcel in self.fulfillments.values_mut() {
            parcel.at_ms = parcel.at_ms.min(latest_ms);
            parcel.version.0 = parcel.version.0.min(latest_ms);
        }
    }
}

/// The id under which refunds stand of which only their sum is known. Once they are told one by one, it counts no more.
pub const SUM: &str = "sum";

/// All that is known of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderRecord {
    /// The shop's domain.
    pub shop: String,
    /// Shopify's id.
    pub id: String,
    /// Whose it is, by the newest state.
    pub profile: Option<ProfileId>,
    /// The newest state and its version; `None` before any came.
    pub state: Option<(Order, Version)>,
    /// Refunds by Shopify's id.
    pub refunds: BTreeMap<String, Refund>,
    /// Fulfillments by Shopify's id.
    pub fulfillments: BTreeMap<String, Fulfillment>,
    /// When it was deleted, if it was.
    pub deleted_at: Option<Timestamp>,
    /// Whether its customer was erased: it stays without one, and without what would lead to one.
    pub erased: bool,
    /// How often the store has written it; 0 before the first time.
    pub revision: i32,
}

impl OrderRecord {
    /// An order of which nothing is known.
    pub fn new(shop: &str, id: &str) -> Self {
        Self {
            shop: shop.to_owned(),
            id: id.to_owned(),
            profile: None,
            state: None,
            refunds: BTreeMap::new(),
            fulfillments: BTreeMap::new(),
            deleted_at: None,
            erased: false,
            revision: 0,
        }
    }

    /// Refunds of which only the sum was kept, in the order's currency: until a state tells them one by one.
    pub fn with_refunds_in_sum(mut self, sum: Decimal) -> Self {
        if !sum.is_zero() {
            let at_ms = self.state.as_ref().map_or(0, |(_, version)| version.0);
            let refund = Refund { at_ms, amount: sum, currency: None, version: (i64::MIN, String::new()) };
            self.refunds.insert(SUM.to_owned(), refund);
        }
        self
    }

    /// Takes in what a delivery says; `profile` is whose event it was.
    pub fn apply(&mut self, update: &OrderUpdate, message_id: &str, profile: Option<ProfileId>) {
        let version = (update.updated_at.timestamp_millis(), message_id.to_owned());
        if let Some(state) = &update.state
            && self.state.as_ref().is_none_or(|(_, held)| version > *held)
        {
            self.state = Some(((**state).clone(), version));
            self.profile = profile.filter(|_| !self.erased);
        }
        for (id, refund) in &update.refunds {
            match self.refunds.get(id) {
                Some(held) if held.version >= refund.version => {}
                _ => drop(self.refunds.insert(id.clone(), refund.clone())),
            }
        }
        for (id, fulfillment) in update.fulfillments.iter().filter(|_| !self.erased) {
            match self.fulfillments.get(id) {
                Some(held) if held.version >= fulfillment.version => {}
                _ => drop(self.fulfillments.insert(id.clone(), fulfillment.clone())),
            }
        }
        self.deleted_at = match (self.deleted_at, update.deleted_at) {
            (Some(held), Some(other)) => Some(held.min(other)),
            (held, other) => held.or(other),
        };
    }

    /// Takes the customer out, for good.
    pub fn erase(&mut self) {
        self.erased = true;
        self.profile = None;
        self.fulfillments.clear();
    }

    /// The newest state.
    pub fn order(&self) -> Option<&Order> {
        self.state.as_ref().map(|(order, _)| order)
    }

    /// Whether it counts into a customer's orders and revenue: known, and neither a test nor cancelled nor deleted.
    pub fn counts(&self) -> bool {
        self.deleted_at.is_none()
            && self.order().is_some_and(|order| !order.test && order.cancelled_at.is_none())
    }

    /// What it brought, in the shop's currency.
    pub fn revenue(&self) -> Decimal {
        self.order().map_or(Decimal::ZERO, |order| order.total - order.gift_cards)
    }

    /// What was paid back, in the shop's currency. A refund in a currency that the order does not know is left out.
    pub fn refunded(&self) -> Decimal {
        let told = self.refunds.keys().any(|id| id != SUM);
        let counting = self.refunds.iter().filter(|(id, _)| !told || *id != SUM);
        counting.filter_map(|(_, refund)| self.in_shop_currency(refund)).sum()
    }

    /// A refund in the shop's currency; one that was paid in the customer's is converted as the order itself was.
    pub fn in_shop_currency(&self, refund: &Refund) -> Option<Decimal> {
        let order = self.order()?;
        let Some(currency) = refund.currency.as_deref().filter(|currency| *currency != order.currency) else {
            return Some(refund.amount);
        };
        let seen = order.presentment.as_ref().filter(|seen| seen.currency == currency)?;
        let part = refund.amount.checked_div(seen.amount)?;
        let converted = part.checked_mul(order.total)?.round_dp(minor_digits(&order.currency));
        (converted.abs() <= money::MAX_AMOUNT).then_some(converted)
    }

    /// The newest state's version; the beginning of time before any came.
    pub fn version(&self) -> Version {
        self.state.as_ref().map_or((0, String::new()), |(_, version)| version.clone())
    }

    /// When it was ordered, as far as that is known.
    pub fn ordered_at(&self) -> Timestamp {
        self.order().map_or_else(|| from_ms(0), |order| order.ordered_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(currency: &str, total: i64) -> Box<Order> {
        Box::new(Order {
            name: None,
            ordered_at: from_ms(0),
            cancelled_at: None,
            test: false,
            currency: currency.into(),
            total: total.into(),
            gift_cards: Decimal::ZERO,
            presentment: Some(Amount { amount: (total * 2).into(), currency: "EUR".into() }),
            financial_status: None,
            fulfillment_status: None,
            items: vec![],
        })
    }

    fn refund(amount: i64, currency: Option<&str>, at: i64) -> Refund {
        let version = (at, format!("m{at}"));
        Refund { at_ms: at, amount: amount.into(), currency: currency.map(str::to_owned), version }
    }

    fn update(number: i64, kind: u8) -> OrderUpdate {
        let mut update = OrderUpdate { updated_at: from_ms(number), ..OrderUpdate::default() };
        let id = (number % 2).to_string();
        match kind {
            0 => update.state = Some(order("USD", 100 + number)),
            1 => drop(update.refunds.insert(id, refund(number, None, number))),
            2 => drop(update.refunds.insert(id, refund(number, Some("EUR"), number))),
            3 => update.deleted_at = Some(from_ms(number)),
            _ => {
                let version = (number, format!("m{number}"));
                let status = Some(format!("s{number}"));
                let parcel = Fulfillment { status, at_ms: number, company: None, number: None, version };
                update.fulfillments.insert(id, parcel);
            }
        }
        update
    }

    proptest! {
        #[test]
        fn any_order_of_deliveries_ends_in_the_same_record(
            kinds in prop::collection::vec(0_u8..5, 1..12),
            swaps in prop::collection::vec((0_usize..12, 0_usize..12), 0..24),
        ) {
            let updates: Vec<(i64, OrderUpdate)> =
                kinds.iter().enumerate().map(|(at, kind)| (at as i64, update(at as i64, *kind))).collect();
            let mut shuffled = updates.clone();
            shuffled.extend(updates.iter().take(3).cloned());
            for (a, b) in swaps {
                let len = shuffled.len();
                shuffled.swap(a % len, b % len);
            }
            let end = |updates: &[(i64, OrderUpdate)]| {
                let mut record = OrderRecord::new("s", "1");
                for (number, update) in updates {
                    record.apply(update, &format!("m{number}"), None);
                }
                record
            };
            let (first, second) = (end(&updates), end(&shuffled));
            prop_assert_eq!(first.refunded(), second.refunded());
            prop_assert_eq!(first, second);
        }
    }

    #[test]
    fn a_refund_in_the_customers_currency_counts_in_the_shops() {
        let mut record = OrderRecord::new("s", "1");
        record.apply(&OrderUpdate { state: Some(order("USD", 50)), ..OrderUpdate::default() }, "m", None);
        record.refunds.insert("1".into(), refund(20, Some("EUR"), 1));
        record.refunds.insert("2".into(), refund(5, None, 1));
        record.refunds.insert("3".into(), refund(5, Some("JPY"), 1));
        assert_eq!(
            record.refunded(),
            Decimal::from(15),
            "20 of 100 EUR are 10 of 50 USD; yen were never spoken of"
        );
    }

    #[test]
    fn a_sum_of_refunds_gives_way_to_the_refunds_themselves() {
        let mut record = OrderRecord::new("s", "1");
        record.apply(&OrderUpdate { state: Some(order("USD", 50)), ..OrderUpdate::default() }, "m", None);
        let mut record = record.with_refunds_in_sum(Decimal::TEN);
        assert_eq!(record.refunded(), Decimal::TEN);
        let refunds = BTreeMap::from([("1".to_owned(), refund(7, None, 1))]);
        let state = Some(order("USD", 50));
        record.apply(&OrderUpdate { state, refunds, ..OrderUpdate::default() }, "n", None);
        assert_eq!(record.refunded(), Decimal::from(7));
    }
}
