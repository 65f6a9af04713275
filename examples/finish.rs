//! A webhook that is acknowledged at once; the handler goes on with the work.
//!
//! Run with: `cargo run --example finish`
//!
//! ```sh
//! # A 202 at once, although the work takes 3 s:
//! curl -i -H 'content-type: application/json' -d '{"id": 7, "event": "paid"}' http://127.0.0.1:3000/webhook
//! # A delivery that is sent twice is acknowledged twice, and processed once:
//! curl -i -H 'content-type: application/json' -d '{"id": 7, "event": "paid"}' http://127.0.0.1:3000/webhook
//! # The state of each delivery:
//! curl http://127.0.0.1:3000/deliveries
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use tokio::time::sleep;
use tower_epilogue::{Epilogue, Lifecycle, LifecycleError, TimeLimitLayer};

#[derive(serde::Deserialize)]
struct Delivery {
    id: u64,
    event: String,
}

#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<BTreeMap<u64, String>>>);

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False if it was begun before.
    fn begin(&self, id: u64) -> bool {
        let mut deliveries = self.lock();
        let new = !deliveries.contains_key(&id);
        deliveries.entry(id).or_insert_with(|| "begun".to_owned());
        new
    }
}

async fn webhook(
    State(deliveries): State<Deliveries>,
    lifecycle: Lifecycle,
    Json(Delivery { id, event }): Json<Delivery>,
) -> Result<(), LifecycleError> {
    let sent = lifecycle.finish((StatusCode::ACCEPTED, "accepted\n")).await?;
    // From here on nobody waits, and no abort ends this.
    if !sent.is_flushed() {
        tracing::warn!("delivery {id} was not acknowledged ({sent:?}): its sender will come again");
        return Ok(());
    }
    if !deliveries.begin(id) {
        tracing::info!("delivery {id} has come before");
        return Ok(());
    }
    for step in ["checked", "booked", "reported"] {
        sleep(Duration::from_secs(1)).await;
        tracing::info!("delivery {id} ({event}): {step}");
        deliveries.lock().insert(id, format!("{event}: {step}"));
    }
    Ok(()) // What is returned now goes nowhere.
}

async fn list(State(deliveries): State<Deliveries>) -> String {
    deliveries.lock().iter().map(|(id, state)| format!("{id}: {state}\n")).collect()
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let app = Router::new()
        .route("/webhook", post(webhook))
        .route("/deliveries", get(list))
        .with_state(Deliveries::default())
        // It bounds the answer and the work after it.
        .layer(TimeLimitLayer::new(Duration::from_secs(60)));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
