//! Posting JSON to URLs that brands have written. Nobody is to reach, by way of this system, what only this system can reach: a
//! name is resolved here, private addresses are taken out, and the connection goes to what is left; redirects are not followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
use crate::domain::time::Timestamp;
use crate::ports::courier::Delivery;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an answer is read for an error's sake.
const MAX_ANSWER: usize = 500;

/// Posts to URLs.
pub struct Webhooks {
    client: Client,
    allow_private: bool,
}

impl Webhooks {
    /// Posts to private addresses only where `allow_private`.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(allow_private: bool) -> Result<Self, OutboundError> {
        let client = Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself.
            .no_proxy()
            .user_agent(concat!("tributary/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(Guarded { allow_private }))
            .build()
            .map_err(|error| OutboundError::Http(error.to_string()))?;
        Ok(Self { client, allow_private })
    }

    /// Posts `body` to `url` under `key`, signed with a secret if there is one.
    pub(super) async fn post(
        &self,
        url: &str,
        body: &str,
        key: &str,
        signed: Option<(&str, Timestamp)>,
    ) -> Delivery {
        let Ok(parsed) = url::Url::parse(url) else {
            return Delivery::Refused("the URL cannot be read".to_owned());
        };
        // An address is not resolved, so it is looked at here.
        let address = match parsed.host() {
            Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        if let Some(ip) = address.filter(|ip| !self.allow_private && is_private(*ip)) {
            return Delivery::Refused(private(&ip.to_string()));
        }
        let mut request = self
            .client
            .post(parsed)
            .header(CONTENT_TYPE, "application/json")
            .header("idempotency-key", key)
            .body(body.to_owned());
        if let Some((secret, at)) = signed {
            request = request
                .header("webhook-id", key)
                .header("webhook-timestamp", at.timestamp().to_string())
                .header("webhook-signature", signature(secret, key, at.timestamp(), body));
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(&error),
        };
        let status = response.status();
        if status.is_success() {
            return Delivery::Done(format!("answered {}", status.as_u16()));
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let after: Option<Duration> =
            after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        // Too many requests is an answer, also without a time.
        let after = after.or((status == StatusCode::TOO_MANY_REQUESTS).then_some(Duration::ZERO));
        let said: String = beginning(response).await;
        let error = format!("answered {}: {said}", status.as_u16());
        let later = status.is_server_error()
            || [
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::CONFLICT,
                StatusCode::TOO_EARLY,
            ]
            .contains(&status);
        if later { Delivery::Later { error, after } } else { Delivery::Refused(error) }
    }
}

/// The beginning of an answer, and no more of it.
async fn beginning(mut response: reqwest::Response) -> String {
    let mut read = Vec::new();
    while read.len() < MAX_ANSWER {
        let Ok(Some(chunk)) = response.chunk().await else { break };
        read.extend_from_slice(&chunk);
    }
    read.truncate(MAX_ANSWER);
    String::from_utf8_lossy(&read).into_owned()
}

fn failed(error: &reqwest::Error) -> Delivery {
    // What is at the root says more than "error sending request".
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if inner.downcast_ref::<Private>().is_some() {
            return Delivery::Refused(inner.to_string());
        }
        why = inner.to_string();
        source = inner.source();
    }
    let error = if error.is_timeout() { format!("no answer in {} s", TIMEOUT.as_secs()) } else { why };
    Delivery::Later { error, after: None }
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

fn private(host: &str) -> String {
    format!("{host} is a private or local address; --allow-private-destinations lets automations post there")
}

/// A name that leads to private addresses only.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Private(String);

/// Resolves names, and takes private addresses out. What it answers is what is connected to.
struct Guarded {
    allow_private: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let open: Vec<SocketAddr> =
                found.into_iter().filter(|address| allow_private || !is_private(address.ip())).collect();
            if open.is_empty() {
                return Err(Box::new(Private(private(name.as_str()))) as Box<_>);
            }
            Ok(Box::new(open.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is not on the open internet.
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_documentation()
        || ip.is_multicast()
        || a == 0
        // shared between a provider and its customers; for protocols; for measuring; for the future
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
        // where Azure's machines ask about themselves
        || ip.octets() == [168, 63, 129, 16]
        || a >= 240
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    if let Some(inner) = ip.to_ipv4() {
        // ::ffff:10.0.0.1, ::10.0.0.1
        return is_private_v4(inner) || ip.is_loopback() || ip.is_unspecified();
    }
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_private_v4(Ipv4Addr::new(a, b, c, d))
    };
    ip.is_loopback()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        // site-local, as it once was; documentation
        || (parts[0] & 0xffc0) == 0xfec0
        || (parts[0] == 0x2001 && parts[1] == 0xdb8)
        // IPv4 within: NAT64, 6to4, Teredo
        || (parts[0] == 0x64 && parts[1] == 0xff9b && (parts[2] != 0 || embedded(parts[6], parts[7])))
        || (parts[0] == 0x2002 && embedded(parts[1], parts[2]))
        || (parts[0] == 0x2001 && parts[1] == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_on_the_open_internet_is_private() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
            "fec0::1",
            "2001:db8::1",
        ] {
            assert!(is_private(ip.parse().unwrap()), "{ip}");
        }
        for ip in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(!is_private(ip.parse().unwrap()), "{ip}");
        }
    }

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

    #[tokio::test]
    async fn private_addresses_are_refused_however_they_are_written() {
        let hooks = Webhooks::new(false).unwrap();
        for url in [
            "http://127.0.0.1:1/",
            "http://localhost:1/",
            "http://[::1]:1/",
            "http://2130706433:1/",
            "http://0x7f.1:1/",
            "http://[::ffff:127.0.0.1]:1/",
        ] {
            let delivery = hooks.post(url, "{}", "k", None).await;
            assert!(
                matches!(&delivery, Delivery::Refused(why) if why.contains("private")),
                "{url}: {delivery:?}"
            );
        }
        let open = Webhooks::new(true).unwrap();
        assert!(matches!(open.post("http://127.0.0.1:1/", "{}", "k", None).await, Delivery::Later { .. }));
    }
}
