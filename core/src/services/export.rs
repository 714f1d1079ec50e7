//! All that is held on a customer, as JSON text, a page at a time: however much anybody has sent, an export holds a page of it.
//!
//! Messages are written as they came. An export that fails half way ends with an error, never with a document that looks whole.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::domain::customer360::{
    Customer360, CustomerRecord, EventKey, StoredConsent, StoredEvent, event_json, order_json,
};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::{self};
use crate::ports::store::StoreError;
use crate::priority;
use crate::services::automations;
use crate::services::identity::MergeEntry;
use crate::services::privacy::{Action, note};

/// Rows that are read at once: as events, at most 0.8 MB.
const PAGE: i64 = 25;
/// Bytes of text after which a piece is sent: no thread writes for long without a rest.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for whoever reads the export.
const WAITING: usize = 1;

/// The text of an export, piece by piece.
pub type Pieces = mpsc::Receiver<Result<Bytes, StoreError>>;

/// Begins an export; `None` for nobody of this brand. It is noted before it begins: what cannot be noted is not exported.
///
/// # Errors
/// The store's own.
#[tracing::instrument(name = "export_customer", skip_all, fields(brand = brand.0))]
pub async fn export(
    context: &Context,
    brand: BrandId,
    id: ProfileId,
    actor: &str,
) -> Result<Option<Pieces>, StoreError> {
    let Some(record) = context.store.customer(brand, id).await? else { return Ok(None) };
    let id = record.profile.id;
    note(context, brand, actor, Action { what: "export", subject: Some(id), details: json!({}) }).await?;
    let (pieces, read) = mpsc::channel(WAITING);
    let export = Export { context: context.clone(), brand, id, pieces };
    priority::behind().spawn(async move {
        if let Err(Ended::Store(error)) = export.write(record).await {
            tracing::warn!(%error, "an export ended half way");
            let _ = export.pieces.send(Err(error)).await;
        }
    });
    Ok(Some(read))
}

/// Why an export ends early.
enum Ended {
    Store(StoreError),
    /// Nobody reads it any more.
    Unread,
}

impl From<StoreError> for Ended {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Export {
    context: Context,
    brand: BrandId,
    id: ProfileId,
    pieces: mpsc::Sender<Result<Bytes, StoreError>>,
}

/// An event as answers list it, and as it came.
#[derive(Serialize)]
struct InFull<'e> {
    #[serde(flatten)]
    listed: Value,
    message: Message<'e>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Message<'e> {
    Json(&'e RawValue),
    Text(&'e str),
}

impl<'e> InFull<'e> {
    fn of(event: &'e StoredEvent) -> Self {
        let message = serde_json::from_str(&event.body).map_or(Message::Text(&event.body), Message::Json);
        Self { listed: event_json(event), message }
    }
}

fn consent_json(c: &StoredConsent) -> Value {
    json!({"channel": c.channel, "state": c.state, "level": c.level, "at": time::format(c.at),
        "message_id": c.message_id, "address": c.address, "source": c.source})
}

impl Export {
    async fn write(&self, record: CustomerRecord) -> Result<(), Ended> {
        self.begin(record).await?;
        self.send(",\"consents\":[".to_owned()).await?;
        let mut first = true;
        let mut before: Option<StoredConsent> = None;
        loop {
            let page = self.context.privacy.consents(self.brand, self.id, before.as_ref(), PAGE).await?;
            self.list(&page.iter().map(consent_json).collect::<Vec<_>>(), &mut first).await?;
            if (page.len() as i64) < PAGE {
                break;
            }
            before = page.into_iter().next_back();
        }
        self.send("],\"orders\":[".to_owned()).await?;
        let mut first = true;
        let mut after: Option<(String, String)> = None;
        loop {
            let page = self.context.privacy.orders(self.brand, self.id, after.as_ref(), PAGE).await?;
            after = page.last().map(|last| (last.shop.clone(), last.id.clone()));
            self.list(&page.iter().map(order_json).collect::<Vec<_>>(), &mut first).await?;
            if (page.len() as i64) < PAGE {
                break;
            }
        }
        self.send("],\"events\":[".to_owned()).await?;
        let mut first = true;
        let mut before: Option<EventKey> = None;
        loop {
            let page =
                self.context.customer_search.timeline(self.brand, self.id, before.as_ref(), PAGE).await?;
            before = page.last().map(StoredEvent::key);
            self.list(&page.iter().map(InFull::of).collect::<Vec<_>>(), &mut first).await?;
            if (page.len() as i64) < PAGE {
                break;
            }
        }
        // What webhooks said of the customer's orders alone: refunds, fulfillments.
        let mut after: Option<EventKey> = None;
        loop {
            let page = self.context.privacy.order_events(self.brand, self.id, after.as_ref(), PAGE).await?;
            after = page.last().map(StoredEvent::key);
            self.list(&page.iter().map(InFull::of).collect::<Vec<_>>(), &mut first).await?;
            if (page.len() as i64) < PAGE {
                break;
            }
        }
        self.send("]}".to_owned()).await
    }

    /// All but what may be long: an object that is still open.
    async fn begin(&self, record: CustomerRecord) -> Result<(), Ended> {
        let Self { context, brand, id, .. } = self;
        let now = context.world.now();
        let traits: Vec<Value> = record
            .profile
            .traits
            .iter()
            .map(|(name, held)| {
                let at = time::format(time::from_ms(held.at_ms));
                json!({"name": name, "value": held.value, "at": at, "message_id": held.message_id, "source": held.source})
            })
            .collect();
        let merges = context.customer_search.merges(*brand, *id).await?;
        let merges: Vec<MergeEntry> = merges.into_iter().map(MergeEntry::from).collect();
        let automations = automations::api::held(context, *brand, *id).await?;
        let mut head = json!({
            "exported_at": time::format(now),
            "customer": Customer360::of(record, now),
            "segments": automations.segments,
            "automation_runs": automations.runs,
            "automation_actions": automations.actions,
            "traits": traits,
            "merges": merges,
        })
        .to_string();
        head.pop();
        self.send(head).await
    }

    /// More entries of a list.
    async fn list<T: Serialize>(&self, entries: &[T], first: &mut bool) -> Result<(), Ended> {
        let mut text = String::new();
        for entry in entries {
            let written = serde_json::to_string(entry)
                .map_err(|error| StoreError::Invalid(format!("an entry of an export: {error}")))?;
            if !std::mem::take(first) {
                text.push(',');
            }
            text.push_str(&written);
            if text.len() >= PIECE {
                self.send(std::mem::take(&mut text)).await?;
            }
        }
        if text.is_empty() { Ok(()) } else { self.send(text).await }
    }

    async fn send(&self, text: String) -> Result<(), Ended> {
        self.pieces.send(Ok(text.into())).await.map_err(|_| Ended::Unread)
    }
}
