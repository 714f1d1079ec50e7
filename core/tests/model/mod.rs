//! The queue's protocol in a few lines of plain Rust, for the real adapters to be compared with; and what may happen to it.

#![allow(unreachable_pub, reason = "each suite uses its part")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use tributary_core::ports::queue::{
    Acked, Enqueued, FAIR_EVERY, MAX_HISTORY, MAX_LOSSES, MAX_PROMOTE, MAX_RECLAIM, MAX_SURVIVED, Outcome,
    Reclaimed,
};

pub const LEASE_MS: i64 = 10_000;
pub const CLAIM_TTL_MS: i64 = 60_000;
/// What the queue may hold, and a brand of dead letters.
pub const MAX_DEPTH: u64 = 14;
pub const MAX_BYTES: u64 = 66;
pub const MAX_DEAD: u64 = 2;
/// Items of a brand beyond which others of it wait at low priority.
pub const BACKLOG: u64 = 4;
/// Items of low priority in a batch, where brands share the queue.
pub const LOW_BATCH: usize = 2;
/// When the clock begins.
pub const T0: i64 = 1_800_000_000_000;
const PRIORITIES: usize = 3;

/// An item, known by its number: the order in which ids were drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub n: u64,
    pub priority: usize,
    pub attempt: u32,
    pub suspect: bool,
    pub losses: u32,
    pub history: usize,
    /// The key under which it may be delivered again.
    pub key: Option<u8>,
    /// Whose it is; 0: nobody's.
    pub brand: i64,
    /// Bytes of its payload.
    pub bytes: u64,
}

/// How many of these losses count.
fn counted(lost: &BTreeMap<u64, bool>) -> u32 {
    u32::try_from(lost.values().filter(|survived| !**survived).count()).unwrap()
}

impl Entry {
    fn note(&mut self) {
        self.history = (self.history + 1).min(MAX_HISTORY);
    }
}

/// What is remembered under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub body: u8,
    pub n: u64,
    pub until: i64,
    pub outcome: Option<Outcome>,
}

/// Everything that a queue holds, as both sides tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub pending: [VecDeque<Entry>; PRIORITIES],
    pub released: [VecDeque<Entry>; PRIORITIES],
    pub suspects: VecDeque<Entry>,
    pub delayed: BTreeMap<(i64, u64), Entry>,
    /// By the batch's number: the end of its lease, and its items by n.
    pub batches: BTreeMap<u64, (i64, BTreeMap<u64, Entry>)>,
    pub dead: BTreeMap<(i64, u64), Entry>,
    /// Those whose time is not over.
    pub claims: BTreeMap<u8, Held>,
    pub paused: bool,
    /// Those that are not zero.
    pub counters: BTreeMap<&'static str, u64>,
    /// Items and bytes that are not dead, by brand; dead letters, by brand.
    pub shares: BTreeMap<i64, (u64, u64)>,
    pub dead_shares: BTreeMap<i64, u64>,
}

/// What the last transition was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nothing,
    Full,
    Enqueued(Vec<Enqueued>),
    /// The items, in order.
    Fetched(Vec<Entry>),
    Acked(Acked),
    /// Numbers of the batches that are lost.
    Lost(Vec<u64>),
    Reclaimed(Reclaimed),
    Count(u64),
}

/// An item to be enqueued.
#[derive(Clone, Debug)]
pub struct New {
    pub priority: usize,
    pub delay_ms: i64,
    /// A key and a body.
    pub key: Option<(u8, u8)>,
    pub brand: i64,
    pub public: bool,
}

/// What a worker does with an item.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Done,
    Retry(i64),
    Bury,
    Release,
    Defer(i64),
}

