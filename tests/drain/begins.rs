//! What has reached the server's machine when a drain begins is served, also where the server has not read it yet.

use axum::{Router, routing::get};

use crate::support::Server;

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
