//! A network that fails in the middle of responses: simulated, so that minutes pass at once and a seed replays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use proptest::prelude::{ProptestConfig, any, proptest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};
use tower_epilogue::{
    ConnectionStatus, Continuation, Epilogue, Event, EventKind, IgnoreAbortLayer, Sent, ShutdownHookLayer,
    TimeLimitLayer, Tracking,
};
use turmoil::{
    Builder, Sim,
    net::{TcpListener, TcpStream},
};

const CHUNK: usize = 16 * 1024;
const CHUNKS: usize = 64;
const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 80;

struct Listener(TcpListener);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = self.0.accept().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// What all servers of a simulation did; it outlives their crashes.
#[derive(Clone, Default)]
struct Journal {
    events: Arc<Mutex<Vec<Event>>>,
    /// Status and fate, as the hook saw them.
    hooks: Arc<Mutex<Vec<(ConnectionStatus, Sent)>>>,
    continuations: Arc<AtomicUsize>,
}

impl Journal {
    fn count(&self, kind: &EventKind) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.kind() == kind).count()
    }

    fn hooks(&self) -> Vec<(ConnectionStatus, Sent)> {
        self.hooks.lock().unwrap().clone()
    }

    fn continuations(&self) -> usize {
        self.continuations.load(Ordering::SeqCst)
    }

    async fn ended(&self, requests: usize) {
        while self.count(&EventKind::Ended) < requests {
            sleep(SECOND / 100).await;
        }
    }

    /// For each request that began: one end, one hook, its continuation once.
    fn check(&self) {
        let events = self.events.lock().unwrap();
        let mut requests: Vec<_> = events.iter().map(Event::request).collect();
        requests.sort_unstable();
        requests.dedup();
        for request in requests {
            let kinds: Vec<_> = events.iter().filter(|event| event.request() == request).map(Event::kind).collect();
            let count = |kind: EventKind| kinds.iter().filter(|other| ***other == kind).count();
            assert_eq!(count(EventKind::Ended), 1, "{kinds:?}");
            assert_eq!(count(EventKind::HookStart { hook: 0 }), 1, "{kinds:?}");
            assert_eq!(count(EventKind::HandlerEnd), count(EventKind::ContinuationStart), "{kinds:?}");
            assert_eq!(*kinds[kinds.len() - 1], EventKind::Ended, "{kinds:?}");
        }
    }
}

fn app(journal: &Journal) -> Router {
    let theirs = journal.clone();
    let work = move || {
        let journal = theirs.clone();
        Continuation::new(async move {
            journal.continuations.fetch_add(1, Ordering::SeqCst);
            sleep(SECOND).await;
        })
    };
    let hook = {
        let journal = journal.clone();
        move |end: tower_epilogue::End| {
            journal.hooks.lock().unwrap().push((end.status(), end.sent()));
            async {}
        }
    };
    let (small, slow, stream) = (work.clone(), work.clone(), work);
    let body = || {
        let chunks = stream::iter(0..CHUNKS).then(|_| async {
            sleep(SECOND / 100).await;
            Ok::<_, io::Error>(Bytes::from(vec![b'x'; CHUNK]))
        });
        Body::from_stream(chunks)
    };
    Router::new()
        .route("/small", get(async move || (small(), "small")))
        .route(
            "/slow",
            get(async move || {
                sleep(20 * SECOND).await;
                (slow(), "slow")
            }),
        )
        .route("/stream", get(async move || (stream(), body())))
        .layer(ShutdownHookLayer::new(hook))
}

/// A simulation with one server, and the `journal` of it.
fn simulation<'a>(seed: u64, journal: &Journal, shape: impl Fn(Router) -> Router + Clone + 'static) -> Sim<'a> {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(600))
        .tick_duration(Duration::from_millis(10))
        .build();
    let journal = journal.clone();
    sim.host("server", move || {
        let (journal, shape) = (journal.clone(), shape.clone());
        async move {
            let events = journal.events.clone();
            let epilogue = Epilogue::builder()
                .on_event(move |event| events.lock().unwrap().push(event.clone()))
                .tracking(Tracking::new().write_stall(10 * SECOND))
                .build();
            let listener = Listener(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?);
            epilogue.serve(listener, shape(app(&journal))).await?;
            Ok(())
        }
    });
    sim
}

