//! Segments: made, changed, deleted, and tried before they are kept.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::definitions::segment_of;
use super::{AutomationError, parse_expression, within_limits};
use crate::context::Context;
use crate::domain::automation::definition::Definition;
use crate::domain::automation::expression::Expression;
use crate::domain::automation::facts::Facts;
use crate::domain::automation::meter::{self, PAGE as PAGE_EFFORT};
use crate::domain::automation::segment::{self, MAX_SEGMENTS, RFM, SegmentInput, SegmentRow};
use crate::domain::ids::BrandId;
use crate::domain::settings::BrandSettings;
use crate::domain::time::{self, Timestamp, from_ms};
use crate::ports::store::StoreError;
use crate::services::automations::jobs::Job;

/// Customers that a preview looks at.
pub const PREVIEWED: i64 = 2000;

/// Those of them that it lists.
pub const PREVIEW_LISTED: usize = 20;

/// Customers that are read at once.
const PAGE: i64 = 500;

/// A segment, as people see it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SegmentAnswer {
    /// What it is called.
    pub name: String,
    /// Who belongs to it: a CEL expression.
    pub expression: String,
    /// Free text for people; nothing is made of it.
    pub description: Option<String>,
    /// Whether every brand has it: then it cannot be changed.
    pub own: bool,
    /// How many customers belong to it.
    pub members: i64,
    /// When it was last changed; null for one that every brand has.
    pub updated_at: Option<String>,
}

/// All segments of a brand: those that every brand has first.
///
/// # Errors
/// When the store is unavailable.
pub async fn list(context: &Context, brand: BrandId) -> Result<Vec<SegmentAnswer>, StoreError> {
    let counts = context.automations.member_counts(brand).await?;
    let members = |name: &str| counts.get(name).copied().unwrap_or_default();
    let own = RFM.iter().map(|(name, expression, description)| SegmentAnswer {
        name: (*name).to_owned(),
        expression: (*expression).to_owned(),
        description: Some((*description).to_owned()),
        own: true,
        members: members(name),
        updated_at: None,
    });
    let rows = context.automations.segments(brand).await?;
    let written = rows.into_iter().map(|row| SegmentAnswer {
        members: members(&row.name),
        name: row.name,
        expression: row.expression,
        description: row.description,
        own: false,
        updated_at: Some(time::format(from_ms(row.updated_ms))),
    });
    Ok(own.chain(written).collect())
}

/// One of them.
///
/// # Errors
/// When there is none, or the store is unavailable.
pub async fn get(context: &Context, brand: BrandId, name: &str) -> Result<SegmentAnswer, AutomationError> {
    let found = list(context, brand).await?.into_iter().find(|segment| segment.name == name);
    found.ok_or(AutomationError::NotFound("segment"))
}

/// Writes a segment, new or changed. Who belongs to it is found from now on, in the background; no runs begin by that.
///
/// # Errors
/// When the name or the expression makes no sense, there are too many, or the store is unavailable.
pub async fn put(
    context: &Context,
    brand: BrandId,
    name: &str,
    input: SegmentInput,
) -> Result<SegmentAnswer, AutomationError> {
    segment::check_name(name)?;
    parse_expression(context, brand, &input.expression).await?;
    let rows = context.automations.segments(brand).await?;
    let old = rows.iter().find(|row| row.name == name);
    if old.is_none() && rows.len() >= MAX_SEGMENTS {
        return Err(AutomationError::Refused(format!("a brand has at most {MAX_SEGMENTS} segments")));
    }
    let now_ms = context.world.now_ms();
    let row = SegmentRow {
        brand,
        name: name.to_owned(),
        expression: input.expression,
        description: input.description,
        created_ms: old.map_or(now_ms, |old| old.created_ms),
        updated_ms: now_ms,
    };
    let mut tx = context.automations.begin_for(brand).await?;
    tx.save_segment(&row).await?;
    let fill = Job::Fill { brand, segments: vec![name.to_owned()], after: None };
    tx.stage(&[fill.stage()], now_ms).await?;
    tx.commit().await?;
    context.brand_cache.forget(brand);
    get(context, brand, name).await
}

