//! A language model's answer, streamed token by token, and stored in full even if its reader leaves half-way.
//!
//! Run with: `cargo run --example llm_stream --features compressed-stream`
//!
//! ```sh
//! # The tokens of an event stream, one every 200 ms:
//! curl -N --compressed 'http://127.0.0.1:3000/ask?question=why'
//! # Leaves after 1 s, half-way:
//! curl -N -m 1 'http://127.0.0.1:3000/ask?question=how'
//! # Some seconds later both answers are there in full; the second says that its reader had left:
//! curl http://127.0.0.1:3000/answers
//! ```

use std::{convert::Infallible, io, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::sse::{Event, Sse},
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use tokio_rusqlite::{Connection, Error};
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

const ANSWER: &str = "Because a reader who closes the page has not taken the question back: \
                      what was computed is paid for, and will be asked for again.";

/// What a model that takes its time says.
pub fn model(pace: Duration) -> impl Stream<Item = &'static str> + Send {
    stream::iter(ANSWER.split_inclusive(' ')).then(move |token| async move {
        tokio::time::sleep(pace).await;
        token
    })
}

/// The answers so far.
#[derive(Clone, Debug)]
pub struct Answers(Connection);

/// One that is stored.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// What was asked.
    pub question: String,
    /// The whole answer.
    pub answer: String,
    /// Whether its reader was still there at its end.
    pub read_to_its_end: bool,
}

impl Answers {
    /// # Errors
    ///
    /// What SQLite says.
    pub async fn open(path: &str) -> Result<Self, Error> {
        let database = Connection::open(path).await?;
        let create = "CREATE TABLE IF NOT EXISTS answers (question TEXT, answer TEXT, read_to_its_end BOOLEAN)";
        database.call(move |database| database.execute(create, [])).await?;
        Ok(Self(database))
    }

    async fn store(&self, answer: Answer) -> Result<(), Error> {
        let Answer { question, answer, read_to_its_end } = answer;
        let insert = "INSERT INTO answers VALUES (?, ?, ?)";
        self.0.call(move |database| database.execute(insert, (question, answer, read_to_its_end))).await?;
        Ok(())
    }

    /// # Errors
    ///
    /// What SQLite says.
    pub async fn all(&self) -> Result<Vec<Answer>, Error> {
        let read = |database: &mut rusqlite::Connection| {
            let mut select =
                database.prepare("SELECT question, answer, read_to_its_end FROM answers ORDER BY rowid")?;
            let rows = select.query_map([], |row| {
                Ok(Answer { question: row.get(0)?, answer: row.get(1)?, read_to_its_end: row.get(2)? })
            })?;
            rows.collect::<Result<_, rusqlite::Error>>()
        };
        self.0.call(read).await
    }
}

#[derive(serde::Deserialize)]
struct Asked {
    question: String,
}

/// The tokens as they come, and at their end the whole answer into the store: the body's own last step, which is
/// taken whether or not anybody still reads.
fn told<M>(
    answers: Answers,
    question: String,
    lifecycle: Lifecycle,
    model: M,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    M: Stream<Item = &'static str> + Send + 'static,
{
    let answer = (Box::pin(model), String::new());
    let tokens = stream::unfold(Some(answer), move |state| {
        let (answers, question, lifecycle) = (answers.clone(), question.clone(), lifecycle.clone());
        async move {
            let (mut model, mut answer) = state?;
            if let Some(token) = model.next().await {
                answer.push_str(token);
                return Some((Event::default().data(token), Some((model, answer))));
            }
            let answer = Answer { question, answer, read_to_its_end: !lifecycle.is_aborted() };
            let stored = answers.store(answer).await;
            if let Err(error) = &stored {
                tracing::error!(%error, "an answer could not be stored");
            }
            Some((Event::default().event("end").data(if stored.is_ok() { "stored" } else { "lost" }), None))
        }
    });
    Sse::new(tokens.map(Ok))
}

async fn stored(State(answers): State<Answers>) -> Result<Json<Vec<Answer>>, StatusCode> {
    answers.all().await.map(Json).map_err(|error| {
        tracing::error!(%error, "the answers could not be read");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}

/// The app, with whatever `ask` has a model say.
pub fn app<M>(answers: Answers, ask: impl Fn() -> M + Clone + Send + Sync + 'static) -> Router
where
    M: Stream<Item = &'static str> + Send + 'static,
{
    let asked = async move |State(answers): State<Answers>, lifecycle: Lifecycle, Query(asked): Query<Asked>| {
        told(answers, asked.question, lifecycle, ask())
    };
    let app = Router::new()
        // The reader's leaving does not end an answer; this does.
        .route("/ask", get(asked).layer((IgnoreAbortLayer::new(), TimeLimitLayer::new(Duration::from_secs(120)))))
        .route("/answers", get(stored))
        .with_state(answers);
    // Each token reaches the reader although it is compressed.
    #[cfg(feature = "compressed-stream")]
    let app = app.layer(tower_epilogue::CompressedStreamLayer::new());
    app
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "the address is for whoever started the example")]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().init();
    let path = std::env::var("DATABASE").unwrap_or_else(|_| "answers.sqlite".to_owned());
    let answers = Answers::open(&path).await.map_err(io::Error::other)?;
    let app = app(answers, || model(Duration::from_millis(200)));

    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    // An answer that is being given when the server stops is waited for, too.
    let report = tower_epilogue::Epilogue::new().serve(listener, app).with_signals().await?;
    tracing::info!("{report}");
    Ok(())
}
