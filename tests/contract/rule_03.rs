//! Status is a set: NORMAL = 0, ABORTED = 1, TIMEOUT = 2, both = 3. Bits are only ever added, in either order.

use std::{future::pending, time::Duration};

use axum::{Router, body::Body, extract::Request, routing::get};
use tower::ServiceExt;
use tower_epilogue::{
    ConnectionStatus, Continuation, EarlyCloseLayer, Epilogue, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer,
    TimeLimitLayer,
};
use tower_http::timeout::TimeoutLayer;

use crate::{
    common::{Asked, Leave, SHORT, settled, told},
    support::{
        Client, Gate, Journal, Notes, Server,
        h2client::{Http2, read},
        soon,
    },
};

#[test]
fn normal_is_0_aborted_is_1_timeout_is_2_and_both_are_3() {
    let (aborted, timeout) = (ConnectionStatus::ABORTED, ConnectionStatus::TIMEOUT);
    assert_eq!(
        [ConnectionStatus::NORMAL, aborted, timeout, aborted | timeout].map(|status| status.bits()),
        [0, 1, 2, 3]
    );
}

#[tokio::test]
async fn an_abort_and_then_the_limit_are_3() {
    for leave in Leave::ALL {
        let notes = Notes::default();
        let (theirs, gate) = (notes.clone(), Gate::closed());
        let opens = gate.clone();
        let app = Router::new()
            .route(
                "/",
                get(async move |lifecycle: Lifecycle| {
                    theirs.add("started");
                    // The limit begins when the client has left.
                    opens.passed().await;
                    lifecycle.set_time_limit(SHORT);
                    pending::<()>().await;
                }),
            )
            .layer((IgnoreAbortLayer::new(), ShutdownHookLayer::new(told(&notes))));
        let server = Server::start(app).await;
        let client = Asked::get(&server, leave).await;
        notes.seen("started").await;
        let _left = client.leave(leave).await;
        server.journal.seen("aborted").await;
        gate.open();
        server.journal.ended(1).await;
        assert!(server.stop().await.is_clean());
        let hook = &notes.all()[1];
        assert!(hook.starts_with("hook: ABORTED | TIMEOUT"), "{leave:?}: {hook}");
    }
}

fn limited(notes: &Notes) -> Router {
    let layers = (TimeLimitLayer::new(SHORT), ShutdownHookLayer::new(told(notes)));
    Router::new().route("/", get(pending::<()>)).layer(layers)
}

/// The client lets no byte of a body through, so that it can leave after the limit and before the flush.
#[tokio::test]
async fn the_limit_and_then_an_abort_are_3() {
    let notes = Notes::default();
    let server = Server::start(limited(&notes)).await;
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, bytes::Bytes>(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get("http://test/").body(()).unwrap();
    let response = send.ready().await.unwrap().send_request(request, true).unwrap().0;
    let response: http::Response<h2::RecvStream> = soon("the head of the 503", response).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(notes.all().is_empty());
    drop(response);
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: ABORTED | TIMEOUT, Aborted"]);
    connection.abort();
    assert!(server.stop().await.is_clean());
}

#[tokio::test(start_paused = true)]
async fn the_limit_and_then_an_abort_are_3_without_a_server_of_ours() {
    let notes = Notes::default();
    let response = limited(&notes).oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(response.status(), 503);
    settled().await;
    assert!(notes.all().is_empty());
    drop(response);
    settled().await;
    assert_eq!(notes.all(), ["hook: ABORTED | TIMEOUT, Aborted"]);
}

/// An app whose continuation waits until the client has left.
fn whole_response(notes: &Notes, gate: &Gate) -> Router {
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let continuation = Continuation::new(async move {
            opens.passed().await;
            theirs.add(format!("continuation: {}", lifecycle.status()));
        });
        (continuation, "hello")
    };
    Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(notes)))
}