/// Asks all customers again which of the segments they belong to that every brand has: their bounds are others.
///
/// # Errors
/// When the store is unavailable.
pub async fn refill(context: &Context, brand: BrandId) -> Result<(), StoreError> {
    let mut tx = context.automations.begin_for(brand).await?;
    let fill = Job::Fill { brand, segments: segment::own_names(), after: None };
    tx.stage(&[fill.stage()], context.world.now_ms()).await?;
    tx.commit().await
}

/// Takes a segment out.
///
/// # Errors
/// When there is none, an automation needs it, or the store is unavailable.
pub async fn delete(context: &Context, brand: BrandId, name: &str) -> Result<(), AutomationError> {
    if name.starts_with(segment::OWN) {
        return Err(AutomationError::Refused("every brand has this segment".to_owned()));
    }
    for row in context.automations.automations(brand).await? {
        let definition: Option<Definition> = serde_json::from_str(&row.definition).ok();
        if definition.is_some_and(|definition| segment_of(&definition) == Some(name)) {
            return Err(AutomationError::Refused(format!("the automation {:?} is started by it", row.name)));
        }
    }
    if !context.automations.delete_segment(brand, name).await? {
        return Err(AutomationError::NotFound("segment"));
    }
    context.brand_cache.forget(brand);
    Ok(())
}

/// Who would belong to a segment.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = SegmentPreview)]
pub struct Preview {
    /// How many customers were looked at: at most 2000.
    pub examined: usize,
    /// How many of them would belong.
    pub matched: usize,
    /// Some of the customers that belong to it.
    pub customers: Vec<Value>,
    /// How many could not be answered for: a field that they have not got, for example.
    pub unanswered: usize,
    /// Why one of these could not.
    pub why: Option<String>,
}

/// Who would belong to a segment of that expression. Nothing is changed.
///
/// # Errors
/// When the expression makes no sense, or the store is unavailable.
#[tracing::instrument(name = "preview_segment", skip_all, fields(brand = brand.0))]
pub async fn preview(context: &Context, brand: BrandId, text: &str) -> Result<Preview, AutomationError> {
    let expression = parse_expression(context, brand, text).await?;
    let settings = context.brand_cache.settings(brand).await?;
    let now = context.world.now();
    let mut preview = Preview::default();
    let mut after = None;
    while (preview.examined as i64) < PREVIEWED {
        let ids = context.automations.profiles(brand, after, PAGE).await?;
        after = ids.last().copied();
        // The connection is given back before anything is evaluated.
        let sees = expression.references("events");
        let facts = context.automations.begin_reading(brand).await?.facts(&ids, sees).await?;
        let (expression, settings) = (expression.clone(), settings.clone());
        let full = ids.len() as i64 == PAGE;
        preview = within_limits(context, brand, "invalid_expression", move || {
            meter::within(PAGE_EFFORT, || {
                for facts in ids.iter().filter_map(|id| facts.get(id)) {
                    preview.look_at(facts, &expression, &settings, now);
                }
                preview
            })
            .0
        })
        .await?;
        if !full {
            break;
        }
    }
    Ok(preview)
}

impl Preview {
    fn look_at(&mut self, facts: &Facts, expression: &Expression, settings: &BrandSettings, now: Timestamp) {
        self.examined += 1;
        let verdict = expression.holds(facts, None, settings, now);
        if verdict.holds {
            self.matched += 1;
            if self.customers.len() < PREVIEW_LISTED {
                self.customers.push(json!({"id": facts.profile.id, "email": facts.email()}));
            }
        }
        if let Some(why) = verdict.why {
            self.unanswered += 1;
            self.why.get_or_insert(why);
        }
    }
}
