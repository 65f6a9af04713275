//! Three levels of a time limit: the router's, a route's, and the handler's own.
//!
//! Run with: `cargo run --example time_limit`
//!
//! ```sh
//! # The router's limit of 2 s holds: a 503 after 2 s.
//! curl -i http://127.0.0.1:3000/quote
//! # The route's limit of 5 s holds for the 3 s of collecting; then each chapter gets 2 s more: a 200 after 7.5 s.
//! curl -i 'http://127.0.0.1:3000/report?chapters=3'
//! # A chapter that takes longer than its 2 s: a 503 after 5 s, in the middle of the first.
//! curl -i 'http://127.0.0.1:3000/report?chapters=3&slow=true'
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{io, time::Duration};

use axum::{Router, extract::Query, routing::get};
use tokio::time::sleep;
use tower_epilogue::{Epilogue, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

#[derive(serde::Deserialize)]
struct Wish {
    chapters: u32,
    #[serde(default)]
    slow: bool,
}

/// Asks a supplier who does not answer.
async fn quote() -> &'static str {
    sleep(Duration::from_secs(60)).await;
    "42\n"
}

async fn report(lifecycle: Lifecycle, Query(wish): Query<Wish>) -> String {
    // Longer than the router allows: this route has a limit of its own.
    sleep(Duration::from_secs(3)).await;
    let mut text = String::from("collected\n");
    for chapter in 1..=wish.chapters {
        // However many chapters there are, each has 2 s from here on.
        lifecycle.set_time_limit(Duration::from_secs(2));
        sleep(if wish.slow { Duration::from_secs(10) } else { Duration::from_millis(1500) }).await;
        let left = lifecycle.time_left().unwrap_or_default();
        text += &format!("chapter {chapter}, with {} ms to spare\n", left.as_millis());
    }
    text
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let app = Router::new()
        .route("/quote", get(quote))
        .route("/report", get(report).layer(TimeLimitLayer::new(Duration::from_secs(5))))
        .layer(TimeLimitLayer::new(Duration::from_secs(2)))
        .layer(ShutdownHookLayer::new(|end| async move {
            tracing::info!("{}: {} after {:.1} s", end.route(), end.status(), end.elapsed().as_secs_f64());
        }));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
