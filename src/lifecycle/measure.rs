//! What a response says of its body.

use axum_core::response::Response;
use bytes::Bytes;
use http::{
    HeaderValue,
    header::{CONTENT_LENGTH, ETAG, LOCATION, TRAILER},
};
use http_body::Body as _;

use super::{response, shared::Shared};

/// What a response says of its body before it leaves.
#[derive(Clone, Copy)]
pub(super) struct Measure {
    /// There is none, or the server is not to send it (HEAD, 204, 304).
    pub(super) bodiless: bool,
    /// Its length is known.
    pub(super) sized: bool,
    /// The same, or what is declared.
    pub(super) length: Option<u64>,
    /// HTTP/2: trailers are announced (RFC 9110, section 6.6.2).
    pub(super) announces: bool,
}

impl Measure {
    /// Asks the body, and takes off what is not to be sent.
    pub(super) fn take(shared: &Shared, response: &mut Response) -> Self {
        let stripped = response::is_bodiless(shared, response.status());
        if stripped {
            response::strip(shared, response);
            if let (true, Some(connection)) = (response::is_upgrade(shared, response.status()), shared.connection()) {
                connection.upgrades();
            }
        }
        let body = response.body();
        let (bodiless, sized) = (stripped || body.is_end_stream(), body.size_hint().exact().is_some());
        if bodiless && shared.http2() {
            guard(shared, response);
        }
        let announces = shared.http2() && response.headers().contains_key(TRAILER);
        Self { bodiless, sized, length: response::length(response), announces }
    }
}

/// HTTP/2: a head without a body tells when the server lets go of it, which is when it is written, by one of its values. These
/// are not kept in the table of their compression (RFC 7541, section 7.1.3), as others are; where there is none of them, the
/// server's turn has to tell.
fn guard(shared: &Shared, response: &mut Response) {
    let Some(connection) = shared.connection() else { return };
    let headers = response.headers_mut();
    let Some(name) = [CONTENT_LENGTH, LOCATION, ETAG].into_iter().find(|name| headers.contains_key(name)) else {
        return;
    };
    let Some(value) = headers.get_mut(name) else { return };
    connection.guards(&shared.exchange);
    let bytes = shared.exchange.guard_head(Bytes::copy_from_slice(value.as_bytes()));
    if let Ok(mut guarded) = HeaderValue::from_maybe_shared(bytes) {
        guarded.set_sensitive(value.is_sensitive());
        *value = guarded;
    }
}
