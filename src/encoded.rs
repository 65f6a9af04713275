//! What an encoding of a response does to its head, and what forbids it.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CACHE_CONTROL, ETAG, IF_NONE_MATCH, TRAILER, VARY},
};

use crate::listed::lists;

const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Whether the bytes of a response are to stay as they are: as parts, since several at once have no `Content-Range` of their
/// own (RFC 9110, section 15.3.7.2), by `no-transform` (RFC 9111, section 5.2.2.6), or by a digest of them.
pub(crate) fn is_fixed(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::PARTIAL_CONTENT || lists(headers, &CACHE_CONTROL, "no-transform") || has_digest(headers)
}

/// Whether a response says what digest its bytes have, which encoded ones have not (RFC 9530), or that its trailers will.
fn has_digest(headers: &HeaderMap) -> bool {
    DIGESTS.iter().any(|digest| headers.contains_key(digest) || lists(headers, &TRAILER, digest.as_str()))
}

/// What is sent depends on what the request accepts (RFC 9110, section 12.5.5).
pub(crate) fn vary(headers: &mut HeaderMap) {
    if !lists(headers, &VARY, ACCEPT_ENCODING.as_str()) && !lists(headers, &VARY, "*") {
        headers.append(VARY, HeaderValue::from(ACCEPT_ENCODING));
    }
}

/// What the trailers of a body that was encoded say of it: digests of the plain bytes, which nothing announced, are left
/// out.
pub(crate) fn amend(trailers: &mut HeaderMap) {
    for digest in DIGESTS {
        trailers.remove(digest);
    }
    weaken(trailers);
}

/// Encoded bytes are no longer those that a strong validator stands for (RFC 9110, section 8.8.1).
pub(crate) fn weaken(headers: &mut HeaderMap) {
    if let Some(weak) = headers.get(ETAG).and_then(weakened) {
        headers.insert(ETAG, weak);
    }
}

/// The weak form of a strong entity tag.
fn weakened(tag: &HeaderValue) -> Option<HeaderValue> {
    let tag = tag.as_bytes();
    if !tag.starts_with(b"\"") {
        return None;
    }
    HeaderValue::from_bytes(&[b"W/", tag].concat()).ok()
}

/// The entity tags that a request's client has already.
pub(crate) fn validators(request: &HeaderMap) -> Vec<HeaderValue> {
    request.get_all(IF_NONE_MATCH).iter().cloned().collect()
}

/// A 304 has the validators of the response that it stands for (RFC 9110, section 15.4.5), and a cache that finds others
/// must not use it (RFC 9111, section 4.3.4). If the client asks with a tag that is the weak form of this one, it was
/// weakened here, since what it stands for was encoded. True if so.
pub(crate) fn not_modified(validators: &[HeaderValue], headers: &mut HeaderMap) -> bool {
    let Some((strong, weak)) = headers.get(ETAG).and_then(|tag| Some((tag, weakened(tag)?))) else {
        return false;
    };
    if !validators.iter().flat_map(|value| weak_tags(value.as_bytes())).any(|tag| tag == strong.as_bytes()) {
        return false;
    }
    headers.insert(ETAG, weak);
    true
}

/// The weak ones of a list of entity tags, with their quotes, between which there may be commas (RFC 9110, section 8.8.3).
fn weak_tags(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let begin = list.iter().position(|byte| *byte == b'"')?;
        let (before, tag) = list.split_at(begin);
        let end = 2 + tag[1..].iter().position(|byte| *byte == b'"')?;
        let (tag, rest) = tag.split_at(end);
        list = rest;
        Some((before.ends_with(b"W/"), tag))
    })
    .filter_map(|(weak, tag)| weak.then_some(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(tag: &'static str) -> HeaderMap {
        [(ETAG, HeaderValue::from_static(tag))].into_iter().collect()
    }

    #[test]
    fn what_says_so_stays_as_it_is() {
        for (name, value) in [
            ("cache-control", "public, no-transform"),
            ("content-digest", "sha-256=:AAAA:"),
            ("repr-digest", "sha-256=:AAAA:"),
            ("trailer", "x-note, Repr-Digest"),
        ] {
            let named = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
            assert!(is_fixed(StatusCode::OK, &named.into_iter().collect()), "{name}");
        }
        let cached = [(CACHE_CONTROL, HeaderValue::from_static("public, max-age=5"))].into_iter().collect();
        assert!(!is_fixed(StatusCode::OK, &cached));
        assert!(is_fixed(StatusCode::PARTIAL_CONTENT, &cached));
    }

    #[test]
    fn only_strong_tags_are_weakened() {
        for (tag, weak) in [("\"a\"", "W/\"a\""), ("W/\"a\"", "W/\"a\""), ("a", "a")] {
            let mut headers = headers(tag);
            weaken(&mut headers);
            assert_eq!(headers[ETAG], weak);
        }
    }

    #[test]
    fn a_304_says_what_its_200_said() {
        for (asked, tag, told) in [
            ("W/\"a\"", "\"a\"", "W/\"a\""),
            ("\"b\" , W/\"a\"", "\"a\"", "W/\"a\""),
            ("\"a\"", "\"a\"", "\"a\""),
            ("*", "\"a\"", "\"a\""),
            ("W/\"a,b\"", "\"a,b\"", "W/\"a,b\""),
            ("W/\"a,b\",W/\"\"", "\"\"", "W/\"\""),
            ("W/\"a,b\"", "\"a\"", "\"a\""),
            ("W/\"a", "\"a\"", "\"a\""),
            ("W/\"a\"", "W/\"a\"", "W/\"a\""),
            ("\"", "\"", "\""),
            ("", "a", "a"),
        ] {
            let mut answered = headers(tag);
            let changed = not_modified(&[HeaderValue::from_static(asked)], &mut answered);
            assert_eq!((&answered[ETAG], changed), (&HeaderValue::from_static(told), told != tag), "{asked} {tag}");
        }
    }
}
