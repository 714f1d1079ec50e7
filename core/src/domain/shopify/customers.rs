//! Customers, as Shopify's bodies tell of them: identifiers, traits, consent, requests in the name of privacy.

use serde_json::Value;

use super::fields::{id_in, instant, list, text};
use super::topics::{PERSONAL, TAGS_ADDED, TAGS_REMOVED, customer, resource};
use crate::domain::event::{Channel, Consent, PrivacyAsk, SUBSCRIBED, Subject, TraitUpdate};
use crate::domain::identity::{Identifier, IdentifierKind, Rules};
use crate::domain::profile::{MAX_TRAIT_BYTES, TAG};
use crate::domain::time::Timestamp;

/// What a privacy topic asks for.
pub(super) fn ask(body: &Value, topic: &str, rules: &Rules) -> Option<PrivacyAsk> {
    let subject = || {
        let customer = &body["customer"];
        let identifiers = [
            (IdentifierKind::ShopifyCustomerId, id_in(customer, "id")),
            (IdentifierKind::Email, text(customer, "email")),
            (IdentifierKind::Phone, text(customer, "phone")),
        ]
        .into_iter()
        .filter_map(|(kind, value)| rules.identifier(kind, &value?))
        .collect();
        Subject { identifiers, profiles: Vec::new() }
    };
    match topic {
        "customers/data_request" => Some(PrivacyAsk::Export(subject())),
        "customers/redact" => Some(PrivacyAsk::Erase(subject())),
        "shop/redact" => Some(PrivacyAsk::EraseShop),
        _ => None,
    }
}

pub(super) fn identifiers(body: &Value, topic: &str, rules: &Rules) -> Vec<Identifier> {
    let resource = resource(topic);
    let customer = customer(body, topic);
    let own = if PERSONAL.contains(&resource) { body } else { &Value::Null };
    // A national telephone number belongs where its owner lives.
    let lives_in = |of: &Value| text(&of["default_address"], "country_code");
    let ships_to = ["billing_address", "shipping_address"]
        .into_iter()
        .find_map(|address| text(&own[address], "country_code"))
        .or_else(|| lives_in(customer));
    // A body about consent names the customer in fields of its own.
    let customers_id = ["id", "customer_id", "customerId"].iter().find_map(|field| id_in(customer, field));
    // Others name their customer, too: contracts, payment methods, contacts of companies.
    let customers_id = customers_id.or_else(|| {
        let named =
            ["customer_id", "customerId", "admin_graphql_api_customer_id", "customer_admin_graphql_api_id"];
        named.iter().find_map(|field| id_in(body, field))
    });
    // Shopify has made one customer of two: whoever is named by either is the same.
    let merged = |field: &str| text(body, field).filter(|_| is_merge(body, topic));
    let (cart, checkout) = match resource {
        "carts" => (text(body, "token").or_else(|| text(body, "id")), None),
        "checkouts" => (text(body, "cart_token"), text(body, "token")),
        _ => (text(body, "cart_token"), text(body, "checkout_token")),
    };
    // Whoever checked out is whose order it is when it is created. Later the shop may give it to another customer, and it keeps its tokens:
    // then they say who somebody is only where nothing else does.
    let is_later_state = resource == "orders" && topic != "orders/create";
    let names_somebody = customers_id.is_some()
        || ["email", "phone"].iter().any(|field| text(customer, field).is_some())
        || ["email", "contact_email", "phone"].iter().any(|field| text(own, field).is_some());
    let (cart, checkout) = if is_later_state && names_somebody { (None, None) } else { (cart, checkout) };
    let mut found: Vec<Identifier> = [
        (IdentifierKind::ShopifyCustomerId, customers_id, None),
        (IdentifierKind::ShopifyCustomerId, merged("admin_graphql_api_customer_kept_id"), None),
        (IdentifierKind::ShopifyCustomerId, merged("admin_graphql_api_customer_deleted_id"), None),
        (IdentifierKind::Email, text(customer, "email"), None),
        (IdentifierKind::Email, text(customer, "email_address"), None),
        (IdentifierKind::Email, text(own, "email").or_else(|| text(own, "contact_email")), None),
        (IdentifierKind::Phone, text(customer, "phone_number"), lives_in(customer)),
        (IdentifierKind::Phone, text(customer, "phone"), lives_in(customer).or_else(|| ships_to.clone())),
        (IdentifierKind::Phone, text(own, "phone"), ships_to),
        (IdentifierKind::CartToken, cart, None),
        (IdentifierKind::CheckoutToken, checkout, None),
    ]
    .into_iter()
    .filter_map(|(kind, value, country)| rules.identifier_in(kind, &value?, country.as_deref()))
    .collect();
    found.sort();
    found.dedup();
    found
}

