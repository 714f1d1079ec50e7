//! What a webhook's body must look like to be of its topic.
//!
//! Shopify signs the body alone. Topic and shop stand in headers, which whoever has one signed body may write as they like: so
//! nothing is believed of them that the body does not bear out. Shopify adds fields from version to version, writes null for
//! what it does not know, and leaves out what a subscription's `include_fields` do not name; a shape therefore names fields that must be
//! there (null will do, unless said) and fields that only other bodies have, and never lists all.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::event::Rejection;
use super::{gid, json};

/// The code of a body that is not of its topic's shape, or of another shop.
pub const INVALID: &str = "invalid_webhook";

/// What only the body of an order, a draft, a checkout or a cart has.
const SALE: &[&str] = &["line_items", "total_price", "total_price_set", "financial_status", "order_number"];
/// What only the body of a product has, or of something else that is shown in the shop.
const GOODS: &[&str] = &["title", "variants", "product_type", "vendor", "body_html", "handle"];
/// What only the body of a customer has, and no part of an order's.
const CUSTOMER: &[&str] = &[
    "first_name",
    "last_name",
    "default_address",
    "addresses",
    "orders_count",
    "total_spent",
    "verified_email",
    "state",
    "accepts_marketing",
    "email_marketing_consent",
    "sms_marketing_consent",
];
/// What customers have, and orders, too.
const CONTACT: &[&str] = &["tax_exempt", "email", "phone"];
/// What a part of an order may say of it, beside what other sales have.
const ORDER: &[&str] = &[
    "current_total_price",
    "current_total_price_set",
    "fulfillment_status",
    "name",
    "email",
    "contact_email",
    "customer",
    "cancelled_at",
    "closed_at",
    "processed_at",
    "updated_at",
    "note",
    "tags",
    "refunds",
    "fulfillments",
];
/// What only an order has.
const ORDERS_OWN: &[&str] = &[
    "fulfillment_status",
    "cancelled_at",
    "cancel_reason",
    "closed_at",
    "order_status_url",
    "checkout_token",
];
/// What only the body of a refund or a fulfillment has.
const PART: &[&str] =
    &["order_id", "refund_line_items", "transactions", "tracking_number", "tracking_numbers"];
/// What only the bodies of privacy topics have.
const PRIVACY: &[&str] = &["shop_id", "shop_domain", "orders_requested", "orders_to_redact", "data_request"];

#[derive(Default)]
struct Shape {
    /// Fields that must be there and say something.
    stated: &'static [&'static str],
    /// Fields of which one must be there; none, if there are none.
    any: &'static [&'static [&'static str]],
    /// Fields of other bodies.
    never: &'static [&'static [&'static str]],
    /// What `admin_graphql_api_id` says of the resource, where it is there.
    resource: Option<&'static str>,
    /// Whether the id is a number: a cart's is not.
    numbered: bool,
}

/// Whether what is done under a topic cannot be taken back, and Shopify sends its bodies under no other. (An order that is
/// cancelled is reported under several topics.)
pub fn is_destructive(topic: &str) -> bool {
    topic.ends_with("/delete") || topic.ends_with("/redact") || topic == "app/uninstalled"
}

/// What is known of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It did not come before.
    Never,
    /// It came before, under this topic: it has taken effect.
    Before,
    /// It came before under another topic, and this one takes something away: it is another's body.
    Elsewhere,
}

/// What is known of a body of this topic that came before under those.
pub fn seen(topic: &str, under: &[String]) -> Seen {
    if under.iter().any(|other| other == topic) {
        Seen::Before
    } else if is_destructive(topic) && !under.is_empty() {
        Seen::Elsewhere
    } else {
        Seen::Never
    }
}

/// A body's SHA-256, by which it is known again under any headers.
pub fn digest(body: &str) -> [u8; 32] {
    Sha256::digest(body.as_bytes()).into()
}

/// Whether a signed body may be one of this topic, of this shop (lower case).
///
/// # Errors
/// `invalid_webhook`, which says what is wrong.
pub fn check(topic: &str, shop: &str, body: &str) -> Result<(), Rejection> {
    let wrong = |message: String| Err(Rejection::new(INVALID, message));
    // What cannot be held (nesting without end) has no effect: the worker says what is wrong with it.
    let fields: Map<String, Value> = match json::read(body) {
        Ok(Value::Object(fields)) => fields,
        Ok(_) => return wrong("the body must be a JSON object".to_owned()),
        Err(_) if !is_destructive(topic) => return Ok(()),
        Err(error) => return wrong(format!("the body cannot be read: {error}")),
    };
    for name in ["shop_domain", "myshopify_domain"] {
        if let Some(Value::String(named)) = fields.get(name)
            && !named.eq_ignore_ascii_case(shop)
        {
            return wrong(format!("the body's {name} is another shop's than x-shopify-shop-domain says"));
        }
    }
    let Some(shape) = shape(topic) else { return Ok(()) };
    shape.fits(topic, &fields).map_err(|message| Rejection::new(INVALID, message))
}

