//! Every code that an error answer may have: its status, and what it means. The OpenAPI document is made from this table, and
//! debug builds refuse to answer with a code that a route does not document.

use std::collections::BTreeMap;

use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

/// What a code means.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    pub name: &'static str,
    /// The status it comes with.
    pub status: u16,
    pub meaning: &'static str,
}

const fn code(status: u16, name: &'static str, meaning: &'static str) -> Code {
    Code { name, status, meaning }
}

pub const CODES: &[Code] = &[
    code(400, "invalid_json", "the body is not valid JSON, or a field has the wrong type"),
    code(400, "payload_too_large", "the body is larger than this route accepts"),
    code(400, "invalid_gzip", "Content-Encoding says gzip, but the body is not valid gzip"),
    code(400, "invalid_body", "the body could not be read"),
    code(400, "too_many_events", "the request has more events than one request may have"),
    code(400, "context_too_large", "the batch's context, copied into its events, is too large"),
    code(400, "missing_header", "a required Shopify header is missing"),
    code(400, "invalid_webhook", "the signed body does not match its topic, or belongs to another shop"),
    code(400, "unknown_kind", "unknown kind of identifier"),
    code(400, "invalid_identifier", "the value is not a valid identifier of its kind"),
    code(400, "invalid_query", "invalid query parameter"),
    code(400, "invalid_text", "a text contains U+0000, which cannot be stored"),
    code(400, "invalid_limit", "limit is out of its range"),
    code(400, "invalid_after", "invalid cursor: send the cursor of the previous page, or none"),
    code(400, "invalid_settings", "invalid setting; the message says which, and why"),
    code(400, "invalid_expression", "invalid CEL expression; the message says what is wrong, and where"),
    code(400, "invalid_segment", "invalid segment name; the message says what is allowed"),
    code(400, "invalid_automation", "invalid automation; the message says which part, and why"),
    code(400, "invalid_event", "invalid event"),
    code(400, "event_too_large", "the event is larger than 32 KB"),
    code(400, "too_deep", "the event is nested too deep"),
    code(400, "no_user_anon_id", "userId or anonymousId is required"),
    code(400, "no_event", "a track call needs event"),
    code(400, "no_group_id", "a group call needs groupId"),
    code(400, "no_previous_id", "an alias call needs userId and previousId"),
    code(400, "invalid_message_id", "messageId is too long"),
    code(400, "invalid_name", "a name is too long"),
    code(400, "invalid_timestamp", "a timestamp is not in ISO 8601"),
    code(400, "no_type", "a message of a batch needs type"),
    code(400, "invalid_type", "unknown type: it must be identify, track, page, screen, group or alias"),
    code(401, "no_key", "the request has no API key"),
    code(401, "invalid_key", "unknown, revoked or expired API key"),
    code(401, "invalid_hmac", "the signature does not match the shop's secret"),
    code(403, "wrong_key", "this route needs the other kind of key"),
    code(403, "missing_scope", "the key lacks a scope; the message says which"),
    code(403, "shared_queue", "other brands share this queue, so one brand may not change it"),
    code(403, "foreign_origin", "the request comes from a page of another site"),
    code(404, "not_found", "not found in this key's brand"),
    code(405, "method_not_allowed", "this route does not support this method"),
    code(408, "body_timeout", "the body did not arrive in time"),
    code(409, "idempotency_conflict", "the same delivery was received before with another body"),
    code(409, "refused", "it cannot be done; the message says why"),
    code(
        429,
        "rate_limited",
        "the key has sent more events or made more requests than it may, or its address tries unknown keys; Retry-After says when to retry",
    ),
    code(429, "share_full", "the brand's share of the queue is full; Retry-After says when to retry"),
    code(415, "unsupported_media_type", "the content type is not JSON"),
    code(500, "internal", "internal error; the server's log has details"),
    code(503, "overloaded", "the server handles too many requests; retry"),
    code(503, "queue_unavailable", "the queue is unavailable; retry"),
    code(503, "queue_full", "the queue is full; retry later"),
    code(503, "store_unavailable", "the database is unavailable; retry"),
];

/// Codes that any route may answer with, and that no route lists.
pub const ANYWHERE: [&str; 6] = [
    "internal",
    "method_not_allowed",
    "invalid_text",
    "foreign_origin",
    "unsupported_media_type",
    "overloaded",
];

/// What a secret key's routes may answer.
pub const SECRET: &[&str] =
    &["no_key", "invalid_key", "wrong_key", "missing_scope", "rate_limited", "store_unavailable"];
pub const BODY: &[&str] = &["payload_too_large", "invalid_body", "body_timeout", "invalid_json"];
pub const INGEST: &[&str] = &[
    "payload_too_large",
    "invalid_gzip",
    "invalid_body",
    "body_timeout",
    "invalid_json",
    "no_key",
    "invalid_key",
    "wrong_key",
    "rate_limited",
    "queue_unavailable",
    "queue_full",
    "share_full",
    "store_unavailable",
];
/// What is wrong with a message.
pub const EVENT: &[&str] = &[
    "invalid_event",
    "event_too_large",
    "too_deep",
    "no_user_anon_id",
    "no_event",
    "no_group_id",
    "no_previous_id",
    "invalid_message_id",
    "invalid_name",
    "invalid_timestamp",
];

/// The code of that name.
pub fn of(name: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.name == name)
}

/// The extension of a response that lists its codes, for programs.
pub const ERROR_CODES: &str = "x-error-codes";

/// The responses of an OpenAPI operation that may fail in these ways: one a status, with its codes in `x-error-codes`, and what they mean in
/// its text.
pub fn responses(names: &[&str]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<&Code>> = BTreeMap::new();
    for code in names.iter().filter_map(|name| of(name)) {
        by_status.entry(code.status).or_default().push(code);
    }
    by_status
        .into_iter()
        .map(|(status, codes)| {
            let lines: Vec<String> =
                codes.iter().map(|code| format!("- `{}`: {}", code.name, code.meaning)).collect();
            let names: Vec<&str> = codes.iter().map(|code| code.name).collect();
            let extension = ExtensionsBuilder::new().add(ERROR_CODES, names).build();
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
            let response = ResponseBuilder::new()
                .description(lines.join("\n"))
                .content("application/json", content)
                .extensions(Some(extension))
                .build();
            (status.to_string(), RefOr::T(response))
        })
        .collect()
}

/// Declares the errors of a route, for its `responses(...)`.
#[macro_export]
macro_rules! errors {
    ($name:ident: $($group:expr),+ $(,)?) => {
        /// The errors that the routes of this name document.
        #[derive(Debug)]
        pub struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                let groups: &[&[&str]] = &[$($group),+];
                $crate::codes::responses(&groups.concat())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_once_and_every_group_speaks_of_known_ones() {
        for (at, code) in CODES.iter().enumerate() {
            assert!(CODES[at + 1..].iter().all(|other| other.name != code.name), "{}", code.name);
        }
        for name in [SECRET, BODY, INGEST, EVENT, &ANYWHERE].concat() {
            assert!(of(name).is_some(), "{name}");
        }
    }
}
