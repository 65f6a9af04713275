//! In every place of a router: what runs, how often, and under which name.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    middleware::{Next, from_extractor, from_fn, map_response},
    response::Response,
    routing::get,
};
use tower::{ServiceBuilder, ServiceExt};
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, TimeLimitLayer, TrackedListener};
use tower_http::services::ServeDir;

use crate::{
    routes::{hook, routes},
    support::{Journal, Notes, Server, h2client::Http2, soon},
};

/// What is asked, and what is to be seen: status, body (unless it is long), continuations, and the route's name.
pub type Row =
    (&'static str, &'static str, &'static str, u16, Option<&'static str>, &'static [&'static str], &'static str);

pub const ROWS: &[Row] = &[
    ("POST", "/json", r#"{"name":"Ada"}"#, 200, Some(r#"{"name":"Ada"}"#), &["work: json"], "POST /json"),
    ("POST", "/json", r#"{"name":"fails"}"#, 422, Some("failed"), &["work: failure"], "POST /json"),
    ("POST", "/json", "{", 400, None, &[], "POST /json"),
    ("POST", "/form", "name=Ada", 201, Some(""), &["work: form"], "POST /form"),
    ("POST", "/upload", "twelve bytes", 200, Some("12"), &["work: upload"], "POST /upload"),
    ("POST", "/upload", "", 400, Some(""), &["work: empty upload"], "POST /upload"),
    ("GET", "/sse", "", 200, Some("data: one\n\ndata: two\n\n"), &["work: sse"], "GET /sse"),
    ("HEAD", "/sse", "", 200, Some(""), &["work: sse"], "HEAD /sse"),
    ("GET", "/file", "", 200, None, &[], "GET /file"),
    ("HEAD", "/file", "", 200, Some(""), &[], "HEAD /file"),
    ("GET", "/files/places.rs", "", 200, None, &[], "GET /files/places.rs"),
    ("GET", "/files/none.rs", "", 404, Some(""), &[], "GET /files/none.rs"),
    ("GET", "/service/a/b", "", 200, Some("/a/b"), &["work: service"], "GET /service/a/b"),
    (
        "GET",
        "/api/users/7?secret=1",
        "",
        200,
        Some("7 /api/users/{id} /api/users/7"),
        &["work: user"],
        "GET /api/users/{id}",
    ),
    ("GET", "/api/early", "", 202, Some("early"), &[], "GET /api/early"),
    ("GET", "/api/none", "", 404, Some("missing"), &["work: missing"], "GET /api/none"),
    ("GET", "/merged", "", 200, Some(""), &["work: merged"], "GET /merged"),
    ("DELETE", "/form", "", 405, Some(""), &["work: not allowed"], "DELETE /form"),
    ("GET", "/none", "", 404, Some("missing"), &["work: missing"], "GET /none"),
    ("HEAD", "/none", "", 404, Some(""), &["work: missing"], "HEAD /none"),
];

fn content_type(path: &str) -> &'static str {
    match path {
        "/json" => "application/json",
        "/form" => "application/x-www-form-urlencoded",
        _ => "application/octet-stream",
    }
}

async fn http1(address: std::net::SocketAddr, row: &Row) -> (u16, String) {
    let (method, path, body, ..) = *row;
    let mut client = crate::support::Client::connect(address).await;
    let (length, kind) = (body.len(), content_type(path));
    client
        .send(&format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await;
    let reply = client.response(method == "HEAD").await;
    (reply.status, reply.text())
}

async fn http2(address: std::net::SocketAddr, row: &Row) -> (u16, String) {
    let (method, path, body, ..) = *row;
    let mut client = Http2::connect(address).await;
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://test{path}"))
        .header("content-type", content_type(path))
        .body(())
        .unwrap();
    let (response, mut send) = client.send.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
    let whole =
        soon("a response", async { crate::support::h2client::read(response.await.unwrap()).await.unwrap() }).await;
    (whole.status, String::from_utf8(whole.body).unwrap())
}

/// The hook comes last, and each thing once.
async fn check(how: &str, row: &Row, notes: &Notes, answer: (u16, String), route: &str) {
    let (_, path, _, status, body, works, _) = *row;
    let mut expected: Vec<String> = works.iter().map(ToString::to_string).collect();
    expected.push(format!("hook: {route} NORMAL Flushed"));
    notes.count(expected.len()).await;
    assert_eq!(answer.0, status, "{how} {path}");
    if let Some(body) = body {
        assert_eq!(answer.1, body, "{how} {path}");
    }
    assert_eq!(notes.all(), expected, "{how} {path}");
}

type Applied = fn(&Notes) -> Router;

/// Where ours stand.
const APPLIED: [(&str, Applied); 5] = [
    ("around the router", |notes| {
        let router = routes(notes).layer((hook(notes), TimeLimitLayer::default(), IgnoreAbortLayer::off()));
        router.with_state(notes.clone())
    }),
    ("around the router, with an early close", |notes| {
        let layers = ServiceBuilder::new()
            .option_layer(Some(EarlyCloseLayer::new()))
            .option_layer(None::<IgnoreAbortLayer>)
            .layer(TimeLimitLayer::default())
            .layer(hook(notes));
        routes(notes).layer(layers).with_state(notes.clone())
    }),
    ("around a router that has a state", |notes| {
        routes(notes).with_state(notes.clone()).layer(hook(notes)).layer(TimeLimitLayer::default())
    }),
    ("twice, between middleware", |notes| {
        routes(notes)
            .layer(IgnoreAbortLayer::new())
            .layer(from_fn(async |lifecycle: Lifecycle, request: Request, next: Next| {
                assert!(lifecycle.time_left().is_some());
                next.run(request).await
            }))
            .layer(from_extractor::<Lifecycle>())
            .layer(map_response(async |response: Response| response))
            .layer((TimeLimitLayer::default(), IgnoreAbortLayer::off(), hook(notes)))
            .with_state(notes.clone())
    }),
    ("inside of another router", |notes| {
        let inner = routes(notes).with_state(notes.clone());
        Router::new().merge(inner).layer(TimeLimitLayer::default()).layer(hook(notes))
    }),
];

#[tokio::test]
async fn under_our_server() {
    for (how, app) in APPLIED {
        for (row, second) in ROWS.iter().flat_map(|row| [(row, false), (row, true)]) {
            let notes = Notes::default();
            let server = Server::start(app(&notes)).await;
            let answer = if second { http2(server.address, row).await } else { http1(server.address, row).await };
            server.journal.ended(1).await;
            check(how, row, &notes, answer, row.6).await;
            assert!(server.stop().await.is_clean());
        }
    }
}

/// With its own listener, and with ours.
#[tokio::test]
async fn under_axums_server() {
    for (how, app) in APPLIED {
        for tracked in [false, true] {
            for (row, second) in ROWS.iter().flat_map(|row| [(row, false), (row, true)]) {
                let notes = Notes::default();
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                let stopped = async { stopped.await.unwrap() };
                let journal = Journal::default();
                let epilogue = journal.epilogue().build();
                let task = if tracked {
                    let made = epilogue.make_service(app(&notes));
                    let serve = axum::serve(TrackedListener::new(listener), made).with_graceful_shutdown(stopped);
                    tokio::spawn(serve.into_future())
                } else {
                    let serve = axum::serve(listener, app(&notes)).with_graceful_shutdown(stopped);
                    tokio::spawn(serve.into_future())
                };
                let answer = if second { http2(address, row).await } else { http1(address, row).await };
                check(&format!("{how}, tracked: {tracked}"), row, &notes, answer, row.6).await;
                stop.send(()).unwrap();
                soon("the server stops", task).await.unwrap().unwrap();
                assert!(epilogue.drain().await.is_clean());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_server() {
    for (how, app) in APPLIED {
        for row in ROWS {
            let notes = Notes::default();
            let (method, path, body, ..) = *row;
            let request = Request::builder().method(method).uri(path).header("content-type", content_type(path));
            let response = app(&notes).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            check(how, row, &notes, (status, String::from_utf8(bytes.to_vec()).unwrap()), row.6).await;
        }
    }
}

/// A nested router takes its part off the path: where ours stand inside of it, the name is the whole one all the same.
#[tokio::test(start_paused = true)]
async fn a_request_inside_of_a_nested_router_has_its_whole_name() {
    let notes = Notes::default();
    let nested = || Router::new().route("/known/{id}", get(async || "known")).layer(hook(&notes));
    let fallback = ServiceBuilder::new().layer(hook(&notes)).service(ServeDir::new("tests/apps"));
    let app: Router = Router::new()
        .nest("/api", nested())
        .nest("/deep", Router::new().nest("/er", nested().layer(hook(&notes))))
        .nest("/other", Router::new().fallback(async || "other").layer(hook(&notes)))
        .nest_service("/service", nested())
        .nest_service("/files", fallback);
    for (path, route, hooks) in [
        ("/api/known/1", "GET /api/known/{id}", 1),
        ("/deep/er/known/1", "GET /deep/er/known/{id}", 2),
        ("/other/none?secret=1", "GET /other/none", 1),
        ("/service/known/1", "GET /service/known/{id}", 1),
        ("/service/none", "GET /service/none", 1),
        ("/files/places.rs", "GET /files/places.rs", 1),
    ] {
        let before = notes.all().len();
        let response = app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        notes.count(before + hooks).await;
        for line in &notes.all()[before..] {
            assert_eq!(*line, format!("hook: {route} NORMAL Flushed"), "{path}");
        }
    }
}
