//! A campaign: carts that are left and carts that are bought, customers who stay away and customers who come back; and the ledger
//! of which actions must fire exactly once for whom, and which must not.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// How long a cart may be left before its customer is reminded, in seconds: longer than a drill keeps an order from being processed.
pub const CART_WAIT_S: u32 = 20;
/// How long ago the orders of those are who stay away, in days: at risk, by the usual bounds.
const AWAY_DAYS: i64 = 150;
const DAY_MS: i64 = 86_400_000;

#[derive(Clone, Debug, PartialEq)]
pub struct Act {
    /// When it happens, in milliseconds since the campaign began; before it, for what is long past.
    pub at_ms: i64,
    /// When it is sent.
    pub send_ms: i64,
    pub what: What,
}

/// What is sent of an act.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// A message for Segment's API, without its time.
    Segment(Value),
    /// An order, as Shopify tells of it, without its times.
    Order(Value),
}

/// What must have fired when all is over, by `(automation, customer)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActionLedger {
    /// Exactly once, and not before that many milliseconds since the campaign began.
    pub once: BTreeMap<(String, String), i64>,
    pub never: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub struct Campaign {
    /// In the order of sending.
    pub acts: Vec<Act>,
    pub ledger: ActionLedger,
}

/// The automations that a campaign needs: they post to `url/{name}`.
pub fn automations(url: &str) -> Vec<(&'static str, Value)> {
    let hook = |name: &str| json!({"do": "webhook", "url": format!("{url}/{name}"), "data": {"customer": "{{ customer.email }}"}});
    vec![
        (
            "cart",
            json!({
                "name": "ledger: carts",
                "trigger": {"on": "event", "event": "Checkout Started"},
                "cancel_on": [{"event": "Order Created"}],
                "steps": [{"do": "wait", "for": {"seconds": CART_WAIT_S}}, hook("cart"), {"do": "add_tag", "tag": "reminded"}],
            }),
        ),
        (
            "winback",
            json!({
                "name": "ledger: win-backs",
                "trigger": {"on": "segment_enter", "segment": "rfm_at_risk"},
                "reentry": {"mode": "once"},
                "steps": [hook("winback")],
            }),
        ),
    ]
}

/// A campaign of so many customers over so many milliseconds; the same seed makes the same one.
pub fn campaign(seed: u64, customers: usize, over_ms: i64) -> Campaign {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut acts, mut ledger) = (Vec::new(), ActionLedger::default());
    for number in 0..customers {
        let user = format!("c{seed}-{number}");
        let email = format!("{user}@ledger.example");
        let begins = rng.random_range(0..over_ms.max(1));
        let identify = json!({"type": "identify", "userId": user, "messageId": format!("{user}-who"),
            "traits": {"email": email}});
        let act = |at_ms: i64, send_ms: i64, what: What| Act { at_ms, send_ms, what };
        let order = |which: usize| {
            What::Order(
                json!({"id": seed * 1_000_000 + (number * 10 + which) as u64, "email": email, "total_price": "20.00",
                "currency": "EUR"}),
            )
        };
        acts.push(act(begins, begins, What::Segment(identify)));
        let checkout = || {
            let message = format!("{user}-cart");
            What::Segment(
                json!({"type": "track", "event": "Checkout Started", "userId": user, "messageId": message}),
            )
        };
        // By e-mail: that is known by whatever of theirs arrives first.
        let key = |automation: &str| (automation.to_owned(), email.clone());
        match number % 10 {
            // left
            0..5 => {
                acts.push(act(begins + 10, begins + 10, checkout()));
                ledger.once.insert(key("cart"), begins + 10 + i64::from(CART_WAIT_S) * 1000);
                ledger.never.push(key("winback"));
            }
            // bought; of some, the order is known before the checkout is
            5..8 => {
                let later = rng.random_range(50..1000);
                let (first, second) = if rng.random() { (later, 0) } else { (0, later) };
                acts.push(act(begins + 10, begins + 10 + first, checkout()));
                acts.push(act(begins + 10 + later, begins + 10 + second, order(0)));
                ledger.never.extend([key("cart"), key("winback")]);
            }
            // stays away
            8 => {
                for which in 0..2 {
                    acts.push(act(-AWAY_DAYS * DAY_MS - which as i64 * DAY_MS, begins + 20, order(which)));
                }
                ledger.once.insert(key("winback"), begins);
                ledger.never.push(key("cart"));
            }
            // came back
            _ => {
                acts.push(act(begins, begins + 20, order(0)));
                acts.push(act(-AWAY_DAYS * DAY_MS, begins + 2000, order(1)));
                ledger.never.extend([key("cart"), key("winback")]);
            }
        }
    }
    // Senders repeat themselves.
    let mut again: Vec<Act> = acts.iter().filter(|_| rng.random_range(0..100) < 15).cloned().collect();
    again.iter_mut().for_each(|act| act.send_ms += rng.random_range(0..1500));
    acts.extend(again);
    acts.shuffle(&mut rng);
    acts.sort_by_key(|act| act.send_ms);
    Campaign { acts, ledger }
}

