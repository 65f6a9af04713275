//! `/run`: the layers that a request's query chooses, around the [handler](crate::handler).

use std::convert::Infallible;

use axum::{
    Extension,
    body::Body,
    extract::Request,
    http::{Method, StatusCode},
    response::{IntoResponse as _, Response},
};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_epilogue::{ClockKind, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};
use tower_http::{compression::CompressionLayer, map_response_body::MapResponseBodyLayer};

use crate::{handler, journal::Journals, query::Run};

/// What a request's query comes to: a run, or one plain sentence.
type Parsed = Result<Run, String>;

/// Reads a request's query as it arrives, and opens its journal.
///
/// The server may drop a request whose client leaves at once without ever polling it: in the handler this would come
/// too late for such a request to have a journal.
pub(crate) fn arrive(journals: &Journals, mut request: Request) -> Request {
    if request.uri().path() == "/run" && [Method::GET, Method::HEAD, Method::POST].contains(request.method()) {
        let parsed: Parsed = Run::parse(request.uri());
        if let (Ok(run), Some(lifecycle)) = (&parsed, request.extensions().get::<Lifecycle>()) {
            journals.open(&run.id, lifecycle.id());
        }
        request.extensions_mut().insert(parsed);
    }
    request
}

/// Runs one request as its query says.
pub(crate) async fn run(
    Extension(parsed): Extension<Parsed>,
    lifecycle: Lifecycle,
    request: Request,
) -> Result<Response, (StatusCode, String)> {
    match parsed {
        Ok(run) => Ok(layered(run, lifecycle, request).await),
        Err(sentence) => Err((StatusCode::BAD_REQUEST, sentence)),
    }
}

async fn layered(run: Run, lifecycle: Lifecycle, request: Request) -> Response {
    let early_close = if run.close { EarlyCloseLayer::new() } else { EarlyCloseLayer::new().keep_alive() };
    let ignore_abort = if run.ignore_abort { IgnoreAbortLayer::new() } else { IgnoreAbortLayer::off() };
    let limit = run.limit.unwrap_or_default();
    let time_limit = match run.clock {
        ClockKind::Busy => TimeLimitLayer::busy(limit),
        _ => TimeLimitLayer::new(limit),
    };
    // axum's own body again, as the layers outside of it give it.
    let compression = (MapResponseBodyLayer::new(Body::new), CompressionLayer::new());

    ServiceBuilder::new()
        // Outside of the compression: the length that it declares is that of the encoded bytes.
        .option_layer((run.close || run.compress).then_some(early_close))
        .option_layer(run.compress.then_some(compression))
        // Always there inside of the compression, if only to say no: what stands inside our innermost layer counts
        // as the handler, and a response that is finished early passes only through what stands outside of it.
        .option_layer((run.ignore_abort || run.compress).then_some(ignore_abort))
        // Also without a limit, for the handler's own to count by the clock that was asked for.
        .option_layer((run.limit.is_some() || run.clock == ClockKind::Busy).then_some(time_limit))
        .service(service_fn(move |request| {
            let handler = handler::handle(run.clone(), lifecycle.clone(), request);
            async { Ok::<_, Infallible>(handler.await) }
        }))
        .oneshot(request)
        .await
        .into_response()
}
