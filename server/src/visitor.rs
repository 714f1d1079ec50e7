//! `server demo PART`: what Shopify would send of the walkthrough's visitor, signed with the secret of a shop that is made for it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tributary_core::context::Context;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::time::{self, Timestamp};
use tributary_core::services::shops::add_shop;

use crate::admin::brand_named;
use crate::cli::{DemoArgs, Part, ServeArgs};

const SHOP: &str = "tributary-demo.myshopify.com";
/// As Shopify's deliveries name it.
const API_VERSION: &str = "2026-07";

/// How long the server may take to answer one delivery.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a part.
///
/// # Errors
/// When the store or the server cannot be reached, there is no such brand, or the server refuses.
pub async fn run(args: &ServeArgs, asked: &DemoArgs) -> anyhow::Result<()> {
    args.refuse_missing_folder()?;
    let context = Context::open(&args.backend()?, args.queue.settings()).await?;
    let brand = brand_named(&context.brand_ports, &asked.brand).await?;
    let secret = secret(&context, brand).await?;
    let http = reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build()?;
    for (topic, body) in deliveries(asked.part, context.world.now()) {
        let body = body.to_string();
        let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?.chain_update(&body);
        let request = http
            .post(format!("{}/api/webhooks/shopify", asked.url.trim_end_matches('/')))
            .header("x-shopify-topic", topic)
            .header("x-shopify-shop-domain", SHOP)
            .header("x-shopify-webhook-id", context.world.id().to_string())
            .header("x-shopify-api-version", API_VERSION)
            .header("x-shopify-hmac-sha256", STANDARD.encode(mac.finalize().into_bytes()))
            .body(body);
        let response = request.send().await.with_context(|| {
            format!("no server answers at {}: say where it listens with --url", asked.url)
        })?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("{topic}: {status} {text}");
        }
        println!("{topic} {text}");
    }
    context.close().await;
    Ok(())
}

/// The shop's secret: the one it has, or a new one.
async fn secret(context: &Context, brand: BrandId) -> anyhow::Result<String> {
    match context.brand_ports.shops.shop(SHOP).await? {
        Some(shop) if shop.brand == brand => Ok(shop.secret),
        Some(_) => bail!("{SHOP} is another brand's: say which with --brand"),
        None => {
            let secret = hex::encode(context.world.bytes::<16>());
            add_shop(context, SHOP, brand, &secret).await?;
            Ok(secret)
        }
    }
}

/// What Shopify sends, in order.
fn deliveries(part: Part, now: Timestamp) -> Vec<(&'static str, Value)> {
    let now = time::format(now);
    let mug = json!([{"id": 11, "title": "Mug", "product_id": 9, "quantity": 1, "price": "50.00"}]);
    let refund = json!({"id": 5, "order_id": 1, "created_at": now, "transactions": [
        {"kind": "refund", "status": "success", "amount": "50.00", "currency": "USD"}]});
    let order = json!({
        "id": 1, "name": "#1001", "checkout_token": "check-1", "currency": "USD", "total_price": "50.00",
        "created_at": now, "updated_at": now, "line_items": mug,
        "customer": {"id": 7, "email": "ada@example.com", "first_name": "Ada", "last_name": "Lovelace", "updated_at": now},
    });
    match part {
        Part::Cart => vec![
            (
                "carts/create",
                json!({"id": "cart-1", "token": "cart-1", "updated_at": now, "line_items": mug}),
            ),
            (
                "checkouts/create",
                json!({"id": 4, "token": "check-1", "cart_token": "cart-1", "email": "ada@example.com", "updated_at": now,
                    "created_at": now}),
            ),
        ],
        Part::Order => vec![("orders/create", order)],
        Part::Refund => {
            let mut refunded = order;
            // When it was placed is known, and stays.
            if let Some(fields) = refunded.as_object_mut() {
                fields.remove("created_at");
            }
            refunded["financial_status"] = "refunded".into();
            refunded["refunds"] = json!([refund]);
            vec![("refunds/create", refund), ("orders/updated", refunded)]
        }
    }
}
