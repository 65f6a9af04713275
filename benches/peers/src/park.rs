//! Workload 2: what a continuation takes that waits for an hour.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{http, running::Running};

const CLIENTS: usize = 4;
/// Until a server's work of 100 ms is over, and until it has settled.
const SETTLE: Duration = Duration::from_millis(500);

/// Whether the server answers before the work is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Before,
    After,
}

/// One request on a connection of its own: some servers keep a connection busy as long as the work lasts.
fn request(address: SocketAddr, path: &str, source: u8, answer: Answer) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    // More addresses than one, since a hundred thousand ports are more than one has.
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 1, source), 0));
    socket.bind(&source.into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&http::get(path, true)).unwrap();
    if answer == Answer::After {
        return Some(stream);
    }
    let mut buffer = [0; 4096];
    let mut filled = 0;
    while http::response_end(&buffer[..filled]) != Some(filled) {
        let read = stream.read(&mut buffer[filled..]).expect("an answer");
        assert!(read > 0, "the server broke its response off");
        filled += read;
    }
    None
}

/// The connections that are still to be answered.
fn requests(address: SocketAddr, path: &str, count: usize, answer: Answer) -> Vec<TcpStream> {
    let clients = if count < 1_000 { 1 } else { CLIENTS };
    thread::scope(|scope| {
        let client = |client: usize| {
            move || {
                let source = |number: usize| (1 + client * 16 + number % 16) as u8;
                (0..count / clients).filter_map(|number| request(address, path, source(number), answer)).collect()
            }
        };
        let clients: Vec<_> = (0..clients).map(|number| scope.spawn(client(number))).collect();
        clients.into_iter().flat_map(|client| -> Vec<_> { client.join().unwrap() }).collect()
    })
}

/// Bytes for each of `count`, beside what the server takes after as many short ones as `warm_up`.
pub fn bytes(server: &Running, count: usize, warm_up: usize, answer: Answer) -> f64 {
    if answer == Answer::Before {
        requests(server.address, "/respond", warm_up, answer);
    }
    thread::sleep(SETTLE);
    let before = server.memory();
    let open = requests(server.address, "/park", count, answer);
    thread::sleep(SETTLE);
    let after = server.memory();
    drop(open);
    (after as f64 - before as f64) / count as f64
}
