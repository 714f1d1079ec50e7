//! What a secret key needs to be allowed for each route: one table, deny by default. A route that takes a secret key and does
//! not stand here answers nobody, and a test holds the table against the document, which shows the scopes.

use axum::extract::MatchedPath;
use axum::http::Method;
use axum::http::request::Parts;
use tributary_core::domain::scopes::Scope;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::path::PathItem;
use utoipa::openapi::security::SecurityRequirement;

use Scope::{Admin, Export, Privacy, Read, Write};

/// The name of the security scheme in the document.
const SCHEME: &str = "secret_key";

/// Method, path, scope. By path.
pub const TABLE: &[(&str, &str, Scope)] = &[
    ("GET", "/api/automation-templates", Read),
    ("POST", "/api/automation-templates/{template}", Write),
    ("GET", "/api/automations", Read),
    ("POST", "/api/automations", Write),
    ("GET", "/api/automations/{id}", Read),
    ("PUT", "/api/automations/{id}", Write),
    ("DELETE", "/api/automations/{id}", Write),
    ("POST", "/api/automations/{id}/activate", Write),
    // It shows what would be sent to a customer, and changes nothing.
    ("POST", "/api/automations/{id}/dry-run", Read),
    ("POST", "/api/automations/{id}/pause", Write),
    ("GET", "/api/automations/{id}/runs", Read),
    ("POST", "/api/automations/{id}/test", Write),
    ("GET", "/api/customers", Read),
    ("GET", "/api/customers/by/{kind}/{value}/360", Read),
    ("DELETE", "/api/customers/{id}", Privacy),
    ("GET", "/api/customers/{id}/360", Read),
    ("GET", "/api/customers/{id}/export", Export),
    ("GET", "/api/customers/{id}/identity", Read),
    ("GET", "/api/customers/{id}/merge/{other}", Read),
    ("POST", "/api/customers/{id}/merge/{other}", Write),
    ("GET", "/api/customers/{id}/segments", Read),
    ("GET", "/api/customers/{id}/timeline", Read),
    ("GET", "/api/keys", Admin),
    ("POST", "/api/keys", Admin),
    ("PUT", "/api/keys/{key}", Admin),
    ("DELETE", "/api/keys/{key}", Admin),
    ("POST", "/api/keys/{key}/rotate", Admin),
    ("POST", "/api/merges/{merge}/split", Write),
    // The brand's own numbers; the rest of the answer needs no key.
    ("GET", "/api/monitoring/stats", Read),
    ("GET", "/api/privacy/audit", Admin),
    ("POST", "/api/privacy/erasures", Privacy),
    ("GET", "/api/privacy/requests", Privacy),
    ("GET", "/api/privacy/requests/{request}/export", Export),
    ("POST", "/api/privacy/requests/{request}/stop", Privacy),
    ("DELETE", "/api/privacy/suppressions/{kind}/{value}", Privacy),
    ("GET", "/api/queues", Read),
    ("GET", "/api/queues/{queue}", Read),
    ("GET", "/api/queues/{queue}/claims", Read),
    ("GET", "/api/queues/{queue}/dead", Read),
    ("DELETE", "/api/queues/{queue}/dead", Write),
    ("POST", "/api/queues/{queue}/dead/retry", Write),
    ("GET", "/api/queues/{queue}/dead/{id}", Read),
    ("DELETE", "/api/queues/{queue}/dead/{id}", Write),
    ("POST", "/api/queues/{queue}/dead/{id}/retry", Write),
    ("POST", "/api/queues/{queue}/pause", Admin),
    ("POST", "/api/queues/{queue}/resume", Admin),
    ("GET", "/api/refusals", Read),
    ("GET", "/api/runs", Read),
    ("GET", "/api/runs/{run}", Read),
    ("POST", "/api/runs/{run}/cancel", Write),
    ("POST", "/api/runs/{run}/retry", Write),
    ("POST", "/api/segment-preview", Read),
    ("GET", "/api/segments", Read),
    ("GET", "/api/segments/{name}", Read),
    ("PUT", "/api/segments/{name}", Write),
    ("DELETE", "/api/segments/{name}", Write),
    ("GET", "/api/segments/{name}/changes", Read),
    ("GET", "/api/segments/{name}/customers", Read),
    ("GET", "/api/settings", Admin),
    ("PUT", "/api/settings", Admin),
    ("PATCH", "/api/settings", Admin),
    ("GET", "/api/signing-secret", Admin),
    ("POST", "/api/signing-secret/rotate", Admin),
];

/// The scope that a route needs; `None` for one that is not in the table, which is for nobody.
pub fn needed(method: &Method, path: &str) -> Option<Scope> {
    // What answers GET answers HEAD, too.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    TABLE.iter().find(|(m, p, _)| *m == method && *p == path).map(|(.., scope)| *scope)
}

/// The scope that a request needs, by the route that it was matched to.
pub fn of_request(parts: &Parts) -> Option<Scope> {
    let path = parts.extensions.get::<MatchedPath>()?;
    needed(&parts.method, path.as_str())
}

/// Writes the scopes into the document, where the routes say that they take a secret key.
pub fn describe(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, patch, delete, .. } = item;
        for (method, operation) in [
            (Method::GET, get),
            (Method::PUT, put),
            (Method::POST, post),
            (Method::PATCH, patch),
            (Method::DELETE, delete),
        ] {
            let Some(operation) = operation else { continue };
            let (Some(scope), Some(security)) = (needed(&method, path), &mut operation.security) else {
                continue;
            };
            let secret = SecurityRequirement::new(SCHEME, Vec::<String>::new());
            for requirement in security.iter_mut().filter(|requirement| **requirement == secret) {
                *requirement = SecurityRequirement::new(SCHEME, [scope.as_str()]);
            }
        }
    }
}
