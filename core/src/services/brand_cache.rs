//! What brands have set - settings, segments, automations - remembered for a moment.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::domain::automation::interests::Interests;
use crate::domain::event::Rejection;
use crate::domain::identity::Rules;
use crate::domain::ids::BrandId;
use crate::domain::settings::{BrandSettings, Limits};
use crate::ports::automations::Automations;
use crate::ports::brands::BrandPorts;
use crate::ports::privacy::AuditEntry;
use crate::ports::store::StoreError;
use crate::ports::world::World;
use crate::remembered::Remembered;
use crate::services::automations::compiled::{self, CompiledBrand, Plans};

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

/// What was found of a brand.
#[derive(Clone)]
struct Found {
    compiled: Arc<CompiledBrand>,
    rules: Arc<Rules>,
}

/// The settings of brands.
#[derive(Clone)]
pub struct BrandCache {
    brand_ports: BrandPorts,
    automations: Arc<dyn Automations>,
    plans: Plans,
    found: Remembered<BrandId, Found>,
    /// Whether shops were redacted.
    redacted: Remembered<String, bool>,
}

/// Why a brand's e-mails may not come from where its settings say; `None` if they may. One relay carries all brands' mail, and signs for whatever
/// domain it is given: so the operator names the domains of each brand. Where there is one brand alone, its domain is the
/// operator's own matter, unless named.
///
/// # Errors
/// The store's own.
pub async fn sender_problem(
    brand_ports: &BrandPorts,
    brand: BrandId,
    settings: &BrandSettings,
) -> Result<Option<Rejection>, StoreError> {
    let Some(domain) = settings.sender_domain() else { return Ok(None) };
    let named = brand_ports.brands.email_domains(brand).await?;
    let allowed = match &named {
        Some(domains) => domains.contains(&domain),
        None => brand_ports.brands.brands().await?.iter().all(|(other, _)| *other == brand),
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

impl BrandCache {
    /// Asks `brand_ports` and `automations`.
    pub fn new(brand_ports: BrandPorts, automations: Arc<dyn Automations>, world: &World) -> Self {
        Self {
            brand_ports,
            automations,
            plans: Plans::default(),
            found: Remembered::new(world.clone(), REMEMBERED),
            redacted: Remembered::new(world.clone(), REMEMBERED),
        }
    }

    /// The settings of these brands, for processing, and their rules of identity.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn of(
        &self,
        brands: BTreeSet<BrandId>,
    ) -> Result<(BrandRules, HashMap<BrandId, Arc<Rules>>), StoreError> {
        let (mut brand_rules, mut rules) = (BrandRules::default(), HashMap::new());
        for brand in brands {
            let found = self.found(brand).await?;
            brand_rules.settings.insert(brand, found.compiled.settings.clone());
            brand_rules.interests.insert(brand, found.compiled.interests.clone());
            rules.insert(brand, found.rules);
        }
        Ok((brand_rules, rules))
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
        Ok(self.found(brand).await?.compiled.settings.clone())
    }

    /// What a brand has set up of segments and automations.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn compiled(&self, brand: BrandId) -> Result<Arc<CompiledBrand>, StoreError> {
        Ok(self.found(brand).await?.compiled)
    }

    /// Forgets what is remembered of a brand: it has set up something new. Other processes see that after [`SETTINGS_TTL`].
    pub fn forget(&self, brand: BrandId) {
        self.found.forget(&brand);
    }

    /// Whether a shop's customers were erased, and it has not been added again.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn redacted(&self, shop: &str) -> Result<bool, StoreError> {
        let shop = shop.to_owned();
        if let Some(redacted) = self.redacted.fresh(&shop) {
            return Ok(redacted);
        }
        let redacted =
            self.brand_ports.shops.shop(&shop).await?.is_some_and(|shop| shop.redacted_at.is_some());
        self.redacted.put(shop, redacted, SETTINGS_TTL, SETTINGS_TTL);
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
        self.brand_ports.brands.set_settings(brand, settings, note).await?;
        self.found.forget(&brand);
        Ok(())
    }

    async fn found(&self, brand: BrandId) -> Result<Found, StoreError> {
        let read = async {
            let mut settings = self.brand_ports.brands.settings(brand).await?;
            if let Some(why) = sender_problem(&self.brand_ports, brand, &settings).await? {
                // Set before its domain was taken back, or before domains were named: nothing is sent from there.
                tracing::warn!(%brand, why = why.message, "a brand may not send e-mail as its settings say");
                settings.email_from = None;
            }
            let compiled = compiled::read(&*self.automations, &self.plans, brand, Arc::new(settings)).await?;
            let rules = Arc::new(Rules::of(&compiled.settings));
            Ok(Some(Found { compiled: Arc::new(compiled), rules }))
        };
        let found = self.found.refreshed(brand, SETTINGS_TTL, read).await?;
        found.ok_or_else(|| StoreError::Invalid("a brand without settings".into()))
    }
}
