//! One app under five servers: plain axum, and this crate's parts around it. `compare.py` beside this asks all of them
//! the same and compares the answers.
//!
//! Prints one line `NAME PORT` a server, and serves until its standard input ends.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a part of the tests: it may panic and print, and what it spawns is its own"
)]

use std::{io::Read as _, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::net::TcpListener;
use tower_epilogue::{
    Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
};

/// What the handler was given, so that the two servers' parsers are compared too.
async fn seen(request: Request) -> String {
    let (parts, body) = request.into_parts();
    let mut headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii())).collect();
    headers.sort();
    let body = body.collect().await;
    let (body, trailers) = match body {
        Ok(body) => {
            let trailers = body.trailers().cloned();
            (body.to_bytes().escape_ascii().to_string(), format!("{trailers:?}"))
        }
        Err(_) => ("broken".to_owned(), String::new()),
    };
    format!("{} {} {:?}\n{}\n{body}\n{trailers}\n", parts.method, parts.uri, parts.version, headers.join("\n"))
}

async fn echo(request: Request) -> Body {
    request.into_body()
}

async fn streamed() -> Body {
    Body::from_stream(stream::iter(["one ", "two ", "three"].map(Ok::<_, std::io::Error>)))
}

async fn trailers() -> Response {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("42"));
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>)));
    ([("trailer", "x-sum")], Body::new(body)).into_response()
}

/// Breaks off in the middle.
async fn broken() -> Body {
    Body::from_stream(stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("broken"))]))
}

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello"))
        .route("/seen", any(seen))
        .route("/echo", post(echo))
        .route("/unread", post(async || "not read"))
        .route("/stream", get(streamed))
        .route("/trailers", get(trailers))
        .route("/broken", get(broken))
        .route("/large", get(async || "0123456789abcdef".repeat(1 << 14)))
        .route("/empty", get(async || StatusCode::NO_CONTENT))
        .route("/same", get(async || StatusCode::NOT_MODIFIED))
        .route("/redirect", get(async || (StatusCode::FOUND, [("location", "/")])))
        .route("/slow", get(async || tokio::time::sleep(Duration::from_millis(100)).await))
}

/// With work after each response, so that nothing of the life of a request is left out.
fn layered() -> Router {
    let with_work = |response: Response| async { (Continuation::new(async {}), response) };
    app()
        .layer(map_response(with_work))
        .layer((IgnoreAbortLayer::new(), TimeLimitLayer::default()))
        .layer(ShutdownHookLayer::new(async |_| {}))
}

/// The handle is used as well: each response leaves by `finish`.
fn finishing() -> Router {
    let by_finish = |lifecycle: Lifecycle, request: Request, next: axum::middleware::Next| async move {
        let response = next.run(request).await;
        // The client may be gone by then, which is no error of the server's.
        let _ = lifecycle.finish(response).await;
        StatusCode::IM_A_TEAPOT
    };
    // Inside of what the router adds (`Allow`, the length of a HEAD), as a response that is returned.
    app().layer(axum::middleware::from_fn(by_finish)).layer(ShutdownHookLayer::new(async |_| {}))
}

async fn listener(name: &str) -> TcpListener {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    println!("{name} {}", listener.local_addr().unwrap().port());
    listener
}

#[tokio::main]
async fn main() {
    let plain = listener("plain").await;
    tokio::spawn(async { axum::serve(plain, app()).await.unwrap() });
    let layers = listener("layers").await;
    tokio::spawn(async { axum::serve(layers, layered()).await.unwrap() });
    let tracked = [("listener", app()), ("both", layered()), ("finish", finishing())];
    for (name, app) in tracked.into_iter().chain([("early_close", layered().layer(EarlyCloseLayer::new()))]) {
        let listener = listener(name).await;
        tokio::spawn(async { Epilogue::new().serve(listener, app).await.unwrap() });
    }
    println!("ready");
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(wait).await.unwrap().unwrap();
}
