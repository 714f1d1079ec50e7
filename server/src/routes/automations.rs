//! Automations and their runs, with a secret key.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tributary_core::domain::automation::definition::Definition;
use tributary_core::domain::automation::presets;
use tributary_core::domain::automation::run::Status;
use tributary_core::domain::ids::ProfileId;
use tributary_core::domain::time::{self, Timestamp};
use tributary_core::ports::automations::{AutomationStatus, RunFilter};
use tributary_core::ports::brands::BrandSecrets;
use tributary_core::services::automations::api::{self, AutomationAnswer, DryAnswer, DryRun, RunAnswer};
use tributary_core::services::automations::signing;
use tributary_core::services::automations::trial::{self, Trial, TrialAnswer};
use tributary_core::services::privacy::{Action, note};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::customers::customer_id;
use super::settings::Rotation;
use crate::auth::Secret;
use crate::codes::{BODY, SECRET};
use crate::error::ApiError;
use crate::errors;
use crate::extract::{JsonBody, OptionalJsonBody, QueryOf};
use crate::paging::PageAsked;
use crate::state::AppState;

errors!(ListErrors: SECRET);
errors!(OneErrors: SECRET, &["not_found"]);
errors!(NewErrors: SECRET, BODY, &["invalid_gzip", "invalid_automation", "invalid_expression", "refused"]);
errors!(EditErrors: SECRET, BODY, &["invalid_gzip", "invalid_automation", "invalid_expression", "not_found", "refused"]);
errors!(DryErrors: SECRET, BODY, &["invalid_gzip", "not_found", "invalid_automation"]);
errors!(TestErrors: SECRET, BODY, &["invalid_gzip", "not_found", "invalid_automation", "refused"]);
errors!(RunsErrors: SECRET, &["not_found", "invalid_query", "invalid_limit", "invalid_after"]);
errors!(AllRunsErrors: SECRET, &["invalid_query", "invalid_limit", "invalid_after"]);
errors!(SigningErrors: SECRET, BODY, &["invalid_gzip", "invalid_settings"]);
errors!(UseErrors: SECRET, &["not_found", "refused"]);
errors!(ChangeErrors: SECRET, &["not_found", "refused"]);

/// All automations of a brand, in one answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct AutomationList {
    /// The automations, the oldest first.
    automations: Vec<AutomationAnswer>,
}

/// Lists the brand's automations.
#[utoipa::path(get, path = "/api/automations", tag = "Automations", security(("secret_key" = [])),
    responses((status = 200, body = AutomationList), ListErrors))]
pub async fn list(State(state): State<AppState>, secret: Secret) -> Result<Json<AutomationList>, ApiError> {
    Ok(Json(AutomationList { automations: api::automations(&state.context, secret.brand).await? }))
}

/// Makes an automation: a draft, which does nothing until it is activated.
#[utoipa::path(post, path = "/api/automations", tag = "Automations", security(("secret_key" = [])), request_body = Definition,
    responses((status = 201, body = AutomationAnswer), NewErrors))]
pub async fn create(
    State(state): State<AppState>,
    secret: Secret,
    JsonBody(definition): JsonBody<Definition>,
) -> Result<(StatusCode, Json<AutomationAnswer>), ApiError> {
    let deed = api::create(&state.context, secret.brand, &definition);
    let made = state.audited(&secret, "automation_made", json!({"name": definition.name}), deed).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// One automation, with how its runs stand.
#[utoipa::path(get, path = "/api/automations/{id}", tag = "Automations", security(("secret_key" = [])), params(("id" = String, Path)),
    responses((status = 200, body = AutomationAnswer), OneErrors))]
pub async fn show(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<AutomationAnswer>, ApiError> {
    Ok(Json(api::automation(&state.context, secret.brand, automation_id(&id)?).await?))
}

/// Edits an automation. Runs that are under way finish on the version that they began with.
#[utoipa::path(put, path = "/api/automations/{id}", tag = "Automations", security(("secret_key" = [])), params(("id" = String, Path)),
    request_body = Definition, responses((status = 200, body = AutomationAnswer), EditErrors))]
