//! All forms of the page agree with what the clients did.

use std::{io, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};
use serde_json::Value;
use tower_epilogue::{Bound, Continuation, EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, ReserveLayer, TimeLimitLayer};

use crate::{
    page::{json, json_when, samples, serve, shown},
    support::{Gate, Server, h2client::Http2},
};

/// What the clients of [`crowd`] did.
const PLAIN: u64 = 7;
const CONTINUED: u64 = 5;
const FAILED: u64 = 3;
const PANICKED: u64 = 2;
const TIMED_OUT: u64 = 4;
const ABORTED: u64 = 6;
const REFUSED: u64 = 8;
const ACCEPTED: u64 = PLAIN + CONTINUED + FAILED + PANICKED + TIMED_OUT + ABORTED + 1;

async fn never() {
    std::future::pending::<()>().await;
}

fn app(held: &Gate) -> Router {
    let held = held.clone();
    let limited = TimeLimitLayer::new(Duration::from_millis(50));
    let full = ReserveLayer::class("narrow");
    Router::new()
        .route("/plain", get(async || "plain"))
        .route("/continued", get(async || (Continuation::new(async {}), "continued")))
        .route(
            "/failed",
            get(async || (Continuation::try_new(async { Err::<(), _>(io::Error::other("no")) }), "failed")),
        )
        .route("/panicked", get(async || (Continuation::new(async { panic!("on purpose") }), "panicked")))
        .route("/timed-out", get(never).layer(limited))
        .route("/aborted", get(never))
        .route(
            "/narrow",
            get(async move || (Continuation::new(async move { held.passed().await }).class("narrow"), "narrow"))
                .layer(full),
        )
        .layer(EarlyCloseLayer::new())
}

/// Everything that the page counts happens, so often as the constants say.
async fn crowd(server: &Server) {
    for (path, count, status) in [
        ("/plain", PLAIN, 200),
        ("/continued", CONTINUED, 200),
        ("/failed", FAILED, 200),
        ("/panicked", PANICKED, 200),
        ("/timed-out", TIMED_OUT, 503),
        // One has the place, the others are refused.
        ("/narrow", 1, 200),
        ("/narrow", REFUSED, 503),
    ] {
        for _ in 0..count {
            assert_eq!(server.get(path).await.status, status, "{path}");
        }
    }
    for _ in 0..ABORTED {
        let mut client = server.connect().await;
        client.send_get("/aborted").await;
        let handled = |page: &Value| page["now"]["handling"] == 1;
        json_when(server, "it is handled", handled).await;
        client.reset();
        json_when(server, "it is gone", |page| page["now"]["handling"] == 0).await;
    }
}

