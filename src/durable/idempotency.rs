//! The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header-07): a client that asks again, because it
//! clicked twice or heard nothing, gets the first answer and not a second order.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body_util::LengthLimitError;
use sfv::{Item, Parser};
use sha2::{Digest, Sha256};

use super::{
    records::{Answer, Claim},
    store::{Inner, random_name},
};
use crate::{lifecycle::Lifecycle, pool::caught};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that is given again.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// How long a key may be.
const LONGEST: usize = 255;

/// Extractor for the `Idempotency-Key` that the client sent, inside a [`DurableLayer`](super::DurableLayer): to pass
/// it on to whatever the handler calls.
///
/// If the client sent none, `Option<IdempotencyKey>` is `None`, and `IdempotencyKey` is rejected with a 400. If no
/// layer has read the key that was sent, both are rejected with a 500, and the log says why. A request with a safe
/// method has no key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// A string that identifies this request and its retries, and no other request: a hash of the client's key, the
    /// path, the client's identity, and what it asks for.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for IdempotencyKey {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// As [`as_str`](IdempotencyKey::as_str).
impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        of(parts)?.ok_or_else(missing)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        of(parts)
    }
}

/// As a layer has read it. One that none has read is not the same as none: the client may send it again.
#[expect(clippy::result_large_err, reason = "it is a response")]
fn of(parts: &Parts) -> Result<Option<IdempotencyKey>, Response> {
    let read = parts.extensions.get().cloned();
    let unread = read.is_none() && applies_to(&parts.method) && parts.headers.contains_key(HEADER);
    if unread { Err(no_layer(parts)) } else { Ok(read) }
}

/// Whether repeating a request with this method could do something twice.
pub(super) fn applies_to(method: &Method) -> bool {
    !method.is_safe()
}

/// The key of a request: none, one, or something that is no key.
pub(super) fn read(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, ()> {
    let mut values = headers.get_all(HEADER).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(());
    }
    let text = value.to_str().map_err(|_| ())?.trim();
    let key = if text.starts_with('"') {
        // A Structured Field string, whose parameters nobody has defined (RFC 9651, sections 3.1.2 and 3.3.3).
        let item: Item = Parser::new(text).parse().map_err(|_| ())?;
        Cow::Owned(item.bare_item.as_string().ok_or(())?.as_str().to_owned())
    } else if text.contains(['"', '\\']) {
        return Err(());
    } else {
        // Bare, as most clients send it.
        Cow::Borrowed(text)
    };
    let fits = (1..=LONGEST).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if fits { Ok(Some(key)) } else { Err(()) }
}

fn hex(hash: impl AsRef<[u8]>) -> String {
    use std::fmt::Write as _;
    hash.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hashes parts so that none can run over into the next.
fn hash<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hex(hasher.finalize())
}

/// What the store knows a request by. Its key is scoped to the route, and to whoever its credentials say that the
/// client is: a key that somebody else guesses must not get them this client's answer.
pub(super) fn claim(parts: &Parts, scope: &str, key: &str, body: &Bytes) -> Claim {
    let content_type = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let query = parts.uri.query().unwrap_or_default();
    let key = hash([parts.method.as_str(), &path(parts), scope, key].map(str::as_bytes));
    let fingerprint = hash([query.as_bytes(), content_type, body]);
    let name = hash([&key, &fingerprint].map(String::as_bytes));
    Claim { key, owner: random_name(), fingerprint, name }
}

/// The path that the client asked for: below `Router::nest`, the request has only a part of it, which is the same below
/// another one.
#[cfg(feature = "serve")]
fn path(parts: &Parts) -> String {
    let original = parts.extensions.get::<axum::extract::OriginalUri>();
    original.map_or(&parts.uri, |original| &original.0).path().to_owned()
}

/// It is axum that knows of another.
#[cfg(not(feature = "serve"))]
fn path(parts: &Parts) -> String {
    parts.uri.path().to_owned()
}

/// Who the client is, by default: what it authorizes itself with.
pub(super) fn default_scope(parts: &Parts) -> String {
    parts.headers.get(header::AUTHORIZATION).map(|value| hash([value.as_bytes()])).unwrap_or_default()
}

impl From<&Claim> for IdempotencyKey {
    fn from(claim: &Claim) -> Self {
        Self(claim.name.as_str().into())
    }
}

/// A claim that is given back when it is dropped, unless an answer was stored for it.
pub(super) struct Guard {
    claim: Option<Claim>,
    store: Arc<Inner>,
}

impl Guard {
    pub(super) fn new(claim: Claim, store: Arc<Inner>) -> Self {
        Self { claim: Some(claim), store }
    }

    pub(super) fn claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// The answer was stored, or the claim is another's.
    pub(super) fn settle(mut self) {
        self.claim = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.store.release(claim);
        }
    }
}

/// What is kept of an answer. `body` is `None` where it was too long, or of unknown length.
pub(super) fn remember(response: &http::response::Parts, body: Option<&Bytes>) -> Answer {
    let per_connection =
        [header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::TRAILER, header::UPGRADE, header::DATE];
    let headers: Vec<(&str, &[u8])> = response
        .headers
        .iter()
        .filter(|(name, _)| !per_connection.contains(name) && **name != header::CONTENT_LENGTH)
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    Answer {
        status: response.status.as_u16(),
        // Strings and bytes always serialize.
        headers: serde_json::to_string(&headers).unwrap_or_default(),
        body: body.map(|body| body.to_vec()).unwrap_or_default(),
    }
}

