//! What speaks of a person: dead letters of both queues, and rows that the outbox could not bring to theirs.
//!
//! A letter that can be decoded names its people by identifiers; any letter may hold their address or number in some other field,
//! with a name about it, in other capitals, escaped, in Base64, or within a text that is JSON itself. All of that is looked through.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use uuid::Uuid;

use crate::context::Context;
use crate::domain::envelope::Envelope;
use crate::domain::event::PrivacyAsk;
use crate::domain::identity::{Identifier, IdentifierKind, Rules};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time;
use crate::ports::queue::{DeadLetter, DeadPlace, MAX_DEAD_PAGE, Queue, Scope};
use crate::services::automations::jobs::Job;
use crate::services::privacy::PrivacyError;

/// Rows of the outbox that are looked through at once.
const PAGE: usize = 200;
/// Days after which a dead letter is dropped, however long its brand keeps events.
const MAX_AGE_DAYS: u32 = 30;
/// The alphabets of Base64; padding is no part of a word.
const BASE64: [GeneralPurpose; 2] = [STANDARD_NO_PAD, URL_SAFE_NO_PAD];
/// The shortest word that is read as Base64: an address of eight letters.
const MIN_BASE64: usize = 11;
/// How deep texts are unpacked that hold JSON, which holds texts that hold JSON.
const MAX_UNPACKED: usize = 4;
/// By how many of its last digits a telephone number is known, however its country is written: fewer are too few to tell people
/// apart.
const DIGITS: usize = 8;

/// Somebody who was erased.
pub(super) struct Person<'a> {
    pub brand: BrandId,
    /// How the brand's identifiers are read.
    pub rules: &'a Rules,
    pub identifiers: &'a BTreeSet<Identifier>,
    /// The profiles that they had.
    pub profiles: &'a [ProfileId],
}

impl Person<'_> {
    /// Whether an item of the events queue is about them, or holds their address or number.
    fn is_in(&self, payload: &[u8]) -> bool {
        match Envelope::read(payload) {
            Ok(envelope) if envelope.brand != self.brand => false,
            Ok(envelope) => match envelope.decode(self.rules) {
                Ok(event) => {
                    let asked = match &event.ask {
                        Some(PrivacyAsk::Export(subject) | PrivacyAsk::Erase(subject)) => {
                            &subject.identifiers[..]
                        }
                        _ => &[],
                    };
                    let mut named = event.identifiers.iter().chain(asked);
                    named.any(|identifier| self.identifiers.contains(identifier))
                        || self.is_written_in(payload, false)
                }
                Err(_) => self.is_written_in(payload, true),
            },
            // It does not tell its brand, and nobody will ever be able to read it.
            Err(_) => self.is_written_in(payload, false),
        }
    }

    /// Whether an address or a number of theirs is written there; with `all`, whether any identifier is, as a text of its own.
    fn is_written_in(&self, payload: &[u8], all: bool) -> bool {
        let texts = texts(&String::from_utf8_lossy(payload));
        self.identifiers.iter().any(|identifier| match identifier.kind {
            IdentifierKind::Email => {
                let address = identifier.value.to_lowercase();
                texts.iter().any(|text| text.contains(&address))
            }
            IdentifierKind::Phone => texts.iter().any(|text| has_number(text, &identifier.value)),
            _ => {
                let value = identifier.value.to_lowercase();
                all && texts.iter().any(|text| text.trim() == value)
            }
        })
    }

    /// Whether a dead letter of the automations queue is about them: their signal, or a run that went with them.
    async fn is_meant_by(&self, context: &Context, letter: &DeadLetter) -> Result<bool, PrivacyError> {
        let stated =
            || letter.item.history.iter().any(|failure| self.is_written_in(failure.error.as_bytes(), false));
        let Ok(job) = Job::read(&letter.item.payload) else {
            return Ok(self.is_written_in(&letter.item.payload, false) || stated());
        };
        if job.brand() != self.brand {
            return Ok(false);
        }
        let gone = match &job {
            Job::Signal(signal) => self.profiles.contains(&signal.profile),
            Job::Run { brand, run, .. } => context.automations.run(*brand, *run).await?.is_none(),
            Job::Schedule { .. } | Job::Fill { .. } | Job::Trial { .. } => false,
        };
        Ok(gone || stated())
    }
}

/// Whom or what letters are about.
enum About<'a> {
    /// Somebody, by what the events queue holds.
    Person(&'a Person<'a>),
    /// The same somebody, by what the automations queue holds.
    Run(&'a Person<'a>),
    /// A brand's shop, by its domain in quotes.
    Shop(BrandId, String),
}

