//! Posting JSON to URLs that brands have written. Nobody is to reach, by way of this system, what only this system can reach: a
//! name is resolved here, what is not on the open internet is taken out ([`crate::domain::addresses`]), and the connection goes to what is
//! left; redirects are not followed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, StatusCode, redirect};
use sha2::Sha256;

use super::{OutboundError, TIMEOUT};
use crate::domain::addresses::{Reach, is_global};
use crate::domain::time::Timestamp;
use crate::ports::sender::SendOutcome;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Webhooks {
    client: Client,
    reach: Reach,
}

impl Webhooks {
    /// Posts where `reach` lets it.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(reach: Reach) -> Result<Self, OutboundError> {
        let client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself.
            .no_proxy()
            .user_agent(concat!("tributary/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Guarded { allow_private: reach.private }))
            .build()
            .map_err(|error| OutboundError::Http(error.to_string()))?;
        Ok(Self { client, reach })
    }

    /// Posts `body` to `url` under `key`, signed with each secret if there are any.
    pub(super) async fn post(
        &self,
        url: &str,
        body: &str,
        key: &str,
        signed: Option<(&[String], Timestamp)>,
    ) -> SendOutcome {
        let Ok(parsed) = url::Url::parse(url) else {
            return SendOutcome::Refused("the URL cannot be read".to_owned());
        };
        // An address is not resolved, so it is looked at here.
        if let Some(why) = self.reach.refusal(&parsed) {
            return SendOutcome::Refused(why.to_owned());
        }
        let mut request = self
            .client
            .post(parsed)
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", key)
            .body(body.to_owned());
        if let Some((secrets, at)) = signed {
            // The scheme's way of a rotation: several signatures, a space apart; a receiver takes the one that it can make.
            let signatures: Vec<String> =
                secrets.iter().map(|secret| signature(secret, key, at.timestamp(), body)).collect();
            request = request
                .header("webhook-id", key)
                .header("webhook-timestamp", at.timestamp().to_string())
                .header("webhook-signature", signatures.join(" "));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        let status = response.status();
        if status.is_success() {
            return SendOutcome::Done(format!("answered {}", status.as_u16()));
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after: Option<Duration> =
            after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        // Too many requests is an answer, also without a time.
        let after = after.or((status == StatusCode::TOO_MANY_REQUESTS).then_some(Duration::ZERO));
        // Its words are not kept: they may quote what was sent, and so a person.
        let error = format!("answered {}", status.as_u16());
        let later = status.is_server_error()
            || [
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::CONFLICT,
                StatusCode::TOO_EARLY,
            ]
            .contains(&status);
        if later { SendOutcome::Later { error, after } } else { SendOutcome::Refused(error) }
    }
}

fn failed(error: &reqwest::Error) -> SendOutcome {
    // What is at the root says more than "error sending request"; and that names the URL, which may name a person.
    let mut why = "the request could not be sent".to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.downcast_ref::<Unreachable>().is_some() {
            return SendOutcome::Later { error: inner.to_string(), after: None };
        }
        why = inner.to_string();
        source = inner.source();
    }
    let error = if error.is_timeout() { format!("no answer in {} s", TIMEOUT.as_secs()) } else { why };
    SendOutcome::Later { error, after: None }
}

/// The signature of the Standard Webhooks scheme: HMAC-SHA256 of id, time and body.
pub fn signature(secret: &str, id: &str, at_s: i64, body: &str) -> String {
    let key = secret.strip_prefix("whsec_").unwrap_or(secret);
    let key = STANDARD.decode(key).unwrap_or_else(|_| key.as_bytes().to_vec());
    // HMAC takes keys of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("any key will do");
    mac.update(format!("{id}.{at_s}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

/// A name that leads nowhere on the open internet. Whether there is such a name inside is nobody's business: what is not there and
/// what is private are told, and tried again, alike. The log says which it was.
#[derive(Debug, thiserror::Error)]
#[error("the URL's name leads to no address on the open internet")]
struct Unreachable;

/// Resolves names, and takes out what is not on the open internet. What it answers is what is connected to.
struct Guarded {
    allow_private: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found: Vec<SocketAddr> = match found {
                Ok(found) => found.collect(),
                Err(error) => {
                    tracing::warn!(name = name.as_str(), %error, "a destination's name was not resolved");
                    return Err(Box::new(Unreachable) as Box<_>);
                }
            };
            let all = found.len();
            let open: Vec<SocketAddr> =
                found.into_iter().filter(|address| allow_private || is_global(address.ip())).collect();
            if open.is_empty() {
                tracing::warn!(
                    name = name.as_str(),
                    addresses = all,
                    "a destination's name leads inside, and was refused"
                );
                return Err(Box::new(Unreachable) as Box<_>);
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::addresses::{PLAIN, PRIVATE};

    #[test]
    fn a_signature_is_that_of_the_scheme() {
        // the example of the scheme's own libraries
        let signed = signature(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    fn reaching(private: bool, http: bool) -> Webhooks {
        Webhooks::new(Reach { private, http }).unwrap()
    }

    #[tokio::test]
    async fn private_addresses_are_refused_however_they_are_written() {
        let hooks = reaching(false, true);
        for url in [
            "http://127.0.0.1:1/",
            "http://[::1]:1/",
            "http://2130706433:1/",
            "http://0x7f.1:1/",
            "http://[::ffff:127.0.0.1]:1/",
            "https://169.254.169.254/latest",
        ] {
            let delivery = hooks.post(url, "{}", "k", None).await;
            assert_eq!(delivery, SendOutcome::Refused(PRIVATE.to_owned()), "{url}");
        }
        let open = reaching(true, true).post("http://127.0.0.1:1/", "{}", "k", None).await;
        assert!(matches!(open, SendOutcome::Later { .. }));
    }

    #[tokio::test]
    async fn whether_a_name_is_known_inside_cannot_be_told() {
        let hooks = reaching(false, true);
        let inside = hooks.post("https://localhost:1/", "{}", "k", None).await;
        let nowhere = hooks.post("https://nobody.invalid:1/", "{}", "k", None).await;
        assert_eq!(inside, nowhere, "the same words, and the same tries");
        assert_eq!(inside, SendOutcome::Later { error: Unreachable.to_string(), after: None });
    }

    #[tokio::test]
    async fn clear_text_goes_to_ones_own_machine_or_where_it_is_allowed() {
        let refused = SendOutcome::Refused(PLAIN.to_owned());
        for (private, http, url, wanted) in [
            (false, false, "http://93.184.216.34:1/", true),
            (true, false, "http://10.255.255.1:1/", true),
            (true, false, "http://127.0.0.1:1/", false),
            (true, false, "http://localhost:1/", false),
            (true, true, "http://127.0.0.2:1/", false),
        ] {
            let delivery = reaching(private, http).post(url, "{}", "k", None).await;
            assert_eq!(delivery == refused, wanted, "{url}: {delivery:?}");
        }
    }

    #[test]
    fn within_a_rotation_each_secret_signs() {
        let (one, other) = (signature("whsec_AAAA", "id", 1, "{}"), signature("whsec_BBBB", "id", 1, "{}"));
        assert_ne!(one, other);
        assert!(one.starts_with("v1,") && !one.contains(' '));
    }
}