#[tokio::test]
async fn all_forms_agree_with_what_the_clients_did() {
    let held = Gate::closed();
    let server = serve(app(&held), |builder| builder.class("narrow", Bound::new(1).max_waiting(0))).await;
    crowd(&server).await;
    let all_but_one = |page: &Value| page["requests"]["ended"] == ACCEPTED - 1;
    let page = json_when(&server, "all but one have ended", all_but_one).await;
    assert_eq!(page["requests"]["accepted"], ACCEPTED);
    assert_eq!(page["requests"]["in_flight"], 1);
    assert_eq!(page["requests"]["refused"], REFUSED);
    assert_eq!(page["requests"]["aborted"], ABORTED);
    assert_eq!(page["requests"]["timed_out"], TIMED_OUT);
    // Whose limit passed before the head was answered, with a 503 that left whole.
    assert_eq!(page["requests"]["flushed"], ACCEPTED - ABORTED);
    assert_eq!(page["continuations"]["started"], CONTINUED + FAILED + PANICKED + 1);
    assert_eq!((&page["continuations"]["failed"], &page["panicked"]), (&FAILED.into(), &PANICKED.into()));
    assert_eq!((&page["now"]["running"], &page["now"]["waiting"]), (&1.into(), &0.into()));
    assert_eq!((&page["now"]["continuing"], &page["lost"], &page["now"]["stuck"]), (&1.into(), &0.into(), &0.into()));
    let bound = &page["bounds"][0];
    assert_eq!((&bound["class"], &bound["running"], &bound["max_running"]), (&"narrow".into(), &1.into(), &1.into()));
    assert_eq!(bound["refused"], REFUSED);
    let faults = page["failures"].as_array().unwrap().iter().map(|row| row["faults"].to_string()).collect::<Vec<_>>();
    let count = |fault: &str| faults.iter().filter(|row| row.contains(fault)).count() as u64;
    assert_eq!((count("failed"), count("panicked"), count("timed out")), (FAILED, PANICKED, TIMED_OUT), "{faults:?}");
    assert_eq!(faults.len() as u64, FAILED + PANICKED + TIMED_OUT);

    let html = server.get("/status").await;
    assert_eq!(html.header("content-type"), Some("text/html; charset=utf-8"));
    let html = html.text();
    let metrics = samples(&server.get("/status/metrics").await);
    for (name, sample, count) in [
        ("accepted", None, ACCEPTED),
        ("in_flight", Some("requests_in_flight"), 1),
        ("running", Some("running"), 1),
        ("waiting", Some("waiting"), 0),
        ("refused", Some("requests_refused_total"), REFUSED),
        ("flushed", Some("responses_flushed_total"), ACCEPTED - ABORTED),
        ("aborted", Some("requests_aborted_total"), ABORTED),
        ("timed_out", Some("requests_timed_out_total"), TIMED_OUT),
        ("failed", Some("continuations_failed_total"), FAILED),
        ("panicked", Some("panics_total"), PANICKED),
        ("continuations", Some("continuations_total"), CONTINUED + FAILED + PANICKED + 1),
    ] {
        assert_eq!(shown(&html, name), count, "{name}");
        if let Some(sample) = sample {
            assert_eq!(metrics[&format!("epilogue_pool_{sample}")], count as f64, "{sample}");
        }
    }
    assert_eq!(metrics["epilogue_pool_requests_total"], (ACCEPTED - 1) as f64);
    assert_eq!(metrics["epilogue_pool_in_phase{phase=\"continuing\"}"], 1.0);
    assert_eq!(metrics["epilogue_pool_bound_refused_total{bound=\"class\",class=\"narrow\"}"], REFUSED as f64);

    held.open();
    let page = json_when(&server, "all have ended", |page| page["requests"]["ended"] == ACCEPTED).await;
    assert_eq!((&page["requests"]["accepted"], &page["now"]["running"]), (&ACCEPTED.into(), &0.into()));
    server.stop().await;
}

