//! One connection of a server, to its end.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use axum_core::body::Body;
use http::Request;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio_util::task::TaskTracker;

use super::{Service, glue::Glue, idle::Idle, serve::Settings};
use crate::{
    connection::{Asked, Lent, TrackedIo},
    lifecycle::SendBody,
    pool::caught,
};

/// Spawns the streams of HTTP/2 connections, so that a drain waits for one whose poll outlasts its connection.
#[derive(Clone)]
pub(super) struct Streams(pub(super) TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Longer than any connection lives.
const LONG: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Ready when the runtime has looked for what has come before the first poll, and nobody has been told of yet. Timers fire
/// after such a look; the first may do so after one that had begun before.
pub(super) async fn looked() {
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Serves it until it ends, or its server asks it to; then lingers, if hyper has not closed it in order and its client may
/// be cut off from what has left.
pub(super) async fn serve_one<IO, A, S, B>(
    io: TrackedIo<IO>,
    service: Service<S, A>,
    settings: Settings,
    streams: Streams,
) where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    A: Clone + Send + Sync + 'static,
    S: tower_service::Service<Request<Body>, Response = http::Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: SendBody,
{
    let mut builder = Builder::new(streams);
    // `Idle` does that, with one timer for a connection and not one for each request.
    builder.http1().header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        // hyper adds both to the time, and panics at one that is too long for that.
        .keep_alive_interval(settings.http2_ping.map(|every| every.min(LONG)))
        .keep_alive_timeout(settings.http2_pong.min(LONG))
        .max_concurrent_streams(settings.http2_streams)
        // For WebSockets over HTTP/2 (RFC 8441).
        .enable_connect_protocol();
    let connection = io.connection().clone();
    let (io, back) = Lent::new(io);
    {
        let service = Glue::new(service);
        let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(io), service));
        let mut idle = Idle::new(settings.header_read);
        let mut stopping = false;
        let mut looked = pin!(looked());
        let served = poll_fn(|cx| {
            // Before the look, so that what is asked after it wakes us.
            connection.register(cx.waker());
            let stops = match connection.asked() {
                Asked::Close | Asked::End => return Poll::Ready(None),
                Asked::Finish => !stopping && looked.as_mut().poll(cx).is_ready(),
                Asked::Serve => false,
            };
            if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            if stops {
                stopping = true;
                serving.as_mut().graceful_shutdown();
                if let Poll::Ready(result) = serving.as_mut().poll(cx) {
                    return Poll::Ready(Some(result));
                }
            }
            idle.poll(&connection, cx).map(|()| None)
        });
        if let Some(Err(error)) = served.await {
            caught::tell(|| tracing::trace!(error, "a connection ended with an error"));
        }
    }
    let Some(mut io) = back.take() else { return };
    // Of an encryption even the shutdown may wait for a client that takes nothing.
    let limit = io.lingers_for();
    let lingers = poll_fn(|cx| {
        // It registers first, as above.
        let over = io.poll_linger(cx);
        if connection.asked() == Asked::End { Poll::Ready(()) } else { over }
    });
    let _ = tokio::time::timeout(limit, lingers).await;
}
