//! Whole stacks: every middleware at once, apps inside of apps, and the parts of a batch.

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use tower::{ServiceBuilder, ServiceExt};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};
use tower_http::{
    ServiceBuilderExt, catch_panic::CatchPanicLayer, compression::CompressionLayer, cors::CorsLayer,
    decompression::RequestDecompressionLayer, limit::RequestBodyLimitLayer, map_response_body::MapResponseBodyLayer,
    metrics::InFlightRequestsLayer, request_id::MakeRequestUuid, set_header::SetResponseHeaderLayer,
    timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::{
    common::{SECOND, told},
    routes::{hook, work},
    support::{Notes, Server},
};

async fn echo(request: Request) -> Result<(Continuation, Response), StatusCode> {
    let lifecycle = request.extensions().get::<Lifecycle>().unwrap().clone();
    let notes = request.extensions().get::<Notes>().unwrap().clone();
    assert!(lifecycle.time_left().is_some());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.map_err(|_| StatusCode::PAYLOAD_TOO_LARGE)?;
    if body.is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok((work(&notes, "echo"), body.into_response()))
}

/// With ours in so many places.
fn everything(notes: &Notes, places: u32) -> Router {
    fn ours(places: u32, place: u32) -> Option<(TimeLimitLayer, EarlyCloseLayer, IgnoreAbortLayer)> {
        (places & (1 << place) != 0)
            .then(|| (TimeLimitLayer::default(), EarlyCloseLayer::new(), IgnoreAbortLayer::off()))
    }
    let (extension, counter) = (notes.clone(), tower_http::metrics::in_flight_requests::InFlightRequestsCounter::new());
    let outer = ServiceBuilder::new()
        .layer(hook(notes))
        .layer(TimeLimitLayer::new(10 * SECOND))
        .option_layer(ours(places, 0))
        .map_response_body(Body::new)
        .set_x_request_id(MakeRequestUuid)
        .layer(TraceLayer::new_for_http())
        .propagate_x_request_id()
        .layer(InFlightRequestsLayer::new(counter))
        .layer(CorsLayer::permissive())
        .option_layer(ours(places, 1))
        .map_response_body(Body::new)
        .layer(CompressionLayer::new())
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, 10 * SECOND));
    let inner = ServiceBuilder::new()
        .layer(CatchPanicLayer::new())
        .option_layer(ours(places, 2))
        .layer(SetResponseHeaderLayer::overriding(HeaderName::from_static("x-stack"), HeaderValue::from_static("yes")))
        .layer(MapResponseBodyLayer::new(Body::new))
        .layer(RequestDecompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(100))
        .map_request_body(Body::new)
        .option_layer(ours(places, 3))
        .add_extension(extension);
    Router::new().route("/", post(echo)).route_layer(inner).layer(outer)
}

#[tokio::test]
async fn everything_at_once() {
    for places in 0..16 {
        let notes = Notes::default();
        let server = Server::start(everything(&notes, places)).await;
        let ask = async |head: &str, body: &str| {
            let mut client = server.connect().await;
            let length = body.len();
            client
                .send(&format!("{head}host: test\r\norigin: http://a\r\ncontent-length: {length}\r\n\r\n{body}"))
                .await;
            client.response(false).await
        };
        let reply = ask("POST / HTTP/1.1\r\n", "hello").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello"), "{places}");
        for name in ["x-request-id", "x-stack", "access-control-allow-origin"] {
            assert!(reply.header(name).is_some(), "{places} {name}: {reply:?}");
        }
        server.journal.ended(1).await;
        let reply = ask("POST / HTTP/1.1\r\naccept-encoding: gzip\r\n", &"compress me ".repeat(8)).await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, Some("gzip")), "{places}");
        server.journal.ended(2).await;
        assert_eq!(ask("POST / HTTP/1.1\r\n", &"too long ".repeat(100)).await.status, 413, "{places}");
        server.journal.ended(3).await;
        let preflight = "OPTIONS / HTTP/1.1\r\naccess-control-request-method: POST\r\n";
        let reply = ask(preflight, "").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, ""), "{places}");
        assert!(reply.header("access-control-allow-methods").is_some());
        server.journal.ended(4).await;
        assert_eq!(ask("POST / HTTP/1.1\r\n", "").await.status, 400, "{places}");
        server.journal.ended(5).await;
        assert_eq!(ask("GET / HTTP/1.1\r\n", "").await.status, 405, "{places}");
        server.journal.ended(6).await;
        let hooked = "hook: POST / NORMAL Flushed";
        let expected = [
            "work: echo",
            hooked,
            "work: echo",
            hooked,
            hooked,
            "hook: OPTIONS / NORMAL Flushed",
            hooked,
            "hook: GET / NORMAL Flushed",
        ];
        assert_eq!(notes.all(), expected, "{places}");
        assert!(server.stop().await.is_clean());
    }
}

