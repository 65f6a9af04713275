//! What an early close allocates: for a body that it holds back no more than its bytes, and for one of known length
//! nothing that depends on them. And what a response allocates that has a continuation, and what a time limit does.
//!
//! Bytes that are copied have to be allocated first: a bound on the ones is a bound on the others.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    convert::Infallible,
    future::{Future as _, Ready, ready},
    task::{Context, Poll},
    time::Duration,
};

use allocation_counter::{AllocationInfo, measure};
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, response::Parts};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt};
use tower_epilogue::{Continuation, EarlyCloseLayer, IgnoreAbortLayer, TimeLimitLayer};

const MIB: usize = 1024 * 1024;
/// All but the body: a future, a head, the queue of its pieces.
const REST: usize = 24 * 1024;

static BYTES: [u8; 16 * MIB] = [7; 16 * MIB];

/// Answers with a body that is made when it is called.
#[derive(Clone)]
struct Answers<F>(F);

impl<F: Fn() -> Body> Service<Request<Body>> for Answers<F> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(Response::new((self.0)())))
    }
}

/// A million pieces may take longer than the default patience.
fn patient() -> EarlyCloseLayer {
    EarlyCloseLayer::new().patience(Duration::from_secs(600))
}

/// So many bytes in pieces of that length, none of which has to be allocated.
fn pieces(length: usize, piece: usize) -> Body {
    let pieces = BYTES[..length].chunks(piece).map(|piece| Ok::<_, Infallible>(Bytes::from_static(piece)));
    Body::from_stream(stream::iter(pieces))
}

/// What one request costs, its body read to the end and let go of piece by piece. The length that was declared, too.
fn cost(layer: &EarlyCloseLayer, body: impl Fn() -> Body + Clone + Send + 'static) -> (AllocationInfo, Option<usize>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let service = layer.layer(Answers(body));
    let request = async || {
        let response = service.clone().oneshot(Request::new(Body::empty())).await.unwrap();
        let declared = response.headers().get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
        let (mut body, mut read) = (response.into_body(), 0);
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().data_ref().map_or(0, Bytes::len);
        }
        assert!(declared.is_none_or(|declared| declared == read));
        declared
    };
    // The first one also pays for what a thread and a process do once.
    runtime.block_on(request());
    let mut declared = None;
    let info = measure(|| declared = runtime.block_on(request()));
    (info, declared)
}

#[test]
fn holding_back_1_mib_of_large_pieces_copies_none_of_them() {
    let layer = patient();
    for piece in [8 * 1024, 16 * 1024, 100_000, MIB] {
        let (info, declared) = cost(&layer, move || pieces(MIB, piece));
        assert_eq!(declared, Some(MIB));
        assert!(info.bytes_total < REST as u64, "{piece}: {info:?}");
    }
}

#[test]
fn holding_back_1_mib_of_small_pieces_copies_each_byte_once() {
    let layer = patient();
    for piece in [1, 7, 700, 4096, 8 * 1024 - 1] {
        let (info, declared) = cost(&layer, move || pieces(MIB, piece));
        assert_eq!(declared, Some(MIB));
        // The last room that the pieces are gathered in may be empty but for one byte.
        let most = MIB + 64 * 1024 + REST;
        assert!((MIB as u64..most as u64).contains(&info.bytes_total), "{piece}: {info:?}");
        assert!(info.count_total < 200, "{piece}: {info:?}");
    }
}

#[test]
fn what_was_held_back_in_vain_is_not_copied_either() {
    let layer = patient();
    let (info, declared) = cost(&layer, || pieces(16 * MIB, 16 * 1024));
    assert_eq!(declared, None, "past the limit it streams");
    assert!(info.bytes_total < REST as u64, "{info:?}");
}

#[test]
fn a_body_of_known_length_costs_the_same_whatever_its_length() {
    let layer = patient();
    // As many digits in the header.
    let costs = [1_000_000, 9_999_999].map(|length| {
        let (info, declared) = cost(&layer, move || Body::from(Bytes::from_static(&BYTES[..length])));
        assert_eq!(declared, Some(length));
        (info.count_total, info.bytes_total)
    });
    assert_eq!(costs[0], costs[1]);
    assert!(costs[0].1 < 4096, "{costs:?}");
}

#[test]
fn the_function_on_buffered_bodies_gets_one_piece_as_it_is_and_several_copied_once() {
    let layer = patient().map_buffer(async |parts: Parts, bytes: Bytes| {
        assert_eq!(bytes.len(), MIB);
        Ok::<_, Infallible>((parts, bytes))
    });
    let (info, _) = cost(&layer, || Body::from(Bytes::from_static(&BYTES[..MIB])));
    assert!(info.bytes_total < REST as u64, "{info:?}");
    let (info, _) = cost(&layer, || pieces(MIB, 64 * 1024));
    assert!((MIB as u64..(MIB + REST) as u64).contains(&info.bytes_total), "{info:?}");
}

/// The place of a continuation in its response is that of the response before.
#[tokio::test]
async fn only_the_first_continuation_of_a_thread_allocates_its_place() {
    let (tells, costs) = std::sync::mpsc::channel();
    let answers = tower::service_fn(move |_: Request<Body>| {
        let (mut response, work) = (Response::new(Body::from("hello")), Continuation::new(async {}));
        let cost = measure(|| work.attach(&mut response));
        tells.send(cost.count_total).unwrap();
        ready(Ok::<_, Infallible>(response))
    });
    let service = IgnoreAbortLayer::new().layer(answers);
    for _ in 0..3 {
        let response = service.clone().oneshot(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }
    let costs: Vec<u64> = costs.try_iter().collect();
    assert!(costs[0] > 0 && costs[1..] == [0, 0], "{costs:?}");
}

/// They have one timer between them, which is there when one of them waits.
#[tokio::test(start_paused = true)]
async fn a_limit_allocates_nothing_beside_others() {
    let waits = tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let limit = TimeLimitLayer::new(Duration::from_secs(60));
    let cost = |limit: TimeLimitLayer| {
        let mut asked = Box::pin(limit.layer(waits).oneshot(Request::new(Body::empty())));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let cost = measure(|| assert!(asked.as_mut().poll(&mut cx).is_pending()));
        (cost.count_total, asked)
    };
    let _first = cost(limit);
    let ((without, _unlimited), (with, limited)) = (cost(TimeLimitLayer::off()), cost(limit));
    assert_eq!(with, without);
    assert_eq!(limited.await.unwrap().status(), http::StatusCode::SERVICE_UNAVAILABLE);
}
