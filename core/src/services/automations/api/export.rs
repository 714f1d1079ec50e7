//! What an export of a customer has of segments and automations.

use serde_json::{Value, json};

use super::{ActionAnswer, RunAnswer};
use crate::context::Context;
use crate::domain::ids::{BrandId, ProfileId};
use crate::domain::time::{self, from_ms};
use crate::ports::automations::RunFilter;
use crate::ports::store::StoreError;

/// Most runs, actions and changes of segments that an export has.
const HELD: i64 = 10_000;

/// What is held on a customer here, for an export.
pub(crate) struct Held {
    pub(crate) segments: Value,
    pub(crate) runs: Value,
    pub(crate) actions: Value,
}

/// All of it, at most [`HELD`] of each.
pub(crate) async fn held(context: &Context, brand: BrandId, id: ProfileId) -> Result<Held, StoreError> {
    let changes = context.automations.changes(brand, None, Some(id), None, HELD).await?;
    let runs =
        context.automations.runs(brand, RunFilter { profile: Some(id), ..RunFilter::default() }, None, HELD);
    let runs: Vec<RunAnswer> = runs.await?.iter().map(RunAnswer::from).collect();
    let actions = context.automations.actions_of(brand, id, HELD).await?;
    let actions: Vec<ActionAnswer> = actions.iter().map(ActionAnswer::from).collect();
    let changes: Vec<Value> = changes
        .iter()
        .map(|c| json!({"segment": c.segment, "entered": c.entered, "at": time::format(from_ms(c.at_ms))}))
        .collect();
    Ok(Held { segments: json!(changes), runs: json!(runs), actions: json!(actions) })
}
