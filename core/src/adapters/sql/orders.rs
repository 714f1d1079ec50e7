//! Orders, products, consent.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rust_decimal::Decimal;
use sqlx_macros::FromRow;

use super::codec::{Json, Money, Time};
use super::read_as;
use super::statement::Given;
use super::store::SqlStoreTx;
use crate::domain::customer360::StoredConsent;
use crate::domain::event::{ProductPart, Source};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::json::is_default;
use crate::domain::order::{Amount, Fulfillment, Item, Order, OrderRecord, Part, Refund, UNKNOWN_CURRENCY};
use crate::domain::time::from_ms;
use crate::domain::version::{Version, Versions};
use crate::ports::store::{BrandOrder, ConsentRow, OrderKey, OrdersTx, ProductRow, StoreError};

/// The columns of an order, as it is read.
pub(super) const ORDER: &str = "orders.brand_id, orders.shop, orders.id, profile_id, updated_at, message_id, orders.name, ordered_at, \
    cancelled_at, test, currency, total, refunded, financial_status, fulfillment_status, items, version, presentment, refunds, \
    fulfillments, deleted_at, erased, parts";

#[derive(FromRow)]
pub(super) struct OrderRow {
    brand_id: BrandId,
    shop: String,
    id: String,
    profile_id: Option<ProfileId>,
    updated_at: Time,
    message_id: String,
    name: Option<String>,
    ordered_at: Time,
    cancelled_at: Option<Time>,
    test: bool,
    currency: String,
    total: Money,
    refunded: Money,
    financial_status: Option<String>,
    fulfillment_status: Option<String>,
    items: Json<Vec<Item>>,
    version: i32,
    presentment: Option<Json<Amount>>,
    refunds: Option<Json<BTreeMap<String, Refund>>>,
    fulfillments: Json<BTreeMap<String, Fulfillment>>,
    deleted_at: Option<Time>,
    erased: bool,
    parts: Option<Json<OrderParts>>,
}

impl From<OrderRow> for OrderRecord {
    fn from(row: OrderRow) -> Self {
        // Nothing but what happened to it is known of an order without a message.
        let state = (!row.message_id.is_empty()).then(|| {
            let mut order = Order {
                name: row.name,
                ordered_at: row.ordered_at.0,
                cancelled_at: row.cancelled_at.map(|at| at.0),
                test: row.test,
                currency: row.currency,
                total: row.total.0,
                current_total: None,
                presentment: row.presentment.map(|amount| amount.0),
                financial_status: row.financial_status,
                fulfillment_status: row.fulfillment_status,
                items: row.items.0,
            };
            let parts = row.parts.map(|parts| parts.0).unwrap_or_default();
            let versions = parts.complete(&mut order, row.updated_at.0.timestamp_millis(), row.message_id);
            (order, versions)
        });
        // Before there were refunds one by one there was their sum.
        let only_the_sum = row.refunds.is_none();
        let record = Self {
            shop: row.shop,
            id: row.id,
            profile: row.profile_id,
            state,
            refunds: row.refunds.map(|refunds| refunds.0).unwrap_or_default(),
            fulfillments: row.fulfillments.0,
            deleted_at: row.deleted_at.map(|at| at.0),
            erased: row.erased,
            revision: row.version,
        };
        if only_the_sum { record.with_refunds_in_sum(row.refunded.0) } else { record }
    }
}

#[derive(FromRow)]
pub(super) struct StoredConsentRow {
    channel: String,
    state: String,
    level: Option<String>,
    at: Time,
    sequence: i64,
    message_id: String,
    address: Option<String>,
    source: i16,
}

read_as!(OrderRecord: OrderRow, StoredConsent: StoredConsentRow);

impl From<StoredConsentRow> for StoredConsent {
    fn from(row: StoredConsentRow) -> Self {
        Self {
            channel: row.channel,
            state: row.state,
            level: row.level,
            at: row.at.0,
            sequence: row.sequence,
            message_id: row.message_id,
            address: row.address,
            source: Source::from_code(Some(row.source), ""),
        }
    }
}

/// The columns of an order that are made of several of its fields, or written as JSON.
struct OrderColumns<'a> {
    currency: &'a str,
    total: Decimal,
    gift_cards: Decimal,
    items: String,
    presentment: Option<String>,
    refunds: String,
    fulfillments: String,
    parts: Option<String>,
}

