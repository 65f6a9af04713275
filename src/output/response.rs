use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{
    BoxError,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use http_body::Frame;
use tracing::Span;

use super::{
    Output,
    pipe::{Next, Pipe},
};
use crate::{
    continuation::Continuation,
    lifecycle::Lifecycle,
    pool::{carry::carried, caught},
};

/// The response that an [`Output`] writes. See the [module docs](super).
///
/// By default it is a `200 OK` of plain text. Combine it with response parts to change that, as usual in axum:
/// `([(CONTENT_TYPE, "text/event-stream")], lifecycle.output(…))`.
#[must_use = "what is written goes nowhere until this is returned from a handler, or given to `finish`"]
pub struct OutputResponse {
    body: OutputBody,
    proxies_buffer: bool,
}

impl fmt::Debug for OutputResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputResponse").field("proxies_buffer", &self.proxies_buffer).finish_non_exhaustive()
    }
}

impl OutputResponse {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { body: OutputBody { pipe, producer: None, gave_turn: false, ended: false }, proxies_buffer: true }
    }

    fn produced<F, Fut, E>(lifecycle: Lifecycle, produce: F) -> Self
    where
        F: FnOnce(Output) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let (output, mut response) = Output::channel();
        let captured = lifecycle.0.captured();
        let work: Work = Box::pin(carried(captured, async move { produce(output).await.map_err(Into::into) }));
        response.body.producer = Some(Producer { work, span: Span::current(), lifecycle });
        response
    }

    /// How many written bytes are buffered before a write waits for the client; 8 KiB by default, at least 1 byte.
    pub fn buffer(self, bytes: usize) -> Self {
        self.body.pipe.set_capacity(bytes);
        self
    }

    /// Holds written bytes back until they are flushed or finished, or the buffer is full, like PHP's output
    /// buffering. Without it everything leaves as soon as the connection has room.
    pub fn hold_until_flush(self) -> Self {
        self.body.pipe.set_holds();
        self
    }

    /// Sets the header `X-Accel-Buffering: no`, for nginx, which otherwise buffers a response before it passes it on.
    pub fn no_proxy_buffering(mut self) -> Self {
        self.proxies_buffer = false;
        self
    }
}

impl IntoResponse for OutputResponse {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::new(self.body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if !self.proxies_buffer {
            headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        }
        response
    }
}

impl Lifecycle {
    /// A streaming response that `produce` writes step by step. See the [module docs](crate::output) for an example.
    ///
    /// `produce` runs as the body's producer, when the server polls the body. The time limit bounds it, and it is
    /// dropped at its next `.await` when the client leaves, unless aborts are ignored: then it runs to its end, and
    /// what it writes is discarded. A `HEAD` request runs it only if an [`EarlyCloseLayer`](crate::EarlyCloseLayer)
    /// has to measure what its `GET` would get.
    ///
    /// When it returns `Ok`, the response ends. An error breaks the response off and is logged; an error after
    /// [`finish`](Output::finish) is treated as that of a [continuation](Continuation::try_new). The error type usually has to be
    /// named, as in `Ok::<_, OutputError>(())` at the end.
    ///
    /// It runs in the current span and with the [carried](crate::EpilogueBuilder::carry) task-locals; what comes
    /// after [`finish`](Output::finish) has a [span of its own](crate::manual::observing#spans).
    pub fn output<F, Fut, E>(&self, produce: F) -> OutputResponse
    where
        F: FnOnce(Output) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        OutputResponse::produced(self.clone(), produce)
    }
}

type Work = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

struct Producer {
    work: Work,
    /// That of the handler; what comes after the response has another.
    span: Span,
    lifecycle: Lifecycle,
}

/// The body: runs the producer, if it has one, and gives out what is written.
///
/// A flush is told of by an empty frame, behind everything that came before it. The compressors of this crate act on
/// it; the outermost body takes it out again.
struct OutputBody {
    pipe: Arc<Pipe>,
    producer: Option<Producer>,
    /// The server has been told to wait, for the flush that the next poll completes.
    gave_turn: bool,
    ended: bool,
}

impl OutputBody {
    /// Lets the producer go on. `Err` if it failed.
    fn produce(&mut self, cx: &mut Context<'_>) -> Result<(), BoxError> {
        let Some(producer) = self.producer.as_mut() else {
            return Ok(());
        };
        let Producer { work, span, .. } = producer;
        let polled = caught::within(Some(span), || work.as_mut().poll(cx));
        let Poll::Ready(result) = polled else {
            if self.pipe.is_finished() {
                // The response does not wait for what comes after its end (contract rule 7).
                self.go_on_alone();
            }
            return Ok(());
        };
        let Some(Producer { work, span, lifecycle }) = self.producer.take() else { return Ok(()) };
        let result = caught::within(Some(&span), || {
            drop(work);
            match result {
                // The response is whole: the error is that of what came after it.
                Err(error) if self.pipe.is_finished() => {
                    lifecycle.0.keep(Continuation::try_new(std::future::ready(Err::<(), _>(error))));
                    Ok(())
                }
                // Here, where the span is.
                Err(error) => {
                    lifecycle.0.body_failed(&*error);
                    Err(error)
                }
                Ok(()) => {
                    self.pipe.producer_returned();
                    Ok(())
                }
            }
        });
        caught::close(span);
        result
    }

    /// Has the rest of the producer run as a continuation.
    fn go_on_alone(&mut self) {
        let Some(Producer { work, span, lifecycle }) = self.producer.take() else { return };
        let rest = caught::within(Some(&span), || Continuation::try_new(work));
        // Its own follows from this one, which closes with the response.
        caught::close(span);
        lifecycle.0.keep(rest);
    }
}

impl http_body::Body for OutputBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        // A server that is never told to wait never sends: it gets its turn before the writer goes on. A producer is polled
        // by us, after that; any other writer is told only then.
        let turn = this.producer.is_none() && !this.gave_turn;
        if this.pipe.was_asked_for_more(!turn) && (turn || this.producer.is_some()) {
            this.gave_turn = turn;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.gave_turn = false;
        if let Err(error) = this.produce(cx) {
            this.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        this.pipe.poll_next(cx, this.producer.is_some()).map(|next| match next {
            Next::Data(data) => Some(Ok(Frame::data(data))),
            Next::Flush => Some(Ok(Frame::data(Bytes::new()))),
            Next::End => {
                this.ended = true;
                None
            }
            Next::Unfinished => {
                this.ended = true;
                Some(Err("an output was dropped before it was finished".into()))
            }
        })
    }
}

impl Drop for OutputBody {
    fn drop(&mut self) {
        self.pipe.reader_dropped();
        if let Some(Producer { work, span, .. }) = self.producer.take() {
            caught::within(Some(&span), || drop(work));
            caught::close(span);
        }
    }
}