/// An action that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fired {
    pub automation: String,
    pub customer: String,
    pub key: String,
    /// When, in milliseconds since the campaign began.
    pub at_ms: i64,
}

/// What was received, beside what should have been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActionVerdict {
    /// Actions that had to fire.
    pub due: usize,
    /// Those that did not.
    pub missing: usize,
    /// Those that fired under more than one key.
    pub doubled: usize,
    /// Those that fired before their time.
    pub early: usize,
    /// Those that must never have fired, or that nobody knows of.
    pub unexpected: usize,
    /// Repetitions under the same key, which receivers can tell: kills cause them.
    pub repeated: usize,
}

impl ActionVerdict {
    /// Whether it is as it should be.
    pub fn is_clean(&self) -> bool {
        self.due > 0 && (self.missing, self.doubled, self.early, self.unexpected) == (0, 0, 0, 0)
    }
}

impl ActionLedger {
    /// Compares what was received with the truth.
    pub fn compare(&self, fired: &[Fired]) -> ActionVerdict {
        let mut of: BTreeMap<(String, String), Vec<&Fired>> = BTreeMap::new();
        for one in fired {
            of.entry((one.automation.clone(), one.customer.clone())).or_default().push(one);
        }
        let mut verdict = ActionVerdict { due: self.once.len(), ..ActionVerdict::default() };
        for (key, not_before) in &self.once {
            let Some(all) = of.remove(key) else {
                verdict.missing += 1;
                continue;
            };
            let keys: std::collections::BTreeSet<&String> = all.iter().map(|one| &one.key).collect();
            verdict.doubled += usize::from(keys.len() > 1);
            verdict.repeated += all.len() - keys.len();
            verdict.early += usize::from(all.iter().any(|one| one.at_ms < *not_before));
        }
        verdict.unexpected = of.len();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(automation: &str, customer: &str, key: &str, at_ms: i64) -> Fired {
        Fired { automation: automation.into(), customer: customer.into(), key: key.into(), at_ms }
    }

    #[test]
    fn the_same_seed_makes_the_same_campaign_with_all_sorts_in_it() {
        let one = campaign(7, 100, 5000);
        assert_eq!((one.acts.clone(), one.ledger.clone()), {
            let again = campaign(7, 100, 5000);
            (again.acts, again.ledger)
        });
        let of = |name: &str| one.ledger.once.keys().filter(|(automation, _)| automation == name).count();
        assert_eq!((of("cart"), of("winback")), (50, 10));
        assert_eq!(one.ledger.once.len() + one.ledger.never.len(), 200);
    }

    #[test]
    fn a_ledger_tells_what_is_missing_doubled_early_and_unexpected() {
        let ledger = campaign(1, 10, 1000).ledger;
        let right: Vec<Fired> = ledger
            .once
            .iter()
            .map(|((automation, who), at)| fired(automation, who, &format!("k-{who}"), *at))
            .collect();
        assert!(ledger.compare(&right).is_clean());
        assert_eq!(ledger.compare(&right[1..]).missing, 1);
        let mut wrong = right.clone();
        wrong.push(Fired { key: "other".into(), ..right[0].clone() });
        wrong.push(right[1].clone());
        wrong[2].at_ms -= 1;
        wrong.push(fired("cart", "c1-7", "k", 99_999));
        let verdict = ledger.compare(&wrong);
        assert_eq!((verdict.doubled, verdict.repeated, verdict.early, verdict.unexpected), (1, 1, 1, 1));
        assert!(!verdict.is_clean());
    }
}
