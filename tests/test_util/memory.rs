//! A connection in memory tells a server what a socket would, and its client, too.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    routing::{get, post},
};
use tower_epilogue::{
    HalfClose, Tracking,
    test_util::{Leave, TestServer},
};

/// Waits without end, and reads as much of its request's body before.
fn never_after(bytes: usize) -> Router {
    let handler = async move |request: Request| {
        drop(to_bytes(request.into_body(), bytes).await);
        std::future::pending::<()>().await;
    };
    Router::new().route("/", post(handler)).route("/never", get(std::future::pending::<()>))
}

#[tokio::test(start_paused = true)]
async fn who_leaves_behind_an_upload_that_nobody_reads_is_noticed() {
    for (sent, declared) in [(4, 4), (4, 8), (10_000, 10_000), (60_000, 100_000)] {
        for how in [Leave::Close, Leave::Fin, Leave::Reset] {
            for reads in [0, 10] {
                let server = TestServer::in_memory(never_after(reads));
                let mut client = server.connect().await;
                client.send(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {declared}\r\n\r\n")).await;
                client.send(vec![b'x'; sent]).await;
                server.journal().begun(1).await;
                client.leave(how).await;
                server.journal().ended(1).await;
                let story = server.journal().only();
                story.assert_aborted();
                story.assert_handler_dropped();
                story.assert_contract();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_behind_a_pipelined_request_is_noticed() {
    let server = TestServer::in_memory(never_after(0));
    let mut client = server.connect().await;
    client.pipeline(&["/never", "/never"]).await;
    server.journal().begun(1).await;
    client.leave(Leave::Close).await;
    server.settled().await;
    server.journal().stories()[0].assert_aborted();
    server.journal().assert_contract();
}

#[tokio::test(start_paused = true)]
async fn who_shuts_one_side_alone_is_served_where_that_is_wanted() {
    let handler = async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        "hello"
    };
    let app = Router::new().route("/", get(handler)).route("/never", post(std::future::pending::<()>));
    let serving = Tracking::new().half_close(HalfClose::Serve);
    let server = TestServer::builder().epilogue(|epilogue| epilogue.tracking(serving)).in_memory(app);
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.half_close().await;
    assert_eq!(client.response().await.text(), "hello");
    drop(client);

    let mut client = server.connect().await;
    client.send_post("/never", "unread").await;
    server.journal().begun(2).await;
    client.leave(Leave::Close).await;
    server.settled().await;
    server.journal().last().assert_aborted();
}

#[tokio::test(start_paused = true)]
async fn a_response_over_http_1_0_that_is_broken_off_does_not_look_whole() {
    let half = async || {
        let pieces = futures_util::stream::unfold(0, |piece| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let given = if piece == 0 { Ok("half") } else { Err(std::io::Error::other("no more")) };
            Some((given, piece + 1))
        });
        Body::from_stream(pieces)
    };
    let whole = async || Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("whole")]));
    let app = Router::new().route("/half", get(half)).route("/whole", get(whole));
    for server in [TestServer::in_memory(app.clone()), TestServer::on_socket(app).await] {
        let mut client = server.connect().await;
        client.send("GET /half HTTP/1.0\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response.text(), "half");
        response.assert_broken_off();
        let error = response.error.as_ref().map(std::io::Error::kind);
        assert_eq!(error, Some(std::io::ErrorKind::ConnectionReset));

        let mut client = server.connect().await;
        client.send("GET /whole HTTP/1.0\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response.text(), "whole");
        response.assert_whole();
    }
}
