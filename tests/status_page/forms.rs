//! How the page is asked for, and what guards it.

use std::collections::BTreeSet;

use axum::{Router, routing::get};
use serde_json::Value;
use tower_epilogue::{Bound, Continuation, Epilogue, Lifecycle};

use crate::{
    page::{json_when, samples, serve},
    support::{Gate, Server},
};

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

/// The names in backticks in the tables of one section of the page's documentation.
fn documented(section: &str) -> BTreeSet<&'static str> {
    let all = include_str!("../../src/status_page/mod.rs");
    let (_, section) = all.split_once(&format!("//! # {section}\n")).unwrap();
    let (section, _) = section.split_once("//! # ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("//! | `"));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|name| !name.contains("::")).collect()
}

fn names(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            into.insert(name.clone());
            names(value, into);
        }),
        Value::Array(values) => values.iter().for_each(|value| names(value, into)),
        _ => {}
    }
}

/// Whoever reads them by a script knows them from there, and relies on them.
#[tokio::test]
async fn every_name_that_scripts_read_is_documented() {
    let held = Gate::closed();
    let gate = held.clone();
    let waits = async move |_: Lifecycle| gate.passed().await;
    let fails = async || (Continuation::try_new(async { Err::<(), _>("no") }).class("mail"), "hello");
    let app = Router::new().route("/waits", get(waits)).route("/fails", get(fails));
    let server = serve(app, |builder| builder.max_running(10).class("mail", Bound::new(1)).max_detached(5)).await;
    let mut client = server.connect().await;
    client.send_get("/waits").await;
    assert_eq!(server.get("/fails").await.status, 200);
    let shown = |page: &Value| ["live", "failures", "slowest", "bounds"].iter().all(|list| page[list][0].is_object());
    let page = json_when(&server, "all lists have a row", shown).await;

    let (mut found, in_json) = (BTreeSet::new(), documented("The names in JSON"));
    names(&page, &mut found);
    let missing: Vec<_> = found.iter().filter(|name| !in_json.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} of {in_json:?}");

    let in_openmetrics = documented("The names in OpenMetrics");
    let samples = samples(&server.get("/status/metrics").await);
    let families: BTreeSet<_> = samples
        .keys()
        .map(|sample| sample.split('{').next().unwrap().strip_prefix("epilogue_pool_").unwrap())
        .collect();
    let missing: Vec<_> = families.difference(&in_openmetrics).collect();
    assert!(missing.is_empty(), "{missing:?} of {in_openmetrics:?}");

    // And nothing is documented that is not there: but values, and the names of labels.
    let values = ["all", "blocking", "detached", "null", "timed out", "panicked", "failed", "dropped"];
    let gone: Vec<_> = in_json.iter().filter(|name| !found.contains(**name) && !values.contains(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    let labels = ["phase", "handling", "sending", "continuing", "ending", "bound", "class", "now", "bounds"];
    let gone: Vec<_> = in_openmetrics.difference(&families).filter(|name| !labels.contains(name)).collect();
    assert!(gone.is_empty(), "{gone:?}");

    held.open();
    client.read_until("content-length: 0").await;
    server.stop().await;
}
