//! The buffer: what of a body was held back, and what is to follow it.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, header::TRAILER};
use http_body::{Frame, SizeHint};

use crate::listed::lists;

/// Pieces below this are copied together: as it is, each would cost more room than its bytes, and a write of its own.
const SMALL: usize = 8 * 1024;
/// The rooms in which small pieces are gathered grow with the body, between these.
const ROOM: (usize, usize) = (4 * 1024, 64 * 1024);

/// What was held back of a body, and the rest of it, if there is one.
///
/// No byte is copied more than once, and none of a large piece.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    pieces: VecDeque<Bytes>,
    /// The small pieces at the end, copied together.
    gathered: BytesMut,
    /// The bytes in both.
    length: usize,
    /// An empty frame was among them: the mark of a flush, for a compressor outside.
    marked: bool,
    rest: Option<Body>,
    trailers: Option<HeaderMap>,
}

impl Buffer {
    pub(super) fn whole(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { length: bytes.len(), pieces: VecDeque::from([bytes]), trailers, ..Self::default() }
    }

    pub(super) fn push(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                self.length += data.len();
                self.marked |= data.is_empty();
                if data.len() < SMALL {
                    self.gather(&data);
                } else {
                    self.close_room();
                    self.pieces.push_back(data);
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.trailers = Some(trailers);
                }
            }
        }
    }

    fn gather(&mut self, data: &Bytes) {
        let mut rest = &data[..];
        while !rest.is_empty() {
            let free = self.gathered.capacity() - self.gathered.len();
            if free == 0 {
                self.close_room();
                self.gathered = BytesMut::with_capacity(self.length.clamp(ROOM.0, ROOM.1));
                continue;
            }
            // Never more than what is free: growing would copy once more.
            let (now, later) = rest.split_at(rest.len().min(free));
            self.gathered.extend_from_slice(now);
            rest = later;
        }
    }

    fn close_room(&mut self) {
        if !self.gathered.is_empty() {
            // What is left of the room stays for the next small piece.
            self.pieces.push_back(self.gathered.split().freeze());
        }
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The trailers, taken out.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    #[cfg(feature = "compression")]
    pub(super) fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// Whether there are trailers that a server may send in chunks: hyper does if the head names them.
    pub(super) fn has_named_trailers(&self, headers: &HeaderMap) -> bool {
        let names = |name: &HeaderName| lists(headers, &TRAILER, name.as_str());
        self.trailers.as_ref().is_some_and(|trailers| trailers.keys().any(names))
    }

    /// All the bytes in one piece: the one that there is, or else a copy.
    pub(super) fn into_bytes(mut self) -> Bytes {
        self.close_room();
        if self.pieces.len() <= 1 {
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(self.length);
        for piece in &self.pieces {
            whole.extend_from_slice(piece);
        }
        whole.freeze()
    }

    /// As a body of its own, followed by `rest`.
    pub(super) fn into_body(mut self, rest: Option<Body>) -> Body {
        self.close_room();
        if rest.is_none() && self.trailers.is_none() && self.pieces.len() <= 1 {
            return Body::from(self.pieces.pop_front().unwrap_or_default());
        }
        // What is left of the room would be kept for as long as the rest streams.
        self.gathered = BytesMut::new();
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
        if let Some(piece) = this.pieces.pop_front() {
            this.length -= piece.len();
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut this.rest else {
            // The end needs no mark.
            return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        };
        if std::mem::take(&mut this.marked) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::new()))));
        }
        let polled = Pin::new(rest).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            this.rest = None;
            // Those that came before what follows was known to be the end.
            return Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Some(rest) => rest.size_hint(),
            // On HTTP/1 a body with trailers has to be sent in chunks (RFC 9112, section 7.1.2): the server must not
            // take it for one of known length.
            None if self.trailers.is_some() => SizeHint::new(),
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

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt as _;

    use super::*;

    fn filled(pieces: &[usize]) -> (Buffer, Vec<u8>) {
        let (mut buffer, mut bytes) = (Buffer::default(), Vec::new());
        for (number, length) in pieces.iter().enumerate() {
            let piece = vec![number as u8; *length];
            bytes.extend_from_slice(&piece);
            buffer.push(Frame::data(Bytes::from(piece)));
        }
        (buffer, bytes)
    }

    #[tokio::test]
    async fn pieces_of_every_size_come_out_in_order() {
        for pieces in [&[][..], &[0], &[5], &[9000], &[5, 0, 9000, 1, 2, 70_000, 8191, 8192, 3], &[7000; 40]] {
            let (buffer, bytes) = filled(pieces);
            assert_eq!(buffer.length(), bytes.len());
            assert_eq!(filled(pieces).0.into_bytes(), bytes);
            let mut body = buffer.into_body(None);
            let mut read = Vec::new();
            assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
            while let Some(frame) = body.frame().await {
                read.extend(frame.unwrap().into_data().unwrap());
                assert_eq!(body.size_hint().exact(), Some((bytes.len() - read.len()) as u64), "of the rest");
            }
            assert_eq!(read, bytes);
        }
    }

    #[tokio::test]
    async fn the_rest_and_its_trailers_follow() {
        let trailers: HeaderMap = [(http::header::ETAG, "\"end\"".parse().unwrap())].into_iter().collect();
        let (mut rest, more) = filled(&[3, 9000]);
        rest.push(Frame::trailers(trailers.clone()));
        let (buffer, mut bytes) = filled(&[9000, 5]);
        bytes.extend_from_slice(&more);
        let body = buffer.into_body(Some(rest.into_body(None)));
        assert_eq!(body.size_hint().exact(), None, "trailers need chunks");
        let whole = body.collect().await.unwrap();
        assert_eq!(whole.trailers(), Some(&trailers));
        assert_eq!(whole.to_bytes(), bytes);
    }

    /// What follows may stream for hours.
    #[tokio::test]
    async fn nothing_of_a_room_is_kept_for_the_rest() {
        let (buffer, bytes) = filled(&[5, 9000, 7]);
        let mut body = buffer.into_body(Some(Body::from("the rest")));
        let mut pieces = Vec::new();
        while pieces.iter().map(Bytes::len).sum::<usize>() < bytes.len() {
            pieces.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        // The first and the last lie in one room.
        assert_eq!(pieces.len(), 3);
        drop(pieces.swap_remove(0));
        assert!(pieces.iter().all(Bytes::is_unique));
    }

    #[test]
    fn many_small_pieces_take_little_more_room_than_their_bytes() {
        let (mut buffer, bytes) = filled(&vec![1; if cfg!(miri) { 2_000 } else { 100_000 }]);
        buffer.close_room();
        assert!(buffer.pieces.len() < 10, "{}", buffer.pieces.len());
        let room: usize = buffer.pieces.iter().map(Bytes::len).sum();
        assert_eq!(room, bytes.len());
    }
}