#[tokio::test]
async fn the_pages_own_requests_are_not_counted() {
    let server = serve(Router::new().route("/", get(async || "hello")), |builder| builder).await;
    for path in ["/status", "/status?json", "/status?openmetrics", "/status/json", "/status/metrics"] {
        assert_eq!(server.get(path).await.status, 200);
    }
    let page = json(&server, "/status/json").await;
    assert_eq!((&page["requests"]["accepted"], &page["requests"]["ended"]), (&0.into(), &0.into()), "{page:#}");
    assert_eq!((&page["now"]["running"], page["live"].as_array().unwrap().len()), (&0.into(), 0), "{page:#}");
    assert_eq!(page["slowest"].as_array().unwrap().len(), 0);
    // A page of it that there is not is a request as any other.
    server.get("/status/nothing").await;
    json_when(&server, "that is counted", |page| page["requests"]["ended"] == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn open_connections_are_counted_and_forgotten() {
    let server = serve(Router::new().route("/", get(async || "hello")), |builder| builder).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = server.connect().await;
        client.send_get("/").await;
        client.reply_by_length(false).await;
        clients.push(client);
    }
    // And that of who asks.
    json_when(&server, "all are open", |page| page["connections_open"] == 41).await;
    clients.truncate(10);
    json_when(&server, "the others are closed", |page| page["connections_open"] == 11).await;
    drop(clients);
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_finished_is_told_apart_from_one_that_has_not() {
    let held = Gate::closed();
    let gate = held.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.finish("gone").await.unwrap();
        gate.passed().await;
    };
    let server = serve(Router::new().route("/", get(handler)), |builder| builder).await;
    assert_eq!(server.get("/").await.text(), "gone");
    let page = json_when(&server, "it goes on", |page| page["now"]["continuing"] == 1).await;
    assert_eq!((&page["now"]["handling"], &page["now"]["sending"]), (&0.into(), &0.into()), "{page:#}");
    assert_eq!((&page["live"][0]["phase"], &page["live"][0]["route"]), (&"continuing".into(), &"GET /".into()));
    held.open();
    json_when(&server, "it has ended", |page| page["requests"]["ended"] == 1).await;
    server.stop().await;
}

/// Calls what is inside twice, and gives the second answer.
async fn retrying(request: Request, next: Next) -> Response {
    let mut again = Request::new(Body::empty());
    *again.uri_mut() = request.uri().clone();
    *again.extensions_mut() = request.extensions().clone();
    drop(next.clone().run(request).await);
    next.run(again).await
}

fn starts_of_first(server: &Server) -> usize {
    let first = server.journal.requests()[0];
    server.journal.lines_of(first).iter().filter(|line| line.starts_with("handler_start")).count()
}

#[tokio::test]
async fn a_handler_that_runs_once_more_is_handled_once_more() {
    let (held, calls) = (Gate::closed(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let gate = held.clone();
    let handler = async move || {
        if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
            gate.passed().await;
        }
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::off()).layer(from_fn(retrying));
    let server = serve(app, |builder| builder).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let page = json_when(&server, "the second attempt waits", |page| {
        page["live"][0]["phase"] == "handling" && starts_of_first(&server) == 2
    })
    .await;
    assert_eq!((&page["now"]["handling"], &page["now"]["sending"]), (&1.into(), &0.into()), "{page:#}");
    held.open();
    assert_eq!(client.reply_by_length(false).await.status, 200);
    json_when(&server, "it has ended", |page| page["requests"]["ended"] == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_handler_that_finished_for_nobody_is_told_apart_as_well() {
    let held = Gate::closed();
    let gate = held.clone();
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.aborted().await;
        lifecycle.finish("gone").await.unwrap();
        gate.passed().await;
    };
    let app = Router::new().route("/", get(handler)).layer(IgnoreAbortLayer::new());
    let server = serve(app, |builder| builder).await;
    let mut client = Http2::connect(server.address).await;
    let response = client.start("GET", "/").await;
    json_when(&server, "it is handled", |page| page["now"]["handling"] == 1).await;
    drop(response);
    server.journal.seen("finish_resolved").await;
    let page = json(&server, "/status/json").await;
    assert_eq!(page["live"][0]["phase"], "continuing", "{page:#}");
    assert_eq!((&page["now"]["handling"], &page["now"]["continuing"]), (&0.into(), &1.into()), "{page:#}");
    held.open();
    json_when(&server, "it has ended", |page| page["requests"]["ended"] == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn every_class_is_shown_whatever_its_name() {
    let names: Vec<&'static str> =
        (0..100).map(|number| &*Box::leak(format!("a \"class\" \\{number}\n").into_boxed_str())).collect();
    let server =
        serve(Router::new(), |builder| names.iter().fold(builder, |builder, name| builder.class(name, Bound::new(1))))
            .await;
    let page = json(&server, "/status/json").await;
    assert_eq!(page["bounds"].as_array().unwrap().len(), names.len());
    let metrics = samples(&server.get("/status/metrics").await);
    for number in 0..100 {
        let name = format!(r#"a \"class\" \\{number}\n"#);
        let sample = format!("epilogue_pool_bound_max_running{{bound=\"class\",class=\"{name}\"}}");
        assert_eq!(metrics.get(&sample), Some(&1.0), "{sample}: {metrics:#?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_a_middleware_holds_back_is_not_on_its_way() {
    let held = Gate::closed();
    let gate = held.clone();
    let holds = move |request: Request, next: Next| {
        let gate = gate.clone();
        async move {
            let response = next.run(request).await;
            gate.passed().await;
            response
        }
    };
    let app = Router::new().route("/", get(async || "hello")).layer(TimeLimitLayer::off()).layer(from_fn(holds));
    let server = serve(app, |builder| builder).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    server.journal.seen("handler_end").await;
    let page = json(&server, "/status/json").await;
    assert_eq!(page["live"][0]["phase"], "handling", "{page:#}");
    assert_eq!((&page["now"]["handling"], &page["now"]["sending"]), (&1.into(), &0.into()), "{page:#}");
    held.open();
    assert_eq!(client.reply_by_length(false).await.text(), "hello");
    json_when(&server, "it has ended", |page| page["requests"]["ended"] == 1).await;
    server.stop().await;
}

/// Requests are refused for these as well, and their queue is nowhere else.
#[tokio::test]
async fn what_blocks_and_what_is_detached_have_rows_among_the_bounds() {
    let (held, (release, released)) = (Gate::closed(), std::sync::mpsc::channel::<()>());
    let (gate, released) = (held.clone(), std::sync::Arc::new(std::sync::Mutex::new(released)));
    let blocks = async move || {
        let released = released.clone();
        (Continuation::blocking(move || released.lock().unwrap().recv().unwrap()), "blocks")
    };
    let detaches = async move |lifecycle: Lifecycle| {
        lifecycle.finish("detached").await.unwrap();
        gate.passed().await;
    };
    let app = Router::new().route("/blocks", get(blocks)).route("/detaches", get(detaches));
    let setup = |builder: tower_epilogue::EpilogueBuilder| builder.max_blocking(1).max_waiting(2).max_detached(1);
    let exempt = |request: &http::request::Parts| request.uri.path().starts_with("/status");
    let server = serve(app, |builder| setup(builder).admit_always(exempt)).await;
    for count in 1..=3 {
        assert_eq!(server.get("/blocks").await.status, 200);
        json_when(&server, "it has begun", |page| page["continuations"]["started"] == count).await;
    }
    assert_eq!(server.get("/blocks").await.status, 503);
    let page = json_when(&server, "it is refused", |page| page["requests"]["refused"] == 1).await;
    let row = |page: &Value, name: &str| {
        let all = page["bounds"].as_array().unwrap();
        let row = all.iter().find(|row| row["bound"] == name).unwrap();
        ["running", "max_running", "waiting", "max_waiting", "refused"].map(|column| row[column].as_u64().unwrap())
    };
    assert_eq!(row(&page, "blocking"), [1, 1, 2, 2, 1], "{page:#}");
    for _ in 0..3 {
        release.send(()).unwrap();
    }
    json_when(&server, "all have ended", |page| page["requests"]["in_flight"] == 0).await;
    assert_eq!(server.get("/detaches").await.status, 200);
    json_when(&server, "it goes on", |page| page["now"]["detached"] == 1).await;
    assert_eq!(server.get("/detaches").await.status, 503);
    // The thread is free a moment after its work was told to have ended.
    let is_told = |page: &Value| page["requests"]["refused"] == 2 && row(page, "blocking")[0] == 0;
    let page = json_when(&server, "it is refused", is_told).await;
    assert_eq!((row(&page, "blocking"), row(&page, "detached")), ([0, 1, 0, 2, 1], [1, 1, 0, 0, 1]), "{page:#}");
    let metrics = samples(&server.get("/status/metrics").await);
    for (sample, value) in [("max_running", 1.0), ("running", 0.0), ("max_waiting", 2.0), ("refused_total", 1.0)] {
        assert_eq!(
            metrics[&format!("epilogue_pool_bound_{sample}{{bound=\"blocking\",class=\"\"}}")],
            value,
            "{sample}"
        );
    }
    assert!(server.get("/status").await.text().contains("<span class=\"quiet\">blocking</span>"));
    held.open();
    json_when(&server, "all have ended", |page| page["requests"]["in_flight"] == 0).await;
    server.stop().await;
}
