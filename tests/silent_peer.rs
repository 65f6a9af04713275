//! A client that falls silent: cable out, laptop shut, no FIN, no RST.
//!
//! Server and client run in network namespaces of their own, joined by a link that goes down. That takes Linux, `ip`
//! and the right to use them; elsewhere the test says that it was skipped.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test may panic and print, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the module of this suite")]

use std::{
    convert::Infallible,
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tower_epilogue::{Event, Tracking};

use support::{Journal, line};

mod support;

const ROLE: &str = "EPILOGUE_SILENT_PEER";
const SERVER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";
const SECOND: Duration = Duration::from_secs(1);

/// The limits below come to two to four seconds.
const SOON: Duration = Duration::from_secs(30);

/// Two network namespaces and the link between them.
struct Network {
    server: String,
    client: String,
}

fn ip(arguments: &str) -> Result<(), String> {
    let ran = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("no `ip`: {error}"))?;
    let said = || format!("`ip {arguments}`: {}", String::from_utf8_lossy(&ran.stderr).trim());
    ran.status.success().then_some(()).ok_or_else(said)
}

impl Network {
    fn lay() -> Result<Self, String> {
        let id = std::process::id();
        let this = Self { server: format!("epilogue-s-{id}"), client: format!("epilogue-c-{id}") };
        let (server, client) = (&this.server, &this.client);
        ip(&format!("netns add {server}"))?;
        ip(&format!("netns add {client}"))?;
        ip(&format!("link add link0 netns {server} type veth peer name link0 netns {client}"))?;
        for (namespace, address) in [(server, SERVER), (client, CLIENT)] {
            ip(&format!("-n {namespace} addr add {address}/24 dev link0"))?;
            ip(&format!("-n {namespace} link set link0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("netns exec {namespace} true"))?;
        }
        Ok(this)
    }

    fn cut(&self) {
        ip(&format!("-n {} link set link0 down", self.client)).unwrap();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            // It may be one that was never made.
            let _ = ip(&format!("netns del {namespace}"));
        }
    }
}

/// This test binary once more, in a namespace, as [`played_by_a_child`].
struct Player {
    child: Child,
    lines: mpsc::Receiver<String>,
}

const MARK: &str = "peer: ";

impl Player {
    fn start(namespace: &str, role: &str) -> Self {
        let mut child = Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "played_by_a_child", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        // Ends with the child.
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some(said) = line.strip_prefix(MARK) {
                    let _ = tell.send(said.to_owned());
                }
            }
        });
        Self { child, lines }
    }

    fn says(&self) -> String {
        self.lines.recv_timeout(SOON).expect("the other process says something")
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_that_falls_silent_has_aborted() {
    let network = match Network::lay() {
        Ok(network) => network,
        Err(reason) => {
            println!("skipped: this machine lays no networks: {reason}");
            return;
        }
    };
    let server = Player::start(&network.server, "server");
    let mut said: Vec<String> = Vec::new();
    let address = loop {
        match server.says() {
            line if line.starts_with(SERVER) => break line,
            line => said.push(line),
        }
    };
    let client = Player::start(&network.client, &address);
    assert_eq!(client.says(), "ready");
    let on = |said: &[String], what: &str| said.iter().filter(|line| line.contains(what)).count();
    // A neighbour's, and the client's two.
    while on(&said, "handler_start") < 3 {
        said.push(server.says());
    }
    assert_eq!(on(&said, "aborted"), 0, "{said:?}");

    network.cut();
    let cut = Instant::now();
    for count in 1..=2 {
        while on(&said, "ended") < count {
            said.push(server.says());
        }
        println!("a silent client was noticed after {:?}", cut.elapsed());
    }
    let of = |number: &str| -> Vec<&str> { said.iter().filter_map(|line| line.strip_prefix(number)).collect() };
    assert_eq!(of("0 "), ["handler_start/0"], "the neighbour is there: {said:?}");
    // The client's two came in either order.
    let mut both = [of("1 "), of("2 ")];
    both.sort();
    // Nothing was on its way: probes tell.
    assert_eq!(both[0], ["handler_start/0", "aborted/1", "handler_dropped/1", "ended/1"]);
    // Bytes were: that nobody acknowledges them tells.
    assert_eq!(both[1], ["handler_start/0", "handler_end/0", "aborted/1", "body_dropped/1", "ended/1"]);
}

fn say(what: &str) {
    // The harness may have begun a line.
    print!("\n{MARK}{what}\n");
    std::io::stdout().flush().unwrap();
}

/// The other processes of the test above; alone, it does nothing.
#[test]
fn played_by_a_child() {
    match env::var(ROLE).as_deref() {
        Err(_) => {}
        Ok("server") => serve(),
        Ok(address) => ask(address.parse().unwrap()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn serve() {
    let waits = async || std::future::pending::<()>().await;
    let trickles = async || {
        let chunks = stream::iter(0..).then(async |_| {
            tokio::time::sleep(SECOND / 10).await;
            Ok::<_, Infallible>(Bytes::from_static(b"a chunk"))
        });
        Body::from_stream(chunks)
    };
    let app = Router::new().route("/waits", get(waits)).route("/trickles", get(trickles));
    let journal = Journal::default();
    let (events, told) = (journal.listener(), journal.clone());
    let tracking = Tracking::new().keep_alive(SECOND).unacknowledged(2 * SECOND).write_stall(None);
    let epilogue = tower_epilogue::Epilogue::builder().tracking(tracking).on_event(move |event: &Event| {
        events(event);
        if support::goes_without_saying(event.kind()) {
            return;
        }
        let number = told.requests().iter().position(|request| *request == event.request()).unwrap();
        say(&format!("{number} {}", line(event)));
    });
    let listener = TcpListener::bind((SERVER, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(epilogue.build().serve(listener, app).into_future());
    // Silent as well, but its machine answers.
    let mut neighbour = support::Client::connect(address).await;
    neighbour.send_get("/waits").await;
    journal.seen("handler_start").await;
    say(&address.to_string());
    drop(serving.await);
}

fn ask(address: SocketAddr) {
    let mut connections = Vec::new();
    for path in ["/waits", "/trickles"] {
        let mut connection = TcpStream::connect(address).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        if path == "/trickles" {
            connection.read_exact(&mut [0; 100]).unwrap();
        }
        connections.push(connection);
    }
    say("ready");
    // Until the test is over.
    let _ = std::io::stdin().read(&mut [0]);
}
