//! Shopify's web pixel events, as messages of Segment's format: what a pixel passes on of `analytics.subscribe`, unchanged.
//!
//! Source: the "Web pixels API, standard events" pages of Shopify's documentation. Names are the ones of the e-commerce specification that
//! the field's tools share; a name that is not known here stays as it is.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::event::EventKind;
use super::json;

/// Shopify's name of an event, the kind of the message, and its name.
const NAMES: [(&str, EventKind, &str); 15] = [
    ("page_viewed", EventKind::Page, ""),
    ("product_viewed", EventKind::Track, "Product Viewed"),
    ("collection_viewed", EventKind::Track, "Product List Viewed"),
    ("search_submitted", EventKind::Track, "Products Searched"),
    ("cart_viewed", EventKind::Track, "Cart Viewed"),
    ("product_added_to_cart", EventKind::Track, "Product Added"),
    ("product_removed_from_cart", EventKind::Track, "Product Removed"),
    ("checkout_started", EventKind::Track, "Checkout Started"),
    ("checkout_contact_info_submitted", EventKind::Track, "Checkout Contact Info Submitted"),
    ("checkout_address_info_submitted", EventKind::Track, "Checkout Address Info Submitted"),
    ("checkout_shipping_info_submitted", EventKind::Track, "Checkout Shipping Info Submitted"),
    ("payment_info_submitted", EventKind::Track, "Payment Info Entered"),
    ("checkout_completed", EventKind::Track, "Order Completed"),
    ("alert_displayed", EventKind::Track, "Alert Displayed"),
    ("ui_extension_errored", EventKind::Track, "Ui Extension Errored"),
];
/// What Shopify says of where an event comes from.
const TYPES: [&str; 6] = ["standard", "custom", "dom", "advanced-dom", "extended", "meta"];

/// What makes an event a pixel's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark<'a> {
    #[serde(borrow, default)]
    client_id: json::Scalar<'a>,
    #[serde(borrow, default)]
    name: json::Scalar<'a>,
    #[serde(rename = "type", borrow, default)]
    kind: json::Scalar<'a>,
    #[serde(borrow, default)]
    user_id: json::Scalar<'a>,
    #[serde(borrow, default)]
    anonymous_id: json::Scalar<'a>,
}

/// The message that a pixel's event is; `None` for everything else.
pub fn translated(event: &RawValue) -> Option<Box<RawValue>> {
    // Most messages are none, and are not read whole for it.
    if !event.get().contains("\"clientId\"") {
        return None;
    }
    let mark: Mark<'_> = serde_json::from_str(event.get()).ok()?;
    let is_pixels = mark.client_id.given().is_some()
        && mark.name.given().is_some()
        && mark.kind.given().is_none_or(|kind| TYPES.contains(&kind))
        && mark.user_id.given().or(mark.anonymous_id.given()).is_none();
    if !is_pixels {
        return None;
    }
    let event: Value = json::read(event.get()).ok()?;
    let stated = event["name"].as_str().unwrap_or_default();
    let (_, kind, name) =
        NAMES.into_iter().find(|(known, ..)| *known == stated).unwrap_or(("", EventKind::Track, stated));
    let mut message = Map::from_iter([
        ("type".to_owned(), json!(kind.as_str())),
        ("messageId".to_owned(), event["id"].clone()),
        ("anonymousId".to_owned(), event["clientId"].clone()),
        ("timestamp".to_owned(), event["timestamp"].clone()),
        ("context".to_owned(), context(&event)),
        ("properties".to_owned(), properties(&event)),
    ]);
    match kind {
        EventKind::Page => message.insert("name".to_owned(), event["context"]["document"]["title"].clone()),
        _ => message.insert("event".to_owned(), name.into()),
    };
    message.retain(|_, value| !value.is_null());
    serde_json::value::to_raw_value(&message).ok()
}