/// What may happen. Batches and dead letters are named by their place among all there ever were, and are there.
#[derive(Clone, Debug)]
pub enum Transition {
    Enqueue(Vec<New>),
    Fetch(usize),
    /// Also by a worker who lost the batch, or acked it before.
    Ack(usize, Vec<Fate>),
    Beat(Vec<usize>),
    /// The worker dies: its batch's lease ends, and somebody looks.
    Kill,
    Clock(i64),
    Reclaim,
    Pause(bool),
    RetryDead(Vec<usize>),
    DiscardDead(Vec<usize>),
    /// Those of a brand that are so old, in milliseconds.
    DropDead(i64, i64),
    Repair,
}

/// The model: what a queue holds, and what was said last.
#[derive(Clone, Debug)]
pub struct Model {
    pub now: i64,
    pub holds: Snapshot,
    /// Every batch that was ever fetched, as it was fetched.
    pub fetched: Vec<Vec<Entry>>,
    pub reply: Reply,
    items: u64,
    fetches: u64,
    /// Who has put something in since the queue was last found empty.
    brands: BTreeSet<i64>,
    /// Losses that items suffered alone, by item and batch: whether the worker has come back.
    lost: BTreeMap<u64, BTreeMap<u64, bool>>,
    /// Dead letters that were buried for them.
    for_losses: BTreeSet<u64>,
}

impl Model {
    fn count(&mut self, name: &'static str, by: u64) {
        if by > 0 {
            *self.holds.counters.entry(name).or_default() += by;
        }
    }

    /// Bytes of the next items, as they will be numbered.
    fn sizes(&self, items: &[New]) -> Vec<u64> {
        let sizes = items
            .iter()
            .zip(self.items..)
            .map(|(item, n)| payload(n, item.key.map(|(key, _)| key), item.brand));
        sizes.map(|payload| payload.len() as u64).collect()
    }

    fn enqueue(&mut self, items: &[New]) -> Reply {
        let sizes = self.sizes(items);
        let all = self.holds.shares.values().fold((0, 0), |sum, held| (sum.0 + held.0, sum.1 + held.1));
        let mut come = BTreeMap::<(i64, bool), (u64, u64)>::new();
        for (item, bytes) in items.iter().zip(&sizes) {
            let one = come.entry((item.brand, item.public)).or_default();
            (one.0, one.1) = (one.0 + 1, one.1 + bytes);
        }
        let over: Vec<(i64, bool)> = come
            .iter()
            .filter(|((brand, public), more)| {
                let times = if *public { 1 } else { 4 };
                let held = self.holds.shares.get(brand).copied().unwrap_or_default();
                let exceeds = |would: u64, all: u64, most: u64| would > times * most.saturating_sub(all);
                *brand != 0
                    && (exceeds(held.0 + more.0, all.0 + more.0, MAX_DEPTH)
                        || exceeds(held.1 + more.1, all.1 + more.1, MAX_BYTES))
            })
            .map(|(who, _)| *who)
            .collect();
        let within = come.iter().filter(|(who, _)| !over.contains(who));
        let want = within.fold((0, 0), |sum, (_, more)| (sum.0 + more.0, sum.1 + more.1));
        let lacks_room = |more: (u64, u64)| all.0 + more.0 > MAX_DEPTH || all.1 + more.1 > MAX_BYTES;
        if (want.0 > 0 && lacks_room(want)) || (want.0 == 0 && come.values().any(|more| lacks_room(*more))) {
            self.items += items.len() as u64;
            return Reply::Full;
        }
        let before = self.holds.shares.clone();
        let mut taken = BTreeMap::<i64, u64>::new();
        let mut results = Vec::new();
        for (item, bytes) in items.iter().zip(sizes) {
            // Ids are drawn for all, taken or not.
            let n = self.items;
            self.items += 1;
            let seen = item.key.and_then(|(key, body)| {
                let held = self.holds.claims.get(&key).filter(|held| held.until > self.now)?;
                Some(if held.body == body { Enqueued::Duplicate } else { Enqueued::Conflict })
            });
            let is_over = over.contains(&(item.brand, item.public));
            let result = seen.unwrap_or(if is_over { Enqueued::OverShare } else { Enqueued::Accepted });
            results.push(result);
            match result {
                Enqueued::Duplicate => self.count("duplicates", 1),
                Enqueued::Conflict => self.count("conflicts", 1),
                Enqueued::OverShare => {}
                Enqueued::Accepted => {
                    self.count("enqueued", 1);
                    if let Some((key, body)) = item.key {
                        let until = self.now + CLAIM_TTL_MS;
                        self.holds.claims.insert(key, Held { body, n, until, outcome: None });
                    }
                    self.brands.insert(item.brand);
                    let its = taken.entry(item.brand).or_default();
                    *its += 1;
                    let held = before.get(&item.brand).map_or(0, |held| held.0);
                    let late = item.brand != 0 && held + *its > BACKLOG;
                    let priority = if late && item.priority == 1 { 2 } else { item.priority };
                    let entry = Entry {
                        n,
                        priority,
                        attempt: 0,
                        suspect: false,
                        losses: 0,
                        history: 0,
                        key: item.key.map(|(key, _)| key),
                        brand: item.brand,
                        bytes,
                    };
                    match item.delay_ms {
                        0 => self.holds.pending[priority].push_back(entry),
                        delay => drop(self.holds.delayed.insert((self.now + delay, n), entry)),
                    }
                }
            }
        }
        Reply::Enqueued(results)
    }

