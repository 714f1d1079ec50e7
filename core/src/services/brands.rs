//! What brands have set - settings, segments, automations - remembered for a moment.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::domain::automation::interests::Interests;
use crate::domain::event::Rejection;
use crate::domain::identity::Rules;
use crate::domain::ids::BrandId;
use crate::domain::settings::{BrandSettings, Limits};
use crate::ports::automations::Automations;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::ports::tenants::Tenants;
use crate::services::automations::playbook::{self, Playbook};

/// How long settings are believed without asking: a change holds everywhere after that time.
pub const SETTINGS_TTL: Duration = Duration::from_secs(5);
const REMEMBERED: u64 = 10_000;

/// What the brands that a batch speaks of have set. A brand that is not in it has the usual settings, and listens to nothing.
#[derive(Clone, Debug, Default)]
pub struct BrandRules {
    pub settings: HashMap<BrandId, Arc<BrandSettings>>,
    /// What their segments and automations listen to.
    pub interests: HashMap<BrandId, Arc<Interests>>,
}

impl BrandRules {
    pub fn limits(&self, brand: BrandId) -> &Limits {
        static USUAL: LazyLock<Limits> = LazyLock::new(Limits::default);
        self.settings.get(&brand).map_or(&USUAL, |settings| &settings.limits)
    }
}

/// What was found, and when.
#[derive(Clone)]
struct Found {
    playbook: Arc<Playbook>,
    rules: Arc<Rules>,
    at: Instant,
}

/// The settings of brands.
#[derive(Clone)]
pub struct Brands {
    tenants: Tenants,
    automations: Arc<dyn Automations>,
    found: Cache<BrandId, Found>,
    /// Whether shops were redacted.
    redacted: Cache<String, (bool, Instant)>,
}

/// Why a brand's e-mails may not come from where its settings say; `None` if they may. One relay carries all brands' mail, and signs for whatever
/// domain it is given: so the operator names the domains of each brand. Where there is one brand alone, its domain is the
/// operator's own matter, unless named.
///
/// # Errors
/// The store's own.
pub async fn sender_problem(
    tenants: &Tenants,
    brand: BrandId,
    settings: &BrandSettings,
) -> Result<Option<Rejection>, StoreError> {
    let Some(domain) = settings.sender_domain() else { return Ok(None) };
    let named = tenants.brands.email_domains(brand).await?;
    let allowed = match &named {
        Some(domains) => domains.contains(&domain),
        None => tenants.brands.brands().await?.iter().all(|(other, _)| *other == brand),
    };
    if allowed {
        return Ok(None);
    }
    let named = named.unwrap_or_default();
    let may = if named.is_empty() { "none".to_owned() } else { named.join(", ") };
    let all = [&named[..], std::slice::from_ref(&domain)].concat().join(" ");
    let message = format!(
        "email_from is of the domain {domain}, from which this brand may not send; it may from: {may}. Whoever runs the system names \
         all of them in one command: server admin brand domains NAME {all}"
    );
    Ok(Some(Rejection::new("invalid_settings", message)))
}

impl Brands {
    /// Asks `tenants` and `automations`.
    pub fn new(tenants: Tenants, automations: Arc<dyn Automations>) -> Self {
        Self { tenants, automations, found: Cache::new(REMEMBERED), redacted: Cache::new(REMEMBERED) }
    }

    /// The settings of these brands, for processing, and their rules of identity.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn of(
        &self,
        brands: BTreeSet<BrandId>,
    ) -> Result<(BrandRules, HashMap<BrandId, Arc<Rules>>), StoreError> {
        let (mut book, mut rules) = (BrandRules::default(), HashMap::new());
        for brand in brands {
            let found = self.found(brand).await?;
            book.settings.insert(brand, found.playbook.settings.clone());
            book.interests.insert(brand, found.playbook.interests.clone());
            rules.insert(brand, found.rules);
        }
        Ok((book, rules))
    }

    /// A brand's rules of identity.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn rules(&self, brand: BrandId) -> Result<Arc<Rules>, StoreError> {
        Ok(self.found(brand).await?.rules)
    }

    /// A brand's settings.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn settings(&self, brand: BrandId) -> Result<Arc<BrandSettings>, StoreError> {
        Ok(self.found(brand).await?.playbook.settings.clone())
    }

    /// What a brand has set up of segments and automations.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn playbook(&self, brand: BrandId) -> Result<Arc<Playbook>, StoreError> {
        Ok(self.found(brand).await?.playbook)
    }

    /// Forgets what is remembered of a brand: it has set up something new. Other processes see that after [`SETTINGS_TTL`].
    pub fn forget(&self, brand: BrandId) {
        self.found.invalidate(&brand);
    }

    /// Whether a shop's customers were erased, and it has not been added again.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn redacted(&self, shop: &str) -> Result<bool, StoreError> {
        if let Some((redacted, _)) = self.redacted.get(shop).filter(|(_, at)| at.elapsed() < SETTINGS_TTL) {
            return Ok(redacted);
        }
        let redacted = self.tenants.shops.shop(shop).await?.is_some_and(|shop| shop.redacted_at.is_some());
        self.redacted.insert(shop.to_owned(), (redacted, Instant::now()));
        Ok(redacted)
    }

    /// Sets a brand's settings, and adds to the audit log in the same transaction. They hold here at once, in other processes after [`SETTINGS_TTL`].
    ///
    /// # Errors
    /// The store's own.
    pub async fn set(
        &self,
        brand: BrandId,
        settings: &BrandSettings,
        note: Option<&AuditEntry>,
    ) -> Result<(), StoreError> {
        self.tenants.brands.set_settings(brand, settings, note).await?;
        self.found.invalidate(&brand);
        Ok(())
    }

    async fn found(&self, brand: BrandId) -> Result<Found, StoreError> {
        let held = self.found.get(&brand);
        if let Some(held) = held.as_ref().filter(|held| held.at.elapsed() < SETTINGS_TTL) {
            return Ok(held.clone());
        }
        let read = async {
            let mut settings = self.tenants.brands.settings(brand).await?;
            if let Some(why) = sender_problem(&self.tenants, brand, &settings).await? {
                // Set before its domain was taken back, or before domains were named: nothing is sent from there.
                tracing::warn!(%brand, why = why.message, "a brand may not send e-mail as its settings say");
                settings.email_from = None;
            }
            playbook::read(&*self.automations, brand, Arc::new(settings)).await
        };
        let playbook = match (read.await, held) {
            (Ok(playbook), _) => Arc::new(playbook),
            // Old rules serve better than none.
            (Err(StoreError::Unavailable(_)), Some(held)) => return Ok(held),
            (Err(error), _) => return Err(error),
        };
        let rules = Arc::new(Rules::of(&playbook.settings));
        let found = Found { playbook, rules, at: Instant::now() };
        self.found.insert(brand, found.clone());
        Ok(found)
    }
}
