//! A sign-up that answers at once; the mail goes out when the answer has left.
//!
//! Run with: `cargo run --example early_close`
//!
//! ```sh
//! # At once, with an exact length and `connection: close`, although the mail takes 3 s:
//! curl -i -d name=Ada -d email=ada@example.com http://127.0.0.1:3000/signup
//! # Empty at first, then one line:
//! curl http://127.0.0.1:3000/outbox
//! # Refused, and no mail:
//! curl -i -d name=Ada -d email=nowhere http://127.0.0.1:3000/signup
//! # No mail is lost if you stop the server meanwhile, with Ctrl-C or SIGTERM: it waits for the mail.
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Form, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, TimeLimitLayer};

#[derive(serde::Deserialize)]
struct User {
    name: String,
    email: String,
}

/// A mail server that takes its time.
#[derive(Clone, Default)]
struct Mailer(Arc<Mutex<Vec<String>>>);

impl Mailer {
    async fn send(&self, mail: String) {
        tokio::time::sleep(Duration::from_secs(3)).await;
        tracing::info!("sent: {mail}");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(mail);
    }

    fn outbox(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|mail| format!("{mail}\n")).collect()
    }
}

async fn signup(State(mailer): State<Mailer>, Form(user): Form<User>) -> Response {
    if !user.email.contains('@') {
        return (StatusCode::UNPROCESSABLE_ENTITY, "That is no address.\n").into_response();
    }
    let text = format!("Welcome, {}! We'll email you as soon as this is done.\n", user.name);
    // Nothing runs yet: it starts when the answer was flushed, or when it is known that it never will be.
    let mail = Continuation::new(async move {
        mailer.send(format!("To {}: welcome, {}!", user.email, user.name)).await;
    });
    (StatusCode::CREATED, mail, text).into_response()
}

async fn outbox(State(mailer): State<Mailer>) -> String {
    mailer.outbox()
}

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let app = Router::new()
        .route("/signup", post(signup))
        .route("/outbox", get(outbox))
        .with_state(Mailer::default())
        .layer((EarlyCloseLayer::new(), TimeLimitLayer::default()));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