fn context(event: &Value) -> Value {
    let (document, navigator) = (&event["context"]["document"], &event["context"]["navigator"]);
    let location = &document["location"];
    let checkout = &event["data"]["checkout"];
    stated([
        (
            "page",
            stated([
                ("url", location["href"].clone()),
                ("path", location["pathname"].clone()),
                ("search", location["search"].clone()),
                ("referrer", document["referrer"].clone()),
                ("title", document["title"].clone()),
            ]),
        ),
        ("userAgent", navigator["userAgent"].clone()),
        ("locale", navigator["language"].clone()),
        // Whoever checks out says who they are.
        ("traits", stated([("email", checkout["email"].clone()), ("phone", checkout["phone"].clone())])),
        ("library", json!({"name": "shopify-web-pixel"})),
    ])
}

/// What the event is about, under the names that the field's tools give it.
fn properties(event: &Value) -> Value {
    let data = &event["data"];
    let mut all = Map::new();
    let mut add = |value: Value| {
        if let Value::Object(fields) = value {
            all.extend(fields);
        }
    };
    if let Some(variant) = data.get("productVariant") {
        add(variant_of(variant));
    }
    if let Some(line) = data.get("cartLine") {
        add(line_of(line));
    }
    if let Some(cart) = data.get("cart") {
        let total = &cart["cost"]["totalAmount"];
        add(stated([
            ("cart_token", cart["id"].clone()),
            ("value", total["amount"].clone()),
            ("currency", total["currencyCode"].clone()),
            ("products", list_of(&cart["lines"], line_of)),
        ]));
    }
    if let Some(list) = data.get("collection") {
        add(stated([
            ("list_name", list["title"].clone()),
            ("list_id", list["id"].clone()),
            ("products", list_of(&list["productVariants"], variant_of)),
        ]));
    }
    if let Some(found) = data.get("searchResult") {
        add(stated([
            ("query", found["query"].clone()),
            ("products", list_of(&found["productVariants"], variant_of)),
        ]));
    }
    if let Some(checkout) = data.get("checkout") {
        let order = &checkout["order"];
        add(stated([
            ("checkout_token", checkout["token"].clone()),
            ("order_id", order["id"].clone()),
            ("total", checkout["totalPrice"]["amount"].clone()),
            ("subtotal", checkout["subtotalPrice"]["amount"].clone()),
            ("tax", checkout["totalTax"]["amount"].clone()),
            ("shipping", checkout["shippingLine"]["price"]["amount"].clone()),
            ("currency", checkout["currencyCode"].clone()),
            ("products", list_of(&checkout["lineItems"], item_of)),
        ]));
    }
    if let Some(Value::Object(custom)) = event.get("customData") {
        add(Value::Object(custom.clone()));
    }
    if all.is_empty()
        && let Value::Object(fields) = data
    {
        all.clone_from(fields);
    }
    Value::Object(all)
}

/// A product as the e-commerce specification has it.
fn variant_of(variant: &Value) -> Value {
    let product = &variant["product"];
    stated([
        ("product_id", product["id"].clone()),
        ("variant_id", variant["id"].clone()),
        ("sku", variant["sku"].clone()),
        ("name", product["title"].clone()),
        ("variant", variant["title"].clone()),
        ("brand", product["vendor"].clone()),
        ("category", product["type"].clone()),
        ("url", product["url"].clone()),
        ("price", variant["price"]["amount"].clone()),
        ("currency", variant["price"]["currencyCode"].clone()),
    ])
}

/// The same with a quantity, of a line of a cart.
fn line_of(line: &Value) -> Value {
    counted(variant_of(&line["merchandise"]), &line["quantity"])
}

/// Of a line of a checkout.
fn item_of(item: &Value) -> Value {
    let mut found = counted(variant_of(&item["variant"]), &item["quantity"]);
    if found["name"].is_null() && !item["title"].is_null() {
        found["name"] = item["title"].clone();
    }
    found
}

fn counted(mut product: Value, quantity: &Value) -> Value {
    if !quantity.is_null() {
        product["quantity"] = quantity.clone();
    }
    product
}

fn list_of(list: &Value, each: impl Fn(&Value) -> Value) -> Value {
    list.as_array().map_or(Value::Null, |list| list.iter().map(each).collect())
}

