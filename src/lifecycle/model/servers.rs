//! What hyper and h2 do with a connection, as far as a request can tell.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use axum_core::{body::Body, response::Response};
use bytes::Bytes;
use http_body::Body as _;
use loom::thread;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{END, HEAD, Notes, Scene, Socket, Wire};
use crate::{
    connection::TrackedIo,
    sync::{AtomicBool, AtomicWaker, Mutex, block_on},
};

type Io = TrackedIo<Socket>;

/// Whether there is nothing to read: else the client's side is not open any more, or, on HTTP/2, its stream is reset.
fn reads(io: &mut Io, cx: &mut Context<'_>) -> bool {
    let mut room = [0; 1];
    Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending()
}

fn writes(io: &mut Io, bytes: &[u8], cx: &mut Context<'_>) -> bool {
    matches!(Pin::new(io).poll_write(cx, bytes), Poll::Ready(Ok(_)))
}

fn flushes(io: &mut Io, cx: &mut Context<'_>) -> bool {
    matches!(Pin::new(io).poll_flush(cx), Poll::Ready(Ok(())))
}

enum At<F> {
    Handling(Pin<Box<F>>),
    Sending(Body),
    /// All of it was written and flushed.
    Over,
}

/// hyper's HTTP/1: one task reads, polls the handler, then the body, drops it, writes the end, flushes.
pub(super) async fn http1<F, E>(mut io: Io, future: F, notes: &Notes, killed: bool)
where
    F: Future<Output = Result<Response, E>>,
{
    let mut at = At::Handling(Box::pin(future));
    let mut turns = 0;
    poll_fn(|cx| {
        // Killed between two turns, at whatever the first one came to.
        turns += 1;
        if killed && turns > 1 {
            return Poll::Ready(());
        }
        if !reads(&mut io, cx) {
            return Poll::Ready(());
        }
        loop {
            match &mut at {
                At::Handling(future) => {
                    let Poll::Ready(response) = future.as_mut().poll(cx) else { break };
                    let Ok(response) = response else { return Poll::Ready(()) };
                    at = At::Sending(response.into_body());
                    if !writes(&mut io, HEAD, cx) {
                        return Poll::Ready(());
                    }
                }
                At::Sending(body) => {
                    let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) else { break };
                    let written = match frame {
                        Some(Ok(frame)) => frame.into_data().is_ok_and(|data| writes(&mut io, &data, cx)),
                        Some(Err(_)) => false,
                        None => {
                            at = At::Over;
                            writes(&mut io, END, cx)
                        }
                    };
                    if !written {
                        return Poll::Ready(());
                    }
                }
                At::Over => break,
            }
        }
        if !flushes(&mut io, cx) {
            return Poll::Ready(());
        }
        if killed {
            cx.waker().wake_by_ref();
        } else if matches!(at, At::Over) && notes.count("second hook") == 1 {
            // Idle: it closes in order.
            return Pin::new(&mut io).poll_shutdown(cx).map(|_| ());
        }
        Poll::Pending
    })
    .await;
    drop(at);
    drop(io);
}

/// What a stream's task has given to its connection's.
#[derive(Default)]
struct Queue {
    /// Under a lock of the model's, as h2 has one around its streams: what is queued after a turn's writes comes after the
    /// turn's begin.
    frames: Mutex<VecDeque<(Option<Bytes>, bool)>>,
    /// The stream is: nothing more is queued.
    reset: AtomicBool,
    over: AtomicBool,
    gone: AtomicBool,
    connection: AtomicWaker,
}

/// hyper's and h2's HTTP/2: the stream's task queues frames, the connection's writes them when it has read all there is.
pub(super) fn http2<F, E>(mut io: Io, future: F, wire: &Wire, notes: &Notes, scene: Scene)
where
    F: Future<Output = Result<Response, E>> + Send + 'static,
    E: 'static,
{
    let queue = Arc::new(Queue::default());
    let stream = {
        let (queue, wire) = (queue.clone(), wire.clone());
        thread::spawn(move || {
            block_on(stream(future, &queue, &wire));
            queue.over.store(true, Ordering::Release);
            queue.connection.wake();
        })
    };
    let killed = scene.killed;
    let mut turns = 0;
    block_on(poll_fn(|cx| {
        turns += 1;
        if killed && turns > 1 {
            return Poll::Ready(());
        }
        queue.connection.register(cx.waker());
        if scene.leaves && turns == scene.turn {
            wire.leave();
        }
        while !reads(&mut io, cx) {
            // RST_STREAM: what is queued for the stream goes nowhere, and nor does what comes later.
            let mut frames = queue.frames.lock().unwrap();
            frames.clear();
            queue.reset.store(true, Ordering::Release);
            wire.0.stream.wake();
        }
        loop {
            let frame = queue.frames.lock().unwrap().pop_front();
            let Some((frame, ends)) = frame else { break };
            // The chunk is dropped when it was written.
            let chunk = frame.as_deref().unwrap_or_default();
            writes(&mut io, &[chunk, if ends { END } else { &[] }].concat(), cx);
        }
        flushes(&mut io, cx);
        if killed {
            cx.waker().wake_by_ref();
        } else if queue.over.load(Ordering::Acquire) && notes.count("second hook") == 1 {
            return Pin::new(&mut io).poll_shutdown(cx).map(|_| ());
        }
        Poll::Pending
    }));
    drop(io);
    // A connection that goes drops what its streams wait for.
    queue.gone.store(true, Ordering::Release);
    wire.0.stream.wake();
    stream.join().unwrap();
    queue.frames.lock().unwrap().clear();
}

async fn stream<F, E>(future: F, queue: &Queue, wire: &Wire)
where
    F: Future<Output = Result<Response, E>>,
{
    let send = |frame: Option<Bytes>, ends: bool| {
        let mut frames = queue.frames.lock().unwrap();
        let sent = !queue.reset.load(Ordering::Acquire);
        if sent {
            frames.push_back((frame, ends));
        }
        drop(frames);
        queue.connection.wake();
        sent
    };
    let mut at = At::Handling(Box::pin(future));
    poll_fn(|cx| {
        wire.0.stream.register(cx.waker());
        loop {
            let reset = || queue.reset.load(Ordering::Acquire) || queue.gone.load(Ordering::Acquire);
            match &mut at {
                At::Handling(future) => {
                    let Poll::Ready(response) = future.as_mut().poll(cx) else {
                        return if reset() { Poll::Ready(()) } else { Poll::Pending };
                    };
                    let Ok(response) = response else { return Poll::Ready(()) };
                    assert!(!response.body().is_end_stream());
                    if !send(Some(Bytes::from_static(HEAD)), false) {
                        return Poll::Ready(());
                    }
                    at = At::Sending(response.into_body());
                }
                At::Sending(_) if reset() => return Poll::Ready(()),
                At::Sending(body) => {
                    let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { return Poll::Pending };
                    match frame {
                        Some(Ok(frame)) => {
                            let ends = body.is_end_stream();
                            if !send(frame.into_data().ok(), ends) || ends {
                                // It lets go of the body here.
                                return Poll::Ready(());
                            }
                        }
                        Some(Err(_)) => return Poll::Ready(()),
                        None => {
                            send(None, true);
                            return Poll::Ready(());
                        }
                    }
                }
                At::Over => return Poll::Ready(()),
            }
        }
    })
    .await;
    drop(at);
}