pub async fn edit(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    JsonBody(definition): JsonBody<Definition>,
) -> Result<Json<AutomationAnswer>, ApiError> {
    let id = automation_id(&id)?;
    let deed = api::edit(&state.context, secret.brand, id, &definition);
    let edited = state.audited(&secret, "automation_edited", json!({"automation": id}), deed).await?;
    Ok(Json(edited))
}

/// An automation that was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub struct AutomationDeleted {
    /// The id of the automation that is deleted.
    deleted: Uuid,
}

/// Takes an automation out. Its live runs are cancelled.
#[utoipa::path(delete, path = "/api/automations/{id}", tag = "Automations", security(("secret_key" = [])), params(("id" = String, Path)),
    responses((status = 200, body = AutomationDeleted), OneErrors))]
pub async fn delete(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<AutomationDeleted>, ApiError> {
    let id = automation_id(&id)?;
    let deed = api::delete(&state.context, secret.brand, id);
    state.audited(&secret, "automation_deleted", json!({"automation": id}), deed).await?;
    Ok(Json(AutomationDeleted { deleted: id }))
}

/// Lets an automation run. It listens everywhere within 5 s. Refused where a step would fail for every customer: without a mail server, a
/// public address, a sender, or with an address that nothing may be posted to.
#[utoipa::path(post, path = "/api/automations/{id}/activate", tag = "Automations", security(("secret_key" = [])),
    params(("id" = String, Path)), responses((status = 200, body = AutomationAnswer), ChangeErrors))]
pub async fn activate(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<AutomationAnswer>, ApiError> {
    set_status(&state, &secret, &id, AutomationStatus::Active, "automation_activated").await
}

/// Pauses an automation: it starts nothing, and its runs stand still until it is activated again.
#[utoipa::path(post, path = "/api/automations/{id}/pause", tag = "Automations", security(("secret_key" = [])),
    params(("id" = String, Path)), responses((status = 200, body = AutomationAnswer), OneErrors))]
pub async fn pause(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<AutomationAnswer>, ApiError> {
    set_status(&state, &secret, &id, AutomationStatus::Paused, "automation_paused").await
}

async fn set_status(
    state: &AppState,
    secret: &Secret,
    id: &str,
    status: AutomationStatus,
    what: &'static str,
) -> Result<Json<AutomationAnswer>, ApiError> {
    let id = automation_id(id)?;
    let deed = api::set_status(&state.context, secret.brand, id, status);
    let changed = state.audited(secret, what, json!({"automation": id}), deed).await?;
    Ok(Json(changed))
}

/// What an automation would do for a customer, by what is known of them now. Nothing is done.
#[utoipa::path(post, path = "/api/automations/{id}/dry-run", tag = "Automations", security(("secret_key" = [])),
    params(("id" = String, Path)), request_body = DryRun, responses((status = 200, body = DryAnswer), DryErrors))]
pub async fn dry_run(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    JsonBody(asked): JsonBody<DryRun>,
) -> Result<Json<DryAnswer>, ApiError> {
    Ok(Json(api::dry_run(&state.context, secret.brand, automation_id(&id)?, &asked).await?))
}

/// Sends an automation's e-mails to an address of yours, as a customer would get them: those of all its branches, at once. No run begins,
/// and no link in them works. Waits up to 15 s for the mail server's answers.
#[utoipa::path(post, path = "/api/automations/{id}/test", tag = "Automations", security(("secret_key" = [])),
    params(("id" = String, Path)), request_body = Trial, responses((status = 200, body = TrialAnswer), TestErrors))]
pub async fn test(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    JsonBody(trial): JsonBody<Trial>,
) -> Result<Json<TrialAnswer>, ApiError> {
    let id = automation_id(&id)?;
    let deed = trial::ask(&state.context, secret.brand, id, trial);
    Ok(Json(state.audited(&secret, "automation_tested", json!({"automation": id}), deed).await?))
}

/// Which runs are listed, and which page of them.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunsQuery {
    /// The `next` of the page before
    after: Option<String>,
    /// 1 to 100; 20 if absent
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// Only those that stand so
    status: Option<Status>,
    /// Only those of this customer
    customer: Option<String>,
}