/// By the host's name: an app in the fallback of another.
#[tokio::test]
async fn an_app_that_hands_its_requests_on_to_others() {
    let notes = Notes::default();
    let theirs = notes.clone();
    let inner: Router = Router::new()
        .route("/users/{id}", get(async move || (work(&theirs, "inner"), "user")))
        .layer((TimeLimitLayer::default(), IgnoreAbortLayer::new()));
    let app = Router::new()
        .fallback(async move |request: Request| {
            let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
            match host.as_str() {
                "test" => inner.oneshot(request).await.unwrap(),
                _ => StatusCode::NOT_FOUND.into_response(),
            }
        })
        .layer(hook(&notes));
    let server = Server::start(app).await;
    assert_eq!(server.get("/users/7").await.text(), "user");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["work: inner", "hook: GET /users/{id} NORMAL Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// One that asks an app of its own on behalf of its request, for each part of a batch.
#[tokio::test]
async fn each_part_of_a_batch_has_a_life_of_its_own_without_the_record() {
    for own in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let part = async move || {
            tokio::task::yield_now().await;
            (work(&theirs, "part"), "part")
        };
        let parts: Router = Router::new()
            .route("/{part}", get(part))
            .layer((TimeLimitLayer::default(), ShutdownHookLayer::new(told(&notes))));
        let theirs = notes.clone();
        let batch = async move |lifecycle: Lifecycle, request: Request| {
            let extensions = request.into_parts().0.extensions;
            let ask = |part: u8| {
                let mut asked = Request::get(format!("/{part}")).body(Body::empty()).unwrap();
                asked.extensions_mut().extend(extensions.clone());
                if own {
                    asked.extensions_mut().remove::<Lifecycle>();
                }
                let response = parts.clone().oneshot(asked);
                async { axum::body::to_bytes(response.await.unwrap().into_body(), 100).await.unwrap() }
            };
            let all = futures_util::future::join_all([ask(1), ask(2), ask(3)]).await;
            let finished = lifecycle.finish("finished").await;
            theirs.add(format!("finished: {}", finished.is_ok()));
            tokio::task::yield_now().await;
            (work(&theirs, "batch"), all.concat())
        };
        let app = Router::new().route("/", get(batch)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        assert_eq!(server.get("/").await.text(), if own { "finished" } else { "partpartpart" });
        server.journal.ended(1).await;
        notes.count(9).await;
        let all = notes.all();
        let is_hook = |note: &&String| *note == "hook: NORMAL, Flushed";
        assert_eq!(all.iter().filter(is_hook).count(), 4, "{all:?}");
        assert_eq!(all.iter().filter(|note| *note == "work: part").count(), 3, "{all:?}");
        assert_eq!(all.iter().filter(|note| *note == "work: batch").count(), 1, "{all:?}");
        assert!(all.contains(&format!("finished: {own}")), "{all:?}");
        if !own {
            assert_eq!(all[0], "finished: false", "as parts of the one request they wait for its response: {all:?}");
        }
        assert!(server.stop().await.is_clean());
    }
}
