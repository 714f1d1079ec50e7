//! Segment's message format: what a message must have, and the event it becomes.
//!
//! Source: Segment's HTTP tracking API and common-fields pages. The server calls [`check`] before it answers; the worker
//! calls [`decode`]. Both read the same struct, so what one takes the other understands.

use std::borrow::Cow;

use chrono::Datelike;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::envelope::{Envelope, Origin};
use super::event::{
    Channel, Consent, Event, EventKind, MAX_AHEAD_MINUTES, Rejection, SUBSCRIBED, TraitUpdate,
};
use super::identity::{Identifier, IdentifierKind, Rules};
use super::json::{Fields, Scalar, depth, exact, mended, over, write_object};
use super::profile::MAX_TRAIT_BYTES;
use super::time::{self, Timestamp};

/// The largest event, in bytes of JSON (Segment's limit).
pub const MAX_EVENT_BYTES: usize = 32 * 1024;
/// The deepest nesting of an event: what Customer360 lists of it stays readable to parsers that stop at 128.
pub const MAX_EVENT_DEPTH: usize = 100;
/// The deepest nesting of a trait that is kept as JSON; a deeper one is kept as its text.
pub const MAX_TRAIT_DEPTH: usize = 64;
/// The code of a message over [`MAX_EVENT_BYTES`].
pub const TOO_LARGE: &str = "event_too_large";
/// The longest `messageId`, in characters (Segment's limit).
pub const MAX_MESSAGE_ID_CHARS: usize = 100;
/// The longest name of a state of consent, in characters.
const MAX_CONSENT_CHARS: usize = 40;
const MINUTE_MS: i64 = 60_000;
/// How far ahead of the reception a sender's clock is believed, in milliseconds.
const BELIEVED_AHEAD_MS: i64 = MAX_AHEAD_MINUTES * MINUTE_MS;
/// How far behind the reception it is believed, in milliseconds: as long as SDKs send a batch again without a new `sentAt`.
const BELIEVED_BEHIND_MS: i64 = 60 * MINUTE_MS;
/// In what steps the error of a clock is taken for deciding between its messages, in milliseconds.
const CLOCK_STEP_MS: i64 = 15 * MINUTE_MS;
/// More than a batch has messages: what separates the microseconds from the place in the batch.
const MOST_IN_A_BATCH: i64 = 1_000_000;
/// The longest event or page name, in characters.
pub const MAX_NAME_CHARS: usize = 500;

/// The fields that Tributary reads of a message; the rest is kept unread.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    #[serde(rename = "type", borrow, default)]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    user_id: Scalar<'a>,
    #[serde(borrow, default)]
    anonymous_id: Scalar<'a>,
    #[serde(borrow, default)]
    previous_id: Scalar<'a>,
    #[serde(borrow, default)]
    group_id: Scalar<'a>,
    #[serde(borrow, default)]
    event: Scalar<'a>,
    #[serde(borrow, default)]
    name: Scalar<'a>,
    #[serde(borrow, default)]
    message_id: Scalar<'a>,
    #[serde(borrow, default)]
    timestamp: Scalar<'a>,
    #[serde(borrow, default)]
    original_timestamp: Scalar<'a>,
    #[serde(borrow, default)]
    sent_at: Scalar<'a>,
    #[serde(borrow, default)]
    context: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traits: Option<&'a RawValue>,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
}

/// Whether `body` is a message that a worker will understand. `route` is the kind that the URL says, if it does;
/// `shared_bytes` is the size of what the message's batch adds to it. Answers whether it has an id of its own.
///
/// # Errors
/// What is wrong and what would be right. [`TOO_LARGE`] is the code of a message that must not be kept either.
pub fn check(body: &RawValue, route: Option<EventKind>, shared_bytes: usize) -> Result<bool, Rejection> {
    let size = body.get().len() + shared_bytes;
    if size > MAX_EVENT_BYTES {
        return Err(Rejection::new(
            TOO_LARGE,
            format!("the event has {size} bytes; at most {MAX_EVENT_BYTES} are taken"),
        ));
    }
    refuse_depth(body)?;
    let mended = mended(body.get());
    let (message, _) = read(mended.as_deref().unwrap_or(body.get()), route)?;
    times(&message, None, Timestamp::default())?;
    Ok(message.message_id.given().is_some())
}

