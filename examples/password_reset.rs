//! A password reset whose answer tells nothing, not even by the time it takes: the address is looked up after the answer.
//!
//! Run with: `cargo run --example password_reset`
//!
//! ```sh
//! # Known and unknown: the same answer, as fast.
//! curl -w '%{time_total} s\n' -d ada@example.org http://127.0.0.1:3000/reset
//! curl -w '%{time_total} s\n' -d eve@example.org http://127.0.0.1:3000/reset
//! ```
#![expect(clippy::print_stdout, reason = "the mail is for whoever started the example")]

use std::{env, io, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header::LOCATION},
    response::IntoResponse,
    routing::post,
};
use tokio::time::sleep;
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, TimeLimitLayer};

/// Takes longer for those who have an account, as such things do.
async fn look_up(address: &str) -> Option<&'static str> {
    sleep(Duration::from_millis(20)).await;
    if address != "ada@example.org" {
        return None;
    }
    sleep(Duration::from_millis(80)).await;
    Some("Ada")
}

/// Nothing before the answer depends on whether the account exists, and neither do its length and its headers.
async fn reset(address: String) -> impl IntoResponse {
    let work = Continuation::new(async move {
        if let Some(name) = look_up(&address).await {
            sleep(Duration::from_secs(1)).await;
            println!("mail to {address}: Dear {name}, here is your link …");
        }
    });
    (StatusCode::ACCEPTED, [(LOCATION, "/reset/sent")], work, "If we know this address, a mail is on its way.\n")
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let app = Router::new()
        .route("/reset", post(reset))
        .layer((EarlyCloseLayer::new().keep_alive(), TimeLimitLayer::default()));
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    println!("{}", Epilogue::new().serve(listener, app).with_graceful_shutdown(stop).await?);
    Ok(())
}
