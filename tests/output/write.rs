//! Writing, flushing, and a client that reads slowly.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, header},
    response::IntoResponse,
    routing::get,
};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;
use tower_epilogue::{Lifecycle, Output, OutputError, TimeLimitLayer};

use crate::{
    support::{Client, Gate, MemoryServer, Notes, PATIENCE, Server, h2client::Http2, soon},
    written,
};

#[tokio::test]
async fn the_client_reads_each_step_before_the_next_is_written() {
    for flushes in [true, false] {
        let (first, second) = (Gate::closed(), Gate::closed());
        let gates = [first.clone(), second.clone()];
        let app = written(move |mut output| {
            let gates = gates.clone();
            async move {
                for (step, gate) in gates.iter().enumerate() {
                    output.write(format!("step {step};")).await?;
                    if flushes {
                        output.flush().await?;
                    }
                    gate.passed().await;
                }
                output.write("the end").await
            }
        });
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
        client.read_until("step 0;").await;
        first.open();
        client.read_until("step 1;").await;
        second.open();
        client.read_until("the end\r\n0\r\n\r\n").await;
        server.journal.ended(1).await;

        let mut client = Http2::connect(server.address).await;
        assert_eq!(client.get("/").await.unwrap().body, b"step 0;step 1;the end", "flushes: {flushes}");
    }
}

