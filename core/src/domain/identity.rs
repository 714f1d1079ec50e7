//! Who a customer is: identifiers, their normal forms, and the grouping of events that share one.
//!
//! The rule is flat: events that share an identifier, directly or through others, are one customer. Grouping by that
//! relation does not depend on the order in which events arrive.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ids::ProfileId;

/// The longest identifier, in characters. A longer value stays in the event and is not promoted to an identifier.
pub const MAX_IDENTIFIER_CHARS: usize = 255;

/// What sort of thing identifies the customer. The order is the order of trust, and of listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentifierKind {
    /// The shop's own id of a signed-in customer (Segment's `userId`).
    UserId,
    /// An e-mail address, lower case.
    Email,
    /// A telephone number in E.164 form.
    Phone,
    /// Shopify's numeric customer id.
    ShopifyCustomerId,
    /// A browser or device (Segment's `anonymousId`).
    AnonymousId,
    /// Shopify's cart token: the bridge from a browser to its order.
    CartToken,
}

impl IdentifierKind {
    /// Every kind, in order.
    pub const ALL: [Self; 6] =
        [Self::UserId, Self::Email, Self::Phone, Self::ShopifyCustomerId, Self::AnonymousId, Self::CartToken];

    /// The name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserId => "user_id",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::ShopifyCustomerId => "shopify_customer_id",
            Self::AnonymousId => "anonymous_id",
            Self::CartToken => "cart_token",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One identifier in its normal form. Two that are equal name the same customer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identifier {
    /// What sort of identifier.
    pub kind: IdentifierKind,
    /// The normalised value.
    pub value: String,
}

impl Identifier {
    /// Normalises `raw`; `None` when it cannot identify anybody: empty, too long, malformed for its kind, or one of the
    /// placeholders that broken tracking code sends for everyone.
    pub fn new(kind: IdentifierKind, raw: &str) -> Option<Self> {
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.chars().count() > MAX_IDENTIFIER_CHARS || is_placeholder(trimmed) {
            return None;
        }
        let value = match kind {
            IdentifierKind::Email => email(trimmed)?,
            IdentifierKind::Phone => phone(trimmed)?,
            // PostgreSQL's text cannot hold U+0000, and no honest identifier has one.
            _ => trimmed.replace('\0', ""),
        };
        (!value.is_empty()).then_some(Self { kind, value })
    }
}

fn is_placeholder(value: &str) -> bool {
    const NOBODY: [&str; 14] = [
        "null",
        "undefined",
        "none",
        "nil",
        "nan",
        "void",
        "n/a",
        "anonymous",
        "guest",
        "unknown",
        "true",
        "false",
        "-1",
        "[object object]",
    ];
    value.chars().all(|c| matches!(c, '0' | '-' | '.' | ' '))
        || NOBODY.contains(&value.to_lowercase().as_str())
}

fn email(raw: &str) -> Option<String> {
    let (local, host) = raw.rsplit_once('@')?;
    let sound = !local.is_empty()
        && host.contains('.')
        && !host.starts_with('.')
        && !host.ends_with('.')
        && !raw.chars().any(|c| c.is_whitespace() || c.is_control());
    (sound && !is_placeholder(local)).then(|| raw.to_lowercase())
}

/// E.164 from a number that carries its country code. A national number stays a trait: without the country, two
/// countries' customers could share it.
fn phone(raw: &str) -> Option<String> {
    let rest = raw.strip_prefix('+').or_else(|| raw.strip_prefix("00"))?;
    let mut digits = String::from("+");
    for c in rest.chars() {
        match c {
            '0'..='9' => digits.push(c),
            ' ' | '-' | '.' | '(' | ')' | '/' => {}
            _ => return None,
        }
    }
    let body = &digits[1..];
    (matches!(body.len(), 8..=15) && !body.starts_with('0')).then_some(digits)
}

/// Events and identifiers that belong to one customer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Indices of events.
    pub events: Vec<usize>,
    /// Indices of identifiers.
    pub identifiers: Vec<usize>,
    /// Profiles that own one of the identifiers. The smallest is the oldest: it survives.
    pub owners: BTreeSet<ProfileId>,
}

