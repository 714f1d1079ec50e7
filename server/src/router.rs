//! The table of all routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode, header};
use axum::routing::{any, get, post};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};
use tributary_core::domain::event::EventKind;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::ApiError;
use crate::guards;
use crate::inside;
use crate::measured;
use crate::openapi::{self, Base, also_at, name_operations};
use crate::refusals;
use crate::requests;
use crate::routes::{
    automations, browser, customers, events, monitoring, privacy, queues, segment, segments, settings,
    shopify, unsubscribe,
};
use crate::scopes;
use crate::state::AppState;

/// How long a browser may remember that it may post here.
const PREFLIGHT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// All routes, on `state`.
pub fn router(state: AppState) -> Router {
    let world = state.context.world.clone();
    let refused = (state.refusals.clone(), world.clone());
    let (documented, document) = documented().split_for_parts();
    let document: Arc<str> = openapi::written(&complete(document)).to_string().into();
    // The fallback comes before the layer, so that a browser's preflight request reaches the layer.
    let browser = segment_routes()
        .route("/api/events", post(events::take))
        .merge(browser_routes())
        .route("/v1/{*rest}", any(browser::nothing))
        .method_not_allowed_fallback(other_method)
        .layer(cors());
    Router::new()
        .merge(browser)
        .merge(documented)
        .merge(monitoring())
        .route("/openapi.json", get(async move || openapi::document(&document)))
        .route("/", get(openapi::start))
        .route("/docs", get(openapi::page))
        .route("/docs.js", get(openapi::script))
        .route("/docs.css", get(openapi::style))
        .route("/page.css", get(openapi::page_style))
        .route_layer(axum::middleware::from_fn(openapi::documented))
        .fallback(async || ApiError::not_found("there is no such route; /docs lists them"))
        .method_not_allowed_fallback(other_method)
        .layer(axum::middleware::from_fn(guards::guard))
        .layer(axum::middleware::from_fn_with_state(refused, refusals::noted))
        .layer(axum::middleware::from_fn(measured::measured))
        .layer(axum::middleware::from_fn_with_state(world, requests::identified))
        .with_state(state)
}

/// What every process answers about itself: for who looks after all brands, but for the word whether it lives and takes events in.
fn monitoring() -> Router<AppState> {
    Router::new()
        .route("/healthz", get(monitoring::healthz))
        .route("/readyz", get(monitoring::readyz))
        .route("/metrics", get(monitoring::metrics))
}

/// The routes of the monitor's own port, on `state`.
pub fn monitor(state: AppState) -> Router {
    monitoring()
        .route("/api/monitoring/health", get(monitoring::health))
        .route("/api/monitoring/queues", get(monitoring::queues))
        .route("/api/monitoring/stats", get(monitoring::stats))
        .fallback(async || ApiError::not_found("there is no such route on the monitor's port"))
        .layer(axum::middleware::from_fn(inside::on_own_port))
        .layer(axum::middleware::from_fn(guards::guard))
        .layer(axum::middleware::from_fn_with_state(state.context.world.clone(), requests::identified))
        .with_state(state)
}

/// The routes that are registered together with what the document says of them.
fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Base::openapi())
        .routes(routes!(shopify::take))
        .routes(routes!(customers::list))
        .routes(routes!(customers::by_id))
        .routes(routes!(customers::by_identifier))
        .routes(routes!(customers::timeline))
        .routes(routes!(customers::history))
        .routes(routes!(customers::preview, customers::merge))
        .routes(routes!(customers::split))
        .routes(routes!(privacy::erase))
        .routes(routes!(privacy::export))
        .routes(routes!(privacy::erase_identifiers))
        .routes(routes!(privacy::unsuppress))
        .routes(routes!(privacy::requests))
        .routes(routes!(privacy::request_export))
        .routes(routes!(privacy::stop))
        .routes(routes!(privacy::audit))
        .routes(routes!(settings::get, settings::put, settings::patch))
        .routes(routes!(settings::keys, settings::add_key))
        .routes(routes!(settings::limit_key, settings::revoke))
        .routes(routes!(settings::rotate))
        .routes(routes!(settings::refusals))
        .routes(routes!(segments::list))
        .routes(routes!(segments::show, segments::put, segments::delete))
        .routes(routes!(segments::preview))
        .routes(routes!(segments::members))
        .routes(routes!(segments::changes))
        .routes(routes!(segments::of_customer))
        .routes(routes!(automations::list, automations::create))
        .routes(routes!(automations::show, automations::edit, automations::delete))
        .routes(routes!(automations::activate))
        .routes(routes!(automations::pause))
        .routes(routes!(automations::dry_run))
        .routes(routes!(automations::test))
        .routes(routes!(automations::runs))
        .routes(routes!(automations::all_runs))
        .routes(routes!(automations::run))
        .routes(routes!(automations::retry))
        .routes(routes!(automations::cancel))
        .routes(routes!(automations::templates))
        .routes(routes!(automations::use_template))
        .routes(routes!(automations::signing_secret))
        .routes(routes!(automations::rotate_signing_secret))
        .routes(routes!(unsubscribe::ask, unsubscribe::confirm))
        .routes(routes!(unsubscribe::ask_address, unsubscribe::confirm_address))
        .routes(routes!(queues::all))
        .routes(routes!(queues::one))
        .routes(routes!(queues::list, queues::discard_all))
        .routes(routes!(queues::retry_all))
        .routes(routes!(queues::show, queues::discard_one))
        .routes(routes!(queues::retry_one))
        .routes(routes!(queues::pause))
        .routes(routes!(queues::resume))
        .routes(routes!(queues::claim))
        .routes(routes!(monitoring::health))
        .routes(routes!(monitoring::queues))
        .routes(routes!(monitoring::stats))
}

