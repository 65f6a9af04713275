//! Lists in headers (RFC 9110, section 5.6.1).

use http::{HeaderMap, HeaderName};

/// So few headers are looked through sooner than hashed for.
const FEW: usize = 12;

/// Whether there is such a header.
pub(crate) fn has(headers: &HeaderMap, name: &HeaderName) -> bool {
    if headers.len() > FEW { headers.contains_key(name) } else { headers.keys().any(|other| other == name) }
}

/// Whether `token` is among those that `name` lists.
pub(crate) fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    has(headers, name) && is_listed(headers, name, token)
}

fn is_listed(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}
