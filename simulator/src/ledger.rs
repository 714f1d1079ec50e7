//! What must be true when everything has been processed: who the customers are, how many events each has, what they
//! ordered. Made from the facts alone, by the plainest means.

use std::collections::{BTreeMap, BTreeSet};

use crate::delivery::{Delivery, OrderState};

/// The truth about a stream of deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Every customer, in order of first appearance.
    pub customers: Vec<Customer>,
}

/// The truth about one customer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Customer {
    /// All identifiers, `(kind, value)`.
    pub identifiers: BTreeSet<(&'static str, String)>,
    pub events: BTreeSet<String>,
    /// The newest state of each order.
    newest: BTreeMap<u64, OrderState>,
}

impl Customer {
    /// The newest state of each order.
    pub fn orders(&self) -> impl Iterator<Item = &OrderState> {
        self.newest.values()
    }

    /// How many orders count.
    pub fn orders_count(&self) -> u64 {
        self.orders().filter(|order| order.counts).count() as u64
    }

    /// What the orders that count cost, in cents by currency.
    pub fn revenue_cents(&self) -> BTreeMap<&'static str, i64> {
        self.sum(|order| order.total_cents)
    }

    /// What was paid back of it, in cents by currency.
    pub fn refunded_cents(&self) -> BTreeMap<&'static str, i64> {
        self.sum(|order| order.refunded_cents)
    }

    fn sum(&self, pick: fn(&OrderState) -> i64) -> BTreeMap<&'static str, i64> {
        let mut sums = BTreeMap::new();
        for order in self.orders().filter(|order| order.counts) {
            *sums.entry(order.currency).or_default() += pick(order);
        }
        sums
    }

    fn absorb(&mut self, other: Self) {
        self.identifiers.extend(other.identifiers);
        self.events.extend(other.events);
        for order in other.newest.into_values() {
            self.observe(order);
        }
    }

    fn observe(&mut self, order: OrderState) {
        match self.newest.get(&order.id) {
            Some(held) if held.updated_ms >= order.updated_ms => {}
            _ => {
                self.newest.insert(order.id, order);
            }
        }
    }
}

impl Ledger {
    /// The truth about those deliveries, each counted once.
    pub fn of<'d>(deliveries: impl IntoIterator<Item = &'d Delivery>) -> Self {
        // One customer after the other; a fact that speaks of several makes them one.
        let mut customers: Vec<Option<Customer>> = Vec::new();
        let mut owner: BTreeMap<(&'static str, String), usize> = BTreeMap::new();
        for fact in deliveries.into_iter().flat_map(|delivery| &delivery.facts) {
            let met: BTreeSet<usize> =
                fact.identifiers.iter().filter_map(|i| owner.get(i).copied()).collect();
            let home = met.first().copied().unwrap_or_else(|| {
                customers.push(Some(Customer::default()));
                customers.len() - 1
            });
            let mut whole = customers[home].take().unwrap_or_default();
            for other in met.into_iter().filter(|other| *other != home) {
                whole.absorb(customers[other].take().unwrap_or_default());
            }
            whole.identifiers.extend(fact.identifiers.iter().cloned());
            whole.events.insert(fact.event.clone());
            if let Some(order) = &fact.order {
                whole.observe(order.clone());
            }
            for identifier in &whole.identifiers {
                owner.insert(identifier.clone(), home);
            }
            customers[home] = Some(whole);
        }
        Self { customers: customers.into_iter().flatten().collect() }
    }

    /// How many different events there are.
    pub fn events(&self) -> usize {
        self.customers.iter().map(|customer| customer.events.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::{Fact, To};

    fn delivery(event: &str, identifiers: &[&str], order: Option<OrderState>) -> Delivery {
        let identifiers = identifiers.iter().map(|value| ("user_id", (*value).to_owned())).collect();
        Delivery {
            made_ms: 0,
            send_ms: 0,
            to: To::Segment { path: "track" },
            body: String::new(),
            facts: vec![Fact { event: event.into(), identifiers, order }],
        }
    }

    #[test]
    fn a_fact_about_two_customers_makes_them_one_and_the_newest_order_wins() {
        let order = |updated_ms, total_cents| {
            Some(OrderState {
                id: 1,
                updated_ms,
                currency: "USD",
                total_cents,
                refunded_cents: 0,
                counts: true,
            })
        };
        let deliveries = [
            delivery("1", &["a"], order(2, 200)),
            delivery("2", &["b"], order(1, 100)),
            delivery("3", &["c"], None),
            delivery("4", &["a", "b"], None),
            delivery("4", &["a", "b"], None),
        ];
        let ledger = Ledger::of(&deliveries);
        assert_eq!(ledger.customers.len(), 2);
        let joined = ledger.customers.iter().find(|c| c.events.len() == 3).unwrap();
        assert_eq!((joined.orders_count(), joined.revenue_cents()["USD"]), (1, 200));
        assert_eq!(ledger.events(), 4);
    }
}
