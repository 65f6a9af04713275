//! The handler that gives the drawn answer.

use std::io;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, header};
use http_body::Frame;
use http_body_util::StreamBody;

use crate::case::Answer;

impl Answer {
    /// All of the body.
    pub fn bytes(&self) -> Vec<u8> {
        let length = self.pieces.iter().sum();
        if self.noise {
            let mut state = 88_172_645_463_325_252_u64;
            let noise = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            });
            return noise.take(length).collect();
        }
        let mut text: String = (0..length / 20 + 1).map(|number| format!("line {number:9} here\n")).collect();
        text.truncate(length);
        text.into_bytes()
    }

    fn frames(&self) -> Vec<io::Result<Frame<Bytes>>> {
        let mut rest = Bytes::from(self.bytes());
        let pieces = self.pieces.iter().map(|length| Ok(Frame::data(rest.split_to(*length))));
        let mut frames: Vec<_> = pieces.take(self.fails_after.unwrap_or(usize::MAX)).collect();
        if self.fails_after.is_some() {
            frames.push(Err(io::Error::other("the body fails, as this case wants it")));
        }
        if self.trailers {
            frames.push(Ok(Frame::trailers(trailers())));
        }
        frames
    }

    fn body(&self) -> Body {
        if self.known {
            return Body::from(self.bytes());
        }
        let waits = self.waits;
        let frames = stream::iter(self.frames()).then(move |frame| async move {
            if waits {
                tokio::task::yield_now().await;
            }
            frame
        });
        Body::new(StreamBody::new(frames))
    }

    pub fn response(&self) -> Response {
        let mut response = (self.status, self.body()).into_response();
        let headers = response.headers_mut();
        for (name, value) in &self.extra {
            headers.append(*name, HeaderValue::from_static(value));
        }
        if let Some(content_type) = self.content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if self.declares {
            headers.insert(header::CONTENT_LENGTH, self.pieces.iter().sum::<usize>().into());
        }
        if self.trailers {
            headers.insert(header::TRAILER, HeaderValue::from_static("x-end"));
        }
        response
    }
}

pub fn trailers() -> HeaderMap {
    [(http::HeaderName::from_static("x-end"), HeaderValue::from_static("yes"))].into_iter().collect()
}
