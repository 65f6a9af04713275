//! Workload 1, one client at a time that asks for the connection to be closed: the time to the last byte, and to the
//! close.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::http;

/// Counted from the request's first byte, on a connection that stands.
pub struct Times {
    pub last_byte: Duration,
    pub close: Duration,
}

pub fn ask(address: SocketAddr) -> Times {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let began = Instant::now();
    stream.write_all(&http::get("/respond", true)).unwrap();
    let mut buffer = [0; 4096];
    let mut filled = 0;
    let mut last_byte = None;
    loop {
        match stream.read(&mut buffer[filled..]).expect("an answer, and the end") {
            0 => break,
            read => filled += read,
        }
        if http::response_end(&buffer[..filled]) == Some(filled) {
            last_byte = Some(began.elapsed());
        }
    }
    Times { last_byte: last_byte.expect("a whole response"), close: began.elapsed() }
}
