//! The state machine and the flush signal, in every order that its threads can take (`tests/loom`).
//!
//! The code is the real one, from the request's service down to the wrapped IO; only the server is a model of hyper's: one
//! task for an HTTP/1 connection, one for an HTTP/2 connection and one for its stream. Beside it a client leaves, a limit or
//! a drain's deadline passes, and the task that brings the request to its end runs, each on a thread of its own.
//!
//! Orders with up to `bound` preemptions are tried, all of them (`LOOM_MAX_PREEMPTIONS` in the environment sets another
//! bound): a thread that waits, or ends, gives way for free.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{Arc, Mutex as StdMutex, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use axum_core::body::Body;
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body as _, Frame, SizeHint};
use loom::thread;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Home, Lifecycle, Phase, begin, word};
use crate::{
    connection::{TrackedIo, Tracking},
    continuation::Continuation,
    pool::{Pool, Settings},
    status::{ConnectionStatus, Sent},
    sync::{AtomicBool, AtomicWaker, block_on, join_all},
};

mod attempts;
mod notes;
mod scenes;
mod servers;

use self::{
    attempts::Attempts,
    notes::{Dropped, Notes},
};

/// What the handler does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handler {
    /// Answers at once.
    Returns,
    /// Waits once before it answers.
    Waits,
    /// Never answers by itself.
    Hangs,
    /// Lets its answer leave, and goes on.
    Finishes,
}

#[derive(Clone, Copy)]
struct Scene {
    version: Version,
    handler: Handler,
    attempts: Attempts,
    /// The length of its body is known.
    known: bool,
    ignores: bool,
    /// The client closes its side (HTTP/1), or resets the stream (HTTP/2).
    leaves: bool,
    /// HTTP/2: with the server's turn of this number.
    turn: usize,
    /// The limit passes, or a drain's deadline, which is the same to a request.
    limit: bool,
    /// The connection's task is dropped by its owner instead of served to the end.
    killed: bool,
    bound: usize,
}

impl Scene {
    const HTTP1: Self = Self {
        version: Version::HTTP_11,
        handler: Handler::Returns,
        attempts: Attempts::One,
        known: false,
        ignores: false,
        leaves: false,
        turn: 1,
        limit: false,
        killed: false,
        bound: 1,
    };
    const HTTP2: Self = Self { version: Version::HTTP_2, ..Self::HTTP1 };
}

/// What the client does, and what the kernel has.
#[derive(Clone)]
struct Wire(Arc<Ends>);

#[derive(Default)]
struct Ends {
    left: AtomicBool,
    /// HTTP/2: that was read.
    told: AtomicBool,
    reader: AtomicWaker,
    /// HTTP/2: the stream's own task.
    stream: AtomicWaker,
    /// The bytes written, and those flushed.
    bytes: StdMutex<(usize, usize)>,
}

impl Wire {
    fn leave(&self) {
        self.0.left.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.stream.wake();
    }

    fn has_left(&self) -> bool {
        self.0.left.load(Ordering::Acquire)
    }

    /// Whether all of the response was flushed.
    fn is_flushed(&self) -> bool {
        self.0.bytes.lock().unwrap().1 >= WHOLE
    }
}

/// The socket. On HTTP/2 the client's reset is a frame, here of one byte.
struct Socket {
    wire: Wire,
    http2: bool,
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.wire.0.reader.register(cx.waker());
        if !self.wire.has_left() || self.wire.0.told.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        if self.http2 {
            self.wire.0.told.store(true, Ordering::Release);
            buf.put_slice(b"r");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.wire.0.bytes.lock().unwrap().0 += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.wire.0.bytes.lock().unwrap();
        bytes.1 = bytes.0;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A body in one frame, which notes how far it came.
struct Streamed {
    left: usize,
    /// Its length is known, and so is its end.
    known: bool,
    _dropped: Dropped,
}

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(CHUNK)))))
    }

    fn is_end_stream(&self) -> bool {
        self.known && self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.known { SizeHint::with_exact((self.left * CHUNK.len()) as u64) } else { SizeHint::default() }
    }
}

