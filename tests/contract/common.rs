//! What the rules' tests share: clients that leave in every way, and bodies that a test holds back.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use h2::client::ResponseFuture;
use tower::{Layer, Service};
use tower_epilogue::End;

use crate::support::{Client, Gate, Notes, Server, h2client::Http2};

/// A limit that is reached, over real sockets.
pub const SHORT: Duration = Duration::from_millis(30);
pub const SECOND: Duration = Duration::from_secs(1);

/// A hook that notes what it is told.
pub fn told(notes: &Notes) -> impl FnOnce(End) -> Ready<()> + Clone + Send + Sync + use<> {
    let notes = notes.clone();
    move |end: End| {
        notes.add(format!("hook: {}, {:?}", end.status(), end.sent()));
        ready(())
    }
}

/// A body of unknown length that gives `before`, and `after` once the gate is open; it notes when it is asked,
/// when it has ended, and when it is dropped.
pub fn held_back(notes: &Notes, gate: &Gate, before: &'static str, after: &'static str) -> Body {
    let dropped = notes.on_drop("body dropped");
    let (notes, gate) = (notes.clone(), gate.clone());
    let first = stream::once(ready(Bytes::from_static(before.as_bytes())));
    let second = stream::once(async move {
        let _dropped = dropped;
        notes.add("producing");
        gate.passed().await;
        notes.add("produced");
        Bytes::from_static(after.as_bytes())
    });
    Body::from_stream(first.chain(second).map(Ok::<_, io::Error>))
}

/// A layer outside of ours that notes `answered` and then holds the response back.
#[derive(Clone)]
pub struct HoldBack<S = ()> {
    pub inner: S,
    pub notes: Notes,
    pub gate: Gate,
}

impl HoldBack {
    pub fn new(notes: &Notes, gate: &Gate) -> Self {
        Self { inner: (), notes: notes.clone(), gate: gate.clone() }
    }
}

impl<S> Layer<S> for HoldBack {
    type Service = HoldBack<S>;

    fn layer(&self, inner: S) -> HoldBack<S> {
        HoldBack { inner, notes: self.notes.clone(), gate: self.gate.clone() }
    }
}

impl<S> Service<Request> for HoldBack<S>
where
    S: Service<Request, Response: Send, Error: Send, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let (notes, gate, inner) = (self.notes.clone(), self.gate.clone(), self.inner.call(request));
        Box::pin(async move {
            let response = inner.await;
            notes.add("answered");
            gate.passed().await;
            response
        })
    }
}

/// Under a paused clock, a moment passes once there is nothing left to do.
pub async fn settled() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// HTTP/1: closes its socket.
    Close,
    /// HTTP/1: resets the connection.
    Reset,
    /// HTTP/1: closes its sending side, and stays to read.
    HalfClose,
    /// HTTP/2: resets the stream; the connection lives on.
    ResetStream,
    /// HTTP/2: closes its socket.
    LoseConnection,
}

impl Leave {
    pub const ALL: [Self; 5] = [Self::Close, Self::Reset, Self::HalfClose, Self::ResetStream, Self::LoseConnection];
    /// Those after which nobody reads.
    pub const FOR_GOOD: [Self; 4] = [Self::Close, Self::Reset, Self::ResetStream, Self::LoseConnection];

    pub fn is_http2(self) -> bool {
        matches!(self, Self::ResetStream | Self::LoseConnection)
    }
}

/// A client with a request under way.
pub enum Asked {
    Http1(Client),
    Http2(Http2, ResponseFuture),
}

/// What is left of a client: the connection of one that only gave its request up.
pub enum Left {
    Gone,
    HalfClosed(Client),
    Http2(#[allow(dead_code, reason = "it lives as long as this")] Http2),
}

impl Asked {
    /// A `GET /` by a client that is going to leave so.
    pub async fn get(server: &Server, leave: Leave) -> Self {
        Self::get_at(server, leave, "/").await
    }

    pub async fn get_at(server: &Server, leave: Leave, path: &str) -> Self {
        if leave.is_http2() {
            let mut client = Http2::connect(server.address).await;
            let response = client.start("GET", path).await;
            Self::Http2(client, response)
        } else {
            let mut client = server.connect().await;
            client.send_get(path).await;
            Self::Http1(client)
        }
    }

    pub async fn leave(self, leave: Leave) -> Left {
        match (self, leave) {
            (Self::Http1(client), Leave::Close) => client.close(),
            (Self::Http1(client), Leave::Reset) => client.reset(),
            (Self::Http1(mut client), Leave::HalfClose) => {
                client.half_close().await;
                return Left::HalfClosed(client);
            }
            (Self::Http2(client, response), Leave::ResetStream) => {
                drop(response);
                return Left::Http2(client);
            }
            (Self::Http2(client, _), Leave::LoseConnection) => client.abort(),
            _ => panic!("that is not how this client leaves: {leave:?}"),
        }
        Left::Gone
    }
}
