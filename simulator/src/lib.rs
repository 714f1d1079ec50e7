//! A seeded Shopify shop: customers who browse, fill carts, sign in, use a second device and order; the deliveries that a
//! browser and Shopify would send of it, with duplicates and disorder; and the [`ledger`] of what must be true afterwards.
//!
//! The same [`Plan`] makes the same bytes. The ledger is an oracle of its own: it shares no code with Tributary's core, so
//! that a mistake there cannot hide here.

// Time, ids and randomness are the World's (clippy.toml).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod actions;
pub mod delivery;
pub mod journey;
pub mod ledger;
pub mod oracle;
pub mod shop;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::delivery::Delivery;
use crate::ledger::Ledger;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The same seed, the same bytes.
    pub seed: u64,
    /// About how many events; whole journeys are made until there are as many.
    pub events: usize,
    pub shop: &'static str,
    /// How many of a hundred deliveries are sent twice.
    pub duplicates_percent: u32,
    /// How far a delivery may be late, in simulated milliseconds.
    pub disorder_ms: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            seed: 1,
            events: 50_000,
            shop: "stack.myshopify.com",
            duplicates_percent: 3,
            disorder_ms: 10 * 60_000,
        }
    }
}

/// A simulated day: what is sent, in the order of sending, and what must be true afterwards.
#[derive(Clone, Debug)]
pub struct Day {
    /// Each delivery with the time of its sending, in simulated milliseconds since the day began.
    pub deliveries: Vec<Delivery>,
    pub ledger: Ledger,
}

pub fn simulate(plan: &Plan) -> Day {
    let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
    let mut once: Vec<Delivery> = Vec::new();
    let mut events = 0;
    let mut customer = 0;
    while events < plan.events {
        customer += 1;
        let journey = journey::journey(&mut rng, plan.shop, customer);
        events += journey.iter().map(|delivery| delivery.facts.len()).sum::<usize>();
        once.extend(journey);
    }
    let ledger = Ledger::of(&once);
    let mut deliveries = Vec::with_capacity(once.len() + once.len() / 20);
    for mut delivery in once {
        delivery.send_ms += rng.random_range(0..=plan.disorder_ms);
        if rng.random_range(0..100) < plan.duplicates_percent {
            let mut again = delivery.clone();
            again.send_ms += rng.random_range(0..=plan.disorder_ms);
            deliveries.push(again);
        }
        deliveries.push(delivery);
    }
    deliveries.sort_by_key(|delivery| delivery.send_ms);
    Day { deliveries, ledger }
}

/// The same deliveries, each twice, in an order drawn from `seed`: what must end in the same customers.
pub fn doubled_and_shuffled(deliveries: &[Delivery], seed: u64) -> Vec<Delivery> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all: Vec<Delivery> = deliveries.iter().chain(deliveries).cloned().collect();
    all.shuffle(&mut rng);
    all
}

/// `digits` random hexadecimal digits.
fn hex(rng: &mut impl Rng, digits: usize) -> String {
    (0..digits).map(|_| char::from_digit(rng.random_range(0..16), 16).unwrap_or('0')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_bytes_and_another_seed_others() {
        let plan = Plan { events: 500, ..Plan::default() };
        let (first, second) = (simulate(&plan), simulate(&plan));
        assert_eq!(first.deliveries, second.deliveries);
        assert_eq!(first.ledger, second.ledger);
        assert_ne!(first.deliveries, simulate(&Plan { seed: 2, ..plan }).deliveries);
    }

    #[test]
    fn a_day_has_what_a_real_one_has() {
        let plan = Plan { events: 5000, ..Plan::default() };
        let day = simulate(&plan);
        let sent: usize = day.deliveries.iter().map(|d| d.facts.len()).sum();
        let truth = &day.ledger;
        assert!(truth.events() >= 5000 && sent > truth.events(), "{} sent, {} true", sent, truth.events());
        assert!(
            truth.customers.iter().any(|c| c.identifiers.len() >= 5),
            "a customer on two devices who ordered"
        );
        assert!(truth.customers.iter().any(|c| c.identifiers.len() == 1), "a visitor who stayed anonymous");
        assert!(truth.customers.iter().any(|c| c.orders().any(|o| o.refunded_cents > 0)), "a refund");
        assert!(truth.customers.iter().any(|c| c.orders().any(|o| !o.counts)), "a cancelled order");
        let late = day.deliveries.windows(2).filter(|w| w[1].made_ms < w[0].made_ms).count();
        assert!(late > day.deliveries.len() / 20, "disorder: {late} of {}", day.deliveries.len());
    }
}
