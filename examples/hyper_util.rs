//! Exact in your own accept loop, with hyper-util's auto builder: `TrackedIo` around the stream, and
//! `epilogue.wrap` around the service.
//!
//! Run with: `cargo run --example hyper_util`
//!
//! ```sh
//! curl -i localhost:3000/
//! curl -i --http2-prior-knowledge localhost:3000/
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, reason = "a program, not a library")]

use std::{env, io, pin::pin, time::Duration};

use axum::{Router, routing::get, serve::Listener};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower_epilogue::{Continuation, Epilogue, TrackedIo, shutdown_signal};

async fn hello() -> (Continuation, &'static str) {
    (Continuation::new(async { println!("the response was flushed") }), "hello\n")
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let app = Router::new().route("/", get(hello));
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let mut listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);

    let epilogue = Epilogue::new();
    let graceful = GracefulShutdown::new();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    // One for all turns: a signal that comes between two of them counts.
    let mut stop = pin!(shutdown_signal());
    loop {
        let stream = tokio::select! {
            // axum's, which outlives errors of single connections, and a want of file descriptors.
            (stream, _) = Listener::accept(&mut listener) => stream,
            () = &mut stop => break,
        };
        let io = TrackedIo::new(stream);
        let service = TowerToHyperService::new(epilogue.wrap(&io, app.clone()));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // No failure of the server: a client left, or, on HTTP/2, has read all and not waited for the end.
                eprintln!("a connection ended: {error}");
            }
        });
    }
    // Requests that are under way end first; but not every client takes its response.
    if tokio::time::timeout(Duration::from_secs(20), graceful.shutdown()).await.is_err() {
        println!("some connections did not end in time");
    }
    // Then what runs after responses.
    println!("{}", epilogue.drain().await);
    Ok(())
}
