//! A response whose body fails, or is not as long as its head says, is told of, once, whatever the body is and whoever still reads
//! it.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    middleware::{Next, from_fn},
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};
use http_body_util::StreamBody;
use tower_epilogue::{
    EarlyCloseLayer, Event, EventKind, IgnoreAbortLayer, Lifecycle, Output, OutputResponse, ShutdownHookLayer,
    TimeLimitLayer,
    test_util::{Leave, TestServer},
};

use crate::support::{Logs, h2client::Http2, logs, pumps};

fn broken() -> io::Error {
    io::Error::other("the upstream broke off")
}

fn failing() -> Body {
    Body::from_stream(stream::iter([Ok("half"), Err(broken())]))
}

/// Of known length, and fails before it.
struct Short(u8);

impl http_body::Body for Short {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0 += 1;
        Poll::Ready(Some(if self.0 == 1 { Ok(Frame::data(Bytes::from_static(b"half"))) } else { Err(broken()) }))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(8)
    }
}

async fn written(lifecycle: Lifecycle) -> OutputResponse {
    lifecycle.output(async |mut output: Output| {
        output.write("half").await.map_err(io::Error::from)?;
        Err(broken())
    })
}

/// Its writer is lost by mistake.
async fn forgotten() -> OutputResponse {
    let (output, response) = Output::channel();
    drop(output);
    response
}

fn app() -> Router {
    Router::new()
        .route("/fails/stream", get(async || failing()))
        .route("/fails/known", get(async || Body::new(Short(0))))
        .route("/fails/written", get(written))
        .route("/fails/forgotten", get(forgotten))
        .layer(TimeLimitLayer::off())
}

#[tokio::test]
async fn a_body_that_fails_is_told_of_once_with_its_route() {
    let logs = logs();
    let server = TestServer::on_socket(app()).await;
    for route in ["/fails/stream", "/fails/known", "/fails/written", "/fails/forgotten"] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        // What fails at once may break off before its head has left.
        client.read_to_end().await;
        server.settled().await;
        let lines = logs.with(&format!("route=\"GET {route}\""));
        assert_eq!(lines.len(), 1, "{route}: {lines:#?}");
        assert!(lines[0].contains("WARN") && lines[0].contains("a response's body failed"), "{lines:?}");
        let cause = if route.ends_with("forgotten") { "before it was finished" } else { "the upstream broke off" };
        assert!(lines[0].contains(cause), "{lines:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_reader_has_left_is_told_of_once_too() {
    let logs = logs();
    let later = async || {
        let wait = stream::once(async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err(broken())
        });
        Body::from_stream(stream::iter([Ok("half")]).chain(wait))
    };
    let writes = async |lifecycle: Lifecycle| {
        lifecycle.output(async |mut output: Output| {
            output.write("half").await.map_err(io::Error::from)?;
            tokio::time::sleep(Duration::from_secs(5)).await;
            Err::<(), _>(broken())
        })
    };
    let app = Router::new()
        .route("/left/stream", get(later))
        .route("/left/written", get(writes))
        .layer(IgnoreAbortLayer::new());
    let server = TestServer::in_memory(app);
    for route in ["/left/stream", "/left/written"] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        client.read_until("half").await;
        client.leave(Leave::Close).await;
        server.settled().await;
        let lines = logs.with(&format!("route=\"GET {route}\""));
        assert_eq!(lines.len(), 1, "{route}: {lines:#?}");
        assert!(lines[0].contains("whose reader had left failed"), "{lines:?}");
    }
}

/// Nothing comes behind them, and no server asks.
#[tokio::test]
async fn one_that_has_given_its_trailers_has_ended() {
    let trailers = async || {
        let frames = [Frame::data(Bytes::from("some")), Frame::trailers(http::HeaderMap::new())];
        Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>))))
    };
    let server = TestServer::on_socket(Router::new().route("/", get(trailers))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.response().await;
    Http2::connect(server.address().unwrap()).await.get("/").await.unwrap();
    server.settled().await;
    for story in server.journal().stories() {
        assert_eq!((story.count("body_end"), story.count("body_dropped")), (1, 0), "{story:?}");
        story.assert_contract();
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_or_has_panicked_is_not_told_of_again() {
    let logs = logs();
    let never = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let panics = || Body::from_stream(stream::poll_fn(|_| -> Poll<Option<io::Result<Bytes>>> { panic!("as wanted") }));
    let app = Router::new()
        .route("/cut/limit", get(async move || never()))
        .route("/cut/panic", get(async move || panics()))
        .layer(TimeLimitLayer::new(Duration::from_secs(1)));
    let server = TestServer::in_memory(app);
    for route in ["/cut/limit", "/cut/panic"] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        client.read_to_end().await;
        server.settled().await;
        let lines = logs.with(&format!("route=\"GET {route}\""));
        assert_eq!(lines.len(), 1, "{route}: {lines:#?}");
    }
}

#[tokio::test]
async fn one_that_fails_while_it_is_held_back_is_a_500_and_told_of_once() {
    let logs = logs();
    let panics = || Body::from_stream(stream::poll_fn(|_| -> Poll<Option<io::Result<Bytes>>> { panic!("as wanted") }));
    let app = Router::new()
        .route("/held/stream", get(async || failing()))
        .route("/held/written", get(written))
        .route("/held/panic", get(async move || panics()))
        .layer(EarlyCloseLayer::new());
    let server = TestServer::on_socket(app).await;
    for (route, said) in [
        ("/held/stream", "before its head was sent"),
        ("/held/written", "a response's body failed"),
        ("/held/panic", "a body panicked"),
    ] {
        assert_eq!(server.get(route).await.status, 500);
        server.settled().await;
        let lines = logs.with(&format!("route=\"GET {route}\""));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains(said), "{lines:?}");
    }
}

