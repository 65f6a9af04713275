//! A client that decodes what it reads, as it comes.

use std::{io, net::SocketAddr, pin::Pin};

use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use axum::body::Body;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, BodyStream};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, BufReader},
    net::TcpStream,
};
use tokio_util::io::StreamReader;

use crate::support::soon;

pub const ENCODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// A response that is being read.
pub struct Decoded {
    pub status: u16,
    pub headers: HeaderMap,
    body: Pin<Box<dyn AsyncRead + Send>>,
}

/// Asks with hyper's own client.
pub async fn ask(address: SocketAddr, http2: bool, request: Request<Body>) -> Response<hyper::body::Incoming> {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    if http2 {
        let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        send.send_request(request).await.unwrap()
    } else {
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        send.send_request(request).await.unwrap()
    }
}

pub fn request(path: &str, accepts: &str) -> Request<Body> {
    Request::get(format!("http://test{path}"))
        .header("host", "test")
        .header("accept-encoding", accepts)
        .body(Body::empty())
        .unwrap()
}

impl Decoded {
    pub async fn get(address: SocketAddr, http2: bool, path: &str, accepts: &str) -> Self {
        Self::of(soon("the head", ask(address, http2, request(path, accepts))).await)
    }

    pub fn of<B>(response: Response<B>) -> Self
    where
        B: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let (parts, body) = response.into_parts();
        let frames = BodyStream::new(body.map_err(io::Error::other));
        let data = frames.try_filter_map(async |frame| Ok(frame.into_data().ok()));
        let data: Pin<Box<dyn Stream<Item = io::Result<bytes::Bytes>> + Send>> = Box::pin(data);
        let plain = BufReader::new(StreamReader::new(data));
        let body: Pin<Box<dyn AsyncRead + Send>> =
            match parts.headers.get("content-encoding").map_or("", |encoding| encoding.to_str().unwrap()) {
                "gzip" => Box::pin(GzipDecoder::new(plain)),
                "br" => Box::pin(BrotliDecoder::new(plain)),
                "zstd" => Box::pin(ZstdDecoder::new(plain)),
                "" => Box::pin(plain),
                other => panic!("not asked for: {other}"),
            };
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub fn encoding(&self) -> &str {
        self.headers.get("content-encoding").map_or("", |encoding| encoding.to_str().unwrap())
    }

    /// What can be decoded as soon as any of it can, of at most `length` bytes.
    pub async fn next(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length];
        let read = self.body.read(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
    }

    /// Decodes until `text` has come, and nothing behind it.
    pub async fn expect(&mut self, text: &str) {
        let mut seen = String::new();
        while seen.len() < text.len() {
            let more = soon(text, self.next(text.len() - seen.len())).await.unwrap();
            assert!(!more.is_empty(), "it ended before {text:?}, with {seen:?}");
            seen += &more;
        }
        assert_eq!(seen, text);
    }

    pub async fn rest(mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        soon("the end", self.body.read_to_end(&mut bytes)).await?;
        Ok(bytes)
    }
}
