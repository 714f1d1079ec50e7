//! The OpenAPI document, at `/openapi.json`, and a page to read it, at `/docs`.
//!
//! The document is made from the handlers themselves. What they answer is held against it: [`documented`] lets no route of a
//! debug build answer with a code that the document does not list, so every test checks it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, OpenApi as Document, RefOr};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::codes::{ANYWHERE, ERROR_CODES};
use crate::error::ErrorCode;
use crate::guards;

/// What every error answer looks like.
#[derive(Serialize, ToSchema)]
pub struct Error {
    /// A stable name for programs.
    code: String,
    /// What is wrong and what would be right, for people.
    message: String,
    /// The id that the log knows the request by; the header `x-request-id` has it, too.
    request_id: String,
}

/// What the document says beside the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tributary",
        description = "Merges storefront events and Shopify webhooks into one profile for each customer.\n\nAn error is `{\"code\", \"message\", \"request_id\"}`; the extension `x-error-codes` of a response lists the codes that it may have; a 429 and a 503 have a `Retry-After` in seconds. Any route may answer 500 `internal`, a defect, 405 `method_not_allowed`, and 400 `invalid_text` for U+0000; those that change something by a secret key also 403 `foreign_origin` and 415 `unsupported_media_type`.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(Error)),
    modifiers(&Keys),
    tags(
        (name = "Events", description = "Ingestion: Segment's API, arrays of events, Shopify's webhooks"),
        (name = "Customers", description = "Customer360, lists, timelines"),
        (name = "Identity", description = "How profiles were formed; merging and splitting"),
        (name = "Privacy", description = "Export, erasure, requests, the audit log"),
        (name = "Segments", description = "Segments: customers by rule; definitions, members, changes, previews"),
        (name = "Automations", description = "Automations: definitions, templates, dry runs, runs"),
        (name = "Unsubscribe", description = "Pages for the links in e-mails"),
        (name = "Settings", description = "A brand's settings and keys"),
        (name = "Queues", description = "Queue statistics and dead letters"),
        (name = "Monitoring", description = "Health, statistics, metrics"),
    )
)]
pub struct Base;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_with(Components::new);
        let secret = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A secret key, `sk_…`: stays on your servers"))
            .build();
        let write = Http::builder()
            .scheme(HttpAuthScheme::Basic)
            .description(Some(
                "A write key, `wk_…`, as user name without a password; also as Bearer token, or as `writeKey` in the body",
            ))
            .build();
        components.add_security_scheme("secret_key", SecurityScheme::Http(secret));
        let monitor = Http::builder()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The key of --monitor-key; on the port of --monitor-bind, and without that from the server's own machine, none is needed",
            ))
            .build();
        components.add_security_scheme("monitor_key", SecurityScheme::Http(monitor));
        components.add_security_scheme("write_key", SecurityScheme::Http(write));
    }
}

/// Puts an operation under further paths: other spellings of the same route.
pub fn also_at(document: &mut Document, path: &str, others: &[String]) {
    let Some(item) = document.paths.paths.get(path).cloned() else { return };
    for other in others {
        document.paths.paths.insert(other.clone(), item.clone());
    }
}

/// The document as tools read it, that make clients: with what the handlers leave out, and types that have names.
pub fn written(document: &Document) -> Value {
    let mut json = json!(document);
    json["servers"] = json!([{"url": "/", "description": "This server"}]);
    if let Some(paths) = json["paths"].as_object_mut() {
        for operation in
            paths.values_mut().filter_map(Value::as_object_mut).flat_map(|item| item.values_mut())
        {
            complete(operation);
        }
    }
    if let Some(schemas) = json.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        name_variants(schemas);
        schemas.values_mut().for_each(leave_defaults_out);
    }
    json
}

/// Tools take a field with a default for one that is always there, which it is in an answer, and need not be in a request.
fn leave_defaults_out(schema: &mut Value) {
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
    for field in fields.into_iter().flat_map(|fields| fields.values_mut()).filter_map(Value::as_object_mut) {
        field.remove("default");
    }
}

/// Who may call it, and what each answer is.
fn complete(operation: &mut Value) {
    let Some(fields) = operation.as_object_mut() else { return };
    fields.entry("security").or_insert_with(|| json!([]));
    let answers = fields.get_mut("responses").and_then(Value::as_object_mut);
    for (status, answer) in answers.into_iter().flatten() {
        if answer["description"].as_str().is_none_or(str::is_empty) {
            answer["description"] = match status.as_str() {
                "201" => "Made",
                "202" => "Taken; it is done in the background",
                _ => "The answer",
            }
            .into();
        }
    }
}

