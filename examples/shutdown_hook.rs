//! An order that does not reach its end is marked unconfirmed, whatever ended it.
//!
//! Run with: `cargo run --example shutdown_hook`
//!
//! ```sh
//! # Takes 2 s: confirmed.
//! curl -d 'a book' http://127.0.0.1:3000/order
//! # The client leaves, the handler panics, the time limit passes: unconfirmed, with the reason.
//! curl -m 1 -d 'a lamp' http://127.0.0.1:3000/order
//! curl -i -d bomb http://127.0.0.1:3000/order
//! curl -i -d 'a snail' http://127.0.0.1:3000/order
//! # All orders:
//! curl http://127.0.0.1:3000/orders
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{
    collections::BTreeMap,
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
use tower_epilogue::{Epilogue, Lifecycle, LifecycleError, RequestId, ShutdownHookLayer, TimeLimitLayer};

#[derive(Clone, Default)]
struct Orders(Arc<Mutex<BTreeMap<RequestId, (String, String)>>>);

impl Orders {
    fn put(&self, order: RequestId, item: &str, state: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(order, (item.to_owned(), state));
    }
}

async fn order(State(orders): State<Orders>, lifecycle: Lifecycle, item: String) -> Result<String, LifecycleError> {
    let id = lifecycle.id();
    orders.put(id, &item, "pending".to_owned());

    let (hooked, name) = (orders.clone(), item.clone());
    lifecycle.on_shutdown(move |end| async move {
        // The client knows of its order only if the whole answer has left.
        let state = match end.panic() {
            None if end.status().is_normal() && end.sent().is_flushed() => "confirmed".to_owned(),
            None => format!("unconfirmed: {}", end.status()),
            Some(panic) => format!("unconfirmed: {panic}"),
        };
        hooked.put(id, &name, state);
    })?;

    // The payment. None of this knows of the hook, and none of it has to clean up.
    assert!(item != "bomb", "we do not sell bombs");
    sleep(Duration::from_secs(if item == "a snail" { 60 } else { 2 })).await;
    Ok(format!("Order {id}: {item} is on its way.\n"))
}

async fn list(State(orders): State<Orders>) -> String {
    let orders = orders.0.lock().unwrap_or_else(PoisonError::into_inner);
    orders.iter().map(|(id, (item, state))| format!("{id}: {item} ({state})\n")).collect()
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let app = Router::new()
        .route("/order", post(order))
        .route("/orders", get(list))
        .with_state(Orders::default())
        .layer(TimeLimitLayer::new(Duration::from_secs(4)))
        // For every request, before the handler's own hook: one line in the log.
        .layer(ShutdownHookLayer::new(|end| async move {
            let status = end.response_status().map_or(0, |status| status.as_u16());
            tracing::info!(status, "{} {}: {}, {:?}", end.request(), end.route(), end.status(), end.sent());
        }));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
