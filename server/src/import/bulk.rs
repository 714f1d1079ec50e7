//! Orders as Shopify's GraphQL API gives them, in the form that its REST API and webhooks have.

use serde_json::{Map, Value, json};
use tributary_core::domain::gid;

/// Whether an order is written as the GraphQL API does.
pub(super) fn is_graphql(order: &Value) -> bool {
    order["id"].as_str().is_some_and(|id| id.starts_with("gid://"))
        || ["createdAt", "processedAt", "totalPriceSet", "currencyCode"]
            .iter()
            .any(|field| order.get(field).is_some())
}

/// Puts a child into the node that it belongs to. What says nothing of a customer or an order is left out.
pub(super) fn put(node: &mut Value, child: Value) {
    let kind = child["id"].as_str().and_then(gid::parts).map(|(kind, _)| kind);
    let field = match kind.or(child["__typename"].as_str()) {
        Some("LineItem") => "lineItems",
        Some("Refund") => "refunds",
        Some("RefundLineItem") => "refundLineItems",
        Some("OrderTransaction") => "transactions",
        Some("Fulfillment") => "fulfillments",
        // A query need not ask for the id of what it wants.
        None if child.get("lineItem").is_some() => "refundLineItems",
        None if child.get("amountSet").is_some() => "transactions",
        None if child.get("quantity").is_some() => "lineItems",
        _ => return,
    };
    if !node[field].is_array() {
        node[field] = json!([]);
    }
    if let Some(children) = node[field].as_array_mut() {
        children.push(child);
    }
}

/// The order as a webhook would tell it.
///
/// # Errors
/// When it is something else than an order.
pub(super) fn order(order: Value) -> Result<Value, String> {
    if let Some((what, _)) = order["id"].as_str().and_then(gid::parts)
        && what != "Order"
    {
        return Err(format!(
            "this is a {what}; an order is wanted, whose id begins with gid://shopify/Order/"
        ));
    }
    let mut order = plain(order);
    rename(&mut order, "currency_code", "currency");
    rename(&mut order, "display_financial_status", "financial_status");
    rename(&mut order, "display_fulfillment_status", "fulfillment_status");
    lower(&mut order, "financial_status");
    lower(&mut order, "fulfillment_status");
    match order["fulfillment_status"].as_str() {
        Some("unfulfilled") => order["fulfillment_status"] = Value::Null,
        Some("partially_fulfilled") => order["fulfillment_status"] = "partial".into(),
        _ => {}
    }
    join(&mut order, "tags");
    for address in ["billing_address", "shipping_address"] {
        rename(&mut order[address], "country_code_v2", "country_code");
    }
    customer(&mut order["customer"]);
    each(&mut order, "line_items", line_item);
    each(&mut order, "refunds", refund);
    each(&mut order, "fulfillments", fulfillment);
    Ok(order)
}

fn customer(customer: &mut Value) {
    if !customer.is_object() {
        return;
    }
    join(customer, "tags");
    lower(customer, "state");
    rename(&mut customer["default_address"], "country_code_v2", "country_code");
    let contacts = [
        ("default_email_address", "email_address", "email", "email_marketing_consent"),
        ("default_phone_number", "phone_number", "phone", "sms_marketing_consent"),
    ];
    for (contact, address, field, consent) in contacts {
        let mut contact = customer[contact].take();
        if customer[field].is_null() {
            customer[field] = contact[address].take();
        }
        let what_failed = if customer[consent].is_object() { customer[consent].take() } else { contact };
        if let Some(state) = what_failed["marketing_state"].as_str() {
            let at = ["consent_updated_at", "marketing_updated_at"].iter().map(|field| &what_failed[*field]);
            customer[consent] = json!({
                "state": state.to_lowercase(),
                "opt_in_level": what_failed["marketing_opt_in_level"].as_str().map(str::to_lowercase),
                "consent_updated_at": at.into_iter().find(|at| !at.is_null()),
            });
        }
    }
    // What was not asked for is not told.
    if let Some(fields) = customer.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

fn line_item(item: &mut Value) {
    rename(item, "is_gift_card", "gift_card");
    let product = item["product"]["id"].take();
    if item["product_id"].is_null() {
        item["product_id"] = product;
    }
    if item["sku"].is_null() {
        item["sku"] = item["variant"]["sku"].take();
    }
    if item["price"].is_null() {
        let sets = ["original_unit_price_set", "discounted_unit_price_set"];
        let price =
            sets.iter().map(|set| &item[*set]["shop_money"]["amount"]).find(|amount| !amount.is_null());
        item["price"] = price.cloned().unwrap_or_default();
    }
}

fn refund(refund: &mut Value) {
    // A query that asks for the sum alone.
    if !refund["transactions"].is_array() && refund["total_refunded_set"].is_object() {
        let sum = refund["total_refunded_set"].take();
        refund["transactions"] = json!([{"kind": "refund", "status": "success", "amount_set": sum}]);
    }
    each(refund, "transactions", |transaction| {
        lower(transaction, "kind");
        lower(transaction, "status");
    });
    each(refund, "refund_line_items", |line| {
        let id = line["line_item"]["id"].take();
        if line["line_item_id"].is_null() {
            line["line_item_id"] = id;
        }
    });
}

fn fulfillment(fulfillment: &mut Value) {
    lower(fulfillment, "status");
    rename(fulfillment, "display_status", "shipment_status");
    lower(fulfillment, "shipment_status");
    let mut tracking = match fulfillment["tracking_info"].take() {
        Value::Array(all) => all.into_iter().next().unwrap_or_default(),
        one => one,
    };
    for (from, to) in [("company", "tracking_company"), ("number", "tracking_number")] {
        if fulfillment[to].is_null() {
            fulfillment[to] = tracking[from].take();
        }
    }
}

/// A value with names in snake case, connections as lists, and global ids as their numbers.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(fields) if is_connection(&fields) => {
            let mut fields = fields;
            let edges = fields.remove("edges").map(|edges| match edges {
                Value::Array(edges) => edges.into_iter().map(|mut edge| edge["node"].take()).collect(),
                _ => Vec::new(),
            });
            let nodes = edges.or_else(|| match fields.remove("nodes") {
                Some(Value::Array(nodes)) => Some(nodes),
                _ => None,
            });
            Value::Array(nodes.unwrap_or_default().into_iter().map(plain).collect())
        }
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (snake_case(&name), plain(value))).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(plain).collect()),
        Value::String(text) => {
            let id = gid::id(&text).map(str::to_owned);
            Value::String(id.unwrap_or(text))
        }
        other => other,
    }
}

