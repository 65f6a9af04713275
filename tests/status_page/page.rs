//! A server with its page at `/status`, and the three forms of it, read.

use std::collections::BTreeMap;

use axum::Router;
use serde_json::Value;
use tower_epilogue::EpilogueBuilder;

use crate::support::{PATIENCE, Reply, Server};

pub async fn serve(app: Router, setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> Server {
    let setup = |builder: EpilogueBuilder| setup(builder.status_page());
    Server::made(setup, |epilogue| app.nest("/status", epilogue.status_page())).await
}

pub async fn json(server: &Server, path: &str) -> Value {
    let reply = server.get(path).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

/// The page as JSON, once it is as it should be: what a client has read may not have been told of yet.
pub async fn json_when(server: &Server, what: &str, found: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let waiting = async {
        loop {
            last = json(server, "/status/json?full").await;
            if found(&last) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}: {last:#}");
    last
}

/// Each sample, by its name and labels.
pub fn samples(reply: &Reply) -> BTreeMap<String, f64> {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(content_type)));
    let text = reply.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// A number on the page.
pub fn shown(page: &str, name: &str) -> u64 {
    let start = format!("data-name=\"{name}\">");
    let (_, rest) = page.split_once(&start).unwrap_or_else(|| panic!("no {name} in {page}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{name}: {rest}"))
}
