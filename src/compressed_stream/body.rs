//! A body that is compressed while it streams.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::time::Sleep;

use super::encoder::Encoder;
use crate::{encoded, lifecycle::poll_sleep};

/// How much is compressed before what has come out is given on.
const ENOUGH_OUT: usize = 8 * 1024;
/// How much is compressed in one poll, if nothing comes out: what a producer repeats compresses to nearly nothing. No piece is
/// longer: one may be a whole file.
const ENOUGH_IN: usize = 128 * 1024;

/// How much an encoder may keep to itself. Brotli would collect up to 8 MiB, for which it takes eight times as much memory and in
/// which its client sees nothing.
const MOST_KEPT: usize = 512 * 1024;

/// How many marks of flushes that are ready at once are taken in one poll.
const MARKS_A_POLL: usize = 32;

/// The body of a response, compressed; never polled again after its end.
pub(super) struct Compressed {
    /// `None` once it has ended.
    body: Option<Body>,
    /// What of its last piece is not compressed yet.
    rest: Bytes,
    encoder: Encoder,
    /// So many bytes are in the encoder that have not come out, as far as is known.
    unflushed: usize,
    /// How long the producer may pause before that is flushed; `None` leaves it to the producer.
    pause: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    trailers: Option<HeaderMap>,
}

type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

impl Compressed {
    pub(super) fn new(body: Body, encoder: Encoder, pause: Option<Duration>) -> Self {
        Self { body: Some(body), rest: Bytes::new(), encoder, unflushed: 0, pause, timer: None, trailers: None }
    }

    fn flush(&mut self) -> Result<(), BoxError> {
        if std::mem::take(&mut self.unflushed) > 0 {
            self.encoder.flush()?;
        }
        Ok(())
    }

    /// What has come out, if anything has.
    fn give(&mut self) -> Option<Polled> {
        (self.encoder.len() > 0).then(|| Poll::Ready(Some(Ok(Frame::data(self.encoder.take())))))
    }

    /// The producer has nothing at the moment: is it time to flush?
    fn has_paused(&mut self, cx: &mut Context<'_>) -> bool {
        match self.pause {
            None => false,
            Some(pause) if pause.is_zero() => true,
            Some(pause) => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                poll_sleep(timer.as_mut(), cx).is_ready()
            }
        }
    }

    fn fail(&mut self, error: impl Into<BoxError>) -> Polled {
        self.body = None;
        // Whoever polls on after an error gets nothing more.
        drop(self.encoder.take());
        Poll::Ready(Some(Err(error.into())))
    }

    /// The end of the plain body: that of the compressed one.
    fn end(&mut self) -> Result<(), BoxError> {
        self.body = None;
        self.timer = None;
        Ok(self.encoder.finish()?)
    }

    fn try_poll(&mut self, cx: &mut Context<'_>) -> Result<Polled, BoxError> {
        let mut taken = 0;
        while let Some(body) = &mut self.body {
            let polled = if self.rest.is_empty() {
                Pin::new(body).poll_frame(cx)
            } else {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))))
            };
            match polled {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {
                        // The mark of a flush. One that gives nothing else lets the others have their turn, too.
                        self.flush()?;
                        taken += ENOUGH_IN / MARKS_A_POLL;
                        if taken >= ENOUGH_IN && self.encoder.len() == 0 {
                            cx.waker().wake_by_ref();
                            return Ok(Poll::Pending);
                        }
                    }
                    Ok(mut data) => {
                        self.rest = data.split_off(data.len().min(ENOUGH_IN));
                        self.timer = None;
                        self.unflushed += data.len();
                        self.encoder.write(&data)?;
                        if self.unflushed >= MOST_KEPT {
                            self.flush()?;
                        }
                        taken += data.len();
                        if self.encoder.len() < ENOUGH_OUT {
                            if taken < ENOUGH_IN {
                                continue;
                            }
                            return Ok(self.give().unwrap_or_else(|| {
                                cx.waker().wake_by_ref();
                                Poll::Pending
                            }));
                        }
                    }
                    Err(frame) => {
                        self.end()?;
                        self.trailers = frame.into_trailers().ok();
                        if let Some(trailers) = &mut self.trailers {
                            encoded::amend(trailers);
                        }
                    }
                },
                Poll::Ready(Some(Err(error))) => return Err(error.into_inner()),
                Poll::Ready(None) => self.end()?,
                Poll::Pending => {
                    if self.unflushed > 0 && self.has_paused(cx) {
                        self.flush()?;
                    }
                    return Ok(self.give().unwrap_or(Poll::Pending));
                }
            }
            if let Some(given) = self.give() {
                return Ok(given);
            }
        }
        Ok(match self.give() {
            Some(given) => given,
            None => Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers)))),
        })
    }
}

impl http_body::Body for Compressed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match self.try_poll(cx) {
            Ok(polled) => polled,
            Err(error) => self.fail(error),
        }
    }
}
