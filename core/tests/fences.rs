//! Fencing tokens in the store: whatever the locks give out, a profile's committed tokens rise, strictly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::{StoreUnderTest, postgres_store, sqlite_store};
use tributary_core::domain::customer360::{Asked, CustomerRecord, Revision};
use tributary_core::domain::event::{Event, Source};
use tributary_core::domain::history::{Merge, Retold};
use tributary_core::domain::identity::{Counts, Identifier, Standing};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::profile::Profile;
use tributary_core::domain::time::Timestamp;
use tributary_core::ports::outbox::Stage;
use tributary_core::ports::privacy::AuditEntry;
use tributary_core::ports::store::{
    BodyRow, BrandIdentifier, BrandOrder, Claim, ConsentRow, EventRow, GivenBack, KnownEvents, MergeRow,
    Move, OrderKey, PrivacyRow, ProductRow, Relation, RelationKind, Store, StoreError, StoreStats, StoreTx,
};

on_every_adapter!({ sqlite: crate::sqlite_store, postgres: crate::postgres_store } [
    committed_tokens_of_a_profile_rise_strictly,
]);

const PROFILES: usize = 3;

/// A holder's try: which profiles, under which token, and whether it dies before the commit.
#[derive(Clone, Debug)]
struct Try {
    profiles: Vec<usize>,
    token: i64,
    dies: bool,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one =
        (proptest::sample::subsequence(vec![0, 1, 2], 1..=PROFILES), 1_i64..8, proptest::bool::weighted(0.2));
    proptest::collection::vec(one.prop_map(|(profiles, token, dies)| Try { profiles, token, dies }), 1..20)
}

/// Profiles that nobody has merged.
async fn fresh_profiles(store: &dyn Store) -> Vec<ProfileId> {
    let ids: Vec<ProfileId> = (0..PROFILES).map(|_| ProfileId::new(1_768_000_000_000)).collect();
    let profiles: Vec<Profile> = ids.iter().map(|id| Profile::new(*id, BrandId(1))).collect();
    let mut tx = store.begin().await.unwrap();
    tx.save_profiles(&profiles).await.unwrap();
    tx.commit().await.unwrap();
    ids
}

async fn follow(store: &dyn Store, tries: &[Try]) -> Result<(), TestCaseError> {
    let mut ids = fresh_profiles(store).await;
    ids.sort();
    let mut last = [0_i64; PROFILES];
    for Try { profiles, token, dies } in tries {
        let chosen: Vec<ProfileId> = profiles.iter().map(|at| ids[*at]).collect();
        let rises = profiles.iter().all(|at| last[*at] < *token);
        let mut tx = store.begin().await.unwrap();
        prop_assert_eq!(tx.lock(&chosen).await.unwrap().len(), chosen.len());
        let stamped = tx.fence(&chosen, Some(*token)).await;
        prop_assert_eq!(stamped.is_ok(), rises, "token {} after {:?}", token, last);
        if stamped.is_ok() && !dies {
            tx.commit().await.unwrap();
            for at in profiles {
                last[*at] = *token;
            }
        }
    }
    Ok(())
}

fn check(store: &dyn Store, cases: u32) -> Result<(), String> {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        TestRunner::new(config)
            .run(&tries(), |tries| handle.block_on(follow(store, &tries)))
            .map_err(|error| error.to_string())
    })
}

