use serde_json::Value;

use crate::domain::envelope::{Envelope, Origin};
use crate::domain::event::Source;
use crate::domain::ids::BrandId;
use crate::ports::queue::NewItem;

/// A message of Segment's protocol (`type`, `userId`, `event`, ...), received at `received_ms` (milliseconds since 1970, UTC).
pub fn segment_item(brand: BrandId, received_ms: i64, source: Source, message: &Value) -> NewItem {
    let origin =
        Origin::Segment { kind: None, message_id: None, sent_at: None, place: 0, shared: None, source };
    item(brand, received_ms, origin, message)
}

/// A verified webhook of `shop`: its topic, for example `orders/create`, and its body.
pub fn shopify_item(
    brand: BrandId,
    received_ms: i64,
    (shop, topic, message_id): (&str, &str, &str),
    body: &Value,
) -> NewItem {
    let origin = Origin::Shopify {
        shop: shop.into(),
        topic: topic.into(),
        message_id: message_id.into(),
        triggered_at: None,
    };
    item(brand, received_ms, origin, body)
}

fn item(brand: BrandId, received_ms: i64, origin: Origin<'_>, body: &Value) -> NewItem {
    let body = serde_json::value::to_raw_value(body).unwrap();
    let envelope = Envelope { brand, received_ms, trace: None, origin, body: &body };
    NewItem { payload: envelope.encode().into(), ..NewItem::default() }
}
