//! One customer's day: sessions on one or two devices, perhaps signing in, perhaps ordering.

use rand::{Rng, RngExt};
use serde_json::{Value, json};

use crate::delivery::{Delivery, Fact, OrderState, To};
use crate::hex;
use crate::shop::{self, DAY_MS, FIRST_NAMES, PRODUCTS};

/// Who the customer is; what the shop learns of it, it learns from events.
struct Customer {
    number: u64,
    shop: &'static str,
    first_name: &'static str,
    currency: &'static str,
}

impl Customer {
    fn user_id(&self) -> String {
        format!("user-{}", self.number)
    }

    fn email(&self) -> String {
        format!("{}.{}@example.com", self.first_name.to_lowercase(), self.number)
    }

    fn shopify_id(&self) -> u64 {
        7_000_000_000 + self.number
    }
}

/// The browser of one device, as the SDK in it collects and sends.
struct Device {
    anonymous_id: String,
    signed_in: bool,
    cart: Option<String>,
}

/// A message of the SDK on its way into a delivery.
struct Message {
    at_ms: u64,
    kind: &'static str,
    body: Value,
    fact: Fact,
}

/// All deliveries of customer number `number`.
pub fn journey(rng: &mut impl Rng, shop: &'static str, number: u64) -> Vec<Delivery> {
    let customer = Customer {
        number,
        shop,
        first_name: FIRST_NAMES[rng.random_range(0..FIRST_NAMES.len())],
        currency: if rng.random_range(0..10) == 0 { "EUR" } else { "USD" },
    };
    let (known, buys) = (rng.random_bool(0.5), rng.random_bool(0.35));
    let second_device = known && rng.random_bool(0.3);
    let mut clock = rng.random_range(0..DAY_MS * 3 / 4);
    let mut deliveries = Vec::new();
    let mut device = new_device(rng);
    for session in 0..rng.random_range(1..=3) {
        if session > 0 {
            clock += rng.random_range(31 * 60_000..3 * 3_600_000);
            if second_device && session == 1 {
                device = new_device(rng);
            }
        }
        let mut messages = browse(rng, &customer, &mut device, &mut clock);
        if known && !device.signed_in {
            messages.push(sign_in(rng, &customer, &mut device, &mut clock));
        }
        if buys && session == 0 {
            messages.push(start_checkout(rng, &customer, &mut device, &mut clock));
        }
        deliveries.extend(send(rng, messages));
        if buys && session == 0 {
            deliveries.extend(order(rng, &customer, &device, &mut clock));
        }
    }
    deliveries
}

fn new_device(rng: &mut impl Rng) -> Device {
    Device { anonymous_id: format!("anon-{}", hex(rng, 16)), signed_in: false, cart: None }
}

fn browse(rng: &mut impl Rng, customer: &Customer, device: &mut Device, clock: &mut u64) -> Vec<Message> {
    let mut messages = Vec::new();
    for _ in 0..rng.random_range(2..=7) {
        *clock += rng.random_range(3_000..90_000);
        let product = &PRODUCTS[rng.random_range(0..PRODUCTS.len())];
        let path = format!("/products/{}", product.handle);
        messages.push(message(rng, customer, device, *clock, "page", json!({
            "name": product.title, "properties": {"path": path, "url": format!("https://{}{path}", customer.shop)},
        })));
        if rng.random_bool(0.5) {
            *clock += rng.random_range(500..5_000);
            messages.push(message(rng, customer, device, *clock, "track", json!({
                "event": "Product Viewed",
                "properties": {"product_id": product.id, "name": product.title, "price": shop::decimal(product.cents)},
            })));
        }
        if rng.random_bool(0.2) {
            *clock += rng.random_range(500..5_000);
            if device.cart.is_none() {
                device.cart = Some(format!("cart-{}", hex(rng, 20)));
            }
            messages.push(message(
                rng,
                customer,
                device,
                *clock,
                "track",
                json!({
                    "event": "Product Added",
                    "properties": {"product_id": product.id, "cart_token": device.cart, "quantity": 1},
                }),
            ));
        }
    }
    messages
}

