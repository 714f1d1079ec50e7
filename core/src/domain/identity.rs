//! Who a customer is: identifiers, their normal forms, and the grouping of events that share one.
//!
//! The rule is flat: events that share an identifier, directly or through others, are one customer. Grouping by that
//! relation does not depend on the order in which events arrive.

//!
//! [`Rules`] say what may identify at all; [`prune`] keeps profiles within [`Limits`] by leaving out the least trusted links.
//! Where a limit holds, what came first stays: there, and only there, the grouping depends on the order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::str::FromStr;

use email_address::EmailAddress;
use phonenumber::country;
use serde::{Deserialize, Serialize};

use super::gid;
use super::ids::ProfileId;
use super::settings::{BrandSettings, Limits};
use super::telephone;

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
    /// A brand's rules.
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

/// How many identifiers a profile has of each kind, in the order of [`IdentifierKind::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts([u32; KINDS]);

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, kind: IdentifierKind) {
        self.add_of(kind, 1);
    }

    /// Counts so many more.
    pub fn add_of(&mut self, kind: IdentifierKind, more: u32) {
        self.0[kind as usize] += more;
    }

    /// Counts one less.
    pub fn remove(&mut self, kind: IdentifierKind) {
        self.0[kind as usize] = self.0[kind as usize].saturating_sub(1);
    }

    /// Counts all of `other`'s, too.
    pub fn add_all(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, more)| *own += more);
    }

    /// Takes `other`'s away.
    pub fn take(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(own, less)| *own = own.saturating_sub(less));
    }

    /// Of that kind.
    pub fn of(&self, kind: IdentifierKind) -> u32 {
        self.0[kind as usize]
    }

    /// Of all kinds.
    pub fn total(&self) -> u32 {
        self.0.iter().sum()
    }
}

impl<'i> FromIterator<&'i Identifier> for Counts {
    fn from_iter<I: IntoIterator<Item = &'i Identifier>>(identifiers: I) -> Self {
        let mut counts = Self::default();
        identifiers.into_iter().for_each(|identifier| counts.add(identifier.kind));
        counts
    }
}

/// What limits count of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Identifiers.
    pub counts: Counts,
    /// Profiles that it has taken in.
    pub merges: u32,
}

/// What a profile's place in the web of identifiers comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All identifiers, and all profiles that it has taken in.
    pub all: Tally,
    /// Of them, the identifiers that are its own by a trusted source's word, and the profiles that a trusted source knew, too. Limits
    /// of what a trusted source says count these alone: whatever public keys add is in nobody's way but their own.
    pub trusted: Tally,
    /// The first limit that refused it a link, for people.
    pub limited: Option<String>,
    /// Whether there are relations that speak of it: a merge must look at them.
    pub related: bool,
    /// Whether a trusted source knows who it is: it named identifiers of the profile in an event about a person.
    pub known: bool,
}

impl Standing {
    /// Counts one identifier more.
    pub fn add(&mut self, kind: IdentifierKind, trusted: bool) {
        self.all.counts.add(kind);
        if trusted {
            self.trusted.counts.add(kind);
        }
    }

    /// Becomes what the two are as one; `merges` where both are profiles.
    pub fn take_in(&mut self, other: Self, merges: bool) {
        self.all.take_in(&other.all, merges);
        self.trusted.take_in(&other.trusted, merges && self.known && other.known);
        self.limited = self.limited.take().or(other.limited);
        self.related |= other.related;
        self.known |= other.known;
    }
}

impl Tally {
    fn take_in(&mut self, other: &Self, merges: bool) {
        self.counts.add_all(&other.counts);
        self.merges += other.merges + u32::from(merges);
    }
}

/// Which limit is in the way of making one of `parts`; `None` when none is. A part that brings nothing of a kind does not
/// pass that kind's limit, so a profile that is beyond one still takes what it does not forbid. A part is a profile, with its
/// tally, or (`false`) what is nobody's yet.
pub fn over_limit(parts: impl Iterator<Item = (bool, Tally)>, limits: &Limits) -> Option<String> {
    let (mut whole, mut giving, mut profiles, mut with_any) = (Tally::default(), [0; KINDS], 0, 0);
    for (exists, part) in parts {
        whole.take_in(&part, false);
        giving.iter_mut().zip(part.counts.0).for_each(|(giving, count)| *giving += u32::from(count > 0));
        profiles += u32::from(exists);
        with_any += u32::from(part.counts.total() > 0);
    }
    for kind in IdentifierKind::ALL {
        let most = limits.of(kind);
        // Several of a kind at once count as several parts: a part of new identifiers is not within a limit by itself.
        if giving[kind as usize] > 1 && whole.counts.of(kind) > most {
            return Some(format!("more than {most} identifiers of the kind {}", kind.as_str()));
        }
    }
    if with_any > 1 && whole.counts.total() > limits.identifiers {
        return Some(format!("more than {} identifiers", limits.identifiers));
    }
    let merges = whole.merges + profiles.saturating_sub(1);
    (profiles > 1 && merges > limits.merges).then(|| format!("more than {} merges", limits.merges))
}

