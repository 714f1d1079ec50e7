//! Products, as Shopify's bodies tell of them.

use serde_json::Value;

use super::fields::{amount, id_in, list, text};
use super::topics::resource;
use crate::domain::event::{Product, ProductPart, Rejection};
use crate::domain::time::Timestamp;
use crate::domain::version::{Version, Versions};

pub(super) fn product(
    body: &Value,
    topic: &str,
    updated_at: Timestamp,
    version: &Version,
) -> Result<Option<Product>, Rejection> {
    if resource(topic) != "products" {
        return Ok(None);
    }
    let id = id_in(body, "id").ok_or_else(|| {
        Rejection::new("invalid_product", format!("{topic} without an id: which product is it?"))
    })?;
    let price = list(body, "variants").first().map(|variant| amount(variant, "price")).transpose()?;
    let deleted_at = (topic == "products/delete").then_some(updated_at);
    let mentions = |part: &ProductPart| {
        // A deletion says nothing of the state: whatever came before or comes late holds.
        let field = match part {
            ProductPart::Title => "title",
            ProductPart::Category => "product_type",
            ProductPart::Vendor => "vendor",
            ProductPart::Price => "variants",
        };
        deleted_at.is_none() && body.get(field).is_some()
    };
    let left_out: Vec<ProductPart> = ProductPart::ALL.into_iter().filter(|part| !mentions(part)).collect();
    Ok(Some(Product {
        id,
        versions: Versions::stated(version.clone(), &left_out),
        title: text(body, "title"),
        category: text(body, "product_type"),
        vendor: text(body, "vendor"),
        price,
        deleted_at,
    }))
}
