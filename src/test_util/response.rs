//! A response as it came.

use std::{io, str};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};

/// A response as a [`TestClient`](super::TestClient) read it.
#[derive(Debug)]
#[non_exhaustive]
pub struct TestResponse {
    /// The version that the server answered with.
    pub version: Version,
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as far as it came, without the framing of chunks.
    pub body: Bytes,
    /// Whether the response came to a well-formed end.
    pub whole: bool,
    /// What the connection ended with instead, if that was an error.
    pub error: Option<io::Error>,
}

impl TestResponse {
    /// The body as text; what is not UTF-8 in it is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, if it is there and is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Asserts that the response came to a well-formed end.
    ///
    /// # Panics
    ///
    /// If it did not.
    #[track_caller]
    pub fn assert_whole(&self) {
        assert!(self.whole, "the response should have been whole: {self:#?}");
    }

    /// Asserts that the response was broken off, so that a client can tell (contract rule 6).
    ///
    /// # Panics
    ///
    /// If it came to a well-formed end.
    #[track_caller]
    pub fn assert_broken_off(&self) {
        assert!(!self.whole, "the response should have been broken off: {self:#?}");
    }
}

/// Reads responses out of a buffer.
pub(super) struct Parser {
    /// The response ends with its head.
    pub(super) bodiless: bool,
}

enum Framing {
    Length(usize),
    Chunks,
    Connection,
}

/// What chunks came to.
struct Chunks {
    body: BytesMut,
    /// How many bytes of the buffer they took.
    used: usize,
    ended: bool,
}

impl Parser {
    /// Takes one response out of `buffer`; `None` if there is not all of it. `ended` once the connection has ended,
    /// with its error, if there was one.
    pub(super) fn parse(&self, buffer: &mut BytesMut, ended: Option<Option<io::Error>>) -> Option<TestResponse> {
        let (mut response, head) = parse_head(buffer)?;
        let rest = &buffer[head..];
        let (body, used, whole) = match self.framing(&response) {
            Framing::Length(length) if rest.len() >= length => (Bytes::copy_from_slice(&rest[..length]), length, true),
            Framing::Chunks => {
                let Chunks { body, used, ended } = read_chunks(rest);
                (body.freeze(), used, ended)
            }
            framing => {
                let clean = matches!((&framing, &ended), (Framing::Connection, Some(None)));
                (Bytes::copy_from_slice(rest), rest.len(), clean)
            }
        };
        if !whole && ended.is_none() {
            return None;
        }
        buffer.advance(head + used);
        (response.body, response.whole) = (body, whole);
        response.error = ended.flatten();
        Some(response)
    }

    /// RFC 9112, section 6.3.
    fn framing(&self, response: &TestResponse) -> Framing {
        let status = response.status;
        let none = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if self.bodiless || none {
            return Framing::Length(0);
        }
        if response.headers.contains_key(header::TRANSFER_ENCODING) {
            return Framing::Chunks;
        }
        match response.header("content-length").map(str::parse) {
            Some(Ok(length)) => Framing::Length(length),
            Some(Err(error)) => panic!("a Content-Length that is no number: {error} in {response:?}"),
            None => Framing::Connection,
        }
    }
}

/// The head, and its length.
fn parse_head(buffer: &[u8]) -> Option<(TestResponse, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return None,
        Err(error) => panic!("not a response: {error} in {:?}", Bytes::copy_from_slice(buffer)),
    };
    let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok())?;
    let headers = head.headers.iter().filter_map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(header.value).ok()?))
    });
    // A repeated header is kept, as it came.
    let mut all = HeaderMap::new();
    for (name, value) in headers {
        all.append(name, value);
    }
    let response = TestResponse { version, status, headers: all, body: Bytes::new(), whole: false, error: None };
    Some((response, length))
}

fn read_chunks(bytes: &[u8]) -> Chunks {
    let mut chunks = Chunks { body: BytesMut::new(), used: 0, ended: false };
    loop {
        let rest = &bytes[chunks.used..];
        let (line, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete((line, size))) => (line, usize::try_from(size).unwrap_or(usize::MAX)),
            Ok(httparse::Status::Partial) => return chunks,
            Err(error) => panic!("not a chunk: {error:?} in {:?}", Bytes::copy_from_slice(rest)),
        };
        if size == 0 {
            // Trailers, if there are any, and an empty line.
            let Some(end) = end_of_trailers(&rest[line..]) else { return chunks };
            chunks.used += line + end;
            chunks.ended = true;
            return chunks;
        }
        let Some(data) = rest.get(line..line.saturating_add(size)) else {
            chunks.body.extend_from_slice(&rest[line..]);
            chunks.used = bytes.len();
            return chunks;
        };
        chunks.body.extend_from_slice(data);
        match rest.get(line + size..line + size + 2) {
            Some(end) => assert!(end == b"\r\n", "a chunk that is longer than it says"),
            None => {
                chunks.used = bytes.len();
                return chunks;
            }
        }
        chunks.used += line + size + 2;
    }
}

fn end_of_trailers(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(b"\r\n") {
        return Some(2);
    }
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|place| place + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &str, ended: bool) -> Option<(String, bool, usize)> {
        let mut buffer = BytesMut::from(bytes);
        let response = Parser { bodiless: false }.parse(&mut buffer, ended.then_some(None))?;
        Some((response.text(), response.whole, buffer.len()))
    }

    #[test]
    fn a_response_ends_where_its_framing_says() {
        let whole = |body: &str, rest| Some((body.to_owned(), true, rest));
        assert_eq!(parsed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP", false), whole("ab", 4));
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n";
        assert_eq!(parsed(&format!("{chunks}\r\nHTTP"), false), whole("abcde", 4));
        assert_eq!(parsed(&format!("{chunks}grpc-status: 0\r\n\r\n"), false), whole("abcde", 0));
        assert_eq!(parsed("HTTP/1.1 204 No Content\r\n\r\nHTTP", false), whole("", 4));
        assert_eq!(parsed("HTTP/1.0 200 OK\r\n\r\nabc", true), whole("abc", 0));
    }

    #[test]
    fn what_has_not_come_is_waited_for_and_missed_at_the_end() {
        let heads = ["content-length: 4\r\n\r\nab", "transfer-encoding: chunked\r\n\r\n4\r\nab"];
        for head in heads {
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}");
            assert_eq!(parsed(&bytes, false), None, "{head}");
            assert_eq!(parsed(&bytes, true), Some(("ab".to_owned(), false, 0)), "{head}");
        }
        assert_eq!(parsed("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", true).unwrap().1, false);
        assert_eq!(parsed("HTTP/1.1 200", true), None);
    }
}
