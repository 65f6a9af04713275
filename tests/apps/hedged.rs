//! Beside middleware that makes two attempts at once: each of them is the handler.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{Route, get},
};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::StatusCode;
use tokio::{sync::Notify, task::JoinSet};
use tower::{Service, layer::layer_fn, service_fn};
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    beside::{asks_and_leaves, copy, twice},
    common::SECOND,
    routes::{hook, waits_for_a_limit, work},
    support::{Gate, Notes, Reply, Server, h2client::Http2},
};

type Attempt = BoxFuture<'static, Result<Response, Infallible>>;

/// The first that succeeds is the answer; the other one is dropped then.
async fn first_success(attempts: [Attempt; 2]) -> Result<Response, Infallible> {
    let mut attempts = FuturesUnordered::from_iter(attempts);
    let mut last = StatusCode::NOT_FOUND.into_response();
    while let Some(Ok(response)) = attempts.next().await {
        last = response;
        if last.status().is_success() {
            break;
        }
    }
    Ok(last)
}

const NAMES: [&str; 2] = ["first", "second"];
const OVER: [&str; 2] = ["first is over", "second is over"];

/// What the attempts do behind their gates.
#[derive(Clone, Copy)]
struct Plan {
    /// The second sets a limit, and waits for it.
    limits: bool,
    /// This one fails at once, and the other one finishes.
    fails: Option<usize>,
    made: Made,
}

/// How the middleware makes its attempts.
#[derive(Clone, Copy, Debug)]
enum Made {
    /// Both in its own future.
    Polled,
    /// The first when it is called itself.
    Called,
    /// In a task, which it aborts when it is dropped: both, the first, or the second.
    Spawned([bool; 2]),
}

const ALL: [Made; 5] = [
    Made::Polled,
    Made::Called,
    Made::Spawned([true, true]),
    Made::Spawned([true, false]),
    Made::Spawned([false, true]),
];

const WAITS: Plan = Plan { limits: false, fails: None, made: Made::Polled };

async fn serve(notes: &Notes, gates: &[Gate; 2], plan: Plan) -> Server {
    let (theirs, gates, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| -> Response {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        let name = NAMES[attempt];
        let _dropped = theirs.on_drop(OVER[attempt]);
        theirs.add(name);
        gates[attempt].passed().await;
        if plan.limits {
            waits_for_a_limit(&lifecycle).await;
        }
        match plan.fails {
            Some(fails) if fails == attempt => (work(&theirs, name), StatusCode::BAD_GATEWAY).into_response(),
            Some(_) => {
                let sent = lifecycle.finish(name).await;
                theirs.add(format!("{name}: {sent:?}"));
                work(&theirs, name).into_response()
            }
            None => (work(&theirs, name), name).into_response(),
        }
    };
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND));
    let app = match plan.made {
        Made::Called => app.layer(layer_fn(|inner: Route| {
            service_fn(move |request: Request| {
                let mut inner = inner.clone();
                let first = inner.call(copy(&request));
                async move { first_success([first.boxed(), inner.call(request).boxed()]).await }
            })
        })),
        Made::Polled => app.layer(from_fn(|request: Request, next: Next| async move {
            let attempts = [next.clone().run(copy(&request)), next.run(request)];
            first_success(attempts.map(|attempt| attempt.map(Ok).boxed())).await
        })),
        Made::Spawned(which) => app.layer(from_fn(move |request: Request, next: Next| async move {
            let spawned = |attempt| {
                let mut tasks = JoinSet::new();
                tasks.spawn(attempt);
                async move { Ok(tasks.join_next().await.unwrap().unwrap()) }.boxed()
            };
            let made = |(number, attempt): (usize, BoxFuture<'static, Response>)| {
                if which[number] { spawned(attempt) } else { attempt.map(Ok).boxed() }
            };
            let (first, second) = (next.clone().run(copy(&request)).boxed(), next.run(request).boxed());
            first_success([made((0, first)), made((1, second))]).await
        })),
    };
    Server::start(app.layer((hook(notes), IgnoreAbortLayer::new()))).await
}

async fn both_began(notes: &Notes) {
    notes.seen("first").await;
    notes.seen("second").await;
}

/// What is answered when both have begun, and `then` has been done.
async fn reply(server: &Server, notes: &Notes, then: impl Future<Output = ()>) -> Reply {
    let both = async {
        both_began(notes).await;
        then.await;
    };
    tokio::join!(server.get("/"), both).0
}

fn told_of_handlers(server: &Server) -> Vec<String> {
    server.journal.lines().into_iter().filter(|line| line.starts_with("handler_")).collect()
}

