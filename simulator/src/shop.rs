//! The shop: its day, its goods, and how it writes times and amounts.

use chrono::{DateTime, SecondsFormat};

pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// When the simulated day begins: 2026-01-15T00:00:00Z, in milliseconds since 1970.
const BEGIN_MS: u64 = 1_768_435_200_000;

pub struct Product {
    pub id: u64,
    /// The last part of its address.
    pub handle: &'static str,
    /// What it is called.
    pub title: &'static str,
    pub cents: i64,
}

/// All that the shop sells.
pub const PRODUCTS: [Product; 12] = [
    Product { id: 9001, handle: "river-mug", title: "River Mug", cents: 1450 },
    Product { id: 9002, handle: "oak-board", title: "Oak Board", cents: 3995 },
    Product { id: 9003, handle: "linen-apron", title: "Linen Apron", cents: 4200 },
    Product { id: 9004, handle: "tea-tin", title: "Tea Tin", cents: 899 },
    Product { id: 9005, handle: "brass-spoon", title: "Brass Spoon", cents: 1200 },
    Product { id: 9006, handle: "wool-throw", title: "Wool Throw", cents: 12900 },
    Product { id: 9007, handle: "stone-bowl", title: "Stone Bowl", cents: 5650 },
    Product { id: 9008, handle: "candle-trio", title: "Candle Trio", cents: 2401 },
    Product { id: 9009, handle: "jam-set", title: "Jam Set", cents: 1999 },
    Product { id: 9010, handle: "copper-pan", title: "Copper Pan", cents: 15900 },
    Product { id: 9011, handle: "seed-box", title: "Seed Box", cents: 733 },
    Product { id: 9012, handle: "gift-wrap", title: "Gift Wrap", cents: 0 },
];

/// What customers are called.
pub const FIRST_NAMES: [&str; 10] =
    ["Ada", "Bela", "Chidi", "Dana", "Emre", "Fatima", "Goran", "Hana", "Ines", "Jonas"];

/// A time of the simulated day in ISO 8601.
pub fn iso(at_ms: u64) -> String {
    let ms = i64::try_from(BEGIN_MS + at_ms).unwrap_or_default();
    DateTime::from_timestamp_millis(ms).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Cents as Shopify writes amounts: `"14.50"`.
pub fn decimal(cents: i64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}
