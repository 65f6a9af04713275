//! What a response says of its body.

use axum_core::response::Response;
use http::header::TRAILER;
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
        let announces = shared.http2() && response.headers().contains_key(TRAILER);
        Self { bodiless, sized, length: response::length(response), announces }
    }
}
