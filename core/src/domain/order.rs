//! An order as the customer's profile knows it: a state, and what happened to it.
//!
//! Deliveries about one order arrive in any order and more than once. [`OrderRecord::apply`] takes them in so that every
//! sequence of the same deliveries ends in the same record: of each part of the state the newest report that mentions it wins, by its
//! [`Version`], each refund and each fulfillment by its own, and a deleted order stays deleted. A refund may come before its order.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};

use super::ids::ProfileId;
use super::money::{self, minor_digits};
use super::time::{Timestamp, from_ms};
use super::version::{Version, Versions};

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
    /// What was sold in all, in `currency`, whatever was taken out or paid back later.
    pub total: Decimal,
    /// The total without what was taken out and what was returned, where that is stated.
    pub current_total: Option<Decimal>,
    /// The total in the currency that the customer saw, where that is another.
    pub presentment: Option<Amount>,
    pub financial_status: Option<String>,
    pub fulfillment_status: Option<String>,
    pub items: Vec<Item>,
}

impl Order {
    /// An order of which nothing is known.
    fn unknown() -> Self {
        Self {
            name: None,
            ordered_at: from_ms(0),
            cancelled_at: None,
            test: false,
            currency: UNKNOWN_CURRENCY.to_owned(),
            total: Decimal::ZERO,
            current_total: None,
            presentment: None,
            financial_status: None,
            fulfillment_status: None,
            items: Vec::new(),
        }
    }

    /// What of it bought gift cards: money taken in advance, which is revenue when the card is used.
    pub fn gift_cards(&self) -> Decimal {
        let cards = self.items.iter().filter(|item| item.gift_card);
        // Nothing that is beyond the total counts, so nothing is lost where a sum would be beyond reason.
        let sum = cards
            .filter_map(|item| item.price.checked_mul(Decimal::from(item.quantity)))
            .fold(Decimal::ZERO, |sum, card| sum.checked_add(card).unwrap_or(sum));
        // A discount may make the whole cheaper than its cards.
        sum.clamp(Decimal::ZERO, self.total.max(Decimal::ZERO))
    }
}

/// The currency of an amount that came without one: ISO 4217's code for none.
pub const UNKNOWN_CURRENCY: &str = "XXX";

/// A part of an order's state. A delivery that does not mention one leaves it as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Name,
    /// When the customer ordered.
    OrderedAt,
    /// Whether and when it was cancelled.
    CancelledAt,
    /// Whether it is a test.
    Test,
    Currency,
    /// What was sold, in both currencies.
    Total,
    /// What is left of it.
    CurrentTotal,
    Payment,
    Shipping,
    Items,
    Customer,
}

impl Part {
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::OrderedAt,
        Self::CancelledAt,
        Self::Test,
        Self::Currency,
        Self::Total,
        Self::CurrentTotal,
        Self::Payment,
        Self::Shipping,
        Self::Items,
        Self::Customer,
    ];
}

/// An amount in a currency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub amount: Decimal,
    /// The currency, as an ISO 4217 code.
    pub currency: String,
}

/// One line of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub product_id: Option<String>,
    /// The shop's own article number.
    pub sku: Option<String>,
    /// What it is called.
    pub title: Option<String>,
    pub quantity: i64,
    /// The price of one, in the order's currency.
    pub price: Decimal,
    /// Whether it is a gift card.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gift_card: bool,
}

/// Money that was paid back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    /// When, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: i64,
    /// How much, in the currency of its payment; `None` for the order's.
    #[serde(rename = "a")]
    pub amount: Decimal,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Which report this is from.
    #[serde(rename = "v")]
    pub version: Version,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fulfillment {
    /// Shopify's state of it.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// When it was made, in milliseconds since 1970; 0 where nobody has said.
    #[serde(rename = "t")]
    pub at_ms: i64,
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub company: Option<String>,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    pub number: Option<String>,
    /// Which reports this is from.
    #[serde(flatten)]
    pub versions: Versions<FulfillmentPart>,
}

/// A part of what is known of a fulfillment. A delivery that does not mention one leaves it as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FulfillmentPart {
    #[serde(rename = "s")]
    Status,
    /// When it was made.
    #[serde(rename = "t")]
    At,
    #[serde(rename = "c")]
    Company,
    #[serde(rename = "n")]
    Number,
}

impl FulfillmentPart {
    pub const ALL: [Self; 4] = [Self::Status, Self::At, Self::Company, Self::Number];
}

impl Fulfillment {
    /// Takes in another report of the same fulfillment.
    fn take_in(&mut self, other: &Self) {
        self.versions.take_in(&other.versions, &FulfillmentPart::ALL, |part| match part {
            FulfillmentPart::Status => self.status.clone_from(&other.status),
            FulfillmentPart::At => self.at_ms = other.at_ms,
            FulfillmentPart::Company => self.company.clone_from(&other.company),
            FulfillmentPart::Number => self.number.clone_from(&other.number),
        });
    }
}