/// What [`prune`] decided.
#[derive(Debug, Default)]
pub struct Pruned {
    /// For each event, the identifiers that it keeps, as indices.
    pub of_event: Vec<Vec<usize>>,
    /// Profiles that were refused a link by a limit, with the limit.
    pub limited: BTreeMap<ProfileId, String>,
    /// Pairs of profiles, the smaller first, that an event would have linked, with the identifier that would have, and why not.
    pub refused: BTreeMap<(ProfileId, ProfileId), (usize, Refusal)>,
}

/// Why a link was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// They were split.
    Split,
    /// Only a public key told of it.
    Untrusted,
    /// What they would have become is over this limit.
    Limit(String),
}

impl Refusal {
    /// In words, for a link by an identifier of that kind.
    pub fn reason(&self, kind: IdentifierKind) -> String {
        let kind = kind.as_str();
        match self {
            Self::Split => format!("a shared {kind}: they were split"),
            Self::Untrusted => format!(
                "a shared {kind}: a public key named both; an event that Shopify signs or a secret key sends, and that names \
                 both, would make them one"
            ),
            Self::Limit(limit) => format!("a shared {kind} would have made {limit}"),
        }
    }
}

/// What is known of an identifier when links are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What sort it is.
    pub kind: IdentifierKind,
    /// Whose it is, if anybody's.
    pub owner: Option<ProfileId>,
    /// Whether that is so by a trusted source's word.
    pub trusted: bool,
}

/// The sets that events make whose links are beyond doubt, and what trusted sources hold already.
struct Firm {
    sets: DisjointSets,
    /// The place of each known profile behind those of the identifiers.
    places: BTreeMap<ProfileId, usize>,
}

impl Firm {
    fn of<'e>(
        firm_events: impl Iterator<Item = &'e [usize]>,
        identifiers: &[Held],
        known: impl Fn(ProfileId) -> bool,
    ) -> Self {
        let owners: BTreeSet<ProfileId> = identifiers.iter().filter_map(|held| held.owner).collect();
        let known = owners.into_iter().filter(|owner| known(*owner)).enumerate();
        let places: BTreeMap<ProfileId, usize> =
            known.map(|(at, owner)| (owner, identifiers.len() + at)).collect();
        let mut sets = DisjointSets::new(identifiers.len() + places.len());
        for (place, held) in identifiers.iter().enumerate().filter(|(_, held)| held.trusted) {
            if let Some(profile) = held.owner.and_then(|owner| places.get(&owner)) {
                sets.join(place, *profile);
            }
        }
        for event in firm_events {
            for pair in event.windows(2) {
                sets.join(pair[0], pair[1]);
            }
        }
        Self { sets, places }
    }
}

/// How many people trusted sources know among those whom a group would make one customer. More than one means that only a public
/// key's word holds the group together.
///
/// `firm_events` lists the identifiers of each event that [`links_firmly`](super::event::Event::links_firmly), as indices.
pub fn people<'e>(
    firm_events: impl Iterator<Item = &'e [usize]> + Clone,
    identifiers: &[Held],
    known: impl Fn(ProfileId) -> bool,
) -> usize {
    let mut firm = Firm::of(firm_events.clone(), identifiers, known);
    let people = firm_events.filter_map(|event| event.first().copied()).chain(firm.places.values().copied());
    people.map(|place| firm.sets.root(place)).collect::<BTreeSet<_>>().len()
}

/// Identifiers that a trusted source says are somebody else's than whom a public key gave them to: they go to whom it says.
pub fn disowned<'e>(
    firm_events: impl Iterator<Item = &'e [usize]> + Clone,
    identifiers: &[Held],
    known: impl Fn(ProfileId) -> bool,
) -> BTreeSet<usize> {
    let mut firm = Firm::of(firm_events.clone(), identifiers, known);
    let mut taken = BTreeSet::new();
    // Somebody whom nobody trusted knows yet is whoever is told of first.
    let mut becomes: BTreeMap<ProfileId, usize> = BTreeMap::new();
    for &place in firm_events.flatten() {
        let held = &identifiers[place];
        let Some(owner) = held.owner.filter(|_| !held.trusted) else { continue };
        let person = firm.sets.root(place);
        let whose = match firm.places.get(&owner) {
            Some(profile) => firm.sets.root(*profile),
            None => *becomes.entry(owner).or_insert(person),
        };
        if whose != person {
            taken.insert(place);
        }
    }
    taken
}

