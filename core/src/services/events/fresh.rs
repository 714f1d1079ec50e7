//! Which events of a batch take effect: each once, no webhook's body twice, nothing about who was erased.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::domain::event::Event;
use crate::domain::identity;
use crate::domain::ids::BrandId;
use crate::domain::time::from_ms;
use crate::domain::webhook::{self, Seen};
use crate::ports::store::{BodyRow, BrandIdentifier, EventId, KnownEvents, StoreError, StoreTx};
use crate::ports::world::World;

/// The events that are not known, the first of each message id, sorted by it.
pub(super) fn first_of_each<'e>(events: &'e [Event], known: &KnownEvents) -> Vec<Cow<'e, Event>> {
    let mut fresh: Vec<&Event> = events.iter().filter(|e| !known.contains_key(&EventId::of(e))).collect();
    fresh.sort_by(|a, b| (a.brand, &a.message_id).cmp(&(b.brand, &b.message_id)));
    fresh.dedup_by(|later, first| (later.brand, &later.message_id) == (first.brand, &first.message_id));
    fresh.into_iter().map(Cow::Borrowed).collect()
}

/// Leaves out webhooks whose body has taken effect before, under whatever headers it comes now, and notes the others' bodies.
pub(super) async fn leave_out_replays(
    tx: &mut dyn StoreTx,
    world: &World,
    fresh: &mut Vec<Cow<'_, Event>>,
) -> Result<(), StoreError> {
    let replayed: HashSet<usize> = {
        let mut claims: Vec<(usize, BodyRow<'_>)> =
            fresh.iter().enumerate().filter_map(|(at, event)| Some((at, body_row(event)?))).collect();
        if claims.is_empty() {
            return Ok(());
        }
        // As they came in: what was there first is the one that takes effect.
        claims.sort_by_key(|(at, _)| (fresh[*at].received_at, *at));
        let rows: Vec<BodyRow<'_>> = claims.iter().map(|(_, row)| row.clone()).collect();
        let known = tx.body_topics(&rows).await?;
        let mut here: BTreeMap<(BrandId, &str, [u8; 32]), Vec<String>> = BTreeMap::new();
        let (mut taken, mut replayed) = (Vec::new(), HashSet::new());
        for ((at, row), known) in claims.into_iter().zip(known) {
            let under = here.entry((row.brand, row.shop, row.digest)).or_insert(known);
            match webhook::seen(row.topic, under) {
                Seen::Never => {
                    under.push(row.topic.to_owned());
                    taken.push(row);
                }
                Seen::Before | Seen::Elsewhere => {
                    metrics::counter!("tributary_webhooks_replayed_total").increment(1);
                    replayed.insert(at);
                }
            }
        }
        taken.sort();
        if !taken.is_empty() {
            tx.claim_bodies(&taken, from_ms(world.now_ms())).await?;
        }
        replayed
    };
    let mut at = 0;
    fresh.retain(|_| {
        at += 1;
        !replayed.contains(&(at - 1))
    });
    Ok(())
}

fn body_row(event: &Event) -> Option<BodyRow<'_>> {
    let claim = event.claim.as_ref()?;
    Some(BodyRow {
        brand: event.brand,
        shop: event.shop.as_deref()?,
        digest: claim.digest,
        topic: &claim.topic,
        message_id: &event.message_id,
    })
}

/// Takes out what must not come back. An event that names somebody who was erased is kept without anything about them; a
/// browser or a cart of theirs, which others may use, is only left out.
pub(super) async fn forget_erased(
    tx: &mut dyn StoreTx,
    fresh: &mut [Cow<'_, Event>],
) -> Result<(), StoreError> {
    let named: BTreeSet<BrandIdentifier> = fresh
        .iter()
        .flat_map(|e| e.identifiers.iter().map(|i| BrandIdentifier::new(e.brand, i.clone())))
        .collect();
    let erased = tx.suppressed(&named.into_iter().collect::<Vec<_>>()).await?;
    for event in fresh {
        let brand = event.brand;
        let is_erased = |i: &identity::Identifier| erased.contains(&BrandIdentifier::new(brand, i.clone()));
        if !event.identifiers.iter().any(is_erased) {
            continue;
        }
        let personal = event.identifiers.iter().any(|i| i.kind.is_personal() && is_erased(i));
        if personal || event.identifiers.iter().all(is_erased) {
            *event = Cow::Owned(event.anonymised());
        } else {
            event.to_mut().identifiers.retain(|i| !erased.contains(&BrandIdentifier::new(brand, i.clone())));
        }
    }
    Ok(())
}
