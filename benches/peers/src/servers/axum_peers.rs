//! axum: with no work at all, waiting for its work, spawning it, and with this crate.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, Bytes},
    http::header::CONNECTION,
    response::{IntoResponse, Response},
    routing::{Route, get, post},
};
use tokio::{net::TcpListener, time::sleep};
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

use super::{HELLO, PAGE_BYTES, PARKED, WORK, announce};

async fn bind() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    announce(listener.local_addr().unwrap());
    listener
}

pub async fn serve(app: Router) {
    // What `Epilogue::serve` and most servers set; axum does so only on request.
    let listener = axum::serve::ListenerExt::tap_io(bind().await, |io| io.set_nodelay(true).unwrap());
    axum::serve(listener, app).await.unwrap();
}

fn page() -> Body {
    Body::from(Bytes::from_static(&PAGE_BYTES))
}

pub async fn upload() -> Response {
    ([(CONNECTION, "close")], page()).into_response()
}

/// What a request costs that leaves no work behind.
pub async fn no_work() {
    serve(Router::new().route("/respond", get(|| async { HELLO })).route("/upload", post(upload))).await;
}

/// All that plain axum has: the handler works before it answers.
pub async fn waits() {
    async fn after(work: Duration) -> &'static str {
        sleep(work).await;
        HELLO
    }
    let app = Router::new()
        .route("/respond", get(|| after(WORK)))
        .route("/park", get(|| after(PARKED)))
        .route("/upload", post(upload));
    serve(app).await;
}

fn spawning() -> Router {
    async fn with(work: Duration) -> &'static str {
        tokio::spawn(sleep(work));
        HELLO
    }
    Router::new()
        .route("/respond", get(|| with(WORK)))
        .route("/park", get(|| with(PARKED)))
        .route("/upload", post(upload))
}

pub async fn spawn() {
    serve(spawning()).await;
}

/// What any layer costs in axum, which boxes it and its future: this one does nothing.
pub async fn empty_layer() {
    serve(spawning().layer(tower::layer::layer_fn(|inner: Route| inner))).await;
}

/// All four layers, on the crate's own server.
pub async fn epilogue() {
    async fn with(work: Duration) -> (Continuation, &'static str) {
        (Continuation::new(sleep(work)), HELLO)
    }
    let layers = |early_close: EarlyCloseLayer| {
        let limit = TimeLimitLayer::new(PARKED * 2);
        (early_close, IgnoreAbortLayer::new(), limit, ShutdownHookLayer::new(|_| async {}))
    };
    // The other peers keep the connections of these two routes alive.
    let kept = Router::new()
        .route("/respond", get(|| with(WORK)))
        .route("/park", get(|| with(PARKED)))
        .layer(layers(EarlyCloseLayer::new().keep_alive()));
    let app = Router::new().route("/upload", post(async || page())).layer(layers(EarlyCloseLayer::new())).merge(kept);
    Epilogue::new().serve(bind().await, app).await.unwrap();
}
