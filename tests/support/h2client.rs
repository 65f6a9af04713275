//! An HTTP/2 client with prior knowledge.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpStream, task::JoinHandle};

use super::soon;

/// One connection.
pub struct Http2 {
    pub send: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

/// A response read to its end.
#[derive(Debug)]
pub struct Whole {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Http2 {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { send, connection }
    }

    pub async fn start(&mut self, method: &str, path: &str) -> ResponseFuture {
        let request = Request::builder().method(method).uri(format!("http://test{path}")).body(()).unwrap();
        let mut send = self.send.clone().ready().await.unwrap();
        send.send_request(request, true).unwrap().0
    }

    pub async fn get(&mut self, path: &str) -> Result<Whole, h2::Error> {
        let response = self.start("GET", path).await;
        soon("an HTTP/2 response", async { read(response.await?).await }).await
    }

    /// Loses the connection.
    pub fn abort(self) {
        self.connection.abort();
    }
}

pub async fn read(response: Response<h2::RecvStream>) -> Result<Whole, h2::Error> {
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?;
    Ok(Whole { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}