/// A merge that has come to its end; others are announced, or failed.
pub(super) fn is_merge(body: &Value, topic: &str) -> bool {
    topic == "customers/merge"
        && text(body, "status").is_some_and(|status| status.eq_ignore_ascii_case("completed"))
}

/// The customer's traits under Segment's reserved names, so that a browser and Shopify speak of the same ones.
pub(super) fn traits(body: &Value, topic: &str, event_at: Timestamp) -> Vec<TraitUpdate> {
    if [TAGS_ADDED, TAGS_REMOVED].contains(&topic) {
        let at = instant(body, "occurredAt").unwrap_or(event_at);
        let tags =
            list(body, "tags").iter().filter_map(Value::as_str).map(str::trim).filter(|tag| !tag.is_empty());
        let named = tags.map(|tag| TraitUpdate {
            name: format!("{TAG}{tag}"),
            value: (topic == TAGS_ADDED).into(),
            at,
        });
        return named.filter(|update| update.name.len() <= MAX_TRAIT_BYTES).collect();
    }
    let customer = customer(body, topic);
    let at = instant(customer, "updated_at").unwrap_or(event_at);
    let address = &customer["default_address"];
    let deleted = Value::from("deleted");
    // Who buys as a guest is written to where the order says. An order's own address is emptied by nobody.
    let personal = PERSONAL.contains(&resource(topic));
    let contact = |field: &str| match (&customer[field], &body[field]) {
        (stated, own) if !personal || is_empty(own) || own.is_null() => stated.clone(),
        (stated, _) if stated.as_str().is_some_and(|text| !text.is_empty()) => stated.clone(),
        (_, own) => own.clone(),
    };
    let (email, phone) = (contact("email"), contact("phone"));
    let state = if topic == "customers/delete" { &deleted } else { &customer["state"] };
    // There is no channel of that name; who may be written to there is known all the same.
    let whats_app = &customer["whats_app_marketing_consent"];
    let at = instant(whats_app, "updated_at").unwrap_or(at);
    [
        ("email", &email),
        ("phone", &phone),
        ("firstName", &customer["first_name"]),
        ("lastName", &customer["last_name"]),
        ("tags", &customer["tags"]),
        ("shopifyState", state),
        ("acceptsMarketing", &customer["accepts_marketing"]),
        ("city", &address["city"]),
        ("countryCode", &address["country_code"]),
        ("whatsAppMarketingConsent", &whats_app["state"]),
    ]
    .into_iter()
    // Shopify writes null for what it does not know, or may not tell: that is no statement about the customer.
    .filter(|(_, value)| !value.is_null())
    // A customer's body is the whole state: what is empty there was emptied.
    .map(|(name, value)| {
        let value = if is_empty(value) { Value::Null } else { value.clone() };
        TraitUpdate { name: name.into(), value, at }
    })
    .collect()
}

fn is_empty(value: &Value) -> bool {
    value.as_str().is_some_and(str::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// What the customer says of being written to, in any of the forms that Shopify has had for it.
pub(super) fn consents(body: &Value, topic: &str, event_at: Timestamp, rules: &Rules) -> Vec<Consent> {
    let customer = customer(body, topic);
    let address = |channel: Channel| {
        let kind = channel.identifier_kind();
        let fields: &[&str] =
            if kind == IdentifierKind::Email { &["email", "email_address"] } else { &["phone"] };
        let country = text(&customer["default_address"], "country_code");
        let stated = fields.iter().find_map(|field| text(customer, field))?;
        Some(rules.identifier_in(kind, &stated, country.as_deref())?.value)
    };
    // What has no date is repeated with every order. A yes may be as old as the customer, and outweighs nobody's later no; a no counts
    // as of now.
    let undated = |state: &str| match state {
        SUBSCRIBED => instant(customer, "created_at").unwrap_or_default().min(event_at),
        _ => instant(customer, "updated_at").unwrap_or(event_at),
    };
    let mut found = Vec::new();
    for (channel, field) in
        [(Channel::Email, "email_marketing_consent"), (Channel::Sms, "sms_marketing_consent")]
    {
        let consent = &customer[field];
        if let Some(state) = text(consent, "state").map(|state| state.to_lowercase()) {
            found.push(Consent {
                channel,
                address: address(channel),
                at: instant(consent, "consent_updated_at").unwrap_or_else(|| undated(&state)),
                state,
                level: text(consent, "opt_in_level").map(|level| level.to_lowercase()),
            });
        } else if channel == Channel::Email
            && let Some(accepts) = customer["accepts_marketing"].as_bool()
        {
            let state = if accepts { SUBSCRIBED } else { "not_subscribed" };
            found.push(Consent {
                channel,
                address: address(channel),
                state: state.to_owned(),
                level: text(customer, "marketing_opt_in_level"),
                at: instant(customer, "accepts_marketing_updated_at").unwrap_or_else(|| undated(state)),
            });
        }
    }
    found
}