fn refuse_depth(body: &RawValue) -> Result<(), Rejection> {
    match depth(body.get()) {
        0..=MAX_EVENT_DEPTH => Ok(()),
        deep => Err(Rejection::new(
            "too_deep",
            format!("the event is nested {deep} levels deep; at most {MAX_EVENT_DEPTH} are taken"),
        )),
    }
}

/// The event in a Segment envelope.
///
/// # Errors
/// As [`check`]; also when the envelope is not Segment's.
pub fn decode(envelope: &Envelope<'_>, rules: &Rules) -> Result<Event, Rejection> {
    let Origin::Segment { kind, message_id, sent_at, place, shared, .. } = &envelope.origin else {
        return Err(Rejection::new("malformed_envelope", "not a Segment message"));
    };
    let tidied = tidy(envelope.body, shared.as_deref());
    let body = tidied.as_deref().unwrap_or(envelope.body);
    refuse_depth(body)?;
    // It is kept as it came.
    let mended = mended(body.get());
    let (message, kind) = read(mended.as_deref().unwrap_or(body.get()), *kind)?;
    let received_at = time::from_ms(envelope.received_ms);
    let Times { happened, stated, micros } = times(&message, sent_at.as_deref(), received_at)?;
    let details = Details::of(&message);
    let identifiers = identifiers(&message, kind, &details, rules);
    let message_id = message.message_id.given().or(message_id.as_deref()).ok_or_else(|| {
        Rejection::new("malformed_envelope", "neither the message nor its envelope has an id")
    })?;
    Ok(Event {
        name: match kind {
            EventKind::Track => message.event.given().map(without_nul),
            EventKind::Group => message.group_id.given().map(without_nul),
            _ => message.name.given().map(without_nul),
        },
        received_at,
        told_at: stated,
        sequence: micros * MOST_IN_A_BATCH + i64::from(*place),
        traits: traits(&message, &details, kind, stated),
        consents: if kind == EventKind::Identify {
            consents(&message, &details, stated, rules)
        } else {
            Vec::new()
        },
        identifiers,
        active: details.context.active != Some(false),
        body: body.get().to_owned(),
        ..Event::new(envelope.brand, without_nul(message_id), kind, happened)
    })
}

fn read(body: &str, route: Option<EventKind>) -> Result<(Message<'_>, EventKind), Rejection> {
    if !body.starts_with('{') {
        return Err(Rejection::new("invalid_event", "an event must be a JSON object"));
    }
    let message: Message<'_> = serde_json::from_str(body)
        .map_err(|error| Rejection::new("invalid_event", format!("invalid event: {error}")))?;
    let kind = kind_of(&message, route)?;
    required(&message, kind)?;
    Ok((message, kind))
}

fn kind_of(message: &Message<'_>, route: Option<EventKind>) -> Result<EventKind, Rejection> {
    match (route, message.kind.given()) {
        (Some(kind), _) => Ok(kind),
        (None, Some(name)) => EventKind::segment(name).ok_or_else(|| {
            Rejection::new(
                "invalid_type",
                format!("type is {name:?}; it must be track, identify, page, screen, group or alias"),
            )
        }),
        // `/api/events` may leave the type out where the event's name says it.
        (None, None) if message.event.given().is_some() => Ok(EventKind::Track),
        (None, None) => {
            Err(Rejection::new("no_type", "type is missing: track, identify, page, screen, group or alias"))
        }
    }
}

fn required(message: &Message<'_>, kind: EventKind) -> Result<(), Rejection> {
    let missing = |code, text: &str| Err(Rejection::new(code, text));
    if message.user_id.given().is_none() && message.anonymous_id.given().is_none() {
        return missing("no_user_anon_id", "userId or anonymousId is required, as text or as a number");
    }
    match kind {
        EventKind::Track if message.event.given().is_none() => {
            return missing("no_event", "a track call needs event: the name of what happened");
        }
        EventKind::Group if message.group_id.given().is_none() => {
            return missing("no_group_id", "a group call needs groupId");
        }
        EventKind::Alias if message.user_id.given().is_none() || message.previous_id.given().is_none() => {
            return missing("no_previous_id", "an alias call needs userId and previousId");
        }
        _ => {}
    }
    let too_long = |field: &Scalar<'_>, most| field.given().is_some_and(|text| text.chars().count() > most);
    if too_long(&message.message_id, MAX_MESSAGE_ID_CHARS) {
        return Err(Rejection::new(
            "invalid_message_id",
            format!("messageId is longer than {MAX_MESSAGE_ID_CHARS} characters"),
        ));
    }
    if too_long(&message.event, MAX_NAME_CHARS) || too_long(&message.name, MAX_NAME_CHARS) {
        return Err(Rejection::new(
            "invalid_name",
            format!("event and name may have at most {MAX_NAME_CHARS} characters"),
        ));
    }
    Ok(())
}

