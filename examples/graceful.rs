//! Graceful shutdown: the server finishes what is open, and shows how much is left.
//!
//! Run with: `cargo run --example graceful`
//!
//! ```sh
//! # Twenty orders, each with 1 to 20 s of work after its response:
//! for i in $(seq 20); do curl -d "$i" http://127.0.0.1:3000/order; done
//! # Then press Ctrl-C (or send SIGTERM): what is not done 15 s later is cut, and named in the report. Press it again to
//! # cut at once.
//! ```
#![expect(clippy::print_stdout, reason = "the address and the report are for whoever started the example")]

use std::{
    future::IntoFuture,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, routing::post};
use indicatif::{ProgressBar, ProgressStyle};
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, Event, EventKind};

async fn order(State(number): State<Arc<AtomicU64>>, item: String) -> (Continuation, String) {
    let number = number.fetch_add(1, Ordering::Relaxed) % 20 + 1;
    let work = Continuation::new(async move {
        // Packing, labels, mail …
        tokio::time::sleep(Duration::from_secs(number)).await;
        drop(item);
    });
    (work.class("order"), format!("accepted, {number} s of work\n"))
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let bar = ProgressBar::hidden();
    let style = "{spinner} {bar:40} {pos} of {len} orders done ({elapsed})";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));

    let shown = bar.clone();
    let epilogue = Epilogue::builder()
        .drain_deadline(Duration::from_secs(15))
        .on_event(move |event: &Event| match event.kind() {
            EventKind::ContinuationStart => shown.inc_length(1),
            EventKind::ContinuationEnd | EventKind::ContinuationDropped => shown.inc(1),
            _ => {}
        })
        .build();
    bar.set_length(0);

    let app = Router::new().route("/order", post(order)).with_state(Arc::default()).layer(EarlyCloseLayer::new());
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let draining = bar.clone();
    let serving = epilogue.serve(listener, app).with_signals();
    let show = async {
        tower_epilogue::shutdown_signal().await;
        println!("draining; once more cuts");
        draining.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        draining.enable_steady_tick(Duration::from_millis(100));
        std::future::pending::<std::convert::Infallible>().await
    };
    let report = tokio::select! {
        report = serving.into_future() => report?,
        never = show => match never {},
    };
    bar.finish();
    println!("{report}");
    Ok(())
}