impl About<'_> {
    fn brand(&self) -> BrandId {
        match self {
            Self::Person(person) | Self::Run(person) => person.brand,
            Self::Shop(brand, _) => *brand,
        }
    }

    async fn covers(&self, context: &Context, letter: &DeadLetter) -> Result<bool, PrivacyError> {
        let payload = &letter.item.payload;
        match self {
            Self::Person(person) => Ok(person.is_in(payload)),
            Self::Run(person) => person.is_meant_by(context, letter).await,
            Self::Shop(brand, own) => Ok(Envelope::read(payload)
                .is_ok_and(|envelope| envelope.brand == *brand)
                && String::from_utf8_lossy(payload).to_lowercase().contains(own)),
        }
    }
}

/// Discards all that speaks of somebody. Answers how many letters and rows.
///
/// # Errors
/// The store's or a queue's own.
pub(super) async fn discard_about(context: &Context, person: &Person<'_>) -> Result<u64, PrivacyError> {
    let mut discarded = discard(context, &*context.queue, &About::Person(person)).await?;
    discarded += discard(context, &*context.automation_queue, &About::Run(person)).await?;
    let mut after = None;
    loop {
        let page = context.outbox.refused(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(discarded) };
        after = Some(last.id);
        let about: Vec<Uuid> =
            page.iter().filter(|row| person.is_in(&row.item.payload)).map(|row| row.id).collect();
        if !about.is_empty() {
            discarded += about.len() as u64;
            context.outbox.remove(&about).await?;
        }
    }
}

/// Drops dead letters of a brand, or of none, that are older than [`MAX_AGE_DAYS`], or than the brand keeps events.
///
/// # Errors
/// A queue's own.
pub(super) async fn drop_old(
    context: &Context,
    of: Option<BrandId>,
    retention_days: Option<u32>,
) -> Result<(), PrivacyError> {
    let days = retention_days.map_or(MAX_AGE_DAYS, |days| days.min(MAX_AGE_DAYS));
    let before = time::minus(context.world.now(), time::days(i64::from(days)));
    for (_, queue) in context.queues() {
        while queue.drop_dead(of, before.timestamp_millis()).await? >= MAX_DEAD_PAGE as u64 {}
    }
    Ok(())
}

/// Discards the dead letters of the events queue that a brand's shop sent. Answers how many.
///
/// # Errors
/// The queue's own.
pub(super) async fn discard_of_shop(
    context: &Context,
    brand: BrandId,
    shop: &str,
) -> Result<u64, PrivacyError> {
    let about = About::Shop(brand, format!("\"{}\"", shop.to_lowercase()));
    discard(context, &*context.queue, &about).await
}

async fn discard(context: &Context, queue: &dyn Queue, about: &About<'_>) -> Result<u64, PrivacyError> {
    let mut discarded = 0;
    for of in [Scope::Brand(about.brand()), Scope::Nobody] {
        discarded += discard_of(context, queue, about, of).await?;
    }
    Ok(discarded)
}

async fn discard_of(
    context: &Context,
    queue: &dyn Queue,
    about: &About<'_>,
    of: Scope,
) -> Result<u64, PrivacyError> {
    let mut after: Option<DeadPlace> = None;
    let mut discarded = 0;
    loop {
        let page = queue.dead(of, after.as_ref(), MAX_DEAD_PAGE).await?;
        let Some(last) = page.last() else { return Ok(discarded) };
        after = Some(last.place());
        let (mut ids, mut staged): (Vec<String>, Vec<Uuid>) = Default::default();
        for letter in &page {
            if about.covers(context, letter).await? {
                ids.push(letter.item.id.clone());
                staged.extend(letter.item.staged());
            }
        }
        if !ids.is_empty() {
            discarded += queue.discard_dead(&ids).await?;
            // Where a lost worker made it a dead letter, the outbox still has it.
            context.outbox.remove(&staged).await?;
        }
        if page.len() < MAX_DEAD_PAGE {
            return Ok(discarded);
        }
    }
}

