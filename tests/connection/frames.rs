//! HTTP/2 as bytes, for clients that do what no library lets them (RFC 9113, section 4.1).

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

pub const MAX_CONCURRENT_STREAMS: u16 = 3;
pub const INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As wide as a window may be.
const WIDEST: u32 = 0x7fff_ffff;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A request's head, with a path shorter than 127 bytes (RFC 7541, section 6).
pub fn request(method: &str, path: &str, stream: u32, end: bool) -> Vec<u8> {
    let literal = |text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        assert!(length < 127);
        let mut bytes = vec![length];
        bytes.extend(text.as_bytes());
        bytes
    };
    // `:scheme http` is index 6; the names `:method`, `:path` and `:authority` are 2, 4 and 1. Not indexed, so that
    // there is no table to keep.
    let mut block = vec![0x86];
    for (name, value) in [(0x02, method), (0x04, path), (0x01, "test")] {
        block.push(name);
        block.extend(literal(value));
    }
    frame(HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, stream, &block)
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn ends_its_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// A setting of a SETTINGS frame.
    pub fn setting(&self, wanted: u16) -> Option<u32> {
        assert_eq!(self.kind, SETTINGS);
        self.payload.chunks(6).find_map(|pair| {
            let name = u16::from_be_bytes([pair[0], pair[1]]);
            (name == wanted).then(|| u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]))
        })
    }
}

/// A client whose every frame is its own decision.
pub struct RawHttp2<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
    used: usize,
    /// The bytes of all frames that were read.
    pub count: u64,
}

impl RawHttp2 {
    /// Connects, and opens all windows as wide as they go.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self::on(stream).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> RawHttp2<S> {
    /// On any stream, with all windows as wide as they go.
    pub async fn on(stream: S) -> Self {
        let mut client = Self::reads(stream);
        let mut settings = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        settings.extend(WIDEST.to_be_bytes());
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &settings));
        bytes.extend(frame(WINDOW_UPDATE, 0, 0, &(WIDEST - 65_535).to_be_bytes()));
        client.send(&bytes).await;
        client
    }

    /// On any stream, on which it has said all that it says as yet.
    pub fn reads(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), used: 0, count: 0 }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next frame; `None` at the end of the connection. SETTINGS and PING are not answered.
    pub async fn next(&mut self, at_most: usize) -> io::Result<Option<Frame>> {
        loop {
            let bytes = &self.buffer[self.used..];
            if let Some(head) = bytes.first_chunk::<9>() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                if let Some(payload) = bytes.get(9..9 + length) {
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let frame = Frame { kind: head[3], flags: head[4], stream, payload: payload.to_vec() };
                    self.used += 9 + length;
                    self.count += 9 + length as u64;
                    return Ok(Some(frame));
                }
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            let filled = self.buffer.len();
            self.buffer.resize(filled + at_most, 0);
            let read = self.stream.read(&mut self.buffer[filled..]).await;
            self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads until a frame is `wanted`; what else comes is passed over.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        crate::support::soon("a frame", async {
            loop {
                let frame = self.next(64 * 1024).await.unwrap().expect("the connection is open");
                if wanted(&frame) {
                    return frame;
                }
            }
        })
        .await
    }

    /// Its server reads, writes and flushes what there is, up to the answer to a ping.
    pub async fn ping(&mut self) {
        self.send(&frame(PING, 0, 0, b"a turn..")).await;
        self.until(|frame| frame.kind == PING && frame.flags & ACK != 0).await;
    }

    /// Reads to the end of the connection, and answers pings meanwhile, without which no server drains.
    pub async fn read_on(mut self) {
        while let Ok(Some(next)) = self.next(64 * 1024).await {
            if next.kind == PING && next.flags & ACK == 0 {
                let _ = self.stream.write_all(&frame(PING, ACK, 0, &next.payload)).await;
            }
        }
    }
}
