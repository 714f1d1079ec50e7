//! Orders, as Shopify's bodies tell of them.

use std::collections::BTreeMap;

use rust_decimal::Decimal;
use serde_json::Value;

use super::fields::{amount, id_in, instant, list, mentions_any, text};
use super::topics::ORDER_TOPICS;
use crate::domain::event::Rejection;
use crate::domain::order::{
    Amount, Fulfillment, FulfillmentPart, Item, Order, OrderUpdate, Part, Refund, SUM, UNKNOWN_CURRENCY,
};
use crate::domain::time::Timestamp;
use crate::domain::version::{Version, Versions};

pub(super) fn order_update(
    body: &Value,
    shop: &str,
    topic: &str,
    updated_at: Timestamp,
    version: &Version,
) -> Result<Option<OrderUpdate>, Rejection> {
    let about = |field: &str| {
        id_in(body, field).ok_or_else(|| {
            Rejection::new("invalid_order", format!("{topic} without {field}: which order is it?"))
        })
    };
    let sequence = version.sequence;
    let blank = |id: String| OrderUpdate {
        shop: shop.to_owned(),
        id,
        updated_at,
        sequence,
        ..OrderUpdate::default()
    };
    Ok(Some(match topic {
        "orders/delete" => OrderUpdate { deleted_at: Some(updated_at), ..blank(about("id")?) },
        "refunds/create" => {
            let paid = paid_back(body, updated_at, version)?;
            let refunds = paid.map(|paid| Ok((about("id")?, paid))).into_iter().collect::<Result<_, _>>()?;
            OrderUpdate { refunds, ..blank(about("order_id")?) }
        }
        "fulfillments/create" | "fulfillments/update" => {
            let fulfillments = [fulfillment(body, version)].into_iter().flatten().collect();
            OrderUpdate { fulfillments, ..blank(about("order_id")?) }
        }
        topic if ORDER_TOPICS.contains(&topic) => OrderUpdate {
            refunds: refunds(body, updated_at, version)?,
            fulfillments: list(body, "fulfillments")
                .iter()
                .filter_map(|one| fulfillment(one, version))
                .collect(),
            state: Some(Box::new(order(body, topic, updated_at)?)),
            left_out: left_out(body, topic),
            ..blank(about("id")?)
        },
        // What else is reported of an order is its own: it goes when the order's customer is erased.
        _ => match id_in(body, "order_id").or_else(|| id_in(&body["order"], "id")) {
            Some(id) => blank(id),
            None => return Ok(None),
        },
    }))
}

/// The parts of an order's state that a body does not mention: a subscription may name the fields that it wants.
fn left_out(body: &Value, topic: &str) -> Vec<Part> {
    let mentions = |part: &Part| {
        let is_there = |fields: &[&str]| mentions_any(body, fields);
        let is_told = |fields: &[&str]| fields.iter().any(|field| !body[*field].is_null());
        match part {
            Part::Name => is_there(&["name"]),
            Part::OrderedAt => is_told(&["processed_at", "created_at"]),
            Part::CancelledAt => is_there(&["cancelled_at"]) || topic == "orders/cancelled",
            Part::Test => is_told(&["test"]),
            Part::Currency => currency(body).is_some(),
            Part::Total => is_told(&["total_price_set", "total_price"]),
            Part::CurrentTotal => is_told(&["current_total_price_set", "current_total_price"]),
            Part::Payment => is_there(&["financial_status"]),
            Part::Shipping => is_there(&["fulfillment_status"]),
            Part::Items => is_told(&["line_items"]),
            Part::Customer => is_there(&["customer", "email", "contact_email", "phone"]),
        }
    };
    Part::ALL.into_iter().filter(|part| !mentions(part)).collect()
}

fn currency(body: &Value) -> Option<String> {
    let code =
        text(body, "currency").or_else(|| text(&body["total_price_set"]["shop_money"], "currency_code"));
    code.map(|code| code.to_uppercase())
}

fn order(body: &Value, topic: &str, updated_at: Timestamp) -> Result<Order, Rejection> {
    let cancelled_at = instant(body, "cancelled_at").or((topic == "orders/cancelled").then_some(updated_at));
    let in_shop_money = |set: &str, plain: &str| match money_in(body, set, "shop_money")? {
        Some(shop) => Ok(Some(shop.amount)),
        None if body[plain].is_null() => Ok(None),
        None => amount(body, plain).map(Some),
    };
    let currency = currency(body).unwrap_or_else(|| UNKNOWN_CURRENCY.into());
    Ok(Order {
        name: text(body, "name"),
        ordered_at: instant(body, "processed_at")
            .or_else(|| instant(body, "created_at"))
            .unwrap_or(updated_at),
        cancelled_at,
        test: body["test"].as_bool().unwrap_or(false),
        total: in_shop_money("total_price_set", "total_price")?.unwrap_or_default(),
        current_total: in_shop_money("current_total_price_set", "current_total_price")?,
        presentment: money_in(body, "total_price_set", "presentment_money")?
            .filter(|seen| seen.currency != currency),
        currency,
        financial_status: text(body, "financial_status"),
        fulfillment_status: text(body, "fulfillment_status"),
        items: items(body)?,
    })
}

