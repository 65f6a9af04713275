//! A client that misbehaves on demand.

use std::{fmt, future::Future, io, panic::Location, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_util::either::Either;

use super::{Journal, Line, Shown, TestResponse, in_time, presence::Present, response::Parser};
use crate::connection::MemoryClient;

/// A client's end of a connection.
pub(super) type Wire = Either<TcpStream, MemoryClient>;

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Leave {
    /// It shuts down its sending side (a FIN), and can still read.
    Fin,
    /// It closes its socket; from then on, the system answers what is sent to it with a reset. On Linux, if it has
    /// received bytes that it has not read, closing resets the connection at once.
    Close,
    /// It resets the connection (a RST). In memory it closes.
    Reset,
    /// It stays connected and silent: it sends and reads nothing, and the server is not told.
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
/// Its methods panic, and the test fails, if something that must happen does not happen within the server's
/// [patience](super::TestServerBuilder::patience), or if a client is used after it has closed its connection. The message names the
/// line of the test, the bytes received but not read by the test, and what has happened to the server's requests.
pub struct TestClient {
    /// `None` once it has closed.
    wire: Option<(Wire, Present)>,
    /// Bytes that have come and were not asked for yet.
    buffer: BytesMut,
    pace: Option<(usize, Duration)>,
    patience: Duration,
    /// For the message of a test that fails.
    journal: Journal,
}

impl fmt::Debug for TestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestClient")
            .field("open", &self.wire.is_some())
            .field("unread", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

/// What became of something that must happen: `None` if it has not, or else why it cannot.
type Outcome<T> = Option<Result<T, String>>;

impl TestClient {
    pub(super) fn new(wire: Wire, patience: Duration, present: Present, journal: Journal) -> Self {
        Self { wire: Some((wire, present)), buffer: BytesMut::new(), pace: None, patience, journal }
    }

    /// What came of it, or the failure of the test.
    fn must<T>(&self, line: Line, what: &str, outcome: Outcome<T>) -> T {
        match outcome {
            Some(Ok(output)) => output,
            Some(Err(why)) => self.fail(line, &why),
            None => self.fail(line, &format!("it did not happen within {:?}: {what}", self.patience)),
        }
    }

    fn fail(&self, line: Line, what: &str) -> ! {
        let (came, journal) = (Shown(&self.buffer), &self.journal);
        panic!("{what}\n  in the test at {line}; what has come and was not asked for: {came}\n{journal}")
    }

    fn wire(&mut self) -> Result<&mut Wire, String> {
        match &mut self.wire {
            Some((wire, _)) => Ok(wire),
            None => Err("this client has closed its connection".to_owned()),
        }
    }

    // === sending ===

    /// Sends `bytes` as they are: those of a whole [request](super::request_bytes), or of a part of one.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        let line = Location::caller();
        self.send_from(line, bytes)
    }

    pub(super) async fn send_from(&mut self, line: Line, bytes: impl AsRef<[u8]>) {
        let sent = in_time(self.patience, async {
            let wire = self.wire()?;
            let sent = async {
                wire.write_all(bytes.as_ref()).await?;
                wire.flush().await
            };
            sent.await.map_err(|error: io::Error| format!("nothing can be sent: {error}"))
        });
        let sent = sent.await;
        self.must(line, "the server takes what is sent", sent);
    }

    /// The same, if the server may close the connection meanwhile; returns the result.
    ///
    /// # Errors
    ///
    /// The connection's own.
    #[track_caller]
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> impl Future<Output = io::Result<()>> {
        let line = Location::caller();
        async move {
            let sent = in_time(self.patience, async { Ok(self.wire()?.write_all(bytes.as_ref()).await) }).await;
            self.must(line, "the server takes what is sent", sent)
        }
    }

    /// Sends a GET for `path`.
    #[track_caller]
    pub fn send_get(&mut self, path: &str) -> impl Future<Output = ()> {
        self.send(get(path))
    }

    /// Sends a POST of `body` to `path`, without a `Content-Type`. `Json` and `Form` require one: for those, and for
    /// other headers, [`send`](Self::send) the result of [`request_bytes`](super::request_bytes).
    #[track_caller]
    pub fn send_post(&mut self, path: &str, body: impl AsRef<[u8]>) -> impl Future<Output = ()> {
        let body = body.as_ref();
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat())
    }

    /// Sends a GET for each of `paths` in one write, before any response is read: pipelining (RFC 9112, section
    /// 9.3.2).
    #[track_caller]
    pub fn pipeline(&mut self, paths: &[&str]) -> impl Future<Output = ()> {
        self.send(paths.iter().map(|path| get(path)).collect::<String>())
    }

    // === reading ===

    /// From now on reads at most `bytes` at a time, and waits for `pause` before each read. Makes a slow reader of a
    /// client whose connection is [narrow](super::TestServer::connect_narrow).
    pub fn read_slowly(&mut self, bytes: usize, pause: Duration) {
        self.pace = Some((bytes.max(1), pause));
    }

    /// Reads one response to its end, however that is marked (RFC 9112, section 6.3): by a length, by a last chunk,
    /// or by the end of the connection. The connection stays open, and bytes after the response stay unread.
    ///
    /// An informational response, such as the 100 for a request with `Expect: 100-continue`, is a response of its
    /// own. For the response to a HEAD or a successful CONNECT, use [`response_to_head`](Self::response_to_head).
    #[track_caller]
    pub fn response(&mut self) -> impl Future<Output = TestResponse> {
        self.read_response(Location::caller(), false)
    }

    /// The same for a request with the method HEAD, or CONNECT, whose response ends with its head.
    #[track_caller]
    pub fn response_to_head(&mut self) -> impl Future<Output = TestResponse> {
        self.read_response(Location::caller(), true)
    }

    pub(super) async fn read_response(&mut self, line: Line, bodiless: bool) -> TestResponse {
        let read = in_time(self.patience, self.parse_response(bodiless)).await;
        self.must(line, "a response comes", read)
    }

    async fn parse_response(&mut self, bodiless: bool) -> Result<TestResponse, String> {
        let mut parser = Parser::new(bodiless);
        loop {
            if let Some(response) = parser.parse(&mut self.buffer, None)? {
                return Ok(response);
            }
            let error = match self.fill(usize::MAX).await? {
                Ok(0) => None,
                Ok(_) => continue,
                Err(error) => Some(error),
            };
            let response = parser.parse(&mut self.buffer, Some(error))?;
            return response.ok_or_else(|| "the connection ended before a response's head".to_owned());
        }
    }

    /// Reads exactly `count` bytes; bytes after them stay unread.
    #[track_caller]
    pub fn read(&mut self, count: usize) -> impl Future<Output = Bytes> {
        self.read_from(Location::caller(), count)
    }

    async fn read_from(&mut self, line: Line, count: usize) -> Bytes {
        let read = in_time(self.patience, async {
            while let Some(left @ 1..) = count.checked_sub(self.buffer.len()) {
                match self.fill(left).await? {
                    Ok(0) => return Err(format!("the connection ended before {count} bytes had come")),
                    Ok(_) => {}
                    Err(error) => return Err(format!("the connection broke before {count} bytes had come: {error}")),
                }
            }
            Ok(())
        });
        let read = read.await;
        self.must(line, &format!("{count} bytes come"), read);
        self.buffer.split_to(count).freeze()
    }

    /// Reads up to and including `marker`, and whatever arrived together with it.
    #[track_caller]
    pub fn read_until(&mut self, marker: impl AsRef<[u8]>) -> impl Future<Output = Bytes> {
        let line = Location::caller();
        async move {
            let marker = marker.as_ref();
            // What was looked through is not looked through again, however slowly the rest comes.
            let mut seen = 0;
            let read = in_time(self.patience, async {
                while !marker.is_empty() && !self.buffer[seen..].windows(marker.len()).any(|window| window == marker) {
                    seen = (self.buffer.len() + 1).saturating_sub(marker.len());
                    match self.fill(usize::MAX).await? {
                        Ok(0) => return Err(format!("the connection ended before {}", Shown(marker))),
                        Ok(_) => {}
                        Err(error) => return Err(format!("the connection broke before {}: {error}", Shown(marker))),
                    }
                }
                Ok(())
            });
            let read = read.await;
            self.must(line, &format!("{} comes", Shown(marker)), read);
            self.buffer.split().freeze()
        }
    }

    /// Reads to the end of the connection. Returns what arrived, and the error that ended it, if there was one (a
    /// reset, for example).
    #[track_caller]
    pub fn read_to_end(&mut self) -> impl Future<Output = (Bytes, Option<io::Error>)> {
        let line = Location::caller();
        async move {
            let ended = in_time(self.patience, async {
                loop {
                    match self.fill(usize::MAX).await? {
                        Ok(0) => return Ok(None),
                        Ok(_) => {}
                        Err(error) => return Ok(Some(error)),
                    }
                }
            });
            let ended = ended.await;
            let error = self.must(line, "the server closes the connection", ended);
            (self.buffer.split().freeze(), error)
        }
    }

    /// Reads at most `most` bytes into the buffer: of more than it is asked for, a client would not have stopped there.
    async fn fill(&mut self, most: usize) -> Result<io::Result<usize>, String> {
        let (at_once, pause) = self.pace.unwrap_or((64 * 1024, Duration::ZERO));
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let most = most.min(at_once) as u64;
        match &mut self.wire {
            Some((wire, _)) => Ok(wire.take(most).read_buf(&mut self.buffer).await),
            None => Err("this client has closed its connection".to_owned()),
        }
    }

    // === leaving ===

    /// Sends the first `count` bytes of `request`, and leaves.
    #[track_caller]
    pub fn stop_request_at(&mut self, request: impl AsRef<[u8]>, count: usize, how: Leave) -> impl Future<Output = ()> {
        let line = Location::caller();
        async move {
            let request = request.as_ref();
            self.send_from(line, &request[..count.min(request.len())]).await;
            self.leave_from(line, how).await;
        }
    }

    /// Reads the first `count` bytes, and leaves.
    #[track_caller]
    pub fn stop_response_at(&mut self, count: usize, how: Leave) -> impl Future<Output = Bytes> {
        let line = Location::caller();
        async move {
            let read = self.read_from(line, count).await;
            self.leave_from(line, how).await;
            read
        }
    }

    /// Leaves.
    #[track_caller]
    pub fn leave(&mut self, how: Leave) -> impl Future<Output = ()> {
        self.leave_from(Location::caller(), how)
    }

    async fn leave_from(&mut self, line: Line, how: Leave) {
        match how {
            Leave::Fin => {
                let shut = match self.wire() {
                    Ok(wire) => {
                        wire.shutdown().await.map_err(|error| format!("the sending side cannot be shut: {error}"))
                    }
                    Err(why) => Err(why),
                };
                self.must(line, "", Some(shut));
            }
            Leave::Close => self.wire = None,
            Leave::Reset => {
                if let Some((Either::Left(stream), _)) = &self.wire {
                    // Closed with bytes that it will not wait for: the system sends a reset.
                    if let Err(error) = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
                        self.fail(line, &format!("the connection cannot be reset: {error}"));
                    }
                }
                self.wire = None;
            }
            Leave::Silence => {}
        }
    }

    /// Shuts down its sending side (a FIN), and can still read.
    #[track_caller]
    pub fn half_close(&mut self) -> impl Future<Output = ()> {
        self.leave_from(Location::caller(), Leave::Fin)
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}
