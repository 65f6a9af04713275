//! Beside tower-http's layers, wherever those stand.

use axum::body::Body;
use futures_util::future::join_all;
use http::{Response, header};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceExt};
use tower_http::decompression::DecompressionLayer;

use crate::{
    app::{App, ROWS, Row},
    run::{Answer, Way, ask, check},
    stack::{Applied, Kind, OURS, Stack, THEIRS, orders, request},
    support::{
        Server,
        h2client::{Http2, read},
        soon,
    },
};

/// `kind` at each place of each order of ours in which each of ours is in each place.
fn with_one_of_theirs(kind: Kind) -> impl Iterator<Item = Stack> {
    let orders = (0..OURS.len()).flat_map(|turn| {
        let mut forth = OURS;
        forth.rotate_left(turn);
        let mut back = forth;
        back.reverse();
        [forth, back]
    });
    orders.flat_map(move |ours| {
        (0..=ours.len()).map(move |place| {
            let mut kinds = ours.to_vec();
            kinds.insert(place, kind);
            Stack { kinds, applied: if place % 2 == 0 { Applied::OneByOne } else { Applied::OneTuple } }
        })
    })
}

fn with_each_of_theirs() -> impl Iterator<Item = Stack> {
    THEIRS.into_iter().flat_map(with_one_of_theirs)
}

/// All eight: in turns, in two blocks, and each of these turned and reversed.
fn with_all_of_theirs() -> impl Iterator<Item = Stack> {
    let in_turns: Vec<_> = OURS.into_iter().zip(THEIRS).flat_map(|(ours, theirs)| [ours, theirs]).collect();
    let in_blocks = [THEIRS, OURS].concat();
    [in_turns, in_blocks].into_iter().flat_map(|kinds| {
        (0..kinds.len()).flat_map(move |turn| {
            let mut forth = kinds.clone();
            forth.rotate_left(turn);
            let mut back = forth.clone();
            back.reverse();
            [forth, back].map(|kinds| Stack { kinds, applied: Applied::ServiceBuilder })
        })
    })
}

/// Theirs alone, under a server of ours.
fn theirs_alone() -> impl Iterator<Item = Stack> {
    orders(&THEIRS).into_iter().map(|kinds| Stack { kinds, applied: Applied::OneByOne })
}

#[tokio::test]
async fn each_of_theirs_in_each_place_keeps_the_contract_on_http1() {
    check(with_each_of_theirs(), &ROWS, Way::Http1).await;
}