    fn fetch(&mut self, want: usize) -> Reply {
        if self.holds.paused {
            return Reply::Fetched(Vec::new());
        }
        for _ in 0..MAX_PROMOTE {
            let Some(due) = self.holds.delayed.first_entry().filter(|first| first.key().0 <= self.now) else {
                break;
            };
            let entry = due.remove();
            if entry.suspect {
                self.holds.suspects.push_back(entry);
            } else {
                self.holds.pending[entry.priority].push_back(entry);
            }
        }
        let last_first = (self.fetches + 1).is_multiple_of(FAIR_EVERY);
        let mut taken: Vec<Entry> = Vec::new();
        if !last_first {
            taken.extend(self.holds.suspects.pop_front());
        }
        if taken.is_empty() {
            // What has low priority comes by itself.
            let turns: [&[usize]; 2] = if last_first { [&[2], &[1, 0]] } else { [&[0, 1], &[2]] };
            for turn in turns {
                if !taken.is_empty() {
                    break;
                }
                for priority in turn {
                    let most =
                        if *priority == 2 && self.brands.len() > 1 { want.min(LOW_BATCH) } else { want };
                    for place in [&mut self.holds.released[*priority], &mut self.holds.pending[*priority]] {
                        let room = most.saturating_sub(taken.len());
                        taken.extend(place.drain(..room.min(place.len())));
                    }
                }
            }
        }
        if taken.is_empty() && last_first {
            taken.extend(self.holds.suspects.pop_front());
        }
        if !taken.is_empty() {
            self.fetches += 1;
            let items = taken.iter().map(|entry| (entry.n, entry.clone())).collect();
            self.holds.batches.insert(self.fetched.len() as u64, (self.now + LEASE_MS, items));
            self.fetched.push(taken.clone());
        }
        Reply::Fetched(taken)
    }

    fn ack(&mut self, batch: usize, fates: &[Fate]) -> Reply {
        if self.holds.batches.remove(&(batch as u64)).is_none() {
            self.survived(batch as u64);
            return Reply::Acked(Acked::Lost);
        }
        for (at, mut entry) in self.fetched[batch].clone().into_iter().enumerate() {
            match fates[at % fates.len()] {
                Fate::Done => {
                    self.end(&entry, Outcome::Done);
                    self.count("acked", 1);
                }
                Fate::Retry(delay) => {
                    entry.attempt += 1;
                    entry.note();
                    self.count("retried", 1);
                    self.holds.delayed.insert((self.now + delay, entry.n), entry);
                }
                Fate::Defer(delay) => {
                    self.holds.delayed.insert((self.now + delay, entry.n), entry);
                }
                Fate::Bury => self.bury(entry),
                Fate::Release if entry.suspect => self.holds.suspects.push_back(entry),
                Fate::Release => self.holds.released[entry.priority].push_back(entry),
            }
        }
        Reply::Acked(Acked::Done)
    }