/// All texts in a payload, in lower case and without escapes: of its fields, of their names, and of what is JSON within a text. What is no
/// JSON is one text.
fn texts(payload: &str) -> Vec<String> {
    fn gather(value: &Value, depth: usize, found: &mut Vec<String>) {
        match value {
            Value::String(text) => unpack(text, depth, found),
            Value::Number(number) => found.push(number.to_string()),
            Value::Array(values) => values.iter().for_each(|value| gather(value, depth, found)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    unpack(name, 0, found);
                    gather(value, depth, found);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
    fn unpack(text: &str, depth: usize, found: &mut Vec<String>) {
        let inner = (depth > 0).then(|| serde_json::from_str::<Value>(text)).and_then(Result::ok);
        match inner {
            Some(value @ (Value::Object(_) | Value::Array(_) | Value::String(_))) => {
                gather(&value, depth - 1, found);
            }
            _ => {
                // As it is, and as it stands in an address of a page.
                let plain = unescaped(text);
                // In capitals as they came: letters of Base64 differ by them.
                for inner in base64_words(&plain) {
                    match depth {
                        0 => found.push(inner.to_lowercase()),
                        _ => unpack(&inner, depth - 1, found),
                    }
                }
                if plain.contains('%') {
                    found.push(percent_decode_str(&plain).decode_utf8_lossy().to_lowercase());
                }
                found.push(plain.to_lowercase());
            }
        }
    }
    let mut found = Vec::new();
    unpack(payload, MAX_UNPACKED, &mut found);
    found
}

/// The texts that stand in a text in Base64.
fn base64_words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/-_".contains(c)));
    words
        .filter(|word| word.len() >= MIN_BASE64)
        .filter_map(|word| String::from_utf8(BASE64.iter().find_map(|of| of.decode(word).ok())?).ok())
}

/// A text with JSON's escapes undone, as far as they are some: of what could not be read as JSON.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.strip_prefix(['u', 'U']).and_then(|digits| digits.get(..4));
        let code = code.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        rest = match code {
            Some(letter) => {
                plain.push(letter);
                &after[5..]
            }
            None => after,
        };
    }
    plain.push_str(rest);
    plain
}

/// Whether a telephone number stands in a text, in whatever form: its last digits, with nothing but what people put between digits.
fn has_number(text: &str, number: &str) -> bool {
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    let Some(last) = digits.len().checked_sub(DIGITS).and_then(|from| digits.get(from..)) else {
        return !digits.is_empty() && text.contains(number);
    };
    let mut run = String::new();
    for letter in text.chars().chain(['\n']) {
        match letter {
            '0'..='9' => run.push(letter),
            ' ' | '-' | '.' | '/' | '(' | ')' | '+' | '\u{a0}' => {}
            _ => {
                if run.contains(last) {
                    return true;
                }
                run.clear();
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(payload: &str) -> bool {
        let rules = Rules::default();
        let identifiers: BTreeSet<Identifier> = [
            (IdentifierKind::Email, "erika@example.com"),
            (IdentifierKind::Phone, "+491701234567"),
            (IdentifierKind::UserId, "u7"),
        ]
        .into_iter()
        .map(|(kind, value)| Identifier { kind, value: value.to_owned() })
        .collect();
        let person = Person { brand: BrandId(1), rules: &rules, identifiers: &identifiers, profiles: &[] };
        person.is_written_in(payload.as_bytes(), true)
    }

    #[test]
    fn a_person_is_found_however_they_are_written() {
        for payload in [
            r#"{"to": "Erika <erika@example.com>"}"#,
            r#"{"to": " ERIKA@Example.COM "}"#,
            r#"{"to": "\u0065rika@example.com"}"#,
            r#"{"to": "erika\u0040example.com", broken"#,
            r#"{"shared": "{\"traits\":{\"email\":\"\\u0065rika@example.com\"}}"}"#,
            r#"{"erika@example.com": 1}"#,
            "mailto:erika@example.com?subject=x",
            r#"{"url": "https://shop.example/?email=Erika%40Example.com&x=100%"}"#,
            r#"{"erika%40example.com": 1}"#,
            // Basic credentials, and a tracker's payload: {"email":"Erika@example.com"}
            r#"{"authorization": "Basic ZXJpa2FAZXhhbXBsZS5jb206"}"#,
            r#"{"url": "https://t.example/?data=eyJlbWFpbCI6IkVyaWthQGV4YW1wbGUuY29tIn0%3D&v=1"}"#,
            "ZXJpa2FAZXhhbXBsZS5jb20=",
            r#"{"phone": "0170 / 123 45-67"}"#,
            r#"{"phone": "(0049) 170-1234567"}"#,
            r#"{"phone": 491701234567}"#,
            r#"{"userId": " U7 "}"#,
        ] {
            assert!(written(payload), "{payload}");
        }
    }

    #[test]
    fn others_are_left_alone() {
        for payload in [
            r#"{"to": "frieda@example.com"}"#,
            r#"{"phone": "0170 123 45 68"}"#,
            r#"{"userId": "u77", "text": "see u7 there"}"#,
            r#"{"a": "0170", "b": "1234567"}"#,
            "",
            r"\u00",
            "\\uéé",
        ] {
            assert!(!written(payload), "{payload}");
        }
    }
}
