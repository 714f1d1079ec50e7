//! What routes answer that has no type of its own in the core; and what the document says of bodies that stay text: events, until a worker
//! reads them, and exports, which are written as they are read.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use tributary_core::domain::customer360::Customer360;
use tributary_core::ports::outbox::OutboxStats;
use tributary_core::ports::queue::{Holding, QueueStats};
use tributary_core::ports::store::StoreStats;
use tributary_core::services::automations::api::{ActionAnswer, RunAnswer};
use tributary_core::services::identity::MergeEntry;
use tributary_core::services::privacy::RequestEntry;
use tributary_core::services::queues::Rates;
use utoipa::ToSchema;

/// A message that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// Always true: what is not accepted is answered with an error.
    pub success: bool,
}

/// A webhook that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookAccepted {
    /// Always true: what is not accepted is answered with an error.
    pub success: bool,
    /// Whether it came before: then it has no second effect.
    pub duplicate: bool,
    /// There, and true, where nothing of it is kept: the shop's customers were erased.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
}

impl WebhookAccepted {
    pub fn new(duplicate: bool) -> Self {
        Self { success: true, duplicate, ignored: false }
    }
}

/// What became of events that were sent together.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventsAccepted {
    /// How many were accepted.
    pub accepted: usize,
    /// The others, and why.
    pub rejected: Vec<EventRejected>,
}

/// An event that was not accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventRejected {
    /// Its place in the request, from 0.
    pub index: usize,
    /// What is wrong, as a stable name for programs.
    pub code: String,
    /// For people: what is wrong with it.
    pub error: String,
}

/// A message in Segment's format, as far as Tributary reads it. Other fields are kept with the event.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackingMessage {
    /// `track`, `identify`, `page`, `screen`, `group` or `alias`; needed in a batch, and where the route does not say it
    #[serde(rename = "type")]
    kind: Option<String>,
    user_id: Option<String>,
    anonymous_id: Option<String>,
    /// The id that tells a repeated message; made by the server where it is missing
    message_id: Option<String>,
    /// The name of a `track`
    event: Option<String>,
    /// The name of a `page` or a `screen`
    name: Option<String>,
    /// Of a `group`
    group_id: Option<String>,
    /// Of an `alias`
    previous_id: Option<String>,
    properties: Option<BTreeMap<String, Value>>,
    traits: Option<BTreeMap<String, Value>>,
    context: Option<BTreeMap<String, Value>>,
    integrations: Option<BTreeMap<String, Value>>,
    /// When it happened, as ISO 8601
    timestamp: Option<String>,
    /// When it was sent, by the sender's clock
    sent_at: Option<String>,
    /// The write key, where no header has it
    write_key: Option<String>,
}

/// Messages in Segment's format.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackingBatch {
    #[schema(max_items = 2500)]
    batch: Vec<TrackingMessage>,
    /// For all messages, under their own
    context: Option<BTreeMap<String, Value>>,
    /// For all messages, under their own
    integrations: Option<BTreeMap<String, Value>>,
    sent_at: Option<String>,
    write_key: Option<String>,
}

/// One event, or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Events {
    One(Box<TrackingMessage>),
    Several(Vec<TrackingMessage>),
}

/// Every queue, and the outbox.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueuesMonitored {
    /// `null` while the database is unavailable.
    pub outbox: Option<OutboxStats>,
    pub events: QueueStats,
    pub automations: QueueStats,
}

/// The server in numbers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Statistics {
    pub version: &'static str,
    /// Seconds since the server started; for who looks after all brands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime_s: Option<u64>,
    /// For who looks after all brands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<EventCounts>,
    /// The brand of the secret key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brand: Option<StoreStats>,
}

/// Events since the queue was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventCounts {
    pub enqueued: u64,
    pub duplicates: u64,
    pub done: u64,
    pub retried: u64,
    /// Dead letters that are there now.
    pub dead: u64,
}

/// Every queue, as far as the brand may see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueReports {
    /// Where the brand is the only one; `null` while the database is unavailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<Option<OutboxStats>>,
    pub events: QueueReport,
    pub automations: QueueReport,
}

/// A queue, as far as the brand may see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum QueueReport {
    Whole(Box<WholeQueue>),
    Own(OwnPart),
}

/// A queue that no other brand uses.
#[derive(Debug, Serialize, ToSchema)]
pub struct WholeQueue {
    #[serde(flatten)]
    pub stats: QueueStats,
    pub held: Holding,
    /// Of the events queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

/// What the brand holds of a queue that other brands use, too.
#[derive(Debug, Serialize, ToSchema)]
pub struct OwnPart {
    pub paused: bool,
    pub held: Holding,
}

/// How many dead letters were put back.
#[derive(Debug, Serialize, ToSchema)]
pub struct Retried {
    pub retried: u64,
}

/// How many dead letters were discarded.
#[derive(Debug, Serialize, ToSchema)]
pub struct Discarded {
    pub discarded: u64,
}

/// Whether the queue is paused.
#[derive(Debug, Serialize, ToSchema)]
pub struct Paused {
    pub paused: bool,
}

/// The settings of a browser SDK.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SdkSettings {
    /// One, by the name of the SDK's maker.
    pub integrations: BTreeMap<String, SdkIntegration>,
    pub plan: BTreeMap<String, String>,
    pub metrics: SdkMetrics,
    pub remote_plugins: Vec<String>,
}

/// Where an SDK sends events.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SdkIntegration {
    pub api_key: String,
    pub api_host: String,
    pub protocol: &'static str,
}

/// What an SDK sends of itself: nothing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SdkMetrics {
    pub sample_rate: u8,
}

/// The source of RudderStack's SDKs.
#[derive(Debug, Serialize, ToSchema)]
pub struct SourceConfig {
    pub source: SdkSource,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SdkSource {
    pub id: String,
    pub name: &'static str,
    pub write_key: String,
    pub enabled: bool,
    pub config: SdkSourceConfig,
    /// None that a browser would have to know.
    pub destinations: Vec<String>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SdkSourceConfig {
    pub stats_collection: StatsCollection,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct StatsCollection {
    pub errors: Switch,
    pub metrics: Switch,
}

#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Switch {
    pub enabled: bool,
}

/// All that is held on a customer. It is written as it is read, and never held as a whole.
#[derive(Serialize, ToSchema)]
pub struct CustomerExport {
    exported_at: String,
    customer: Customer360,
    /// The segments that the customer entered or left.
    segments: Vec<BTreeMap<String, Value>>,
    automation_runs: Vec<RunAnswer>,
    automation_actions: Vec<ActionAnswer>,
    /// Every trait with the event that said it.
    traits: Vec<BTreeMap<String, Value>>,
    merges: Vec<MergeEntry>,
    /// What was said of consent, newest first.
    consents: Vec<BTreeMap<String, Value>>,
    orders: Vec<BTreeMap<String, Value>>,
    /// Every event as the timeline has it, with its `message` as it came.
    events: Vec<BTreeMap<String, Value>>,
}

/// All that is held on whom a data request is about.
#[derive(Serialize, ToSchema)]
pub struct RequestExport {
    request: RequestEntry,
    customers: Vec<CustomerExport>,
}