/// When a message says that it happened.
struct Times {
    /// As exactly as can be known.
    happened: Timestamp,
    /// What decides between this message and others.
    stated: Timestamp,
    /// The microseconds that the sender gives beyond the milliseconds.
    micros: i64,
}

/// When the event happened. The sender's clock may be wrong, and the network may be slow; from one message nobody can tell which. A clock
/// that seems nearly right is believed - up to [`BELIEVED_AHEAD_MS`] ahead, and up to [`BELIEVED_BEHIND_MS`] behind, which a retry with the
/// first try's `sentAt` also looks like - so the order of a sender's messages is the sender's own. A clock that cannot be right is set
/// right by the reception: `received - (sent - original)` (Segment's rule).
fn times(
    message: &Message<'_>,
    batch_sent_at: Option<&str>,
    received_at: Timestamp,
) -> Result<Times, Rejection> {
    let original = instant(&message.original_timestamp, "originalTimestamp")?;
    let original = original.or(instant(&message.timestamp, "timestamp")?);
    let sent = instant(&message.sent_at, "sentAt")?.or_else(|| batch_sent_at.and_then(time::parse_fine));
    let Some((original, micros)) = original else {
        return Ok(Times { happened: received_at, stated: received_at, micros: 0 });
    };
    let by_the_clock = Times { happened: original, stated: original, micros };
    // Nothing is sent before it happens: a clock that says so says nothing.
    let Some((sent, _)) = sent.filter(|(sent, _)| (original - sent).num_milliseconds() <= BELIEVED_AHEAD_MS)
    else {
        return Ok(by_the_clock);
    };
    let behind_ms = (received_at - sent).num_milliseconds();
    if (-BELIEVED_AHEAD_MS..BELIEVED_BEHIND_MS).contains(&behind_ms) {
        return Ok(by_the_clock);
    }
    let happened = time::plus(original, time::millis(behind_ms));
    // Clocks that are thousands of years apart say nothing.
    if !time::YEARS.contains(&happened.year()) {
        return Ok(Times { happened: received_at, stated: received_at, micros: 0 });
    }
    Ok(Times { happened, stated: time::plus(original, time::millis(rounded(behind_ms))), micros })
}

/// How far behind a clock is taken to be for deciding between its messages: never more than it seems, and the same for messages that
/// took longer and shorter on their way. Clocks are wrong by whole hours, mostly; so the steps lie around these.
fn rounded(behind_ms: i64) -> i64 {
    (behind_ms + CLOCK_STEP_MS / 2).div_euclid(CLOCK_STEP_MS) * CLOCK_STEP_MS - CLOCK_STEP_MS / 2
}

/// A time, with its microseconds beyond the milliseconds.
fn instant(field: &Scalar<'_>, name: &str) -> Result<Option<(Timestamp, i64)>, Rejection> {
    let text = match field.given() {
        Some(text) => text,
        None if field.is_strange() => "no text",
        None => return Ok(None),
    };
    match time::parse_fine(text) {
        Some(at) => Ok(Some(at)),
        None => Err(Rejection::new(
            "invalid_timestamp",
            format!("{name} is {text:?}; it must be ISO 8601, like 2026-01-31T12:00:00.000Z"),
        )),
    }
}

/// The few fields inside `context`, `traits` and `properties` that say who the customer is.
#[derive(Default)]
struct Details<'a> {
    context: Context<'a>,
    in_context: Contact<'a>,
    traits: Contact<'a>,
    properties: Properties<'a>,
}

#[derive(Default, Deserialize)]
struct Context<'a> {
    #[serde(default, deserialize_with = "lenient_bool")]
    active: Option<bool>,
    #[serde(borrow, default)]
    traits: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Contact<'a> {
    #[serde(borrow, default)]
    email: Scalar<'a>,
    #[serde(borrow, default)]
    phone: Scalar<'a>,
}

