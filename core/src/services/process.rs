//! Processing a batch of events: who they are about, what they change, in one transaction.
//!
//! The steps, each one statement whatever the batch's size:
//! 1. leave out events that took effect before;
//! 2. look up who owns the identifiers, and group the events into customers;
//! 3. claim identifiers that nobody owns; where another worker was faster, look again;
//! 4. where profiles are to be merged, take their merge lock ([`crate::services::merge`]), and let the store check its
//!    fencing token;
//! 5. lock the profiles, sorted; if one was merged away meanwhile, start again;
//! 6. add the events, apply them to the profiles, merge the profiles that they link, write orders and what else they say; commit.
//!
//! Step 1 and the unique key of step 6 make the effect happen once, whatever the queue delivers.
//!
//! Limits, splits, erased customers and links between two people that only a public key tells of are rare, so a batch is first run as if there were none. Where a check finds one, the
//! batch is run again with care: after step 2 it asks where the profiles stand, and leaves out the links that must not be.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::domain::automation::interests::Interests;
use crate::domain::event::{Event, PrivacyAsk, ShopSubject, Source};
use crate::domain::identity::{self, Group, Held, Linking, Standing, Tally};
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::order::OrderRecord;
use crate::domain::profile::Profile;
use crate::domain::settings::{BrandSettings, Limits, SHOP_REDACTION_HOURS};
use crate::domain::time::{self, Timestamp, from_ms};
use crate::domain::webhook::{self, Seen};
use crate::failpoint;
use crate::ports::clock::Clock;
use crate::ports::locks::Locks;
use crate::ports::store::{
    BodyRow, BrandIdentifier, BrandOrder, Claim, ConsentRow, EventRow, KnownEvents, MergeRow, Move, OrderKey,
    PrivacyRow, ProductRow, Relation, RelationKind, Store, StoreError, StoreTx,
};
use crate::services::automations::jobs;
use crate::services::merge::{self, Grant, Taking};

/// How often a batch is run that loses races, before it goes back to the queue.
const MAX_RUNS: u32 = 8;
/// Runs after which a merge goes on without the lock that somebody else holds.
const RUNS_UNDER_LOCK: u32 = 4;
/// The longest wait before a batch that lost a race is run again; drawn anew each time, and longer with each run.
const RERUN_WAIT: Duration = Duration::from_millis(20);
/// How often a transaction looks again for identifiers that others were faster to claim.
const MAX_LOOKS: u32 = 4;

/// What the brands that a batch speaks of have set. A brand that is not in it has the usual settings, and listens to nothing.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Their settings.
    pub settings: HashMap<BrandId, Arc<BrandSettings>>,
    /// What their segments and automations listen to.
    pub interests: HashMap<BrandId, Arc<Interests>>,
}

impl Book {
    /// A brand's limits.
    pub fn limits(&self, brand: BrandId) -> &Limits {
        static USUAL: LazyLock<Limits> = LazyLock::new(Limits::default);
        self.settings.get(&brand).map_or(&USUAL, |settings| &settings.limits)
    }
}

/// What a batch did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processed {
    /// Events that took effect.
    pub effective: usize,
    /// Events that had taken effect before.
    pub duplicates: usize,
}

/// Why a run came to nothing.
enum Lost {
    /// Run it again, with care.
    Careful,
    /// The store's own word.
    Store(StoreError),
}