/// A page of runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunPage {
    /// The runs, newest first.
    runs: Vec<RunAnswer>,
    /// Where the next page begins; null after the last.
    next: Option<Uuid>,
}

/// An automation's runs, newest first, with every step and why it was executed or skipped.
#[utoipa::path(get, path = "/api/automations/{id}/runs", tag = "Automations", security(("secret_key" = [])),
    params(("id" = String, Path), RunsQuery), responses((status = 200, body = RunPage), RunsErrors))]
pub async fn runs(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
    QueryOf(query): QueryOf<RunsQuery>,
) -> Result<Json<RunPage>, ApiError> {
    let asked = RunsAsked::of(&query, Some(automation_id(&id)?))?;
    if let Some(id) = asked.filter.automation {
        api::automation(&state.context, secret.brand, id).await?;
    }
    asked.page(&state, &secret).await
}

/// The runs of all automations, newest first: those that have failed, with `status=failed`.
#[utoipa::path(get, path = "/api/runs", tag = "Automations", security(("secret_key" = [])), params(RunsQuery),
    responses((status = 200, body = RunPage), AllRunsErrors))]
pub async fn all_runs(
    State(state): State<AppState>,
    secret: Secret,
    QueryOf(query): QueryOf<RunsQuery>,
) -> Result<Json<RunPage>, ApiError> {
    RunsAsked::of(&query, None)?.page(&state, &secret).await
}

/// Which page of which runs.
struct RunsAsked {
    filter: RunFilter,
    page: PageAsked<Uuid>,
}

impl RunsAsked {
    fn of(query: &RunsQuery, automation: Option<Uuid>) -> Result<Self, ApiError> {
        let profile = query.customer.as_deref().map(customer_id).transpose();
        let profile: Option<ProfileId> = profile.map_err(|_| {
            ApiError::bad_request("invalid_query", "customer must be a customer's id, a UUID")
        })?;
        Ok(Self {
            filter: RunFilter { automation, profile, status: query.status },
            page: PageAsked::by_id("after", query.after.as_deref(), query.limit)?,
        })
    }

    async fn page(self, state: &AppState, secret: &Secret) -> Result<Json<RunPage>, ApiError> {
        let Self { filter, page } = self;
        let runs = state.context.automations.runs(secret.brand, filter, page.cursor, page.rows()).await?;
        let next = page.next(&runs, |run| run.id);
        Ok(Json(RunPage { runs: runs.iter().map(RunAnswer::from).collect(), next }))
    }
}

/// One run, with what it did outside.
#[utoipa::path(get, path = "/api/runs/{run}", tag = "Automations", security(("secret_key" = [])), params(("run" = String, Path)),
    responses((status = 200, body = RunAnswer), OneErrors))]
pub async fn run(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<RunAnswer>, ApiError> {
    Ok(Json(api::run(&state.context, secret.brand, run_id(&id)?).await?))
}

/// Tries a failed run's action again.
#[utoipa::path(post, path = "/api/runs/{run}/retry", tag = "Automations", security(("secret_key" = [])),
    params(("run" = String, Path)), responses((status = 200, body = RunAnswer), ChangeErrors))]
pub async fn retry(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<RunAnswer>, ApiError> {
    Ok(Json(api::retry(&state.context, secret.brand, run_id(&id)?, &secret.actor).await?))
}

/// Ends a run. What it is doing outside at this moment may still be done.
#[utoipa::path(post, path = "/api/runs/{run}/cancel", tag = "Automations", security(("secret_key" = [])),
    params(("run" = String, Path)), responses((status = 200, body = RunAnswer), ChangeErrors))]
pub async fn cancel(
    State(state): State<AppState>,
    Path(id): Path<String>,
    secret: Secret,
) -> Result<Json<RunAnswer>, ApiError> {
    Ok(Json(api::cancel(&state.context, secret.brand, run_id(&id)?, &secret.actor).await?))
}

/// A definition to begin with.
#[derive(Debug, Serialize, ToSchema)]
pub struct TemplateAnswer {
    /// What it is named by.
    name: &'static str,
    /// The definition, to be changed and posted as an automation.
    definition: Definition,
}

/// Definitions to begin with.
#[derive(Debug, Serialize, ToSchema)]
pub struct TemplateList {
    /// All templates that this version has.
    templates: Vec<TemplateAnswer>,
}

