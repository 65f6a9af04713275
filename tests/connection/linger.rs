//! A server that answers at once, closes, and never reads the upload: its client reads the whole response all the
//! same. `EPILOGUE_TRIALS` says how often, 50 times by default.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    http::header,
    routing::{any, post},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_epilogue::{Continuation, EarlyCloseLayer, Tracking};

use crate::{
    common::Plain,
    support::{Server, soon},
};

/// How a client sends its upload and reads its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    SendsAllThenReads,
    /// In pieces, a millisecond apart; it gives up when one cannot be written.
    Paced,
    ReadsBeside,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    manner: Manner,
    upload: usize,
    response: usize,
}

const CELLS: [Cell; 4] = [
    Cell { manner: Manner::SendsAllThenReads, upload: 20_000_000, response: 2_048 },
    Cell { manner: Manner::Paced, upload: 2_000_000, response: 2_048 },
    Cell { manner: Manner::SendsAllThenReads, upload: 5_000_000, response: 1_048_576 },
    Cell { manner: Manner::ReadsBeside, upload: 5_000_000, response: 1_048_576 },
];

/// What came of many trials.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    whole: usize,
    write_errors: usize,
}

fn trials() -> usize {
    std::env::var("EPILOGUE_TRIALS").map_or(50, |trials| trials.parse().expect("EPILOGUE_TRIALS is a number"))
}

async fn sends(mut half: impl AsyncWriteExt + Unpin, upload: usize, pause: Option<Duration>) -> io::Result<()> {
    let piece = vec![b'x'; 64 * 1024];
    let mut left = upload;
    while left > 0 {
        let length = left.min(piece.len());
        half.write_all(&piece[..length]).await?;
        left -= length;
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
    Ok(())
}

async fn reads(mut half: impl AsyncReadExt + Unpin, response: usize) -> bool {
    let mut bytes = Vec::new();
    let _ = half.read_to_end(&mut bytes).await;
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    head.is_some_and(|head| bytes.len() == head + 4 + response)
}

/// One client: whether it has the whole response, and whether a write failed.
async fn trial(address: SocketAddr, cell: Cell) -> (bool, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", cell.upload);
    stream.write_all(head.as_bytes()).await.unwrap();
    let (read, write) = stream.split();
    match cell.manner {
        Manner::SendsAllThenReads => {
            let failed = sends(write, cell.upload, None).await.is_err();
            (reads(read, cell.response).await, failed)
        }
        Manner::Paced => match sends(write, cell.upload, Some(Duration::from_millis(1))).await {
            Ok(()) => (reads(read, cell.response).await, false),
            Err(_) => (false, true),
        },
        Manner::ReadsBeside => {
            let (sent, whole) = tokio::join!(sends(write, cell.upload, None), reads(read, cell.response));
            (whole, sent.is_err())
        }
    }
}

/// So many trials, eight at a time.
async fn run(address: SocketAddr, cell: Cell, trials: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..trials + 8 {
        if number >= 8 || number >= trials {
            let Some(ended) = soon("a trial", running.join_next()).await else { break };
            let (whole, failed) = ended.unwrap();
            outcome.whole += usize::from(whole);
            outcome.write_errors += usize::from(failed);
        }
        if number < trials {
            running.spawn(trial(address, cell));
        }
    }
    outcome
}

fn app(response: usize) -> Router {
    let body = Bytes::from(vec![b'y'; response]);
    Router::new().route("/", any(async move || body)).layer(EarlyCloseLayer::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_still_uploading_reads_its_whole_response() {
    for cell in CELLS {
        let server = Server::start(app(cell.response)).await;
        let outcome = run(server.address, cell, trials()).await;
        println!("{cell:?}: {outcome:?}");
        assert_eq!(outcome, Outcome { whole: trials(), write_errors: 0 }, "{cell:?}");
        assert!(server.stop().await.is_clean());
    }
}

/// What the lingering is for: it tells when hyper changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_axum_loses_responses_to_uploading_clients() {
    const TRIALS: usize = 20;
    for cell in CELLS {
        let body = Bytes::from(vec![b'y'; cell.response]);
        let app = Router::new().route("/", post(async move || ([(header::CONNECTION, "close")], body)));
        let server = Plain::start(app).await;
        let outcome = run(server.address, cell, TRIALS).await;
        println!("plain axum, {cell:?}: {outcome:?}");
        assert!(outcome.write_errors > 0 || outcome.whole < TRIALS, "{cell:?}: hyper has changed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_lingering_they_are_lost() {
    let cell = CELLS[1];
    let server = Server::with(app(cell.response), |builder| builder.tracking(Tracking::new().linger(None))).await;
    let outcome = run(server.address, cell, 8).await;
    assert!(outcome.whole < 8, "{outcome:?}");
    assert!(server.stop().await.is_clean());
}

/// Its request has ended, since its reader was slow, when the last of the response leaves; and it begins with its upload then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_that_was_given_up_on() {
    const RESPONSE: usize = 16 * 1024 * 1024;
    let handler = async || (Continuation::new(async {}), vec![b'y'; RESPONSE]);
    let app = Router::new().route("/", post(handler)).layer(EarlyCloseLayer::new());
    let server = Server::with(app, |builder| builder.patience(Duration::from_millis(20))).await;
    for trial in 1..=8 {
        let mut client = server.connect().await;
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2000000\r\n\r\n").await;
        server.journal.ended(trial).await;
        assert_eq!(client.response(false).await.body.len(), RESPONSE);
        let sent = soon("the upload", sends(&mut client.stream, 2_000_000, Some(Duration::from_millis(1)))).await;
        assert!(sent.is_ok(), "{trial}: {sent:?}");
    }
    assert!(server.stop().await.is_clean());
}
