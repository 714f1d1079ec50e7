//! Where the links in e-mails lead: open to whoever has the link.

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use tributary_core::services::automations::confirm as confirmation;
use tributary_core::services::automations::links::LinkError;
use tributary_core::services::automations::unsubscribe;

use crate::error::ApiError;
use crate::errors;
use crate::guards;
use crate::state::AppState;

errors!(LinkErrors: &["not_found", "store_unavailable"]);

/// Asks whether to unsubscribe. Looking at the link changes nothing: programs look at links before people do.
#[utoipa::path(get, path = "/unsubscribe/{token}", tag = "Unsubscribe", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), LinkErrors))]
pub async fn ask(State(state): State<AppState>, Path(token): Path<String>) -> Result<Response, ApiError> {
    unsubscribe::whose(&state.context, &token).await.map_err(stated)?;
    Ok(page(
        "<p>Do you want to stop receiving marketing e-mails?</p><form method=\"post\"><button>Unsubscribe</button></form>",
    ))
}

/// Takes consent to marketing by e-mail back: the page's button, or the one click of a mail program (RFC 8058).
#[utoipa::path(post, path = "/unsubscribe/{token}", tag = "Unsubscribe", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), LinkErrors))]
pub async fn confirm(State(state): State<AppState>, Path(token): Path<String>) -> Result<Response, ApiError> {
    unsubscribe::unsubscribe(&state.context, &token).await.map_err(stated)?;
    Ok(page("<p>You will not receive any more marketing e-mails.</p>"))
}

/// Asks whether the address is the reader's. Looking at the link confirms nothing: programs look at links before people do.
#[utoipa::path(get, path = "/confirm/{token}", tag = "Unsubscribe", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), LinkErrors))]
pub async fn ask_address(
    State(state): State<AppState>,
    Path(token): Path<String>,
) -> Result<Response, ApiError> {
    confirmation::whose(&state.context, &token).await.map_err(stated)?;
    Ok(page(
        "<p>Is this your e-mail address, and do you want e-mails from us?</p>\
         <form method=\"post\"><button>Yes, confirm</button></form>",
    ))
}

/// Confirms an e-mail address, and consent to marketing there: the page's button.
#[utoipa::path(post, path = "/confirm/{token}", tag = "Unsubscribe", params(("token" = String, Path)),
    responses((status = 200, content_type = "text/html", body = String), LinkErrors))]
pub async fn confirm_address(
    State(state): State<AppState>,
    Path(token): Path<String>,
) -> Result<Response, ApiError> {
    confirmation::confirm(&state.context, &token).await.map_err(stated)?;
    Ok(page("<p>Thank you: your e-mail address is confirmed.</p>"))
}

fn page(what: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"robots\" content=\"noindex\"><title>E-mails</title>\
         <link rel=\"stylesheet\" href=\"/page.css\"><main>{what}</main></html>"
    );
    (StatusCode::OK, [(header::CONTENT_SECURITY_POLICY, guards::ASKS)], Html(html)).into_response()
}

fn stated(error: LinkError) -> ApiError {
    match error {
        LinkError::Unknown => ApiError::not_found("this link is not valid"),
        LinkError::Store(error) => error.into(),
        LinkError::Queue(error) => {
            tracing::warn!(%error, "a consent could not be taken back");
            ApiError::unavailable("store_unavailable", "it could not be noted; try again")
        }
    }
}