impl From<StoreError> for Lost {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Processes `events` in one transaction.
///
/// # Errors
/// [`StoreError::Conflict`] when it lost too many races; else the store's own. Nothing has taken effect then.
pub async fn process(
    store: &dyn Store,
    locks: &dyn Locks,
    clock: &Arc<dyn Clock>,
    book: &Book,
    events: &[Event],
) -> Result<Processed, StoreError> {
    let mut try_ = Try { run: 1, seed: None, careful: false };
    loop {
        let lost = match once(store, locks, clock, book, events, try_).await {
            Ok(processed) => return Ok(processed),
            Err(Lost::Careful) => {
                try_.careful = true;
                continue;
            }
            Err(Lost::Store(lost @ (StoreError::Conflict(_) | StoreError::Fenced(_))))
                if try_.run < MAX_RUNS =>
            {
                lost
            }
            Err(Lost::Store(error)) => return Err(error),
        };
        metrics::counter!("tributary_process_conflicts_total").increment(1);
        tracing::debug!(try_.run, %lost, "run again");
        if matches!(lost, StoreError::Fenced(_)) {
            // The tokens' counter ran backwards: a restart from an old copy, or a failover.
            try_.seed = Some(store.last_fence().await?);
        }
        tokio::time::sleep(RERUN_WAIT.mul_f64(rand::random::<f64>() * f64::from(try_.run))).await;
        try_.run += 1;
    }
}

/// How a run is done.
#[derive(Clone, Copy)]
struct Try {
    run: u32,
    /// The highest fencing token that was used, where the locks' counter is known to be behind.
    seed: Option<i64>,
    /// Whether limits, splits and erased customers are looked at before anything is claimed.
    careful: bool,
}

/// One run.
async fn once(
    store: &dyn Store,
    locks: &dyn Locks,
    clock: &Arc<dyn Clock>,
    book: &Book,
    events: &[Event],
    try_: Try,
) -> Result<Processed, Lost> {
    let mut tx = store.begin().await?;
    let known = tx.known_events(events).await?;
    let mut fresh = first_of_each(events, &known);
    leave_out_replays(&mut *tx, clock, &mut fresh).await?;
    if fresh.is_empty() {
        return Ok(Processed { effective: 0, duplicates: events.len() });
    }
    if try_.careful {
        forget_erased(&mut *tx, &mut fresh).await?;
    }
    let mut cast = Cast::of(&fresh);
    let groups = cast.settle(&mut *tx, clock, book, &fresh, try_.careful).await?;
    let merging = merging(&groups, &cast, &fresh);
    let now = from_ms(clock.now_ms());
    let batch = Settled { count: events.len(), fresh, cast, groups, now, try_ };
    if merging.is_empty() {
        return finish(tx, batch, book, &[], None).await;
    }
    let ids: Vec<ProfileId> = merging.iter().map(|(_, id)| *id).collect();
    if try_.run > RUNS_UNDER_LOCK {
        // Whoever holds the lock may be dead, or slow. It only saves work: the store decides.
        return finish(tx, batch, book, &ids, Some(Grant::none())).await;
    }
    // One try: a transaction must not wait for a lock whose holder may wait for this transaction.
    let names = merging.iter().map(|(brand, id)| merge::lock_name(*brand, *id)).collect();
    let taking = Taking { seed: try_.seed, inside_transaction: true, ..Taking::default() };
    merge::with_merge_lock(locks, store, names, taking, |grant| async move {
        match finish(tx, batch, book, &ids, Some(grant)).await {
            Ok(done) => Ok(Ok(done)),
            Err(Lost::Careful) => Ok(Err(Lost::Careful)),
            Err(Lost::Store(error)) => Err(error),
        }
    })
    .await?
}

/// A batch whose customers are known.
struct Settled<'e> {
    /// How many events there were.
    count: usize,
    /// Those that take effect.
    fresh: Vec<Cow<'e, Event>>,
    cast: Cast,
    groups: Vec<Group>,
    now: Timestamp,
    try_: Try,
}

/// The rest of the transaction: the profiles `merging` are merged under `grant`.
async fn finish(
    mut tx: Box<dyn StoreTx>,
    batch: Settled<'_>,
    book: &Book,
    merging: &[ProfileId],
    grant: Option<Grant>,
) -> Result<Processed, Lost> {
    let Settled { count, fresh, cast, groups, now, try_ } = batch;
    let mut profiles = lock(&mut *tx, &groups, &cast, try_.run).await?;
    stands(&groups, &cast, &fresh, &profiles, book, try_.careful)?;
    if let Some(grant) = &grant {
        tx.fence(merging, grant.fence).await?;
    }
    let raised = cast.raised(&groups);
    // By what the store says: another transaction may have raised them since they were looked up.
    let trusted: BTreeSet<usize> = match raised.is_empty() {
        true => BTreeSet::new(),
        false => tx.raise(&raised).await?.iter().map(|identifier| cast.place(identifier)).collect(),
    };
    for (place, from) in &cast.taken {
        if let Some(profile) = profiles.get_mut(from) {
            profile.standing.all.counts.remove(cast.identifiers[*place].1.kind);
        }
    }
    let homes = homes(&groups, fresh.len());
    let rows: Vec<EventRow<'_>> =
        fresh.iter().zip(&homes).map(|(event, home)| EventRow { event, profile: *home }).collect();
    let added = tx.add_events(&rows).await?;
    let effective: Vec<EventRow<'_>> = rows
        .into_iter()
        .filter(|row| added.contains(&(row.event.brand, row.event.message_id.clone())))
        .collect();
    let Merged { moves, records, related } = merge(&groups, &cast, &trusted, &fresh, &mut profiles, now);
    for EventRow { event, profile } in &effective {
        if let Some(profile) = profile.and_then(|id| profiles.get_mut(&id)) {
            profile.apply(event);
        }
    }
    let relations = flag(&cast, &mut profiles, now);
    if !profiles.is_empty() {
        tx.save_profiles(&profiles.into_values().collect::<Vec<_>>()).await?;
    }
    if !records.is_empty() {
        tx.record_merges(&records).await?;
    }
    if !moves.is_empty() {
        tx.move_owned(&moves, related).await?;
    }
    if !relations.is_empty() {
        tx.relate(&relations).await?;
    }
    let mut changed = BTreeSet::new();
    save_orders(&mut *tx, &effective, &mut changed).await?;
    save_the_rest(&mut *tx, book, &effective, now).await?;
    changed.extend(records.iter().map(|record| (record.brand, record.moved.into)));
    changed.extend(cast.taken.iter().map(|(place, from)| (cast.identifiers[*place].0, *from)));
    let signals = jobs::signals(book, &effective, &changed);
    if !signals.is_empty() {
        tx.stage(&signals, now.timestamp_millis()).await?;
    }
    failpoint::reached("events_added_before_commit");
    if let Some(grant) = &grant {
        failpoint::reached("merge_checked_before_commit");
        if !grant.is_valid() {
            return Err(StoreError::Conflict("the merge's lock ran out before the commit".into()).into());
        }
    }
    tx.commit().await?;
    Ok(Processed { effective: effective.len(), duplicates: count - effective.len() })
}