impl Shape {
    fn fits(&self, topic: &str, fields: &Map<String, Value>) -> Result<(), String> {
        for name in self.stated {
            if fields.get(*name).is_none_or(|value| value.is_null() || value == "") {
                return Err(format!("a body of {topic} has {name}, and this one does not"));
            }
        }
        let any = self.any.concat();
        if !any.is_empty() && !any.iter().any(|name| fields.contains_key(*name)) {
            return Err(format!("a body of {topic} has one of {}, and this one has none", any.join(", ")));
        }
        if let Some(name) = self.never.iter().copied().flatten().find(|name| fields.contains_key(**name)) {
            return Err(format!("a body of {topic} has no {name}, and this one does"));
        }
        if self.numbered && fields.get("id").is_some_and(|id| !id.is_null() && !is_number(id)) {
            return Err(format!("the id in a body of {topic} is a number, and this one is not"));
        }
        let kind = |name: &str| Some(gid::parts(fields.get(name).and_then(Value::as_str)?)?.0);
        let says = kind("admin_graphql_api_id").or_else(|| kind("id"));
        match (self.resource, says) {
            (Some(meant), Some(said)) if meant != said => {
                Err(format!("a body of {topic} describes a {meant}, but this one does not"))
            }
            _ => Ok(()),
        }
    }
}

