//! `finish` of the handle, used too late, twice, half, or where nobody takes what it is given.

use std::{
    future::{Future, poll_fn},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::{Next, from_fn},
    response::IntoResponse,
    routing::get,
};
use futures_util::future::join;
use http::StatusCode;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_epilogue::{Continuation, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    common::{held_back, settled, told},
    support::{Gate, Notes, Server, h2client::Http2},
};

#[tokio::test]
async fn finish_after_the_handler_has_answered_is_an_error_value() {
    let (notes, gate) = (Notes::default(), Gate::closed());
    let (theirs, opens) = (notes.clone(), gate.clone());
    let handler = async move |lifecycle: Lifecycle| {
        let (notes, gate) = (theirs.clone(), opens.clone());
        let returned = gate.clone();
        tokio::spawn(async move {
            // The handler has returned, and its body is on its way.
            notes.seen("producing").await;
            let error = lifecycle.finish("too late").await.unwrap_err();
            assert!(error.is_already_answered(), "{error:?}");
            assert!(error.to_string().contains("has answered already"), "{error}");
            notes.add("refused");
            gate.open();
        });
        held_back(&theirs, &returned, "first ", "second")
    };
    let server = Server::start(Router::new().route("/", get(handler))).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    assert_eq!(client.response(false).await.text(), "first second");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["producing", "refused", "produced", "body dropped"]);
    drop(client);
    assert!(server.stop().await.is_clean());
}

#[tokio::test]
async fn of_two_at_once_one_counts_and_the_other_is_an_error_value() {
    for http2 in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let other = lifecycle.clone();
            let other = tokio::spawn(async move { other.finish("other").await });
            let (one, other) = join(lifecycle.finish("one"), other).await;
            let other = other.unwrap();
            assert!(one.is_ok() != other.is_ok(), "{one:?} {other:?}");
            assert!(one.as_ref().err().or(other.as_ref().err()).unwrap().is_finished_twice());
            theirs.add(if one.is_ok() { "one" } else { "other" });
        };
        let server = Server::start(Router::new().route("/", get(handler))).await;
        let body = if http2 {
            Http2::connect(server.address).await.get("/").await.unwrap().body
        } else {
            server.get("/").await.body
        };
        server.journal.ended(1).await;
        assert_eq!(notes.all(), [String::from_utf8(body).unwrap()]);
        assert!(server.stop().await.is_clean());
    }
}

