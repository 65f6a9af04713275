//! HTTP/2: how a response's pieces, and its end, leave on a tracked connection.

use std::task::Poll;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;

use super::{Delivery, broken_off};

/// The longest chunk that HTTP/2 sends in one frame, whatever the client allows beyond it (RFC 9113, section 4.2).
const FRAME: usize = 16_384;

/// Shorter ones h2 copies when it writes them, and keeps nothing of them on its way: what is cut short by a window is back in its
/// queue. And clients count them as overhead, but for those that end their stream.
const SMALL: usize = 256;

/// The end is held back until what was sent is flushed: only so does a RST_STREAM in the meantime show as an abort, and the
/// flush as a flush.
pub(super) enum Held {
    /// Nothing to hold: HTTP/1, or no tracked connection.
    Never,
    /// Frames go through.
    Open,
    /// The body has ended. With its trailers, if it had any.
    End(Option<HeaderMap>),
    Gone,
}

type Given = Poll<Option<Result<Frame<Bytes>, axum_core::Error>>>;

impl Delivery {
    /// A piece of at most a frame, guarded; the rest is kept. What of a chunk that is longer was written cannot be seen:
    /// when its stream is reset, h2 drops it with the frame that is on its way, and not when it discards what is queued.
    pub(super) fn give(&mut self, mut data: Bytes) -> Given {
        if data.len() > FRAME {
            self.rest = data.split_off(FRAME);
        }
        let all = self.count_down(data.len()) && !self.announces;
        if all && self.ended && data.len() < SMALL && self.asked.get() {
            return self.give_last(data);
        }
        let piece = self.shared.exchange.guard(data);
        if let (true, Some(connection)) = (all, self.shared.connection()) {
            connection.await_given(&self.shared.exchange);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// So much more is given out: whether that is all of a length that is known.
    pub(super) fn count_down(&mut self, bytes: usize) -> bool {
        let Some(left) = &mut self.left else { return false };
        *left = left.saturating_sub(bytes as u64);
        *left == 0
    }

    /// The last piece, which carries the end, as `is_end_stream` tells.
    fn give_last(&mut self, data: Bytes) -> Given {
        if !self.shared.hands_over() {
            return self.fail(broken_off());
        }
        self.complete = true;
        self.held = Held::Gone;
        if let Some(connection) = self.shared.connection() {
            connection.give_last(&self.shared.exchange);
        }
        Poll::Ready(Some(Ok(Frame::data(self.shared.exchange.guard_last(data)))))
    }

    pub(super) fn hold(&mut self, trailers: Option<HeaderMap>) -> Given {
        if self.known && trailers.is_none() {
            self.shared.exchange.set_length_known();
        }
        self.held = Held::End(trailers);
        if !self.asked.get() {
            // A server asks before it sends a head. This is a middleware around us, which may want all of it before it hands
            // anything on.
            return self.give_end();
        }
        if let Some(connection) = self.shared.connection() {
            connection.hold(&self.shared.exchange);
        }
        self.shared.reader_begins();
        self.poll_held()
    }

    /// Gives the held end out once everything before it is flushed.
    pub(super) fn poll_held(&mut self) -> Given {
        if self.shared.exchange.is_released() { self.give_end() } else { Poll::Pending }
    }

    fn give_end(&mut self) -> Given {
        if !self.shared.hands_over() {
            return self.fail(broken_off());
        }
        self.complete = true;
        match std::mem::replace(&mut self.held, Held::Gone) {
            Held::End(Some(trailers)) => {
                // Nothing of them has left if nothing is written from here on.
                self.shared.tell_connection_of_head();
                self.shared.exchange.give_end();
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            // The last, as `is_end_stream` tells: it carries the end.
            _ if self.asked.get() => Poll::Ready(Some(Ok(Frame::data(self.shared.exchange.guard_last(Bytes::new()))))),
            // The middleware makes an end of its own. A frame of nothing before it would be one too many: clients count those
            // (RFC 9113, section 10.5).
            _ => {
                self.shared.exchange.take_elsewhere();
                Poll::Ready(None)
            }
        }
    }
}