/// Groups events by the identifiers they share and by the profiles that already own these.
///
/// `event_identifiers[e]` lists the identifiers of event `e` as indices into `owners`, which holds each identifier's
/// present owner. An event without identifiers is in no group. Groups come in order of their first event.
pub fn group(event_identifiers: &[Vec<usize>], owners: &[Option<ProfileId>]) -> Vec<Group> {
    let mut sets = DisjointSets::new(owners.len());
    let mut first_of_owner: BTreeMap<ProfileId, usize> = BTreeMap::new();
    for (identifier, owner) in owners.iter().enumerate() {
        if let Some(owner) = owner {
            let first = *first_of_owner.entry(*owner).or_insert(identifier);
            sets.join(first, identifier);
        }
    }
    for identifiers in event_identifiers {
        for pair in identifiers.windows(2) {
            sets.join(pair[0], pair[1]);
        }
    }
    let mut place: BTreeMap<usize, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (event, identifiers) in event_identifiers.iter().enumerate() {
        if let Some(&first) = identifiers.first() {
            let root = sets.root(first);
            let at = *place.entry(root).or_insert_with(|| {
                groups.push(Group::default());
                groups.len() - 1
            });
            groups[at].events.push(event);
        }
    }
    for (identifier, owner) in owners.iter().enumerate() {
        if let Some(&at) = place.get(&sets.root(identifier)) {
            groups[at].identifiers.push(identifier);
            groups[at].owners.extend(owner);
        }
    }
    groups
}

/// Union-find with path halving.
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn root(&mut self, mut of: usize) -> usize {
        while self.0[of] != of {
            self.0[of] = self.0[self.0[of]];
            of = self.0[of];
        }
        of
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_brought_to_one_form() {
        let cases = [
            (IdentifierKind::Email, " Bob.Norman@HostMail.com ", Some("bob.norman@hostmail.com")),
            (IdentifierKind::Email, "not an address", None),
            (IdentifierKind::Email, "null@example.com", None),
            (IdentifierKind::Email, "bob@localhost", None),
            (IdentifierKind::Phone, "+1 (502) 555-1199", Some("+15025551199")),
            (IdentifierKind::Phone, "0049 170 1234567", Some("+491701234567")),
            (IdentifierKind::Phone, "555-625-1199", None),
            (IdentifierKind::Phone, "+0 000 000 000", None),
            (IdentifierKind::UserId, " u1 ", Some("u1")),
            (IdentifierKind::UserId, "a\0b", Some("ab")),
        ];
        for (kind, raw, wanted) in cases {
            assert_eq!(Identifier::new(kind, raw).map(|i| i.value).as_deref(), wanted, "{kind:?} {raw:?}");
        }
    }

    #[test]
    fn placeholders_identify_nobody() {
        for raw in [
            "",
            "  ",
            "null",
            "NULL",
            "undefined",
            "-1",
            "0",
            "000-000",
            "00000000-0000-0000-0000-000000000000",
            "anonymous",
            "[object Object]",
        ] {
            assert_eq!(Identifier::new(IdentifierKind::AnonymousId, raw), None, "{raw:?}");
        }
        assert_eq!(Identifier::new(IdentifierKind::UserId, &"x".repeat(MAX_IDENTIFIER_CHARS + 1)), None);
    }

    #[test]
    fn sharing_an_identifier_or_an_owner_makes_one_group() {
        let old = ProfileId::new(1);
        let young = ProfileId::new(2);
        // 0-1 share identifier 1; event 2 joins them through an owner; event 3 stands alone; event 4 is nobody's.
        let events = [vec![0, 1], vec![1, 2], vec![3], vec![4], vec![]];
        let owners = [None, Some(young), Some(old), Some(young), None];
        let groups = group(&events, &owners);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].events, [0, 1, 2]);
        assert_eq!(groups[0].identifiers, [0, 1, 2, 3]);
        assert_eq!(groups[0].owners.first(), Some(&old));
        assert_eq!((groups[1].events.as_slice(), groups[1].identifiers.as_slice()), (&[3][..], &[4][..]));
    }
}