/// It has begun, in a task, when hooks ran.
const LATE: &str = "late";
const CHUNK: &[u8] = b"chunk";
/// The model's own framing: a head, a frame's header, the end of a stream.
const HEAD: &[u8] = b"head";
const END: &[u8] = b"end";
const WHOLE: usize = HEAD.len() + CHUNK.len() + END.len();

async fn wait_once() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

type Answer = Result<Response<Body>, Infallible>;

impl Scene {
    fn http2(self) -> bool {
        self.version == Version::HTTP_2
    }

    fn body(self, notes: &Notes) -> Body {
        Body::new(Streamed { left: 1, known: self.known, _dropped: Dropped(notes.clone(), "body dropped") })
    }

    /// The handler's future, with its continuation.
    fn handler(self, notes: Notes, lifecycle: Lifecycle, wire: Wire) -> attempts::Handler {
        let over = |notes: &Notes| Dropped(notes.clone(), "handler over");
        // One of several may be thrown away before it begins.
        let dropped = (self.attempts == Attempts::One).then(|| over(&notes));
        Box::pin(async move {
            let _dropped = dropped.unwrap_or_else(|| over(&notes));
            if lifecycle.phase() >= Phase::Ending {
                notes.add(LATE);
            }
            match self.handler {
                Handler::Returns => {}
                Handler::Waits => wait_once().await,
                Handler::Hangs => std::future::pending().await,
                Handler::Finishes => {
                    let sent = lifecycle.finish(Response::new(self.body(&notes))).await;
                    if let Ok(Sent::Flushed) = sent {
                        assert!(wire.is_flushed(), "`finish` resolved before the flush");
                    }
                }
            }
            let seen = (notes.clone(), lifecycle, wire);
            let work = Continuation::new(async move {
                let (notes, lifecycle, wire) = seen;
                notes.add("continuation");
                if notes.count(LATE) > 0 {
                    return;
                }
                check_sent(&lifecycle, &wire);
            });
            let mut response = Response::new(self.body(&notes));
            work.attach(&mut response);
            notes.add("returned");
            Ok(response)
        })
    }

    fn run(self) {
        let notes = Notes::default();
        let wire = Wire(Arc::default());
        let mut pool = Pool::default();
        pool.settings =
            Settings { patience: Duration::MAX, hook_limit: Duration::MAX, drain_deadline: None, slow_poll: None };
        let pool = Arc::new(pool);
        let tracking = Tracking::new().linger(None).write_stall(None);
        let io = TrackedIo::with(Socket { wire: wire.clone(), http2: self.http2() }, &tracking);
        let connection = io.connection().clone();
        let home = Arc::new(Home::new(pool.clone()));
        let mut request = Request::new(Body::empty());
        *request.version_mut() = self.version;
        let entered = begin(&home, &connection, &mut request);
        let lifecycle = entered.lifecycle();
        lifecycle.ignore_abort(self.ignores);
        for hook in ["first hook", "second hook"] {
            let (notes, wire, handle, connection) =
                (notes.clone(), wire.clone(), lifecycle.clone(), connection.clone());
            let ran = move |_| async move {
                check_sent(&handle, &wire);
                notes.add(hook);
                // The server of the model closes its connection after the last.
                connection.wake();
            };
            lifecycle.on_shutdown(ran).unwrap();
        }
        let (theirs, sight) = (notes.clone(), (lifecycle.clone(), wire.clone()));
        let extensions = request.extensions().clone();
        let handler = move || self.handler(theirs.clone(), sight.0.clone(), sight.1.clone());
        let future = entered.call(move || self.attempts.make(extensions, handler));

        // On HTTP/2 it is the connection's own task that reads the reset, beside the stream's.
        let client = (self.leaves && !self.http2()).then(|| {
            let wire = wire.clone();
            thread::spawn(move || wire.leave())
        });
        let limit = self.limit.then(|| {
            let shared = lifecycle.0.clone();
            thread::spawn(move || shared.time_out("the limit passed"))
        });
        if self.http2() {
            servers::http2(io, future, &wire, &notes, self);
        } else {
            block_on(servers::http1(io, future, &notes, self.killed));
        }
        for thread in client.into_iter().chain(limit) {
            thread.join().unwrap();
        }
        join_all();
        self.check(&notes, &lifecycle, &wire);
        assert_eq!((pool.running(), pool.lost(), pool.stragglers().len()), (0, 0, 0));
        assert!(format!("{connection:?}").contains("in_flight: 0"), "{connection:?}");
    }

