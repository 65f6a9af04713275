//! The wakers of those who wait: somebody else's, and kept no longer than they wait.

use std::{
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    thread,
};

use axum::{body::Body, response::IntoResponse};
use http_body_util::BodyExt;
use tower_epilogue::Output;

use crate::support::PATIENCE;

fn poll<F: Future>(future: F, waker: &Waker) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(waker))
}

fn channel() -> (Output, Body) {
    let (output, response) = Output::channel();
    (output, response.into_response().into_body())
}

/// As that of an executor whose tasks live as long as their wakers: what such a task holds ends with it.
struct Asks(Arc<Output>);

impl Wake for Asks {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Asks {
    fn drop(&mut self) {
        let _ = self.0.is_closed();
    }
}

/// Contract rule 11.
#[test]
fn a_waker_that_is_let_go_can_use_the_output() {
    let (answered, answer) = mpsc::channel();
    thread::spawn(move || {
        let (output, mut body) = channel();
        let output = Arc::new(output);
        for _ in 0..2 {
            let waker = Waker::from(Arc::new(Asks(output.clone())));
            assert!(poll(body.frame(), &waker).is_pending());
        }
        drop(body);
        answered.send(Arc::strong_count(&output)).unwrap();
    });
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(1), "and is not kept");
}

struct Nobody;

impl Wake for Nobody {
    fn wake(self: Arc<Self>) {}
}

#[test]
fn neither_side_keeps_the_waker_of_the_other_that_is_gone() {
    let nobody = Arc::new(Nobody);
    let waker = Waker::from(nobody.clone());

    let (output, mut body) = channel();
    assert!(poll(body.frame(), &waker).is_pending());
    drop(body);
    assert_eq!(Arc::strong_count(&nobody), 2, "the reader's");
    drop(output);

    let (mut output, body) = channel();
    assert!(poll(output.write("written"), &waker).is_ready());
    assert!(poll(output.flush(), &waker).is_pending());
    drop(output);
    assert_eq!(Arc::strong_count(&nobody), 2, "the writer's");
    drop(body);
}
