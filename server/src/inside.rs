//! Who may see what concerns all brands: numbers, health in full, metrics. Whoever asks on the monitor's own port; else whoever has the
//! monitor's key; and, where there is no such port, whoever asks from this machine itself.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tributary_core::services::keys::hash;

use crate::auth::bearer;

/// What a proxy adds: a request with one of these does not come from this machine, whatever its address.
const FORWARDED: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/// Who may see what concerns all brands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monitor {
    /// There is a port of its own: on the other one the key alone counts, because a proxy may stand before it on this machine.
    pub own_port: bool,
    /// SHA-256 of the monitor's key.
    pub key: Option<[u8; 32]>,
}

/// The request came to the monitor's own port.
#[derive(Clone, Copy, Debug)]
struct OwnPort;

/// Somebody who may see what concerns all brands: an extractor.
#[derive(Clone, Copy, Debug)]
pub struct Inside;

impl Inside {
    pub(crate) fn may(parts: &Parts, monitor: Monitor) -> bool {
        if parts.extensions.get::<OwnPort>().is_some() {
            return true;
        }
        if let (Some(key), Some(given)) = (monitor.key, bearer(&parts.headers))
            // of hashes, so that how long it takes tells nothing
            && key == hash(&given)
        {
            return true;
        }
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
        !monitor.own_port && is_this_machine(peer, &parts.headers)
    }
}

fn is_this_machine(peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    let forwarded = FORWARDED.iter().any(|name| headers.contains_key(*name));
    peer.is_some_and(|peer| peer.to_canonical().is_loopback()) && !forwarded
}

/// The layer of the monitor's own port.
pub async fn on_own_port(mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(OwnPort);
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn may(peer: &str, headers: &[(&str, &str)], monitor: Monitor) -> bool {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::empty()).unwrap();
        let peer: SocketAddr = peer.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        Inside::may(&request.into_parts().0, monitor)
    }

    #[test]
    fn strangers_see_nothing_that_concerns_all_brands() {
        let (shut, own) = (Monitor::default(), Monitor { own_port: true, key: Some(hash("mk")) });
        for here in ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert!(may(here, &[], shut), "{here}");
            assert!(!may(here, &[], own), "{here}: a proxy may stand there");
            for name in FORWARDED {
                assert!(!may(here, &[(name, "x")], shut), "{name}");
            }
        }
        let there = "203.0.113.7:9";
        assert!(!may(there, &[], shut));
        assert!(!may(there, &[("authorization", "Bearer mk")], shut), "there is no key");
        assert!(may(there, &[("authorization", "Bearer mk")], own));
        assert!(!may(there, &[("authorization", "Bearer mK")], own));
    }
}
