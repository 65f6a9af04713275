//! The function on whole buffered bodies: when it is called, with what, and what becomes of its result.

use std::io;

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, response::Parts};
use tower_epilogue::{Continuation, EarlyCloseLayer, ShutdownHookLayer};

use crate::support::{Notes, Server, ends, h2client::Http2, logs, soon, streamed};

fn shouts(notes: &Notes) -> EarlyCloseLayer {
    let notes = notes.clone();
    EarlyCloseLayer::new().buffer_limit(20).map_buffer(move |mut parts: Parts, bytes: Bytes| {
        let notes = notes.clone();
        async move {
            tokio::task::yield_now().await;
            let text = String::from_utf8(bytes.into()).map_err(io::Error::other)?;
            notes.add(format!("called with {text:?}"));
            parts.headers.insert("x-mapped", HeaderValue::from_static("yes"));
            Ok::<_, io::Error>((parts, text.to_uppercase() + "!"))
        }
    })
}

const PATHS: [&str; 6] = ["known", "streamed", "declared", "wrong", "empty", "empty-stream"];

fn answers(path: &str) -> Response {
    match path {
        "known" => "hello".into_response(),
        "streamed" => streamed(&["hel", "lo"]).into_response(),
        "declared" => ([(header::CONTENT_LENGTH, "5")], streamed(&["hel", "lo"])).into_response(),
        "wrong" => ([(header::CONTENT_LENGTH, "77")], streamed(&["hel", "lo"])).into_response(),
        "empty" => Body::empty().into_response(),
        "empty-stream" => streamed(&[]).into_response(),
        "large" => "far too large for it".repeat(2).into_response(),
        "large-stream" => streamed(&["far too large ", "for it, ", "and more"]).into_response(),
        "events" => ([(header::CONTENT_TYPE, "text/event-stream")], streamed(&["data: a\n\n"])).into_response(),
        "none" => StatusCode::NO_CONTENT.into_response(),
        "unmodified" => StatusCode::NOT_MODIFIED.into_response(),
        _ => panic!("no such path: {path}"),
    }
}

fn app(notes: &Notes) -> Router {
    let paths = PATHS.into_iter().chain(UNTOUCHED);
    let routes = paths.fold(Router::new(), |router, path| {
        router.route(&format!("/{path}"), get(async move || (Continuation::new(async {}), answers(path))))
    });
    routes.layer(shouts(notes))
}

const UNTOUCHED: [&str; 5] = ["large", "large-stream", "events", "none", "unmodified"];

#[tokio::test]
async fn a_whole_body_leaves_as_the_function_made_it() {
    for path in PATHS {
        let notes = Notes::default();
        let server = Server::start(app(&notes)).await;
        let (called, body) = if path.starts_with("empty") { ("", "!") } else { ("hello", "HELLO!") };
        let length = body.len().to_string();

        let reply = server.get(&format!("/{path}")).await;
        assert_eq!((reply.status, reply.text().as_str(), reply.header("x-mapped")), (200, body, Some("yes")), "{path}");
        assert_eq!((reply.header("content-length"), reply.header("connection")), (Some(&*length), Some("close")));
        assert_eq!(notes.all(), [format!("called with {called:?}")]);

        let whole = Http2::connect(server.address).await.get(&format!("/{path}")).await.unwrap();
        assert_eq!(
            (whole.headers[header::CONTENT_LENGTH].to_str().unwrap(), &whole.body[..]),
            (&*length, body.as_bytes())
        );
        assert!(!whole.headers.contains_key(header::CONNECTION));
        server.journal.ended(2).await;
        assert_eq!(server.journal.lines_of(server.journal.requests()[0]).last().unwrap(), "ended/0");
    }
}