impl<'a> OrderColumns<'a> {
    fn of(record: &'a OrderRecord) -> Result<Self, StoreError> {
        fn json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
            serde_json::to_string(value).map_err(|error| StoreError::Invalid(format!("an order: {error}")))
        }
        let order = record.order();
        Ok(Self {
            currency: order.map_or(UNKNOWN_CURRENCY, |order| &order.currency),
            total: order.map_or(Decimal::ZERO, |order| order.total),
            gift_cards: order.map_or(Decimal::ZERO, Order::gift_cards),
            items: json(&order.map_or(&[][..], |order| &order.items))?,
            presentment: order.and_then(|order| order.presentment.as_ref()).map(json).transpose()?,
            refunds: json(&record.refunds)?,
            fulfillments: json(&record.fulfillments)?,
            parts: record
                .state
                .as_ref()
                .map(|(order, versions)| OrderParts::of(order, versions))
                .filter(|parts| *parts != OrderParts::default())
                .map(|parts| json(&parts))
                .transpose()?,
        })
    }
}

/// What is known of an order's state beside its values and its newest version, as JSON.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct OrderParts {
    #[serde(skip_serializing_if = "is_default")]
    sequence: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_total: Option<Decimal>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    older: BTreeMap<Part, Version>,
}

impl OrderParts {
    fn of(order: &Order, versions: &Versions<Part>) -> Self {
        Self {
            sequence: versions.newest().sequence,
            current_total: order.current_total,
            older: versions.older().clone(),
        }
    }

    /// Puts what is known into an order that was read of the rest, and its versions together.
    fn complete(self, order: &mut Order, at_ms: i64, message_id: String) -> Versions<Part> {
        order.current_total = self.current_total;
        Versions::new(Version { at_ms, sequence: self.sequence, message_id }, self.older)
    }
}