async fn ask(path: &str) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(("server", PORT)).await?;
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: server\r\n\r\n").as_bytes()).await?;
    Ok(client)
}

/// Reads until `enough` bytes are there or the connection ends.
async fn read(client: &mut TcpStream, enough: usize) -> io::Result<usize> {
    let (mut all, mut buffer) = (0, vec![0; CHUNK]);
    while all < enough {
        match client.read(&mut buffer).await? {
            0 => break,
            read => all += read,
        }
    }
    Ok(all)
}

#[test]
fn a_network_without_faults() -> turmoil::Result {
    let journal = Journal::default();
    let mut sim = simulation(1, &journal, |app| app);
    let seen = journal.clone();
    sim.client("client", async move {
        let mut client = ask("/stream").await?;
        assert!(read(&mut client, CHUNK * CHUNKS).await? >= CHUNK * CHUNKS);
        seen.ended(1).await;
        Ok(())
    });
    sim.run()?;
    journal.check();
    assert_eq!(journal.hooks(), [(ConnectionStatus::NORMAL, Sent::Flushed)]);
    assert_eq!(journal.continuations(), 1);
    Ok(())
}

/// No packet arrives any more, in either direction: nobody is told, so the limit of a stalled write tells.
#[test]
fn a_partition_in_the_middle_of_a_response() -> turmoil::Result {
    let journal = Journal::default();
    let mut sim = simulation(2, &journal, |app| app.layer(TimeLimitLayer::new(120 * SECOND)));
    let seen = journal.clone();
    sim.client("client", async move {
        let mut client = ask("/stream").await?;
        read(&mut client, CHUNK).await?;
        turmoil::partition("client", "server");
        seen.ended(1).await;
        turmoil::repair("client", "server");
        // The server serves on.
        let mut client = ask("/small").await?;
        read(&mut client, 5).await?;
        seen.ended(2).await;
        Ok(())
    });
    sim.run()?;
    journal.check();
    let hooks = journal.hooks();
    assert_eq!(hooks[1], (ConnectionStatus::NORMAL, Sent::Flushed));
    assert_ne!(hooks[0].1, Sent::GivenUp);
    assert_eq!(journal.continuations(), 2);
    Ok(())
}

/// Packets are held back for half an hour, as by a laptop that is shut: the request does not wait so long.
#[test]
fn a_handler_ends_at_its_limit_while_its_client_is_held() -> turmoil::Result {
    let journal = Journal::default();
    let mut sim = simulation(3, &journal, |app| app.layer(TimeLimitLayer::new(5 * SECOND)));
    let seen = journal.clone();
    sim.client("client", async move {
        let mut client = ask("/slow").await?;
        sleep(SECOND).await;
        turmoil::hold("client", "server");
        seen.ended(1).await;
        turmoil::release("client", "server");
        let mut head = [0; 12];
        client.read_exact(&mut head).await?;
        assert_eq!(&head, b"HTTP/1.1 503");
        Ok(())
    });
    sim.run()?;
    journal.check();
    assert_eq!(journal.hooks(), [(ConnectionStatus::TIMEOUT, Sent::Flushed)]);
    Ok(())
}

/// A response on its way is held: its continuation starts all the same, and when the network is back, its client reads all.
#[test]
fn a_held_response_arrives_whole_later() -> turmoil::Result {
    let journal = Journal::default();
    let mut sim = simulation(4, &journal, |app| app);
    let seen = journal.clone();
    sim.client("client", async move {
        let mut client = ask("/stream").await?;
        let begun = read(&mut client, CHUNK).await?;
        turmoil::hold("client", "server");
        sleep(5 * SECOND).await;
        turmoil::release("client", "server");
        assert!(begun + read(&mut client, CHUNK * CHUNKS - begun).await? >= CHUNK * CHUNKS);
        seen.ended(1).await;
        Ok(())
    });
    sim.run()?;
    journal.check();
    assert_eq!(journal.hooks(), [(ConnectionStatus::NORMAL, Sent::Flushed)]);
    assert_eq!(journal.continuations(), 1);
    Ok(())
}

