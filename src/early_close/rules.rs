//! What a response's head says about the shape that it may get.

use axum_core::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header, response::Parts};

use crate::{
    lifecycle::Lifecycle,
    listed::{has, lists},
    pool::caught,
};

/// What of a request decides the shape of its response.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) version: Version,
    pub(super) head: bool,
    connect: bool,
    takes_trailers: bool,
}

impl Asked {
    pub(super) fn new<B>(request: &Request<B>) -> Self {
        let version = request.version();
        Self {
            version,
            head: request.method() == Method::HEAD,
            connect: request.method() == Method::CONNECT,
            takes_trailers: version == Version::HTTP_11 && lists(request.headers(), &header::TE, "trailers"),
        }
    }

    /// Whether trailers have to be sent in chunks, without a length: on HTTP/1.1 (RFC 9112, section 7.1.2), to a client
    /// that takes them (RFC 9110, section 10.1.4). On HTTP/2 they stand beside a length; on HTTP/1.0, and for other
    /// clients, they cannot be sent at all.
    pub(super) fn needs_chunks_for_trailers(&self) -> bool {
        self.takes_trailers
    }

    /// Responses that have no length to declare, or that a client reads as they come.
    pub(super) fn passes_through(&self, response: &Response) -> bool {
        self.is_bodiless(response.status()) || streams(response.headers())
    }

    /// Whether a response with this status has no body (RFC 9110, sections 6.4.1 and 9.3.6).
    pub(super) fn is_bodiless(&self, status: StatusCode) -> bool {
        is_bodiless(status) || (self.connect && status.is_success())
    }
}

/// Whether it never has one, whatever was asked.
pub(super) fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Whether its client reads this response piece by piece, while it comes.
fn streams(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
    let streamed = [&b"text/event-stream"[..], b"application/grpc", b"multipart/x-mixed-replace"];
    streamed.iter().any(|streamed| {
        // Each begins with a letter of its own.
        content_type.first().is_some_and(|first| first.eq_ignore_ascii_case(&streamed[0]))
            && content_type.len() >= streamed.len()
            && content_type[..streamed.len()].eq_ignore_ascii_case(streamed)
    }) || lists(headers, &X_ACCEL_BUFFERING, "no")
}

/// How long a connection may be idle, which this one will not be.
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// What a proxy is asked not to hold back: nginx's name.
static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) fn close(parts: &mut Parts, version: Version) {
    let close = beside_others(&parts.headers).unwrap_or_else(|| HeaderValue::from_static("close"));
    parts.headers.insert(header::CONNECTION, close);
    // Its option is gone, without which a proxy would pass it on (RFC 9110, section 7.6.1).
    parts.headers.remove(&KEEP_ALIVE);
    // hyper adds `keep-alive` to a 1.1 response for a 1.0 client that asked for it, whatever the response
    // says; not to a 1.0 response.
    parts.version = version;
}

/// `close` behind the connection's other options, if there are any: they name headers that go no further than it, `Upgrade`
/// for one (RFC 9110, sections 7.6.1 and 7.8).
fn beside_others(headers: &HeaderMap) -> Option<HeaderValue> {
    let listed =
        headers.get_all(header::CONNECTION).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_about_its_end =
        |option: &[u8]| [&b""[..], b"close", b"keep-alive"].iter().any(|it| option.eq_ignore_ascii_case(it));
    let mut options: Vec<_> = listed.map(<[u8]>::trim_ascii).filter(|option| !is_about_its_end(option)).collect();
    if options.is_empty() {
        return None;
    }
    options.push(b"close");
    HeaderValue::from_bytes(&options.join(&b", "[..])).ok()
}

/// `HeaderValue::from` takes two allocations for it.
fn number(mut number: u64) -> HeaderValue {
    // As many digits as the largest has.
    let mut digits = [b'0'; 20];
    let mut first = digits.len() - 1;
    for (place, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first = place;
        if number == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&digits[first..]).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

pub(super) fn declare(parts: &mut Parts, length: u64, lifecycle: &Lifecycle) {
    let value = number(length);
    let declared = parts.headers.insert(header::CONTENT_LENGTH, value);
    if let Some(declared) = declared.filter(|declared| *declared != parts.headers[header::CONTENT_LENGTH]) {
        let route = lifecycle.0.route();
        caught::tell(|| {
            tracing::warn!(route, ?declared, length, "a handler declared a wrong Content-Length: it was corrected");
        });
    }
    // A length and chunks exclude each other (RFC 9112, section 6.2).
    if has(&parts.headers, &header::TRANSFER_ENCODING) {
        parts.headers.remove(header::TRANSFER_ENCODING);
    }
}

/// Of a body that streams on, of which so many bytes are known: what a handler declared stays if it may be right. A server
/// would end the body there, and it would look whole.
pub(super) fn keep_declared(parts: &mut Parts, at_least: u64, lifecycle: &Lifecycle) {
    let mut all = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(declared) = all.next() else { return };
    if length(declared).is_some_and(|length| length >= at_least) && all.all(|other| other == declared) {
        parts.headers.remove(header::TRANSFER_ENCODING);
        return;
    }
    let route = lifecycle.0.route();
    caught::tell(|| {
        tracing::warn!(route, ?declared, at_least, "a handler declared a wrong Content-Length: it was left out");
    });
    parts.headers.remove(header::CONTENT_LENGTH);
}

/// Digits, and nothing else (RFC 9110, section 8.6).
fn length(declared: &HeaderValue) -> Option<u64> {
    declared.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}
