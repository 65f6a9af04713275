//! Clients that stop, half-close, read slowly and pipeline, on a socket and in memory.

use std::{io::ErrorKind, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{get, post},
};
use http_body_util::BodyExt as _;
use tower_epilogue::{
    ConnectionStatus, HalfClose, IgnoreAbortLayer, Lifecycle, Tracking,
    test_util::{Leave, TestServer},
};

const LARGE: usize = 4 * 1024 * 1024;

fn app() -> Router {
    Router::new()
        .route("/", get(async || "hello").head(async || "hello"))
        .route("/echo", post(async |body: Bytes| body))
        .route("/large", get(async || vec![b'x'; LARGE]))
        .route("/wait", get(std::future::pending::<()>))
}

async fn servers() -> [TestServer; 2] {
    [TestServer::on_socket(app()).await, TestServer::in_memory(app())]
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_on_one_connection() {
    for server in servers().await {
        let mut client = server.connect().await;
        client.pipeline(&["/", "/missing", "/"]).await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(client.response().await.status.as_u16());
        }
        assert_eq!(statuses, [200, 404, 200]);
        client.send_post("/echo", "and so on").await;
        assert_eq!(client.response().await.text(), "and so on");
        client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let head = client.response_to_head().await;
        assert_eq!((head.header("content-length"), head.body.len(), head.whole), (Some("5"), 0, true));
        server.settled().await;
        assert_eq!(server.journal().stories().len(), 5);
        server.journal().assert_contract();
    }
}

#[tokio::test]
async fn a_request_that_stops_half_way_never_begins() {
    let request = "POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody";
    for server in servers().await {
        for count in [0, 10, 30] {
            for how in [Leave::Close, Leave::Reset] {
                server.connect().await.stop_request_at(request, count, how).await;
            }
        }
        server.settled().await;
        assert!(server.journal().events().is_empty(), "{}", server.journal());
        // Its head was whole: the handler begins, and its body never comes.
        let mut client = server.connect().await;
        client.stop_request_at(request, request.len() - 2, Leave::Silence).await;
        server.journal().begun(1).await;
        client.leave(Leave::Fin).await;
        server.settled().await;
        server.journal().only().assert_aborted();
    }
}

#[tokio::test]
async fn a_response_that_is_read_half_way_was_aborted() {
    for server in servers().await {
        let leaves = [Leave::Close, Leave::Reset];
        for how in leaves {
            // So narrow that the response cannot have left.
            let mut client = server.connect_narrow(4096).await;
            client.send_get("/large").await;
            let read = client.stop_response_at(3000, how).await;
            assert!(read.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
        server.settled().await;
        assert_eq!(server.journal().stories().len(), leaves.len());
        for story in server.journal().stories() {
            story.assert_status(ConnectionStatus::ABORTED);
            story.assert_not_flushed();
        }
    }
}

#[tokio::test]
async fn silence_tells_the_server_nothing() {
    for server in servers().await {
        let mut client = server.connect().await;
        client.send_get("/wait").await;
        client.leave(Leave::Silence).await;
        server.journal().begun(1).await;
        let settles = tokio::time::timeout(Duration::from_millis(50), server.settled()).await;
        assert!(settles.is_err(), "its handler waits: {}", server.journal());
        client.leave(Leave::Close).await;
        server.settled().await;
        server.journal().only().assert_handler_dropped();
    }
}

#[tokio::test]
async fn a_half_closed_client_is_served_where_that_is_set() {
    let tracking = Tracking::new().half_close(HalfClose::Serve);
    let server = TestServer::builder().epilogue(|epilogue| epilogue.tracking(tracking)).on_socket(app()).await;
    let mut client = server.connect().await;
    client.send_get("/large").await;
    client.half_close().await;
    let response = client.response().await;
    response.assert_whole();
    assert_eq!(response.body.len(), LARGE);
    server.settled().await;
    server.journal().only().assert_status(ConnectionStatus::NORMAL);
}

#[tokio::test]
async fn a_half_closed_client_has_left_otherwise() {
    for server in servers().await {
        let mut client = server.connect().await;
        client.send_get("/wait").await;
        server.journal().begun(1).await;
        client.leave(Leave::Fin).await;
        let (read, _) = client.read_to_end().await;
        assert!(read.is_empty());
        server.settled().await;
        server.journal().only().assert_aborted();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_takes_its_time() {
    let server = TestServer::in_memory(app());
    let mut client = server.connect_narrow(1000).await;
    client.read_slowly(1000, Duration::from_secs(1));
    client.send_get("/large").await;
    let began = tokio::time::Instant::now();
    let response = client.response().await;
    assert_eq!(response.body.len(), LARGE);
    assert!(began.elapsed() >= Duration::from_secs(LARGE as u64 / 1000), "{:?}", began.elapsed());
    server.settled().await;
    let story = server.journal().only();
    let flushed = story.events().iter().find(|event| event.kind().name() == "flushed").unwrap();
    assert!(flushed.at() >= Duration::from_secs(LARGE as u64 / 1000 - 5), "{story}");
}

#[tokio::test]
async fn a_reader_on_a_narrow_socket_is_waited_for() {
    let server = TestServer::on_socket(app()).await;
    let mut client = server.connect_narrow(4096).await;
    client.send_get("/large").await;
    client.read(1).await;
    server.journal().only().assert_not_flushed();
    client.read(LARGE).await;
    server.settled().await;
    server.journal().only().assert_flushed();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_takes_no_more_than_it_says_and_finds_what_comes_byte_by_byte() {
    let server = TestServer::in_memory(app());
    let mut client = server.connect().await;
    // Of none it would never read.
    client.read_slowly(0, Duration::from_secs(1));
    client.send_get("/").await;
    let began = tokio::time::Instant::now();
    let head = client.read_until("\r\n\r\n").await;
    assert!(head.ends_with(b"\r\n\r\n"));
    assert_eq!(began.elapsed().as_secs(), head.len() as u64);
    client.read_slowly(2, Duration::from_secs(1));
    assert_eq!(client.read(5).await, "hello");
    assert_eq!(began.elapsed().as_secs(), head.len() as u64 + 3);
}

#[tokio::test]
async fn a_client_may_be_as_narrow_and_stop_as_late_as_it_likes() {
    let server = TestServer::in_memory(app());
    let mut client = server.connect_narrow(0).await;
    client.send_get("/").await;
    assert_eq!(client.response().await.text(), "hello");
    let request = "GET /wait HTTP/1.1\r\nhost: test\r\n\r\n";
    server.connect().await.stop_request_at(request, usize::MAX, Leave::Silence).await;
    server.journal().begun(2).await;
}

/// That of a reset is another than that of a close: the server's next read fails, and does not end.
#[tokio::test]
async fn a_reset_is_one() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let upload = async move |_: Lifecycle, body: Body| {
        let error = body.collect().await.unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        let kinds = causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        tell.send(kinds.collect::<Vec<_>>()).unwrap();
    };
    let app = Router::new().route("/", post(upload)).layer(IgnoreAbortLayer::new());
    let server = TestServer::on_socket(app).await;
    for (how, kinds) in
        [(Leave::Reset, vec![ErrorKind::ConnectionReset]), (Leave::Close, vec![ErrorKind::UnexpectedEof])]
    {
        let mut client = server.connect().await;
        client.send("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbo").await;
        server.journal().until(|stories| stories.last().is_some_and(|story| story.count("handler_start") == 1)).await;
        client.leave(how).await;
        assert_eq!(told.recv().await.unwrap(), kinds, "{how:?}");
        server.settled().await;
    }
}