/// What was bought: without what was taken out of the order, and with what was returned. Both are less in the current quantity; which it
/// was the refunds say, where they are reported line by line.
fn items(body: &Value) -> Result<Vec<Item>, Rejection> {
    let paid_back: Vec<&Value> = list(body, "refunds")
        .iter()
        .filter(|refund| list(refund, "transactions").iter().any(is_paid_back))
        .collect();
    let is_told =
        body["refunds"].is_array() && paid_back.iter().all(|refund| refund["refund_line_items"].is_array());
    let mut returned: BTreeMap<String, i64> = BTreeMap::new();
    for line in paid_back.iter().flat_map(|refund| list(refund, "refund_line_items")) {
        if let Some(id) = id_in(line, "line_item_id") {
            let count = returned.entry(id).or_default();
            *count = count.saturating_add(line["quantity"].as_i64().unwrap_or(0));
        }
    }
    let mut items = Vec::new();
    for line in list(body, "line_items") {
        let mut item = item(line)?;
        if let Some(current) = line["current_quantity"].as_i64().filter(|_| is_told) {
            let back = id_in(line, "id").and_then(|id| returned.get(&id)).copied().unwrap_or(0);
            item.quantity = item.quantity.min(current.saturating_add(back));
        }
        if item.quantity != 0 || line["quantity"] == 0 {
            items.push(item);
        }
    }
    Ok(items)
}

/// One side of a Shopify money set; `None` where it is not there.
fn money_in(body: &Value, set: &str, side: &str) -> Result<Option<Amount>, Rejection> {
    let money = &body[set][side];
    let Some(currency) = text(money, "currency_code") else { return Ok(None) };
    if money["amount"].is_null() {
        return Ok(None);
    }
    Ok(Some(Amount { amount: amount(money, "amount")?, currency: currency.to_uppercase() }))
}

/// The refunds in an order's body, by their ids. Those without one stand under one name with their sum: the newest body that
/// tells it holds.
fn refunds(
    body: &Value,
    updated_at: Timestamp,
    version: &Version,
) -> Result<BTreeMap<String, Refund>, Rejection> {
    let mut refunds: BTreeMap<String, Refund> = BTreeMap::new();
    for refund in list(body, "refunds") {
        let Some(paid) = paid_back(refund, updated_at, version)? else { continue };
        match id_in(refund, "id") {
            Some(id) => drop(refunds.insert(id, paid)),
            None => match refunds.get_mut(SUM) {
                Some(sum) => sum.amount += paid.amount,
                None => drop(refunds.insert(SUM.to_owned(), paid)),
            },
        }
    }
    Ok(refunds)
}

/// Whether a transaction paid something back. One that failed or only voided an authorisation moved no money.
fn is_paid_back(transaction: &Value) -> bool {
    transaction["kind"] == "refund" && matches!(transaction["status"].as_str(), None | Some("success"))
}

/// What was paid back; `None` where the body does not mention it.
fn paid_back(refund: &Value, updated_at: Timestamp, version: &Version) -> Result<Option<Refund>, Rejection> {
    if refund.get("transactions").is_none() {
        return Ok(None);
    }
    let mut sum = Decimal::ZERO;
    let mut currency = None;
    for transaction in list(refund, "transactions").iter().filter(|one| is_paid_back(one)) {
        // The amount in the shop's money, where it is stated; else in the money it was paid with.
        match money_in(transaction, "amount_set", "shop_money")? {
            Some(shop) => sum += shop.amount,
            None => {
                sum += amount(transaction, "amount")?;
                currency = text(transaction, "currency").map(|code| code.to_uppercase());
            }
        }
    }
    let at = instant(refund, "processed_at").or_else(|| instant(refund, "created_at")).unwrap_or(updated_at);
    let version = version.clone();
    Ok(Some(Refund { at_ms: at.timestamp_millis(), amount: sum, currency, version }))
}

fn fulfillment(fulfillment: &Value, version: &Version) -> Option<(String, Fulfillment)> {
    let own = instant(fulfillment, "updated_at").map_or(version.at_ms, |at| at.timestamp_millis());
    let mentions = |part: &FulfillmentPart| {
        let is_there = |fields: &[&str]| mentions_any(fulfillment, fields);
        match part {
            FulfillmentPart::Status => is_there(&["shipment_status", "status"]),
            FulfillmentPart::At => instant(fulfillment, "created_at").is_some(),
            FulfillmentPart::Company => is_there(&["tracking_company"]),
            FulfillmentPart::Number => is_there(&["tracking_number"]),
        }
    };
    let left_out: Vec<FulfillmentPart> =
        FulfillmentPart::ALL.into_iter().filter(|part| !mentions(part)).collect();
    let made = Fulfillment {
        status: text(fulfillment, "shipment_status").or_else(|| text(fulfillment, "status")),
        at_ms: instant(fulfillment, "created_at").map_or(0, |at| at.timestamp_millis()),
        company: text(fulfillment, "tracking_company"),
        number: text(fulfillment, "tracking_number"),
        versions: Versions::stated(Version { at_ms: own, ..version.clone() }, &left_out),
    };
    Some((id_in(fulfillment, "id")?, made))
}

fn item(line: &Value) -> Result<Item, Rejection> {
    Ok(Item {
        product_id: id_in(line, "product_id"),
        sku: text(line, "sku"),
        title: text(line, "title"),
        quantity: line["quantity"].as_i64().unwrap_or(1),
        price: amount(line, "price")?,
        gift_card: line["gift_card"].as_bool().unwrap_or(false),
    })
}
