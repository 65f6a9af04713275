//! The real handler: everything that a query can ask of one.

use std::{
    ops::ControlFlow,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    http::{
        StatusCode,
        header::{CONTENT_TYPE, LOCATION},
    },
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use tokio::time::sleep;
use tower_epilogue::{Continuation, Lifecycle, LifecycleError};

use crate::query::{FirstHook, Run, Then};

/// Answers, and goes on, as `run` says.
pub(crate) async fn handle(run: Run, lifecycle: Lifecycle, request: Request) -> Response {
    match work(run, lifecycle, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a lifecycle refused what a handler asked of it");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

async fn work(run: Run, lifecycle: Lifecycle, request: Request) -> Result<Response, LifecycleError> {
    register_hooks(&run, &lifecycle)?;
    if run.read {
        read_to_end(request.into_body()).await;
    }
    sleep(run.work).await;
    burn(run.busy).await;
    if let Some((limit, work)) = run.extend {
        lifecycle.set_time_limit(limit);
        sleep(work).await;
    }
    assert!(!run.panic, "the handler was asked to panic");

    let then = run.then;
    if let Some(time) = run.finish {
        lifecycle.finish(response(run)).await?;
        sleep(time).await;
        // It goes nowhere, but for its continuation.
        return Ok((then.map(continuation), ()).into_response());
    }
    Ok((then.map(continuation), response(run)).into_response())
}

fn register_hooks(run: &Run, lifecycle: &Lifecycle) -> Result<(), LifecycleError> {
    for place in 0..run.hooks {
        let hook = if place == 0 { run.hook } else { FirstHook::Ok };
        lifecycle.on_shutdown(move |end| async move {
            match hook {
                FirstHook::Ok => {}
                FirstHook::Panic => panic!("the hook was asked to panic"),
                FirstHook::Nest => {
                    if let Err(error) = end.on_shutdown(|_| async {}) {
                        tracing::error!(%error, "a hook could not register one more");
                    }
                }
                FirstHook::Stop => return ControlFlow::Break(()),
                FirstHook::Slow => sleep(Duration::from_secs(1)).await,
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(())
}

/// Keeps nothing of it. One that breaks off, mostly since its client left, has ended too: whether the work goes on
/// then is for the layers to say.
async fn read_to_end(body: Body) {
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        if let Err(error) = piece {
            tracing::info!(%error, "a request's body broke off");
            return;
        }
    }
}

/// Burns CPU, a millisecond between two awaits.
async fn burn(time: Duration) {
    const SLICE: Duration = Duration::from_millis(1);
    for _ in 0..time.as_millis() {
        let began = Instant::now();
        while began.elapsed() < SLICE {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
    }
}

fn continuation((then, time): (Then, Duration)) -> Continuation {
    match then {
        Then::Async => Continuation::new(async move { sleep(time).await }),
        Then::Blocking => Continuation::blocking(move || thread::sleep(time)),
        Then::Panic => Continuation::new(async move {
            sleep(time).await;
            panic!("the continuation was asked to panic");
        }),
    }
}

fn response(run: Run) -> Response {
    if let Some(location) = run.redirect {
        return (StatusCode::SEE_OTHER, [(LOCATION, location)]).into_response();
    }
    let digits = digits(run.body);
    let body = if run.chunks == 0 { Body::from(digits) } else { streamed(digits, run.chunks, run.chunk_time) };
    (run.status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// `0123456789`, over and over.
fn digits(length: usize) -> Bytes {
    const DIGITS: &[u8] = b"0123456789";
    const SHARED: usize = 64 * 1024;
    // The largest, once for all requests; small ones do not need it in memory.
    static WHOLE: LazyLock<Bytes> = LazyLock::new(|| repeated(64 * 1024 * 1024));

    fn repeated(length: usize) -> Bytes {
        Bytes::from(DIGITS.repeat(length.div_ceil(DIGITS.len()))).slice(..length)
    }
    if length <= SHARED { repeated(length) } else { WHOLE.slice(..length) }
}

/// In `chunks` pieces, `apart` from each other, of a total length that nobody is told.
fn streamed(bytes: Bytes, chunks: usize, apart: Duration) -> Body {
    let cut = move |place: usize, bytes: &Bytes| bytes.len() * place / chunks;
    let pieces = stream::iter(0..chunks).then(move |place| {
        let piece = bytes.slice(cut(place, &bytes)..cut(place + 1, &bytes));
        async move {
            if place > 0 {
                sleep(apart).await;
            }
            Ok::<_, std::convert::Infallible>(piece)
        }
    });
    Body::from_stream(pieces)
}
