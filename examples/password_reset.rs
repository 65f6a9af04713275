//! A password reset whose timing does not tell who has an account.
//!
//! Run with: `cargo run --example password_reset`
//!
//! ```sh
//! # Ada has an account and Eve has none; both get the same answer in the same time:
//! curl -w '%{time_total}\n' -d email=ada@example.com http://127.0.0.1:3000/reset
//! curl -w '%{time_total}\n' -d email=eve@example.com http://127.0.0.1:3000/reset
//! # The naive way, where waiting for the look-up and for the mail gives Ada away:
//! curl -w '%{time_total}\n' -d email=ada@example.com http://127.0.0.1:3000/leaky
//! curl -w '%{time_total}\n' -d email=eve@example.com http://127.0.0.1:3000/leaky
//! ```

use std::{io, sync::Arc, time::Duration};

use axum::{Form, Router, extract::State, routing::post};
use tower_epilogue::{Continuation, Epilogue, TimeLimitLayer};

const ANSWER: &str = "If there is an account with this address, a mail is on its way.\n";

/// Who has an account, and how long it takes to find out and to send a mail.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// The addresses with an account.
    pub emails: Arc<[&'static str]>,
    /// How long it takes to find out.
    pub look_up: Duration,
    /// How long it takes to send the mail.
    pub mail: Duration,
}

#[derive(serde::Deserialize)]
struct Reset {
    email: String,
}

impl Accounts {
    /// Everything that differs from one address to another.
    async fn reset(&self, email: &str) {
        tokio::time::sleep(self.look_up).await;
        if self.emails.contains(&email) {
            tokio::time::sleep(self.mail).await;
            tracing::info!("a mail is sent");
        }
    }
}

/// Nothing is looked up before the answer has left; so nothing that was found can show in it.
async fn reset(State(accounts): State<Accounts>, Form(reset): Form<Reset>) -> (Continuation, &'static str) {
    (Continuation::new(async move { accounts.reset(&reset.email).await }), ANSWER)
}

/// The same words, and a clock that gives them away.
async fn leaky(State(accounts): State<Accounts>, Form(reset): Form<Reset>) -> &'static str {
    accounts.reset(&reset.email).await;
    ANSWER
}

/// The app.
pub fn app(accounts: Accounts) -> Router {
    Router::new()
        .route("/reset", post(reset))
        .route("/leaky", post(leaky))
        .with_state(accounts)
        .layer(TimeLimitLayer::default())
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "the address is for whoever started the example")]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let accounts = Accounts {
        emails: Arc::new(["ada@example.com"]),
        look_up: Duration::from_millis(20),
        mail: Duration::from_millis(800),
    };
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app(accounts)).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
