//! How many requests there are, and how long they take, by route.

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tributary_core::stopwatch::Stopwatch;

/// The route of a request that has none.
const NO_ROUTE: &str = "none";

/// The layer around all routes. What is measured ends when the answer's head is there.
pub async fn measured(request: Request, next: Next) -> Response {
    let began = Stopwatch::start();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(NO_ROUTE.to_owned(), |path| path.as_str().to_owned());
    let method = method(request.method());
    let answer = next.run(request).await;
    let took = began.elapsed().as_secs_f64();
    metrics::histogram!("tributary_http_request_seconds", "method" => method, "route" => route.clone())
        .record(took);
    let status = answer.status().as_u16().to_string();
    metrics::counter!("tributary_http_requests_total", "method" => method, "route" => route, "status" => status).increment(1);
    answer
}

/// Anybody may invent a method, and each would be a row of its own.
fn method(of: &Method) -> &'static str {
    ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
        .into_iter()
        .find(|known| of.as_str() == *known)
        .unwrap_or("other")
}