/// Gives the variants of each choice, which a field tells apart, names of their own: tools make no types of what has none. And a variant
/// that is another choice is that choice: what utoipa writes for `#[serde(untagged)]` within a tagged enum - both at once - is nothing.
fn name_variants(schemas: &mut serde_json::Map<String, Value>) {
    let names: Vec<String> = schemas.keys().cloned().collect();
    for name in names {
        let Some(Value::Array(mut variants)) = schemas[&name].get_mut("oneOf").map(Value::take) else {
            continue;
        };
        for variant in &mut variants {
            if let Some(inner) =
                variant["allOf"].as_array().and_then(|all| all.iter().find(|one| one["$ref"].is_string()))
            {
                *variant = inner.clone();
                continue;
            }
            let tag = variant["properties"].as_object().into_iter().flatten().find_map(|(_, field)| {
                field["enum"].as_array().filter(|one| one.len() == 1).and_then(|one| one[0].as_str())
            });
            let Some(own) = tag.map(|tag| format!("{name}{}", pascal_case(tag))) else { continue };
            let named = std::mem::replace(variant, json!({"$ref": format!("#/components/schemas/{own}")}));
            schemas.insert(own, named);
        }
        schemas[&name]["oneOf"] = Value::Array(variants);
    }
}

fn pascal_case(name: &str) -> String {
    let words = name.split('_').map(|word| word[..1].to_ascii_uppercase() + &word[1..]);
    words.collect()
}

/// Names every operation by its method and path, as the standard wants it: each by another name.
pub fn name_operations(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, patch, delete, .. } = item;
        let all = [("get", get), ("put", put), ("post", post), ("patch", patch), ("delete", delete)];
        for (method, operation) in all {
            let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            if let Some(operation) = operation {
                let words: Vec<&str> = [method].into_iter().chain(words).collect();
                operation.operation_id = Some(words.join("_"));
            }
        }
    }
}

/// The document, as JSON.
pub fn document(json: &Arc<str>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.to_string()).into_response()
}

pub async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, guards::READS)], Html(include_str!("pages/docs.html")))
        .into_response()
}

/// What a browser sees at the server's own address.
pub async fn start() -> Response {
    let page = include_str!("pages/start.html").replace("VERSION", env!("CARGO_PKG_VERSION"));
    ([(header::CONTENT_SECURITY_POLICY, guards::ASKS)], Html(page)).into_response()
}

pub async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("pages/docs.js"))
        .into_response()
}

pub async fn style() -> Response {
    css(include_str!("pages/docs.css"))
}

/// The looks of pages with one question.
pub async fn page_style() -> Response {
    css(include_str!("pages/page.css"))
}

fn css(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], text).into_response()
}

/// An operation with its method and path.
pub fn operations(document: &Document) -> Vec<(&'static str, String, Operation)> {
    let mut all = Vec::new();
    for (path, item) in &document.paths.paths {
        let PathItem { get, put, post, patch, delete, .. } = item.clone();
        let all_of_it = [("GET", get), ("PUT", put), ("POST", post), ("PATCH", patch), ("DELETE", delete)];
        for (method, operation) in all_of_it {
            if let Some(operation) = operation {
                all.push((method, path.clone(), operation));
            }
        }
    }
    all
}

/// The codes that an operation documents, with their statuses.
pub fn codes_of(operation: &Operation) -> BTreeSet<(u16, String)> {
    let mut codes = BTreeSet::new();
    for (status, response) in &operation.responses.responses {
        let (RefOr::T(response), Ok(status)) = (response, status.parse()) else { continue };
        let listed = response.extensions.as_ref().and_then(|extensions| extensions.get(ERROR_CODES));
        let names = listed.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        codes.extend(names.map(|name| (status, name.to_owned())));
    }
    codes
}

/// The codes that each route documents.
type Documented = BTreeMap<(String, String), BTreeSet<String>>;

static DOCUMENTED: LazyLock<Documented> = LazyLock::new(|| {
    let document = crate::router::document();
    operations(&document)
        .into_iter()
        .map(|(method, path, operation)| {
            let codes = codes_of(&operation).into_iter().map(|(_, code)| code).collect();
            ((method.to_owned(), path), codes)
        })
        .collect()
});

/// Refuses, in debug builds, to answer with a code that the route does not document.
pub async fn documented(request: Request, next: Next) -> Response {
    if !cfg!(debug_assertions) {
        return next.run(request).await;
    }
    let method = request.method().as_str().to_owned();
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    if let (Some(path), Some(ErrorCode(code))) = (path, response.extensions().get::<ErrorCode>().copied())
        && !ANYWHERE.contains(&code)
        // What catches the addresses that are no route's.
        && !path.contains("{*")
    {
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { &path };
        let known = DOCUMENTED.get(&(method.clone(), path.to_owned()));
        assert!(
            known.is_some_and(|codes| codes.contains(code)),
            "{method} {path} answers {code}, which it does not document"
        );
    }
    response
}
