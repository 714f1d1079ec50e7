//! What holds for every request and every answer, whatever its route: headers that browsers heed, no U+0000 in any address, no
//! request of the API that another site's page makes.
//!
//! Texts in bodies are looked at where they are read: [`crate::body::json`].

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

use crate::error::ApiError;

/// What a page may do that says nothing else of itself: nothing, and nobody may frame it.
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
/// What the API's page may do: it has a script and reads the document.
pub const READS: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; \
                         base-uri 'none'; form-action 'none'";
/// What a page with one button may do.
pub const ASKS: &str =
    "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
/// Files that anybody may keep.
const KEPT: [&str; 5] = ["/docs", "/docs.js", "/docs.css", "/page.css", "/openapi.json"];

/// Where customers are searched.
const SEARCH: &str = "/api/customers";

/// The layer around all routes.
pub async fn guard(request: Request, next: Next) -> Response {
    let kept = KEPT.contains(&request.uri().path());
    let mut answer = match refused(&request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let headers = answer.headers_mut();
    let mut say = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    say(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    say(header::REFERRER_POLICY, "no-referrer");
    say(header::CONTENT_SECURITY_POLICY, NOTHING);
    say(header::CACHE_CONTROL, if kept { "no-cache" } else { "no-store" });
    answer
}

fn refused(request: &Request) -> Option<ApiError> {
    let uri = request.uri();
    match percent_decoded(uri.path()) {
        None => return Some(ApiError::not_found("there is no such route: its path is not valid UTF-8")),
        Some(path) if path.contains('\0') => return Some(nul("the path")),
        Some(_) => {}
    }
    // A query that is no UTF-8 is the route's to refuse: it says which parameter. A search goes without: no text that is held has one.
    if uri.path() != SEARCH && uri.query().and_then(percent_decoded).is_some_and(|query| query.contains('\0'))
    {
        return Some(nul("the query"));
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    (changes && is_api(uri.path())).then(|| from_elsewhere(request.headers())).flatten()
}

/// The API by secret keys. Browsers of any site may post to ingestion, and Shopify's webhook is signed; neither changes anything in
/// the name of whoever has the page open.
fn is_api(path: &str) -> bool {
    path.starts_with("/api/") && !path.starts_with("/api/events") && !path.starts_with("/api/webhooks/")
}

/// Whether a page of another site makes the request.
fn from_elsewhere(headers: &HeaderMap) -> Option<ApiError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let own = text(header::HOST).unwrap_or_default();
    if let Some(origin) = text(header::ORIGIN)
        && origin.split_once("://").is_none_or(|(_, host)| host != own)
    {
        let message =
            format!("pages of {origin} may not change anything here; send it from a server, without Origin");
        return Some(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message));
    }
    // What a form can send without asking first. With a Bearer token it is no form: no browser adds one by itself.
    let kind = text(header::CONTENT_TYPE)?.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json" || kind.ends_with("+json");
    let curls = kind == "application/x-www-form-urlencoded" && text(header::AUTHORIZATION).is_some();
    (!is_json && !curls).then(|| {
        let message = format!("the content type is {kind:?}; it must be application/json");
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    })
}

fn nul(what: &str) -> ApiError {
    ApiError::bad_request("invalid_text", format!("{what} contains U+0000, which cannot be stored"))
}

/// `None` for what is no UTF-8.
fn percent_decoded(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn code(method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<StatusCode> {
        let mut request = Request::builder().method(method).uri(uri).header("host", "shop.example:3000");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        refused(&request.body(Body::empty()).unwrap()).map(|error| error.into_response().status())
    }

    #[test]
    fn what_another_sites_page_can_send_is_refused_and_what_servers_send_is_not() {
        let (erase, bearer) = ("/api/privacy/erasures", ("authorization", "Bearer sk_1"));
        let foreign = ("origin", "https://evil.example");
        for headers in [
            &[foreign, ("content-type", "text/plain")][..],
            &[foreign, bearer, ("content-type", "application/json")],
            &[("origin", "null"), bearer],
            &[("origin", "http://shop.example:3001"), bearer],
        ] {
            assert_eq!(code("POST", erase, headers), Some(StatusCode::FORBIDDEN), "{headers:?}");
        }
        for kind in [
            "text/plain;charset=utf-8",
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded",
        ] {
            let unsupported = Some(StatusCode::UNSUPPORTED_MEDIA_TYPE);
            assert_eq!(code("POST", erase, &[("content-type", kind)]), unsupported, "{kind}");
        }
        for headers in [
            &[bearer][..],
            &[bearer, ("content-type", "application/json; charset=utf-8")],
            &[bearer, ("content-type", "application/x-www-form-urlencoded")],
            &[bearer, ("origin", "https://shop.example:3000"), ("content-type", "application/json")],
        ] {
            assert_eq!(code("POST", erase, headers), None, "{headers:?}");
        }
        for open in ["/api/events", "/v1/track", "/api/webhooks/shopify", "/unsubscribe/x"] {
            assert_eq!(code("POST", open, &[foreign, ("content-type", "text/plain")]), None, "{open}");
        }
        assert_eq!(
            code("GET", "/api/customers", &[foreign]),
            None,
            "nothing is changed, and nothing can be read"
        );
    }

    #[test]
    fn no_address_has_a_nul_or_is_no_text() {
        assert_eq!(code("GET", "/api/customers/%00/360", &[]), Some(StatusCode::BAD_REQUEST));
        assert_eq!(code("GET", "/api/queues/events/claims?shop=a%00b", &[]), Some(StatusCode::BAD_REQUEST));
        assert_eq!(code("GET", "/api/customers/%ff/360", &[]), Some(StatusCode::NOT_FOUND));
        assert_eq!(code("GET", "/api/customers/%2500/360?q=%zz", &[]), None);
    }
}
