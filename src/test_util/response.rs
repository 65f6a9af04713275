//! A response as it was received.

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
    /// The body as far as it was received, without chunked framing.
    pub body: Bytes,
    /// The trailers, which come after the last chunk.
    pub trailers: HeaderMap,
    /// Whether the response came to a well-formed end.
    pub whole: bool,
    /// The error that ended the connection instead, if there was one.
    pub error: Option<io::Error>,
}

impl TestResponse {
    /// The body as text; invalid UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, if it is present and is text.
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

/// Reads one response out of a buffer that grows. What it has read is not read again, however slowly the rest comes.
pub(super) struct Parser {
    /// The response ends with its head.
    bodiless: bool,
    /// The length of the head, once that is there, and what follows it.
    found: Option<(usize, Framing)>,
    chunks: Chunks,
}

#[derive(Clone, Copy)]
enum Framing {
    Length(usize),
    Chunks,
    Connection,
}

/// What chunks came to.
#[derive(Default)]
struct Chunks {
    body: BytesMut,
    /// How many bytes behind the head they took.
    used: usize,
    ended: bool,
    trailers: HeaderMap,
}

impl Parser {
    pub(super) fn new(bodiless: bool) -> Self {
        Self { bodiless, found: None, chunks: Chunks::default() }
    }

    /// Takes the response out of `buffer`; `None` if there is not all of it. `ended` once the connection has ended,
    /// with its error, if there was one. An error says why it is no response.
    pub(super) fn parse(
        &mut self,
        buffer: &mut BytesMut,
        ended: Option<Option<io::Error>>,
    ) -> Result<Option<TestResponse>, String> {
        let (head, framing) = match self.found {
            Some(found) => found,
            None => {
                let Some((response, head)) = parse_head(buffer)? else { return Ok(None) };
                *self.found.insert((head, self.framing(&response)?))
            }
        };
        let rest = &buffer[head..];
        let whole = match framing {
            Framing::Length(length) => rest.len() >= length,
            Framing::Chunks => self.chunks.read(rest)?,
            Framing::Connection => matches!(ended, Some(None)),
        };
        if !whole && ended.is_none() {
            return Ok(None);
        }
        let (body, used) = match framing {
            Framing::Length(length) if whole => (Bytes::copy_from_slice(&rest[..length]), length),
            Framing::Chunks => self.chunks.take(rest),
            _ => (Bytes::copy_from_slice(rest), rest.len()),
        };
        let Some((mut response, _)) = parse_head(buffer)? else { return Ok(None) };
        buffer.advance(head + used);
        (response.body, response.whole) = (body, whole);
        response.trailers = std::mem::take(&mut self.chunks.trailers);
        response.error = ended.flatten();
        Ok(Some(response))
    }

    /// RFC 9112, section 6.3.
    fn framing(&self, response: &TestResponse) -> Result<Framing, String> {
        let status = response.status;
        let none = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if self.bodiless || none {
            return Ok(Framing::Length(0));
        }
        let mut lengths = response.headers.get_all(header::CONTENT_LENGTH).iter();
        let (first, chunked) = (lengths.next(), response.headers.contains_key(header::TRANSFER_ENCODING));
        match (first, chunked) {
            (None, true) => Ok(Framing::Chunks),
            (None, false) => Ok(Framing::Connection),
            // No two clients need agree on where such a response ends (RFC 9112, sections 6.2 and 6.3).
            (Some(_), true) => Err("a response with a Content-Length and a Transfer-Encoding".to_owned()),
            (Some(first), false) if lengths.any(|other| other != first) => {
                Err("a response with several Content-Lengths".to_owned())
            }
            (Some(first), false) => {
                let digits = first.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let length = digits.and_then(|digits| digits.parse().ok()).map(Framing::Length);
                length.ok_or_else(|| format!("a Content-Length that is no number: {first:?}"))
            }
        }
    }
}

/// The head, and its length.
fn parse_head(buffer: &[u8]) -> Result<Option<(TestResponse, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("this is no response: {error}")),
    };
    let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let code = head.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| format!("this is no response: its status is {code}"))?;
    let (headers, trailers) = (fields(head.headers), HeaderMap::new());
    let response = TestResponse { version, status, headers, body: Bytes::new(), trailers, whole: false, error: None };
    Ok(Some((response, length)))
}

fn fields(parsed: &[httparse::Header<'_>]) -> HeaderMap {
    let fields = parsed.iter().filter_map(|field| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    });
    // A repeated one is kept, as it came.
    let mut all = HeaderMap::new();
    for (name, value) in fields {
        all.append(name, value);
    }
    all
}

