//! What a brand has set up, ready to be used.

use std::collections::HashMap;
use std::sync::Arc;

use moka::sync::Cache;
use uuid::Uuid;

use crate::domain::automation::expression::{Expression, Scope, Written};
use crate::domain::automation::interests::Interests;
use crate::domain::automation::plan::Plan;
use crate::domain::automation::segment::{Segment, own};
use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::ports::automations::{AutomationStatus, Automations};
use crate::ports::store::StoreError;

/// Versions of an automation whose runs are woken at once by what they wait for. Runs of older ones see it when their wait ends.
const VERSIONS: i32 = 20;
/// Versions that are remembered as they were read.
const REMEMBERED: u64 = 10_000;

/// An automation, ready to be used.
#[derive(Clone, Debug)]
pub struct CompiledAutomation {
    pub id: Uuid,
    pub version: i32,
    pub status: AutomationStatus,
    pub plan: Arc<Plan>,
}

/// What a brand has set up.
#[derive(Debug)]
pub struct CompiledBrand {
    pub settings: Arc<BrandSettings>,
    /// Its segments, those that every brand has among them.
    pub segments: Vec<Segment>,
    pub automations: HashMap<Uuid, CompiledAutomation>,
    /// What all of it listens to.
    pub interests: Arc<Interests>,
    plans: Plans,
}

/// Reads what a brand has set up. What this program cannot read - a newer one wrote it - is left out, and said.
///
/// # Errors
/// When the store is unavailable.
pub async fn read(
    automations: &dyn Automations,
    plans: &Plans,
    brand: BrandId,
    settings: Arc<BrandSettings>,
) -> Result<CompiledBrand, StoreError> {
    let mut segments = own();
    for row in automations.segments(brand).await? {
        match Expression::parse_as(&row.expression, Scope::Segment, Written::Before) {
            Ok(expression) => segments.push(Segment { name: row.name, expression }),
            Err(error) => tracing::error!(segment = row.name, %error, "a segment cannot be read"),
        }
    }
    let mut playing = HashMap::new();
    for row in automations.automations(brand).await? {
        if let Some(plan) = plans.read(row.id, row.version, &row.definition) {
            playing.insert(
                row.id,
                CompiledAutomation { id: row.id, version: row.version, status: row.status, plan },
            );
        }
    }
    let versions = automations.versions(brand, VERSIONS).await?;
    let listening: Vec<Arc<Plan>> =
        versions.iter().filter_map(|of| plans.read(of.automation, of.version, &of.definition)).collect();
    let interests = Arc::new(Interests::of(&segments, listening.iter().map(|plan| &**plan)));
    Ok(CompiledBrand { settings, segments, automations: playing, interests, plans: plans.clone() })
}

/// Plans that were read, by automation and version. Clones share them.
#[derive(Clone, Debug)]
pub struct Plans(Cache<(Uuid, i32), Arc<Plan>>);

impl Default for Plans {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Plans {
    /// A version never changes: it is read once.
    fn read(&self, id: Uuid, version: i32, definition: &str) -> Option<Arc<Plan>> {
        if let Some(plan) = self.0.get(&(id, version)) {
            return Some(plan);
        }
        let read = serde_json::from_str(definition).map_err(|error| error.to_string());
        let written =
            |definition| Plan::written(&definition, Written::Before).map_err(|error| error.to_string());
        match read.and_then(written) {
            Ok(plan) => {
                let plan = Arc::new(plan);
                self.0.insert((id, version), plan.clone());
                Some(plan)
            }
            Err(error) => {
                tracing::error!(automation = %id, version, error, "an automation cannot be read");
                None
            }
        }
    }
}

impl CompiledBrand {
    /// What a version of an automation does; `None` when it is gone.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn plan(
        &self,
        automations: &dyn Automations,
        brand: BrandId,
        id: Uuid,
        version: i32,
    ) -> Result<Option<Arc<Plan>>, StoreError> {
        if let Some(playing) = self.automations.get(&id).filter(|playing| playing.version == version) {
            return Ok(Some(playing.plan.clone()));
        }
        if let Some(plan) = self.plans.0.get(&(id, version)) {
            return Ok(Some(plan));
        }
        let definition = automations.version(brand, id, version).await?;
        Ok(definition.and_then(|definition| self.plans.read(id, version, &definition)))
    }
}
