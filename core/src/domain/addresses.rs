//! Which addresses are on the open internet: what IANA's registries of special-purpose addresses do not set aside
//! (iana-ipv4-special-registry, iana-ipv6-special-registry), and nothing that carries an IPv4 address within.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Where messages may go besides `https://` on the open internet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// To private and local addresses.
    pub private: bool,
    /// To `http://` addresses anywhere. To one's own machine they go wherever `private` is.
    pub http: bool,
}

impl Reach {
    /// Why nothing goes to a URL, as far as its text says: names are not resolved.
    pub fn refusal(self, url: &url::Url) -> Option<&'static str> {
        if url.scheme() != "https" && !self.http && !(self.private && is_own_machine(url)) {
            return Some(PLAIN);
        }
        let address = match url.host() {
            Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        address.filter(|ip| !self.private && !is_global(*ip)).map(|_| PRIVATE)
    }
}

/// What is said of an address that is not on the open internet.
pub(crate) const PRIVATE: &str = "the URL's address is not on the open internet; whoever runs the system may allow others with \
                       --allow-private-destinations";
/// What is said of a URL in clear text.
pub(crate) const PLAIN: &str = "the URL begins with http://, and would carry what is known of a customer in clear text; use https://. \
                     Whoever runs the system may allow it with --allow-http-destinations";

/// Whether a URL leads to this machine itself, by an address or by the name that always does.
pub(crate) fn is_own_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        // Of smtp://, which no browser knows, addresses are read as names.
        Some(url::Host::Domain(name)) => {
            let ip = name.parse::<std::net::IpAddr>();
            ip.map_or_else(|_| name.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
        }
        None => false,
    }
}

/// IPv4 that is not globally reachable, or not one machine: network, length of the prefix, what it is.
const NOT_GLOBAL_V4: &[([u8; 4], u32, &str)] = &[
    ([0, 0, 0, 0], 8, "this network"),
    ([10, 0, 0, 0], 8, "private use"),
    ([100, 64, 0, 0], 10, "shared between a provider and its customers"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([168, 63, 129, 16], 32, "where Azure's machines ask about themselves"),
    ([169, 254, 0, 0], 16, "link local, metadata of clouds"),
    ([172, 16, 0, 0], 12, "private use"),
    ([192, 0, 0, 0], 24, "protocol assignments"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 31, 196, 0], 24, "AS112"),
    ([192, 52, 193, 0], 24, "automatic multicast tunneling"),
    ([192, 88, 99, 0], 24, "6to4 relays"),
    ([192, 168, 0, 0], 16, "private use"),
    ([192, 175, 48, 0], 24, "AS112"),
    ([198, 18, 0, 0], 15, "benchmarks"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved, broadcast"),
];

/// The one block of IPv6 from which global unicast addresses are given out.
const GLOBAL_V6: ([u16; 8], u32) = ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// What of that block is not global, or leads to an IPv4 address within. All else - loopback, `::ffff:0:0/96`, NAT64's
/// `64:ff9b::/96` and `64:ff9b:1::/48`, `100::/64`, `5f00::/16`, unique local, link local, multicast - is outside of it.
const NOT_GLOBAL_V6: &[([u16; 8], u32, &str)] = &[
    // Teredo, benchmarks, ORCHID (2001:10::/28, 2001:20::/28), drones, and what comes
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, "protocol assignments"),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, "documentation"),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, "6to4"),
    ([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, "AS112"),
    ([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, "the 6bone, given back"),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, "documentation"),
];

/// What the interface's half of an ISATAP address begins with: the private or public IPv4 address of a tunnel's end follows.
const ISATAP: [(u16, u16); 2] = [(0x0000, 0x5efe), (0x0200, 0x5efe)];

/// Whether an address is one machine's on the open internet.
pub fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_global_v4(ip),
        IpAddr::V6(ip) => is_global_v6(ip),
    }
}

fn is_global_v4(ip: Ipv4Addr) -> bool {
    let within = |network: [u8; 4], length: u32| {
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        u32::from(ip) & mask == u32::from(Ipv4Addr::from(network)) & mask
    };
    !NOT_GLOBAL_V4.iter().any(|(network, length, _)| within(*network, *length))
}

fn is_global_v6(ip: Ipv6Addr) -> bool {
    let within = |network: [u16; 8], length: u32| {
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        u128::from(ip) & mask == u128::from(Ipv6Addr::from(network)) & mask
    };
    let [.., e, f, _, _] = ip.segments();
    within(GLOBAL_V6.0, GLOBAL_V6.1)
        && !NOT_GLOBAL_V6.iter().any(|(network, length, _)| within(*network, *length))
        && !ISATAP.contains(&(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_not_on_the_open_internet() {
        // One or two of every block in IANA's registries, and the ends of those that have been got wrong.
        for ip in [
            "0.0.0.0",
            "0.255.255.255",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.170",
            "192.0.2.1",
            "192.31.196.1",
            "192.52.193.1",
            "192.88.99.1",
            "192.168.0.1",
            "192.175.48.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:1::1",
            "2001:2::1",
            "2001:3::1",
            "2001:4:112::1",
            "2001:10::1",
            "2001:20::1",
            "2001:30::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::",
            "2620:4f:8000::1",
            "3ffe::1",
            "3fff::1",
            "3fff:fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2606:4700::5efe:a00:1",
            "2606:4700::200:5efe:808:808",
            "fe80::5efe:a00:1",
        ] {
            assert!(!is_global(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2620:4f:8001::1",
            "2a00:1450::1",
            "3fff:1000::1",
        ] {
            assert!(is_global(ip.parse().unwrap()), "{ip}");
        }
    }
}
