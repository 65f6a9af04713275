//! One request on a connection of its own, in any version, and its response taken apart by the rules of that version.
#![allow(dead_code, unreachable_pub, reason = "each suite uses its own part")]

use std::{convert::Infallible, net::SocketAddr};

use axum::body::Body;
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_http::decompression::DecompressionLayer;

use crate::support::soon;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

impl Version {
    pub const ALL: [Self; 3] = [Self::Http10, Self::Http11, Self::Http2];
}

/// How the end of a body is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `HEAD`, 204, 304: with the head.
    Head,
    Length(u64),
    Chunks,
    /// With the connection.
    Close,
    /// With the stream, on HTTP/2 and without a length.
    Stream,
}

/// A response as it came.
#[derive(Clone, Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// Without the framing.
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
    /// Whether its end came as its framing says.
    pub whole: bool,
    /// HTTP/1: whether the server closed the connection. HTTP/2: whether it went on to serve.
    pub closed: bool,
}

impl Got {
    /// Not even a head.
    fn nothing() -> Self {
        let (headers, trailers) = (HeaderMap::new(), HeaderMap::new());
        let framing = Framing::Close;
        Self { status: 0, headers, framing, body: Vec::new(), trailers, whole: false, closed: true }
    }

    pub fn text(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.headers.get(name.into()).map(|value| value.to_str().unwrap())
    }

    pub fn length(&self) -> Option<u64> {
        self.text(header::CONTENT_LENGTH).map(|length| length.parse().unwrap())
    }

    /// The body as it was before it was encoded; fails unless that is whole.
    pub async fn decoded(&self) -> Vec<u8> {
        match self.text(header::CONTENT_ENCODING) {
            Some(encoding) => decode(encoding, &self.body).await,
            None => self.body.clone(),
        }
    }
}

/// Undoes an encoding; fails unless all of it is there and nothing more.
pub async fn decode(encoding: &str, bytes: &[u8]) -> Vec<u8> {
    let (bytes, name) = (Bytes::copy_from_slice(bytes), HeaderValue::from_str(encoding).unwrap());
    let server = service_fn(move |_: Request<Body>| {
        let response = Response::builder().header(header::CONTENT_ENCODING, &name).body(Body::from(bytes.clone()));
        async { Ok::<_, Infallible>(response.unwrap()) }
    });
    let response = DecompressionLayer::new().layer(server).oneshot(Request::new(Body::empty())).await.unwrap();
    assert!(!response.headers().contains_key(header::CONTENT_ENCODING), "no such encoding: {encoding}");
    let whole = response.into_body().collect().await;
    whole.unwrap_or_else(|error| panic!("invalid {encoding}: {error}")).to_bytes().to_vec()
}

/// Asks, and reads to the end of the response; on HTTP/1.0 and 1.1 without `connection: close`.
pub async fn fetch(address: SocketAddr, version: Version, request: Request<()>) -> Got {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    match version {
        Version::Http2 => fetch2(stream, request).await,
        _ => fetch1(stream, version, &request).await,
    }
}

async fn fetch1(mut stream: TcpStream, version: Version, request: &Request<()>) -> Got {
    let number = if version == Version::Http10 { "1.0" } else { "1.1" };
    let mut text = format!("{} {} HTTP/{number}\r\nhost: test\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();

    let (mut bytes, mut end) = (Vec::with_capacity(16 * 1024), End::Open);
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        end = read(&mut stream, &mut bytes, "a head").await;
        if end != End::Open {
            assert!(bytes.is_empty(), "closed in the head: {bytes:?}");
            return Got::nothing();
        }
    };
    let mut rest = bytes.split_off(head);
    let (status, headers) = parse_head(&bytes);
    let is = |name: HeaderName, value: &str| headers.get(name).is_some_and(|is| is.as_bytes() == value.as_bytes());
    let framing = if request.method() == Method::HEAD || [204, 304].contains(&status) {
        Framing::Head
    } else if headers.contains_key(header::TRANSFER_ENCODING) {
        assert!(is(header::TRANSFER_ENCODING, "chunked") && version != Version::Http10, "{headers:?}");
        assert!(!headers.contains_key(header::CONTENT_LENGTH), "a length beside chunks: {headers:?}");
        Framing::Chunks
    } else if let Some(length) = headers.get(header::CONTENT_LENGTH) {
        Framing::Length(length.to_str().unwrap().parse().unwrap())
    } else {
        Framing::Close
    };
    let closes = is(header::CONNECTION, "close") || version == Version::Http10;
    let parsed = loop {
        // What is said to close has to: so that is read to, too.
        if let Some(parsed) = parse_body(framing, &rest, end).filter(|_| !closes || end != End::Open) {
            break parsed;
        }
        end = read(&mut stream, &mut rest, "a body").await;
    };
    let (whole, body, trailers) = parsed;
    Got { status, headers, framing, body, trailers, whole, closed: end != End::Open }
}

