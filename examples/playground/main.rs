//! Try any combination of the layers from curl or a browser, and see what happens.
//!
//! Run with:
//!
//! ```text
//! cargo run --example playground
//! ```
//!
//! and open the address that it prints: `PORT` chooses the port, 3000 by default, and `PORT=0` picks a free one.
//! `/` is a page; `/run?id=NAME&…` runs one request as its query says (see [`query`]); `/journal/NAME` is what
//! happened to it, as JSON. HTTP/1.0, HTTP/1.1 and HTTP/2 with prior knowledge are served on the one port.
//!
//! ```text
//! curl -i 'http://127.0.0.1:3000/run?id=mail&close=1&then_ms=2000'
//! curl 'http://127.0.0.1:3000/journal/mail'
//! ```

use std::{
    env,
    error::Error,
    io::{self, Write as _},
    sync::Arc,
};

use axum::{Router, response::Html, routing::get};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_epilogue::Epilogue;
use tracing_subscriber::EnvFilter;

use self::journal::Journals;

mod handler;
mod journal;
mod query;
mod run;

/// What the routes share.
#[derive(Clone)]
struct Playground {
    epilogue: Epilogue,
    journals: Arc<Journals>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();

    let journals = Arc::new(Journals::default());
    let listener = journals.clone();
    let epilogue = Epilogue::builder().on_event(move |event| listener.record(event)).build();

    // No layer of the crate here: each request chooses its own.
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/run", get(run::run).post(run::run))
        .route("/journal/{id}", get(journal::journal))
        .with_state(Playground { epilogue: epilogue.clone(), journals: journals.clone() });
    let app = ServiceBuilder::new().map_request(move |request| run::arrive(&journals, request)).service(router);

    let port = match env::var("PORT") {
        Ok(port) => port.parse().map_err(|error| format!("PORT must be a port's number: {error}"))?,
        Err(_) => 3000,
    };
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let (mut first, mut second) = (Signals::new()?, Signals::new()?);
    // Flushed, since whoever starts this may read the address from a pipe.
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on http://{}", listener.local_addr()?)?;
    stdout.flush()?;

    // As `with_signals` does, which would install them only when it is polled.
    let drains = async move { first.next().await };
    let cuts = async move {
        second.next().await;
        second.next().await;
    };
    let report = epilogue.serve(listener, app).with_graceful_shutdown(drains).cut_on(cuts).await?;
    tracing::info!(%report, "stopped");
    Ok(())
}

/// Ctrl-C and SIGTERM, counted from when it was made: one that comes before the first poll counts.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