/// What one delivery says of an order. Parts without a version of their own have the delivery's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderUpdate {
    /// The shop's domain: order ids are the shop's.
    pub shop: String,
    pub id: String,
    /// The state's version: the newest wins.
    pub updated_at: Timestamp,
    /// What comes later of two with the same `updated_at`: see [`Version`].
    pub sequence: i64,
    /// The state, if the delivery has it.
    pub state: Option<Box<Order>>,
    /// The parts of the state that the delivery does not mention.
    pub left_out: Vec<Part>,
    /// Refunds by Shopify's id.
    pub refunds: BTreeMap<String, Refund>,
    /// Fulfillments by Shopify's id.
    pub fulfillments: BTreeMap<String, Fulfillment>,
    /// When the order was deleted.
    pub deleted_at: Option<Timestamp>,
}

impl OrderUpdate {
    /// With each time as `believed` has it.
    pub fn clamp(&mut self, believed: impl Fn(Timestamp) -> Timestamp) {
        let believed_ms = |at_ms: &mut i64| *at_ms = believed(from_ms(*at_ms)).timestamp_millis();
        self.updated_at = believed(self.updated_at);
        self.deleted_at = self.deleted_at.map(&believed);
        if let Some(state) = &mut self.state {
            state.ordered_at = believed(state.ordered_at);
            state.cancelled_at = state.cancelled_at.map(&believed);
        }
        for refund in self.refunds.values_mut() {
            believed_ms(&mut refund.at_ms);
            believed_ms(&mut refund.version.at_ms);
        }
        for fulfillment in self.fulfillments.values_mut() {
            believed_ms(&mut fulfillment.at_ms);
            fulfillment.versions.each(|version| believed_ms(&mut version.at_ms));
        }
    }

    fn version(&self, message_id: &str) -> Version {
        Version {
            at_ms: self.updated_at.timestamp_millis(),
            sequence: self.sequence,
            message_id: message_id.to_owned(),
        }
    }
}

/// The id under which refunds stand of which only their sum is known. Once they are reported one by one, it counts no more.
pub const SUM: &str = "sum";

