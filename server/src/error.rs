//! What an error answer looks like: a status, and JSON `{"code", "message", "request_id"}`. Programs read the code, people the message.

use std::error::Error;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tributary_core::domain::event::Rejection;
use tributary_core::ports::queue::QueueError;
use tributary_core::ports::store::StoreError;
use tributary_core::services::automations::api::AutomationError;
use tributary_core::services::identity::IdentityError;
use tributary_core::services::keys::KeyError;
use tributary_core::services::privacy::PrivacyError;

use crate::requests;

/// How long a client is asked to wait when something is unavailable or full, in seconds.
pub const RETRY_AFTER_S: u16 = 5;
/// Seconds after which a brand may send again whose share of the queue is full.
const SHARE_RETRY_S: u16 = 10;

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// After how many seconds it is worth trying again, if it is.
    retry: Option<u16>,
}

/// The code of an error answer, for the layer that knows which codes a route documents.
#[derive(Clone, Copy, Debug)]
pub struct ErrorCode(pub &'static str);

impl ApiError {
    /// An answer that will be the same next time.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry: None }
    }

    /// Whether it refuses the key: a 401 or a 403.
    pub fn is_a_refusal(&self) -> bool {
        [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&self.status)
    }

    /// Whether it is a 401: the key is missing or unknown.
    pub fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// 400: the request is wrong, and will be next time.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404: there is no such thing, or not for this key.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 503 with `Retry-After`: it is worth trying again.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code,
            message: message.into(),
            retry: Some(RETRY_AFTER_S),
        }
    }

    /// 403: the key may not do what the route does.
    pub fn missing_scope(scopes: impl std::fmt::Display, has: impl std::fmt::Display) -> Self {
        let message = format!("this needs a key with the scope {scopes}; this one has: {has}");
        Self::new(StatusCode::FORBIDDEN, "missing_scope", message)
    }

    /// 409: it cannot be done.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "refused", message)
    }

    /// 429 with `Retry-After`: the brand asks already.
    pub fn busy(message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "rate_limited",
            message: message.into(),
            retry: Some(RETRY_AFTER_S),
        }
    }

    /// 429 with `Retry-After`: more came than may.
    pub fn rate_limited(wait: Duration, message: &str) -> Self {
        let seconds = u16::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u16::MAX).max(1);
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: "rate_limited",
            message: format!("{message}; retry in {seconds} s"),
            retry: Some(seconds),
        }
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        Self::bad_request(rejection.code, rejection.message)
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Full { .. } => Self::unavailable("queue_full", error.to_string()),
            QueueError::OverShare => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                code: "share_full",
                message: error.to_string(),
                retry: Some(SHARE_RETRY_S),
            },
            // What the driver says may name hosts: that is for the log.
            QueueError::Unavailable(_) | QueueError::Unexpected(_) => {
                tracing::warn!(error = &error as &dyn Error, "an event was not accepted");
                Self::unavailable(
                    "queue_unavailable",
                    "the queue is unavailable; retry with the same messageId",
                )
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::warn!(error = &error as &dyn Error, "the store failed");
        match error {
            StoreError::Invalid(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the store refused; see the server's log",
            ),
            StoreError::Unavailable(_) | StoreError::Conflict(_) | StoreError::Fenced(_) => {
                Self::unavailable("store_unavailable", "the store cannot be reached; try again")
            }
        }
    }
}

impl From<IdentityError> for ApiError {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Unknown(what) => Self::not_found(format!("there is no such {what}")),
            IdentityError::Refused(why) => Self::refused(why),
            IdentityError::Store(error) => error.into(),
        }
    }
}

impl From<AutomationError> for ApiError {
    fn from(error: AutomationError) -> Self {
        match error {
            AutomationError::Invalid(rejection) => rejection.into(),
            AutomationError::NotFound(what) => Self::not_found(format!("there is no such {what}")),
            AutomationError::Refused(why) => Self::refused(why),
            AutomationError::Busy(why) => Self::busy(why),
            AutomationError::Store(error) => error.into(),
        }
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown(_) => Self::not_found(error.to_string()),
            KeyError::TooMuch(scopes) => {
                let message = format!(
                    "a key can only make, limit and revoke keys with scopes that it has itself; this one lacks: {scopes}"
                );
                Self::new(StatusCode::FORBIDDEN, "missing_scope", message)
            }
            KeyError::Store(error) => error.into(),
        }
    }
}

impl From<PrivacyError> for ApiError {
    fn from(error: PrivacyError) -> Self {
        match error {
            PrivacyError::Store(error) => error.into(),
            PrivacyError::Queue(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let request_id = requests::current_id();
        let body = Json(json!({"code": self.code, "message": self.message, "request_id": request_id}));
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // Never Basic: a browser would ask for it, keep it, and add it to what other sites' pages send.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(ErrorCode(self.code));
        response
    }
}