#[tokio::test]
async fn a_client_that_leaves_after_its_whole_response_has_not_aborted() {
    for (leave, early_close) in Leave::ALL.into_iter().flat_map(|leave| [(leave, false), (leave, true)]) {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let app = whole_response(&notes, &gate);
        let app = if early_close { app.layer(EarlyCloseLayer::new()) } else { app };
        // What a server sees of a client is seen here by a second request on the connection, or by its end.
        let server = Server::start(app.route("/ping", get(async || "pong"))).await;
        let left: Box<dyn Send> = match Asked::get(&server, leave).await {
            Asked::Http1(mut client) => {
                assert_eq!(client.response(false).await.text(), "hello");
                Box::new(leave_http1(client, leave).await)
            }
            Asked::Http2(client, response) => {
                let whole = soon("a response", async { read(response.await.unwrap()).await.unwrap() }).await;
                assert_eq!(whole.body, b"hello");
                leave_http2(client, leave).await;
                Box::new(())
            }
        };
        assert!(notes.all().is_empty(), "the continuation waits");
        gate.open();
        notes.count(2).await;
        assert_eq!(notes.all(), ["continuation: NORMAL", "hook: NORMAL, Flushed"], "{leave:?}");
        assert!(server.stop().await.is_clean());
        drop(left);
    }
}

async fn leave_http1(mut client: Client, leave: Leave) -> Option<Client> {
    match leave {
        Leave::Close => client.close(),
        Leave::Reset => client.reset(),
        _ => {
            client.half_close().await;
            // The server closes when it has seen it.
            assert!(client.reply().await.head.is_empty());
            return Some(client);
        }
    }
    None
}

async fn leave_http2(mut client: Http2, leave: Leave) {
    if leave == Leave::ResetStream {
        // The stream has ended; resetting it now is what a client does that drops its handle.
        assert_eq!(client.get("/ping").await.unwrap().body, b"pong");
    }
    client.abort();
}

#[tokio::test]
async fn an_outer_layers_timeout_never_reads_as_the_clients_abort() {
    for leave in [Leave::Close, Leave::ResetStream] {
        let notes = Notes::default();
        let dropped = notes.clone();
        let app = Router::new()
            .route(
                "/",
                get(async move || {
                    let _dropped = dropped.on_drop("dropped");
                    pending::<()>().await;
                }),
            )
            // Nor does anybody's ignoring of aborts keep it from ending the work.
            .layer((ShutdownHookLayer::new(told(&notes)), IgnoreAbortLayer::new()))
            .layer(TimeoutLayer::with_status_code(http::StatusCode::GATEWAY_TIMEOUT, SHORT));
        let server = Server::start(app).await;
        let _client = Asked::get(&server, leave).await;
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["dropped", "hook: NORMAL, Flushed"]);
        let lines = server.journal.lines();
        assert!(!lines.contains(&"aborted/1".to_owned()), "{lines:?}");
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_never_reads_as_the_clients_abort_without_a_server_of_ours() {
    use futures_util::FutureExt;

    let notes = Notes::default();
    let app = Router::new()
        .route("/", get(async || -> () { panic!("the handler panics, as this test wants it") }))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let response = std::panic::AssertUnwindSafe(app.oneshot(Request::new(Body::empty()))).catch_unwind().await;
    assert!(response.is_err(), "it goes on as if we were not there");
    settled().await;
    assert_eq!(notes.all(), ["hook: NORMAL, BrokenOff"]);
}

/// What the handler's lifecycle says once the runtime is gone that it was pending on.
fn after_the_runtimes_end(
    mut runtime: tokio::runtime::Builder,
    ask: impl AsyncFnOnce(Router, Epilogue) -> Box<dyn Send>,
) -> ConnectionStatus {
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = runtime.enable_all().build().unwrap();
    let kept = runtime.block_on(async move {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            sender.send(lifecycle).unwrap();
            theirs.add("started");
            pending::<()>().await;
        };
        let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::off());
        let kept = ask(app, Journal::default().epilogue().build()).await;
        notes.seen("started").await;
        kept
    });
    drop(runtime);
    drop(kept);
    receiver.recv().unwrap().status()
}