impl Chunks {
    /// Reads on in what is behind the head: whether the last chunk has come.
    fn read(&mut self, bytes: &[u8]) -> Result<bool, String> {
        while !self.ended {
            let rest = &bytes[self.used..];
            let Some((line, size)) = chunk_size(rest)? else { break };
            if size == 0 {
                // Trailers, if there are any, and an empty line.
                let Some((end, trailers)) = parse_trailers(&rest[line..])? else { break };
                self.used += line + end;
                self.trailers = trailers;
                self.ended = true;
                break;
            }
            let data = line.saturating_add(size);
            let Some(end) = rest.get(data..data.saturating_add(2)) else { break };
            if end != b"\r\n" {
                return Err("a chunk that is longer than it says".to_owned());
            }
            self.body.extend_from_slice(&rest[line..data]);
            self.used += data + 2;
        }
        Ok(self.ended)
    }

    /// The body as far as it came, and how many bytes that took: also half a chunk, if that was the last.
    fn take(&mut self, bytes: &[u8]) -> (Bytes, usize) {
        let mut body = std::mem::take(&mut self.body);
        if self.ended {
            return (body.freeze(), self.used);
        }
        let rest = &bytes[self.used..];
        if let Ok(Some((line, size))) = chunk_size(rest) {
            let data = &rest[line..];
            body.extend_from_slice(&data[..size.min(data.len())]);
        }
        (body.freeze(), bytes.len())
    }
}

/// The length of a chunk's first line, and what that says; `None` if there is not all of it.
fn chunk_size(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    match httparse::parse_chunk_size(bytes) {
        Ok(httparse::Status::Complete((line, size))) => Ok(Some((line, usize::try_from(size).unwrap_or(usize::MAX)))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(format!("this is no chunk: {error:?}")),
    }
}

/// The length of what is behind the last chunk, and what that says; `None` if there is not all of it.
fn parse_trailers(bytes: &[u8]) -> Result<Option<(usize, HeaderMap)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 128];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete((length, parsed))) => Ok(Some((length, fields(parsed)))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(error) => Err(format!("these are no trailers: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &str, ended: bool) -> Option<(String, bool, usize)> {
        let mut buffer = BytesMut::from(bytes);
        let response = Parser::new(false).parse(&mut buffer, ended.then_some(None)).unwrap()?;
        Some((response.text(), response.whole, buffer.len()))
    }

    #[test]
    fn a_response_ends_where_its_framing_says() {
        let whole = |body: &str, rest| Some((body.to_owned(), true, rest));
        assert_eq!(parsed("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabHTTP", false), whole("ab", 4));
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n";
        assert_eq!(parsed(&format!("{chunks}\r\nHTTP"), false), whole("abcde", 4));
        let trailers = format!("{chunks}grpc-status: 0\r\nx-sum: 1\r\nx-sum: 2\r\n\r\n");
        assert_eq!(parsed(&trailers, false), whole("abcde", 0));
        let response = Parser::new(false).parse(&mut BytesMut::from(&*trailers), None).unwrap().unwrap();
        assert_eq!((response.trailers["grpc-status"].to_str().unwrap(), response.trailers.len()), ("0", 3));
        assert_eq!(parsed(&trailers[..trailers.len() - 2], false), None, "there may be more of them");
        assert_eq!(parsed("HTTP/1.1 204 No Content\r\n\r\nHTTP", false), whole("", 4));
        assert_eq!(parsed("HTTP/1.0 200 OK\r\n\r\nabc", true), whole("abc", 0));
    }

    #[test]
    fn a_response_whose_end_is_in_doubt_is_none() {
        let chunks = "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
        let lengths = "content-length: 5\r\ncontent-length: 6\r\n\r\nabcde";
        for head in [chunks, lengths, "content-length: +5\r\n\r\nabcde", "content-length:\r\n\r\n"] {
            let mut buffer = BytesMut::from(&*format!("HTTP/1.1 200 OK\r\n{head}"));
            let error = Parser::new(false).parse(&mut buffer, None).unwrap_err();
            assert!(error.contains("Content-Length"), "{head}: {error}");
        }
        let same = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab";
        assert_eq!(parsed(same, false), Some(("ab".to_owned(), true, 0)));
    }

    #[test]
    fn what_has_not_come_is_waited_for_and_missed_at_the_end() {
        let heads = ["content-length: 4\r\n\r\nab", "transfer-encoding: chunked\r\n\r\n4\r\nab"];
        for head in heads {
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}");
            assert_eq!(parsed(&bytes, false), None, "{head}");
            assert_eq!(parsed(&bytes, true), Some(("ab".to_owned(), false, 0)), "{head}");
        }
        assert!(!parsed("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", true).unwrap().1);
        assert_eq!(parsed("HTTP/1.1 200", true), None);
    }
}