    fn bury(&mut self, mut entry: Entry) {
        entry.note();
        self.end(&entry, Outcome::Dead);
        self.count("buried", 1);
        let brand = entry.brand;
        self.holds.dead.insert((self.now, entry.n), entry);
        while self.dead_of(brand).len() as u64 > MAX_DEAD {
            self.drop_dead_letter(self.dead_of(brand)[0]);
        }
    }

    /// A brand's dead letters, oldest first.
    fn dead_of(&self, brand: i64) -> Vec<(i64, u64)> {
        self.holds.dead.iter().filter(|(_, entry)| entry.brand == brand).map(|(key, _)| *key).collect()
    }

    fn drop_dead_letter(&mut self, key: (i64, u64)) {
        let entry = self.holds.dead.remove(&key).unwrap();
        self.end(&entry, Outcome::Discarded);
        self.count("dropped", 1);
    }

    fn drop_dead(&mut self, brand: i64, age: i64) -> Reply {
        let old: Vec<_> =
            self.dead_of(brand).into_iter().filter(|(buried, _)| *buried < self.now - age).collect();
        for key in &old {
            self.drop_dead_letter(*key);
        }
        Reply::Count(old.len() as u64)
    }

    /// What brands hold is what is there.
    fn count_shares(&mut self) {
        let holds = &mut self.holds;
        let (mut shares, mut dead) = (BTreeMap::<i64, (u64, u64)>::new(), BTreeMap::<i64, u64>::new());
        let waiting = holds.pending.iter().chain(&holds.released).flatten().chain(&holds.suspects);
        let held = holds.batches.values().flat_map(|(_, items)| items.values());
        for entry in waiting.chain(holds.delayed.values()).chain(held) {
            let share = shares.entry(entry.brand).or_default();
            (share.0, share.1) = (share.0 + 1, share.1 + entry.bytes);
        }
        for entry in holds.dead.values() {
            *dead.entry(entry.brand).or_default() += 1;
        }
        (holds.shares, holds.dead_shares) = (shares, dead);
    }

    fn end(&mut self, entry: &Entry, outcome: Outcome) {
        let held = entry.key.and_then(|key| self.holds.claims.get_mut(&key));
        if let Some(held) = held.filter(|held| held.n == entry.n) {
            held.outcome = Some(outcome);
        }
    }

    fn reclaim(&mut self) -> Reply {
        let mut done = Reclaimed::default();
        let mut expired: Vec<(i64, u64)> = self
            .holds
            .batches
            .iter()
            .filter(|(_, (end, _))| *end <= self.now)
            .map(|(batch, (end, _))| (*end, *batch))
            .collect();
        expired.sort_unstable();
        for (_, batch) in expired.into_iter().take(MAX_RECLAIM) {
            self.holds.batches.remove(&batch);
            let mut items = self.fetched[usize::try_from(batch).unwrap()].clone();
            // by priority; within one, what was released came first
            items.sort_by_key(|entry| entry.priority);
            let alone = items.len() == 1;
            for mut entry in items {
                entry.suspect = true;
                let lost = self.lost.entry(entry.n).or_default();
                if alone {
                    lost.insert(batch, false);
                    entry.losses = counted(lost);
                }
                let in_all = lost.len() * usize::from(alone);
                if entry.losses >= MAX_LOSSES || in_all >= MAX_SURVIVED as usize {
                    if in_all < MAX_SURVIVED as usize {
                        self.for_losses.insert(entry.n);
                    }
                    self.bury(entry);
                    done.buried += 1;
                } else {
                    entry.note();
                    self.holds.suspects.push_back(entry);
                    done.returned += 1;
                }
            }
        }
        self.count("reclaimed", done.returned);
        Reply::Reclaimed(done)
    }

