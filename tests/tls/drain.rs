//! A drain's deadline ends connections: `Epilogue::serve` over a listener that encrypts.

use std::{io, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::{any, get},
};
use futures_util::stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    frames::{DATA, RawHttp2, frame, request},
    server::{TlsListener, connect},
    support::{Gate, Journal, Notes, soon},
};

const MILLI: Duration = Duration::from_millis(1);
const FLUSHED: usize = 512 * 1024;

fn endless(notes: &Notes) -> Body {
    Body::from_stream(stream::unfold(notes.on_drop("dropped"), async |dropped| {
        tokio::task::yield_now().await;
        Some((Ok::<_, io::Error>(Bytes::from_static(&[b'e'; 16 * 1024])), dropped))
    }))
}

#[tokio::test]
async fn an_uploading_client_reads_what_had_left_before_its_connection_was_closed() {
    let (notes, journal, stop) = (Notes::default(), Journal::default(), Gate::closed());
    let (drops, stopped) = (notes.clone(), stop.clone());
    let app = Router::new()
        .route("/flushed", get(async || vec![b'y'; FLUSHED]))
        .route("/waits", any(std::future::pending::<()>))
        .route("/endless", get(async move || endless(&drops)));
    let listener = TlsListener::bind().await;
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    let epilogue = journal.epilogue().drain_deadline(20 * MILLI).hook_limit(1500 * MILLI).build();
    let serve = epilogue.serve(listener, app).with_graceful_shutdown(async move { stopped.passed().await });
    let serving = tokio::spawn(serve.into_future());

    let mut client = RawHttp2::on(connect(address, "h2", Some(8 * 1024)).await).await;
    client.send(&request("GET", "/flushed", 1, true)).await;
    journal.seen("flushed").await;
    client.send(&request("POST", "/waits", 3, false)).await;
    client.send(&request("GET", "/endless", 5, true)).await;
    stop.open();
    let (mut more, piece) = (20, frame(DATA, 0, 3, b"more"));
    while more > 0 && client.stream.write_all(&piece).await.is_ok() && client.stream.flush().await.is_ok() {
        more -= usize::from(notes.has("dropped"));
        tokio::time::sleep(MILLI).await;
    }
    let (mut came, mut ended) = (0, Vec::new());
    while let Ok(Some(frame)) = soon("a frame", client.next(64 * 1024)).await {
        came += if frame.stream == 1 && frame.kind == DATA { frame.payload.len() } else { 0 };
        ended.extend(frame.ends_its_stream().then_some(frame.stream));
    }
    assert_eq!(came, FLUSHED);
    assert!(ended.contains(&1) && !ended.contains(&5), "{ended:?}");
    drop(client);
    assert_eq!(soon("it drains", serving).await.unwrap().unwrap().stragglers().len(), 2);
}

/// On HTTP/1.0 the end of the connection is the end of the response: then it must not be closed in order, not even to linger.
#[tokio::test]
async fn what_is_cut_never_looks_whole() {
    let (notes, journal, stop) = (Notes::default(), Journal::default(), Gate::closed());
    let (drops, stopped) = (notes.clone(), stop.clone());
    let app = Router::new().route("/", get(async move || endless(&drops)));
    let listener = TlsListener::bind().await;
    let address = axum::serve::Listener::local_addr(&listener).unwrap();
    let epilogue = journal.epilogue().drain_deadline(20 * MILLI).build();
    let serve = epilogue.serve(listener, app).with_graceful_shutdown(async move { stopped.passed().await });
    let serving = tokio::spawn(serve.into_future());

    let mut client = connect(address, "http/1.1", None).await;
    // More than is read of it while the response is on its way.
    client.write_all(format!("GET / HTTP/1.0\r\n\r\n{:40000}", "").as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    journal.seen("handler_end").await;
    stop.open();
    let mut bytes = Vec::new();
    let ended = soon("the connection ends", client.read_to_end(&mut bytes)).await;
    assert!(bytes.starts_with(b"HTTP/1.0 200") && ended.is_err(), "{ended:?}");
    assert_eq!(soon("it drains", serving).await.unwrap().unwrap().stragglers().len(), 1);
}
