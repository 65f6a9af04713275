//! IOs that are neither a socket nor an encryption: what reads a header before the first request, for example.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::stream;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpListener,
    time::Instant,
};
use tower_epilogue::{TimeLimitLayer, TrackedIo, TrackedSocket, Tracking};

use crate::{
    common::serve_one,
    support::{Client, Journal, MemoryClient, soon},
};

const SECOND: Duration = Duration::from_secs(1);

/// Hands everything on, but for the end of one whose `shuts` is false.
struct Wrapped<IO> {
    io: IO,
    shuts: bool,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wrapped<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wrapped<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shuts { Pin::new(&mut self.io).poll_shutdown(cx) } else { Poll::Pending }
    }
}

/// The end of the connection is that of the response (RFC 9112, section 8), as it is on a bare socket.
#[tokio::test]
async fn an_http_1_0_response_that_is_broken_off_ends_with_a_reset_of_the_socket_below() {
    let endless = async || {
        Body::from_stream(stream::unfold((), async |()| {
            tokio::task::yield_now().await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"more")), ()))
        }))
    };
    let app = Router::new().route("/", get(endless)).layer(TimeLimitLayer::new(SECOND / 10));
    let journal = Journal::default();
    let epilogue = journal.epilogue().build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = Client::connect(listener.local_addr().unwrap()).await;
    let tracking = Tracking::new();
    let socket = TrackedSocket::new(listener.accept().await.unwrap().0, &tracking);
    let below = socket.handle();
    let io = TrackedIo::over(Wrapped { io: socket, shuts: true }, &below, &tracking);
    drop(below);
    let service = TowerToHyperService::new(epilogue.wrap(&io, app));
    tokio::spawn(async move {
        let server = auto::Builder::new(TokioExecutor::new());
        let _ = server.serve_connection_with_upgrades(TokioIo::new(io), service).await;
    });
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let mut bytes = Vec::new();
    let ended = soon("the connection ends", client.stream.read_to_end(&mut bytes)).await;
    assert!(bytes.starts_with(b"HTTP/1.0 200"), "{}", bytes.len());
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    journal.ended(1).await;
    assert_eq!(journal.lines().last().unwrap(), "ended/2");
}

/// As an encryption whose last word the client's socket has no room for.
#[tokio::test(start_paused = true)]
async fn an_end_that_no_client_takes_is_waited_for_no_longer_than_any_other_write() {
    let journal = Journal::default();
    let (stream, io): (_, DuplexStream) = tokio::io::duplex(64 * 1024);
    let tracking = Tracking::new().write_stall(60 * SECOND);
    let app = Router::new().route("/", get(async || "hello"));
    let serving = serve_one(&journal.epilogue().build(), Wrapped { io, shuts: false }, &tracking, app);
    let mut client = MemoryClient { stream };
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    tokio::time::timeout(1000 * SECOND, serving).await.expect("the connection is given up").unwrap();
    let waited = began.elapsed();
    assert!(waited >= 60 * SECOND && waited < 61 * SECOND, "{waited:?}");
    // Its response had left before.
    assert_eq!(journal.lines().last().unwrap(), "ended/0");
}