/// Polls `finish` once, and drops it.
async fn finish_once(lifecycle: &Lifecycle, response: impl IntoResponse) {
    let mut finish = Box::pin(lifecycle.finish(response));
    poll_fn(|cx| {
        assert!(finish.as_mut().poll(cx).is_pending());
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn a_finish_that_is_polled_once_and_dropped_has_finished() {
    for waits in [false, true] {
        let (notes, gate) = (Notes::default(), Gate::closed());
        let (theirs, opens) = (notes.clone(), gate.clone());
        let handler = async move |lifecycle: Lifecycle| {
            let (first, second) = (theirs.clone(), theirs.clone());
            finish_once(&lifecycle, (Continuation::new(async move { first.add("of the finished") }), "finished")).await;
            if waits {
                opens.passed().await;
            }
            theirs.add("rest");
            // A handler that has not waited yet has its answer taken from there all the same.
            (StatusCode::IM_A_TEAPOT, Continuation::new(async move { second.add("of the returned") }), "returned")
        };
        let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
        let server = Server::start(app).await;
        let mut client = server.connect().await;
        client.send_get("/").await;
        let reply = client.response(false).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "finished"), "waits: {waits}");
        gate.open();
        server.journal.ended(1).await;
        let mut all = notes.all();
        assert_eq!(all.pop().unwrap(), "hook: NORMAL, Flushed");
        all.sort_unstable();
        assert_eq!(all, ["of the finished", "of the returned", "rest"], "waits: {waits}");
        drop(client);
        assert!(server.stop().await.is_clean());
    }
}

/// It finishes and panics before it has ever waited: the response was promised, and leaves.
#[tokio::test(start_paused = true)]
async fn a_finish_before_a_panic_leaves_or_is_a_panic_but_never_hangs() {
    let notes = Notes::default();
    let handler = async |lifecycle: Lifecycle| -> () {
        finish_once(&lifecycle, "finished").await;
        panic!("the handler panics, as this test wants it");
    };
    let app = Router::new().route("/", get(handler)).layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    let reply = server.get("/").await;
    assert!(reply.text() == "finished" || reply.status == 500, "{reply:?}");
    server.journal.ended(1).await;
    assert_eq!(notes.all(), ["hook: NORMAL, Flushed"]);
    assert!(server.stop().await.is_clean());
}

/// Its client has left, which is ignored, and then a middleware has dropped it and takes its time to answer: the handler goes
/// on, and what it gives to `finish` cannot be that answer.
#[tokio::test]
async fn a_finish_of_a_handler_that_its_middleware_has_left_goes_nowhere_and_its_continuation_runs() {
    let (notes, gives_up, answers, finishes) = (Notes::default(), Gate::closed(), Gate::closed(), Gate::closed());
    let (theirs, opens) = (notes.clone(), finishes.clone());
    let handler = async move |lifecycle: Lifecycle| {
        lifecycle.aborted().await;
        theirs.add("aborted");
        opens.passed().await;
        theirs.add("finishes");
        // It keeps the request that keeps it.
        let (kept, notes) = (lifecycle.clone(), theirs.clone());
        let work = Continuation::new(async move { notes.add(format!("continuation: {}", kept.status())) });
        let sent = lifecycle.finish((work, "finished")).await;
        theirs.add(format!("finished: {:?}", sent.unwrap()));
    };
    let (leaves, passes, instead) = (notes.clone(), gives_up.clone(), answers.clone());
    let impatient = move |request: Request, next: Next| {
        let (notes, gives_up, answers) = (leaves.clone(), passes.clone(), instead.clone());
        async move {
            tokio::select! {
                response = next.run(request) => return response,
                () = gives_up.passed() => {}
            }
            notes.add("given up");
            answers.passed().await;
            "instead".into_response()
        }
    };
    let app = Router::new()
        .route("/", get(handler))
        .layer(IgnoreAbortLayer::new())
        .layer(from_fn(impatient))
        .layer(ShutdownHookLayer::new(told(&notes)));
    let server = Server::start(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    client.half_close().await;
    notes.seen("aborted").await;
    gives_up.open();
    notes.seen("given up").await;
    finishes.open();
    notes.seen("finishes").await;
    answers.open();
    assert_eq!(client.reply().await.text(), "instead");
    server.journal.ended(1).await;
    let mut all = notes.all();
    all[4..6].sort_unstable();
    let expected = ["continuation: ABORTED", "finished: Flushed", "hook: ABORTED, Flushed"];
    assert_eq!(all, [&["aborted", "given up", "finishes"][..], &expected].concat());
    assert!(server.stop().await.is_clean());
}

/// Gives to `finish` what comes too late for the handler, whose future is being dropped.
struct FinishesInDrop(Lifecycle, Notes);

impl Drop for FinishesInDrop {
    fn drop(&mut self) {
        // It keeps the request that keeps it.
        let (kept, notes) = (self.0.clone(), self.1.clone());
        let work = Continuation::new(async move { notes.add(format!("continuation: {}", kept.status())) });
        let begun = futures_util::FutureExt::now_or_never(self.0.finish((work, "late")));
        self.1.add(format!("finish: {}", begun.is_some()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_finish_in_the_moment_in_which_the_handler_is_dropped_goes_nowhere_and_its_continuation_runs() {
    for aborts in [false, true] {
        let notes = Notes::default();
        let theirs = notes.clone();
        let handler = async move |lifecycle: Lifecycle| {
            let _late = FinishesInDrop(lifecycle, theirs.clone());
            std::future::pending::<()>().await;
        };
        let layers = (ShutdownHookLayer::new(told(&notes)), TimeLimitLayer::new(Duration::from_secs(1)));
        let app: Router = Router::new().route("/", get(handler)).layer(layers);
        let response = app.oneshot(Request::new(Body::empty()));
        if aborts {
            let mut response = Box::pin(response);
            assert!(futures_util::poll!(&mut response).is_pending());
            drop(response);
        } else {
            let response = response.await.unwrap();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            response.into_body().collect().await.unwrap();
        }
        settled().await;
        // With an abort it is known at once what became of it.
        let ended = match aborts {
            true => ["continuation: ABORTED", "hook: ABORTED, Aborted"],
            false => ["continuation: TIMEOUT", "hook: TIMEOUT, Flushed"],
        };
        assert_eq!(notes.all(), [&[&*format!("finish: {aborts}")][..], &ended].concat(), "aborts: {aborts}");
    }
}
