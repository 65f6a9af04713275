//! Workload 3: a client uploads to a server that answers at once and closes, and does not want the upload.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::{http, servers::PAGE};

/// What is uploaded, and how: as over a line that is slower than loopback.
pub const UPLOAD: usize = 2 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;
const PACE: Duration = Duration::from_millis(1);
/// Who waits longer than this has lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// When the client reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// After it has sent all, or could not, as most clients do.
    Afterwards,
    /// Also while it sends, as browsers do.
    Meanwhile,
}

/// What a client has seen.
#[derive(Clone, Copy, Default)]
pub struct Seen {
    pub whole: bool,
    /// The response began before the upload had ended.
    pub early: bool,
}

/// Sends until all is sent or it cannot; when that was.
fn send(mut stream: &TcpStream) -> Instant {
    let head = format!("POST /upload HTTP/1.1\r\nhost: bench\r\ncontent-length: {UPLOAD}\r\n\r\n");
    let chunk = [b'u'; CHUNK];
    let mut sent = stream.write_all(head.as_bytes());
    for _ in 0..UPLOAD / CHUNK {
        sent = sent.and_then(|()| stream.write_all(&chunk));
        if sent.is_err() {
            break;
        }
        thread::sleep(PACE);
    }
    Instant::now()
}

/// Reads until the response is whole or cannot be; whether it is, and when it began.
fn read(mut stream: &TcpStream) -> (bool, Option<Instant>) {
    let mut response = Vec::with_capacity(PAGE + 4096);
    let mut buffer = vec![0; CHUNK];
    let mut began = None;
    loop {
        match stream.read(&mut buffer) {
            Ok(read) if read > 0 => response.extend_from_slice(&buffer[..read]),
            _ => return (false, began),
        }
        began = began.or_else(|| Some(Instant::now()));
        if let Some(end) = http::response_end(&response) {
            if response.len() >= end {
                return (response[end - PAGE..] == [b'x'; PAGE], began);
            }
        }
    }
}

pub fn upload(address: SocketAddr, reads: Reads) -> Seen {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    if reads == Reads::Afterwards {
        send(&stream);
        return Seen { whole: read(&stream).0, early: false };
    }
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream));
        let (whole, began) = read(&stream);
        // One that sends on without a reader would wait in vain.
        if !whole {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let ended = sender.join().unwrap();
        Seen { whole, early: began.is_some_and(|began| began < ended) }
    })
}
