//! No continuation starts before the kernel has every byte of 10 MB, judged by what a slow client has read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc::error::TryRecvError,
};

use crate::{
    frames::{RawHttp2, request},
    shapes::{OwnServer, Pace, Start, app},
    support::{Client, soon},
};

/// What the two small buffers of the kernel hold, with room to spare: it doubles what is asked for.
const IN_THE_KERNEL: u64 = 1_000_000;

/// Reads 10 MB slowly, and gives what the continuation saw.
async fn ten_megabytes(workers: Option<usize>, shape: &str, http2: bool) -> (Start, u64) {
    let read = Arc::new(AtomicU64::new(0));
    let (app, mut starts) = app(read.clone());
    let server = OwnServer::start(workers, Pace::Slow.send_buffer(), app);
    let mut stream = Pace::Slow.connect(server.address).await;
    let path = format!("/{shape}/1");
    if http2 {
        let mut client = RawHttp2::over(stream).await;
        client.send(&request("GET", &path, 1, true)).await;
        stream = client.stream;
    } else {
        let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
    }

    // It reads nothing at first: others come and go meanwhile, and their continuations start.
    for id in 2..5 {
        let mut other = Client::connect(server.address).await;
        other.send_get(&format!("/small/{id}")).await;
        other.response(false).await;
        assert_eq!(soon("a continuation", starts.recv()).await.unwrap().id, id);
    }
    assert_eq!(starts.try_recv().unwrap_err(), TryRecvError::Empty);

    let mut piece = vec![0; 256 * 1024];
    let mut start = None;
    while start.is_none() {
        let bytes = tokio::select! {
            bytes = stream.read(&mut piece) => bytes.unwrap() as u64,
            started = starts.recv() => {
                start = started;
                continue;
            }
        };
        assert!(bytes > 0, "closed early");
        read.fetch_add(bytes, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    // What is left is in the kernel.
    let mut total = read.load(Ordering::SeqCst);
    while let Ok(Ok(bytes @ 1..)) = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut piece)).await {
        total += bytes as u64;
    }
    (start.unwrap(), total)
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_to_the_last_byte() {
    for workers in [None, Some(2)] {
        for shape in ["ten", "ten-in-parts"] {
            for http2 in [false, true] {
                let cell = format!("{shape}, HTTP/2: {http2}, {workers:?} workers");
                let (start, total) = soon(&cell, ten_megabytes(workers, shape, http2)).await;
                println!("{cell}: read {} of {total} when the continuation started", start.read);
                assert!(total > 10_000_000, "{cell}: {total}");
                assert!(start.written >= total, "{cell}: {start:?} of {total}");
                assert!(start.read + IN_THE_KERNEL >= total, "{cell}: {start:?} of {total}");
            }
        }
    }
}