#[tokio::test]
async fn both_go_on_without_their_client() {
    for (made, order) in ALL.into_iter().flat_map(|made| [(made, [0, 1]), (made, [1, 0])]) {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = serve(&notes, &gates, Plan { made, ..WAITS }).await;
        let mut client = Http2::connect(server.address).await;
        let response = client.start("GET", "/").await;
        both_began(&notes).await;
        drop(response);
        server.journal.seen("aborted").await;
        for attempt in order {
            gates[attempt].open();
            notes.seen(OVER[attempt]).await;
        }
        server.journal.ended(1).await;
        let all = notes.all();
        let works = ["work: first", "work: second"].iter().filter(|work| notes.has(work)).count();
        assert_eq!((all.len(), works, all[6].as_str()), (7, 2, "hook: GET / ABORTED Aborted"), "{all:?}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// The other one may still call `finish`, and what it does then is waited for.
#[tokio::test]
async fn the_end_of_one_is_not_that_of_the_other() {
    for (made, fails) in ALL.into_iter().flat_map(|made| [(made, 0), (made, 1)]) {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = serve(&notes, &gates, Plan { made, fails: Some(fails), ..WAITS }).await;
        let opens = async {
            gates[fails].open();
            notes.seen(OVER[fails]).await;
            gates[1 - fails].open();
        };
        let name = NAMES[1 - fails];
        assert_eq!(reply(&server, &notes, opens).await.text(), name);
        server.journal.ended(1).await;
        let all = notes.all();
        assert!(notes.has(&format!("{name}: Ok(Flushed)")), "{all:?}");
        let works = ["work: first", "work: second"].iter().filter(|work| notes.has(work)).count();
        assert_eq!((works, all.last().unwrap().as_str()), (2, "hook: GET / NORMAL Flushed"), "{all:?}");
        assert_eq!(told_of_handlers(&server), ["handler_start/0", "handler_end/0"]);
        assert!(server.stop().await.is_clean());
    }
}

/// It is the answer, and the other one is dropped.
#[tokio::test]
async fn the_rest_of_the_one_that_finishes_goes_on() {
    for (made, fails) in ALL.into_iter().flat_map(|made| [(made, 0), (made, 1)]) {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = serve(&notes, &gates, Plan { made, fails: Some(fails), ..WAITS }).await;
        let name = NAMES[1 - fails];
        assert_eq!(reply(&server, &notes, async { gates[1 - fails].open() }).await.text(), name);
        server.journal.ended(1).await;
        let all = notes.all();
        let rest = [format!("{name}: Ok(Flushed)"), OVER[1 - fails].to_owned(), format!("work: {name}")];
        assert_eq!(all[2], OVER[fails]);
        assert_eq!(all[3..6], rest, "{all:?}");
        assert_eq!(all[6..], ["hook: GET / NORMAL Flushed"]);
        assert!(server.stop().await.is_clean());
    }
}

#[tokio::test]
async fn the_limit_ends_both() {
    for made in ALL {
        let (notes, gates) = (Notes::default(), [Gate::closed(), Gate::closed()]);
        let server = serve(&notes, &gates, Plan { made, limits: true, ..WAITS }).await;
        assert_eq!(reply(&server, &notes, async { gates[1].open() }).await.status, 503);
        server.journal.ended(1).await;
        let mut all = notes.all();
        all[2..4].sort_unstable();
        assert_eq!(all, [NAMES[0], NAMES[1], OVER[0], OVER[1], "hook: GET / TIMEOUT Flushed"]);
        assert!(server.stop().await.is_clean());
    }
}

/// What one does behind its client ends nothing but itself, and takes nothing.
#[tokio::test]
async fn what_begins_inside_of_one_that_was_left_behind_is_not_the_one_in_service() {
    for first_ends in [true, false] {
        let (notes, gates, over) = (Notes::default(), [Gate::closed(), Gate::closed()], Arc::new(Notify::new()));
        let last = Gate::closed();
        let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
        let between = from_fn(move |request: Request, next: Next| {
            let attempt = asked.fetch_add(1, Ordering::SeqCst);
            let (notes, gate) = (theirs.clone(), opens[0].clone());
            async move {
                notes.add(NAMES[attempt]);
                if attempt == 0 {
                    gate.passed().await;
                }
                let response = next.run(request).await;
                notes.add(OVER[attempt]);
                response
            }
        });
        let (theirs, opens, may_end) = (notes.clone(), gates.clone(), last.clone());
        let asked = Arc::new(AtomicUsize::new(0));
        let handler = async move |lifecycle: Lifecycle| {
            if asked.fetch_add(1, Ordering::SeqCst) == 1 {
                theirs.add("handler of the first");
                may_end.passed().await;
                return "first";
            }
            theirs.add("handler of the second");
            opens[1].passed().await;
            let sent = lifecycle.finish("second").await;
            theirs.add(format!("second: {sent:?}"));
            "rest"
        };
        let app = Router::new().route("/", get(handler)).layer(EarlyCloseLayer::new()).layer(between);
        let app = app.layer(TimeLimitLayer::new(60 * SECOND)).layer(from_fn(twice(&over)));
        let server = Server::start(app.layer((hook(&notes), IgnoreAbortLayer::new()))).await;
        let mut client = asks_and_leaves(&server, &notes).await;
        over.notify_one();
        notes.seen("handler of the second").await;
        gates[0].open();
        notes.seen("handler of the first").await;
        if first_ends {
            last.open();
            notes.seen(OVER[0]).await;
        }
        gates[1].open();
        assert_eq!(client.reply().await.text(), "second");
        notes.seen("second: Ok(Flushed)").await;
        last.open();
        server.journal.ended(1).await;
        let mut ends = [OVER[0], OVER[1], "second: Ok(Flushed)", "hook: GET / ABORTED Flushed"];
        if !first_ends {
            ends[..3].rotate_left(1);
        }
        assert_eq!(notes.all()[4..], ends);
        assert!(server.stop().await.is_clean());
    }
}
