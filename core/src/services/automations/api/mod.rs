//! What the API does with segments, automations and runs.

mod definitions;
mod dry_run;
mod export;
mod runs;
pub mod segments;

use std::sync::Arc;

pub(super) use self::definitions::plan;
pub use self::definitions::{
    AutomationAnswer, MAX_AUTOMATIONS, automation, automations, create, delete, edit, reschedule, set_status,
};
pub use self::dry_run::{DryAnswer, DryRun, dry_run};
pub(crate) use self::export::held;
pub use self::runs::{ActionAnswer, EntryAnswer, RunAnswer, cancel, retry, run};
use crate::context::Context;
use crate::domain::automation::definition::Definition;
use crate::domain::automation::expression::{Expression, Scope};
use crate::domain::automation::plan::Plan;
use crate::domain::event::Rejection;
use crate::domain::ids::BrandId;
use crate::ports::store::StoreError;
use crate::services::automations::languages::LanguageError;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AutomationError {
    /// The request is wrong: where, and what would be right.
    #[error(transparent)]
    Invalid(#[from] Rejection),
    /// What it names does not exist.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// It cannot be done in the present state, and why.
    #[error("{0}")]
    Refused(String),
    /// Not now: the brand has something worked out already.
    #[error("{0}")]
    Busy(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs work in a user's language within its limits; `code` is that of the rejection where it takes too long.
pub(super) async fn within_limits<T: Send + 'static>(
    context: &Context,
    brand: BrandId,
    code: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AutomationError> {
    context.languages.ask(brand, work).await.map_err(|error| match error {
        LanguageError::Busy => AutomationError::Busy(error.to_string()),
        LanguageError::Overdue | LanguageError::Panicked(_) => Rejection::new(code, error.to_string()).into(),
    })
}

/// Parses an expression of a segment.
pub(super) async fn parse_expression(
    context: &Context,
    brand: BrandId,
    text: &str,
) -> Result<Arc<Expression>, AutomationError> {
    let text = text.to_owned();
    let code = "invalid_expression";
    Ok(within_limits(context, brand, code, move || Expression::parse(&text, Scope::Segment)).await??)
}

pub(super) async fn compile(
    context: &Context,
    brand: BrandId,
    definition: &Definition,
) -> Result<Plan, AutomationError> {
    let definition = definition.clone();
    Ok(within_limits(context, brand, "invalid_automation", move || Plan::of(&definition)).await??)
}