fn is_number(id: &Value) -> bool {
    match id {
        Value::Number(_) => true,
        // Newer versions of Shopify's API write ids with what they are of, which is looked at apart.
        Value::String(text) => {
            let digits = gid::parts(text).map_or(&**text, |(_, id)| id);
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    }
}

/// What a body of that topic looks like; `None` for topics that say nothing to Tributary but that they came.
fn shape(topic: &str) -> Option<Shape> {
    let (resource, what) = topic.split_once('/').unwrap_or((topic, ""));
    // The first that knows the topic.
    [of_privacy, of_deletions, of_customers, of_orders, of_the_rest]
        .into_iter()
        .find_map(|shapes| shapes(resource, what))
}

/// Requests in the name of privacy.
fn of_privacy(resource: &str, what: &str) -> Option<Shape> {
    Some(match (resource, what) {
        ("customers", "redact") => Shape {
            stated: &["shop_id", "shop_domain", "customer"],
            never: &[&["id", "orders_requested", "data_request"], SALE, GOODS, CUSTOMER, CONTACT, PART],
            ..Shape::default()
        },
        ("customers", "data_request") => Shape {
            stated: &["shop_id", "shop_domain", "customer"],
            never: &[&["id", "orders_to_redact"], SALE, GOODS, CUSTOMER, CONTACT, PART],
            ..Shape::default()
        },
        ("shop", "redact") => Shape {
            stated: &["shop_id", "shop_domain"],
            never: &[
                &["id", "customer", "orders_requested", "orders_to_redact", "data_request"],
                SALE,
                GOODS,
                CUSTOMER,
                CONTACT,
                PART,
            ],
            ..Shape::default()
        },
        _ => return None,
    })
}

fn of_deletions(resource: &str, what: &str) -> Option<Shape> {
    Some(match (resource, what) {
        // A deletion says the id, and nothing of what there was.
        ("orders" | "products", "delete") => Shape {
            stated: &["id"],
            never: &[SALE, GOODS, CUSTOMER, CONTACT, PART, PRIVACY, &["customer", "created_at", "status"]],
            resource: Some(if resource == "orders" { "Order" } else { "Product" }),
            numbered: true,
            ..Shape::default()
        },
        ("checkouts", "delete") => Shape {
            stated: &["id"],
            never: &[
                &[
                    "line_items",
                    "financial_status",
                    "order_number",
                    "customer",
                    "addresses",
                    "first_name",
                    "myshopify_domain",
                ],
                GOODS,
                PART,
                PRIVACY,
            ],
            ..Shape::default()
        },
        ("customers", "delete") => Shape {
            stated: &["id"],
            never: &[
                &[
                    "first_name",
                    "last_name",
                    "created_at",
                    "updated_at",
                    "state",
                    "orders_count",
                    "customer",
                    "myshopify_domain",
                ],
                SALE,
                GOODS,
                PART,
                PRIVACY,
            ],
            resource: Some("Customer"),
            numbered: true,
            ..Shape::default()
        },
        _ => return None,
    })
}

/// Customers, and their tags and consent.
fn of_customers(resource: &str, what: &str) -> Option<Shape> {
    Some(match (resource, what) {
        ("customers", "create" | "update" | "enable" | "disable") => Shape {
            stated: &["id"],
            any: &[CUSTOMER, CONTACT, &["tags", "note", "updated_at"]],
            never: &[SALE, GOODS, PART, PRIVACY, ORDERS_OWN, &["customer", "myshopify_domain"]],
            resource: Some("Customer"),
            numbered: true,
        },
        ("customers", "merge") => Shape {
            stated: &["admin_graphql_api_customer_kept_id", "admin_graphql_api_customer_deleted_id"],
            never: &[SALE, GOODS, PART, PRIVACY, CUSTOMER, CONTACT],
            ..Shape::default()
        },
        ("customer.tags_added" | "customer.tags_removed", "") => Shape {
            stated: &["customerId", "tags"],
            never: &[SALE, GOODS, PART, PRIVACY],
            ..Shape::default()
        },
        // Others tell of a customer in few words, and Shopify adds to them: summaries.
        ("customers", _) => Shape { never: &[SALE, GOODS, PART, PRIVACY], ..Shape::default() },
        (resource, _) if resource.starts_with("customers_") => Shape {
            any: &[&["email_marketing_consent", "sms_marketing_consent", "customer_id"]],
            never: &[SALE, GOODS, PART, PRIVACY],
            ..Shape::default()
        },
        _ => return None,
    })
}

fn of_orders(resource: &str, what: &str) -> Option<Shape> {
    Some(match (resource, what) {
        ("orders", "edited") => Shape { stated: &["order_edit"], never: &[PRIVACY], ..Shape::default() },
        ("orders", "cancelled") => Shape { stated: &["cancelled_at"], ..order() },
        (
            "orders",
            "create" | "updated" | "paid" | "partially_paid" | "fulfilled" | "partially_fulfilled",
        ) => order(),
        ("refunds", _) => Shape {
            stated: &["order_id"],
            any: &[&[
                "transactions",
                "refund_line_items",
                "order_adjustments",
                "note",
                "processed_at",
                "restock",
            ]],
            never: &[
                SALE,
                GOODS,
                PRIVACY,
                &["tracking_number", "tracking_numbers", "tracking_company", "shipment_status"],
            ],
            resource: Some("Refund"),
            ..Shape::default()
        },
        ("fulfillments", _) => Shape {
            stated: &["order_id"],
            any: &[&[
                "status",
                "shipment_status",
                "tracking_number",
                "tracking_numbers",
                "tracking_company",
                "line_items",
                "updated_at",
            ]],
            never: &[
                &["transactions", "refund_line_items", "total_price", "financial_status", "order_number"],
                GOODS,
                PRIVACY,
            ],
            resource: Some("Fulfillment"),
            ..Shape::default()
        },
        _ => return None,
    })
}

/// Products, checkouts, carts, the shop itself.
fn of_the_rest(resource: &str, what: &str) -> Option<Shape> {
    Some(match (resource, what) {
        ("products", _) => Shape {
            stated: &["id"],
            any: &[GOODS, &["tags", "images", "updated_at"]],
            never: &[
                SALE,
                PART,
                PRIVACY,
                ORDERS_OWN,
                CUSTOMER,
                &["customer", "sort_order", "disjunctive", "myshopify_domain"],
            ],
            resource: Some("Product"),
            numbered: true,
        },
        ("checkouts", _) => Shape {
            any: &[&["token", "cart_token", "abandoned_checkout_url"]],
            never: &[
                &["financial_status", "order_number", "order_status_url", "refund_line_items"],
                GOODS,
                PRIVACY,
            ],
            numbered: true,
            ..Shape::default()
        },
        ("carts", _) => Shape {
            any: &[&["token", "line_items"]],
            never: &[&["financial_status", "total_price", "order_number", "customer"], GOODS, PART, PRIVACY],
            ..Shape::default()
        },
        ("app", "uninstalled") | ("shop", _) => Shape {
            any: &[&["myshopify_domain"]],
            never: &[SALE, PART, PRIVACY, &["customer", "variants", "first_name", "last_name"]],
            resource: Some("Shop"),
            ..Shape::default()
        },
        _ => return None,
    })
}

fn order() -> Shape {
    Shape {
        stated: &["id"],
        any: &[SALE, ORDER],
        never: &[
            GOODS,
            PRIVACY,
            CUSTOMER,
            &[
                "myshopify_domain",
                "order_id",
                "refund_line_items",
                "tracking_number",
                "abandoned_checkout_url",
                "invoice_url",
            ],
        ],
        resource: Some("Order"),
        numbered: true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::shopify::{PRIVACY_TOPICS, TOPICS};
    use super::*;

    const SHOP: &str = "a.myshopify.com";

    /// A body of each family, in short, as Shopify's documents show them.
    fn bodies() -> Vec<(&'static [&'static str], Value)> {
        let gid = |of: &str| format!("gid://shopify/{of}/1");
        vec![
            (
                &[
                    "orders/create",
                    "orders/updated",
                    "orders/paid",
                    "orders/fulfilled",
                    "orders/partially_fulfilled",
                ],
                json!({"id": 820982911946154508_u64, "admin_graphql_api_id": gid("Order"), "cancelled_at": null, "cart_token": "c",
                    "checkout_token": "k", "email": "jon@example.com", "financial_status": "voided", "phone": null, "token": "t",
                    "order_number": 1, "order_status_url": "https://a.myshopify.com/1", "total_price": "1.00", "note": null,
                    "customer": {"id": 1}, "line_items": [], "fulfillments": [], "refunds": [], "tags": "", "currency": "USD"}),
            ),
            (
                &["orders/cancelled"],
                json!({"id": "1", "cancelled_at": "2026-01-01T00:00:00Z", "line_items": [], "total_price": "1.00"}),
            ),
            (&["orders/edited"], json!({"order_edit": {"id": 1, "order_id": 2}})),
            (
                &["refunds/create"],
                json!({"id": 1, "order_id": 2, "created_at": "2026-01-01T00:00:00Z", "note": null, "user_id": null, "restock": false,
                    "refund_line_items": [], "transactions": [], "order_adjustments": [], "admin_graphql_api_id": gid("Refund")}),
            ),
            (
                &["fulfillments/create", "fulfillments/update"],
                json!({"id": 1, "order_id": 2, "status": "pending", "tracking_company": "UPS", "shipment_status": null, "email": "j@x.example",
                    "destination": {}, "line_items": [], "tracking_number": "1Z", "name": "#1.1", "admin_graphql_api_id": gid("Fulfillment")}),
            ),
            (
                &["customers/create", "customers/update", "customers/enable", "customers/disable"],
                json!({"id": 1, "email": "b@example.com", "first_name": "Bob", "last_name": null, "orders_count": 0, "state": "disabled",
                    "total_spent": "0.00", "note": null, "phone": null, "tags": "", "addresses": [], "admin_graphql_api_id": gid("Customer")}),
            ),
            (
                &["customers/delete"],
                json!({"id": 1, "phone": null, "addresses": [], "tax_exemptions": [], "email_marketing_consent": null,
                    "admin_graphql_api_id": gid("Customer")}),
            ),
            (
                &["customers_email_marketing_consent/update", "customers_marketing_consent/update"],
                json!({"customer_id": 1, "email_address": "b@example.com", "email_marketing_consent": {"state": "subscribed"}}),
            ),
            (
                &["customers/merge"],
                json!({"admin_graphql_api_customer_kept_id": gid("Customer"), "admin_graphql_api_customer_deleted_id": gid("Customer"),
                    "admin_graphql_api_job_id": null, "status": "completed", "errors": []}),
            ),
            (
                &["customer.tags_added", "customer.tags_removed"],
                json!({"customerId": gid("Customer"), "tags": ["vip"], "occurredAt": "2026-01-01T00:00:00Z"}),
            ),
            (
                &["checkouts/create", "checkouts/update"],
                json!({"id": 1, "token": "k", "cart_token": "c", "email": "b@example.com", "line_items": [], "total_price": "1.00",
                    "abandoned_checkout_url": "https://x.example", "customer": {"id": 1}, "completed_at": null, "phone": null}),
            ),
            (
                &["carts/create", "carts/update"],
                json!({"id": "c", "token": "c", "line_items": [], "note": null}),
            ),
            (
                &["products/create", "products/update"],
                json!({"id": 1, "title": "Mug", "body_html": "", "vendor": "v", "product_type": "", "handle": "mug", "variants": [],
                    "status": "active", "tags": "", "admin_graphql_api_id": gid("Product")}),
            ),
            (
                &["app/uninstalled"],
                json!({"id": 1, "name": "Toys", "email": "owner@example.com", "domain": "toys.example", "phone": null,
                    "myshopify_domain": "A.myshopify.com"}),
            ),
            (
                &["customers/data_request"],
                json!({"shop_id": 1, "shop_domain": SHOP, "orders_requested": [1], "customer": {"id": 1, "email": "b@x.example", "phone": "1"},
                    "data_request": {"id": 9}}),
            ),
            (
                &["customers/redact"],
                json!({"shop_id": 1, "shop_domain": SHOP, "customer": {"id": 1, "email": "b@x.example"}, "orders_to_redact": [1]}),
            ),
            (&["shop/redact"], json!({"shop_id": 1, "shop_domain": SHOP})),
            (&["orders/delete", "products/delete", "checkouts/delete"], json!({"id": 1})),
        ]
    }

    #[test]
    fn each_topic_takes_its_own_bodies_and_nobody_elses() {
        let families = bodies();
        let mut stated: Vec<&str> = families.iter().flat_map(|(topics, _)| topics.iter().copied()).collect();
        stated.sort_unstable();
        let mut all: Vec<&str> = TOPICS.iter().chain(&PRIVACY_TOPICS).copied().collect();
        all.sort_unstable();
        assert_eq!(stated, all, "a body for each topic");
        for (own, body) in &families {
            for topic in &all {
                let found = check(topic, SHOP, &body.to_string());
                // A deletion says no more than an id: what it is the id of is known by the body's claim alone. An order that was
                // cancelled is an order.
                let alike = own.contains(topic)
                    || (topic.ends_with("/delete") && body.as_object().unwrap().len() == 1)
                    || (own == &["orders/cancelled"] && families[0].0.contains(topic))
                    || (own.contains(&"customers/create") && topic.starts_with("customers_"))
                    || (own[0].starts_with("customers_") && topic.starts_with("customers/"))
                    || (own == &["customers/delete"] && topic.starts_with("customers"));
                if own.contains(topic) {
                    assert_eq!(found, Ok(()), "{topic}: {body}");
                } else if !alike {
                    let refused = found.expect_err(&format!("{topic} took {body}"));
                    assert_eq!(refused.code, INVALID);
                }
            }
        }
    }

    #[test]
    fn what_takes_something_away_takes_no_body_that_says_more() {
        for (own, body) in &bodies() {
            for topic in
                ["shop/redact", "customers/redact", "orders/delete", "products/delete", "orders/cancelled"]
            {
                let says_no_more = topic.ends_with("/delete") && body.as_object().unwrap().len() == 1;
                if !own.contains(&topic) && !says_no_more {
                    assert!(check(topic, SHOP, &body.to_string()).is_err(), "{topic} took {body}");
                }
            }
        }
    }

    #[test]
    fn a_body_that_names_another_shop_is_refused_under_every_topic() {
        for topic in ["shop/redact", "customers/redact", "app/uninstalled", "themes/publish", "shop/update"] {
            for name in ["shop_domain", "myshopify_domain"] {
                let body = json!({"shop_id": 1, "shop_domain": SHOP, "customer": {"id": 1}, name: "b.myshopify.com"});
                let message = check(topic, SHOP, &body.to_string()).unwrap_err().message;
                assert!(message.contains("another shop"), "{topic}: {message}");
            }
        }
        assert!(
            check("customers/redact", SHOP, r#"{"customer":{"id":1}}"#).is_err(),
            "it must name its shop"
        );
        assert_eq!(check("themes/publish", SHOP, r#"{"id":1}"#), Ok(()));
    }

    #[test]
    fn what_shopify_adds_is_taken() {
        let merged = json!({"admin_graphql_api_customer_kept_id": "gid://shopify/Customer/1", "admin_graphql_api_customer_deleted_id": "gid://shopify/Customer/2"});
        let tagged = json!({"customerId": "gid://shopify/Customer/1", "tags": ["vip"]});
        for (topic, body) in [
            ("customers/merge", &merged),
            ("customers/tags_added", &tagged),
            ("customer.tags_added", &tagged),
        ] {
            assert_eq!(check(topic, SHOP, &body.to_string()), Ok(()), "{topic}");
        }
        let named = json!({"id": "gid://shopify/Customer/1", "email": "a@example.com", "first_name": "Ada"});
        assert_eq!(check("customers/update", SHOP, &named.to_string()), Ok(()));
        let other = json!({"id": "gid://shopify/Company/1", "email": "a@example.com"});
        assert!(check("customers/update", SHOP, &other.to_string()).is_err());
    }
}
