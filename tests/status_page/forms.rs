//! How the page is asked for, and what guards it.

use axum::Router;
use tower_epilogue::Epilogue;

use crate::{page::serve, support::Server};

async fn asked(server: &Server, path: &str, accept: &str) -> crate::support::Reply {
    let mut client = server.connect().await;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept: {accept}\r\nconnection: close\r\n\r\n");
    client.send(&request).await;
    client.reply().await
}

#[tokio::test]
async fn path_query_and_header_say_which_form() {
    let server = serve(Router::new(), |builder| builder).await;
    let (html, json) = ("text/html; charset=utf-8", "application/json");
    let metrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (path, accept, form) in [
        ("/status", "*/*", html),
        ("/status", "text/html,application/xhtml+xml,*/*;q=0.8", html),
        ("/status", "application/json", json),
        ("/status", prometheus, metrics),
        ("/status?json", prometheus, json),
        ("/status?json&full", "text/html", json),
        ("/status?openmetrics", "text/html", metrics),
        ("/status?html", prometheus, html),
        ("/status?full", "text/html", html),
        ("/status/json", "text/html", json),
        ("/status/metrics", "text/html", metrics),
        ("/status/metrics?json", "application/json", metrics),
    ] {
        let reply = asked(&server, path, accept).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(form)), "{path} {accept}");
        assert_eq!((reply.header("cache-control"), reply.header("vary")), (Some("no-store"), Some("accept")));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
    }
    let mut client = server.connect().await;
    client.send("POST /status HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 405);
    let mut client = server.connect().await;
    client.send("HEAD /status?json HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    let head = client.reply().await;
    assert_eq!((head.status, head.header("content-type"), head.body.len()), (200, Some(json), 0));
    server.stop().await;
}

#[tokio::test]
async fn a_page_that_is_off_is_not_there() {
    let page = |epilogue: &Epilogue| Router::new().nest("/status", epilogue.status_page());
    let server = Server::made(|builder| builder, page).await;
    for path in ["/status", "/status?json", "/status/json", "/status/metrics"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere_and_reloads_without_a_script() {
    let server = serve(Router::new(), |builder| builder).await;
    let page = server.get("/status").await.text();
    for outside in ["http:", "https:", "//", "@import", "url(", "src=", "<link"] {
        // What a comment of the script says is no address.
        let found = page.lines().find(|line| line.contains(outside) && !line.trim_start().starts_with("//"));
        assert_eq!(found, None, "{outside}");
    }
    assert!(page.contains("<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>"), "{page}");
    server.stop().await;
}