/// A server whose client waits; both are the runtime's.
async fn serve(app: Router, epilogue: Epilogue) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(epilogue.serve(listener, app).into_future());
    address
}

/// A client of another thread, which leaves when its end of the channel is dropped. It has made `before` requests
/// on its connection by then.
fn client(address: std::net::SocketAddr, http2: bool, before: usize) -> Box<dyn Send> {
    let (stay, stays) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if http2 {
                let mut client = Http2::connect(address).await;
                for _ in 0..before {
                    assert_eq!(client.get("/none").await.unwrap().status, 404);
                }
                let response = client.start("GET", "/").await;
                tokio::select! {
                    _ = response => {}
                    () = until_dropped(stays) => {}
                }
            } else {
                let mut client = Client::connect(address).await;
                client.send_get("/").await;
                until_dropped(stays).await;
            }
        });
    });
    Box::new((stay, Joined(Some(thread))))
}

async fn until_dropped(stays: std::sync::mpsc::Receiver<()>) {
    while stays.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Joins the thread of a client that was told to leave.
struct Joined(Option<std::thread::JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.take().unwrap().join().unwrap();
    }
}

fn runtimes() -> [fn() -> tokio::runtime::Builder; 2] {
    [tokio::runtime::Builder::new_current_thread, tokio::runtime::Builder::new_multi_thread]
}

#[test]
fn a_runtimes_end_never_reads_as_the_clients_abort_on_http1() {
    for runtime in runtimes() {
        let ask = async |app, epilogue| client(serve(app, epilogue).await, false, 0);
        assert_eq!(after_the_runtimes_end(runtime(), ask), ConnectionStatus::NORMAL);
    }
}

/// The order in which a runtime drops its tasks, the connection's and its streams', depends on their number.
#[test]
fn a_runtimes_end_never_reads_as_the_clients_abort_on_http2() {
    for (runtime, before) in runtimes().into_iter().flat_map(|runtime| (0..12).map(move |before| (runtime, before))) {
        let ask = async |app, epilogue| client(serve(app, epilogue).await, true, before);
        assert_eq!(after_the_runtimes_end(runtime(), ask), ConnectionStatus::NORMAL, "{before} before");
    }
}

#[test]
fn a_runtimes_end_never_reads_as_the_clients_abort_without_a_server_of_ours() {
    for runtime in runtimes() {
        let ask = async |app: Router, _| {
            tokio::spawn(app.oneshot(Request::new(Body::empty())));
            Box::new(()) as Box<dyn Send>
        };
        assert_eq!(after_the_runtimes_end(runtime(), ask), ConnectionStatus::NORMAL);
    }
}

/// Outside of all our services, on a connection that lives on.
#[tokio::test(start_paused = true)]
async fn a_timeout_around_the_whole_service_never_reads_as_the_clients_abort() {
    use hyper_util::{rt::TokioIo, service::TowerToHyperService};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tower::Layer as _;

    let journal = tower_epilogue::test_util::Journal::new();
    let epilogue = journal.epilogue().build();
    let (mut client, io) = tokio::io::duplex(4096);
    let io = tower_epilogue::TrackedIo::new(io);
    let app = Router::new().route("/", get(pending::<()>));
    let limit = TimeoutLayer::with_status_code(http::StatusCode::REQUEST_TIMEOUT, Duration::from_secs(1));
    let service = TowerToHyperService::new(limit.layer(epilogue.wrap(&io, app)));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service);
    let connection = tokio::spawn(connection);
    client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    client.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    soon("the request ends", journal.ended(1)).await;
    let story = journal.only();
    story.assert_handler_dropped();
    story.assert_status(ConnectionStatus::NORMAL);
    drop(client);
    soon("the connection ends", connection).await.unwrap().unwrap();
}
