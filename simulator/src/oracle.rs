//! What must be true of customers after any stream of events, by the plainest means: everything is compared with everything,
//! over and over, until nothing changes. Slow, and easy to believe. It shares no code with Tributary's core.

use std::collections::{BTreeMap, BTreeSet};

/// What one event says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its message id: the same event may come many times.
    pub message: String,
    /// When it happened, in milliseconds since 1970.
    pub at_ms: i64,
    /// Whom it is about: kind and value.
    pub identifiers: Vec<(&'static str, String)>,
    /// What it says of them.
    pub traits: Vec<(String, String)>,
    /// What it says of an order.
    pub order: Option<OrderSaid>,
}

/// What an event says of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSaid {
    pub id: String,
    pub updated_ms: i64,
    pub what: Happened,
}

/// What happened to an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Its state: what it costs, and whether it was cancelled.
    State {
        total: i64,
        /// Whether it counts no more.
        cancelled: bool,
    },
    /// Money was paid back.
    Refund {
        id: String,
        /// How much, in whole units.
        amount: i64,
    },
    Deleted,
}

/// A customer as they must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Person {
    pub identifiers: BTreeSet<(String, String)>,
    /// How many events took effect.
    pub events: usize,
    pub traits: BTreeMap<String, String>,
    pub orders: usize,
    pub revenue: i64,
    /// What was paid back of it.
    pub refunded: i64,
}

/// The customers that a stream makes.
pub fn people(stream: &[Said]) -> BTreeSet<Person> {
    // The same message is the same event, however often it comes.
    let events: BTreeMap<&str, &Said> = stream.iter().map(|said| (said.message.as_str(), said)).collect();
    let mut sets: Vec<BTreeSet<(&'static str, String)>> = events
        .values()
        .map(|said| said.identifiers.iter().cloned().collect::<BTreeSet<_>>())
        .filter(|set| !set.is_empty())
        .collect();
    loop {
        let before = sets.len();
        let mut joined: Vec<BTreeSet<(&'static str, String)>> = Vec::new();
        for set in sets {
            match joined.iter_mut().find(|other| !other.is_disjoint(&set)) {
                Some(other) => other.extend(set),
                None => joined.push(set),
            }
        }
        sets = joined;
        if sets.len() == before {
            break;
        }
    }
    sets.into_iter().map(|set| person(&set, &events)).collect()
}

fn person(set: &BTreeSet<(&'static str, String)>, events: &BTreeMap<&str, &Said>) -> Person {
    let own: Vec<&&Said> = events
        .values()
        .filter(|said| said.identifiers.iter().any(|identifier| set.contains(identifier)))
        .collect();
    let mut person = Person {
        identifiers: set.iter().map(|(kind, value)| ((*kind).to_owned(), value.clone())).collect(),
        events: own.len(),
        ..Person::default()
    };
    let names: BTreeSet<&String> = own.iter().flat_map(|said| &said.traits).map(|(name, _)| name).collect();
    for name in names {
        // The newest says what holds; of two of one time the greater message.
        let newest = own
            .iter()
            .filter(|said| said.traits.iter().any(|(own, _)| own == name))
            .max_by_key(|said| (said.at_ms, &said.message));
        if let Some((_, value)) = newest.and_then(|said| said.traits.iter().rfind(|(own, _)| own == name)) {
            person.traits.insert(name.clone(), value.clone());
        }
    }
    let ids: BTreeSet<&String> = events.values().filter_map(|said| Some(&said.order.as_ref()?.id)).collect();
    for id in ids {
        let about: Vec<(&&Said, &OrderSaid)> = events
            .values()
            .filter_map(|said| Some((said, said.order.as_ref().filter(|order| order.id == *id)?)))
            .collect();
        let newest = about
            .iter()
            .filter_map(|(said, order)| match order.what {
                Happened::State { total, cancelled } => {
                    Some((order.updated_ms, &said.message, said, total, cancelled))
                }
                _ => None,
            })
            .max_by_key(|(updated, message, ..)| (*updated, *message));
        // An order is whose newest state names them.
        let Some((_, _, said, total, cancelled)) = newest else { continue };
        let deleted = about.iter().any(|(_, order)| order.what == Happened::Deleted);
        if cancelled || deleted || !said.identifiers.iter().any(|identifier| set.contains(identifier)) {
            continue;
        }
        let mut refunds: BTreeMap<&String, (i64, &String, i64)> = BTreeMap::new();
        for (said, order) in &about {
            if let Happened::Refund { id, amount } = &order.what {
                let told = (order.updated_ms, &said.message, *amount);
                let held = refunds.entry(id).or_insert(told);
                if (told.0, told.1) > (held.0, held.1) {
                    *held = told;
                }
            }
        }
        person.orders += 1;
        person.revenue += total;
        person.refunded += refunds.values().map(|(.., amount)| amount).sum::<i64>();
    }
    person
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &str, at_ms: i64, users: &[&str], value: &str) -> Said {
        Said {
            message: message.into(),
            at_ms,
            identifiers: users.iter().map(|user| ("user_id", (*user).to_owned())).collect(),
            traits: vec![("plan".into(), value.into())],
            order: None,
        }
    }

    #[test]
    fn a_link_joins_and_the_newest_trait_holds() {
        let mut refund = said("r", 9, &[], "");
        refund.order = Some(OrderSaid {
            id: "1".into(),
            updated_ms: 9,
            what: Happened::Refund { id: "x".into(), amount: 4 },
        });
        let mut order = said("o", 1, &["b"], "old");
        order.order = Some(OrderSaid {
            id: "1".into(),
            updated_ms: 1,
            what: Happened::State { total: 10, cancelled: false },
        });
        let stream = [
            said("1", 5, &["a"], "gold"),
            refund,
            order,
            said("2", 4, &["a", "b"], "free"),
            said("3", 0, &["c"], "x"),
        ];
        let people = people(&stream);
        assert_eq!(people.len(), 2);
        let joined = people.iter().find(|person| person.identifiers.len() == 2).unwrap();
        assert_eq!((joined.events, joined.traits["plan"].as_str()), (3, "gold"));
        assert_eq!((joined.orders, joined.revenue, joined.refunded), (1, 10, 4));
    }
}