/// The client's machine fails and comes back: the handler, or the body, is dropped, or runs on where that is ignored.
#[test]
fn the_client_crashes() -> turmoil::Result {
    for (path, ignores) in [("/slow", false), ("/slow", true), ("/stream", false), ("/stream", true)] {
        let journal = Journal::default();
        let shape = move |app: Router| if ignores { app.layer(IgnoreAbortLayer::new()) } else { app };
        let mut sim = simulation(5, &journal, shape);
        sim.host("client", move || async move {
            let mut client = ask(path).await?;
            read(&mut client, CHUNK).await?;
            std::future::pending::<turmoil::Result>().await
        });
        let seen = journal.clone();
        sim.client("watch", async move {
            seen.ended(1).await;
            Ok(())
        });
        while sim.elapsed() < SECOND / 5 {
            sim.step()?;
        }
        sim.crash("client");
        sim.run()?;
        journal.check();
        let hooks = journal.hooks();
        assert_eq!((hooks.len(), hooks[0].0), (1, ConnectionStatus::ABORTED), "{path}, ignored: {ignores}");
        // While aborts are ignored writing goes on, and the kernel may still take it (contract rule 5).
        assert!(ignores || hooks[0].1 == Sent::Aborted, "{path}: {hooks:?}");
        let returned = ignores || path == "/stream";
        assert_eq!(journal.continuations(), usize::from(returned), "{path}, ignored: {ignores}");
    }
    Ok(())
}

/// The server's process ends: nothing of its requests runs on, its client is told by the connection's end, and the
/// next process serves.
#[test]
fn the_server_crashes() -> turmoil::Result {
    let journal = Journal::default();
    let mut sim = simulation(6, &journal, |app| app);
    sim.client("client", async move {
        let mut client = ask("/stream").await?;
        let got = read(&mut client, CHUNK * CHUNKS).await.unwrap_or(0);
        assert!(got < CHUNK * CHUNKS, "a broken response looks whole: {got}");
        let mut client = loop {
            if let Ok(client) = ask("/small").await {
                break client;
            }
            sleep(SECOND).await;
        };
        read(&mut client, 5).await?;
        sleep(5 * SECOND).await;
        Ok(())
    });
    while sim.elapsed() < SECOND / 5 {
        sim.step()?;
    }
    sim.crash("server");
    assert_eq!(journal.continuations(), 0);
    sim.step()?;
    sim.bounce("server");
    sim.run()?;
    assert_eq!((journal.continuations(), journal.hooks()), (1, vec![(ConnectionStatus::NORMAL, Sent::Flushed)]));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    /// Clients come and go at random, on a network that loses its links at random; a failure names its seed.
    #[test]
    fn every_request_ends_whatever_the_network_does(seed in any::<u64>(), faults in proptest::collection::vec((0u64..8, 0u8..3, 50u64..2000), 8)) {
        let journal = Journal::default();
        let mut sim = simulation(seed, &journal, |app| app.layer(TimeLimitLayer::new(60 * SECOND)));
        for (number, (wait, kind, length)) in faults.into_iter().enumerate() {
            let name = format!("client{number}");
            let me = name.clone();
            sim.client(name, async move {
                sleep(Duration::from_millis(wait * 37)).await;
                let path = ["/small", "/stream", "/slow"][number % 3];
                // A link that is down from the beginning is no fault of the server's.
                let Ok(mut client) = ask(path).await else { return Ok(()) };
                let _ = tokio::time::timeout(Duration::from_millis(length), read(&mut client, CHUNK * CHUNKS)).await;
                match kind {
                    0 => turmoil::partition(me.as_str(), "server"),
                    1 => turmoil::hold(me.as_str(), "server"),
                    _ => {}
                }
                sleep(Duration::from_millis(length)).await;
                if kind == 1 {
                    turmoil::release(me.as_str(), "server");
                }
                drop(client);
                Ok(())
            });
        }
        let seen = journal.clone();
        sim.client("watch", async move {
            // Every limit has passed by then.
            sleep(100 * SECOND).await;
            let begun = seen.count(&EventKind::HandlerStart);
            assert_eq!(seen.count(&EventKind::Ended), begun, "a request did not end");
            Ok(())
        });
        sim.run().unwrap();
        journal.check();
        assert_eq!(journal.hooks().len(), journal.count(&EventKind::Ended));
    }
}
