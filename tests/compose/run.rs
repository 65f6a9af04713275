//! Asks one row of one stack, and compares what is seen with what is expected.

use std::{future::Future, pin::pin};

use axum::Router;
use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::{
    app::{App, Row},
    expected::expected,
    stack::{Kind, Stack, request},
    support::{
        Client, Journal, Reply, Server,
        h2client::{Http2, read},
        soon,
    },
};

/// By which way the request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over a socket, under `Epilogue::serve`.
    Http1,
    /// Over a socket, under `Epilogue::serve`.
    Http2,
    /// In process, through the layers alone.
    Alone,
}

/// What a client saw.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub length: Option<u64>,
    pub close: bool,
}

/// What the client and the app saw, and what the journal says; that is empty without a server of ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// `None` where the client left.
    pub answer: Option<Answer>,
    pub notes: Vec<String>,
    pub journal: Vec<String>,
}

/// Every row of the table for every stack, some at a time.
pub async fn check(stacks: impl Iterator<Item = Stack>, rows: &[Row], way: Way) {
    let pairs = stacks.flat_map(|stack| rows.iter().map(move |row| (stack.clone(), *row)));
    let checks = stream::iter(pairs).map(async |(stack, row)| {
        let app = App::new(row, stack.has(Kind::TimeLimit));
        let seen = ask(&app, stack.around(&app), way).await;
        let expected = expected(row, &stack, way);
        (seen != expected).then(|| format!("{row:?} {way:?} {stack:?}\n    seen {seen:?}\nexpected {expected:?}"))
    });
    let wrong: Vec<_> = checks.buffer_unordered(16).filter_map(std::future::ready).collect().await;
    assert!(wrong.is_empty(), "{} are wrong, among them: {:#}", wrong.len(), wrong[..wrong.len().min(3)].join("\n"));
}

/// One request to the app's row in `router`, and its life to the end.
pub async fn ask(app: &App, router: Router, way: Way) -> Seen {
    if way == Way::Alone {
        let answer = alone(app, router).await;
        return Seen { answer, notes: app.notes.all(), journal: Vec::new() };
    }
    let server = Server::start(router).await;
    let answer = if way == Way::Http1 { http1(app, &server).await } else { http2(app, &server).await };
    let journal = server.journal.clone();
    let report = server.stop().await;
    assert!(report.is_clean(), "{report}");
    // The first request is the row's; the second only asks whether the connection lives.
    let lines = journal.lines_of(journal.requests()[0]);
    Seen { answer, notes: app.notes.all(), journal: lines }
}

/// Once the client has left: whatever waits may go on.
async fn left(app: &App, journal: &Journal) -> Option<Answer> {
    journal.seen("aborted").await;
    app.gate.open();
    journal.ended(1).await;
    None
}

async fn http1(app: &App, server: &Server) -> Option<Answer> {
    let row = app.row;
    let mut client = server.connect().await;
    client.send(&format!("{} {} HTTP/1.1\r\nhost: test\r\n\r\n", row.method(), row.path())).await;
    match row {
        Row::Leave => app.notes.seen("started").await,
        Row::ReaderLeaves => {
            client.read_until("first").await;
        }
        _ => {
            let reply = client.response(row.method() == "HEAD").await;
            server.journal.ended(1).await;
            return Some(told(client, &reply, row).await);
        }
    }
    client.reset();
    left(app, &server.journal).await
}

/// What was declared is what happens: the connection ends, or lives on.
async fn told(mut client: Client, reply: &Reply, row: Row) -> Answer {
    let close = reply.header("connection") == Some("close");
    if close {
        let rest = client.reply().await;
        assert!(rest.head.is_empty() && rest.error.is_none(), "{rest:?}");
    } else if row.has_time() {
        client.send_get("/ping").await;
        assert_eq!(client.response(false).await.text(), "pong");
    }
    let length = reply.header("content-length").map(|length| length.parse().unwrap());
    Answer { status: reply.status, body: reply.text(), length, close }
}

async fn http2(app: &App, server: &Server) -> Option<Answer> {
    let row = app.row;
    let mut client = Http2::connect(server.address).await;
    let response = client.start(row.method(), row.path()).await;
    match row {
        Row::Leave => {
            app.notes.seen("started").await;
            drop(response);
        }
        Row::ReaderLeaves => {
            let mut body = soon("a head", response).await.unwrap().into_body();
            assert_eq!(soon("a frame", body.data()).await.unwrap().unwrap(), "first");
            drop(body);
        }
        _ => {
            let whole = soon("a response", async { read(response.await.unwrap()).await.unwrap() }).await;
            server.journal.ended(1).await;
            if row.has_time() {
                assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
            }
            let header = |name: &str| whole.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            return Some(Answer {
                status: whole.status,
                length: header("content-length").map(|length| length.parse().unwrap()),
                close: header("connection").is_some(),
                body: String::from_utf8(whole.body).unwrap(),
            });
        }
    }
    left(app, &server.journal).await
}

async fn alone(app: &App, router: Router) -> Option<Answer> {
    let row = app.row;
    let request = request(row.method(), row.path());
    let answer = match row {
        Row::Leave => {
            let mut response = pin!(router.oneshot(request));
            tokio::select! {
                biased;
                _ = &mut response => panic!("answered"),
                () = app.notes.seen("started") => {}
            }
            None
        }
        Row::ReaderLeaves => {
            let mut body = router.oneshot(request).await.unwrap().into_body();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
            None
        }
        _ => whole(router.oneshot(request)).await,
    };
    app.gate.open();
    settled().await;
    answer
}

/// `None` if the panic came through.
async fn whole<E: std::fmt::Debug>(
    response: impl Future<Output = Result<axum::response::Response, E>>,
) -> Option<Answer> {
    use futures_util::FutureExt;

    let response = std::panic::AssertUnwindSafe(response).catch_unwind().await.ok()?.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    Some(Answer {
        status: response.status().as_u16(),
        length: header("content-length").map(|length| length.parse().unwrap()),
        close: header("connection").is_some_and(|value| value == "close"),
        body: String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
    })
}

/// Under a paused clock, a moment passes once there is nothing left to do.
pub async fn settled() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}
