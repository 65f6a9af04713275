//! A client of raw bytes, which leaves in every way.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    reply::{Reply, find, whole_response},
    soon,
};

/// A client of raw bytes.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    pub async fn send_get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    }

    /// Reads to the end of the connection.
    pub async fn reply(&mut self) -> Reply {
        let mut bytes = Vec::new();
        let error = soon("the server closes the connection", self.stream.read_to_end(&mut bytes)).await.err();
        Reply::parse(bytes, error)
    }

    /// Reads one response with a declared length; the connection stays open.
    pub async fn reply_by_length(&mut self, no_body: bool) -> Reply {
        let mut bytes = Vec::new();
        soon("a response", async {
            loop {
                if let Some(end) = find(&bytes, b"\r\n\r\n") {
                    let reply = Reply::parse(bytes.clone(), None);
                    let length: usize = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
                    if no_body || bytes.len() >= end + 4 + length {
                        return reply;
                    }
                }
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "closed early: {bytes:?}");
            }
        })
        .await
    }

    /// Reads until `marker` has come.
    pub async fn read_until(&mut self, marker: &str) -> String {
        let mut bytes = Vec::new();
        soon(marker, async {
            while find(&bytes, marker.as_bytes()).is_none() {
                assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0, "closed before {marker:?}: {bytes:?}");
            }
        })
        .await;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Leaves with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Leaves by closing; what it has not read is answered with a reset later.
    pub fn close(self) {
        drop(self);
    }

    /// Shuts its sending side and stays to read.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads one response to its end, however that is marked: by a length, by a last chunk (which is taken out
    /// of the framing), or, where neither is declared, by the end of the connection. Without a body if
    /// `bodiless`.
    pub async fn response(&mut self, bodiless: bool) -> Reply {
        let mut bytes = Vec::new();
        soon("a whole response", async {
            loop {
                if let Some(reply) = whole_response(&bytes, bodiless) {
                    return reply;
                }
                if self.stream.read_buf(&mut bytes).await.unwrap() == 0 {
                    let reply = Reply::parse(bytes, None);
                    let framed = reply.header("content-length").or(reply.header("transfer-encoding")).is_some();
                    assert!(!framed && reply.status != 0, "broken off: {reply:?}");
                    return reply;
                }
            }
        })
        .await
    }
}
