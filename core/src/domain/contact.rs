//! Where a customer is written to, and whether they want to be.
//!
//! An address is written to because a trusted source stated it: the newest that one stated. Only where none did, the one that a public
//! key stated, as a newsletter's form does. Consent is about an address, not about whoever has it: what was said of one address says
//! nothing of another. What a trusted source says of consent names no address where it is about all of a customer's.

use super::customer360::StoredConsent;
use super::event::Channel;
use super::identity::{Identifier, IdentifierKind, Rules};
use super::profile::Profile;

/// Where a customer is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The e-mail address or telephone number, normalised.
    pub value: String,
    /// Whether a trusted source stated it.
    pub trusted: bool,
}

/// The address of that kind. `identifiers` are all of the profile's, `trusted` those that are its own by a trusted source's word.
pub fn address(
    kind: IdentifierKind,
    profile: &Profile,
    identifiers: &[Identifier],
    trusted: &[Identifier],
) -> Option<Address> {
    let held = profile.traits.get(kind.as_str());
    let stated = held.and_then(|held| Rules::default().identifier(kind, held.value.as_str()?));
    for (of, is_trusted) in [(trusted, true), (identifiers, false)] {
        // The trait is the newest that was said; one that a public key stated says nothing where trusted addresses are there.
        let newest = stated
            .as_ref()
            .filter(|stated| of.contains(stated))
            .filter(|_| !is_trusted || held.is_some_and(|held| held.source.is_trusted()));
        let first = || of.iter().filter(|identifier| identifier.kind == kind).min();
        if let Some(found) = newest.or_else(first) {
            return Some(Address { value: found.value.clone(), trusted: is_trusted });
        }
    }
    None
}

/// What holds of consent for an address: what a trusted source said last, or else what a public key did, of that very address.
pub fn holding<'c>(
    said: &'c [StoredConsent],
    channel: Channel,
    address: Option<&Address>,
) -> Option<&'c StoredConsent> {
    let about = |consent: &StoredConsent| match &consent.address {
        Some(of) => address.is_some_and(|address| address.value == *of),
        // A public key names the address that it gives consent for, and where one stated the address, a trusted source does, too; to take it
        // back nobody need.
        None => !consent.is_given() || (consent.source.is_trusted() && address.is_none_or(|at| at.trusted)),
    };
    said.iter().filter(|consent| consent.channel == channel.as_str() && about(consent)).max_by_key(
        |consent| (consent.source.is_trusted(), consent.at, consent.sequence, &consent.message_id),
    )
}

/// Whether marketing may be sent to an address.
pub fn allows(said: &[StoredConsent], channel: Channel, address: Option<&Address>) -> bool {
    holding(said, channel, address).is_some_and(StoredConsent::is_given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::event::Source;
    use crate::domain::ids::{BrandId, ProfileId};
    use crate::domain::profile::Trait;
    use crate::domain::time::from_ms;

    fn email(value: &str) -> Identifier {
        Identifier { kind: IdentifierKind::Email, value: value.to_owned() }
    }

    fn profile(email: Option<(&str, Source)>) -> Profile {
        let mut profile = Profile::new(ProfileId::first_at(1), BrandId(1));
        if let Some((value, source)) = email {
            let held = Trait { at_ms: 1, sequence: 0, message_id: "m".into(), value: value.into(), source };
            profile.traits.insert("email".into(), held);
        }
        profile
    }

    #[test]
    fn the_newest_trusted_address_is_written_to_and_a_public_one_only_where_there_is_none() {
        let (victim, other, thief) =
            (email("victim@x.example"), email("zoe@x.example"), email("0a@thief.example"));
        let all = [thief.clone(), victim.clone(), other.clone()];
        let of = |stated: Option<(&str, Source)>, trusted: &[Identifier]| {
            let found = address(IdentifierKind::Email, &profile(stated), &all, trusted)?;
            Some((found.value, found.trusted))
        };
        let both = [victim.clone(), other.clone()];
        assert_eq!(of(Some(("Zoe@X.example", Source::Shopify)), &both), Some((other.value.clone(), true)));
        assert_eq!(of(Some((&thief.value, Source::Public)), &both), Some((victim.value.clone(), true)));
        // An address that went to somebody else is not written to, whatever the trait says.
        assert_eq!(
            of(Some((&other.value, Source::Shopify)), std::slice::from_ref(&victim)),
            Some((victim.value.clone(), true))
        );
        assert_eq!(of(Some((&other.value, Source::Public)), &[]), Some((other.value, false)));
        assert_eq!(of(None, &[]), Some((thief.value, false)));
        assert_eq!(address(IdentifierKind::Phone, &profile(None), &all, &[]), None);
    }

    #[test]
    fn consent_is_of_an_address_and_a_trusted_word_outweighs_a_public_one() {
        let said = |state: &str, address: Option<&str>, source, at| StoredConsent {
            channel: "email".into(),
            state: state.into(),
            level: None,
            at: from_ms(at),
            sequence: 0,
            message_id: at.to_string(),
            address: address.map(str::to_owned),
            source,
        };
        let of = |said: &[StoredConsent], value: &str| {
            allows(said, Channel::Email, Some(&Address { value: value.into(), trusted: false }))
        };
        let form = said("subscribed", Some("a@x.example"), Source::Public, 5);
        let only = std::slice::from_ref(&form);
        assert!(of(only, "a@x.example") && !of(only, "b@x.example"));
        // Without an address a public key gives nothing, and takes back.
        assert!(!of(&[said("subscribed", None, Source::Public, 9)], "a@x.example"));
        assert!(!of(&[form.clone(), said("unsubscribed", None, Source::Public, 9)], "a@x.example"));
        let trusted = said("unsubscribed", Some("a@x.example"), Source::Shopify, 1);
        assert!(!of(&[form.clone(), trusted.clone()], "a@x.example"), "an older trusted word stands");
        // Who unsubscribes by a link does so for all addresses, until a trusted source says otherwise later.
        let link = said("unsubscribed", None, Source::Secret, 7);
        let shop = said("subscribed", Some("a@x.example"), Source::Shopify, 6);
        assert!(!of(&[shop.clone(), link.clone()], "a@x.example"));
        assert!(of(&[said("subscribed", Some("a@x.example"), Source::Shopify, 8), link], "a@x.example"));
        assert!(!allows(&[form], Channel::Sms, None));
        // What a trusted source says without an address is not about one that a public key stated.
        let all = [said("subscribed", None, Source::Shopify, 5)];
        assert!(!of(&all, "thief@x.example"));
        let trusted = Address { value: "a@x.example".into(), trusted: true };
        assert!(allows(&all, Channel::Email, Some(&trusted)));
    }
}