#[derive(Default, Deserialize)]
struct Properties<'a> {
    #[serde(borrow, default, alias = "cartToken")]
    cart_token: Scalar<'a>,
    #[serde(borrow, default, alias = "checkoutToken")]
    checkout_token: Scalar<'a>,
}

/// What an identify call may say of being written to: `"subscribed"`, `"unsubscribed"`, or a boolean.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marketing<'a> {
    #[serde(borrow, default)]
    email_marketing_consent: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sms_marketing_consent: Option<&'a RawValue>,
}

impl<'a> Details<'a> {
    /// Reads leniently: a strange inner shape costs an identifier, never the event.
    fn of(message: &Message<'a>) -> Self {
        fn inner<'a, T: Default + Deserialize<'a>>(raw: Option<&'a RawValue>) -> T {
            raw.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default()
        }
        let context: Context<'a> = inner(message.context);
        Self {
            in_context: inner(context.traits),
            context,
            traits: inner(message.traits),
            properties: inner(message.properties),
        }
    }
}

fn identifiers(
    message: &Message<'_>,
    kind: EventKind,
    details: &Details<'_>,
    rules: &Rules,
) -> Vec<Identifier> {
    let in_context = &details.in_context;
    // A group's address is not the customer's.
    let own = if kind == EventKind::Group { &Contact::default() } else { &details.traits };
    // An alias call's previous id may be a user's or a browser's; it links only where the brand wants it to.
    let links = kind == EventKind::Alias && rules.alias_links;
    let previous = if links { &message.previous_id } else { &Scalar::default() };
    let candidates = [
        (IdentifierKind::UserId, &message.user_id),
        (IdentifierKind::AnonymousId, previous),
        (IdentifierKind::Email, &own.email),
        (IdentifierKind::Email, &in_context.email),
        (IdentifierKind::Phone, &own.phone),
        (IdentifierKind::Phone, &in_context.phone),
        (IdentifierKind::AnonymousId, &message.anonymous_id),
        (IdentifierKind::CartToken, &details.properties.cart_token),
        (IdentifierKind::CheckoutToken, &details.properties.checkout_token),
    ];
    let mut found: Vec<Identifier> =
        candidates.into_iter().filter_map(|(kind, value)| rules.identifier(kind, value.given()?)).collect();
    found.sort();
    found.dedup();
    // Trusted least: where a brand gives a customer one user id, the previous one stays out.
    let as_user = previous.given().and_then(|value| rules.identifier(IdentifierKind::UserId, value));
    if let Some(user) = as_user.filter(|user| !found.contains(user)) {
        found.push(user);
    }
    found
}

