//! Identifiers and their normal forms.

use std::collections::BTreeSet;
use std::str::FromStr;

use email_address::EmailAddress;
use phonenumber::country;
use serde::{Deserialize, Serialize};

use crate::domain::settings::BrandSettings;
use crate::domain::{gid, telephone};

/// The longest identifier, in characters. A longer value stays in the event and is not promoted to an identifier.
pub const MAX_IDENTIFIER_CHARS: usize = 255;

/// What sort of thing identifies the customer. The order is the order of trust, and of listings.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
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
    /// Shopify's checkout token: the other bridge.
    CheckoutToken,
}

/// How many kinds there are.
pub const KINDS: usize = IdentifierKind::ALL.len();

impl IdentifierKind {
    /// Every kind, in order.
    pub const ALL: [Self; 7] = [
        Self::UserId,
        Self::Email,
        Self::Phone,
        Self::ShopifyCustomerId,
        Self::AnonymousId,
        Self::CartToken,
        Self::CheckoutToken,
    ];

    /// Whether it names a person, rather than a browser or a cart that several may share.
    pub fn is_personal(self) -> bool {
        matches!(self, Self::UserId | Self::Email | Self::Phone | Self::ShopifyCustomerId)
    }

    /// The name on the wire and in the stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserId => "user_id",
            Self::Email => "email",
            Self::Phone => "phone",
            Self::ShopifyCustomerId => "shopify_customer_id",
            Self::AnonymousId => "anonymous_id",
            Self::CartToken => "cart_token",
            Self::CheckoutToken => "checkout_token",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// One identifier in its normal form. Two that are equal name the same customer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Identifier {
    /// What sort of identifier.
    pub kind: IdentifierKind,
    /// The normalised value.
    pub value: String,
}

impl Identifier {
    /// Normalises `raw` by the rules that hold for every brand: see [`Rules::identifier`].
    pub fn new(kind: IdentifierKind, raw: &str) -> Option<Self> {
        Rules::default().identifier(kind, raw)
    }
}

/// What may identify a customer of a brand.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Values that identify nobody, lower case.
    blocked: BTreeSet<String>,
    /// Where national telephone numbers belong.
    country: Option<country::Id>,
    /// Whether an alias call links its two ids.
    pub alias_links: bool,
}

impl Rules {
    pub fn of(settings: &BrandSettings) -> Self {
        Self {
            blocked: settings.blocked_identifiers.iter().map(|value| value.trim().to_lowercase()).collect(),
            country: settings.default_country.as_deref().and_then(country_of),
            alias_links: settings.alias_links,
        }
    }

    /// Normalises `raw`; `None` when it cannot identify anybody: empty, too long, malformed for its kind, one of the
    /// placeholders that broken tracking code sends for everyone, or blocked by the brand.
    pub fn identifier(&self, kind: IdentifierKind, raw: &str) -> Option<Identifier> {
        self.identifier_in(kind, raw, None)
    }

    /// The same; a national telephone number belongs to `country` (ISO 3166, two letters), if that is known, else to the
    /// brand's default country.
    pub fn identifier_in(
        &self,
        kind: IdentifierKind,
        raw: &str,
        country: Option<&str>,
    ) -> Option<Identifier> {
        let trimmed = raw.trim();
        if trimmed.is_empty() || trimmed.chars().count() > MAX_IDENTIFIER_CHARS || is_placeholder(trimmed) {
            return None;
        }
        let value = match kind {
            IdentifierKind::Email => email(trimmed)?,
            IdentifierKind::ShopifyCustomerId => without_gid(trimmed, "Customer").replace('\0', ""),
            IdentifierKind::CartToken => token(trimmed, "Cart")?,
            IdentifierKind::CheckoutToken => token(trimmed, "Checkout")?,
            IdentifierKind::Phone => telephone::e164(trimmed, country.and_then(country_of).or(self.country))?,
            // PostgreSQL's text cannot hold U+0000, and no honest identifier has one.
            _ => trimmed.replace('\0', ""),
        };
        let blocked =
            || self.blocked.contains(&value.to_lowercase()) || self.blocked.contains(&trimmed.to_lowercase());
        (!value.is_empty() && (self.blocked.is_empty() || !blocked())).then_some(Identifier { kind, value })
    }
}

/// The country of a two-letter code.
pub fn country_of(code: &str) -> Option<country::Id> {
    country::Id::from_str(&code.trim().to_uppercase()).ok()
}

/// What broken tracking code sends for everyone: a word for nothing, the name of a field instead of its value, or a template that nobody
/// filled in; also in quotes.
fn is_placeholder(value: &str) -> bool {
    const NOBODY: [&str; 28] = [
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
        "not_authenticated",
        "not set",
        "(not set)",
        "id",
        "email",
        "distinctid",
        "distinct_id",
        "userid",
        "user_id",
        "anonymousid",
        "anonymous_id",
        "customerid",
        "customer_id",
        "deviceid",
    ];
    const TEMPLATES: [(&str, &str); 5] =
        [("{{", "}}"), ("${", "}"), ("<%", "%>"), ("{%", "%}"), ("%%", "%%")];
    let bare = value.trim_matches(['"', '\'', '`', ' ']);
    bare.chars().all(|c| matches!(c, '0' | '-' | '.' | ' '))
        || NOBODY.contains(&bare.to_lowercase().as_str())
        || TEMPLATES.iter().any(|(begin, end)| bare.starts_with(begin) && bare.ends_with(end))
}

/// Shopify's id of a thing of that type out of its global id, `gid://shopify/TYPE/ID`.
fn without_gid<'a>(id: &'a str, of: &str) -> &'a str {
    gid::parts(id).filter(|(kind, _)| *kind == of).map_or(id, |(_, bare)| bare)
}

/// A cart's or checkout's token as orders name it. Storefronts have it as a global id, and with a key behind it (`TOKEN?key=…`).
fn token(raw: &str, of: &str) -> Option<String> {
    let bare = without_gid(raw, of).split('?').next().unwrap_or_default();
    (!is_placeholder(bare)).then(|| bare.replace('\0', ""))
}

fn email(raw: &str) -> Option<String> {
    let form =
        email_address::Options::default().with_required_tld().without_display_text().without_domain_literal();
    // What was copied from a page may have marks in it that nobody sees.
    let seen: String = raw.chars().filter(|c| !telephone::is_invisible(*c)).collect();
    let address = EmailAddress::parse_with_options(seen.trim(), form).ok()?;
    // Folding beyond ASCII makes one of two mailboxes: U+212A, the Kelvin sign, would be a k. A domain has one form in ASCII.
    let local = address.local_part().to_ascii_lowercase();
    let Ok(url::Host::Domain(domain)) = url::Host::parse(address.domain()) else { return None };
    (!is_placeholder(&local)).then(|| format!("{local}@{domain}"))
}
