//! A request's id and its trace: from the client, through the queue, to the worker that processes its event.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use backends::guard::Guarded;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use reqwest::StatusCode;
use serde_json::Value;
use tokio::net::TcpListener;

const START: Duration = Duration::from_secs(60);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// A collector of traces, and what it got: spans, with the name of the service that sent them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self::default();
        let routes = Router::new().route("/v1/traces", post(Self::take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (collector, url)
    }

    async fn take(State(collector): State<Self>, headers: HeaderMap, body: Bytes) {
        assert_eq!(headers["authorization"], "Bearer collector", "the headers that the environment names");
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let named = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
            let service = format!("{:?}", named.value);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            collector.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
    }

    /// The spans of that name in the client's trace.
    fn in_trace(&self, name: &str) -> Vec<Span> {
        let got = self.0.lock().unwrap();
        let wanted = |span: &&Span| span.name == name && hex::encode(&span.trace_id) == TRACE;
        got.iter().map(|(_, span)| span).filter(wanted).cloned().collect()
    }
}

fn server(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    command.args(["--embedded", "--demo", "--data"]).arg(data).args(["--bind", "127.0.0.1:0"]);
    command.env_remove("DATABASE_URL").env_remove("REDIS_URL");
    command
}

fn attribute(span: &Span, name: &str) -> String {
    span.attributes
        .iter()
        .find(|attribute| attribute.key == name)
        .map_or(String::new(), |attribute| format!("{:?}", attribute.value))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_with_its_event_through_the_queue_to_the_worker() {
    let (collector, endpoint) = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut command = server(&folder.path().join("data"));
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50");
    command.env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector");
    let server = Guarded::start("server", &command, &folder.path().join("log")).unwrap();
    let key = server.line_after("  write key   ", START).unwrap();
    let url = server.line_after("listening on ", START).unwrap();
    let client = reqwest::Client::new();
    let track = client.post(format!("{url}/v1/track")).body(r#"{"userId":"u","event":"E"}"#);
    let track = track.basic_auth(&key, None::<&str>).header("x-request-id", "mine-1");
    let answer = track.header("traceparent", format!("00-{TRACE}-{CLIENT_SPAN}-01")).send().await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["x-request-id"]),
        (StatusCode::OK, &"mine-1".parse().unwrap())
    );

    while collector.in_trace("process").is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The end of the process sends what is left.
    server.stop().unwrap();
    let requests = collector.in_trace("request");
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!(hex::encode(&request.parent_span_id), CLIENT_SPAN, "it continues the client's trace");
    assert!(attribute(request, "request_id").contains("mine-1"), "{request:?}");
    assert!(attribute(request, "route").contains("/v1/track"), "{request:?}");
    assert!(
        attribute(request, "status").contains("200") && !attribute(request, "brand").is_empty(),
        "{request:?}"
    );
    let processed = collector.in_trace("process");
    let [process] = &processed[..] else { panic!("{processed:?}") };
    assert_eq!(process.parent_span_id, request.span_id, "the worker continues the request's");
    let got = collector.0.lock().unwrap();
    let linked = |span: &Span| span.links.iter().any(|link| link.span_id == process.span_id);
    let (service, batch) = got.iter().find(|(_, span)| span.name == "batch" && linked(span)).unwrap();
    assert!(service.contains("tributary-server"), "{service}");
    assert!(
        attribute(batch, "items").contains('1') && attribute(batch, "queue").contains("event"),
        "{batch:?}"
    );
    let inside = got.iter().find(|(_, span)| span.name == "process_events").unwrap();
    assert_eq!(inside.1.parent_span_id, batch.span_id, "what a batch's services do is part of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_s_id_is_in_its_answer_its_error_and_its_log_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = server(&folder.path().join("data"));
    command.env("RUST_LOG", "info,server=debug").env("TRIBUTARY_LOG", "json");
    // Without an endpoint nobody is sent anything.
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
    let server = Guarded::start("server", &command, &folder.path().join("log")).unwrap();
    let url = server.line_after("listening on ", START).unwrap();
    let client = reqwest::Client::new();
    let ask = |id: &'static str| client.get(format!("{url}/api/segments")).header("x-request-id", id);
    for (sent, kept) in [("mine-2", true), ("two words", false)] {
        let answer = ask(sent).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(id == sent, kept, "{id}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body["code"], &body["request_id"]), (&"no_key".into(), &id.into()));
    }
    server.stop().unwrap();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answered =
        lines.iter().find(|line| line["span"]["request_id"] == "mine-2").expect("a line of the request");
    assert_eq!(answered["span"]["route"], "/api/segments");
    assert_eq!(answered["span"]["status"], 401);
}
