//! Responses of every shape, from a server with a runtime of its own, whose continuations tell what the connection had
//! written when they began; and clients that know at which byte of their connection each response ended.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
};
use tower_epilogue::{Connection, Continuation, Epilogue, Tracking};

use crate::{common::serve_one, support::soon};

/// What one continuation saw when it began.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub id: u64,
    /// The bytes that the kernel had.
    pub written: u64,
    /// The bytes that the client had read.
    pub read: u64,
}

/// A server on threads of its own.
pub struct OwnServer {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl OwnServer {
    /// With so many workers, or on one thread that also drives the IO; with send buffers of that size, if given.
    pub fn start(workers: Option<usize>, send_buffer: Option<u32>, app: Router) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let mut builder = match workers {
            Some(_) => tokio::runtime::Builder::new_multi_thread(),
            None => tokio::runtime::Builder::new_current_thread(),
        };
        builder.enable_all().worker_threads(workers.unwrap_or(1));
        let serve = async move {
            let socket = TcpSocket::new_v4().unwrap();
            if let Some(size) = send_buffer {
                // Accepted sockets inherit it.
                socket.set_send_buffer_size(size).unwrap();
            }
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let listener = socket.listen(1024).unwrap();
            tell.send(listener.local_addr().unwrap()).unwrap();
            let (epilogue, tracking) = (Epilogue::new(), Tracking::new());
            loop {
                let (io, _) = listener.accept().await.unwrap();
                drop(serve_one(&epilogue, io, &tracking, app.clone()));
            }
        };
        let thread = std::thread::spawn(move || {
            let runtime = builder.build().unwrap();
            // On a worker, as everything that it starts.
            let serving = runtime.spawn(serve);
            let _ = runtime.block_on(stopped);
            serving.abort();
            runtime.shutdown_background();
        });
        Self { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// A kind of response: its name in the path, and the request's method.
pub type Shape = (&'static str, &'static str);

pub const SHAPES: [Shape; 12] = [
    ("small", "GET"),
    ("piece", "GET"),
    ("chunked", "GET"),
    ("declared", "GET"),
    ("trailers", "GET"),
    ("small", "HEAD"),
    ("chunked", "HEAD"),
    ("204", "GET"),
    ("304", "GET"),
    ("empty", "GET"),
    ("slow", "GET"),
    ("nothing", "GET"),
];

pub fn is_bodiless((name, method): Shape) -> bool {
    method == "HEAD" || matches!(name, "204" | "304")
}

const TEN_MB: usize = 10_000_000;

fn respond(shape: &str) -> Response {
    let parts = |count, size| {
        let bytes = Bytes::from(vec![b'x'; size]);
        stream::iter(std::iter::repeat_n(bytes, count)).map(Ok::<_, io::Error>)
    };
    match shape {
        "small" => "small".into_response(),
        "piece" => vec![b'x'; 100_000].into_response(),
        "ten" => vec![b'x'; TEN_MB].into_response(),
        "ten-in-parts" => Body::from_stream(parts(TEN_MB / 10_000, 10_000)).into_response(),
        "chunked" => Body::from_stream(parts(5, 3_000)).into_response(),
        "declared" => ([(header::CONTENT_LENGTH, "15000")], Body::from_stream(parts(5, 3_000))).into_response(),
        // Several small chunks, each a turn of the scheduler later.
        "slow" => {
            let parts = parts(8, 10).then(|part| async {
                tokio::task::yield_now().await;
                part
            });
            Body::from_stream(parts).into_response()
        }
        "trailers" => {
            let trailers =
                HeaderMap::from_iter([(header::HeaderName::from_static("x-end"), HeaderValue::from_static("1"))]);
            let end = stream::iter([Ok(Frame::trailers(trailers))]);
            let body = Body::new(StreamBody::new(parts(3, 50).map(|part| part.map(Frame::data)).chain(end)));
            ([(header::TRAILER, "x-end")], body).into_response()
        }
        "204" => StatusCode::NO_CONTENT.into_response(),
        "304" => StatusCode::NOT_MODIFIED.into_response(),
        "empty" => ().into_response(),
        // Of unknown length, and then there is nothing.
        "nothing" => Body::from_stream(parts(0, 0)).into_response(),
        _ => unreachable!("there is no shape {shape}"),
    }
}

/// The starts of all continuations of an [`app`].
pub type Starts = mpsc::UnboundedReceiver<Start>;

/// Answers `/SHAPE/ID`. `read` is the account of the one client that is watched, if any.
pub fn app(read: Arc<AtomicU64>) -> (Router, Starts) {
    let (starts, started) = mpsc::unbounded_channel();
    let handler = async move |Path((shape, id)): Path<(String, u64)>, Extension(connection): Extension<Connection>| {
        let continuation = Continuation::new(async move {
            let (written, read) = (connection.written(), read.load(Ordering::SeqCst));
            starts.send(Start { id, written, read }).unwrap();
        });
        (continuation, respond(&shape))
    };
    (Router::new().route("/{shape}/{id}", any(handler)), started)
}

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Fast,
    /// With a small window, little at a time, and something else in between.
    Slow,
}

impl Pace {
    pub async fn connect(self, address: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        if self == Self::Slow {
            socket.set_recv_buffer_size(32 * 1024).unwrap();
        }
        let stream = socket.connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// For servers of slow clients.
    pub fn send_buffer(self) -> Option<u32> {
        (self == Self::Slow).then_some(32 * 1024)
    }

    pub fn at_most(self) -> usize {
        match self {
            Self::Fast => 64 * 1024,
            Self::Slow => 4 * 1024,
        }
    }

    pub async fn pause(self) {
        if self == Self::Slow {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// An HTTP/1 client that counts.
pub struct Counting {
    pub stream: TcpStream,
    pub pace: Pace,
    buffer: Vec<u8>,
    /// The bytes that were read and passed over.
    pub count: u64,
}

impl Counting {
    pub async fn connect(address: SocketAddr, pace: Pace) -> Self {
        Self { stream: pace.connect(address).await, pace, buffer: Vec::new(), count: 0 }
    }

    pub async fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn fill(&mut self) -> usize {
        self.pace.pause().await;
        let filled = self.buffer.len();
        self.buffer.resize(filled + self.pace.at_most(), 0);
        let read = soon("more of a response", self.stream.read(&mut self.buffer[filled..])).await.unwrap();
        self.buffer.truncate(filled + read);
        read
    }

    async fn skip(&mut self, mut length: usize) {
        loop {
            let now = length.min(self.buffer.len());
            self.buffer.drain(..now);
            self.count += now as u64;
            length -= now;
            if length == 0 {
                return;
            }
            assert!(self.fill().await > 0, "closed early");
        }
    }

    /// The text up to `marker`, which is passed over too.
    async fn up_to(&mut self, marker: &str) -> String {
        loop {
            let place = self.buffer.windows(marker.len()).position(|window| window == marker.as_bytes());
            if let Some(place) = place {
                let text = String::from_utf8_lossy(&self.buffer[..place]).to_lowercase();
                self.skip(place + marker.len()).await;
                return text;
            }
            assert!(self.fill().await > 0, "closed early");
        }
    }

    /// Reads one response; gives the place in the connection where it ended.
    pub async fn response(&mut self, bodiless: bool) -> u64 {
        let head = self.up_to("\r\n\r\n").await;
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        assert!(["200", "204", "304"].map(|status| format!(" {status} ")).iter().any(|status| head.contains(status)));
        if bodiless {
            return self.count;
        }
        if header("transfer-encoding").is_some() {
            while usize::from_str_radix(&self.up_to("\r\n").await, 16).unwrap() != 0 {
                self.up_to("x\r\n").await;
            }
            // Trailers, and an empty line.
            while !self.up_to("\r\n").await.is_empty() {}
        } else if let Some(length) = header("content-length") {
            self.skip(length.parse().unwrap()).await;
        } else {
            self.rest().await;
        }
        self.count
    }

    /// Reads to the end of the connection.
    pub async fn rest(&mut self) -> u64 {
        loop {
            self.skip(self.buffer.len()).await;
            if self.fill().await == 0 {
                return self.count;
            }
        }
    }
}