/// What an event that is pruned may do.
#[derive(Clone, Copy, Debug)]
pub struct Linking<'a> {
    /// Its identifiers, sorted by trust, as indices.
    pub identifiers: &'a [usize],
    /// Whether its links are beyond doubt.
    pub firm: bool,
    /// The limits of its brand.
    pub limits: &'a Limits,
}

/// Leaves out of each event the identifiers whose link would pass a limit, join what was split, or make two people one whom
/// trusted sources know, on a public key's word: the least trusted goes first, so the event stays with its most trusted identifier.
/// (Segment calls that demoting.) Events whose links are beyond doubt come first, whatever their place.
///
/// `standing` speaks of each owner; `apart` holds pairs that were split, the smaller id first.
pub fn prune(
    events: &[Linking<'_>],
    identifiers: &[Held],
    standing: &HashMap<ProfileId, Standing>,
    apart: &BTreeSet<(ProfileId, ProfileId)>,
) -> Pruned {
    // Every identifier is a set of its own to begin with; those of one owner are one, with that owner's standing.
    let mut sets = DisjointSets::new(identifiers.len());
    let mut first_of_owner: BTreeMap<ProfileId, usize> = BTreeMap::new();
    for (place, held) in identifiers.iter().enumerate() {
        if let Some(owner) = held.owner {
            let first = *first_of_owner.entry(owner).or_insert(place);
            sets.join(first, place);
        }
    }
    let mut whole: HashMap<usize, (Vec<ProfileId>, Standing)> = HashMap::new();
    for (place, held) in identifiers.iter().enumerate() {
        let root = sets.root(place);
        whole.entry(root).or_insert_with(|| match held.owner {
            Some(owner) => (vec![owner], standing.get(&owner).cloned().unwrap_or_default()),
            None => {
                let mut new = Standing::default();
                new.add(held.kind, false);
                (vec![], new)
            }
        });
    }
    // What an event beyond doubt keeps is trusted from then on.
    let mut trusted: Vec<bool> =
        identifiers.iter().map(|held| held.owner.is_some() && held.trusted).collect();
    let mut pruned = Pruned { of_event: vec![Vec::new(); events.len()], ..Pruned::default() };
    let firm_first = events.iter().enumerate().filter(|(_, event)| event.firm);
    for (at, event) in firm_first.chain(events.iter().enumerate().filter(|(_, event)| !event.firm)) {
        let mut kept: Vec<usize> = Vec::with_capacity(event.identifiers.len());
        for &place in event.identifiers {
            let theirs = sets.root(place);
            let ours = kept.first().map_or(theirs, |first| sets.root(*first));
            let raises = event.firm && !trusted[place];
            if ours == theirs {
                if raises && let Some((_, standing)) = whole.get_mut(&ours) {
                    standing.trusted.counts.add(identifiers[place].kind);
                    trusted[place] = true;
                }
                kept.push(place);
                continue;
            }
            let ((our_profiles, own), (their_profiles, other)) = (&whole[&ours], &whole[&theirs]);
            let mut other = other.clone();
            if raises {
                other.trusted.counts.add(identifiers[place].kind);
            }
            let split = our_profiles
                .iter()
                .flat_map(|a| their_profiles.iter().map(move |b| (*a.min(b), *a.max(b))))
                .find(|pair| apart.contains(pair));
            let doubtful = !event.firm && own.known && other.known;
            let exist = [!our_profiles.is_empty(), !their_profiles.is_empty()];
            let refusal = if doubtful {
                Some(Refusal::Untrusted)
            } else {
                let counted = [own, &other].map(|part| if event.firm { part.trusted } else { part.all });
                let limit = over_limit(exist.into_iter().zip(counted), event.limits).map(Refusal::Limit);
                limit.or(split.map(|_| Refusal::Split))
            };
            let Some(refusal) = refusal else {
                let mut joined = own.clone();
                joined.take_in(other, exist == [true, true]);
                let profiles = [our_profiles.as_slice(), their_profiles].concat();
                sets.join(ours, theirs);
                whole.insert(sets.root(ours), (profiles, joined));
                trusted[place] |= raises;
                kept.push(place);
                continue;
            };
            if let Refusal::Limit(limit) = &refusal {
                for profile in our_profiles.iter().chain(their_profiles) {
                    pruned.limited.entry(*profile).or_insert_with(|| limit.clone());
                }
            }
            if let (Some(a), Some(b)) = (our_profiles.iter().min(), their_profiles.iter().min()) {
                pruned.refused.entry((*a.min(b), *a.max(b))).or_insert((place, refusal));
            }
        }
        if let Some(first) = kept.first().filter(|_| event.firm) {
            let root = sets.root(*first);
            if let Some((_, standing)) = whole.get_mut(&root) {
                standing.known = true;
            }
        }
        pruned.of_event[at] = kept;
    }
    pruned
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
            (IdentifierKind::Email, "mi\u{212a}e@x.example", Some("mi\u{212a}e@x.example")),
            (IdentifierKind::Email, "Ada@B\u{dc}CHER.example", Some("ada@xn--bcher-kva.example")),
            (IdentifierKind::Email, "ada@xn--bcher-kva.example", Some("ada@xn--bcher-kva.example")),
            (IdentifierKind::Email, "\u{130}stanbul@x.example", Some("\u{130}stanbul@x.example")),
            (IdentifierKind::Email, "ada@shop.example\u{200b}", Some("ada@shop.example")),
            (IdentifierKind::Email, "not an address", None),
            (IdentifierKind::CartToken, "hWN1aB?key=k7p2", Some("hWN1aB")),
            (IdentifierKind::CartToken, "gid://shopify/Cart/hWN1aB?key=k7p2", Some("hWN1aB")),
            (IdentifierKind::CartToken, "?key=k7p2", None),
            (IdentifierKind::CheckoutToken, "abc", Some("abc")),
            (IdentifierKind::ShopifyCustomerId, "gid://shopify/Customer/7", Some("7")),
            (IdentifierKind::ShopifyCustomerId, "7", Some("7")),
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
            "not_authenticated",
            "\"undefined\"",
            "'guest'",
            "distinct_id",
            "{{ customer.id }}",
            "${user.id}",
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

    #[test]
    fn a_public_word_makes_no_two_people_one_and_a_trusted_one_takes_back_what_it_gave() {
        // The first owns 0 (trusted) and 1 (by a public key's word), the second 2 (trusted), somebody unknown 4 and 5; 3 is free.
        let owners = [ProfileId::new(1), ProfileId::new(2), ProfileId::new(3)];
        let of =
            |kind, owner: Option<usize>, trusted| Held { kind, owner: owner.map(|at| owners[at]), trusted };
        let held = [
            of(IdentifierKind::Email, Some(0), true),
            of(IdentifierKind::AnonymousId, Some(0), false),
            of(IdentifierKind::Email, Some(1), true),
            of(IdentifierKind::Phone, None, false),
            of(IdentifierKind::UserId, Some(2), false),
            of(IdentifierKind::AnonymousId, Some(2), false),
        ];
        let known = |id: ProfileId| owners[..2].contains(&id);
        let people_of = |firm: &[Vec<usize>]| people(firm.iter().map(Vec::as_slice), &held, known);
        let taken = |firm: &[Vec<usize>]| disowned(firm.iter().map(Vec::as_slice), &held, known);
        // Nobody trusted links the two: they are two people. An event that does makes them one.
        assert_eq!((people_of(&[]), people_of(&[vec![0, 3]]), people_of(&[vec![0, 2]])), (2, 2, 1));
        // Somebody new.
        assert_eq!(people_of(&[vec![3]]), 3);
        // What the first has by a public word goes to the second, if a trusted source says so; not if it says it of both.
        assert_eq!(taken(&[vec![1, 2]]), BTreeSet::from([1]));
        assert_eq!((taken(&[vec![0, 1]]), taken(&[vec![0, 1], vec![1, 2]])), <_>::default());
        // Whom nobody trusted knew is one of the two people that are told of now, not both.
        assert_eq!((taken(&[vec![3, 4]]).len(), taken(&[vec![3, 4], vec![5]])), (0, BTreeSet::from([5])));
        let limits = Limits::default();
        let known = Standing { known: true, ..Standing::default() };
        let standing: HashMap<ProfileId, Standing> =
            owners[..2].iter().map(|id| (*id, known.clone())).collect();
        let pruned = |identifiers: &[usize], firm| {
            prune(&[Linking { identifiers, firm, limits: &limits }], &held, &standing, &BTreeSet::new())
        };
        let public = pruned(&[0, 2, 3], false);
        assert_eq!(public.of_event, [vec![0, 3]], "it stays with its most trusted identifier");
        assert_eq!(public.refused.len(), 1);
        assert!(pruned(&[0, 2, 3], true).refused.is_empty());
    }
}