/// Templates: abandoned cart, welcome, win-back, review, VIP.
#[utoipa::path(get, path = "/api/automation-templates", tag = "Automations", security(("secret_key" = [])),
    responses((status = 200, body = TemplateList), ListErrors))]
pub async fn templates(State(_): State<AppState>, _: Secret) -> Result<Json<TemplateList>, ApiError> {
    let answer =
        |preset: presets::Preset| TemplateAnswer { name: preset.name, definition: preset.definition };
    Ok(Json(TemplateList { templates: presets::all().into_iter().map(answer).collect() }))
}

/// Makes a draft of a definition to begin with.
#[utoipa::path(post, path = "/api/automation-templates/{template}", tag = "Automations", security(("secret_key" = [])),
    params(("template" = String, Path)), responses((status = 201, body = AutomationAnswer), UseErrors))]
pub async fn use_template(
    State(state): State<AppState>,
    Path(name): Path<String>,
    secret: Secret,
) -> Result<(StatusCode, Json<AutomationAnswer>), ApiError> {
    let all = presets::all();
    let names: Vec<&str> = all.iter().map(|preset| preset.name).collect();
    let missing =
        || ApiError::not_found(format!("there is no template {name:?}; there are {}", names.join(", ")));
    let chosen = all.iter().find(|preset| preset.name == name).ok_or_else(missing)?;
    let deed = api::create(&state.context, secret.brand, &chosen.definition);
    let made =
        state.audited(&secret, "automation_made", json!({"name": chosen.definition.name}), deed).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// What webhooks are signed with.
#[derive(Debug, Serialize, ToSchema)]
pub struct SigningSecret {
    /// By the Standard Webhooks scheme: `whsec_…`.
    secret: String,
    /// The one before the last rotation, while webhooks are signed with both.
    previous: Option<String>,
    /// Until when they are.
    previous_until: Option<String>,
}

impl SigningSecret {
    fn of(secrets: BrandSecrets, now: Timestamp) -> Self {
        let old = secrets.previous_signing.filter(|(_, until)| now < *until);
        let previous_until = old.as_ref().map(|(_, until)| time::format(*until));
        Self { secret: secrets.signing, previous: old.map(|(text, _)| text), previous_until }
    }
}

/// The secret that the brand's webhooks are signed with, by the Standard Webhooks scheme. That it was read is noted in the audit log.
#[utoipa::path(get, path = "/api/signing-secret", tag = "Automations", security(("secret_key" = [])),
    responses((status = 200, body = SigningSecret), ListErrors))]
pub async fn signing_secret(
    State(state): State<AppState>,
    secret: Secret,
) -> Result<Json<SigningSecret>, ApiError> {
    let secrets = signing::secrets(&state.context, secret.brand).await?;
    let action = Action { what: "signing_secret_read", subject: None, details: json!({}) };
    note(&state.context, secret.brand, &secret.actor, action).await?;
    Ok(Json(SigningSecret::of(secrets, state.context.world.now())))
}

/// Gives the brand a new signing secret. For a grace - a day, if absent, a week at most - webhooks are signed with the old one,
/// too: the scheme's header has both signatures.
#[utoipa::path(post, path = "/api/signing-secret/rotate", tag = "Automations", security(("secret_key" = [])), request_body = Rotation,
    responses((status = 200, body = SigningSecret), SigningErrors))]
pub async fn rotate_signing_secret(
    State(state): State<AppState>,
    secret: Secret,
    OptionalJsonBody(rotation): OptionalJsonBody<Rotation>,
) -> Result<Json<SigningSecret>, ApiError> {
    let grace = rotation.grace()?;
    let secrets = signing::rotate(&state.context, secret.brand, grace, &secret.actor).await?;
    Ok(Json(SigningSecret::of(secrets, state.context.world.now())))
}

fn automation_id(id: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(id).map_err(|_| ApiError::not_found(format!("there is no automation {id:?}")))
}

fn run_id(id: &str) -> Result<Uuid, ApiError> {
    Uuid::try_parse(id).map_err(|_| ApiError::not_found(format!("there is no run {id:?}")))
}