/// The events that are not known, the first of each message id, sorted by it.
fn first_of_each<'e>(events: &'e [Event], known: &KnownEvents) -> Vec<Cow<'e, Event>> {
    let mut fresh: Vec<&Event> =
        events.iter().filter(|e| !known.contains_key(&(e.brand, e.message_id.clone()))).collect();
    fresh.sort_by(|a, b| (a.brand, &a.message_id).cmp(&(b.brand, &b.message_id)));
    fresh.dedup_by(|later, first| (later.brand, &later.message_id) == (first.brand, &first.message_id));
    fresh.into_iter().map(Cow::Borrowed).collect()
}

/// Leaves out webhooks whose body has taken effect before, under whatever headers it comes now, and notes the others' bodies.
async fn leave_out_replays(
    tx: &mut dyn StoreTx,
    clock: &Arc<dyn Clock>,
    fresh: &mut Vec<Cow<'_, Event>>,
) -> Result<(), StoreError> {
    let replayed: HashSet<usize> = {
        let mut claims: Vec<(usize, BodyRow<'_>)> =
            fresh.iter().enumerate().filter_map(|(at, event)| Some((at, body_row(event)?))).collect();
        if claims.is_empty() {
            return Ok(());
        }
        // As they came in: what was there first is the one that takes effect.
        claims.sort_by_key(|(at, _)| (fresh[*at].received_at, *at));
        let rows: Vec<BodyRow<'_>> = claims.iter().map(|(_, row)| row.clone()).collect();
        let known = tx.body_topics(&rows).await?;
        let mut here: BTreeMap<(BrandId, &str, [u8; 32]), Vec<String>> = BTreeMap::new();
        let (mut taken, mut replayed) = (Vec::new(), HashSet::new());
        for ((at, row), known) in claims.into_iter().zip(known) {
            let under = here.entry((row.brand, row.shop, row.digest)).or_insert(known);
            match webhook::seen(row.topic, under) {
                Seen::Never => {
                    under.push(row.topic.to_owned());
                    taken.push(row);
                }
                Seen::Before | Seen::Elsewhere => {
                    metrics::counter!("tributary_webhooks_replayed_total").increment(1);
                    replayed.insert(at);
                }
            }
        }
        taken.sort();
        if !taken.is_empty() {
            tx.claim_bodies(&taken, from_ms(clock.now_ms())).await?;
        }
        replayed
    };
    let mut at = 0;
    fresh.retain(|_| {
        at += 1;
        !replayed.contains(&(at - 1))
    });
    Ok(())
}

fn body_row(event: &Event) -> Option<BodyRow<'_>> {
    let claim = event.claim.as_ref()?;
    Some(BodyRow {
        brand: event.brand,
        shop: event.shop.as_deref()?,
        digest: claim.digest,
        topic: &claim.topic,
        message_id: &event.message_id,
    })
}

