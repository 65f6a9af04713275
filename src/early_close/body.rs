//! The buffer: frames of a body as they came, and what is to follow them.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

/// Frames that were held back, without copying, and the rest of their body, if there is one.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    frames: VecDeque<Frame<Bytes>>,
    /// The bytes in `frames`.
    length: usize,
    has_trailers: bool,
    rest: Option<Body>,
}

impl Buffer {
    pub(super) fn push(&mut self, frame: Frame<Bytes>) {
        match frame.data_ref() {
            Some(data) => self.length += data.len(),
            None => self.has_trailers |= frame.is_trailers(),
        }
        self.frames.push_back(frame);
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Whether a declared length would lose something: on HTTP/1 trailers need chunks (RFC 9112, section 7.1.2).
    pub(super) fn has_trailers(&self) -> bool {
        self.has_trailers
    }

    /// As a body of its own, followed by `rest`.
    pub(super) fn into_body(mut self, rest: Option<Body>) -> Body {
        self.rest = rest;
        Body::new(self)
    }
}

impl http_body::Body for Buffer {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        if let Some(frame) = this.frames.pop_front() {
            this.length -= frame.data_ref().map_or(0, Bytes::len);
            return Poll::Ready(Some(Ok(frame)));
        }
        let Some(rest) = &mut this.rest else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(rest).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            this.rest = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            None if self.has_trailers => SizeHint::new(),
            None => SizeHint::with_exact(0),
        };
        let length = self.length as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(length));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(length)) {
            hint.set_upper(upper);
        }
        hint
    }
}
