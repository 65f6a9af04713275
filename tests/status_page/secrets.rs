//! The page shows nothing that a client sent but the path of what matched no route, and that as text.

use axum::{Router, extract::Path, routing::post};
use tower_epilogue::{Continuation, EarlyCloseLayer, Lifecycle};

use crate::{
    page::{json_when, serve},
    support::{Gate, Server},
};

const MARKERS: [&str; 8] = [
    "marker-query",
    "marker-header",
    "marker-cookie",
    "marker-authorization",
    "marker-body",
    "marker-error",
    "marker-panic",
    "marker-token",
];

/// With something secret in every part of it.
fn request(path: &str) -> String {
    let body = "marker-body";
    format!(
        "POST {path}?token=marker-query HTTP/1.1\r\nhost: test\r\nx-secret: marker-header\r\ncookie: session=marker-cookie\r\n\
         authorization: Bearer marker-authorization\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// All that the page gives out.
async fn everything(server: &Server) -> String {
    let mut all = String::new();
    for path in ["/status?full", "/status?json&full", "/status?openmetrics&full"] {
        let reply = server.get(path).await;
        all.push_str(&reply.head);
        all.push_str(&reply.text());
    }
    let mut client = server.connect().await;
    client.send_get("/status?events&full").await;
    all.push_str(&client.read_until("Latest failures").await);
    all.push_str(&client.read_until("</div>").await);
    all
}

#[tokio::test]
async fn no_query_header_body_or_text_of_an_error_is_shown() {
    let held = Gate::closed();
    let gate = held.clone();
    let held_handler = async move |Path(_): Path<String>, _: Lifecycle, body: String| {
        gate.passed().await;
        body
    };
    let gate = held.clone();
    let continuing =
        async move |body: String| (Continuation::new(async move { gate.passed().await }).class("mail"), body);
    let failing = async |body: String| {
        let work = async { Err::<(), _>(std::io::Error::other("marker-error")) };
        (Continuation::try_new(work), body)
    };
    let panicking = async |_: String| (Continuation::new(async { panic!("marker-panic") }), "soon");
    let app = Router::new()
        .route("/reset/{token}", post(held_handler))
        .route("/continuing/{token}", post(continuing))
        .route("/failing/{token}", post(failing))
        .route("/panicking/{token}", post(panicking))
        .layer(EarlyCloseLayer::new());
    let server = serve(app, |builder| builder).await;
    for path in ["/failing/marker-token", "/panicking/marker-token", "/continuing/marker-token"] {
        let mut client = server.connect().await;
        client.send(&request(path)).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let mut waiting = server.connect().await;
    waiting.send(&request("/reset/marker-token")).await;
    json_when(&server, "one is handled, one goes on, two have failed", |page| {
        page["now"]["handling"] == 1 && page["now"]["continuing"] == 1 && page["requests"]["ended"] == 2
    })
    .await;
    let all = everything(&server).await;
    for marker in MARKERS {
        assert!(!all.contains(marker), "{marker} in {all}");
    }
    for route in ["POST /reset/{token}", "POST /continuing/{token}", "POST /failing/{token}", "POST /panicking/{token}"]
    {
        // In the page, in its JSON and in its updates.
        assert!(all.matches(route).count() >= 3, "{route} in {all}");
    }
    held.open();
    assert_eq!(waiting.reply().await.text(), "marker-body");
    server.stop().await;
}

#[tokio::test]
async fn a_path_that_matched_nothing_is_text_and_not_too_long() {
    let server = serve(Router::new(), |builder| builder).await;
    // What hyper lets through in a path, and HTML does not.
    let path = format!("/'\"{{&amp;{}", "x".repeat(5_000));
    assert_eq!(server.get(&path).await.status, 404);
    let page = json_when(&server, "it has ended", |page| page["requests"]["ended"] == 1).await;
    let route = page["slowest"][0]["route"].as_str().unwrap();
    assert!(route.starts_with("GET /'\"{&amp;xxx") && route.ends_with('…') && route.chars().count() == 201, "{route}");
    let mut client = server.connect().await;
    client.send_get("/status?events").await;
    for html in [server.get("/status").await.text(), client.read_until("Latest failures").await] {
        assert!(html.contains("GET /'&quot;{&amp;amp;xxx"), "{html}");
    }
    drop(client);
    server.stop().await;
}
