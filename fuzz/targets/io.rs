//! The wrapped IO's account, whatever sizes its reads and writes have: pipelined requests through hyper, over an IO that
//! gives and takes a few bytes at a time, or none, or fails.
//!
//! The first byte says how many requests come and what ends them; the others are the sizes.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_epilogue::{Epilogue, EventKind, TrackedIo};

const PATHS: [&str; 4] = ["/small", "/stream", "/large", "/empty"];
const LARGE: usize = 50_000;

/// The next size: none left is "as much as there is".
#[derive(Default)]
struct Sizes {
    bytes: Vec<u8>,
    at: usize,
}

impl Sizes {
    fn next(&mut self) -> usize {
        let size = self.bytes.get(self.at).copied().map_or(usize::MAX, usize::from);
        self.at += 1;
        // Sizes around hyper's buffers, too.
        if (0xf0..=0xff).contains(&size) { size * 97 } else { size }
    }
}

#[derive(Default)]
struct Account {
    written: AtomicUsize,
    at_flush: AtomicUsize,
    failed: AtomicBool,
}

struct Choppy {
    input: Vec<u8>,
    read: usize,
    output: Arc<Mutex<Vec<u8>>>,
    reads: Sizes,
    writes: Sizes,
    /// A write of this number fails.
    fails_at: Option<usize>,
    account: Arc<Account>,
}

impl Choppy {
    fn write(&mut self, cx: &Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.fails_at.is_some_and(|at| self.writes.at >= at) {
            self.account.failed.store(true, Ordering::SeqCst);
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let size = self.writes.next().min(bytes.len());
        if size == 0 && !bytes.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.output.lock().unwrap().extend_from_slice(&bytes[..size]);
        self.account.written.fetch_add(size, Ordering::SeqCst);
        Poll::Ready(Ok(size))
    }
}

impl AsyncRead for Choppy {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = self.input.len() - self.read;
        if left == 0 {
            // The client waits for its responses, and the last one closes.
            return Poll::Pending;
        }
        let size = self.reads.next().min(left).min(buf.remaining());
        if size == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let from = self.read;
        buf.put_slice(&self.input[from..from + size]);
        self.read += size;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.account.at_flush.store(self.account.written.load(Ordering::SeqCst), Ordering::SeqCst);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn app() -> Router {
    let stream = || {
        let frames =
            ["one ", "two ", "three"].map(|text| Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(text))));
        Body::new(http_body_util::StreamBody::new(Frames(frames.into_iter().collect())))
    };
    Router::new()
        .route("/small", get(async || "small"))
        .route("/stream", get(async move || stream()))
        .route("/large", get(async || "#".repeat(LARGE)))
        .route("/empty", get(async || ()))
}

struct Frames<T>(std::collections::VecDeque<T>);

impl<T: Unpin> futures_util::Stream for Frames<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<T>> {
        Poll::Ready(self.0.pop_front())
    }
}

pub(crate) fn run(data: &[u8]) {
    let Some((&first, sizes)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("a runtime").block_on(serve(first, sizes));
}

async fn serve(first: u8, sizes: &[u8]) {
    let requests = usize::from(first & 0b111) + 1;
    let fails_at = (first & 0b1000 != 0).then_some(usize::from(first >> 4));
    let (reads, writes) = sizes.split_at(sizes.len() / 2);
    let paths: Vec<_> = (0..requests).map(|number| PATHS[(number + usize::from(first >> 4)) % PATHS.len()]).collect();
    let mut input = String::new();
    for (number, path) in paths.iter().enumerate() {
        let close = if number + 1 == requests { "connection: close\r\n" } else { "" };
        input.push_str(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n{close}\r\n"));
    }
    let (output, account) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Account>::default());
    let io = TrackedIo::new(Choppy {
        input: input.into_bytes(),
        read: 0,
        output: output.clone(),
        reads: Sizes { bytes: reads.to_vec(), at: 0 },
        writes: Sizes { bytes: writes.to_vec(), at: 0 },
        fails_at,
        account: account.clone(),
    });
    let connection = io.connection().clone();
    let (flushed, ended) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let epilogue = {
        let (flushed, ended) = (flushed.clone(), ended.clone());
        let listener = move |event: &tower_epilogue::Event| match event.kind() {
            EventKind::Flushed { .. } => drop(flushed.fetch_add(1, Ordering::SeqCst)),
            EventKind::Ended => drop(ended.fetch_add(1, Ordering::SeqCst)),
            _ => {}
        };
        Epilogue::builder().on_event(listener).build()
    };
    let service = TowerToHyperService::new(epilogue.wrap(&io, app()));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
    let result = tokio::time::timeout(Duration::from_secs(20), served).await.expect("it hangs");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }

    let failed = account.failed.load(Ordering::SeqCst);
    assert_eq!(result.is_err(), failed, "{result:?}");
    // Every byte that the IO took is in the account, and no other.
    assert_eq!(connection.written(), account.written.load(Ordering::SeqCst) as u64);
    assert_eq!(connection.client_left(), failed);
    let output = output.lock().unwrap();
    let heads = output.windows(12).filter(|bytes| *bytes == b"HTTP/1.1 200").count();
    let (flushed, ended) = (flushed.load(Ordering::SeqCst), ended.load(Ordering::SeqCst));
    if failed {
        assert!(flushed <= heads, "flushed {flushed} of {heads} that were begun");
    } else {
        assert_eq!((heads, flushed, ended), (requests, requests, requests));
        assert_eq!(account.at_flush.load(Ordering::SeqCst), output.len(), "bytes behind the last flush");
        let large = paths.iter().filter(|path| **path == "/large").count();
        assert_eq!(output.iter().filter(|byte| **byte == b'#').count(), large * LARGE);
    }
}