/// The writer blocks the runtime that is to send what it flushed; so the client has its own.
#[tokio::test]
async fn a_flush_returns_only_after_the_server_had_its_turn_to_send() {
    let blocks = async |mut output: Output, wait: Arc<std::sync::Mutex<mpsc::Receiver<()>>>| {
        output.write("before").await?;
        output.flush().await?;
        let seen = wait.lock().unwrap().recv_timeout(PATIENCE);
        output.write(if seen.is_ok() { "-after" } else { "-never seen" }).await?;
        output.finish().await
    };
    for (http2, elsewhere) in [(false, false), (true, false), (false, true), (true, true)] {
        let (seen, wait) = mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let app = if elsewhere {
            let writes = async move || {
                let (output, response) = Output::channel();
                tokio::spawn(blocks(output, wait.clone()));
                response
            };
            Router::new().route("/", get(writes))
        } else {
            written(move |output| blocks(output, wait.clone()))
        };
        let server = Server::start(app).await;
        let address = server.address;
        let client = async move {
            if http2 {
                let mut client = Http2::connect(address).await;
                let response = client.start("GET", "/").await;
                let mut body = soon("the head", response).await.unwrap().into_body();
                assert_eq!(soon("what was flushed", body.data()).await.unwrap().unwrap(), "before");
                seen.send(()).unwrap();
                assert_eq!(soon("the rest", body.data()).await.unwrap().unwrap(), "-after");
            } else {
                let mut client = Client::connect(address).await;
                client.send_get("/").await;
                client.read_until("before").await;
                seen.send(()).unwrap();
                client.read_until("-after\r\n0\r\n\r\n").await;
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (done, wait) = tokio::sync::oneshot::channel();
        let client = std::thread::spawn(move || {
            runtime.block_on(client);
            done.send(()).unwrap();
        });
        let _ = wait.await;
        client.join().unwrap();
        server.journal.ended(1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_leaves_with_a_flush_with_the_end_or_when_the_buffer_is_full() {
    let gates = [Gate::closed(), Gate::closed(), Gate::closed()];
    let theirs = gates.clone();
    let handler = async move |lifecycle: Lifecycle| {
        let produce = async move |mut output: Output| {
            output.write("one").await?;
            theirs[0].passed().await;
            output.flush().await?;
            output.write("two").await?;
            theirs[1].passed().await;
            output.write("12345678").await?;
            theirs[2].passed().await;
            Ok::<_, OutputError>(())
        };
        lifecycle.output(produce).buffer(10).hold_until_flush()
    };
    let server = MemoryServer::start(Router::new().route("/", get(handler)));
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert!(nothing_of(&mut client.stream, "one").await, "not before the flush");
    gates[0].open();
    client.read_until("one").await;
    assert!(nothing_of(&mut client.stream, "two").await, "not before the buffer is full");
    gates[1].open();
    client.read_until("two1234567").await;
    assert!(nothing_of(&mut client.stream, "8").await, "not before the end");
    gates[2].open();
    client.read_until("8\r\n0\r\n\r\n").await;
}

/// What comes within an hour of a paused clock has not `marker` in its body.
async fn nothing_of(stream: &mut tokio::io::DuplexStream, marker: &str) -> bool {
    let mut bytes = Vec::new();
    let all = async { while stream.read_buf(&mut bytes).await.unwrap() > 0 {} };
    assert!(tokio::time::timeout(Duration::from_secs(3600), all).await.is_err(), "the connection ended");
    let text = String::from_utf8(bytes).unwrap();
    !text.split_once("\r\n\r\n").map_or(text.as_str(), |(_, body)| body).contains(marker)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_the_writer_up() {
    const ALL: usize = 4_000_000;
    let count = Arc::new(AtomicUsize::new(0));
    let theirs = count.clone();
    let app = written(move |mut output| {
        let count = theirs.clone();
        async move {
            for _ in 0..ALL / 1000 {
                output.write([b'x'; 1000]).await?;
                count.fetch_add(1000, Ordering::SeqCst);
            }
            Ok(())
        }
    });
    let server = MemoryServer::start(app);
    let mut client = server.connect_narrow(1024);
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    // hyper's own buffer, ours, and the connection's.
    let waiting = count.load(Ordering::SeqCst);
    assert!((1000..800_000).contains(&waiting), "{waiting} bytes were written for a client that reads nothing");
    let reply = client.reply().await;
    assert_eq!(reply.dechunked().unwrap().len(), ALL);
    server.ended(1).await;
}

/// It is not asked for more, and so it is not polled; work elsewhere is.
#[tokio::test(start_paused = true)]
async fn a_producer_stands_still_with_its_client() {
    async fn gives_up(mut output: Output, notes: Notes, what: &str) -> Result<(), OutputError> {
        while tokio::time::timeout(Duration::from_secs(5), output.write([b'x'; 4000])).await.is_ok() {}
        notes.add(what);
        Ok(())
    }
    let notes = Notes::default();
    let theirs = notes.clone();
    let produced = async move |lifecycle: Lifecycle| lifecycle.output(|output| gives_up(output, theirs, "produced"));
    let theirs = notes.clone();
    let elsewhere = async move || {
        let (output, response) = Output::channel();
        tokio::spawn(gives_up(output, theirs, "elsewhere"));
        response
    };
    let app = Router::new().route("/produced", get(produced)).route("/elsewhere", get(elsewhere));
    let server = MemoryServer::start(app);
    let mut clients = Vec::new();
    for path in ["/produced", "/elsewhere"] {
        let mut client = server.connect_narrow(1024);
        client.send(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(notes.all(), ["elsewhere"]);
}

#[tokio::test]
async fn a_write_is_as_long_as_it_likes() {
    let long = "0123456789".repeat(100_000);
    let one_byte_at_a_time = async |lifecycle: Lifecycle| {
        lifecycle.output(async |mut output: Output| output.write("0123456789").await).buffer(0)
    };
    let app = Router::new().route("/one_byte_at_a_time", get(one_byte_at_a_time)).route(
        "/",
        get({
            let long = long.clone();
            async move |lifecycle: Lifecycle| lifecycle.output(async move |mut output: Output| output.write(long).await)
        }),
    );
    let server = Server::start(app).await;
    assert!(server.get("/").await.dechunked().unwrap() == long.as_bytes());
    let mut client = Http2::connect(server.address).await;
    assert!(client.get("/").await.unwrap().body == long.as_bytes());
    assert_eq!(client.get("/one_byte_at_a_time").await.unwrap().body, b"0123456789");
}

#[tokio::test]
async fn the_head_says_what_the_response_and_its_parts_say() {
    let plain = Output::channel().1.into_response();
    assert_eq!(plain.headers()[header::CONTENT_TYPE], "text/plain; charset=utf-8");
    assert!(!plain.headers().contains_key("x-accel-buffering"));
    let events = ([(header::CONTENT_TYPE, "text/event-stream")], Output::channel().1.no_proxy_buffering());
    let events = events.into_response();
    assert_eq!(events.headers()[header::CONTENT_TYPE], "text/event-stream");
    assert_eq!(events.headers()["x-accel-buffering"], "no");
}

#[tokio::test]
async fn it_is_an_async_write() {
    let handler = async |lifecycle: Lifecycle| {
        let produce = async |mut output: Output| {
            let mut source = tokio::io::repeat(b'x').take(100_000);
            tokio::io::copy(&mut source, &mut output).await?;
            AsyncWriteExt::flush(&mut output).await?;
            AsyncWriteExt::write_all(&mut output, b"-").await?;
            output.shutdown().await?;
            output.shutdown().await?;
            let late = AsyncWriteExt::write_all(&mut output, b"late").await.unwrap_err();
            assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
            let error = late.into_inner().unwrap().downcast::<OutputError>().unwrap();
            assert!(error.is_finished() && !error.is_closed(), "{error}");
            Ok::<_, io::Error>(())
        };
        lifecycle.output(produce)
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let body = server.get("/").await.dechunked().unwrap();
    assert_eq!((body.len(), body.last()), (100_001, Some(&b'-')));
    server.journal.ended(1).await;
    assert!(server.stop().await.is_clean());
}

/// Nothing waits, so nothing has to be told of: neither an empty write nor a flush of nothing is seen.
#[tokio::test]
async fn empty_writes_and_flushes_of_nothing_leave_no_trace() {
    let produce = async |mut output: Output| {
        assert_eq!(output.flush().now_or_never(), Some(Ok(())));
        assert_eq!(output.write("").now_or_never(), Some(Ok(())));
        output.write("all").await?;
        output.flush().await?;
        assert_eq!(output.flush().now_or_never(), Some(Ok(())));
        Ok(())
    };
    let server = Server::start(written(produce).layer(TimeLimitLayer::default())).await;
    assert_eq!(server.get("/").await.text(), "3\r\nall\r\n0\r\n\r\n");
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    let mut body = soon("the head", response).await.unwrap().into_body();
    let mut chunks = Vec::new();
    while let Some(chunk) = soon("a chunk", body.data()).await {
        chunks.push(chunk.unwrap());
    }
    // On a tracked connection, the end is a frame of its own.
    assert_eq!(chunks.pop().as_deref(), Some(&b""[..]));
    assert_eq!(chunks, ["all"]);
}

/// A writer that gives up waiting for its flush goes on writing, and what it wrote is neither lost nor doubled.
#[tokio::test]
async fn a_flush_that_was_not_waited_for_takes_place() {
    let (mut output, response) = Output::channel();
    let notes = Notes::default();
    let mut body = response.hold_until_flush().into_response().into_body();
    output.write("a").await.unwrap();
    assert_eq!(output.flush().now_or_never(), None);
    output.write("b").await.unwrap();
    let theirs = notes.clone();
    let work = tokio::spawn(async move {
        theirs.add("flushing");
        output.flush().await.unwrap();
        output.write("c").await.unwrap();
        output.finish().await.unwrap();
    });
    notes.seen("flushing").await;
    let all = soon("the body", to_bytes(std::mem::take(&mut body), 100)).await.unwrap();
    assert_eq!(all, "abc");
    work.await.unwrap();
}

/// The layers alone, on any server.
#[tokio::test]
async fn without_a_tracked_connection_it_is_written_all_the_same() {
    let produce = async |mut output: Output| {
        output.write("one ").await?;
        output.flush().await?;
        output.write("two").await?;
        output.finish().await
    };
    let app = written(produce).layer(TimeLimitLayer::default());
    let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(to_bytes(response.into_body(), 100).await.unwrap(), "one two");
}
