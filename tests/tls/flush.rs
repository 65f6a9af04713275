//! No continuation starts before the kernel has every encrypted byte of its response.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Path,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tower_epilogue::{Continuation, Event, Tracking};

use crate::{
    server::{Encrypted, Through, Tls, connect, received},
    support::soon,
};

const MANY: usize = 6_000_000;
/// The shape of a response, its method, and the bytes of its body.
const SHAPES: [(&str, &str, usize); 9] = [
    ("small", "GET", 5),
    ("piece", "GET", 300_000),
    ("many", "GET", MANY),
    ("parts", "GET", MANY),
    ("declared", "GET", 30_000),
    ("small", "HEAD", 0),
    ("204", "GET", 0),
    ("empty", "GET", 0),
    ("nothing", "GET", 0),
];

fn respond(shape: &str) -> Response {
    let parts = |count, size| {
        let bytes = Bytes::from(vec![b'x'; size]);
        Body::from_stream(stream::iter(std::iter::repeat_n(bytes, count)).map(Ok::<_, io::Error>))
    };
    match shape {
        "small" => "small".into_response(),
        "piece" => vec![b'x'; 300_000].into_response(),
        "many" => vec![b'x'; MANY].into_response(),
        "parts" => parts(MANY / 10_000, 10_000).into_response(),
        "declared" => ([(header::CONTENT_LENGTH, "30000")], parts(10, 3_000)).into_response(),
        "204" => StatusCode::NO_CONTENT.into_response(),
        "empty" => ().into_response(),
        "nothing" => parts(0, 0).into_response(),
        _ => unreachable!("there is no shape {shape}"),
    }
}

type Starts = mpsc::UnboundedReceiver<u64>;

/// Its continuations tell what the kernel had taken when they began.
fn app() -> (Router, Starts) {
    let (starts, started) = mpsc::unbounded_channel();
    let handler = async move |Path(shape): Path<String>, Extension(taken): Extension<Through>| {
        (Continuation::new(async move { starts.send(taken.bytes()).unwrap() }), respond(&shape))
    };
    (Router::new().route("/{shape}", any(handler)), started)
}

/// Reads one response in small pieces, with something else in between if `slow`.
async fn read_http1(client: &mut Encrypted, bodiless: bool, slow: bool) -> usize {
    let mut bytes = Vec::new();
    let mut piece = vec![0; if slow { 16 * 1024 } else { 256 * 1024 }];
    loop {
        if let Some(body) = body_of(&bytes, bodiless) {
            return body;
        }
        for _ in 0..if slow { 5 } else { 0 } {
            tokio::task::yield_now().await;
        }
        let read = client.read(&mut piece).await.unwrap();
        assert!(read > 0, "closed early");
        bytes.extend_from_slice(&piece[..read]);
    }
}

/// The length of the body, if it is whole; all are of `x` or `small`, so that a chunk's frame is told from it.
fn body_of(bytes: &[u8], bodiless: bool) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    if bodiless {
        return Some(0);
    }
    if let Some(length) = head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        return (bytes.len() - end == length.parse::<usize>().unwrap()).then_some(bytes.len() - end);
    }
    bytes.ends_with(b"0\r\n\r\n").then(|| bytes[end..].iter().filter(|byte| **byte == b'x').count())
}

async fn http1(client: &mut Encrypted, (shape, method, _): (&str, &str, usize), slow: bool) -> usize {
    client.write_all(format!("{method} /{shape} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    // Without it the bytes may stay in the encryption: where the task's budget is used up, nothing is written.
    client.flush().await.unwrap();
    read_http1(client, method == "HEAD" || shape == "204", slow).await
}

async fn http2(
    send: &mut h2::client::SendRequest<Bytes>,
    (shape, method, _): (&str, &str, usize),
    slow: bool,
) -> usize {
    let request = Request::builder().method(method).uri(format!("https://localhost/{shape}")).body(()).unwrap();
    let response = send.clone().ready().await.unwrap().send_request(request, true).unwrap().0.await.unwrap();
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        length += data.len();
        for _ in 0..if slow { 5 } else { 0 } {
            tokio::task::yield_now().await;
        }
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    assert!(body.trailers().await.unwrap().is_none());
    length
}

async fn all_shapes(slow: bool) {
    let buffer = slow.then_some(32 * 1024);
    for _ in 0..if slow { 2 } else { 10 } {
        let (app, mut starts) = app();
        let server = Tls::with(app, Tracking::new(), buffer).await;

        let mut client = connect(server.address, "http/1.1", buffer).await;
        let received_by = received(&client);
        for shape in SHAPES {
            assert_eq!(soon(shape.0, http1(&mut client, shape, slow)).await, shape.2, "{shape:?}");
            let taken = soon("its continuation", starts.recv()).await.unwrap();
            assert!(taken >= received_by.bytes(), "HTTP/1.1, {shape:?}, {taken} of {}", received_by.bytes());
        }

        let client = connect(server.address, "h2", buffer).await;
        let received_by = received(&client);
        let (mut send, connection) = h2::client::handshake(client).await.unwrap();
        let connection = tokio::spawn(connection);
        for shape in SHAPES {
            assert_eq!(soon(shape.0, http2(&mut send, shape, slow)).await, shape.2, "{shape:?}");
            let end = received_by.bytes();
            let taken = soon("its continuation", starts.recv()).await.unwrap();
            assert!(taken >= end, "HTTP/2, {shape:?}: {taken} of {end}");
        }
        connection.abort();
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_continuation_starts_before_the_kernel_has_every_encrypted_byte() {
    all_shapes(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_for_a_slow_reader() {
    all_shapes(true).await;
}

/// One worker, which the continuation takes for itself, until its client has the whole response.
#[tokio::test]
async fn a_continuation_that_blocks_its_worker_does_not_delay_its_own_client() {
    let (has_it, told) = std::sync::mpsc::channel::<()>();
    let told = Arc::new(Mutex::new(told));
    let (outcome, outcomes) = std::sync::mpsc::channel();
    let handler = async move |Path(shape): Path<String>| {
        let blocks = Continuation::new(async move {
            let _ = outcome.send(told.lock().unwrap().recv_timeout(Duration::from_secs(10)));
        });
        (blocks, respond(&shape))
    };
    let app = Router::new().route("/{shape}", any(handler));
    let (tell, address) = tokio::sync::oneshot::channel();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Tls::start(app).await;
            tell.send(server.address).unwrap();
            server.journal.until("all end", |events| ended(events) == 6).await;
            assert!(server.stop().await.is_clean());
        });
    });
    let address = address.await.unwrap();
    for shape in [SHAPES[0], SHAPES[1], SHAPES[3]] {
        let mut client = connect(address, "http/1.1", None).await;
        assert_eq!(http1(&mut client, shape, false).await, shape.2);
        has_it.send(()).unwrap();
        assert_eq!(outcomes.recv().unwrap(), Ok(()), "HTTP/1.1, {shape:?}");

        let (mut send, connection) = h2::client::handshake(connect(address, "h2", None).await).await.unwrap();
        let connection = tokio::spawn(connection);
        assert_eq!(http2(&mut send, shape, false).await, shape.2);
        has_it.send(()).unwrap();
        assert_eq!(outcomes.recv().unwrap(), Ok(()), "HTTP/2, {shape:?}");
        connection.abort();
    }
    server.join().unwrap();
}

fn ended(events: &[Event]) -> usize {
    events.iter().filter(|event| event.kind().name() == "ended").count()
}
