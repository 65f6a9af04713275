//! Orders that do not stop half-way when their client disconnects.
//!
//! Run with: `cargo run --example ignore_abort`
//!
//! ```sh
//! # Leaves after 1 s, in the middle of the payment: it is charged AND stored, but not wrapped as a gift.
//! curl -m 1 -d 'a book' http://127.0.0.1:3000/order
//! # Leaves after 1 s, in the middle of ten rows: all ten are imported, no preview is made.
//! curl -m 1 -X POST http://127.0.0.1:3000/import
//! # What was done, some seconds later:
//! curl http://127.0.0.1:3000/log
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use tokio::time::sleep;
use tower_epilogue::{Epilogue, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn write(&self, line: impl Into<String>) {
        let line = line.into();
        tracing::info!("{line}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// An abort ends this handler at its next `.await`, but for the critical section.
async fn order(State(log): State<Log>, lifecycle: Lifecycle, item: String) -> String {
    {
        let _shield = lifecycle.shield();
        log.write(format!("charging for {item}"));
        sleep(Duration::from_secs(2)).await;
        log.write(format!("charged and stored: {item}"));
        if lifecycle.is_aborted() {
            log.write("the client has left: the receipt goes out by mail");
        }
    } // With the shield gone, a client that left in between ends the work here.
    sleep(Duration::from_millis(500)).await;
    log.write(format!("wrapped as a gift: {item}"));
    format!("{item} is on its way.\n")
}

/// The layer on its route ignores aborts all the way.
async fn import(State(log): State<Log>, lifecycle: Lifecycle) -> String {
    for row in 1..=10 {
        sleep(Duration::from_millis(300)).await;
        log.write(format!("imported row {row}"));
    }
    if lifecycle.is_aborted() {
        log.write("nobody waits for a preview: none is made");
        return String::new();
    }
    sleep(Duration::from_millis(500)).await;
    "10 rows, and here is how they look: …\n".to_owned()
}

async fn read(State(log): State<Log>) -> String {
    log.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|line| format!("{line}\n")).collect()
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let app = Router::new()
        .route("/order", post(order))
        .route("/import", post(import).layer(IgnoreAbortLayer::new()))
        .route("/log", get(read))
        .with_state(Log::default())
        // Work that no client ends any more should have another end.
        .layer(TimeLimitLayer::new(Duration::from_secs(30)));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
