//! Events that automations make: tags, traits and events of a customer go the way of all events.

use serde_json::{Value, json};

use crate::domain::envelope::{Envelope, Origin};
use crate::domain::event::{Channel, Consent, Event, EventKind, Rejection, UNDELIVERABLE};
use crate::domain::identity::Identifier;
use crate::domain::ids::BrandId;
use crate::domain::profile::TAG;
use crate::domain::time;
use crate::domain::tracking::{consents_again, traits_again};

/// The body of an event that sets a trait.
pub fn set_trait(name: &str, value: &Value) -> Value {
    json!({"type": "identify", "traits": {name: value}})
}

/// The body of an event that gives a tag.
pub fn add_tag(tag: &str) -> Value {
    set_trait(&format!("{TAG}{tag}"), &json!(true))
}

/// The body of an event of that name.
pub fn event(name: &str, properties: &Value) -> Value {
    let properties = if properties.is_null() { json!({}) } else { properties.clone() };
    json!({"type": "track", "event": name, "properties": properties})
}

/// The body of an event that takes consent back.
pub fn unsubscribe(channel: Channel) -> Value {
    let field = match channel {
        Channel::Email => "emailMarketingConsent",
        Channel::Sms => "smsMarketingConsent",
    };
    json!({"type": "identify", "traits": {field: false}})
}

/// The body of an event by which somebody confirms that an e-mail address is theirs, and that they want marketing there.
pub fn confirmed(address: &str) -> Value {
    json!({"type": "identify", "traits": {"email": address, "emailMarketingConsent": true}})
}

/// The body of an event that says that an address takes no mail.
pub fn bounced(address: &str) -> Value {
    json!({"type": "track", "event": "Email Bounced", "bounced": address})
}

/// The queue's payload of such an event, about whoever has `identifier`.
pub fn envelope(
    brand: BrandId,
    message_id: &str,
    identifier: &Identifier,
    body: &Value,
    at_ms: i64,
) -> Option<Vec<u8>> {
    wrapped(brand, message_id, identifier, false, body, at_ms)
}

/// The queue's payload of an event of whoever has confirmed that `identifier` is theirs.
pub fn vouched(
    brand: BrandId,
    message_id: &str,
    identifier: &Identifier,
    body: &Value,
    at_ms: i64,
) -> Option<Vec<u8>> {
    wrapped(brand, message_id, identifier, true, body, at_ms)
}

fn wrapped(
    brand: BrandId,
    message_id: &str,
    identifier: &Identifier,
    vouches: bool,
    body: &Value,
    at_ms: i64,
) -> Option<Vec<u8>> {
    let body = serde_json::value::to_raw_value(body).ok()?;
    let origin =
        Origin::Automation { message_id: message_id.into(), identifier: identifier.clone(), vouches };
    Some(Envelope { brand, received_ms: at_ms, trace: None, origin, body: &body }.encode())
}

/// The event in such an envelope.
///
/// # Errors
/// `malformed_envelope` when it is none.
pub fn decode(envelope: &Envelope<'_>) -> Result<Event, Rejection> {
    let wrong = |why: &str| Rejection::new("malformed_envelope", why);
    let Origin::Automation { message_id, identifier, vouches } = &envelope.origin else {
        return Err(wrong("not an automation's message"));
    };
    let text = envelope.body.get();
    let body: Value = serde_json::from_str(text).map_err(|_| wrong("the message is not JSON"))?;
    let kind =
        body["type"].as_str().and_then(EventKind::segment).ok_or_else(|| wrong("the message has no type"))?;
    let at = time::from_ms(envelope.received_ms);
    Ok(Event {
        name: body["event"].as_str().filter(|_| kind == EventKind::Track).map(|name| name.replace('\0', "")),
        identifiers: vec![identifier.clone()],
        vouches: *vouches,
        traits: traits_again(kind, text, at),
        consents: match body["bounced"].as_str() {
            Some(address) => vec![Consent {
                channel: Channel::Email,
                address: Some(address.to_owned()),
                state: UNDELIVERABLE.to_owned(),
                level: None,
                at,
            }],
            None if kind == EventKind::Identify => consents_again(text, at),
            None => Vec::new(),
        },
        // The customer was not there.
        active: false,
        body: text.to_owned(),
        ..Event::new(envelope.brand, message_id.clone(), kind, at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::identity::{IdentifierKind, Rules};
    use BrandId;

    #[test]
    fn what_automations_make_reads_as_an_event_of_the_customer() {
        let ada = Identifier { kind: IdentifierKind::Email, value: "ada@example.com".into() };
        let read = |body: &Value| {
            let bytes = envelope(BrandId(3), "run-1", &ada, body, 5000).unwrap();
            Envelope::read(&bytes).unwrap().decode(&Rules::default()).unwrap()
        };
        let tagged = read(&add_tag("vip"));
        assert_eq!((tagged.traits[0].name.as_str(), &tagged.traits[0].value), ("tag:vip", &json!(true)));
        assert_eq!(
            (tagged.message_id.as_str(), tagged.active, &tagged.identifiers),
            ("run-1", false, &vec![ada.clone()])
        );
        assert!(
            tagged.source.is_trusted() && !tagged.links_firmly(),
            "it says whom it means, not who they are"
        );
        let bytes = vouched(BrandId(3), "confirm-1", &ada, &confirmed("ada@example.com"), 5000).unwrap();
        let confirmed = Envelope::read(&bytes).unwrap().decode(&Rules::default()).unwrap();
        assert!(confirmed.links_firmly());
        assert_eq!(confirmed.consents[0].address.as_deref(), Some("ada@example.com"));
        let emitted = read(&event("Reminded", &json!({"times": 2})));
        assert_eq!((emitted.kind, emitted.name.as_deref()), (EventKind::Track, Some("Reminded")));
        let back = read(&bounced("ada@example.com"));
        assert_eq!(back.consents[0].address.as_deref(), Some("ada@example.com"));
        assert_eq!((back.consents[0].state.as_str(), back.traits.len()), (UNDELIVERABLE, 0));
        let gone = read(&unsubscribe(Channel::Email));
        assert_eq!(
            (gone.consents[0].channel, gone.consents[0].state.as_str()),
            (Channel::Email, "unsubscribed")
        );
    }
}
