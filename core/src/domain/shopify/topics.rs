//! Topics: what each is about, and what its event is called.

use serde_json::Value;

/// The topics that a shop should send, and what each is good for. `server admin shop add` prints them.
pub const TOPICS: [&str; 30] = [
    "orders/create",
    "orders/updated",
    "orders/paid",
    "orders/cancelled",
    "orders/fulfilled",
    "orders/partially_fulfilled",
    "orders/edited",
    "orders/delete",
    "refunds/create",
    "customers/create",
    "customers/update",
    "customers/delete",
    "customers/enable",
    "customers/disable",
    "checkouts/create",
    "checkouts/update",
    "checkouts/delete",
    "carts/create",
    "carts/update",
    "fulfillments/create",
    "fulfillments/update",
    "products/create",
    "products/update",
    "products/delete",
    "app/uninstalled",
    "customers_email_marketing_consent/update",
    "customers_marketing_consent/update",
    "customers/merge",
    TAGS_ADDED,
    TAGS_REMOVED,
];

/// Since API version 2025-01 customers' bodies have no tags any more: these tell of them.
pub(super) const TAGS_ADDED: &str = "customer.tags_added";

/// See [`TAGS_ADDED`].
pub(super) const TAGS_REMOVED: &str = "customer.tags_removed";

/// Topics of privacy law, which are set apart at Shopify.
pub const PRIVACY_TOPICS: [&str; 3] = ["customers/data_request", "customers/redact", "shop/redact"];

/// The event after which a shop sends nothing more.
pub const APP_UNINSTALLED: &str = "App Uninstalled";

/// Topics whose body is an order. Others under `orders/` (edited, risk assessments, …) have bodies of their own.
pub(super) const ORDER_TOPICS: [&str; 7] = [
    "orders/create",
    "orders/updated",
    "orders/cancelled",
    "orders/paid",
    "orders/partially_paid",
    "orders/fulfilled",
    "orders/partially_fulfilled",
];

/// Resources whose body names a customer's own e-mail and phone. A shop's or a location's body names the merchant's.
pub(super) const PERSONAL: [&str; 5] = ["orders", "checkouts", "carts", "customers", "draft_orders"];

/// Topics that say that the customer was there; others tell what the merchant or Shopify did.
pub(super) const ACTIVE_TOPICS: [&str; 6] = [
    "orders/create",
    "checkouts/create",
    "checkouts/update",
    "carts/create",
    "carts/update",
    "customers/create",
];

/// The names that the field's tools give to topics; any other topic is its own name.
pub(super) const EVENT_NAMES: [(&str, &str); 23] = [
    ("orders/create", "Order Created"),
    ("orders/updated", "Order Updated"),
    ("orders/paid", "Order Paid"),
    ("orders/cancelled", "Order Cancelled"),
    ("orders/fulfilled", "Order Fulfilled"),
    ("orders/partially_fulfilled", "Order Partially Fulfilled"),
    ("orders/edited", "Order Edited"),
    ("orders/delete", "Order Deleted"),
    ("refunds/create", "Order Refunded"),
    ("fulfillments/create", "Fulfillment Created"),
    ("fulfillments/update", "Fulfillment Updated"),
    ("checkouts/create", "Checkout Started"),
    ("checkouts/update", "Checkout Updated"),
    ("checkouts/delete", "Checkout Deleted"),
    ("carts/create", "Cart Created"),
    ("carts/update", "Cart Updated"),
    ("customers/create", "Customer Created"),
    ("customers/update", "Customer Updated"),
    ("customers/delete", "Customer Deleted"),
    ("customers/merge", "Customers Merged"),
    (TAGS_ADDED, "Customer Tagged"),
    (TAGS_REMOVED, "Customer Untagged"),
    ("app/uninstalled", APP_UNINSTALLED),
];

pub(super) fn event_name(topic: &str) -> &str {
    EVENT_NAMES.into_iter().find(|(known, _)| *known == topic).map_or(topic, |(_, name)| name)
}

/// The part of a topic before the slash, or the full stop: what the body is.
pub(super) fn resource(topic: &str) -> &str {
    topic.split(['/', '.']).next().unwrap_or_default()
}

/// The customer in a body; null where there is none. Groups of customers, their payment methods and accounts are something else.
pub(super) fn customer<'a>(body: &'a Value, topic: &str) -> &'a Value {
    let resource = resource(topic);
    let is_one = ["customers", "customer"].contains(&resource) || resource.starts_with("customers_");
    if is_one { body } else { &body["customer"] }
}