fn sign_in(rng: &mut impl Rng, customer: &Customer, device: &mut Device, clock: &mut u64) -> Message {
    *clock += rng.random_range(1_000..30_000);
    device.signed_in = true;
    let traits = json!({
        "email": customer.email(), "firstName": customer.first_name, "visits": rng.random_range(1..50),
        "newsletter": rng.random_bool(0.5),
    });
    let mut signed = message(rng, customer, device, *clock, "identify", json!({"traits": traits}));
    signed.fact.identifiers.push(("email", customer.email()));
    signed
}

fn start_checkout(rng: &mut impl Rng, customer: &Customer, device: &mut Device, clock: &mut u64) -> Message {
    *clock += rng.random_range(5_000..60_000);
    let cart = device.cart.get_or_insert_with(|| format!("cart-{}", hex(rng, 20))).clone();
    message(
        rng,
        customer,
        device,
        *clock,
        "track",
        json!({
            "event": "Checkout Started", "properties": {"cart_token": cart},
        }),
    )
}

/// Puts into `body` what every message has.
fn message(
    rng: &mut impl Rng,
    customer: &Customer,
    device: &Device,
    at_ms: u64,
    kind: &'static str,
    mut body: Value,
) -> Message {
    let message_id = format!("msg-{}", hex(rng, 24));
    let mut identifiers = vec![("anonymous_id", device.anonymous_id.clone())];
    body["type"] = kind.into();
    body["anonymousId"] = device.anonymous_id.clone().into();
    body["messageId"] = message_id.clone().into();
    body["timestamp"] = shop::iso(at_ms).into();
    body["context"] = json!({"library": {"name": "analytics.js", "version": "2.1.0"}, "locale": "en-US",
        "userAgent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"});
    if device.signed_in {
        body["userId"] = customer.user_id().into();
        identifiers.push(("user_id", customer.user_id()));
    }
    if let Some(cart) = body["properties"]["cart_token"].as_str() {
        identifiers.push(("cart_token", cart.to_owned()));
    }
    if body["properties"].is_null() {
        body.as_object_mut().map(|fields| fields.remove("properties"));
    }
    Message { at_ms, kind, body, fact: Fact { event: message_id, identifiers, order: None } }
}

/// Some SDKs send each message at once, others collect: half of the sessions either way.
fn send(rng: &mut impl Rng, messages: Vec<Message>) -> Vec<Delivery> {
    if rng.random_bool(0.5) {
        return messages
            .into_iter()
            .map(|m| delivery(m.at_ms, To::Segment { path: m.kind }, m.body.to_string(), vec![m.fact]))
            .collect();
    }
    let mut deliveries = Vec::new();
    let mut rest = messages.into_iter().peekable();
    while rest.peek().is_some() {
        let batch: Vec<Message> = rest.by_ref().take(10).collect();
        let made_ms = batch.last().map_or(0, |m| m.at_ms);
        let (bodies, facts): (Vec<Value>, Vec<Fact>) = batch.into_iter().map(|m| (m.body, m.fact)).unzip();
        deliveries.push(delivery(
            made_ms,
            To::Segment { path: "batch" },
            json!({"batch": bodies}).to_string(),
            facts,
        ));
    }
    deliveries
}