fn is_connection(fields: &Map<String, Value>) -> bool {
    (fields.contains_key("edges") || fields.contains_key("nodes"))
        && fields.keys().all(|name| ["edges", "nodes", "pageInfo", "totalCount"].contains(&name.as_str()))
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn rename(of: &mut Value, from: &str, to: &str) {
    if let Some(fields) = of.as_object_mut()
        && let Some(value) = fields.remove(from)
    {
        fields.entry(to).or_insert(value);
    }
}

fn lower(of: &mut Value, field: &str) {
    if let Some(text) = of.get(field).and_then(Value::as_str).map(str::to_lowercase) {
        of[field] = text.into();
    }
}

/// A list of texts as one, as the REST API writes it.
fn join(of: &mut Value, field: &str) {
    if let Some(list) = of.get(field).and_then(Value::as_array) {
        let all: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        of[field] = all.join(", ").into();
    }
}

fn each(of: &mut Value, field: &str, change: impl Fn(&mut Value)) {
    if let Some(list) = of.get_mut(field).and_then(Value::as_array_mut) {
        list.iter_mut().filter(|one| one.is_object()).for_each(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_of_the_graphql_api_is_read_as_a_webhook() {
        let what_failed = json!({
            "id": "gid://shopify/Order/71?x=1", "name": "#1", "email": "a@example.com", "createdAt": "2026-02-01T10:00:00Z",
            "currencyCode": "EUR", "displayFinancialStatus": "PARTIALLY_REFUNDED", "displayFulfillmentStatus": "PARTIALLY_FULFILLED",
            "totalPriceSet": {"shopMoney": {"amount": "12.0", "currencyCode": "EUR"}}, "tags": ["one", "two"],
            "customer": {"id": "gid://shopify/Customer/8", "firstName": "Ada", "tags": ["vip"], "defaultAddress": {"countryCodeV2": "DE"},
                         "defaultEmailAddress": {"emailAddress": "a@example.com", "marketingState": "SUBSCRIBED",
                                                 "marketingUpdatedAt": "2026-01-01T00:00:00Z"}},
            "lineItems": {"edges": [{"node": {"id": "gid://shopify/LineItem/1", "title": "Mug", "quantity": 2, "isGiftCard": true,
                "product": {"id": "gid://shopify/Product/4"}, "originalUnitPriceSet": {"shopMoney": {"amount": "6.0"}}}}]},
            "refunds": [{"id": "gid://shopify/Refund/5", "totalRefundedSet": {"shopMoney": {"amount": "1.0", "currencyCode": "EUR"}}}],
            "fulfillments": [{"id": "gid://shopify/Fulfillment/6", "status": "SUCCESS",
                              "trackingInfo": [{"company": "DHL", "number": "1Z"}]}],
        });
        assert!(is_graphql(&what_failed));
        let read = order(what_failed).unwrap();
        for (path, wanted) in [
            ("/id", json!("71")),
            ("/currency", json!("EUR")),
            ("/financial_status", json!("partially_refunded")),
            ("/fulfillment_status", json!("partial")),
            ("/tags", json!("one, two")),
            ("/total_price_set/shop_money/amount", json!("12.0")),
            ("/customer/id", json!("8")),
            ("/customer/first_name", json!("Ada")),
            ("/customer/email", json!("a@example.com")),
            ("/customer/default_address/country_code", json!("DE")),
            ("/customer/email_marketing_consent/state", json!("subscribed")),
            ("/customer/email_marketing_consent/consent_updated_at", json!("2026-01-01T00:00:00Z")),
            ("/line_items/0/product_id", json!("4")),
            ("/line_items/0/price", json!("6.0")),
            ("/line_items/0/gift_card", json!(true)),
            ("/refunds/0/transactions/0/amount_set/shop_money/amount", json!("1.0")),
            ("/fulfillments/0/tracking_company", json!("DHL")),
        ] {
            assert_eq!(read.pointer(path), Some(&wanted), "{path}: {read}");
        }
        assert!(order(json!({"id": "gid://shopify/Customer/1"})).unwrap_err().contains("Customer"));
    }
}