/// Takes out what must not come back. An event that names somebody who was erased is kept without anything about them; a
/// browser or a cart of theirs, which others may use, is only left out.
async fn forget_erased(tx: &mut dyn StoreTx, fresh: &mut [Cow<'_, Event>]) -> Result<(), StoreError> {
    let named: BTreeSet<BrandIdentifier> =
        fresh.iter().flat_map(|e| e.identifiers.iter().map(|i| (e.brand, i.clone()))).collect();
    let erased = tx.suppressed(&named.into_iter().collect::<Vec<_>>()).await?;
    for event in fresh {
        let brand = event.brand;
        let is_erased = |i: &identity::Identifier| erased.contains(&(brand, i.clone()));
        if !event.identifiers.iter().any(is_erased) {
            continue;
        }
        let personal = event.identifiers.iter().any(|i| i.kind.is_personal() && is_erased(i));
        if personal || event.identifiers.iter().all(is_erased) {
            *event = Cow::Owned(event.anonymised());
        } else {
            event.to_mut().identifiers.retain(|i| !erased.contains(&(brand, i.clone())));
        }
    }
    Ok(())
}

/// The identifiers that a batch speaks of, and what is known of their owners.
struct Cast {
    /// Sorted, each once.
    identifiers: Vec<BrandIdentifier>,
    /// For each event, its identifiers as indices; with care, without those whose link must not be.
    of_event: Vec<Vec<usize>>,
    /// For each identifier, its owner.
    owners: Vec<Option<ProfileId>>,
    /// For each identifier, who says that it is its owner's.
    sources: Vec<Source>,
    /// For each identifier, the most trusted source that names somebody by it here.
    named: Vec<Source>,
    /// For each event, whether its links are beyond doubt.
    firm: Vec<bool>,
    /// With care: identifiers that are taken away from profiles that had them by a public key's word.
    taken: BTreeMap<usize, ProfileId>,
    /// Ids made by this transaction, which no profile has yet.
    minted: BTreeSet<ProfileId>,
    /// Identifiers that this transaction gave away.
    given: BTreeSet<usize>,
    /// With care: where the owners stood when links were left out.
    standings: HashMap<ProfileId, Standing>,
    /// With care: profiles to be flagged, with the limit.
    limited: BTreeMap<ProfileId, String>,
    /// With care: links between profiles that a limit refused, and that are not known yet.
    refused: BTreeMap<(ProfileId, ProfileId), String>,
}

impl Cast {
    fn of(events: &[Cow<'_, Event>]) -> Self {
        let mut places: BTreeMap<BrandIdentifier, usize> = BTreeMap::new();
        for event in events {
            for identifier in &event.identifiers {
                places.insert((event.brand, identifier.clone()), 0);
            }
        }
        for (place, at) in places.values_mut().enumerate() {
            *at = place;
        }
        let of_event = events
            .iter()
            .map(|event| {
                event
                    .identifiers
                    .iter()
                    .map(|identifier| places[&(event.brand, identifier.clone())])
                    .collect()
            })
            .collect();
        let identifiers: Vec<BrandIdentifier> = places.into_keys().collect();
        let mut cast = Self {
            owners: vec![None; identifiers.len()],
            sources: vec![Source::Public; identifiers.len()],
            named: vec![Source::Public; identifiers.len()],
            firm: events.iter().map(|event| event.links_firmly()).collect(),
            taken: BTreeMap::new(),
            identifiers,
            of_event,
            minted: BTreeSet::new(),
            given: BTreeSet::new(),
            standings: HashMap::new(),
            limited: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        cast.name(events);
        cast
    }

    /// Notes of each identifier who names somebody by it, by what the events keep.
    fn name(&mut self, events: &[Cow<'_, Event>]) {
        self.named.fill(Source::Public);
        for (at, event) in events.iter().enumerate().filter(|(at, _)| self.firm[*at]) {
            for place in &self.of_event[at] {
                self.named[*place] = self.named[*place].max(event.source);
            }
        }
    }

    /// Gives every identifier an owner, and groups the events by theirs.
    async fn settle(
        &mut self,
        tx: &mut dyn StoreTx,
        clock: &Arc<dyn Clock>,
        book: &Book,
        events: &[Cow<'_, Event>],
        careful: bool,
    ) -> Result<Vec<Group>, Lost> {
        let whole = careful.then(|| self.of_event.clone());
        for _ in 0..MAX_LOOKS {
            self.look(tx).await?;
            if let Some(whole) = &whole {
                self.prune(tx, book, events, whole).await?;
            }
            let groups = identity::group(&self.of_event, &self.owners);
            let claims = self.claims(&groups, clock);
            if claims.is_empty() {
                return self.settled(tx, groups, careful).await;
            }
            let claimed: BTreeSet<&BrandIdentifier> = claims.iter().map(|claim| &claim.identifier).collect();
            self.taken.retain(|place, _| claimed.contains(&self.identifiers[*place]));
            let taken: Vec<(BrandIdentifier, ProfileId)> =
                self.taken.iter().map(|(place, from)| (self.identifiers[*place].clone(), *from)).collect();
            if !taken.is_empty() {
                tx.disown(&taken).await?;
            }
            let given: HashSet<BrandIdentifier> = tx.claim(&claims).await?.into_iter().collect();
            if !taken.is_empty() && given.len() < claims.len() {
                return Err(StoreError::Conflict("others claimed what was taken away".into()).into());
            }
            for claim in &claims {
                if given.contains(&claim.identifier) {
                    let place = self.place(&claim.identifier);
                    self.owners[place] = Some(claim.profile);
                    self.sources[place] = claim.source;
                    self.given.insert(place);
                }
            }
            if given.len() == claims.len() {
                let groups = identity::group(&self.of_event, &self.owners);
                return self.settled(tx, groups, careful).await;
            }
        }
        Err(StoreError::Conflict("others kept claiming the same identifiers".into()).into())
    }

    /// Whether what was given away may stay so.
    async fn settled(
        &self,
        tx: &mut dyn StoreTx,
        groups: Vec<Group>,
        careful: bool,
    ) -> Result<Vec<Group>, Lost> {
        if self.given.is_empty() {
            return Ok(groups);
        }
        // An identifier that was given to somebody in one round, and left out of all events in the next, would be nobody's for good.
        let grouped = || groups.iter().flat_map(|group| &group.identifiers).copied().collect::<BTreeSet<_>>();
        if careful && !self.given.is_subset(&grouped()) {
            return Err(StoreError::Conflict("others were faster, and a limit was reached".into()).into());
        }
        // Only now: whoever erases somebody claims their identifiers first, so one of the two sees the other.
        let claimed: Vec<BrandIdentifier> =
            self.given.iter().map(|place| self.identifiers[*place].clone()).collect();
        match (tx.suppressed(&claimed).await?.is_empty(), careful) {
            (true, _) => Ok(groups),
            (false, false) => Err(Lost::Careful),
            (false, true) => Err(StoreError::Conflict("a customer is being erased".into()).into()),
        }
    }

    /// Leaves out the links that must not be.
    async fn prune(
        &mut self,
        tx: &mut dyn StoreTx,
        book: &Book,
        events: &[Cow<'_, Event>],
        whole: &[Vec<usize>],
    ) -> Result<(), StoreError> {
        let owners: Vec<ProfileId> =
            self.owners.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect();
        self.standings = tx.standings(&owners).await?;
        let relations = match self.standings.values().any(|standing| standing.related) {
            true => tx.relations(&owners).await?,
            false => BTreeSet::new(),
        };
        let mut standings = self.standings.clone();
        let held = self.held();
        let known = |id: ProfileId| standings.get(&id).is_some_and(|standing| standing.known);
        let firm: Vec<&[usize]> =
            whole.iter().zip(&self.firm).filter(|(_, firm)| **firm).map(|(of, _)| of.as_slice()).collect();
        for place in identity::disowned(firm.iter().copied(), &held, known) {
            if let Some(owner) = self.owners[place].take() {
                standings.entry(owner).or_default().all.counts.remove(self.identifiers[place].1.kind);
                self.taken.insert(place, owner);
            }
        }
        for place in &self.given {
            if let Some(owner) = self.owners[*place] {
                let trusted = self.sources[*place].is_trusted();
                standings.entry(owner).or_default().add(self.identifiers[*place].1.kind, trusted);
            }
        }
        let apart = relations
            .iter()
            .filter(|(.., kind)| *kind == RelationKind::Split)
            .map(|(a, b, _)| (*a, *b))
            .collect();
        let linking: Vec<Linking<'_>> = events
            .iter()
            .zip(whole)
            .zip(&self.firm)
            .map(|((event, of), firm)| Linking {
                identifiers: of,
                firm: *firm,
                limits: book.limits(event.brand),
            })
            .collect();
        let pruned = identity::prune(&linking, &self.held(), &standings, &apart);
        self.of_event = pruned.of_event;
        self.name(events);
        let flagged =
            |id: &ProfileId| self.standings.get(id).is_none_or(|standing| standing.limited.is_some());
        self.limited = pruned.limited.into_iter().filter(|(id, _)| !flagged(id)).collect();
        self.refused = pruned
            .refused
            .into_iter()
            .filter(|((a, b), _)| {
                !apart.contains(&(*a, *b)) && !relations.contains(&(*a, *b, RelationKind::Refused))
            })
            // Of profiles that exist: what this transaction makes is told by what it does not link.
            .filter(|((a, b), _)| self.standings.contains_key(a) && self.standings.contains_key(b))
            .map(|(pair, (place, refusal))| (pair, refusal.reason(self.identifiers[place].1.kind)))
            .collect();
        Ok(())
    }

    /// Looks up the owners of identifiers that have none yet.
    async fn look(&mut self, tx: &mut dyn StoreTx) -> Result<(), StoreError> {
        let open: Vec<BrandIdentifier> = self
            .identifiers
            .iter()
            .zip(&self.owners)
            .filter(|(_, owner)| owner.is_none())
            .map(|(identifier, _)| identifier.clone())
            .collect();
        if open.is_empty() {
            return Ok(());
        }
        for (identifier, owner, source) in tx.owners(&open).await? {
            let place = self.place(&identifier);
            self.owners[place] = Some(owner);
            self.sources[place] = source;
        }
        Ok(())
    }

    /// What is known of each identifier.
    fn held(&self) -> Vec<Held> {
        (0..self.identifiers.len()).map(|place| self.held_at(place)).collect()
    }

    fn held_at(&self, place: usize) -> Held {
        let owner = self.owners[place];
        let trusted = owner.is_some() && self.sources[place].is_trusted();
        Held { kind: self.identifiers[place].1.kind, owner, trusted }
    }

    /// Identifiers of which a trusted source says now, too, whose they are.
    fn raised(&self, groups: &[Group]) -> Vec<(BrandIdentifier, Source)> {
        let mut raised = BTreeMap::new();
        for &event in groups.iter().flat_map(|group| &group.events).filter(|event| self.firm[**event]) {
            for &place in
                self.of_event[event].iter().filter(|place| self.named[**place] > self.sources[**place])
            {
                raised.insert(self.identifiers[place].clone(), self.named[place]);
            }
        }
        raised.into_iter().collect()
    }

    /// How many people trusted sources know among those of a group.
    fn people(&self, group: &Group, known: impl Fn(ProfileId) -> bool) -> usize {
        let firm = || group.events.iter().filter(|event| self.firm[**event]);
        // Most groups are one by what makes them a group at all.
        if firm().count() + group.owners.iter().filter(|owner| known(**owner)).count() < 2 {
            return 1;
        }
        let places: BTreeMap<usize, usize> =
            group.identifiers.iter().enumerate().map(|(at, place)| (*place, at)).collect();
        // What this transaction gave away says nothing yet of who somebody is.
        let held = |place: &usize| match self.given.contains(place) {
            true => Held { kind: self.identifiers[*place].1.kind, owner: None, trusted: false },
            false => self.held_at(*place),
        };
        let held: Vec<Held> = group.identifiers.iter().map(held).collect();
        let of_event: Vec<Vec<usize>> =
            firm().map(|event| self.of_event[*event].iter().map(|place| places[place]).collect()).collect();
        identity::people(of_event.iter().map(Vec::as_slice), &held, known)
    }

    /// Identifiers without an owner, with the profile that is to have them: the oldest of their group, or a new one.
    fn claims(&mut self, groups: &[Group], clock: &Arc<dyn Clock>) -> Vec<Claim> {
        let mut claims = Vec::new();
        for group in groups {
            let mut home = group.owners.first().copied();
            for &place in group.identifiers.iter().filter(|place| self.owners[**place].is_none()) {
                let profile = *home.get_or_insert_with(|| {
                    let minted = ProfileId::new(clock.now_ms());
                    self.minted.insert(minted);
                    minted
                });
                let (identifier, source) = (self.identifiers[place].clone(), self.named[place]);
                claims.push(Claim { identifier, profile, source });
            }
        }
        claims.sort();
        claims
    }

    fn place(&self, identifier: &BrandIdentifier) -> usize {
        self.identifiers.binary_search(identifier).expect("a store answers only what it was asked")
    }
}

/// Locks the profiles that exist. A profile that is gone or merged away means that the look was too old.
async fn lock(
    tx: &mut dyn StoreTx,
    groups: &[Group],
    cast: &Cast,
    run: u32,
) -> Result<BTreeMap<ProfileId, Profile>, StoreError> {
    let ids: BTreeSet<ProfileId> = groups
        .iter()
        .flat_map(|group| &group.owners)
        .filter(|id| !cast.minted.contains(id))
        .chain(cast.limited.keys())
        .chain(cast.refused.keys().flat_map(|(a, b)| [a, b]))
        .chain(cast.taken.values())
        .copied()
        .collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<ProfileId> = ids.into_iter().collect();
    let locked = tx.lock(&ids).await?;
    if locked.len() != ids.len() {
        // Whoever was erased meanwhile is gone with all identifiers: looking again shows it.
        return Err(match run {
            1 | 2 => StoreError::Conflict("a customer was erased meanwhile".into()),
            _ => StoreError::Invalid("an identifier belongs to a profile that is not there".into()),
        });
    }
    if locked.iter().any(|profile| profile.merged_into.is_some()) {
        return Err(StoreError::Conflict("a profile was merged meanwhile".into()));
    }
    Ok(locked.into_iter().map(|profile| (profile.id, profile)).collect())
}

/// Whether the groups may be, now that their profiles are locked.
fn stands(
    groups: &[Group],
    cast: &Cast,
    events: &[Cow<'_, Event>],
    profiles: &BTreeMap<ProfileId, Profile>,
    book: &Book,
    careful: bool,
) -> Result<(), Lost> {
    if careful {
        let moved =
            profiles.values().any(|p| cast.standings.get(&p.id).is_none_or(|seen| *seen != p.standing));
        return match moved {
            true => Err(StoreError::Conflict("a profile grew meanwhile".into()).into()),
            false => Ok(()),
        };
    }
    for group in groups {
        let existing: Vec<&Profile> = group.owners.iter().filter_map(|id| profiles.get(id)).collect();
        if existing.len() > 1 && existing.iter().any(|profile| profile.standing.related) {
            return Err(Lost::Careful);
        }
        let known = |id: ProfileId| profiles.get(&id).is_some_and(|profile| profile.standing.known);
        if cast.people(group, known) > 1 {
            return Err(Lost::Careful);
        }
        let given = group.identifiers.iter().filter(|place| cast.given.contains(place));
        let new = given.map(|place| {
            let mut one = Tally::default();
            one.counts.add(cast.identifiers[*place].1.kind);
            (false, one)
        });
        // Of all, whoever says it: with care it is seen whether what is said counts that.
        let parts = existing.iter().map(|p| (true, p.standing.all)).chain(new);
        if identity::over_limit(parts, book.limits(events[group.events[0]].brand)).is_some() {
            return Err(Lost::Careful);
        }
    }
    Ok(())
}

/// Flags profiles that a limit stopped, and relates those that it kept apart.
fn flag(cast: &Cast, profiles: &mut BTreeMap<ProfileId, Profile>, now: Timestamp) -> Vec<Relation> {
    for (id, limit) in &cast.limited {
        if let Some(profile) = profiles.get_mut(id) {
            profile.standing.limited.get_or_insert_with(|| limit.clone());
        }
    }
    let mut relations = Vec::new();
    for ((a, b), reason) in &cast.refused {
        // One of them may have been merged into another within this batch.
        let at = |id: &ProfileId| profiles.get(id).map(|profile| profile.merged_into.unwrap_or(*id));
        let (Some(a), Some(b)) = (at(a), at(b)) else { continue };
        if a == b {
            continue;
        }
        let Some(brand) = profiles.get(&a).map(|profile| profile.brand) else { continue };
        for id in [a, b] {
            if let Some(profile) = profiles.get_mut(&id) {
                profile.standing.related = true;
            }
        }
        relations.push(Relation {
            brand,
            a: a.min(b),
            b: a.max(b),
            kind: RelationKind::Refused,
            reason: reason.clone(),
            at: now,
        });
    }
    relations
}

/// The profiles that exist and are to become one with others, sorted.
fn merging(groups: &[Group], cast: &Cast, events: &[Cow<'_, Event>]) -> BTreeSet<(BrandId, ProfileId)> {
    let mut merging = BTreeSet::new();
    for group in groups {
        let existing: Vec<ProfileId> =
            group.owners.iter().filter(|id| !cast.minted.contains(id)).copied().collect();
        if existing.len() > 1 {
            let brand = events[group.events[0]].brand;
            merging.extend(existing.into_iter().map(|id| (brand, id)));
        }
    }
    merging
}

/// The profile of each event: the oldest owner of its group.
fn homes(groups: &[Group], events: usize) -> Vec<Option<ProfileId>> {
    let mut homes = vec![None; events];
    for group in groups {
        for &event in &group.events {
            homes[event] = group.owners.first().copied();
        }
    }
    homes
}

/// What merging came to.
struct Merged {
    moves: Vec<Move>,
    records: Vec<MergeRow>,
    /// Whether relations speak of any of them.
    related: bool,
}

/// Makes one profile of each group, and says what is to move. `trusted` are the places of identifiers that are so by these events.
fn merge(
    groups: &[Group],
    cast: &Cast,
    trusted: &BTreeSet<usize>,
    events: &[Cow<'_, Event>],
    profiles: &mut BTreeMap<ProfileId, Profile>,
    now: Timestamp,
) -> Merged {
    for &place in trusted.difference(&cast.given) {
        if let Some(profile) = cast.owners[place].and_then(|owner| profiles.get_mut(&owner)) {
            profile.standing.trusted.counts.add(cast.identifiers[place].1.kind);
        }
    }
    let mut merged = Merged { moves: Vec::new(), records: Vec::new(), related: false };
    for group in groups {
        let Some(&survivor) = group.owners.first() else { continue };
        let first = &events[group.events[0]];
        let brand = first.brand;
        let mut whole = profiles.remove(&survivor).unwrap_or_else(|| Profile::new(survivor, brand));
        for &place in group.identifiers.iter().filter(|place| cast.given.contains(place)) {
            let is_trusted = cast.sources[place].is_trusted() || trusted.contains(&place);
            whole.standing.add(cast.identifiers[place].1.kind, is_trusted);
        }
        for &loser in group.owners.iter().skip(1) {
            let moved = Move { from: loser, into: survivor };
            merged.moves.push(moved);
            // A minted id that lost its race has identifiers, but no profile.
            if !cast.minted.contains(&loser)
                && let Some(profile) = profiles.get_mut(&loser)
            {
                merged.related |= profile.standing.related;
                let linking = group.events.iter().map(|at| &events[*at]);
                let linking = linking
                    .filter(|event| links(cast, event, loser))
                    .map(|event| &event.message_id)
                    .min()
                    .unwrap_or(&first.message_id);
                merged.records.push(MergeRow::new(profile, survivor, linking.clone(), now));
                whole.absorb(profile);
            }
        }
        whole.standing.known |= group.events.iter().any(|event| cast.firm[*event]);
        profiles.insert(survivor, whole);
    }
    merged
}

/// Whether an event speaks of a profile and of somebody else.
fn links(cast: &Cast, event: &Event, profile: ProfileId) -> bool {
    let owners: BTreeSet<ProfileId> = event
        .identifiers
        .iter()
        .filter_map(|identifier| {
            let place = cast.identifiers.binary_search(&(event.brand, identifier.clone())).ok()?;
            cast.owners[place]
        })
        .collect();
    owners.len() > 1 && owners.contains(&profile)
}

/// Reads the orders that the events speak of, takes in what they say, and writes them.
async fn save_orders(
    tx: &mut dyn StoreTx,
    rows: &[EventRow<'_>],
    changed: &mut BTreeSet<(BrandId, ProfileId)>,
) -> Result<(), StoreError> {
    let updates = || rows.iter().filter_map(|row| Some((row, row.event.order.as_ref()?)));
    let keys: BTreeSet<OrderKey> =
        updates().map(|(row, update)| (row.event.brand, update.shop.clone(), update.id.clone())).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<OrderKey> = keys.into_iter().collect();
    let mut known: BTreeMap<OrderKey, OrderRecord> = tx
        .orders(&keys)
        .await?
        .into_iter()
        .map(|(brand, record)| ((brand, record.shop.clone(), record.id.clone()), record))
        .collect();
    let mut unwanted = Vec::new();
    for (row, update) in updates() {
        let key = (row.event.brand, update.shop.clone(), update.id.clone());
        let record = known.entry(key).or_insert_with(|| OrderRecord::new(&update.shop, &update.id));
        if record.erased && row.profile.is_none() {
            unwanted.push((row.event.brand, row.event.message_id.clone()));
        }
        // Also when an order moves from one customer to another: the first one's answer is old, too.
        changed.extend(record.profile.map(|profile| (row.event.brand, profile)));
        if row.event.erased {
            record.erase();
        }
        record.apply(update, &row.event.message_id, row.profile);
        changed.extend(record.profile.map(|profile| (row.event.brand, profile)));
    }
    if !unwanted.is_empty() {
        tx.blank_events(&unwanted).await?;
    }
    let records: Vec<BrandOrder> = known.into_iter().map(|((brand, ..), record)| (brand, record)).collect();
    tx.save_orders(&records).await
}

/// Writes what else the events say: products, consent, requests in the name of privacy.
async fn save_the_rest(
    tx: &mut dyn StoreTx,
    book: &Book,
    rows: &[EventRow<'_>],
    now: Timestamp,
) -> Result<(), StoreError> {
    let products = newest_products(rows);
    if !products.is_empty() {
        tx.save_products(&products).await?;
    }
    let consents: Vec<ConsentRow<'_>> = rows
        .iter()
        .filter_map(|row| Some((row.event, row.profile?)))
        .flat_map(|(event, profile)| {
            let said = event.consents.iter();
            said.map(move |consent| ConsentRow {
                brand: event.brand,
                message_id: &event.message_id,
                profile,
                source: event.source,
                sequence: event.sequence,
                consent,
            })
        })
        .collect();
    if !consents.is_empty() {
        tx.save_consents(&consents).await?;
    }
    let asked: Vec<PrivacyRow> = rows.iter().filter_map(|row| asked(book, row.event, now)).collect();
    if !asked.is_empty() {
        tx.ask(&asked).await?;
    }
    Ok(())
}

fn asked(book: &Book, event: &Event, now: Timestamp) -> Option<PrivacyRow> {
    let shop = event.shop.clone().unwrap_or_default();
    let (kind, subject) = match event.ask.as_ref()? {
        PrivacyAsk::Export(subject) => ("export", serde_json::json!(subject).to_string()),
        PrivacyAsk::Erase(subject) => ("erase", serde_json::json!(subject).to_string()),
        PrivacyAsk::EraseShop => ("erase_shop", serde_json::json!(ShopSubject::new(&shop)).to_string()),
    };
    // All customers of a shop are not forgotten on one unasked word: it waits, and can be stopped.
    let wait = book.settings.get(&event.brand).map_or(SHOP_REDACTION_HOURS, |set| set.shop_redaction_hours());
    let due = (kind == "erase_shop").then(|| time::plus(now, time::millis(i64::from(wait) * 3_600_000)));
    if let Some(due) = due {
        metrics::counter!("tributary_shop_redactions_total").increment(1);
        tracing::warn!(%shop, brand = %event.brand, %due, "a shop's redaction was asked for; until it is due it can be stopped");
    }
    Some(PrivacyRow {
        id: uuid::Uuid::now_v7(),
        brand: event.brand,
        message_id: event.message_id.clone(),
        kind,
        subject,
        source: format!("shopify {shop}"),
        at: now,
        due,
    })
}

/// What is said of each product, and when it was deleted.
fn newest_products<'e>(rows: &[EventRow<'e>]) -> Vec<ProductRow<'e>> {
    let mut newest: BTreeMap<(BrandId, &str, String), ProductRow<'e>> = BTreeMap::new();
    for EventRow { event, .. } in rows {
        let (Some(product), Some(shop)) = (&event.product, event.shop.as_deref()) else { continue };
        let row = || ProductRow { brand: event.brand, shop, product: product.clone() };
        newest
            .entry((event.brand, shop, product.id.clone()))
            .and_modify(|held| held.product.take_in(product))
            .or_insert_with(row);
    }
    newest.into_values().collect()
}