/// What Shopify sends of an order: the checkout, the customer, the order, its payment, perhaps a refund or cancellation.
fn order(rng: &mut impl Rng, customer: &Customer, device: &Device, clock: &mut u64) -> Vec<Delivery> {
    let cart = device.cart.clone().unwrap_or_default();
    let token = hex(rng, 20);
    let id = 5_000_000_000_000 + customer.number;
    *clock += rng.random_range(20_000..300_000);
    let placed_ms = *clock;
    let (line_items, total_cents) = bought(rng);
    let person = person(customer, placed_ms);
    let mut body = json!({
        "id": id, "name": format!("#{}", 1000 + customer.number), "email": customer.email(), "cart_token": cart,
        "checkout_token": token, "currency": customer.currency, "total_price": shop::decimal(total_cents), "test": false,
        "created_at": shop::iso(placed_ms), "updated_at": shop::iso(placed_ms), "cancelled_at": null,
        "financial_status": "pending", "fulfillment_status": null, "line_items": line_items, "refunds": [],
        "customer": person,
    });
    let mut state = OrderState {
        id,
        updated_ms: placed_ms,
        currency: customer.currency,
        total_cents,
        refunded_cents: 0,
        counts: true,
    };
    let checkout_at = shop::iso(placed_ms - 10_000);
    let checkout = json!({"id": id - 1, "token": token, "cart_token": cart, "email": customer.email(),
        "currency": customer.currency, "total_price": shop::decimal(total_cents), "created_at": checkout_at,
        "updated_at": checkout_at});
    let contact = ("email", customer.email());
    let shopify_id = ("shopify_customer_id", customer.shopify_id().to_string());
    let (bridge, checkout_bridge) = (("cart_token", cart), ("checkout_token", token));
    let all = vec![contact.clone(), shopify_id.clone(), bridge.clone(), checkout_bridge.clone()];
    let of_checkout = vec![contact.clone(), bridge, checkout_bridge];
    let mut deliveries = vec![
        webhook(rng, placed_ms - 10_000, "checkouts/create", &checkout, of_checkout, None),
        webhook(rng, placed_ms, "customers/create", &person, vec![contact, shopify_id], None),
        webhook(rng, placed_ms, "orders/create", &body, all.clone(), Some(state.clone())),
    ];
    let mut change = |rng: &mut _,
                      body: &mut Value,
                      topic,
                      wait: u64,
                      alter: &mut dyn FnMut(&mut Value, &mut OrderState)| {
        *clock += wait;
        state.updated_ms = *clock;
        body["updated_at"] = shop::iso(*clock).into();
        alter(body, &mut state);
        deliveries.push(webhook(rng, *clock, topic, body, all.clone(), Some(state.clone())));
    };
    change(rng, &mut body, "orders/updated", 5_000, &mut |body, _| body["financial_status"] = "paid".into());
    match rng.random_range(0..10) {
        0 | 1 => change(rng, &mut body, "orders/updated", 900_000, &mut |body, state| {
            state.refunded_cents = total_cents / 2;
            body["financial_status"] = "partially_refunded".into();
            body["refunds"] = json!([{"transactions": [
                {"kind": "refund", "status": "success", "amount": shop::decimal(total_cents / 2)}]}]);
        }),
        2 => {
            let at = shop::iso(placed_ms + 605_000);
            change(rng, &mut body, "orders/cancelled", 600_000, &mut |body, state| {
                state.counts = false;
                body["cancelled_at"] = at.clone().into();
            });
        }
        _ => {}
    }
    deliveries
}

/// One to four products, as Shopify's orders list them, and what they cost together, in cents.
fn bought(rng: &mut impl Rng) -> (Vec<Value>, i64) {
    let lines: Vec<_> =
        (0..rng.random_range(1..=4)).map(|_| &PRODUCTS[rng.random_range(0..PRODUCTS.len())]).collect();
    let items = lines.iter().map(
        |p| json!({"id": p.id, "product_id": p.id, "title": p.title, "quantity": 1, "price": shop::decimal(p.cents)}),
    );
    (items.collect(), lines.iter().map(|product| product.cents).sum())
}

/// The customer, as Shopify's bodies have it.
fn person(customer: &Customer, updated_ms: u64) -> Value {
    json!({
        "id": customer.shopify_id(), "email": customer.email(), "first_name": customer.first_name, "last_name": null,
        "state": "disabled", "tags": "", "updated_at": shop::iso(updated_ms), "default_address": {"country_code": "US"},
    })
}

fn webhook(
    rng: &mut impl Rng,
    at_ms: u64,
    topic: &'static str,
    body: &Value,
    identifiers: Vec<(&'static str, String)>,
    order: Option<OrderState>,
) -> Delivery {
    let webhook_id = format!("webhook-{}", hex(rng, 16));
    let fact = Fact { event: webhook_id.clone(), identifiers, order };
    let to = To::Shopify { topic, webhook_id, event_id: format!("event-{}", hex(rng, 16)) };
    delivery(at_ms, to, body.to_string(), vec![fact])
}

fn delivery(made_ms: u64, to: To, body: String, facts: Vec<Fact>) -> Delivery {
    Delivery { made_ms, send_ms: made_ms, to, body, facts }
}
