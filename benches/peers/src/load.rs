//! Workload 1, kept alive: so many clients, each of which asks again as soon as it is answered.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use crate::{http, running::Running};

/// Clients at once.
pub const CLIENTS: usize = 32;
/// Before it is measured: as long as the work of one request takes, so that in what is measured as many continuations
/// end as begin.
const WARM_UP: Duration = Duration::from_millis(150);
const MEASURED: Duration = Duration::from_millis(300);
/// What is left of this server's work must not burden the next one.
pub const PAUSE: Duration = Duration::from_millis(150);

/// What one burst has shown.
pub struct Burst {
    /// Requests a second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
    /// The server's CPU time for one request.
    pub cpu: Duration,
}

struct Client {
    stream: TcpStream,
    asked: Instant,
    filled: usize,
    buffer: Vec<u8>,
}

/// The clients of one server.
pub struct Clients {
    address: SocketAddr,
    poll: Poll,
    clients: Vec<Client>,
    request: Vec<u8>,
}

fn connect(address: SocketAddr, poll: &Poll, place: usize) -> TcpStream {
    let stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = TcpStream::from_std(stream);
    poll.registry().register(&mut stream, Token(place), Interest::READABLE).unwrap();
    stream
}

impl Clients {
    pub fn new(address: SocketAddr) -> Self {
        let poll = Poll::new().unwrap();
        let client = |place| Client {
            stream: connect(address, &poll, place),
            asked: Instant::now(),
            filled: 0,
            buffer: vec![0; 4096],
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { address, poll, clients, request: http::get("/respond", false) }
    }

    fn ask(&mut self, place: usize) {
        let client = &mut self.clients[place];
        client.asked = Instant::now();
        // A request this small is taken whole, unless the server has closed the connection since.
        while client.stream.write(&self.request).ok() != Some(self.request.len()) {
            client.stream = connect(self.address, &self.poll, place);
        }
    }

    /// Reads what is there; true when the response is whole.
    fn read(&mut self, place: usize) -> bool {
        let client = &mut self.clients[place];
        loop {
            match client.stream.read(&mut client.buffer[client.filled..]) {
                // The server closes an idle connection while we ask: ask again, as a browser does.
                Ok(0) => break,
                Ok(read) => {
                    client.filled += read;
                    if http::response_end(&client.buffer[..client.filled]) == Some(client.filled) {
                        client.filled = 0;
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => break,
            }
        }
        assert!(client.filled == 0, "the server broke its response off");
        client.stream = connect(self.address, &self.poll, place);
        self.ask(place);
        false
    }

    /// Has every client ask again and again for a while; at the end all of them have their last answer.
    pub fn burst(&mut self, server: &Running) -> Burst {
        let began = Instant::now();
        let mut events = Events::with_capacity(CLIENTS);
        let mut latencies = Vec::new();
        let mut measuring = None;
        let mut asking = self.clients.len();
        (0..asking).for_each(|place| self.ask(place));
        while asking > 0 {
            self.poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(!events.is_empty(), "a server does not answer");
            let elapsed = began.elapsed();
            let stop = elapsed >= WARM_UP + MEASURED;
            if elapsed >= WARM_UP && measuring.is_none() {
                measuring = Some((Instant::now(), server.cpu()));
            }
            for event in &events {
                let place = event.token().0;
                if !self.read(place) {
                    continue;
                }
                if measuring.is_some() {
                    latencies.push(self.clients[place].asked.elapsed());
                }
                if stop { asking -= 1 } else { self.ask(place) }
            }
        }
        let (since, cpu) = measuring.expect("the burst is longer than its warm-up");
        let (took, cpu) = (since.elapsed(), server.cpu() - cpu);
        latencies.sort_unstable();
        let count = latencies.len();
        Burst {
            rate: count as f64 / took.as_secs_f64(),
            p50: latencies[count / 2],
            p99: latencies[(count * 99 / 100).min(count - 1)],
            cpu: cpu / u32::try_from(count).unwrap(),
        }
    }
}