    /// Whoever asks for a batch that was lost lives.
    fn survived(&mut self, batch: u64) {
        let Some((n, lost)) = self.lost.iter_mut().find(|(_, lost)| lost.get(&batch) == Some(&false)) else {
            return;
        };
        lost.insert(batch, true);
        let (n, losses) = (*n, counted(lost));
        let dead = self.holds.dead.keys().find(|(_, dead)| *dead == n).copied();
        if let Some(key) = dead.filter(|_| self.for_losses.remove(&n)) {
            let mut entry = self.holds.dead.remove(&key).unwrap();
            self.brands.insert(entry.brand);
            entry.losses = losses;
            entry.note();
            self.holds.suspects.push_back(entry);
        }
    }

    fn chosen_dead(&self, which: &[usize]) -> Vec<(i64, u64)> {
        let all: Vec<(i64, u64)> = self.holds.dead.keys().copied().collect();
        let mut chosen: Vec<(i64, u64)> =
            which.iter().filter(|_| !all.is_empty()).map(|at| all[at % all.len()]).collect();
        let mut seen = std::collections::HashSet::new();
        chosen.retain(|key| seen.insert(*key));
        chosen
    }

    /// How many items were drawn.
    pub fn drawn(&self) -> u64 {
        self.items
    }

    /// The item that a key is remembered for.
    pub fn number_of_claim(&self, key: u8) -> Option<u64> {
        self.holds.claims.get(&key).map(|held| held.n)
    }

    /// The numbers of the dead letters that a transition names, in its order.
    pub fn dead_numbers(&self, which: &[usize]) -> Vec<u64> {
        self.chosen_dead(which).into_iter().map(|(_, n)| n).collect()
    }

    fn retry_dead(&mut self, which: &[usize]) -> Reply {
        let chosen = self.chosen_dead(which);
        for key in &chosen {
            let mut entry = self.holds.dead.remove(key).unwrap();
            self.brands.insert(entry.brand);
            (entry.attempt, entry.losses) = (0, 0);
            self.lost.remove(&entry.n);
            self.for_losses.remove(&entry.n);
            entry.note();
            if entry.suspect {
                self.holds.suspects.push_back(entry);
            } else {
                self.holds.pending[entry.priority].push_back(entry);
            }
        }
        Reply::Count(chosen.len() as u64)
    }

    fn discard_dead(&mut self, which: &[usize]) -> Reply {
        let chosen = self.chosen_dead(which);
        for key in &chosen {
            let entry = self.holds.dead.remove(key).unwrap();
            self.end(&entry, Outcome::Discarded);
        }
        self.count("discarded", chosen.len() as u64);
        Reply::Count(chosen.len() as u64)
    }

    fn step(&mut self, transition: &Transition) {
        self.reply = match transition {
            Transition::Enqueue(items) => self.enqueue(items),
            Transition::Fetch(want) => self.fetch(*want),
            Transition::Ack(batch, fates) => self.ack(*batch, fates),
            Transition::Beat(batches) => {
                let mut lost = Vec::new();
                for batch in batches {
                    match self.holds.batches.get_mut(&(*batch as u64)) {
                        Some((end, _)) => *end = self.now + LEASE_MS,
                        None => lost.push(*batch as u64),
                    }
                }
                for batch in &lost {
                    self.survived(*batch);
                }
                Reply::Lost(lost)
            }
            Transition::Kill => {
                self.now += LEASE_MS;
                self.reclaim()
            }
            Transition::Clock(ms) => {
                self.now += ms;
                Reply::Nothing
            }
            Transition::Reclaim => self.reclaim(),
            Transition::Pause(paused) => {
                self.holds.paused = *paused;
                Reply::Nothing
            }
            Transition::RetryDead(which) => self.retry_dead(which),
            Transition::DiscardDead(which) => self.discard_dead(which),
            Transition::DropDead(brand, age) => self.drop_dead(*brand, *age),
            // Nothing that the protocol does leaves a stray behind.
            Transition::Repair => {
                if self.holds.shares.is_empty() {
                    self.brands.clear();
                }
                Reply::Count(0)
            }
        };
        self.holds.claims.retain(|_, held| held.until > self.now);
        self.count_shares();
    }
}

