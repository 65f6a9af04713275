//! Attempts at one request that go on beside each other, at the moments in which they meet.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    handler::Handler,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use http::StatusCode;
use tokio::sync::Notify;
use tower_epilogue::{EpilogueBuilder, IgnoreAbortLayer, Lifecycle, TimeLimitLayer};

use crate::{
    common::SECOND,
    routes::{hook, work},
    support::{Client, Gate, Notes, Server},
};

pub type Answer = Pin<Box<dyn Future<Output = Response> + Send>>;

pub fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.uri_mut() = request.uri().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

/// A middleware that makes two attempts, and gives up on one when it is `over`.
pub fn twice(over: &Arc<Notify>) -> impl FnMut(Request, Next) -> Answer + Clone + use<> {
    let over = over.clone();
    move |request, next| {
        let over = over.clone();
        Box::pin(async move {
            for _ in 0..2 {
                tokio::select! {
                    response = next.clone().run(copy(&request)) => return response,
                    () = over.notified() => {}
                }
            }
            StatusCode::GATEWAY_TIMEOUT.into_response()
        })
    }
}

async fn serve<T: 'static>(
    handler: impl Handler<T, ()>,
    over: &Arc<Notify>,
    notes: &Notes,
    setup: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
) -> Server {
    let app =
        Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(from_fn(twice(over)));
    Server::with(app.layer((hook(notes), IgnoreAbortLayer::new())), setup).await
}

/// Asks, and has left when the first attempt is under way, though it reads on.
pub async fn asks_and_leaves(server: &Server, notes: &Notes) -> Client {
    let mut client = server.connect().await;
    client.send_get("/").await;
    notes.seen("first").await;
    client.half_close().await;
    server.journal.seen("aborted").await;
    client
}