/// An object of what is reported.
fn stated<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_empty =
        |value: &Value| value.is_null() || value == "" || value.as_object().is_some_and(Map::is_empty);
    fields
        .into_iter()
        .filter(|(_, value)| !is_empty(value))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tracking;

    fn read(event: &Value) -> Option<Value> {
        let raw = serde_json::value::to_raw_value(event).unwrap();
        let message = translated(&raw)?;
        assert_eq!(tracking::check(&message, None, 0), Ok(true), "{message}");
        serde_json::from_str(message.get()).ok()
    }

    fn event(name: &str, data: &Value) -> Value {
        json!({"id": "sh-1", "name": name, "type": "standard", "clientId": "c-1", "seq": 3, "timestamp": "2026-02-01T10:00:00.000Z",
            "context": {"document": {"location": {"href": "https://shop.example/p?x=1", "pathname": "/p", "search": "?x=1"},
                                     "referrer": "", "title": "A mug"},
                        "navigator": {"language": "de", "userAgent": "Browser/1"}},
            "data": data, "writeKey": "wk_1"})
    }

    #[test]
    fn each_standard_event_is_a_message_that_is_taken() {
        let variant = json!({"id": "41", "sku": "mug-1", "title": "Blue", "price": {"amount": 14.5, "currencyCode": "EUR"},
            "product": {"id": "4", "title": "Mug", "vendor": "River", "type": "Mugs", "url": "/products/mug"}});
        let viewed = read(&event("product_viewed", &json!({"productVariant": variant}))).unwrap();
        assert_eq!((&viewed["event"], &viewed["anonymousId"]), (&json!("Product Viewed"), &json!("c-1")));
        assert_eq!(
            (&viewed["properties"]["product_id"], &viewed["properties"]["price"]),
            (&json!("4"), &json!(14.5))
        );
        assert_eq!(viewed["context"]["page"]["url"], "https://shop.example/p?x=1");
        let line = json!({"merchandise": variant, "quantity": 2});
        let added = read(&event("product_added_to_cart", &json!({"cartLine": line}))).unwrap();
        assert_eq!((&added["event"], &added["properties"]["quantity"]), (&json!("Product Added"), &json!(2)));
        let cart = json!({"id": "gid://shopify/Cart/c1?key=k", "cost": {"totalAmount": {"amount": 29.0, "currencyCode": "EUR"}}, "lines": [line]});
        let seen = read(&event("cart_viewed", &json!({"cart": cart}))).unwrap();
        assert_eq!(seen["properties"]["cart_token"], "gid://shopify/Cart/c1?key=k");
        let checkout = json!({"token": "k1", "email": "a@example.com", "phone": null, "currencyCode": "EUR", "totalPrice": {"amount": 29.0},
            "lineItems": [{"title": "Mug", "quantity": 2, "variant": variant}], "order": {"id": "71", "customer": {"id": "8"}}});
        let done = read(&event("checkout_completed", &json!({"checkout": checkout}))).unwrap();
        assert_eq!(
            (&done["event"], &done["properties"]["checkout_token"]),
            (&json!("Order Completed"), &json!("k1"))
        );
        assert_eq!(
            (&done["context"]["traits"]["email"], &done["properties"]["order_id"]),
            (&json!("a@example.com"), &json!("71"))
        );
        assert_eq!(done["properties"]["products"][0]["quantity"], 2);
        let page = read(&event("page_viewed", &json!({}))).unwrap();
        assert_eq!((&page["type"], &page["name"]), (&json!("page"), &json!("A mug")));
        for (name, ..) in NAMES {
            assert!(read(&event(name, &Value::Null)).is_some(), "{name}");
        }
        let mut custom = event("newsletter:opened", &Value::Null);
        custom["type"] = "custom".into();
        custom["customData"] = json!({"from": "footer"});
        let custom = read(&custom).unwrap();
        assert_eq!(
            (&custom["event"], &custom["properties"]["from"]),
            (&json!("newsletter:opened"), &json!("footer"))
        );
    }

    #[test]
    fn a_message_of_segments_format_is_none() {
        for other in [
            json!({"type": "track", "event": "E", "userId": "u", "name": "n", "clientId": "c"}),
            json!({"type": "page", "name": "n", "anonymousId": "a", "properties": {"clientId": "c"}}),
            json!({"clientId": "c"}),
            json!([{"clientId": "c", "name": "page_viewed"}]),
        ] {
            assert!(read(&other).is_none(), "{other}");
        }
    }
}