#[async_trait]
impl OrdersTx for SqlStoreTx {
    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError> {
        let asked = Given::of(keys)
            .column("brand", |key| key.brand)
            .column("of_shop", |key| &key.shop)
            .column("order_id", |key| &key.id)
            .rows();
        let orders = format!(
            "select {ORDER} from {{given}}
            join orders on orders.brand_id = given.brand and orders.shop = given.of_shop and orders.id = given.order_id"
        );
        let rows: Vec<OrderRow> = self.tx.sql(orders).given(&asked).all().await?;
        Ok(rows.into_iter().map(|row| BrandOrder { brand: row.brand_id, record: row.into() }).collect())
    }

    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError> {
        let columns: Vec<OrderColumns<'_>> =
            rows.iter().map(|order| OrderColumns::of(&order.record)).collect::<Result<_, _>>()?;
        let rows: Vec<_> = rows
            .iter()
            .zip(&columns)
            .map(|(order, columns)| (order.brand, &order.record, order.record.order(), columns))
            .collect();
        let given = Given::of(&rows)
            .column("brand", |(brand, ..)| *brand)
            .column("shop", |(_, o, ..)| &o.shop)
            .column("id", |(_, o, ..)| &o.id)
            .column("profile", |(_, o, ..)| o.profile)
            .column("updated_at", |(_, o, ..)| from_ms(o.version().at_ms))
            .column("message", |(_, o, ..)| o.version().message_id)
            .column("name", |(_, _, state, _)| state.and_then(|o| o.name.as_deref()))
            .column("ordered_at", |(_, o, ..)| o.ordered_at())
            .column("cancelled_at", |(_, _, state, _)| state.and_then(|o| o.cancelled_at))
            .column("test", |(_, _, state, _)| state.is_some_and(|o| o.test))
            .column("currency", |(.., c)| c.currency)
            .column("total", |(.., c)| c.total)
            .column("refunded", |(_, o, ..)| o.refunded())
            .column("financial", |(_, _, state, _)| state.and_then(|o| o.financial_status.as_deref()))
            .column("fulfillment", |(_, _, state, _)| state.and_then(|o| o.fulfillment_status.as_deref()))
            .column("items", |(.., c)| &c.items)
            .column("version", |(_, o, ..)| o.revision + 1)
            .column("counts", |(_, o, ..)| o.counts())
            .column("revenue", |(_, o, ..)| o.revenue())
            .column("gift_cards", |(.., c)| c.gift_cards)
            .column("presentment", |(.., c)| c.presentment.as_deref())
            .column("refunds", |(.., c)| &c.refunds)
            .column("fulfillments", |(.., c)| &c.fulfillments)
            .column("deleted_at", |(_, o, ..)| o.deleted_at)
            .column("erased", |(_, o, ..)| o.erased)
            .column("parts", |(.., c)| c.parts.as_deref())
            .rows();
        let written = self
            .tx
            .sql(
                "insert into orders (brand_id, shop, id, profile_id, origin, updated_at, message_id, name, ordered_at,
                    cancelled_at, test, currency, total, refunded, financial_status, fulfillment_status, items, version, counts,
                    revenue, gift_cards, presentment, refunds, fulfillments, deleted_at, erased, parts)
                select brand, shop, id, profile, profile, updated_at, message, name, ordered_at, cancelled_at, test, currency,
                    total, refunded, financial, fulfillment, items::json, version, counts, revenue, gift_cards, presentment,
                    refunds, fulfillments, deleted_at, erased, parts
                from {given} where true
                on conflict (brand_id, shop, id) do update set profile_id = excluded.profile_id,
                    origin = case when orders.profile_id = excluded.profile_id then orders.origin else excluded.origin end,
                    updated_at = excluded.updated_at, message_id = excluded.message_id, name = excluded.name,
                    ordered_at = excluded.ordered_at, cancelled_at = excluded.cancelled_at, test = excluded.test,
                    currency = excluded.currency, total = excluded.total, refunded = excluded.refunded,
                    financial_status = excluded.financial_status, fulfillment_status = excluded.fulfillment_status,
                    items = excluded.items, version = excluded.version, counts = excluded.counts, revenue = excluded.revenue,
                    gift_cards = excluded.gift_cards, presentment = excluded.presentment, refunds = excluded.refunds,
                    fulfillments = excluded.fulfillments, deleted_at = excluded.deleted_at, erased = excluded.erased,
                    parts = excluded.parts
                where orders.version = excluded.version - 1",
            )
            .given(&given)
            .run()
            .await?;
        // What was not written had been written meanwhile; the rows are locked now, so the next run sees them.
        match written == rows.len() as u64 {
            true => Ok(()),
            false => Err(StoreError::Conflict("an order was written concurrently".into())),
        }
    }

    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError> {
        let told = |part| move |row: &ProductRow<'_>| row.product.versions.sortable(part);
        let given = Given::of(rows)
            .column("brand", |row| row.brand)
            .column("shop", |row| row.shop)
            .column("id", |row| &row.product.id)
            .column("title", |row| row.product.title.as_deref())
            .column("category", |row| row.product.category.as_deref())
            .column("vendor", |row| row.product.vendor.as_deref())
            .column("price", |row| row.product.price)
            .column("deleted_at", |row| row.product.deleted_at)
            .column("title_told", told(ProductPart::Title))
            .column("category_told", told(ProductPart::Category))
            .column("vendor_told", told(ProductPart::Vendor))
            .column("price_told", told(ProductPart::Price))
            .rows();
        let newest: String = ["title", "category", "vendor", "price"]
            .map(|part| {
                format!(
                    "{part} = case when excluded.{part}_told > p.{part}_told then excluded.{part} else p.{part} end,
                    {part}_told = greatest(excluded.{part}_told, p.{part}_told), "
                )
            })
            .concat();
        let save = format!(
            "insert into products as p (brand_id, shop, id, title, category, vendor, price, deleted_at, title_told, category_told,
                vendor_told, price_told)
            select brand, shop, id, title, category, vendor, price, deleted_at, title_told, category_told, vendor_told, price_told
            from {{given}} where true
            on conflict (brand_id, shop, id) do update set {newest}
                deleted_at = coalesce(least(p.deleted_at, excluded.deleted_at), p.deleted_at, excluded.deleted_at)"
        );
        self.tx.sql(save).given(&given).run().await?;
        Ok(())
    }

    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError> {
        let given = Given::of(rows)
            .column("brand", |row| row.brand)
            .column("message", |row| row.message_id)
            .column("channel", |row| row.consent.channel.as_str())
            .column("profile", |row| row.profile)
            .column("state", |row| &row.consent.state)
            .column("level", |row| row.consent.level.as_deref())
            .column("said_at", |row| row.consent.at)
            .column("address", |row| row.consent.address.as_deref())
            .column("source", |row| row.source.code())
            .column("sequence", |row| row.sequence)
            .rows();
        self.tx
            .sql(
                "insert into consents (brand_id, message_id, channel, profile_id, origin, state, level, at, address, source, sequence)
                select brand, message, channel, profile, profile, state, level, said_at, address, source, sequence
                from {given} where true on conflict do nothing",
            )
            .given(&given)
            .run()
            .await?;
        Ok(())
    }
}
