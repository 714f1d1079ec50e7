//! What browser SDKs fetch before they send: the settings of a source. With their host set to this server they start unchanged.
//!
//! Formats: Segment's `GET /v1/projects/{writeKey}/settings`, which its fork of Customer.io shares but for a name, and RudderStack's
//! `GET /sourceConfig`. `POST /v1/m` is where Segment's SDK sends numbers about itself.

use std::collections::BTreeMap;

use std::net::IpAddr;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::answers::{
    Accepted, SdkIntegration, SdkMetrics, SdkSettings, SdkSource, SdkSourceConfig, SourceConfig,
};
use crate::auth::{Peer, Sender};
use crate::error::ApiError;
use crate::errors;
use crate::extract::QueryOf;
use crate::state::AppState;

/// How long a browser may keep the settings: they change with this server's address alone.
const KEPT: &str = "public, max-age=300";

errors!(SettingsErrors: &["invalid_key", "wrong_key", "rate_limited", "store_unavailable"]);

/// The settings of Segment's browser SDK: where to send events.
#[utoipa::path(get, path = "/v1/projects/{writeKey}/settings", tag = "Events", security(()),
    params(("writeKey" = String, Path, description = "A write key")),
    responses((status = 200, description = "The SDK's settings", body = SdkSettings), SettingsErrors))]
pub async fn segment(
    State(state): State<AppState>,
    Path(key): Path<String>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    settings(&state, key, peer, &headers, "Segment.io").await
}

/// The settings of Customer.io's browser SDK, whose `cdnURL` is then `https://…/customerio`.
#[utoipa::path(get, path = "/customerio/v1/projects/{writeKey}/settings", tag = "Events", security(()),
    params(("writeKey" = String, Path, description = "A write key")),
    responses((status = 200, description = "The SDK's settings", body = SdkSettings), SettingsErrors))]
pub async fn customerio(
    State(state): State<AppState>,
    Path(key): Path<String>,
    peer: Peer,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    settings(&state, key, peer, &headers, "Customer.io Data Pipelines").await
}

/// An SDK looks for one integration, by its maker's name; for more than one it loads code from its maker.
async fn settings(
    state: &AppState,
    key: String,
    peer: Peer,
    headers: &HeaderMap,
    integration: &str,
) -> Result<Response, ApiError> {
    known(state, &key, peer).await?;
    let Address { protocol, host } = Address::of(headers);
    let own = SdkIntegration { api_key: key, api_host: format!("{host}/v1"), protocol };
    Ok(answer(&SdkSettings {
        integrations: BTreeMap::from([(integration.to_owned(), own)]),
        plan: BTreeMap::new(),
        metrics: SdkMetrics { sample_rate: 0 },
        remote_plugins: Vec::new(),
    }))
}

/// What RudderStack's SDKs ask with.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SourceQuery {
    /// The write key, where no header has it
    #[serde(rename = "writeKey")]
    write_key: Option<String>,
}

/// The source of RudderStack's browser SDKs: that it is there, and has no destinations that a browser would have to know.
#[utoipa::path(get, path = "/sourceConfig", tag = "Events", security(("write_key" = [])), params(SourceQuery),
    responses((status = 200, description = "The source", body = SourceConfig), SourceErrors))]
pub async fn rudderstack(
    State(state): State<AppState>,
    peer: Peer,
    headers: HeaderMap,
    QueryOf(SourceQuery { write_key }): QueryOf<SourceQuery>,
) -> Result<Response, ApiError> {
    let key = crate::auth::from_headers(&headers).or(write_key).unwrap_or_default();
    let Sender { brand, .. } = known(&state, &key, peer).await?;
    Ok(answer(&SourceConfig {
        source: SdkSource {
            id: brand.to_string(),
            name: "Tributary",
            write_key: key,
            enabled: true,
            config: SdkSourceConfig::default(),
            destinations: Vec::new(),
        },
    }))
}

errors!(SourceErrors: &["no_key", "invalid_key", "wrong_key", "rate_limited", "store_unavailable", "invalid_query"]);

/// Accepts the metrics that Segment's SDK sends about itself, and does not keep them.
#[utoipa::path(post, path = "/v1/m", tag = "Events", security(()), responses((status = 200, description = "Accepted, and not kept", body = Accepted)))]
pub async fn measures() -> Json<Accepted> {
    Json(Accepted { success: true })
}

/// What an SDK asks for that is not here; with the headers that let a browser read it.
pub async fn nothing() -> ApiError {
    ApiError::not_found("there is no such route; /docs lists them")
}

/// The sender of a write key that stands in the address.
async fn known(state: &AppState, key: &str, peer: Peer) -> Result<Sender, ApiError> {
    let sender = state.keys.sender(Some(key), peer).await?;
    match sender.source.is_trusted() {
        false => Ok(sender),
        true => {
            let message = "this is a secret key, which is for servers; pages have a write key";
            Err(ApiError::new(StatusCode::FORBIDDEN, "wrong_key", message))
        }
    }
}

fn answer(settings: &impl Serialize) -> Response {
    ([(header::CACHE_CONTROL, KEPT)], Json(settings)).into_response()
}

/// Under what address the browser knows this server.
struct Address {
    protocol: &'static str,
    host: String,
}

impl Address {
    /// By what a proxy says, or else by what the page is: one that came by https may send nothing by http, but to its own machine.
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default().to_owned();
        let stated = headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
        let stated = stated.and_then(|stated| stated.split(',').next()).map(str::trim);
        let is_secure_page = text(header::ORIGIN).is_some_and(|origin| origin.starts_with("https://"));
        let protocol = match stated {
            Some("https") => "https",
            Some("http") => "http",
            _ if is_secure_page && !is_loopback(&host) => "https",
            _ => "http",
        };
        Self { protocol, host }
    }
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_the_address_that_it_can_send_to() {
        let of = |headers: &[(&'static str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap()));
            let Address { protocol, host } = Address::of(&headers.collect());
            format!("{protocol}://{host}")
        };
        let page = ("origin", "https://shop.example");
        assert_eq!(of(&[("host", "t.example:7420")]), "http://t.example:7420");
        assert_eq!(of(&[("host", "t.example"), page]), "https://t.example");
        assert_eq!(of(&[("host", "t.example"), ("x-forwarded-proto", "https, http")]), "https://t.example");
        assert_eq!(of(&[("host", "t.example"), page, ("x-forwarded-proto", "http")]), "http://t.example");
        for own in ["localhost:7420", "127.0.0.1:7420", "[::1]:7420"] {
            assert_eq!(of(&[("host", own), page]), format!("http://{own}"));
        }
    }
}