#[tokio::test]
async fn each_of_theirs_in_each_place_keeps_the_contract_on_http2() {
    check(with_each_of_theirs(), &ROWS, Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn each_of_theirs_in_each_place_keeps_the_contract_without_a_server_of_ours() {
    check(with_each_of_theirs(), &ROWS, Way::Alone).await;
}

#[tokio::test]
async fn all_of_theirs_together_keep_the_contract_on_http1() {
    check(with_all_of_theirs().chain(theirs_alone()), &ROWS, Way::Http1).await;
}

#[tokio::test]
async fn all_of_theirs_together_keep_the_contract_on_http2() {
    check(with_all_of_theirs().chain(theirs_alone()), &ROWS, Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn all_of_theirs_together_keep_the_contract_without_a_server_of_ours() {
    check(with_all_of_theirs(), &ROWS, Way::Alone).await;
}

#[tokio::test]
async fn their_timeout_is_not_the_clients_abort_on_http1() {
    check(with_one_of_theirs(Kind::Timeout), &[Row::TheirTimeout], Way::Http1).await;
}

#[tokio::test]
async fn their_timeout_is_not_the_clients_abort_on_http2() {
    check(with_one_of_theirs(Kind::Timeout), &[Row::TheirTimeout], Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn their_timeout_inside_of_ours_is_not_the_clients_abort_without_a_server_of_ours() {
    let inside = with_one_of_theirs(Kind::Timeout).filter(|stack| stack.kinds[0] != Kind::Timeout);
    check(inside, &[Row::TheirTimeout], Way::Alone).await;
}

/// What the manual says is lost without a tracked connection.
#[tokio::test(start_paused = true)]
async fn their_timeout_around_all_of_ours_reads_as_an_abort_without_a_tracked_connection() {
    for ours in [Kind::EarlyClose, Kind::TimeLimit, Kind::ShutdownHook] {
        let stack = Stack { kinds: vec![Kind::Timeout, ours], applied: Applied::OneByOne };
        let app = App::new(Row::TheirTimeout, true);
        let seen = ask(&app, stack.around(&app), Way::Alone).await;
        assert_eq!(seen.answer.unwrap().status, 504);
        assert_eq!(seen.notes.last().unwrap(), "handler's hook: ABORTED, Aborted", "{stack:?}");
    }
}

#[tokio::test]
async fn a_compressed_answer_keeps_the_contract() {
    for way in [Way::Http1, Way::Http2] {
        join_all(with_one_of_theirs(Kind::Compression).map(|stack| compressed(stack, way))).await;
    }
}

async fn compressed(stack: Stack, way: Way) {
    let app = App::new(Row::Large, true);
    let server = Server::start(stack.around(&app)).await;
    let (bytes, head) = gzipped(&server, way).await;
    let journal = server.journal.clone();
    assert!(server.stop().await.is_clean());
    let flushed = format!("flushed:{}/0", bytes.len());
    // Where the compressor stands inside of ours, the handler's answer has no known length.
    let body: &[&str] = if stack.ours_around(Kind::Compression).1 == 0 { &["body_end/0"] } else { &[] };
    let went = [&["handler_start/0", "handler_end/0"], body, &[&flushed, "continuation_start/0", "continuation_end/0"]];
    let ended = ["hook_start:0/0", "hook_end:0/0", "hook_start:1/0", "hook_end:1/0", "ended/0"];
    assert_eq!(journal.lines(), [&went.concat()[..], &ended].concat(), "{stack:?}");
    let hooks = ["continuation", "layer's hook: NORMAL, Flushed", "handler's hook: NORMAL, Flushed"];
    assert_eq!(app.notes.all(), hooks, "{stack:?}");
    // The compressor does not know a length: only what stands outside of it can declare one.
    let measured = stack.place(Kind::EarlyClose) < stack.place(Kind::Compression);
    let expected = Answer {
        status: 200,
        body: "large ".repeat(1000),
        length: measured.then_some(bytes.len() as u64),
        close: way == Way::Http1,
    };
    assert_eq!(Answer { body: gunzip(bytes).await, ..head }, expected, "{stack:?} {way:?}");
}

/// The body as it came, and the rest of the answer.
async fn gzipped(server: &Server, way: Way) -> (Vec<u8>, Answer) {
    if way == Way::Http1 {
        let mut client = server.connect().await;
        client.send("GET /large HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
        let reply = client.response(false).await;
        assert_eq!(reply.header("content-encoding"), Some("gzip"));
        let length = reply.header("content-length").map(|length| length.parse().unwrap());
        let close = reply.header("connection") == Some("close");
        return (reply.body, Answer { status: reply.status, body: String::new(), length, close });
    }
    let mut client = Http2::connect(server.address).await;
    let mut request = request("GET", "http://test/large").map(drop);
    request.headers_mut().insert(header::ACCEPT_ENCODING, "gzip".parse().unwrap());
    let response = client.send.send_request(request, true).unwrap().0;
    let whole = soon("a response", async { read(response.await.unwrap()).await.unwrap() }).await;
    assert_eq!(whole.headers["content-encoding"], "gzip");
    let length = whole.headers.get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
    let close = whole.headers.contains_key("connection");
    (whole.body, Answer { status: whole.status, body: String::new(), length, close })
}

async fn gunzip(bytes: Vec<u8>) -> String {
    let server = tower::service_fn(async |_: axum::extract::Request| {
        let response = Response::builder().header(header::CONTENT_ENCODING, "gzip");
        response.body(Body::from(bytes.clone()))
    });
    let mut client = DecompressionLayer::new().layer(server);
    let response = client.ready().await.unwrap().call(request("GET", "/")).await.unwrap();
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}
