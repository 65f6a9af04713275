//! A language model's answer, token by token: the reader leaves half-way, and the whole answer is stored all the same,
//! since every token of it is paid for.
//!
//! Run with: `cargo run --example llm_stream`
//!
//! ```sh
//! # Reads all of it:
//! curl -N -d 'what is a tower?' http://127.0.0.1:3000/ask
//! # Leaves after a second:
//! curl -N -m 1 -d 'what is an epilogue?' http://127.0.0.1:3000/ask
//! # The second answer, whole, a few seconds later:
//! curl http://127.0.0.1:3000/answers/2
//! ```
#![expect(clippy::print_stdout, reason = "the address is for whoever started the example")]

use std::{env, io, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::{get, post},
};
use rusqlite::OptionalExtension as _;
use tokio_rusqlite::{Connection, Error, params};
use tower_epilogue::{Epilogue, IgnoreAbortLayer, Lifecycle, Output, TimeLimitLayer};

/// Answers in a SQLite file, or in memory.
#[derive(Clone)]
struct Answers(Connection);

impl Answers {
    async fn open(path: Option<String>) -> Result<Self, Error> {
        let connection = match path {
            Some(path) => Connection::open(path).await?,
            None => Connection::open_in_memory().await?,
        };
        let schema = "CREATE TABLE IF NOT EXISTS answers (id INTEGER PRIMARY KEY, question TEXT, answer TEXT)";
        connection.call(move |sqlite| sqlite.execute(schema, [])).await?;
        Ok(Self(connection))
    }

    async fn begin(&self, question: String) -> Result<i64, Error> {
        let insert = "INSERT INTO answers (question) VALUES (?1)";
        self.0.call(move |sqlite| sqlite.execute(insert, params![question]).map(|_| sqlite.last_insert_rowid())).await
    }

    async fn store(&self, id: i64, answer: String) -> Result<usize, Error> {
        let update = "UPDATE answers SET answer = ?2 WHERE id = ?1";
        self.0.call(move |sqlite| sqlite.execute(update, params![id, answer])).await
    }

    async fn find(&self, id: i64) -> Result<Option<String>, Error> {
        let select = "SELECT answer FROM answers WHERE id = ?1";
        let row = self.0.call(move |sqlite| sqlite.query_row(select, params![id], |row| row.get(0)).optional());
        Ok(row.await?.flatten())
    }
}

/// A model that answers every question alike, and takes its time.
fn tokens(question: &str) -> impl Iterator<Item = String> + use<> {
    let answer = format!("You ask: {question} That is a good question, and here is what I know about it: ");
    let more = "it is many words, which come one after the other, and each of them costs something. ".repeat(3);
    (answer + &more).split_inclusive(' ').map(str::to_owned).collect::<Vec<_>>().into_iter()
}

async fn ask(
    State(answers): State<Answers>,
    lifecycle: Lifecycle,
    question: String,
) -> Result<impl IntoResponse, StatusCode> {
    let id = answers.begin(question.clone()).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    // Under `IgnoreAbortLayer` this runs to its end, whoever still reads; a write to nobody is accepted.
    let produce = async move |mut output: Output| {
        let mut answer = String::new();
        for token in tokens(&question) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer += &token;
            output.write(format!("data: {token}\n\n")).await?;
            output.flush().await?;
        }
        answers.store(id, answer).await.map_err(io::Error::other)?;
        output.write(format!("event: stored\ndata: {id}\n\n")).await?;
        Ok::<_, io::Error>(())
    };
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, lifecycle.output(produce).no_proxy_buffering()))
}

async fn answer(State(answers): State<Answers>, Path(id): Path<i64>) -> Result<String, StatusCode> {
    let found = answers.find(id).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    found.map(|answer| answer + "\n").ok_or(StatusCode::NOT_FOUND)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = Router::new()
        .route("/ask", post(ask).layer((IgnoreAbortLayer::new(), TimeLimitLayer::default())))
        .route("/answers/{id}", get(answer))
        .with_state(Answers::open(env::var("DATABASE").ok()).await?);
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = async { tokio::signal::ctrl_c().await.unwrap_or(()) };
    println!("{}", Epilogue::new().serve(listener, app).with_graceful_shutdown(stop).await?);
    Ok(())
}