    /// What must hold after every order.
    fn check(self, notes: &Notes, lifecycle: &Lifecycle, wire: &Wire) {
        let word = lifecycle.0.word();
        let all = notes.0.lock().unwrap().clone();
        let said = format!("{word:?}, {all:?}");
        assert_eq!(lifecycle.phase(), Phase::Ended, "{said}");
        let is_late = notes.count(LATE) > 0;
        // The body of one that came late may be in the hands of whoever runs it.
        let bodies = if is_late { 0 } else { word::PRODUCER | word::UNREAD };
        assert!(!word.has(word::HANDLER | word::CONTINUING | bodies), "{said}");
        // Rules 1 and 2: once each, in order, after handler and body; and the handler's continuation if it returned.
        for note in ["first hook", "second hook"] {
            assert_eq!(notes.count(note), 1, "{note}: {said}");
        }
        let (over, most) = (notes.count("handler over"), self.attempts.number());
        assert!(over == most || most > 1 && over < most, "{said}");
        assert!(!is_late || self.attempts == Attempts::Spawned, "{said}");
        let hook = notes.place("first hook");
        assert!(hook < notes.place("second hook"), "{said}");
        let last_handler = all.iter().rposition(|note| *note == "handler over");
        assert!(is_late || last_handler < hook, "{said}");
        // A body that waits for its reader has ended, for the contract, when the limit passes: its server drops it later. One of
        // known length is nothing that is waited for.
        let last_body = all.iter().rposition(|note| *note == "body dropped");
        let any_time = self.limit || self.known || is_late;
        assert!(any_time || last_body.is_none_or(|place| Some(place) < hook), "{said}");
        let returned = matches!(self.handler, Handler::Returns | Handler::Waits | Handler::Finishes);
        let undisturbed = !self.leaves && !self.limit && !self.killed;
        let (returns, ran) = (notes.count("returned"), notes.count("continuation"));
        assert!(ran <= returns, "{said}");
        let is_spared = undisturbed || (self.ignores && !self.limit && !self.killed);
        assert!(!is_spared || ran == returns, "{said}");
        assert!(!is_spared || !returned || returns > 0, "{said}");
        if ran > 0 && !is_late {
            assert!(notes.place("handler over") < notes.place("continuation"), "{said}");
            assert!(all.iter().rposition(|note| *note == "continuation") < hook, "{said}");
        }
        // Rule 3: no bit without its cause.
        let status = word.status();
        assert!(!status.is_aborted() || self.leaves, "{said}");
        assert!(!status.is_timeout() || self.limit, "{said}");
        // What became of the response.
        match word.sent() {
            Some(Sent::Flushed) => assert!(wire.is_flushed(), "flushed, and not on the wire: {said}"),
            Some(Sent::Aborted) => assert!(status.is_aborted(), "{said}"),
            Some(Sent::BrokenOff) => assert!(self.limit || self.killed, "{said}"),
            // On HTTP/2 nothing takes back an end that is queued.
            Some(Sent::GivenUp) | None if self.limit && self.http2() && status.is_timeout() => {}
            Some(Sent::GivenUp) | None => panic!("nobody knows what became of the response: {said}"),
        }
        if undisturbed {
            assert_eq!((word.sent(), status), (Some(Sent::Flushed), ConnectionStatus::NORMAL), "{said}");
        }
    }
}

/// Continuations and hooks run when the response's fate is known; and it was flushed only if all of it was.
fn check_sent(lifecycle: &Lifecycle, wire: &Wire) {
    match lifecycle.0.word().known_sent() {
        Some(Sent::Flushed) => assert!(wire.is_flushed(), "flushed, and not on the wire"),
        Some(_) => {}
        None => panic!("it runs before the response's fate is known"),
    }
}
