//! trillium: its nearest means are `after_send`, a callback that may spawn, and a guard that its shutdown waits for.

use std::time::Duration;

use tokio::{net::TcpListener, time::sleep};
use trillium::{Body, Conn, KnownHeaderName};

use super::{HELLO, PAGE_BYTES, PARKED, WORK, announce};

pub async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    announce(listener.local_addr().unwrap());
    trillium_tokio::config()
        .without_signals()
        .with_nodelay()
        // Its guards count as connections, of which it takes as many as files may be open.
        .with_max_connections(Some(usize::MAX))
        .with_prebound_server(listener)
        .run_async(handle)
        .await;
}

async fn handle(conn: Conn) -> Conn {
    match conn.path() {
        "/respond" => with(conn, WORK),
        "/park" => with(conn, PARKED),
        "/upload" => conn.with_response_header(KnownHeaderName::Connection, "close").ok(Body::from(&PAGE_BYTES[..])),
        _ => conn.with_status(404),
    }
}

fn with(mut conn: Conn, work: Duration) -> Conn {
    let guard = conn.swansong().guard();
    let http: &mut trillium_http::Conn<Box<dyn trillium::Transport>> = conn.as_mut();
    http.after_send(move |_| {
        tokio::spawn(async move {
            sleep(work).await;
            drop(guard);
        });
    });
    conn.ok(HELLO)
}
