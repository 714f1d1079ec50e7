//! What events say besides who somebody is: orders, products, consent, requests in the name of privacy.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::event::{Event, PrivacyAsk, ShopSubject};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::order::OrderUpdate;
use crate::domain::settings::SHOP_REDACTION_HOURS;
use crate::domain::time::{self, Timestamp};
use crate::ports::store::PrivacyAsks;
use crate::ports::store::{
    BrandOrder, ConsentRow, EventRow, OrderKey, PrivacyRow, ProductRow, StoreError, StoreTx,
};
use crate::ports::world::World;
use crate::services::brand_cache::BrandRules;

/// Reads the orders that the events speak of, takes in what they say, and writes them.
pub(super) async fn save_orders(
    tx: &mut dyn StoreTx,
    rows: &[EventRow<'_>],
    changed: &mut BTreeSet<(BrandId, ProfileId)>,
) -> Result<(), StoreError> {
    let updates = || rows.iter().filter_map(|row| Some((row, row.event.order.as_ref()?)));
    let key = |row: &EventRow<'_>, update: &OrderUpdate| OrderKey {
        brand: row.event.brand,
        shop: update.shop.clone(),
        id: update.id.clone(),
    };
    let keys: BTreeSet<OrderKey> = updates().map(|(row, update)| key(row, update)).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<OrderKey> = keys.into_iter().collect();
    let mut known: BTreeMap<OrderKey, OrderRecord> =
        tx.orders(&keys).await?.into_iter().map(|order| (order.key(), order.record)).collect();
    let mut unwanted = Vec::new();
    for (row, update) in updates() {
        let record =
            known.entry(key(row, update)).or_insert_with(|| OrderRecord::new(&update.shop, &update.id));
        if record.erased && row.profile.is_none() {
            unwanted.push((row.event.brand, row.event.message_id.clone()));
        }
        // Also when an order moves from one customer to another: the first one's answer is old, too.
        changed.extend(record.profile.map(|profile| (row.event.brand, profile)));
        if row.event.erased {
            record.erase();
        }
        record.apply(update, &row.event.message_id, row.profile);
        changed.extend(record.profile.map(|profile| (row.event.brand, profile)));
    }
    if !unwanted.is_empty() {
        tx.blank_events(&unwanted).await?;
    }
    let records: Vec<BrandOrder> =
        known.into_iter().map(|(key, record)| BrandOrder { brand: key.brand, record }).collect();
    tx.save_orders(&records).await
}

/// Writes what else the events say: products, consent, requests in the name of privacy.
pub(super) async fn save_the_rest(
    tx: &mut dyn StoreTx,
    world: &World,
    rules: &BrandRules,
    rows: &[EventRow<'_>],
    now: Timestamp,
) -> Result<(), StoreError> {
    let products = newest_products(rows);
    if !products.is_empty() {
        tx.save_products(&products).await?;
    }
    let consents: Vec<ConsentRow<'_>> = rows
        .iter()
        .filter_map(|row| Some((row.event, row.profile?)))
        .flat_map(|(event, profile)| {
            let said = event.consents.iter();
            said.map(move |consent| ConsentRow {
                brand: event.brand,
                message_id: &event.message_id,
                profile,
                source: event.source,
                sequence: event.sequence,
                consent,
            })
        })
        .collect();
    if !consents.is_empty() {
        tx.save_consents(&consents).await?;
    }
    let asked: Vec<PrivacyRow> = rows.iter().filter_map(|row| asked(world, rules, row.event, now)).collect();
    if !asked.is_empty() {
        tx.add_requests(&asked).await?;
    }
    Ok(())
}

fn asked(world: &World, rules: &BrandRules, event: &Event, now: Timestamp) -> Option<PrivacyRow> {
    let shop = event.shop.clone().unwrap_or_default();
    let asks = match event.ask.as_ref()? {
        PrivacyAsk::Export(subject) => PrivacyAsks::Export(subject.clone()),
        PrivacyAsk::Erase(subject) => PrivacyAsks::Erase(subject.clone()),
        PrivacyAsk::EraseShop => PrivacyAsks::EraseShop(ShopSubject::new(&shop)),
    };
    // All customers of a shop are not forgotten on one unasked word: it waits, and can be stopped.
    let wait =
        rules.settings.get(&event.brand).map_or(SHOP_REDACTION_HOURS, |set| set.shop_redaction_hours());
    let due = matches!(asks, PrivacyAsks::EraseShop(_))
        .then(|| time::plus(now, time::millis(i64::from(wait) * 3_600_000)));
    if let Some(due) = due {
        metrics::counter!("tributary_shop_redactions_total").increment(1);
        tracing::warn!(%shop, brand = %event.brand, %due, "a shop's redaction was asked for; until it is due it can be stopped");
    }
    Some(PrivacyRow {
        id: world.id(),
        brand: event.brand,
        message_id: event.message_id.clone(),
        asks,
        source: format!("shopify {shop}"),
        at: now,
        due,
    })
}

/// What is said of each product, and when it was deleted.
fn newest_products<'e>(rows: &[EventRow<'e>]) -> Vec<ProductRow<'e>> {
    let mut newest: BTreeMap<(BrandId, &str, String), ProductRow<'e>> = BTreeMap::new();
    for EventRow { event, .. } in rows {
        let (Some(product), Some(shop)) = (&event.product, event.shop.as_deref()) else { continue };
        let row = || ProductRow { brand: event.brand, shop, product: product.clone() };
        newest
            .entry((event.brand, shop, product.id.clone()))
            .and_modify(|held| held.product.take_in(product))
            .or_insert_with(row);
    }
    newest.into_values().collect()
}
