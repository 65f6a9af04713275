//! A client that misbehaves on demand.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
};
use tokio_util::either::Either;

use super::{TestResponse, response::Parser, soon};
use crate::epilogue::OpenConnections;

/// A client's end of a connection.
pub(super) type Wire = Either<TcpStream, DuplexStream>;

/// How many clients came and left, so that a server can be waited for until it has seen that.
#[derive(Debug, Default)]
pub(super) struct Presence {
    came: AtomicU64,
    left: AtomicU64,
}

impl Presence {
    pub(super) fn enter(self: &Arc<Self>) -> Present {
        self.came.fetch_add(1, Ordering::AcqRel);
        Present(self.clone())
    }

    /// Whether the server has accepted all that came, and let go of all that left.
    pub(super) fn is_seen(&self, open: &OpenConnections) -> bool {
        // What left is read first: who leaves after that is waited for the next time.
        let left = self.left.load(Ordering::Acquire);
        let came = self.came.load(Ordering::Acquire);
        let accepted = open.accepted();
        // Others may have connected to the socket than our clients.
        accepted >= came && open.len() as u64 <= accepted - left
    }
}

/// One client's presence.
#[derive(Debug)]
pub(super) struct Present(Arc<Presence>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::AcqRel);
    }
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Leave {
    /// It shuts its sending side (a FIN) and stays to read.
    Fin,
    /// It closes its socket; the system answers what is sent to it from then on with a reset.
    Close,
    /// It resets the connection (a RST). In memory, which knows no resets, it closes.
    Reset,
    /// It stays, silently: nothing is sent, nothing read, and nothing tells the server.
    Silence,
}

impl Leave {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fin, Self::Close, Self::Reset, Self::Silence];
}

/// One connection to a [`TestServer`](super::TestServer), and the bytes on it (HTTP/1).
///
/// # Panics
///
/// Its methods panic, and the test fails, when something that must happen does not within the server's patience, and
/// when a client that has closed its connection is used once more.
pub struct TestClient {
    /// `None` once it has closed.
    wire: Option<(Wire, Present)>,
    /// Bytes that have come and were not asked for yet.
    buffer: BytesMut,
    pace: Option<(usize, Duration)>,
    patience: Duration,
}