/// The first answer again.
pub(super) fn replay(answer: Answer) -> Response {
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers: Vec<(String, Vec<u8>)> = serde_json::from_str(&answer.headers).unwrap_or_default();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(&value)) {
            response.headers_mut().append(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// RFC 9457.
pub(super) fn problem(status: StatusCode, title: &str, detail: &str) -> Response {
    let body = serde_json::json!({ "status": status.as_u16(), "title": title, "detail": detail });
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::CONFLICT) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

pub(super) fn missing() -> Response {
    let detail = "This operation needs an Idempotency-Key header: a string that no other of your requests has.";
    problem(StatusCode::BAD_REQUEST, "Idempotency-Key is missing", detail)
}

/// The client has sent one. It is not told whose fault it is that nobody has read it.
fn no_layer(parts: &Parts) -> Response {
    let route = parts.extensions.get::<Lifecycle>().map(|lifecycle| lifecycle.0.route());
    caught::tell(|| {
        tracing::error!(
            route,
            "a handler takes an `IdempotencyKey`, but no `DurableLayer` is around it: add `.layer(store.layer())`"
        );
    });
    problem(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "The Idempotency-Key was not read.")
}

pub(super) fn malformed() -> Response {
    let detail = "There must be one Idempotency-Key: 1 to 255 printable ASCII characters, as a quoted string or, without \
                  quotes and backslashes, bare.";
    problem(StatusCode::BAD_REQUEST, "Idempotency-Key is malformed", detail)
}

pub(super) fn mismatch() -> Response {
    let detail = "This Idempotency-Key was used for another request. Use a new one.";
    problem(StatusCode::UNPROCESSABLE_ENTITY, "Idempotency-Key is already used", detail)
}

pub(super) fn still_running() -> Response {
    let detail = "The first request with this Idempotency-Key is still being processed. Ask again later.";
    problem(StatusCode::CONFLICT, "A request is outstanding for this Idempotency-Key", detail)
}

/// A body that could not be read to its end: it is longer than we, or a limit further out, let it be, or it broke off.
pub(super) fn unread(error: &(dyn StdError + 'static)) -> Response {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            let detail = "The body is too long for a request with an Idempotency-Key.";
            return problem(StatusCode::PAYLOAD_TOO_LARGE, "Content Too Large", detail);
        }
        cause = error.source();
    }
    problem(StatusCode::BAD_REQUEST, "Bad Request", "The body could not be read to its end.")
}

pub(super) fn not_stored() -> Response {
    let detail = "The work could not be stored, so nothing was promised. Ask again later, with the same \
                  Idempotency-Key if there was one.";
    problem(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", detail)
}

/// For a client that has left, and reads all the same.
pub(super) fn not_yet_stored() -> Response {
    let detail = "The work could not be stored yet, which is tried again. Ask again later, with the same Idempotency-Key if \
                  there was one: without one, it may be done twice.";
    problem(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", detail)
}

pub(super) fn not_storable() -> Response {
    problem(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error", "The work could not be stored.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(value: &str) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(value).unwrap());
        read(&headers).map(|key| key.map(Cow::into_owned))
    }

    #[test]
    fn a_key_is_given_on_as_text() {
        let key = IdempotencyKey("0c5e".into());
        assert_eq!(format!("/charges/{key}"), "/charges/0c5e");
        assert_eq!(AsRef::<str>::as_ref(&key), key.as_str());
    }

    #[test]
    fn keys_come_quoted_or_bare() {
        let key = Ok(Some("8e03978e-40d5".to_owned()));
        assert_eq!(read_one("\"8e03978e-40d5\""), key);
        assert_eq!(read_one("8e03978e-40d5"), key);
        assert_eq!(read_one("\"8e03978e-40d5\";v=2"), key);
        assert_eq!(read_one(r#""a\"b\\c""#), Ok(Some(r#"a"b\c"#.to_owned())));
        let longest = "x".repeat(LONGEST);
        assert_eq!(read_one(&longest), Ok(Some(longest.clone())));
        assert_eq!(read_one(&format!("\"{longest}\"")), Ok(Some(longest)));
        for bad in
            ["", "\"\"", "\"half", "a\"b", "\"a\" b", "\"a\", \"b\"", r#""a\b""#, r"a\b", &"x".repeat(LONGEST + 1)]
        {
            assert_eq!(read_one(bad), Err(()), "{bad:?}");
        }
        let mut two = HeaderMap::new();
        two.append(HEADER, HeaderValue::from_static("a"));
        two.append(HEADER, HeaderValue::from_static("b"));
        assert_eq!(read(&two), Err(()));
        assert_eq!(read(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn parts_of_a_hash_do_not_run_over() {
        assert_ne!(hash([&b"ab"[..], b"c"]), hash([&b"a"[..], b"bc"]));
        assert_eq!(hash([&b""[..]]).len(), 64);
    }

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let response = http::Response::builder()
            .status(201)
            .header("x-order", "17")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .header("content-length", "9999")
            .body(())
            .unwrap();
        let answer = remember(&response.into_parts().0, Some(&Bytes::from_static(b"ok")));
        let replayed = replay(answer);
        assert_eq!(replayed.status(), 201);
        assert_eq!(replayed.headers()["x-order"], "17");
        assert_eq!(replayed.headers().get_all("set-cookie").iter().count(), 2);
        assert!(!replayed.headers().contains_key("content-length"));
        assert_eq!(replayed.headers()["idempotency-replayed"], "true");
    }
}
