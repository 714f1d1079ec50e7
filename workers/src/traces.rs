//! Traces for OpenTelemetry, sent over OTLP where the environment names an endpoint (`OTEL_EXPORTER_OTLP_ENDPOINT` and its kin). A trace
//! goes with an event through the queue: the server writes its context into the envelope, and the worker's spans continue it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use serde::Deserialize;
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;
use tributary_core::ports::queue::Item;

/// How long the collector may take to answer, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says less.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most items of a batch that get a span of their own.
const MAX_ITEM_SPANS: usize = 128;
/// The header, and the key in a carrier, of the W3C's trace context.
const TRACEPARENT: &str = "traceparent";

/// Whether anybody collects traces: without, nothing is read from envelopes, and nothing written into them.
static COLLECTED: AtomicBool = AtomicBool::new(false);

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The layer that sends spans, and what has to be kept until the end of the process; `None` where the environment asks for no traces.
///
/// # Errors
/// When the environment says something about OTLP that cannot be read.
pub(crate) fn layer<S>(
    service: &'static str,
) -> anyhow::Result<Option<(OpenTelemetryLayer<S, Tracer>, Traces)>>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span>,
{
    let endpoint = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let is_off = env("OTEL_SDK_DISABLED").is_some_and(|disabled| disabled.eq_ignore_ascii_case("true"))
        || env("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
    if endpoint.is_none() || is_off {
        return Ok(None);
    }
    let protocol = env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| env("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "http/protobuf") {
        anyhow::bail!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol:?}; Tributary sends traces as http/protobuf (port 4318 of most collectors)"
        );
    }
    let client = Client {
        http: reqwest::Client::builder().timeout(ANSWER_TIMEOUT).build()?,
        runtime: Handle::try_current().context("traces are sent on tokio's runtime")?,
    };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_http_client(client)
        .build()
        .context("OTEL_EXPORTER_OTLP_ENDPOINT and its kin")?;
    let resource = Resource::builder();
    let resource = match env("OTEL_SERVICE_NAME") {
        Some(_) => resource,
        None => resource.with_service_name(service),
    };
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tributary"));
    COLLECTED.store(true, Ordering::Relaxed);
    Ok(Some((layer, Traces(provider))))
}

/// What sends traces; its end sends what is left, and waits for it.
pub(crate) struct Traces(SdkTracerProvider);

impl Drop for Traces {
    fn drop(&mut self) {
        COLLECTED.store(false, Ordering::Relaxed);
        let provider = self.0.clone();
        // The exporter answers on the runtime, whose thread must not be blocked for it.
        let ended = std::thread::spawn(move || provider.shutdown_with_timeout(ANSWER_TIMEOUT));
        let wait = || ended.join();
        let result = match Handle::try_current().map(|on| on.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(wait),
            Ok(_) => return,
            Err(_) => wait(),
        };
        if let Ok(Err(error)) = result {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

/// The exporter runs on a thread of its own, and HTTP on the runtime.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request.try_into()?).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                headers.clone_from(answer.headers());
            }
            Ok::<_, HttpError>(response.body(answer.bytes().await?)?)
        });
        sent.await?
    }
}

/// One `traceparent`, as a carrier of headers.
struct Carrier(Option<String>);

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.as_deref().filter(|_| key.eq_ignore_ascii_case(TRACEPARENT))
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        if key.eq_ignore_ascii_case(TRACEPARENT) {
            self.0 = Some(value);
        }
    }
}

/// The context of the current span, as the header `traceparent` has it; `None` where nobody collects this trace.
pub fn traceparent() -> Option<String> {
    if !COLLECTED.load(Ordering::Relaxed) {
        return None;
    }
    let context = Span::current().context();
    if !context.span().span_context().is_sampled() {
        return None;
    }
    let mut carrier = Carrier(None);
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.0
}

/// Makes `span` part of the trace that a `traceparent` names. One that cannot be read is left out: the span begins a trace.
pub fn follow(span: &Span, traceparent: &str) {
    if COLLECTED.load(Ordering::Relaxed) {
        let context = TraceContextPropagator::new().extract(&Carrier(Some(traceparent.to_owned())));
        // It fails where the span is part of a trace already.
        let _ = span.set_parent(context);
    }
}

/// What an envelope says of its trace.
#[derive(Deserialize)]
struct Traced<'a> {
    #[serde(default, borrow)]
    trace: Option<&'a str>,
}

/// A span for each item that carries a trace, as part of that trace; `batch` is linked to all of them. They end when they are dropped.
pub(crate) fn received(batch: &Span, items: &[Item]) -> Vec<Span> {
    if !COLLECTED.load(Ordering::Relaxed) {
        return Vec::new();
    }
    let traces = items.iter().filter_map(|item| {
        let traced: Traced<'_> = serde_json::from_slice(&item.payload).ok()?;
        Some((item, traced.trace?.to_owned()))
    });
    traces
        .take(MAX_ITEM_SPANS)
        .map(|(item, trace)| {
            let span = tracing::info_span!(parent: None, "process", item = item.id, attempt = item.attempt);
            follow(&span, &trace);
            batch.add_link(span.context().span().span_context().clone());
            span
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_has_one_header() {
        let mut carrier = Carrier(None);
        carrier.set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        carrier.set("tracestate", "a=b".into());
        let context = TraceContextPropagator::new().extract(&carrier);
        assert_eq!(context.span().span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(traceparent().is_none(), "nobody collects");
    }
}