async fn committed_tokens_of_a_profile_rise_strictly(u: &StoreUnderTest) {
    check(&*u.store, support::cases(48)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_a_token_twice_is_caught() {
    let on = sqlite_store().await;
    let lax = Lax(on.store.clone(), Arc::default());
    assert!(check(&lax, 200).is_err(), "nobody noticed that the check was not strict");
}

/// A store whose check is `<=` instead of `<`: each stamp is a little higher than its token, so that the same token passes
/// again, and a lower one does not.
struct Lax(Arc<dyn Store>, Arc<AtomicI64>);

struct LaxTx {
    inner: Box<dyn StoreTx>,
    stamps: Arc<AtomicI64>,
}

#[async_trait]
impl Store for Lax {
    async fn begin(&self) -> Result<Box<dyn StoreTx>, StoreError> {
        Ok(Box::new(LaxTx { inner: self.0.begin().await?, stamps: self.1.clone() }))
    }
    async fn owner(&self, brand: BrandId, identifier: &Identifier) -> Result<Option<ProfileId>, StoreError> {
        self.0.owner(brand, identifier).await
    }
    async fn revision(&self, brand: BrandId, asked: &Asked) -> Result<Option<Revision>, StoreError> {
        self.0.revision(brand, asked).await
    }

    async fn customer(&self, brand: BrandId, id: ProfileId) -> Result<Option<CustomerRecord>, StoreError> {
        self.0.customer(brand, id).await
    }
    async fn body_topics(
        &self,
        brand: BrandId,
        shop: &str,
        digest: &[u8; 32],
    ) -> Result<Vec<String>, StoreError> {
        self.0.body_topics(brand, shop, digest).await
    }
    async fn last_fence(&self) -> Result<i64, StoreError> {
        self.0.last_fence().await
    }
    async fn stats(&self, brand: BrandId) -> Result<StoreStats, StoreError> {
        self.0.stats(brand).await
    }
    async fn ping(&self) -> Result<(), StoreError> {
        self.0.ping().await
    }

    async fn now_ms(&self) -> Result<i64, StoreError> {
        self.0.now_ms().await
    }
}

#[async_trait]
impl StoreTx for LaxTx {
    async fn fence(&mut self, ids: &[ProfileId], token: Option<i64>) -> Result<(), StoreError> {
        let stamp = self.stamps.fetch_add(1, Ordering::SeqCst);
        self.inner.fence(ids, token.map(|token| token * 1_000_000 + stamp)).await
    }
    async fn known_events(&mut self, events: &[Event]) -> Result<KnownEvents, StoreError> {
        self.inner.known_events(events).await
    }
    async fn body_topics(&mut self, rows: &[BodyRow<'_>]) -> Result<Vec<Vec<String>>, StoreError> {
        self.inner.body_topics(rows).await
    }
    async fn claim_bodies(&mut self, rows: &[BodyRow<'_>], at: Timestamp) -> Result<(), StoreError> {
        self.inner.claim_bodies(rows, at).await
    }
    async fn owners(
        &mut self,
        of: &[BrandIdentifier],
    ) -> Result<Vec<(BrandIdentifier, ProfileId, Source)>, StoreError> {
        self.inner.owners(of).await
    }
    async fn claim(&mut self, of: &[Claim]) -> Result<Vec<BrandIdentifier>, StoreError> {
        self.inner.claim(of).await
    }

    async fn disown(&mut self, of: &[(BrandIdentifier, ProfileId)]) -> Result<(), StoreError> {
        self.inner.disown(of).await
    }

    async fn raise(&mut self, of: &[(BrandIdentifier, Source)]) -> Result<Vec<BrandIdentifier>, StoreError> {
        self.inner.raise(of).await
    }

    async fn trusted_counts(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Counts>, StoreError> {
        self.inner.trusted_counts(ids).await
    }
    async fn lock(&mut self, ids: &[ProfileId]) -> Result<Vec<Profile>, StoreError> {
        self.inner.lock(ids).await
    }
    async fn add_events(&mut self, rows: &[EventRow<'_>]) -> Result<HashSet<(BrandId, String)>, StoreError> {
        self.inner.add_events(rows).await
    }
    async fn save_profiles(&mut self, profiles: &[Profile]) -> Result<(), StoreError> {
        self.inner.save_profiles(profiles).await
    }
    async fn suppressed(&mut self, of: &[BrandIdentifier]) -> Result<HashSet<BrandIdentifier>, StoreError> {
        self.inner.suppressed(of).await
    }
    async fn standings(&mut self, ids: &[ProfileId]) -> Result<HashMap<ProfileId, Standing>, StoreError> {
        self.inner.standings(ids).await
    }
    async fn relations(
        &mut self,
        ids: &[ProfileId],
    ) -> Result<BTreeSet<(ProfileId, ProfileId, RelationKind)>, StoreError> {
        self.inner.relations(ids).await
    }
    async fn relate(&mut self, relations: &[Relation]) -> Result<(), StoreError> {
        self.inner.relate(relations).await
    }
    async fn record_merges(&mut self, merges: &[MergeRow]) -> Result<(), StoreError> {
        self.inner.record_merges(merges).await
    }
    async fn move_owned(&mut self, moves: &[Move], related: bool) -> Result<(), StoreError> {
        self.inner.move_owned(moves, related).await
    }
    async fn orders(&mut self, keys: &[OrderKey]) -> Result<Vec<BrandOrder>, StoreError> {
        self.inner.orders(keys).await
    }
    async fn save_orders(&mut self, rows: &[BrandOrder]) -> Result<(), StoreError> {
        self.inner.save_orders(rows).await
    }
    async fn save_products(&mut self, rows: &[ProductRow<'_>]) -> Result<(), StoreError> {
        self.inner.save_products(rows).await
    }
    async fn save_consents(&mut self, rows: &[ConsentRow<'_>]) -> Result<(), StoreError> {
        self.inner.save_consents(rows).await
    }
    async fn ask(&mut self, rows: &[PrivacyRow]) -> Result<(), StoreError> {
        self.inner.ask(rows).await
    }
    async fn blank_events(&mut self, events: &[(BrandId, String)]) -> Result<(), StoreError> {
        self.inner.blank_events(events).await
    }
    async fn rewrite_merge(&mut self, merge: &Merge) -> Result<(), StoreError> {
        self.inner.rewrite_merge(merge).await
    }
    async fn give_back(&mut self, from: ProfileId, to: ProfileId) -> Result<GivenBack, StoreError> {
        self.inner.give_back(from, to).await
    }
    async fn events_of(
        &mut self,
        id: ProfileId,
        after: Option<&(Timestamp, String)>,
        limit: i64,
    ) -> Result<Vec<Retold>, StoreError> {
        self.inner.events_of(id, after, limit).await
    }
    async fn undo_merge(&mut self, id: uuid::Uuid, at: Timestamp) -> Result<(), StoreError> {
        self.inner.undo_merge(id, at).await
    }
    async fn stage(&mut self, stages: &[Stage], now_ms: i64) -> Result<(), StoreError> {
        self.inner.stage(stages, now_ms).await
    }
    async fn note(&mut self, entry: &AuditEntry) -> Result<(), StoreError> {
        self.inner.note(entry).await
    }
    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.inner.commit().await
    }
}