/// Only an identify call speaks of the customer's traits; a group call's traits are the group's. RudderStack's SDKs put them under
/// `context.traits`: what stands under `traits` itself wins.
fn traits(message: &Message<'_>, details: &Details<'_>, kind: EventKind, at: Timestamp) -> Vec<TraitUpdate> {
    if kind != EventKind::Identify {
        return Vec::new();
    }
    let stated = [details.context.traits, message.traits].into_iter().flatten();
    let fields = stated.filter_map(|raw| serde_json::from_str::<Fields<'_>>(raw.get()).ok());
    let mut updates: Vec<TraitUpdate> = Vec::new();
    for (name, raw) in fields.flat_map(|fields| fields.0) {
        if name.len() + raw.get().len() > MAX_TRAIT_BYTES {
            continue;
        }
        // What JSON allows and this program cannot hold - 1e400, a whole number beyond 64 bits - is kept as its own text.
        // So is what is nested too deep to be read again once it is part of a profile.
        let readable = Some(raw).filter(|raw| depth(raw.get()) <= MAX_TRAIT_DEPTH);
        let value = readable.and_then(exact).unwrap_or_else(|| Value::from(raw.get()));
        updates.retain(|earlier| earlier.name != *name);
        updates.push(TraitUpdate { name: name.into_owned(), value, at });
    }
    updates
}

/// Consent as an identify call's traits tell it.
fn consents(message: &Message<'_>, details: &Details<'_>, at: Timestamp, rules: &Rules) -> Vec<Consent> {
    let said = |raw: Option<&RawValue>| -> [Option<String>; 2] {
        let stated =
            raw.and_then(|raw| serde_json::from_str::<Marketing<'_>>(raw.get()).ok()).unwrap_or_default();
        [stated.email_marketing_consent, stated.sms_marketing_consent]
            .map(|said| said.and_then(consent_state))
    };
    let (own, in_context) = (said(message.traits), said(details.context.traits));
    let stated = own.into_iter().zip(in_context).map(|(own, in_context)| own.or(in_context));
    [Channel::Email, Channel::Sms]
        .into_iter()
        .zip(stated)
        .filter_map(|(channel, state)| {
            let address = contact(details, channel.identifier_kind(), rules);
            Some(Consent { channel, address, state: state?, level: None, at })
        })
        .collect()
}

/// The state of consent that a value says.
fn consent_state(raw: &RawValue) -> Option<String> {
    match serde_json::from_str(raw.get()).ok()? {
        Value::Bool(true) => Some(SUBSCRIBED.to_owned()),
        Value::Bool(false) => Some("unsubscribed".to_owned()),
        Value::String(state) if !state.is_empty() && state.len() <= MAX_CONSENT_CHARS => {
            Some(without_nul(&state.to_lowercase()))
        }
        _ => None,
    }
}

/// The address or number that an identify call names, normalised.
fn contact(details: &Details<'_>, kind: IdentifierKind, rules: &Rules) -> Option<String> {
    let of = |contact: &Contact<'_>| {
        let raw = if kind == IdentifierKind::Phone { &contact.phone } else { &contact.email };
        Some(rules.identifier(kind, raw.given()?)?.value)
    };
    of(&details.traits).or_else(|| of(&details.in_context))
}

/// What a kept message says of its customer: for making a profile again from its events.
pub fn traits_again(kind: EventKind, body: &str, at: Timestamp) -> Vec<TraitUpdate> {
    again(body, |message, details| traits(message, details, kind, at))
}

/// What a kept message says of consent.
pub(super) fn consents_again(body: &str, at: Timestamp) -> Vec<Consent> {
    again(body, |message, details| consents(message, details, at, &Rules::default()))
}

fn again<T: Default>(body: &str, read: impl FnOnce(&Message<'_>, &Details<'_>) -> T) -> T {
    let mended = mended(body);
    let message = serde_json::from_str::<Message<'_>>(mended.as_deref().unwrap_or(body));
    message.map(|message| read(&message, &Details::of(&message))).unwrap_or_default()
}

/// The message as it is kept: what its batch says for all is put under its own, and a write key - a credential - is left
/// out. `None` when there is nothing to change, which is the usual case. Values are moved as they are, never rewritten.
fn tidy(body: &RawValue, shared: Option<&str>) -> Option<Box<RawValue>> {
    if shared.is_none() && !body.get().contains("\"writeKey\"") {
        return None;
    }
    let (mut mended_body, mut mended_shared) = (None, None);
    let mut fields = fields(body.get(), &mut mended_body)?;
    fields.0.retain(|(name, _)| name != "writeKey");
    let shared = shared.and_then(|shared| self::fields(shared, &mut mended_shared)).unwrap_or_default();
    let mut merged: Vec<(Cow<'_, str>, Box<RawValue>)> = Vec::new();
    for (name, below) in shared.0 {
        let own = fields.0.iter().position(|(own, _)| *own == name).map(|at| fields.0.remove(at).1);
        merged.push((name, own.map_or_else(|| Some(below.to_owned()), |own| over(own, below))?));
    }
    let all = fields
        .0
        .iter()
        .map(|(name, raw)| (name, *raw))
        .chain(merged.iter().map(|(name, raw)| (name, &**raw)));
    write_object(all)
}

/// An object's fields, as they came, unless a field's own name cannot be held: then of a mended copy, which goes into `copy`.
fn fields<'a>(text: &'a str, copy: &'a mut Option<String>) -> Option<Fields<'a>> {
    match serde_json::from_str(text) {
        Ok(fields) => Some(fields),
        Err(_) => serde_json::from_str(copy.insert(mended(text)?)).ok(),
    }
}

fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

fn lenient_bool<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    Ok(Value::deserialize(from)?.as_bool())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::Source;
    use crate::domain::ids::{BrandId, ProfileId};
    use crate::domain::profile::Profile;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    fn decoded(body: &str, sent_at: Option<&str>, shared: Option<&str>) -> Event {
        let body = raw(body);
        let envelope = Envelope {
            trace: None,
            brand: BrandId(1),
            received_ms: time::parse("2026-01-01T12:00:10Z").unwrap().timestamp_millis(),
            origin: Origin::Segment {
                kind: None,
                message_id: Some("given".into()),
                sent_at: sent_at.map(Into::into),
                place: 0,
                shared: shared.map(Into::into),
                source: Source::Secret,
            },
            body: &body,
        };
        let bytes = envelope.encode();
        Envelope::read(&bytes).unwrap().decode(&Rules::default()).unwrap()
    }

    #[test]
    fn what_a_message_lacks_is_named() {
        let cases = [
            (r#"{"type":"track","event":"E"}"#, "no_user_anon_id"),
            (r#"{"type":"track","userId":"","anonymousId":null,"event":"E"}"#, "no_user_anon_id"),
            (r#"{"type":"track","userId":"u"}"#, "no_event"),
            (r#"{"type":"group","userId":"u"}"#, "no_group_id"),
            (r#"{"type":"alias","userId":"u"}"#, "no_previous_id"),
            (r#"{"userId":"u"}"#, "no_type"),
            (r#"{"type":"purchase","userId":"u"}"#, "invalid_type"),
            (r#"{"type":"track","userId":{"id":1},"event":"E"}"#, "no_user_anon_id"),
            (r#"{"type":"page","userId":"u","timestamp":[2026]}"#, "invalid_timestamp"),
            (r#"{"type":"page","userId":"u","timestamp":"yesterday"}"#, "invalid_timestamp"),
            (r#"[1]"#, "invalid_event"),
            (r#""text""#, "invalid_event"),
        ];
        for (body, code) in cases {
            assert_eq!(check(&raw(body), None, 0).unwrap_err().code, code, "{body}");
        }
        let long = format!(r#"{{"type":"page","userId":"u","messageId":"{}"}}"#, "m".repeat(101));
        assert_eq!(check(&raw(&long), None, 0).unwrap_err().code, "invalid_message_id");
        let large = format!(r#"{{"type":"page","userId":"u","x":"{}"}}"#, "m".repeat(MAX_EVENT_BYTES));
        assert_eq!(check(&raw(&large), None, 0).unwrap_err().code, "event_too_large");
    }

    #[test]
    fn the_senders_clock_is_corrected_by_how_long_it_kept_the_event() {
        let body = r#"{"type":"track","userId":"u","event":"E","timestamp":"2020-01-01T00:00:00Z","sentAt":"2020-01-01T00:00:04Z"}"#;
        assert_eq!(time::format(decoded(body, None, None).timestamp), "2026-01-01T12:00:06.000Z");
        let without = r#"{"type":"track","userId":"u","event":"E","timestamp":"2020-01-01T00:00:00Z"}"#;
        assert_eq!(time::format(decoded(without, None, None).timestamp), "2020-01-01T00:00:00.000Z");
        assert_eq!(
            time::format(decoded(without, Some("2020-01-01T00:00:01Z"), None).timestamp),
            "2026-01-01T12:00:09.000Z"
        );
    }

    #[test]
    fn numbers_serve_as_ids_and_the_contact_of_a_customer_identifies() {
        let event = decoded(
            r#"{"type":"identify","userId":42,"traits":{"email":"A@Example.com","plan":"gold","age":null},
                "context":{"active":false,"traits":{"phone":"+49 170 1234567"}},"writeKey":"secret"}"#,
            None,
            None,
        );
        let values: Vec<_> = event.identifiers.iter().map(|i| (i.kind.as_str(), i.value.as_str())).collect();
        assert_eq!(values, [("user_id", "42"), ("email", "a@example.com"), ("phone", "+491701234567")]);
        assert_eq!(event.message_id, "secret:given");
        assert_eq!(event.traits.len(), 4);
        assert!(!event.active);
        assert!(!event.body.contains("secret"));
    }

    #[test]
    fn a_strange_field_costs_itself_alone() {
        let ids = |body: &str| -> Vec<String> {
            let event = decoded(body, None, None);
            event.identifiers.iter().map(|i| format!("{} {}", i.kind.as_str(), i.value)).collect()
        };
        for (body, wanted) in [
            (
                r#"{"type":"identify","userId":"u","traits":{"email":"a@example.com","phone":{"home":1}}}"#,
                vec!["user_id u", "email a@example.com"],
            ),
            (
                r#"{"type":"track","event":"E","anonymousId":"a","properties":{"cart_token":"c","checkout_token":[]}}"#,
                vec!["anonymous_id a", "cart_token c"],
            ),
            (
                r#"{"type":"identify","userId":"u","groupId":"acme","traits":{"email":"a@example.com"}}"#,
                vec!["user_id u", "email a@example.com"],
            ),
            (
                r#"{"type":"group","userId":"u","groupId":"acme","traits":{"email":"all@example.com"}}"#,
                vec!["user_id u"],
            ),
            (
                r#"{"type":"track","event":"E","userId":false,"anonymousId":"a","name":{},"groupId":[]}"#,
                vec!["anonymous_id a"],
            ),
            (r#"{"type":"page","userId":90000000123456789000001}"#, vec!["user_id 90000000123456789000001"]),
        ] {
            assert_eq!(ids(body), wanted, "{body}");
        }
    }

    #[test]
    fn half_a_pair_costs_no_event_and_nothing_beside_it() {
        let event = decoded(
            r#"{"type":"track","userId":"u","event":"Sale \ud83d","properties":{"n":1}}"#,
            None,
            None,
        );
        assert_eq!(event.name.as_deref(), Some("Sale \u{fffd}"));
        assert!(event.body.contains(r"Sale \ud83d"), "it is kept as it came");
        let named = r#"{"type":"page","userId":"u","\ud83d":1,"writeKey":"k"}"#;
        let event = decoded(named, None, Some(r#"{"context":{"ip":"1.2.3.4"},"\udc00":1}"#));
        assert!(event.body.contains("1.2.3.4") && !event.body.contains("writeKey"), "{}", event.body);
    }

    #[test]
    fn traits_of_an_identify_call_may_stand_in_its_context() {
        let event = decoded(
            r#"{"type":"identify","userId":"u","traits":{"plan":"gold"},
                "context":{"traits":{"email":"a@example.com","plan":"old","emailMarketingConsent":true}}}"#,
            None,
            None,
        );
        let plan = event.traits.iter().find(|update| update.name == "plan");
        assert_eq!(plan.map(|update| update.value.clone()), Some("gold".into()));
        assert_eq!(event.traits.len(), 3);
        let consent = &event.consents[0];
        assert_eq!((consent.state.as_str(), consent.address.as_deref()), (SUBSCRIBED, Some("a@example.com")));
        let page = r#"{"type":"page","userId":"u","context":{"traits":{"plan":"gold"}}}"#;
        assert!(decoded(page, None, None).traits.is_empty(), "only an identify call tells traits");
    }

    #[test]
    fn a_batchs_context_lies_under_the_messages_own() {
        let event = decoded(
            r#"{"type":"page","anonymousId":"a1","context":{"ip":"1.2.3.4"},"messageId":"m"}"#,
            None,
            Some(r#"{"context":{"ip":"0.0.0.0","library":{"name":"x"}},"integrations":{"All":true}}"#),
        );
        let body: Value = serde_json::from_str(&event.body).unwrap();
        assert_eq!(body["context"], serde_json::json!({"ip": "1.2.3.4", "library": {"name": "x"}}));
        assert_eq!(body["integrations"], serde_json::json!({"All": true}));
        assert_eq!(event.message_id, "secret:m");
    }

    #[test]
    fn what_json_allows_is_kept_as_it_came_also_when_a_key_is_taken_out() {
        let event = decoded(
            r#"{"type":"identify","userId":"u","writeKey":"k","traits":{"half":"\ud83d","huge":1e400,"fine":1},"n":12345678901234567890123}"#,
            None,
            Some(r#"{"context":{"cut":"\udc00"}}"#),
        );
        assert!(event.body.contains(r#""half":"\ud83d","huge":1e400"#), "{}", event.body);
        assert!(event.body.contains(r#""cut":"\udc00""#) && event.body.contains("12345678901234567890123"));
        assert!(!event.body.contains("writeKey"));
        let traits: Vec<_> = event.traits.iter().map(|t| (t.name.as_str(), t.value.to_string())).collect();
        assert_eq!(traits[2], ("fine", "1".to_owned()));
        assert_eq!(traits.len(), 3);
    }

    #[test]
    fn clocks_thousands_of_years_apart_say_nothing() {
        let body = r#"{"type":"page","userId":"u","timestamp":"0001-01-01T00:00:00","sentAt":"9999-12-31T23:59:59"}"#;
        assert_eq!(time::format(decoded(body, None, None).timestamp), "2026-01-01T12:00:10.000Z");
        let body = r#"{"type":"page","userId":"u","timestamp":"-262000-01-01T00:00:00"}"#;
        assert_eq!(check(&raw(body), None, 0).unwrap_err().code, "invalid_timestamp");
    }

    #[test]
    fn a_cart_token_is_the_bridge_to_the_order() {
        let event = decoded(
            r#"{"type":"track","event":"Product Added","anonymousId":"a1","properties":{"cart_token":"c1"}}"#,
            None,
            None,
        );
        assert!(event.identifiers.iter().any(|i| i.kind == IdentifierKind::CartToken && i.value == "c1"));
    }

    /// Calls of one sender: how long after the one before it was made (in milliseconds), whether it begins a new request, how late that
    /// request arrives the first time and, sent again as it was, the second (in seconds).
    type Calls = Vec<(i64, bool, i64, i64)>;

    /// What is in the queue of the calls: each twice.
    fn received(calls: &Calls, error_ms: i64) -> Vec<Vec<u8>> {
        let made_at = time::parse("2026-01-01T12:00:00Z").unwrap().timestamp_millis();
        let mut at = made_at;
        let made: Vec<i64> = calls
            .iter()
            .map(|(after, new_request, ..)| {
                // What two requests say of one millisecond nobody can tell apart.
                at += if *new_request { after + 1 } else { *after };
                at
            })
            .collect();
        let mut envelopes = Vec::new();
        let mut begin = 0;
        for number in 0..calls.len() {
            if calls.get(number + 1).is_some_and(|next| !next.1) {
                continue;
            }
            let request = begin..number + 1;
            begin = number + 1;
            let (_, _, first, second) = calls[number];
            // The SDK sends when the last of them is made, and keeps that time for further tries.
            let sent = made[number];
            for late in [first, second] {
                for (place, call) in request.clone().enumerate() {
                    // The ids sort the other way round.
                    let body = serde_json::json!({"type": "identify", "userId": "u", "messageId": format!("{}", 999 - call),
                        "timestamp": time::format(time::from_ms(made[call] + error_ms)), "traits": {"call": call}});
                    let body = serde_json::value::to_raw_value(&body).unwrap();
                    let envelope = Envelope {
                        trace: None,
                        brand: BrandId(1),
                        received_ms: sent + late * 1000,
                        origin: Origin::Segment {
                            kind: None,
                            message_id: None,
                            sent_at: Some(time::format(time::from_ms(sent + error_ms)).into()),
                            place: u32::try_from(place).unwrap(),
                            shared: None,
                            source: Source::Public,
                        },
                        body: &body,
                    };
                    envelopes.push(envelope.encode());
                }
            }
        }
        envelopes
    }

    proptest! {
        #[test]
        fn a_senders_last_word_holds_whatever_network_retries_and_batches_do(
            calls in prop::collection::vec((0_i64..400, any::<bool>(), 0_i64..180, 0_i64..180), 2..7),
            // A right clock, up to half an hour behind or five minutes ahead; or one that is wrong by whole quarters of an hour, and some.
            (error_ms, retried_s) in prop_oneof![
                (-30 * MINUTE_MS..5 * MINUTE_MS, 0_i64..1500),
                (1_i64..200, -4 * MINUTE_MS..4 * MINUTE_MS).prop_map(|(steps, more)| (steps * CLOCK_STEP_MS + more, 0)),
                (5_i64..200, -4 * MINUTE_MS..4 * MINUTE_MS).prop_map(|(steps, more)| (-steps * CLOCK_STEP_MS + more, 0)),
            ],
            arrival in prop::collection::vec(any::<u32>(), 12),
        ) {
            let calls: Calls = calls.into_iter().map(|(after, new, first, second)| (after, new, first, second + retried_s)).collect();
            let mut envelopes: Vec<(u32, Vec<u8>)> =
                arrival.iter().copied().cycle().zip(received(&calls, error_ms)).collect();
            envelopes.sort();
            let mut profile = Profile::new(ProfileId::first_at(1), BrandId(1));
            let mut known = std::collections::BTreeSet::new();
            for (_, bytes) in &envelopes {
                let event = Envelope::read(bytes).unwrap().decode(&Rules::default()).unwrap();
                if known.insert(event.message_id.clone()) {
                    profile.apply(&event);
                }
            }
            prop_assert_eq!(&profile.traits["call"].value, &serde_json::json!(calls.len() - 1));
        }
    }
}