/// How the connection is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    InOrder,
    Reset,
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>, what: &str) -> End {
    match soon(what, stream.read_buf(bytes)).await {
        Ok(0) => End::InOrder,
        Ok(_) => End::Open,
        Err(_) => End::Reset,
    }
}

fn parse_head(bytes: &[u8]) -> (u16, HeaderMap) {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut lines = text.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), value.trim().parse().unwrap());
    }
    (status, headers)
}

/// Whether it is whole, the body, and the trailers; `None` if there is more to come.
fn parse_body(framing: Framing, bytes: &[u8], end: End) -> Option<(bool, Vec<u8>, HeaderMap)> {
    let whole = |body: &[u8]| Some((true, body.to_vec(), HeaderMap::new()));
    let broken = || (end != End::Open).then(|| (false, bytes.to_vec(), HeaderMap::new()));
    match framing {
        Framing::Head => {
            assert!(bytes.is_empty(), "a body where none may be: {bytes:?}");
            whole(b"")
        }
        Framing::Length(length) => {
            assert!(bytes.len() as u64 <= length, "more than was declared");
            if bytes.len() as u64 == length { whole(bytes) } else { broken() }
        }
        Framing::Close | Framing::Stream if end == End::InOrder => whole(bytes),
        Framing::Close | Framing::Stream => broken(),
        Framing::Chunks => parse_chunks(bytes).or_else(broken),
    }
}

fn parse_chunks(mut bytes: &[u8]) -> Option<(bool, Vec<u8>, HeaderMap)> {
    let line = |bytes: &[u8]| bytes.windows(2).position(|window| window == b"\r\n");
    let mut body = Vec::new();
    loop {
        let end = line(bytes)?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        bytes = &bytes[end + 2..];
        if size == 0 {
            let end =
                if bytes.starts_with(b"\r\n") { 0 } else { bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 2 };
            assert_eq!(bytes.len(), end + 2, "nothing behind the last chunk");
            let (_, trailers) = parse_head(&[b"HTTP/1.1 200 OK\r\n", &bytes[..end]].concat());
            return Some((true, body, trailers));
        }
        body.extend_from_slice(bytes.get(..size)?);
        assert_eq!(bytes.get(size..size + 2)?, b"\r\n");
        bytes = &bytes[size + 2..];
    }
}

async fn fetch2(stream: TcpStream, mut request: Request<()>) -> Got {
    let head = request.method() == Method::HEAD;
    let path = request.uri().to_string();
    *request.uri_mut() = format!("http://test{path}").parse().unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let got = soon("a response", async {
        let mut send = send.ready().await.unwrap();
        let response = match send.send_request(request, true).unwrap().0.await {
            Ok(response) => response,
            Err(error) => {
                assert!(error.is_reset(), "{error:?}");
                return Got { closed: send.ready().await.is_err(), ..Got::nothing() };
            }
        };
        let (parts, mut stream) = response.into_parts();
        let (mut body, mut trailers, mut failed) = (Vec::new(), HeaderMap::new(), None);
        while let Some(chunk) = stream.data().await {
            match chunk {
                Ok(chunk) => {
                    stream.flow_control().release_capacity(chunk.len()).unwrap();
                    body.extend_from_slice(&chunk);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if failed.is_none() {
            match stream.trailers().await {
                Ok(theirs) => trailers = theirs.unwrap_or_default(),
                Err(error) => failed = Some(error),
            }
        }
        // The fault of a body is its own stream's.
        if let Some(error) = &failed {
            assert!(error.is_reset() && error.reason() != Some(Reason::PROTOCOL_ERROR), "{error:?}");
        }
        let length = parts.headers.get(header::CONTENT_LENGTH).map(|length| length.to_str().unwrap().parse().unwrap());
        let framing = if head || [204, 304].contains(&parts.status.as_u16()) {
            assert!(body.is_empty(), "a body where none may be: {body:?}");
            Framing::Head
        } else {
            length.map_or(Framing::Stream, Framing::Length)
        };
        let whole = failed.is_none();
        let closed = send.ready().await.is_err();
        Got { status: parts.status.as_u16(), headers: parts.headers, framing, body, trailers, whole, closed }
    })
    .await;
    connection.abort();
    got
}

/// A request without a body.
pub fn request(method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(path).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}
