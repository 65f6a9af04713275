//! An app, and its status page on a second listener that only this machine can reach.
//!
//! Run with: `cargo run --example status_page --features status-page`
//!
//! ```sh
//! # Open http://127.0.0.1:9000/ and give it something to show:
//! for i in $(seq 40); do curl -d "$i" http://127.0.0.1:3000/signup; done
//! curl http://127.0.0.1:3000/report/7 & curl http://127.0.0.1:3000/broken
//! # For scripts, and for Prometheus:
//! curl 'http://127.0.0.1:9000/?json&full'
//! curl http://127.0.0.1:9000/metrics
//! # Then press Ctrl-C, and watch it drain.
//! ```
#![expect(clippy::print_stdout, reason = "the addresses are for whoever started the example")]

use std::{env, future::IntoFuture, io, time::Duration};

use axum::{
    Router,
    extract::Path,
    routing::{get, post},
};
use tokio::{net::TcpListener, time::sleep};
use tower_epilogue::{Bound, Continuation, EarlyCloseLayer, Epilogue, TimeLimitLayer};

/// Five mails at a time: the others wait, and show as waiting.
async fn signup(name: String) -> (Continuation, &'static str) {
    let mail = async move {
        sleep(Duration::from_secs(2)).await;
        drop(name);
    };
    (Continuation::new(mail).class("mail"), "We'll email you as soon as this is done.\n")
}

/// Shown as `GET /report/{pages}`: what the client asked for is not on the page.
async fn report(Path(pages): Path<u64>) -> String {
    sleep(Duration::from_millis(300).saturating_mul(u32::try_from(pages).unwrap_or(100))).await;
    format!("a report of {pages} pages\n")
}

async fn broken() -> (Continuation, &'static str) {
    let work = async {
        sleep(Duration::from_millis(100)).await;
        // The text of an error is in the log, and not on the page.
        Err::<(), _>(io::Error::other("the mail server is gone"))
    };
    (Continuation::try_new(work).class("mail"), "This will fail.\n")
}

async fn listen(variable: &str, port: &str) -> io::Result<TcpListener> {
    let port = env::var(variable).unwrap_or_else(|_| port.to_owned());
    TcpListener::bind(format!("127.0.0.1:{port}")).await
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(io::stderr).init();
    let epilogue = Epilogue::builder().max_running(20).class("mail", Bound::new(5)).status_page().build();
    let app = Router::new()
        .route("/signup", post(signup))
        .route("/report/{pages}", get(report))
        .route("/broken", get(broken))
        .layer((EarlyCloseLayer::new(), TimeLimitLayer::new(Duration::from_secs(20))));

    let (outside, inside) = (listen("PORT", "3000").await?, listen("STATUS_PORT", "9000").await?);
    println!("listening on http://{}", outside.local_addr()?);
    println!("its status page on http://{}", inside.local_addr()?);

    // A server of its own, so that it is there when the app's is full, and while it drains.
    let page = axum::serve(inside, epilogue.status_page());
    let app = epilogue.serve(outside, app).with_signals();
    let report = tokio::select! {
        report = app.into_future() => report?,
        result = page.into_future() => return result,
    };
    println!("{report}");
    Ok(())
}