/// An echo's body fails when its upload does, which is when its client leaves: that is no failure of the app.
#[tokio::test]
async fn an_echo_whose_client_leaves_has_not_failed() {
    let logs = logs();
    let app = Router::new().route("/echo", post(async |body: Body| body)).layer(TimeLimitLayer::off());
    let mut asked = 0;
    let server = TestServer::on_socket(app).await;
    for how in [Leave::Fin, Leave::Close, Leave::Reset] {
        for _ in 0..10 {
            let mut client = server.connect().await;
            client.send("POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nhalf").await;
            client.read_until("half").await;
            client.leave(how).await;
            asked += 1;
        }
    }
    for breaks in [false, true] {
        for _ in 0..10 {
            let client = Http2::connect(server.address().unwrap()).await;
            let request = http::Request::post("http://test/echo").body(()).unwrap();
            let mut send = client.send.clone().ready().await.unwrap();
            let (response, mut upload) = send.send_request(request, false).unwrap();
            upload.send_data(Bytes::from_static(b"half"), false).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "half");
            asked += 1;
            if breaks {
                client.abort();
            } else {
                upload.send_reset(h2::Reason::CANCEL);
                drop(body);
                server.journal().ended(asked).await;
            }
        }
    }
    server.journal().ended(asked).await;
    let stories = server.journal().stories();
    assert!(stories.iter().all(|story| story.status().is_aborted()), "{stories:?}");
    let lines = logs.with("route=\"POST /echo\"");
    assert_eq!(lines, Vec::<String>::new());
}

/// A reader that takes long is given up on, and its request has ended: it may read on all the same.
#[tokio::test]
async fn one_that_fails_behind_the_end_of_its_request_is_told_of_once_too() {
    const ROOM: usize = 65_535;

    struct Long(usize);

    impl http_body::Body for Long {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            self.0 += 1;
            Poll::Ready(match self.0 {
                1..=3 => Some(Ok(Frame::data(Bytes::from(vec![b'x'; ROOM])))),
                4 => Some(Err(broken())),
                _ => None,
            })
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(ROOM as u64 * 4)
        }
    }

    let logs = logs();
    let app = Router::new()
        .route("/late/stream", get(async || Body::from_stream(Body::new(Long(0)).into_data_stream())))
        .route("/late/known", get(async || Body::new(Long(0))))
        .layer(ShutdownHookLayer::new(async |_| {}));
    // Around our layers.
    let pumped = async |request: Request, next: Next| match request.uri().path() {
        "/late/stream" => pumps(request, next).await,
        _ => next.run(request).await,
    };
    let app = app.layer(from_fn(pumped));
    for route in ["/late/known", "/late/stream"] {
        let events = Arc::new(AtomicUsize::new(0));
        let counts = events.clone();
        let failed = move |event: &Event| {
            counts.fetch_add(usize::from(*event.kind() == EventKind::BodyFailed), Ordering::SeqCst);
        };
        let patience = Duration::from_millis(20);
        let builder = TestServer::builder().epilogue(|builder| builder.patience(patience).on_event(failed));
        let server = builder.on_socket(app.clone()).await;
        let mut client = Http2::connect(server.address().unwrap()).await;
        let mut body = client.start("GET", route).await.await.unwrap().into_body();
        let mut read = 0;
        while read < ROOM {
            read += body.data().await.unwrap().unwrap().len();
        }
        let told = |logs: &Logs, what: &str| {
            let lines = logs.with(&format!("route=\"GET {route}\"")).into_iter();
            lines.filter(|line| line.contains(what)).collect::<Vec<_>>()
        };
        logs.until("it is given up on", |logs| !told(logs, "the reader is slow").is_empty()).await;
        if route == "/late/known" {
            server.journal().ended(1).await;
        }
        let failed = loop {
            body.flow_control().release_capacity(read).unwrap();
            match body.data().await.expect("it does not end in order") {
                Ok(data) => read = data.len(),
                Err(error) => break error,
            }
        };
        assert!(failed.is_reset(), "{failed}");
        logs.until("it is told of", |logs| !told(logs, "failed").is_empty()).await;
        server.stop().await;
        let lines = told(&logs, "failed");
        assert!(lines.len() == 1 && lines[0].contains("the upstream broke off"), "{lines:#?}");
        // Behind `Ended` no event comes.
        assert_eq!(events.load(Ordering::SeqCst), usize::from(route == "/late/stream"), "{route}");
    }
}

#[tokio::test]
async fn a_length_that_is_declared_wrong_is_told_of_once_with_its_route() {
    let logs = logs();
    let declared =
        || ([(CONTENT_LENGTH, "2")], Body::from_stream(stream::iter(["hel", "lo"].map(Ok::<_, Infallible>))));
    let app = Router::new()
        .route("/wrong/measured", get(async move || declared()).layer(EarlyCloseLayer::new()))
        .route("/wrong/streamed", get(async move || declared()).layer(EarlyCloseLayer::new().buffer_limit(3)))
        .layer(EarlyCloseLayer::new());
    let server = TestServer::on_socket(app).await;
    for (route, told) in [("/wrong/measured", "it was corrected"), ("/wrong/streamed", "it was left out")] {
        let mut client = server.connect().await;
        client.send_get(route).await;
        client.read_to_end().await;
        server.settled().await;
        let lines = logs.with(&format!("route=\"GET {route}\""));
        assert!(lines.len() == 1 && lines[0].contains(told) && lines[0].contains("WARN"), "{route}: {lines:#?}");
    }
}
