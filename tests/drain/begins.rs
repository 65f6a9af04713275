//! What has reached the server's machine when a drain begins is served, also where the server has not read it yet; and so is what a
//! server that is dropped is at.

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_epilogue::Epilogue;

use crate::support::{Client, Gate, Notes, Server};

fn app() -> Router {
    Router::new().route("/", get(async || "served"))
}

/// The system has their bytes, and nobody has been told.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn requests_that_have_come_before_it_are_served() {
    let get = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    for _ in 0..20 {
        let mut server = Server::start(app()).await;
        let mut fresh = server.connect().await;
        let mut kept = server.connect().await;
        // Connections are accepted in order: the first is, too.
        kept.send(get).await;
        assert_eq!(kept.reply_by_length(false).await.text(), "served");
        for client in [&mut fresh, &mut kept] {
            assert_eq!(client.stream.try_write(get.as_bytes()).unwrap(), get.len());
        }
        server.begin_drain();
        for client in [&mut fresh, &mut kept] {
            let reply = client.reply().await;
            assert!(reply.text() == "served" && reply.error.is_none(), "{reply:?}");
        }
        assert!(server.drained().await.is_clean());
    }
}

/// The system has their connections, which the server has not been given yet.
#[tokio::test]
async fn so_are_those_of_clients_that_nobody_has_accepted() {
    use std::io::{Read as _, Write as _};

    for _ in 0..20 {
        let mut server = Server::start(app()).await;
        // Nothing else runs on this thread meanwhile.
        let clients = [(); 8].map(|()| {
            let mut client = std::net::TcpStream::connect(server.address).unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
            client
        });
        server.begin_drain();
        assert!(server.drained().await.is_clean());
        for mut client in clients {
            let mut reply = String::new();
            client.read_to_string(&mut reply).unwrap();
            assert!(reply.ends_with("served"), "{reply:?}");
        }
    }
}

/// Without a drain.
#[tokio::test]
async fn the_connections_of_a_server_that_is_dropped_finish_what_they_are_at() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let waits = async move || {
        theirs.add("waits");
        opens.passed().await;
        "done"
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(Epilogue::new().serve(listener, app().route("/waits", get(waits))).into_future());
    let (mut idle, mut busy) = (Client::connect(address).await, Client::connect(address).await);
    idle.send_get("/").await;
    assert_eq!(idle.reply_by_length(false).await.text(), "served");
    busy.send_get("/waits").await;
    notes.seen("waits").await;
    server.abort();
    let reply = idle.reply().await;
    assert!(reply.head.is_empty() && reply.error.is_none(), "{reply:?}");
    gate.open();
    let reply = busy.reply().await;
    assert!(reply.text() == "done" && reply.error.is_none(), "{reply:?}");
}
