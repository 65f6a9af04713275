//! HTTP/2 clients that know how long a body is, and do not wait for the end of its stream (RFC 9113, section 8.1.1).

use axum::{Router, body::Body, http::header, response::IntoResponse as _, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use crate::{
    common::reset_when_dropped,
    frames::{DATA, RST_STREAM, RawHttp2, frame, request},
    support::{Server, soon},
};

const TEN_MB: usize = 10_000_000;

fn app() -> Router {
    let pieces = |count: usize| {
        let bytes = Bytes::from(vec![b'x'; 5_000]);
        let body = Body::from_stream(stream::iter((0..count).map(move |_| Ok::<_, std::io::Error>(bytes.clone()))));
        ([(header::CONTENT_LENGTH, (count * 5_000).to_string())], body)
    };
    Router::new()
        .route("/small", get(async || "small"))
        .route("/piece", get(async || vec![b'x'; 100_000]))
        .route("/pieces", get(async move || pieces(20)))
        .route("/ten", get(async || vec![b'x'; TEN_MB]))
        .route("/ten-in-pieces", get(async move || pieces(TEN_MB / 5_000)))
        .route("/unknown", get(async || Body::from_stream(stream::iter([Ok::<_, std::io::Error>("so much")]))))
}

/// Asks, and reads so many bytes of the body at least.
async fn read(server: &Server, path: &str, length: usize) -> RawHttp2 {
    let mut client = RawHttp2::connect(server.address).await;
    client.send(&request("GET", path, 1, true)).await;
    let mut read = 0;
    while read < length {
        // One frame at a time, so that the end of the stream is not read along.
        let next = soon("a frame", client.next(9)).await.unwrap().expect("the connection is open");
        if next.stream == 1 && next.kind == DATA {
            read += next.payload.len();
        }
    }
    client
}

/// Resets its stream, or its connection, or closes that.
async fn leave(mut client: RawHttp2, how: u32) {
    match how % 3 {
        0 => client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await,
        1 => reset_when_dropped(&client.stream),
        _ => {}
    }
}

/// With two threads, since it is a race: the client leaves before, while and after the end of its stream leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_with_every_byte_of_a_known_length_has_not_aborted() {
    let server = Server::start(app()).await;
    let mut count = 0;
    for round in 0..60 {
        for (path, length) in [("/small", 5), ("/piece", 100_000), ("/pieces", 100_000)] {
            let client = read(&server, path, length).await;
            leave(client, round).await;
            count += 1;
        }
    }
    server.journal.ended(count).await;
    for request in server.journal.requests() {
        let lines = server.journal.lines_of(request);
        assert!(lines.iter().any(|line| line.starts_with("flushed")), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/0", "{lines:?}");
    }
    assert!(server.stop().await.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_before_has_aborted() {
    let server = Server::start(app()).await;
    let mut count = 0;
    for round in 0..12 {
        for path in ["/ten", "/ten-in-pieces"] {
            let mut client = read(&server, path, 20_000).await;
            match round % 3 {
                0 => {
                    client.send(&frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
                    // The connection goes on, and is flushed.
                    tokio::spawn(client.read_on());
                }
                1 => reset_when_dropped(&client.stream),
                _ => {}
            }
            count += 1;
        }
    }
    server.journal.ended(count).await;
    for (number, request) in server.journal.requests().into_iter().enumerate() {
        let lines = server.journal.lines_of(request);
        let left = ["reset its stream", "lost its connection", "closed"][number / 2 % 3];
        assert!(!lines.iter().any(|line| line.starts_with("flushed")), "{left}: {lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/1", "{left}: {lines:?}");
    }
    assert!(server.stop().await.is_clean());
}

/// Of unknown length: the end of the stream is what counts. Another response keeps the connection writing, so that the
/// turn in which the end leaves has not ended when the next write fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_with_the_end_of_the_stream_has_not_aborted() {
    let server = Server::start(app()).await;
    for round in 0..100 {
        let mut client = RawHttp2::connect(server.address).await;
        let both = [request("GET", "/ten", 1, true), request("GET", "/unknown", 3, true)].concat();
        client.send(&both).await;
        loop {
            let next =
                soon("a frame", client.next(1 + 1_000 * (round % 7))).await.unwrap().expect("the connection is open");
            if next.stream == 3 && next.ends_its_stream() {
                break;
            }
        }
        if round % 2 == 0 {
            reset_when_dropped(&client.stream);
        }
    }
    server.journal.ended(200).await;
    let mut ends = [0, 0];
    for request in server.journal.requests() {
        let lines = server.journal.lines_of(request);
        let flushed = lines.iter().any(|line| line.starts_with("flushed"));
        assert_eq!(lines.last().unwrap(), if flushed { "ended/0" } else { "ended/1" }, "{lines:?}");
        ends[usize::from(flushed)] += 1;
    }
    assert!(ends[1] >= 100, "each of unknown length was read to its end, and {} responses were flushed", ends[1]);
    assert!(server.stop().await.is_clean());
}

/// As on HTTP/1, where the server lets go of such a body: nobody waits for its end who knows how long it is. But who was told
/// of trailers waits for those.
#[tokio::test]
async fn who_leaves_with_every_byte_has_not_aborted_where_the_body_has_not_ended_either() {
    for (pieces, announced) in [(1, false), (20, false), (1, true)] {
        for how in 0..3 {
            let handler = async move || {
                let bytes = Bytes::from(vec![b'x'; 100_000 / pieces]);
                let all = stream::iter((0..pieces).map(move |_| Ok::<_, std::io::Error>(bytes.clone())));
                let body = Body::from_stream(all.chain(stream::pending()));
                let mut response = ([(header::CONTENT_LENGTH, "100000")], body).into_response();
                if announced {
                    response.headers_mut().insert(header::TRAILER, "x-end".parse().unwrap());
                }
                response
            };
            let server = Server::start(Router::new().route("/", get(handler))).await;
            let client = read(&server, "/", 100_000).await;
            leave(client, how).await;
            server.journal.ended(1).await;
            let lines = server.journal.lines();
            let flushed = lines.iter().any(|line| line == "flushed:100000/0");
            assert_eq!(flushed, !announced, "in {pieces}, {how}: {lines:?}");
            let end = if announced { "ended/1" } else { "ended/0" };
            assert_eq!(lines.last().unwrap(), end, "in {pieces}, {how}: {lines:?}");
            assert!(server.stop().await.is_clean());
        }
    }
}

/// Nor if there is no byte to wait for.
#[tokio::test]
async fn who_leaves_with_the_head_of_a_response_of_no_byte_has_not_aborted() {
    for how in 0..3 {
        let handler = async || {
            let body = Body::from_stream(stream::pending::<std::io::Result<Bytes>>());
            ([(header::CONTENT_LENGTH, "0")], body)
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        let mut client = RawHttp2::connect(server.address).await;
        client.send(&request("GET", "/", 1, true)).await;
        client.until(|frame| frame.stream == 1).await;
        leave(client, how).await;
        server.journal.ended(1).await;
        let lines = server.journal.lines();
        assert!(lines.iter().any(|line| line == "flushed:0/0"), "{how}: {lines:?}");
        assert_eq!(lines.last().unwrap(), "ended/0", "{how}: {lines:?}");
        assert!(server.stop().await.is_clean());
    }
}
