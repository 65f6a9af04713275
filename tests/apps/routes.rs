//! An app with one of everything that a router has, whose handlers note what they do.

use std::{convert::Infallible, time::Duration};

use axum::{
    Form, Json, Router,
    body::Bytes,
    extract::{Extension, MatchedPath, OriginalUri, Path, Request, State},
    handler::Handler,
    response::{
        IntoResponse, Redirect, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{any, get, get_service, post},
};
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use tower::{ServiceBuilder, util::option_layer};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, End, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
};
use tower_http::services::{ServeDir, ServeFile};

use crate::support::Notes;

/// A hook that notes the route and the fate.
pub fn hook(
    notes: &Notes,
) -> ShutdownHookLayer<impl FnOnce(End) -> std::future::Ready<()> + Clone + Send + Sync + use<>> {
    let notes = notes.clone();
    ShutdownHookLayer::new(move |end: End| {
        notes.add(format!("hook: {} {} {:?}", end.route(), end.status(), end.sent()));
        std::future::ready(())
    })
}

pub fn work(notes: &Notes, note: &'static str) -> Continuation {
    let notes = notes.clone();
    Continuation::new(async move {
        tokio::task::yield_now().await;
        notes.add(format!("work: {note}"));
    })
}

/// Sets one that is soon over, and does not return.
pub async fn waits_for_a_limit(lifecycle: &Lifecycle) {
    lifecycle.set_time_limit(Duration::from_millis(20));
    std::future::pending::<()>().await;
}

struct Failure(Notes);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (StatusCode::UNPROCESSABLE_ENTITY, [("x-failure", "yes")], work(&self.0, "failure"), "failed").into_response()
    }
}

#[derive(serde::Deserialize, serde::Serialize)]
struct User {
    name: String,
}

async fn json(State(notes): State<Notes>, Json(user): Json<User>) -> Result<(Continuation, Json<User>), Failure> {
    if user.name == "fails" {
        return Err(Failure(notes));
    }
    Ok((work(&notes, "json"), Json(user)))
}

async fn form(State(notes): State<Notes>, lifecycle: Lifecycle, Form(user): Form<User>) -> impl IntoResponse {
    assert!(!lifecycle.is_aborted());
    (StatusCode::CREATED, Some(work(&notes, "form")), [("x-user", user.name)], Redirect::to("/"))
}

async fn upload(
    State(notes): State<Notes>,
    lifecycle: Option<Lifecycle>,
    bytes: Bytes,
) -> axum::response::Result<Response> {
    if bytes.is_empty() {
        return Err((work(&notes, "empty upload"), StatusCode::BAD_REQUEST).into());
    }
    assert!(lifecycle.is_some());
    let mut response = bytes.len().to_string().into_response();
    work(&notes, "upload").attach(&mut response);
    Ok(response)
}

async fn sse(
    State(notes): State<Notes>,
) -> (Continuation, Sse<impl futures_util::Stream<Item = Result<Event, Infallible>>>) {
    let events = stream::iter([Ok(Event::default().data("one")), Ok(Event::default().data("two"))]);
    (work(&notes, "sse"), Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn user(
    State(notes): State<Notes>,
    Path(id): Path<u64>,
    path: MatchedPath,
    OriginalUri(uri): OriginalUri,
    Extension(lifecycle): Extension<Lifecycle>,
) -> (HeaderMap, Continuation, String) {
    assert!(lifecycle.time_left().is_some());
    (HeaderMap::new(), work(&notes, "user"), format!("{id} {} {}", path.as_str(), uri.path()))
}

async fn missing(State(notes): State<Notes>) -> (StatusCode, Continuation, &'static str) {
    (StatusCode::NOT_FOUND, work(&notes, "missing"), "missing")
}

async fn not_allowed(State(notes): State<Notes>) -> (Continuation, StatusCode) {
    (work(&notes, "not allowed"), StatusCode::METHOD_NOT_ALLOWED)
}

/// One of everything that a router has.
pub fn routes(notes: &Notes) -> Router<Notes> {
    let inner = Router::new()
        .route("/users/{id}", get(user))
        .route(
            "/early",
            get(async |lifecycle: Lifecycle| {
                lifecycle.finish((StatusCode::ACCEPTED, "early")).await.unwrap();
            }),
        )
        .fallback(missing);
    let of_service = work;
    let theirs = notes.clone();
    let service = tower::service_fn(move |request: Request| {
        let continuation = of_service(&theirs, "service");
        async move { Ok::<_, Infallible>((continuation, request.uri().path().to_owned()).into_response()) }
    });
    Router::new()
        .route("/json", post(json))
        .route("/form", post(form))
        .route("/upload", post(upload).layer(option_layer(Some(IgnoreAbortLayer::new()))))
        .route("/sse", get(sse.layer(TimeLimitLayer::off())))
        .route("/panics", get(async || -> () { panic!("as this test wants it") }))
        .route_service("/file", ServiceBuilder::new().layer(EarlyCloseLayer::new()).service(ServeFile::new("LICENSE")))
        .nest_service("/files", get_service(ServeDir::new("tests/apps")).layer(EarlyCloseLayer::new()))
        .nest_service("/service", service)
        .nest("/api", inner)
        .merge(Router::new().route("/merged", any(async |State(notes): State<Notes>| work(&notes, "merged"))))
        .method_not_allowed_fallback(not_allowed)
        .fallback(missing)
}
