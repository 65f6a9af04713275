//! What a connection was upgraded to is the application's: it closes one side when it likes, and reads on.

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tower_epilogue::EarlyCloseLayer;

use crate::{
    common::the_server_has_looked,
    support::{Gate, Server, soon},
};

/// Says something, closes its sending side when it is let, and tells what it was sent.
fn app(gate: &Gate, tells: mpsc::UnboundedSender<Vec<u8>>) -> Router {
    let gate = gate.clone();
    let handler = async move |mut request: Request| -> Response {
        let (method, upgrade) = (request.method().clone(), hyper::upgrade::on(&mut request));
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            io.write_all(b"that is all").await.unwrap();
            gate.passed().await;
            io.shutdown().await.unwrap();
            let mut said = Vec::new();
            io.read_to_end(&mut said).await.unwrap();
            tells.send(said).unwrap();
        });
        match method {
            Method::CONNECT => StatusCode::OK.into_response(),
            _ => {
                let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "words")];
                (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
            }
        }
    };
    Router::new().route("/ping", get(async || "pong")).fallback(handler).layer(EarlyCloseLayer::new())
}

#[tokio::test]
async fn whoever_closes_its_sending_side_reads_what_the_client_still_sends() {
    for head in [
        "GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: words\r\n\r\n",
        "CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\n\r\n",
    ] {
        let gate = Gate::closed();
        let (tells, mut told) = mpsc::unbounded_channel();
        let server = Server::start(app(&gate, tells)).await;
        let mut client = server.connect().await;
        client.send(head).await;
        client.read_until("that is all").await;
        let words = "word ".repeat(10_000);
        client.send(&words).await;
        // By then the server's socket knows of them.
        the_server_has_looked(server.address).await;
        gate.open();
        let mut more = Vec::new();
        soon("its end", client.stream.read_to_end(&mut more)).await.unwrap();
        assert!(more.is_empty());
        client.send("and one more").await;
        client.half_close().await;
        let said = soon("what it was sent", told.recv()).await.unwrap();
        assert_eq!(String::from_utf8(said).unwrap().len(), words.len() + "and one more".len(), "{head}");
        server.journal.ended(3).await;
        assert!(server.stop().await.is_clean());
    }
}

/// Its two sides are in tasks of their own, and the one that writes waits for the client when the FIN comes.
#[tokio::test]
async fn whoever_reads_in_a_task_of_its_own_is_told_of_the_end_while_another_writes() {
    let (tells, mut told) = mpsc::unbounded_channel();
    let handler = async move |mut request: Request| {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut reads, mut writes) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let (said, mut hears) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                let mut word = [0; 4];
                reads.read_exact(&mut word).await.unwrap();
                said.send(()).unwrap();
                let mut rest = Vec::new();
                reads.read_to_end(&mut rest).await.unwrap();
                tells.send([&word[..], &rest].concat()).unwrap();
            });
            hears.recv().await.unwrap();
            // More than the sockets take.
            let _ = writes.write_all(&vec![b'x'; 64 << 20]).await;
        });
        let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "words")];
        (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty())
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: words\r\n\r\n").await;
    client.read_until("\r\n\r\n").await;
    client.send("word").await;
    client.half_close().await;
    assert_eq!(soon("it is told of the end", told.recv()).await.unwrap(), b"word");
    drop(client);
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}
