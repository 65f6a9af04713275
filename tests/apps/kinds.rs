//! Around services of every kind: boxed, of other bodies, in other servers, and beside layers that give errors.

use std::convert::Infallible;

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    error_handling::HandleErrorLayer,
    extract::{Request, State},
    handler::Handler,
    middleware::{Next, from_fn_with_state},
    routing::get,
};
use http::StatusCode;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_epilogue::{EarlyCloseLayer, Epilogue, IgnoreAbortLayer, TimeLimitLayer};
use tower_http::normalize_path::NormalizePathLayer;

use crate::{
    common::SECOND,
    routes::{hook, work},
    support::Notes,
};

/// What compiles, and answers.
#[tokio::test]
async fn around_services_of_every_kind() {
    use tower::util::{BoxCloneService, BoxCloneSyncService, BoxService};

    let notes = Notes::default();
    let ask = || Request::new(Body::empty());
    let layers = || (EarlyCloseLayer::new(), TimeLimitLayer::default(), IgnoreAbortLayer::new(), hook(&notes));
    let router: Router = Router::new().route("/", get(async || "hello"));

    let boxed = BoxCloneService::new(router.clone().into_service());
    assert_eq!(layers().layer(boxed).oneshot(ask()).await.unwrap().status(), 200);
    let boxed = BoxService::new(router.clone().into_service::<Body>());
    assert_eq!(layers().layer(boxed).oneshot(ask()).await.unwrap().status(), 200);
    let boxed = BoxCloneSyncService::new(layers().layer(router.clone()));
    let app: Router = Router::new().fallback_service(boxed);
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), 200);

    // Other bodies, in and out.
    let full = tower::service_fn(async |_: http::Request<http_body_util::Full<Bytes>>| {
        Ok::<_, std::io::Error>(http::Response::new(http_body_util::Full::new(Bytes::from_static(b"hello"))))
    });
    let request = http::Request::new(http_body_util::Full::default());
    assert_eq!(layers().layer(full).oneshot(request).await.unwrap().status(), 200);
    let text =
        tower::service_fn(async |_: http::Request<String>| Ok::<_, BoxError>(http::Response::new("hello".to_owned())));
    assert_eq!(layers().layer(text).oneshot(http::Request::new(String::new())).await.unwrap().status(), 200);
    let unsync = tower::service_fn(async |_: http::Request<http_body_util::Empty<Bytes>>| {
        use http_body_util::BodyExt;
        let body = http_body_util::Empty::<Bytes>::new().map_err(|never: Infallible| match never {}).boxed_unsync();
        Ok::<http::Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>>, BoxError>(
            http::Response::new(body),
        )
    });
    let request = http::Request::new(http_body_util::Empty::new());
    assert_eq!(layers().layer(unsync).oneshot(request).await.unwrap().status(), 200);

    // Around a router whose path is changed first.
    let app =
        NormalizePathLayer::trim_trailing_slash().layer(Router::new().route("/a", get(async || "a")).layer(layers()));
    let epilogue = Epilogue::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(epilogue.serve(listener, app).into_future());
    let mut client = crate::support::Client::connect(address).await;
    client.send_get("/a/").await;
    assert_eq!(client.response(false).await.text(), "a");
    server.abort();

    let app = layers().layer(Router::new().route("/a", get(async || "a")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(axum::serve(listener, tower::make::Shared::new(app)).into_future());
    let mut client = crate::support::Client::connect(address).await;
    client.send_get("/a").await;
    assert_eq!(client.response(false).await.text(), "a");
    server.abort();

    // A limit of one's own that gives errors, with or without one of ours on each side.
    let errors = HandleErrorLayer::new(async |error: BoxError| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()));
    let stack = ServiceBuilder::new()
        .layer(TimeLimitLayer::default())
        .layer(errors)
        .layer(IgnoreAbortLayer::new())
        .load_shed()
        .buffer(16)
        .layer(EarlyCloseLayer::new())
        .rate_limit(100, SECOND)
        .concurrency_limit(4)
        .timeout(60 * SECOND)
        .layer(hook(&notes));
    let app: Router = Router::new().route("/", get(async || "hello")).layer(stack);
    assert_eq!(app.oneshot(ask()).await.unwrap().status(), 200);

    const LIMIT: TimeLimitLayer = TimeLimitLayer::off();
    let state = from_fn_with_state(notes.clone(), async |State(notes): State<Notes>, request: Request, next: Next| {
        (work(&notes, "outer"), next.run(request).await)
    });
    let mut app: Router =
        Router::new().route("/", get((async || "hello").layer(LIMIT))).layer(state).layer(hook(&notes));
    assert_eq!(app.call(ask()).await.unwrap().status(), 200);
    assert_eq!(app.as_service::<Body>().ready().await.unwrap().call(ask()).await.unwrap().status(), 200);
}