/// The whole document: also of the routes that have a layer of their own, or many spellings.
pub fn document() -> Document {
    complete(documented().into_openapi())
}

fn complete(mut document: Document) -> Document {
    #[derive(OpenApi)]
    #[openapi(paths(
        segment::one,
        segment::batch,
        events::take,
        browser::segment,
        browser::customerio,
        browser::rudderstack,
        browser::measures,
        monitoring::healthz,
        monitoring::readyz,
        monitoring::metrics
    ))]
    struct Rest;

    document.merge(Rest::openapi());
    document.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let others: Vec<String> =
        one_paths().into_iter().map(|(_, path)| path).filter(|path| path != "/v1/track").collect();
    also_at(&mut document, "/v1/track", &others);
    also_at(
        &mut document,
        "/v1/batch",
        &BATCH_PATHS[1..].iter().map(|path| (*path).to_owned()).collect::<Vec<_>>(),
    );
    // The same routes with a slash at their end are served, and said once.
    document.paths.paths.retain(|path, _| path.len() == 1 || !path.ends_with('/'));
    name_operations(&mut document);
    scopes::describe(&mut document);
    document
}

async fn other_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this route has another method")
}

/// The paths of a batch.
const BATCH_PATHS: [&str; 6] = ["/v1/batch", "/v1/batch/", "/v1/b", "/v1/b/", "/v1/import", "/v1/import/"];

/// The paths of a source of RudderStack's.
const SOURCE_PATHS: [&str; 2] = ["/sourceConfig", "/sourceConfig/"];
/// The paths of an SDK's numbers about itself.
const MEASURES_PATHS: [&str; 2] = ["/v1/m", "/v1/m/"];

/// The paths of one message: Segment's routes, long and short, with and without a slash at the end; the SDKs use all of them.
fn one_paths() -> Vec<(EventKind, String)> {
    let mut paths = Vec::new();
    for kind in EventKind::SEGMENT {
        let long = kind.as_str();
        for name in [long, &long[..1]] {
            paths.extend([(kind, format!("/v1/{name}")), (kind, format!("/v1/{name}/"))]);
        }
    }
    paths
}

/// What browser SDKs fetch before they send, and the numbers that they send about themselves.
fn browser_routes() -> Router<AppState> {
    let mut routes = Router::new()
        .route("/v1/projects/{writeKey}/settings", get(browser::segment))
        .route("/customerio/v1/projects/{writeKey}/settings", get(browser::customerio));
    for path in SOURCE_PATHS {
        routes = routes.route(path, get(browser::rudderstack));
    }
    for path in MEASURES_PATHS {
        routes = routes.route(path, post(browser::measures));
    }
    routes
}

fn segment_routes() -> Router<AppState> {
    let mut routes = Router::new();
    for (kind, path) in one_paths() {
        routes = routes.route(
            &path,
            post(move |state, peer, headers, body| segment::one(kind, state, peer, headers, body)),
        );
    }
    for path in BATCH_PATHS {
        routes = routes.route(path, post(segment::batch));
    }
    routes
}

/// Any site may send events with its write key, fetch what its SDK needs for that, and read the answers; nothing else is open to browsers of other sites.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::POST, Method::GET])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER, requests::REQUEST_ID])
        .max_age(PREFLIGHT_TTL)
}