/// Whatever else there is has the time, and another thread, to take what is not its own.
fn is_busy() {
    tokio::task::block_in_place(|| thread::sleep(Duration::from_millis(20)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_the_second_finishes_is_not_taken_by_the_first() {
    let (notes, gate, over) = (Notes::default(), Gate::closed(), Arc::new(Notify::new()));
    let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| -> Response {
        if asked.fetch_add(1, Ordering::SeqCst) == 0 {
            theirs.add("first");
            opens.passed().await;
            return "first".into_response();
        }
        let (sent, ()) = tokio::join!(lifecycle.finish("second"), async { is_busy() });
        theirs.add(format!("second: {sent:?}"));
        "rest".into_response()
    };
    let server = serve(handler, &over, &notes, |builder| builder).await;
    let mut client = asks_and_leaves(&server, &notes).await;
    over.notify_one();
    assert_eq!(client.reply().await.text(), "second");
    notes.seen("second: Ok(Flushed)").await;
    gate.open();
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first", "second: Ok(Flushed)", "hook: GET / ABORTED Flushed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_the_first_finishes_is_not_the_answer_of_the_second() {
    let (notes, gates, over) = (Notes::default(), [Gate::closed(), Gate::closed()], Arc::new(Notify::new()));
    let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let handler = async move |lifecycle: Lifecycle| {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        theirs.add(["first", "second"][attempt]);
        opens[attempt].passed().await;
        if attempt == 0 {
            let begun = tokio::time::timeout(Duration::ZERO, lifecycle.finish("of the first"));
            let (_, ()) = tokio::join!(begun, async { is_busy() });
            theirs.add("finished");
        }
        "second"
    };
    let server = serve(handler, &over, &notes, |builder| builder).await;
    let mut client = asks_and_leaves(&server, &notes).await;
    over.notify_one();
    notes.seen("second").await;
    gates[0].open();
    notes.seen("finished").await;
    gates[1].open();
    assert_eq!(client.reply().await.text(), "second");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["first", "second", "finished", "hook: GET / ABORTED Flushed"]);
}

/// It is the handler in service, and may finish. As many rounds as it takes for the two to meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn where_the_first_ends_the_second_begins() {
    const ROUNDS: usize = 300;
    let (notes, gate, over) = (Notes::default(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ends, begins) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (theirs, opens, asked) = (notes.clone(), gate.clone(), Arc::new(AtomicUsize::new(0)));
    let (is_ending, may_end) = (ends.clone(), begins.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let number = asked.fetch_add(1, Ordering::SeqCst);
        if number.is_multiple_of(2) {
            theirs.add("first");
            opens.notified().await;
            let round = number / 2 + 1;
            is_ending.store(round, Ordering::SeqCst);
            tokio::task::block_in_place(|| while may_end.load(Ordering::SeqCst) < round {});
            return "first".to_owned();
        }
        tokio::task::yield_now().await;
        let sent = lifecycle.finish("second").await;
        format!("{sent:?}")
    };
    let (gives_up, count) = (over.clone(), Arc::new(AtomicUsize::new(0)));
    let meet = from_fn(move |request: Request, next: Next| {
        let (over, ends, begins, gate, count) =
            (gives_up.clone(), ends.clone(), begins.clone(), gate.clone(), count.clone());
        async move {
            tokio::select! {
                response = next.clone().run(copy(&request)) => return response,
                () = over.notified() => {}
            }
            gate.notify_one();
            let round = count.fetch_add(1, Ordering::SeqCst) + 1;
            while ends.load(Ordering::SeqCst) < round {
                tokio::task::yield_now().await;
            }
            let request = copy(&request);
            begins.store(round, Ordering::SeqCst);
            let (begun, after) = (Instant::now(), Duration::from_nanos(round as u64 * 37 % 10_000));
            while begun.elapsed() < after {}
            next.run(request).await
        }
    });
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(meet);
    let server = Server::start(app.layer(IgnoreAbortLayer::new())).await;
    for round in 1..=ROUNDS {
        let mut client = server.connect().await;
        client.send_get("/").await;
        notes.count(round).await;
        client.half_close().await;
        server.journal.seen_times("aborted", round).await;
        over.notify_one();
        assert_eq!(client.reply().await.text(), "second", "round {round}");
    }
    server.journal.ended(ROUNDS).await;
}

static SLOW: AtomicBool = AtomicBool::new(false);

/// Once it is slow, it takes its time to be cloned, in which another attempt ends.
struct Carried(Notes);

impl Clone for Carried {
    fn clone(&self) -> Self {
        if SLOW.swap(false, Ordering::SeqCst) {
            self.0.add("meanwhile");
            let hooks = |notes: &Notes| notes.all().iter().any(|note| note.starts_with("hook"));
            let begun = Instant::now();
            while !hooks(&self.0) && begun.elapsed() < Duration::from_millis(300) {
                thread::yield_now();
            }
        }
        Self(self.0.clone())
    }
}

tokio::task_local! {
    static CARRIED: Carried;
}

/// What the one brings is its request's still.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn two_end_at_once() {
    let (notes, gates, over) = (Notes::default(), [Gate::closed(), Gate::closed()], Arc::new(Notify::new()));
    let (theirs, opens, asked) = (notes.clone(), gates.clone(), Arc::new(AtomicUsize::new(0)));
    let carried = notes.clone();
    let handler = async move || {
        let attempt = asked.fetch_add(1, Ordering::SeqCst);
        theirs.add(["first", "second"][attempt]);
        opens[attempt].passed().await;
        SLOW.store(attempt == 1, Ordering::SeqCst);
        if attempt == 1 { work(&theirs, "second").into_response() } else { ().into_response() }
    };
    let scoped =
        from_fn(move |request: Request, next: Next| CARRIED.scope(Carried(carried.clone()), next.run(request)));
    let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(scoped);
    let app = app.layer(from_fn(twice(&over))).layer((hook(&notes), IgnoreAbortLayer::new()));
    let server = Server::with(app, |builder| builder.carry(&CARRIED)).await;
    let mut client = asks_and_leaves(&server, &notes).await;
    over.notify_one();
    notes.seen("second").await;
    over.notify_one();
    assert_eq!(client.reply().await.status, 504);
    gates[1].open();
    notes.seen("meanwhile").await;
    gates[0].open();
    server.journal.ended(1).await;
    let last = ["meanwhile", "work: second", "hook: GET / ABORTED Flushed"];
    assert_eq!(notes.all()[2..], last);
}

/// A middleware has a runtime of its own for the first attempt, and ends that.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn one_whose_runtime_ends_has_ended() {
    for asks_again in [false, true] {
        let (notes, over) = (Notes::default(), Arc::new(Notify::new()));
        let (theirs, asked) = (notes.clone(), Arc::new(AtomicUsize::new(0)));
        let handler = async move || {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                let _dropped = theirs.on_drop("first is over");
                theirs.add("first");
                std::future::pending::<()>().await;
            }
            "second"
        };
        let ends = over.clone();
        let elsewhere = from_fn(move |request: Request, next: Next| {
            let over = ends.clone();
            async move {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                let runtime = builder.worker_threads(1).enable_all().build().unwrap();
                let first = runtime.spawn(next.clone().run(copy(&request)));
                over.notified().await;
                runtime.shutdown_background();
                let ended = first.await.map_err(|error| error.is_cancelled().to_string());
                if asks_again { next.run(request).await } else { ended.unwrap_err().into_response() }
            }
        });
        let app = Router::new().route("/", get(handler)).layer(TimeLimitLayer::new(60 * SECOND)).layer(elsewhere);
        let server = Server::start(app.layer((hook(&notes), IgnoreAbortLayer::new()))).await;
        let mut client = asks_and_leaves(&server, &notes).await;
        over.notify_one();
        assert_eq!(client.reply().await.text(), if asks_again { "second" } else { "true" });
        server.journal.ended(1).await;
        assert_eq!(notes.all(), ["first", "first is over", "hook: GET / ABORTED Flushed"]);
    }
}
