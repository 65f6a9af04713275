//! The client leaves: a write is an error value, unless that is ignored.

use axum::{Router, routing::get};
use tower_epilogue::{IgnoreAbortLayer, Lifecycle, Output};

use crate::{
    support::{Client, Gate, Notes, Server, h2client::Http2, soon},
    written,
};

/// A client that read the first words and left: by closing, by a reset, or by dropping its HTTP/2 stream.
async fn read_and_left(server: &Server, how: &str) -> Option<Http2> {
    match how {
        "close" | "reset" => {
            let mut client: Client = server.connect().await;
            client.send_get("/").await;
            client.read_until("first").await;
            if how == "close" {
                client.close()
            } else {
                client.reset()
            }
            None
        }
        _ => {
            let mut client = Http2::connect(server.address).await;
            let response = client.start("GET", "/").await;
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "first");
            drop(body);
            Some(client)
        }
    }
}

const HOWS: [&str; 3] = ["close", "reset", "stream"];

/// A handler that finishes its response and writes it, from then on as its own continuation.
fn finishing(notes: &Notes, gate: &Gate) -> Router {
    let (notes, gate) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let (mut output, response) = Output::channel();
        let work = async {
            output.write("first").await.unwrap();
            gate.passed().await;
            let result = output.write("second").await;
            notes.add(format!("write: {:?}", result.map_err(|error| (error.is_closed(), error.is_finished()))));
            notes.add(format!("closed: {}", output.is_closed()));
            let result = output.flush().await;
            notes.add(format!("flush: {:?}", result.map_err(|error| error.is_closed())));
            let result = output.finish().await;
            notes.add(format!("finish: {:?}", result.map_err(|error| error.is_closed())));
        };
        let (sent, ()) = tokio::join!(lifecycle.finish(response), work);
        notes.add(format!("{:?}", sent.unwrap()));
    };
    Router::new().route("/", get(handler))
}

#[tokio::test]
async fn after_the_client_left_a_write_is_an_error_value() {
    for how in HOWS {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = Server::start(finishing(&notes, &gate)).await;
        let _left = read_and_left(&server, how).await;
        server.journal.seen("body_dropped").await;
        gate.open();
        server.journal.ended(1).await;
        let expected =
            ["write: Err((true, false))", "closed: true", "flush: Err(true)", "finish: Err(true)", "Aborted"];
        assert_eq!(notes.all(), expected, "{how}");
        let lines = server.journal.lines();
        assert!(lines.contains(&"handler_end/1".to_owned()), "the handler saw it through: {how}: {lines:?}");
    }
}

#[tokio::test]
async fn where_aborts_are_ignored_it_is_accepted_and_discarded() {
    for how in HOWS {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let server = Server::start(finishing(&notes, &gate).layer(IgnoreAbortLayer::new())).await;
        let _left = read_and_left(&server, how).await;
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        let mut all = notes.all();
        let sent = all.pop().unwrap();
        assert_eq!(all, ["write: Ok(())", "closed: false", "flush: Ok(())", "finish: Ok(())"], "{how}");
        assert!(["Aborted", "BrokenOff"].contains(&sent.as_str()), "{how}: {sent}");
        let lines = server.journal.lines();
        assert!(lines.contains(&"body_end/1".to_owned()), "{how}: {lines:?}");
    }
}

/// Also when it had left before there was a response; and only for as long as it is ignored.
#[tokio::test]
async fn a_response_that_is_finished_for_a_client_that_is_gone_is_written_while_that_is_ignored() {
    for http2 in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            lifecycle.ignore_abort(true);
            theirs.add("started");
            lifecycle.aborted().await;
            let (mut output, response) = Output::channel();
            theirs.add(format!("{:?}", lifecycle.finish(response).await));
            theirs.add(format!("{:?}", output.write("x").await.is_ok()));
            theirs.add(format!("{:?}", output.flush().await.is_ok()));
            lifecycle.ignore_abort(false);
            soon("the response is given up", async {
                while !output.is_closed() {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            theirs.add("closed");
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        if http2 {
            let mut client = Http2::connect(server.address).await;
            let response = client.start("GET", "/").await;
            notes.seen("started").await;
            drop(response);
            server.journal.ended(1).await;
        } else {
            let mut client = server.connect().await;
            client.send_get("/").await;
            notes.seen("started").await;
            client.reset();
            server.journal.ended(1).await;
        }
        assert_eq!(notes.all(), ["started", "Ok(Aborted)", "true", "true", "closed"], "HTTP/2: {http2}");
    }
}

#[tokio::test]
async fn a_producer_is_dropped_when_its_client_leaves_unless_that_is_ignored() {
    for how in HOWS {
        for ignored in [false, true] {
            let (notes, gate) = (Notes::default(), Gate::closed());
            let (theirs, opens) = (notes.clone(), gate.clone());
            let app = written(move |mut output| {
                let (notes, gate) = (theirs.clone(), opens.clone());
                async move {
                    let _dropped = notes.on_drop("dropped");
                    output.write("first").await?;
                    gate.passed().await;
                    notes.add("went on");
                    for _ in 0..100 {
                        output.write([b'x'; 10_000]).await?;
                        output.flush().await?;
                    }
                    output.finish().await?;
                    notes.add("finished");
                    Ok(())
                }
            });
            let layer = if ignored { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
            let server = Server::start(app.layer(layer)).await;
            let _left = read_and_left(&server, how).await;
            server.journal.seen("aborted").await;
            if !ignored {
                notes.seen("dropped").await;
            }
            gate.open();
            server.journal.ended(1).await;
            let expected: &[_] = if ignored { &["went on", "finished", "dropped"] } else { &["dropped"] };
            assert_eq!(notes.all(), expected, "{how}, ignored: {ignored}");
            let lines = server.journal.lines();
            let end = if ignored { "body_end/1" } else { "body_dropped/1" };
            assert!(lines.contains(&end.to_owned()), "{how}, ignored: {ignored}: {lines:?}");
        }
    }
}