/// All that is known of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderRecord {
    pub shop: String,
    pub id: String,
    /// Whose it is, by the newest state.
    pub profile: Option<ProfileId>,
    /// The newest state and where its parts are from; `None` before any came.
    pub state: Option<(Order, Versions<Part>)>,
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
            let at_ms = self.version().at_ms;
            let version = Version { at_ms: i64::MIN, ..Version::default() };
            let refund = Refund { at_ms, amount: sum, currency: None, version };
            self.refunds.insert(SUM.to_owned(), refund);
        }
        self
    }

    /// Takes in what a delivery says; `profile` is whose event it was.
    pub fn apply(&mut self, update: &OrderUpdate, message_id: &str, profile: Option<ProfileId>) {
        if let Some(state) = &update.state {
            let stated = Versions::stated(update.version(message_id), &update.left_out);
            self.take_in(state, &stated, profile);
        }
        for (id, refund) in &update.refunds {
            match self.refunds.get(id) {
                Some(held) if held.version >= refund.version => {}
                _ => drop(self.refunds.insert(id.clone(), refund.clone())),
            }
        }
        for (id, fulfillment) in update.fulfillments.iter().filter(|_| !self.erased) {
            self.fulfillments.entry(id.clone()).or_default().take_in(fulfillment);
        }
        self.deleted_at = self.deleted_at.into_iter().chain(update.deleted_at).min();
    }

    fn take_in(&mut self, state: &Order, stated: &Versions<Part>, profile: Option<ProfileId>) {
        let (held, versions) = self.state.get_or_insert_with(|| (Order::unknown(), Versions::default()));
        versions.take_in(stated, &Part::ALL, |part| match part {
            Part::Name => held.name.clone_from(&state.name),
            Part::OrderedAt => held.ordered_at = state.ordered_at,
            Part::CancelledAt => held.cancelled_at = state.cancelled_at,
            Part::Test => held.test = state.test,
            Part::Currency => held.currency.clone_from(&state.currency),
            Part::Total => {
                held.total = state.total;
                held.presentment.clone_from(&state.presentment);
            }
            Part::CurrentTotal => held.current_total = state.current_total,
            Part::Payment => held.financial_status.clone_from(&state.financial_status),
            Part::Shipping => held.fulfillment_status.clone_from(&state.fulfillment_status),
            Part::Items => held.items.clone_from(&state.items),
            Part::Customer => self.profile = profile.filter(|_| !self.erased),
        });
    }

    /// Takes the customer out, for good.
    pub fn erase(&mut self) {
        self.erased = true;
        self.profile = None;
        self.fulfillments.clear();
    }

    pub fn order(&self) -> Option<&Order> {
        self.state.as_ref().map(|(order, _)| order)
    }

    /// Whether it counts into a customer's orders and revenue: known by what was sold, and neither a test nor cancelled nor deleted.
    pub fn counts(&self) -> bool {
        self.deleted_at.is_none()
            && self.state.as_ref().is_some_and(|(order, versions)| {
                versions.tell(Part::Total) && !order.test && order.cancelled_at.is_none()
            })
    }

    /// What the customer owed in all, in the shop's currency, before anything was paid back. What was taken out of an order is owed no
    /// more: Shopify's current total is without it, and without what was paid back, which counts apart.
    pub fn total(&self) -> Decimal {
        let Some(order) = self.order() else { return Decimal::ZERO };
        let left = order.current_total.and_then(|current| current.checked_add(self.refunded()));
        left.map_or(order.total, |left| left.min(order.total))
    }

    /// What it brought, in the shop's currency.
    pub fn revenue(&self) -> Decimal {
        self.order().map_or(Decimal::ZERO, |order| self.total() - order.gift_cards().min(self.total()))
    }

    /// What was paid back, in the shop's currency. A refund in a currency that the order does not know is left out.
    pub fn refunded(&self) -> Decimal {
        let stated = self.refunds.keys().any(|id| id != SUM);
        let counting = self.refunds.iter().filter(|(id, _)| !stated || *id != SUM);
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

    /// The version of the newest report of the state; none before any came.
    pub fn version(&self) -> Version {
        self.state.as_ref().map(|(_, versions)| versions.newest().clone()).unwrap_or_default()
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
            current_total: None,
            presentment: Some(Amount { amount: (total * 2).into(), currency: "EUR".into() }),
            financial_status: None,
            fulfillment_status: None,
            items: vec![],
        })
    }

    fn version(at_ms: i64) -> Version {
        Version { at_ms, sequence: at_ms % 3, message_id: format!("m{at_ms}") }
    }

    fn refund(amount: i64, currency: Option<&str>, at: i64) -> Refund {
        let version = version(at);
        Refund { at_ms: at, amount: amount.into(), currency: currency.map(str::to_owned), version }
    }

    fn update(number: i64, kind: u8) -> OrderUpdate {
        let mut update =
            OrderUpdate { updated_at: from_ms(number / 2), sequence: number % 2, ..OrderUpdate::default() };
        let id = (number % 2).to_string();
        match kind {
            0 => update.state = Some(order("USD", 100 + number)),
            // A body that mentions two parts, by turns.
            4 => {
                update.state = Some(order("USD", 200 + number));
                update.left_out =
                    Part::ALL.into_iter().filter(|part| (*part as i64 + number) % 5 > 1).collect();
            }
            1 => drop(update.refunds.insert(id, refund(number, None, number))),
            2 => drop(update.refunds.insert(id, refund(number, Some("EUR"), number))),
            3 => update.deleted_at = Some(from_ms(number)),
            _ => {
                let status = Some(format!("s{number}"));
                let left_out =
                    [[FulfillmentPart::At], [FulfillmentPart::Status]][usize::try_from(number % 2).unwrap()];
                let versions = Versions::stated(version(number), &left_out);
                let fulfillment =
                    Fulfillment { status, at_ms: number, company: None, number: None, versions };
                update.fulfillments.insert(id, fulfillment);
            }
        }
        update
    }

    proptest! {
        #[test]
        fn any_order_of_deliveries_ends_in_the_same_record(
            kinds in prop::collection::vec(0_u8..6, 1..12),
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
    fn what_a_delivery_does_not_mention_stays_and_what_was_taken_out_is_not_owed() {
        let owner = ProfileId::first_at(1);
        let mut record = OrderRecord::new("s", "1");
        let whole =
            OrderUpdate { updated_at: from_ms(1), state: Some(order("USD", 100)), ..OrderUpdate::default() };
        let left_out = Part::ALL.into_iter().filter(|part| *part != Part::Shipping).collect();
        let mut shipped = Order::unknown();
        shipped.fulfillment_status = Some("fulfilled".into());
        let part = OrderUpdate {
            updated_at: from_ms(2),
            state: Some(shipped.into()),
            left_out,
            ..OrderUpdate::default()
        };
        record.apply(&part, "b", None);
        assert!(!record.counts(), "nobody knows yet what was sold");
        record.apply(&whole, "a", Some(owner));
        let known = record.order().unwrap();
        assert_eq!(
            (known.total, known.fulfillment_status.as_deref()),
            (Decimal::from(100), Some("fulfilled"))
        );
        assert_eq!((record.profile, record.counts()), (Some(owner), true));
        let mut edited = order("USD", 100);
        edited.current_total = Some(60.into());
        record.apply(
            &OrderUpdate { updated_at: from_ms(3), state: Some(edited), ..OrderUpdate::default() },
            "c",
            None,
        );
        assert_eq!((record.revenue(), record.refunded()), (60.into(), Decimal::ZERO));
        record.refunds.insert("1".into(), refund(40, None, 1));
        assert_eq!(
            (record.revenue(), record.refunded()),
            (100.into(), 40.into()),
            "it was paid back: it had been sold"
        );
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
