//! What an encoding of a response does to its entity tag, and what forbids it.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{ETAG, IF_NONE_MATCH, TRAILER},
};

const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Whether a response says what digest its bytes have, which encoded ones have not (RFC 9530), or that its trailers will.
pub(crate) fn has_digest(headers: &HeaderMap) -> bool {
    let announced = |digest: &HeaderName| {
        let mut names = headers.get_all(TRAILER).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(digest.as_str().as_bytes()))
    };
    DIGESTS.iter().any(|digest| headers.contains_key(digest) || announced(digest))
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
