//! How connections end under TLS: for clients that still upload, that have closed their sending side, and whose
//! response is broken off.

use std::{io, time::Duration};

use axum::{
    Router,
    body::Body,
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_epilogue::{EarlyCloseLayer, HalfClose, TimeLimitLayer, Tracking};

use crate::{
    server::{Encrypted, Tls, connect},
    support::{Gate, soon},
};

async fn upload(client: &mut (impl AsyncWriteExt + Unpin), mut left: usize, pause: bool) -> io::Result<()> {
    let piece = vec![b'x'; 64 * 1024];
    while left > 0 {
        let length = left.min(piece.len());
        client.write_all(&piece[..length]).await?;
        left -= length;
        if pause {
            tokio::task::yield_now().await;
        }
    }
    client.flush().await
}

fn is_whole(bytes: &[u8], response: usize) -> bool {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    head.is_some_and(|head| bytes.len() == head + 4 + response)
}

async fn head(client: &mut Encrypted, upload: usize) {
    let head = format!("POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {upload}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_still_uploading_reads_its_whole_response() {
    for (sent, response, beside) in
        [(20_000_000, 2_048, false), (5_000_000, 1_048_576, false), (5_000_000, 1_048_576, true)]
    {
        let body = Bytes::from(vec![b'y'; response]);
        let app = Router::new().route("/", any(async move || body)).layer(EarlyCloseLayer::new());
        let server = Tls::start(app).await;
        for trial in 0..20 {
            let cell = format!("{sent} up, {response} down, beside: {beside}, trial {trial}");
            let mut client = connect(server.address, "http/1.1", None).await;
            head(&mut client, sent).await;
            let mut bytes = Vec::new();
            let trial = async {
                if beside {
                    let (mut read, mut write) = tokio::io::split(client);
                    let (uploaded, read) = tokio::join!(upload(&mut write, sent, true), read.read_to_end(&mut bytes));
                    uploaded.unwrap();
                    read.unwrap();
                } else {
                    upload(&mut client, sent, true).await.unwrap();
                    client.read_to_end(&mut bytes).await.unwrap();
                }
            };
            soon(&cell, trial).await;
            assert!(is_whole(&bytes, response), "{cell}: {} bytes", bytes.len());
        }
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn a_half_closed_client_is_served_where_that_is_set() {
    let gate = Gate::closed();
    let opens = gate.clone();
    let handler = async move || {
        gate.passed().await;
        vec![b'y'; 500_000]
    };
    let app = Router::new().route("/", get(handler));
    let server = Tls::with(app, Tracking::new().half_close(HalfClose::Serve), None).await;
    let mut client = connect(server.address, "http/1.1", None).await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    server.journal.seen("handler_start").await;
    opens.open();
    let mut bytes = Vec::new();
    soon("the response", client.read_to_end(&mut bytes)).await.unwrap();
    assert!(is_whole(&bytes, 500_000), "{} bytes", bytes.len());
    server.journal.ended(1).await;
    assert_eq!(server.journal.lines().last().unwrap(), "ended/0");
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn a_response_that_is_broken_off_never_looks_whole() {
    let endless = || {
        Body::from_stream(stream::unfold((), async |()| {
            tokio::task::yield_now().await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"more")), ()))
        }))
    };
    let app =
        Router::new().route("/", get(async move || endless())).layer(TimeLimitLayer::new(Duration::from_millis(100)));
    for version in ["1.0", "1.1"] {
        let server = Tls::start(app.clone()).await;
        let mut client = connect(server.address, "http/1.1", None).await;
        client.write_all(format!("GET / HTTP/{version}\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        let mut bytes = Vec::new();
        let ended = soon("the connection ends", client.read_to_end(&mut bytes)).await;
        assert!(!bytes.is_empty());
        // Without a `close_notify` a client knows that it was cut (RFC 8446, section 6.1).
        assert!(ended.is_err() || !bytes.ends_with(b"0\r\n\r\n"), "HTTP/{version}: {ended:?}");
        assert!(version == "1.1" || ended.is_err(), "HTTP/{version}: {ended:?}");
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/2");
        assert!(server.stop().await.is_clean());
    }
}