impl fmt::Debug for TestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestClient")
            .field("open", &self.wire.is_some())
            .field("unread", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl TestClient {
    pub(super) fn new(wire: Wire, patience: Duration, present: Present) -> Self {
        Self { wire: Some((wire, present)), buffer: BytesMut::new(), pace: None, patience }
    }

    #[track_caller]
    fn wire(&mut self) -> &mut Wire {
        match &mut self.wire {
            Some((wire, _)) => wire,
            None => panic!("this client has closed its connection"),
        }
    }

    // === sending ===

    /// Sends `bytes` as they are.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = soon(self.patience, "the server takes what is sent", "", async {
            let wire = self.wire();
            wire.write_all(bytes.as_ref()).await?;
            wire.flush().await
        });
        if let Err(error) = sent.await {
            panic!("nothing can be sent: {error}");
        }
    }

    /// The same, where the server may close meanwhile; says what became of it.
    ///
    /// # Errors
    ///
    /// The connection's own.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        soon(self.patience, "the server takes what is sent", "", self.wire().write_all(bytes.as_ref())).await
    }

    /// Asks for `path`.
    pub async fn send_get(&mut self, path: &str) {
        self.send(get(path)).await;
    }

    /// Posts `body` to `path`.
    pub async fn send_post(&mut self, path: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat()).await;
    }

    /// Asks for each of `paths`, all in one write, before any response is read: pipelining (RFC 9112, section 9.3.2).
    pub async fn pipeline(&mut self, paths: &[&str]) {
        self.send(paths.iter().map(|path| get(path)).collect::<String>()).await;
    }

    // === reading ===

    /// From now on reads at most `bytes` at a time, and waits for `pause` before each read. Makes a slow reader of a
    /// client whose connection is [narrow](super::TestServer::connect_narrow).
    pub fn read_slowly(&mut self, bytes: usize, pause: Duration) {
        self.pace = Some((bytes.max(1), pause));
    }

    /// Reads one response to its end, however that is marked (RFC 9112, section 6.3): by a length, by a last chunk, or by
    /// the end of the connection. The connection stays as it is, and so do the bytes behind the response.
    pub async fn response(&mut self) -> TestResponse {
        self.read_response(false).await
    }

    /// The same for a request with the method HEAD, whose response ends with its head.
    pub async fn response_to_head(&mut self) -> TestResponse {
        self.read_response(true).await
    }

    pub(super) async fn read_response(&mut self, bodiless: bool) -> TestResponse {
        let patience = self.patience;
        soon(patience, "a response comes", "", async {
            let parser = Parser { bodiless };
            loop {
                if let Some(response) = parser.parse(&mut self.buffer, None) {
                    return response;
                }
                let error = match self.fill().await {
                    Ok(0) => None,
                    Ok(_) => continue,
                    Err(error) => Some(error),
                };
                return match parser.parse(&mut self.buffer, Some(error)) {
                    Some(response) => response,
                    None => panic!("the connection ended before a response's head: {:?}", self.buffer),
                };
            }
        })
        .await
    }

    /// Reads exactly `count` bytes.
    pub async fn read(&mut self, count: usize) -> Bytes {
        let patience = self.patience;
        soon(patience, "the bytes come", "", async {
            while self.buffer.len() < count {
                match self.fill().await {
                    Ok(0) => panic!("the connection ended after {} of {count} bytes", self.buffer.len()),
                    Ok(_) => {}
                    Err(error) => panic!("the connection broke after {} of {count} bytes: {error}", self.buffer.len()),
                }
            }
        })
        .await;
        self.buffer.split_to(count).freeze()
    }

    /// Reads until `marker` has come, and everything before it; also what came along with it.
    pub async fn read_until(&mut self, marker: impl AsRef<[u8]>) -> Bytes {
        let (patience, marker) = (self.patience, marker.as_ref());
        soon(patience, "the marker comes", "", async {
            while !self.buffer.windows(marker.len().max(1)).any(|window| window == marker) {
                match self.fill().await {
                    Ok(0) => panic!("the connection ended before the marker: {:?}", self.buffer),
                    Ok(_) => {}
                    Err(error) => panic!("the connection broke before the marker: {error}, after {:?}", self.buffer),
                }
            }
        })
        .await;
        self.buffer.split().freeze()
    }

    /// Reads to the end of the connection: what came, and the error that it ended with, if it did (a reset, for
    /// example).
    pub async fn read_to_end(&mut self) -> (Bytes, Option<io::Error>) {
        let patience = self.patience;
        let error = soon(patience, "the server closes the connection", "", async {
            loop {
                match self.fill().await {
                    Ok(0) => return None,
                    Ok(_) => {}
                    Err(error) => return Some(error),
                }
            }
        })
        .await;
        (self.buffer.split().freeze(), error)
    }

    async fn fill(&mut self) -> io::Result<usize> {
        let (most, pause) = self.pace.unwrap_or((64 * 1024, Duration::ZERO));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let Some((wire, _)) = &mut self.wire else {
            panic!("this client has closed its connection");
        };
        wire.take(most as u64).read_buf(&mut self.buffer).await
    }

    // === leaving ===

    /// Sends the first `count` bytes of `request`, and leaves.
    pub async fn stop_request_at(&mut self, request: impl AsRef<[u8]>, count: usize, how: Leave) {
        let request = request.as_ref();
        self.send(&request[..count.min(request.len())]).await;
        self.leave(how).await;
    }

    /// Reads the first `count` bytes of what comes, and leaves.
    pub async fn stop_response_at(&mut self, count: usize, how: Leave) -> Bytes {
        let read = self.read(count).await;
        self.leave(how).await;
        read
    }

    /// Leaves.
    pub async fn leave(&mut self, how: Leave) {
        match how {
            Leave::Fin => self.half_close().await,
            Leave::Close => self.wire = None,
            Leave::Reset => {
                if let Some((Either::Left(stream), _)) = &self.wire {
                    // Closed with bytes that it will not wait for: the system sends a reset.
                    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
                        panic!("the connection cannot be reset: {error}");
                    }
                }
                self.wire = None;
            }
            Leave::Silence => {}
        }
    }

    /// Shuts its sending side (a FIN), and stays to read.
    pub async fn half_close(&mut self) {
        if let Err(error) = self.wire().shutdown().await {
            panic!("the sending side cannot be shut: {error}");
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}