/// What an item says of itself.
pub fn payload(n: u64, key: Option<u8>, brand: i64) -> String {
    format!("{n} {} {brand}", key.map(|key| key.to_string()).unwrap_or_default())
}

fn news() -> impl Strategy<Value = Vec<New>> {
    let new = (
        0..PRIORITIES,
        prop_oneof![3 => Just(0_i64), 1 => 1_i64..30_000],
        prop_oneof![2 => Just(None), 1 => (0_u8..4, prop_oneof![4 => Just(0_u8), 1 => Just(1)]).prop_map(Some)],
        prop_oneof![1 => Just(0_i64), 2 => Just(1), 1 => Just(2)],
        any::<bool>(),
    );
    let new = new.prop_map(|(priority, delay_ms, key, brand, public)| New {
        priority,
        delay_ms,
        key,
        brand,
        public,
    });
    proptest::collection::vec(new, 1..5)
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        4 => Just(Fate::Done),
        1 => (1_i64..20_000).prop_map(Fate::Retry),
        1 => Just(Fate::Bury),
        1 => Just(Fate::Release),
        1 => (1_i64..20_000).prop_map(Fate::Defer),
    ];
    proptest::collection::vec(fate, 1..4)
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self {
            now: T0,
            holds: Snapshot::default(),
            fetched: Vec::new(),
            reply: Reply::Nothing,
            items: 0,
            fetches: 0,
            brands: BTreeSet::new(),
            lost: BTreeMap::new(),
            for_losses: BTreeSet::new(),
        })
        .boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Transition> {
        let dead = || proptest::collection::vec(0_usize..8, 1..3);
        let always = prop_oneof![
            6 => news().prop_map(Transition::Enqueue),
            8 => (1_usize..6).prop_map(Transition::Fetch),
            2 => Just(Transition::Kill),
            3 => prop_oneof![Just(1_i64), Just(LEASE_MS / 2), Just(LEASE_MS), Just(CLAIM_TTL_MS)]
                .prop_map(Transition::Clock),
            2 => Just(Transition::Reclaim),
            1 => any::<bool>().prop_map(Transition::Pause),
            1 => dead().prop_map(Transition::RetryDead),
            1 => dead().prop_map(Transition::DiscardDead),
            1 => (0_i64..3, prop_oneof![Just(0_i64), Just(LEASE_MS), Just(CLAIM_TTL_MS)])
                .prop_map(|(brand, age)| Transition::DropDead(brand, age)),
            1 => Just(Transition::Repair),
        ];
        let fetched = state.fetched.len();
        if fetched == 0 {
            return always.boxed();
        }
        // mostly the newest batches, which may still be held
        let batch = || prop_oneof![4 => fetched.saturating_sub(3)..fetched, 1 => 0..fetched];
        prop_oneof![
            5 => always,
            2 => (batch(), fates()).prop_map(|(batch, fates)| Transition::Ack(batch, fates)),
            1 => proptest::collection::vec(batch(), 1..3).prop_map(Transition::Beat),
        ]
        .boxed()
    }

    fn apply(mut state: Self, transition: &Transition) -> Self {
        state.step(transition);
        state
    }

    fn preconditions(state: &Self, transition: &Transition) -> bool {
        match transition {
            Transition::Ack(batch, _) => *batch < state.fetched.len(),
            Transition::Beat(batches) => batches.iter().all(|batch| *batch < state.fetched.len()),
            _ => true,
        }
    }
}
