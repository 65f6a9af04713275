//! What the client's machine has confirmed, below the encryption.

use std::time::Duration;

use axum::{Router, body::Bytes, http::Request, routing::get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_epilogue::Continuation;

use crate::{
    server::{Tls, connect},
    support::soon,
};

/// More than a client with small buffers takes without reading, and less than the server's kernel does.
const SIZE: usize = 200_000;
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_continuation_waits_for_a_stopped_reader_to_go_on() {
    for protocol in ["http/1.1", "h2"] {
        let handler = async || (Continuation::new(async {}).after_acknowledged(LONG), vec![b'x'; SIZE]);
        let server = Tls::start(Router::new().route("/", get(handler))).await;
        let mut client = connect(server.address, protocol, Some(4_096)).await;
        let waits = async || {
            server.journal.seen("flushed").await;
            // By then it would have been begun.
            connect(server.address, protocol, None).await;
            assert!(!server.journal.lines().iter().any(|line| line.starts_with("continuation")), "{protocol}");
        };
        if protocol == "h2" {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
            let (mut send, connection) = builder.handshake::<_, Bytes>(client).await.unwrap();
            let mut connection = std::pin::pin!(connection);
            let request = Request::get("https://localhost/").body(()).unwrap();
            let (response, _) = send.send_request(request, true).unwrap();
            // It sends, and reads no more than that takes.
            tokio::select! {
                biased;
                _ = &mut connection => unreachable!("the server is there"),
                () = tokio::task::yield_now() => {}
            }
            waits().await;
            let reads = async {
                let mut body = response.await.unwrap().into_body();
                let mut length = 0;
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    length += data.len();
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                length
            };
            let length = tokio::select! {
                length = soon("the response", reads) => length,
                _ = &mut connection => unreachable!("the server is there"),
            };
            assert_eq!(length, SIZE);
            server.journal.seen("continuation_start").await;
        } else {
            client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
            client.flush().await.unwrap();
            waits().await;
            let mut bytes = vec![0; SIZE];
            soon("the response", client.read_exact(&mut bytes)).await.unwrap();
            server.journal.seen("continuation_start").await;
        }
        server.journal.ended(1).await;
        assert_eq!(server.journal.lines().last().unwrap(), "ended/0", "{protocol}");
        assert!(server.stop().await.is_clean());
    }
}
