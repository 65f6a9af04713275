//! Exact under `axum::serve`: a tracked listener, the `Epilogue`'s make-service, and a drain after it.
//!
//! Run with: `cargo run --example axum_serve`
//!
//! ```sh
//! curl -i localhost:3000/        # answered at once; the log shows the continuation's start and end
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, reason = "a program, not a library")]

use std::{env, io, time::Duration};

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, TrackedListener, shutdown_signal};

async fn hello() -> (Continuation, &'static str) {
    let work = Continuation::new(async {
        println!("the response was flushed: working");
        tokio::time::sleep(Duration::from_secs(2)).await;
        println!("done");
    });
    (work, "hello\n")
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let app = Router::new().route("/", get(hello)).layer(EarlyCloseLayer::new());
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let epilogue = Epilogue::new();
    axum::serve(TrackedListener::new(listener), epilogue.make_service(app))
        .with_graceful_shutdown(shutdown_signal())
        .await?;
    // `axum::serve` returns when the connections are done; the continuations are not its business.
    println!("{}", epilogue.drain().await);
    Ok(())
}
