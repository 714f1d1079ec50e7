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
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Components, OpenApi as Document, RefOr};
use utoipa::{Modify, OpenApi, ToSchema};

use crate::codes::ANYWHERE;
use crate::error::ErrorCode;
use crate::guards;

/// What every error answer looks like.
#[derive(Serialize, ToSchema)]
pub struct Error {
    /// A stable name for programs.
    code: String,
    /// What is wrong and what would be right, for people.
    message: String,
}

/// What the document says beside the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tributary",
        description = "Many streams of events run into one profile for each customer.\n\nAn error is `{\"code\", \"message\"}`; a 429 and a 503 have a `Retry-After` in seconds. Any route may answer 500 `internal`, a defect, 405 `method_not_allowed`, and 400 `invalid_text` for U+0000; those that change something by a secret key also 403 `foreign_origin` and 415 `unsupported_media_type`.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(Error)),
    modifiers(&Keys),
    tags(
        (name = "Events", description = "Taking events in: Segment's API, arrays of events, Shopify's webhooks"),
        (name = "Customers", description = "Customer360, lists, timelines"),
        (name = "Identity", description = "How profiles came to be, merging and splitting"),
        (name = "Privacy", description = "Export, erasure, requests, the audit log"),
        (name = "Settings", description = "A brand's settings and keys"),
        (name = "Queues", description = "Queues in numbers, dead letters"),
        (name = "Monitoring", description = "Health, numbers, metrics"),
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

/// Names every operation by its method and path, as the standard wants it: each by another name.
pub fn name_operations(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, delete, .. } = item;
        for (method, operation) in [("get", get), ("put", put), ("post", post), ("delete", delete)] {
            let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let slash = if path.ends_with('/') { "_slash" } else { "" };
            if let Some(operation) = operation {
                let words: Vec<&str> = [method].into_iter().chain(words).collect();
                operation.operation_id = Some(words.join("_") + slash);
            }
        }
    }
}

/// The document, as JSON.
pub fn document(json: &Arc<str>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.to_string()).into_response()
}

/// The page.
pub async fn page() -> Response {
    ([(header::CONTENT_SECURITY_POLICY, guards::READS)], Html(include_str!("pages/docs.html")))
        .into_response()
}

/// The page's script.
pub async fn script() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("pages/docs.js"))
        .into_response()
}

/// The page's looks.
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
        let PathItem { get, put, post, delete, .. } = item.clone();
        for (method, operation) in [("GET", get), ("PUT", put), ("POST", post), ("DELETE", delete)] {
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
        let RefOr::T(response) = response else { continue };
        for line in response.description.lines() {
            let code = line.strip_prefix("- `").and_then(|rest| rest.split_once('`'));
            if let (Some((code, _)), Ok(status)) = (code, status.parse()) {
                codes.insert((status, code.to_owned()));
            }
        }
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
    {
        let known = DOCUMENTED.get(&(method.clone(), path.clone()));
        assert!(
            known.is_some_and(|codes| codes.contains(code)),
            "{method} {path} answers {code}, which it does not document"
        );
    }
    response
}