#[tokio::test]
async fn it_is_not_called_for_what_streams() {
    let notes = Notes::default();
    let server = Server::start(app(&notes)).await;
    for path in UNTOUCHED {
        let reply = server.get(&format!("/{path}")).await;
        let framed =
            if reply.header("transfer-encoding").is_some() { reply.dechunked().unwrap() } else { reply.body.clone() };
        let plain = http_body_util::BodyExt::collect(answers(path).into_body()).await.unwrap().to_bytes();
        assert_eq!((framed, reply.header("x-mapped")), (plain.to_vec(), None), "{path}");
    }
    assert!(notes.all().is_empty(), "{:?}", notes.all());
}

#[tokio::test]
async fn a_head_request_is_answered_as_its_get() {
    for path in ["known", "streamed", "declared"] {
        let notes = Notes::default();
        let server = Server::start(app(&notes)).await;
        let mut heads = Vec::new();
        for method in ["GET", "HEAD"] {
            let mut client = server.connect().await;
            client.send(&format!("{method} /{path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            let reply = client.reply().await;
            assert_eq!(reply.body.is_empty(), method == "HEAD");
            heads.push(reply.sorted_head().join("\n"));
        }
        assert_eq!(heads[0], heads[1], "{path}");
        assert_eq!(notes.all().len(), 2);
    }
}

/// As a router does that is nested as a service: the body is gone before this layer sees it.
#[tokio::test]
async fn a_head_whose_body_was_taken_off_declares_no_length_that_is_not_known() {
    let notes = Notes::default();
    let inner = Router::new().route("/known", get(async || "hello"));
    let server = Server::start(Router::new().fallback_service(inner).layer(shouts(&notes))).await;
    let mut client = server.connect().await;
    client.send("HEAD /known HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (200, None, 0), "{}", reply.head);
    assert!(notes.all().is_empty());
}

#[tokio::test]
async fn it_may_change_the_status_even_to_one_without_a_body() {
    let empties = EarlyCloseLayer::new().map_buffer(async |mut parts: Parts, bytes: Bytes| {
        parts.status = StatusCode::NO_CONTENT;
        Ok::<_, io::Error>((parts, bytes))
    });
    let server = Server::start(Router::new().route("/", get(async || "hello")).layer(empties)).await;
    let mut client = server.connect().await;
    for _ in 0..2 {
        client.send_get("/").await;
        let reply = client.reply_by_length(true).await;
        assert_eq!((reply.status, reply.header("content-length"), reply.body.len()), (204, None, 0));
    }
}

#[tokio::test]
async fn it_may_make_a_head_of_its_own() {
    let replaces = EarlyCloseLayer::new().map_buffer(async |_, _| {
        let (parts, ()) = http::Response::builder().status(203).header("x-own", "1").body(()).unwrap().into_parts();
        Ok::<_, io::Error>((parts, &b"own"[..]))
    });
    let server = Server::start(Router::new().route("/", get(async || "hello")).layer(replaces)).await;
    let mut client = server.connect().await;
    client.send("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!(
        (reply.sorted_head(), reply.text().as_str()),
        (
            vec!["HTTP/1.0 203 Non Authoritative Information", "connection: close", "content-length: 3", "x-own: 1"],
            "own"
        )
    );
}

#[tokio::test]
async fn its_error_and_its_panic_are_a_500_and_the_continuation_runs() {
    let fails: [fn(HeaderMap) -> io::Result<()>; 2] =
        [|_| Err(io::Error::other("the function fails, as this test wants it")), |_| panic!("as this test wants it")];
    for (number, fail) in fails.into_iter().enumerate() {
        for at_once in [true, false] {
            let (hook, mut ends) = ends();
            let notes = Notes::default();
            let theirs = notes.clone();
            let layer = EarlyCloseLayer::new().map_buffer(move |parts: Parts, bytes: Bytes| {
                if at_once && number == 1 {
                    fail(parts.headers.clone()).unwrap();
                }
                async move {
                    tokio::task::yield_now().await;
                    fail(parts.headers.clone())?;
                    Ok::<_, io::Error>((parts, bytes))
                }
            });
            let handler = async move || (Continuation::new(async move { theirs.add("continuation") }), "hello");
            let app = Router::new().route("/", get(handler)).layer((layer, hook)).route("/ping", get(async || "pong"));
            let server = Server::start(app).await;
            let mut client = server.connect().await;
            client.send_get("/").await;
            let reply = client.reply().await;
            assert_eq!((reply.status, reply.header("connection")), (500, Some("close")));
            assert!(!reply.text().contains("this test"), "nothing of it is told to the client: {}", reply.text());
            let end = soon("a hook", ends.recv()).await.unwrap();
            assert_eq!(format!("{} {:?}", end.0, end.1), "NORMAL Flushed");
            notes.seen("continuation").await;
            assert_eq!(server.get("/ping").await.text(), "pong");
        }
    }
}

#[tokio::test]
async fn its_panic_is_told_to_hooks() {
    let (sender, mut panics) = tokio::sync::mpsc::unbounded_channel();
    let layers = (
        EarlyCloseLayer::new().map_buffer(async |parts: Parts, bytes: Bytes| {
            assert!(bytes.is_empty(), "as this test wants it");
            Ok::<_, io::Error>((parts, bytes))
        }),
        ShutdownHookLayer::new(async move |end| sender.send(end.panic()).unwrap()),
    );
    let server = Server::start(Router::new().route("/", get(async || "hello")).layer(layers)).await;
    assert_eq!(server.get("/").await.status, 500);
    assert_eq!(soon("a hook", panics.recv()).await.unwrap().as_deref(), Some("as this test wants it"));
}

#[tokio::test]
async fn the_length_of_the_body_before_is_neither_declared_nor_a_wrong_one() {
    let logs = logs();
    let layer = EarlyCloseLayer::new().map_buffer(async |mut parts: Parts, bytes: Bytes| {
        if parts.headers.remove("x-empties").is_some() {
            parts.status = StatusCode::NO_CONTENT;
            return Ok((parts, Bytes::new()));
        }
        Ok::<_, io::Error>((parts, Bytes::from([&bytes[..], b"!"].concat())))
    });
    let declares = |headers: [(&'static str, &'static str); 2]| get(async move || (headers, "twelve bytes"));
    let app = Router::new()
        .route("/grows", declares([("content-length", "12"), ("x-note", "grows")]))
        .route("/empties", declares([("content-length", "12"), ("x-empties", "yes")]))
        .layer(layer);
    let server = Server::start(app).await;
    for (path, length) in [("/grows", Some("13")), ("/empties", None)] {
        assert_eq!(server.get(path).await.header("content-length"), length, "{path}");
        let reply = Http2::connect(server.address).await.get(path).await.unwrap();
        assert_eq!(reply.headers.get("content-length").map(|length| length.to_str().unwrap()), length, "{path}");
    }
    let said = logs.with("wrong Content-Length");
    assert!(!said.iter().any(|line| line.contains("/grows")), "{said:#?}");
}

#[tokio::test]
async fn a_body_of_known_length_is_the_functions_up_to_the_limit() {
    for (length, called) in [(20, true), (21, false)] {
        let notes = Notes::default();
        let text = "x".repeat(length);
        let app = Router::new().route("/", get(async move || text.clone())).layer(shouts(&notes));
        assert_eq!(Server::start(app).await.get("/").await.header("x-mapped").is_some(), called, "{length}");
        assert_eq!(notes.all().len(), usize::from(called));
    }
}

#[tokio::test]
async fn of_a_head_whose_body_was_taken_off_no_length_is_declared_by_anybody() {
    let layer =
        EarlyCloseLayer::new().map_buffer(async |parts: Parts, bytes: Bytes| Ok::<_, io::Error>((parts, bytes)));
    let empty = async || ([(header::CONTENT_LENGTH, "12")], Body::empty());
    let server = Server::start(Router::new().route("/", get(empty)).layer(layer)).await;
    let mut client = server.connect().await;
    client.send("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(client.reply().await.header("content-length"), None);
    let mut client = Http2::connect(server.address).await;
    let head = soon("the head", client.start("HEAD", "/").await).await.unwrap();
    assert_eq!(head.headers().get("content-length"), None);
}
