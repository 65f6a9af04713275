//! A writer that is elsewhere, and its body, poll by poll.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use axum::{
    body::{Body, Bytes},
    response::IntoResponse,
};
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tower_epilogue::Output;

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a poll of the body gives, that is one piece of data, an empty one, or nothing (yet).
fn poll(body: &mut Body, waker: &Waker) -> Poll<Option<Bytes>> {
    let frame = pin!(body.frame()).poll(&mut Context::from_waker(waker));
    frame.map(|frame| frame.map(|frame| frame.unwrap().into_data().unwrap()))
}

#[test]
fn a_body_that_waits_is_woken_by_what_is_written_and_by_a_flush_of_what_has_left() {
    let (mut output, response) = Output::channel();
    let mut body = response.into_response().into_body();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    assert!(poll(&mut body, &waker).is_pending());
    output.write("written").now_or_never().unwrap().unwrap();
    assert_eq!(woken.0.swap(0, Ordering::SeqCst), 1);
    assert_eq!(poll(&mut body, &waker), Poll::Ready(Some("written".into())));
    assert!(poll(&mut body, &waker).is_pending());
    assert!(output.flush().now_or_never().is_none());
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert_eq!(poll(&mut body, &waker), Poll::Ready(Some(Bytes::new())), "which marks the flush");
}

#[test]
fn a_flush_that_is_polled_again_is_one_flush() {
    let (mut output, response) = Output::channel();
    let mut body = response.into_response().into_body();
    let waker = Waker::noop();
    output.write("written").now_or_never().unwrap().unwrap();
    let mut flush = Box::pin(output.flush());
    assert!((&mut flush).now_or_never().is_none());
    assert_eq!(poll(&mut body, waker), Poll::Ready(Some("written".into())));
    assert_eq!(poll(&mut body, waker), Poll::Ready(Some(Bytes::new())));
    assert!((&mut flush).now_or_never().is_none());
    // The server has its turn, and comes back for more.
    assert!(poll(&mut body, waker).is_pending());
    assert!(poll(&mut body, waker).is_pending(), "there was a second mark");
    assert_eq!((&mut flush).now_or_never(), Some(Ok(())));
}

#[test]
fn an_end_that_the_reader_does_not_wait_for_is_an_error_to_who_waits_for_it() {
    for given in [false, true] {
        let (mut output, response) = Output::channel();
        let mut body = response.into_response().into_body();
        if given {
            output.write("given").now_or_never().unwrap().unwrap();
            assert_eq!(poll(&mut body, Waker::noop()), Poll::Ready(Some("given".into())));
        }
        output.write("never given").now_or_never().unwrap().unwrap();
        let mut finish = Box::pin(output.finish());
        assert!((&mut finish).now_or_never().is_none());
        drop(body);
        assert!((&mut finish).now_or_never().unwrap().unwrap_err().is_closed(), "given: {given}");
    }
}

#[test]
fn a_shutdown_that_waits_is_polled_again_and_may_be_repeated() {
    let (mut output, response) = Output::channel();
    let mut body = response.into_response().into_body();
    output.write("all").now_or_never().unwrap().unwrap();
    let mut shutdown = Box::pin(output.shutdown());
    for _ in 0..2 {
        assert!((&mut shutdown).now_or_never().is_none());
    }
    assert_eq!(poll(&mut body, Waker::noop()), Poll::Ready(Some("all".into())));
    assert_eq!(poll(&mut body, Waker::noop()), Poll::Ready(None));
    shutdown.now_or_never().unwrap().unwrap();
    output.shutdown().now_or_never().unwrap().unwrap();
}
