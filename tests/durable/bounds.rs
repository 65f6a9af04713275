//! One lifecycle: attempts have their places among the continuations, and what has none yet waits in the store.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::Path, routing::post};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower_epilogue::{
    Bound, Continuation, EpilogueBuilder, Event, RequestId,
    durable::{Durable, DurableBuilder, DurableJob, DurableStore, JobContext, JobError},
};

use crate::{
    common::{Act, Node, Place, Task, on_both},
    support::{line, soon},
};

on_both!(
    no_more_attempts_run_than_may,
    an_attempt_waits_for_the_place_of_a_continuation,
    an_attempt_that_waits_too_long_is_put_back_and_counts_none,
    a_class_bounds_the_attempts_of_its_jobs,
    a_class_is_shared_with_continuations,
    a_backlog_refuses_nobody,
    a_request_that_promises_a_job_is_refused_as_others_are,
    a_promise_is_kept_at_once_when_no_place_is_free,
    what_waits_at_a_drain_is_put_back_and_counts_none,
    what_waits_at_a_cut_is_put_back_and_counts_none,
    a_job_that_fails_is_told_to_the_failure_handler,
    a_panic_of_a_job_is_counted,
    a_slow_job_is_named,
    a_life_of_an_attempt_ends_once,
);

/// Continuations that have the places until they are let go.
#[derive(Clone, Default)]
struct Places(Arc<watch::Sender<bool>>);

impl Places {
    fn let_go(&self) {
        self.0.send_replace(true);
    }

    /// `POST /hold` takes a place, of a class if one is named; `/task/{act}` promises a job; `/plain` nothing.
    fn app(&self, store: &DurableStore) -> Router {
        let gate = self.0.clone();
        let hold = move |class: String| async move {
            let held = Continuation::new(async move {
                let _ = gate.subscribe().wait_for(|open| *open).await;
            });
            if class == "mail" { held.class("mail") } else { held }
        };
        let task = |Path(act): Path<String>, name: String| async move {
            Durable::new(Task::new(name, if act == "wait" { Act::Wait } else { Act::Succeed }))
        };
        Router::new()
            .route("/hold", post(hold))
            .route("/task/{act}", post(task))
            .route("/plain", post(|| async { "plain" }))
            .layer(store.layer())
    }
}

async fn bounded(place: &Place, bounds: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder) -> (Node, Places) {
    bounded_with(place, |store| store, bounds).await
}

async fn bounded_with(
    place: &Place,
    store: impl FnOnce(DurableBuilder) -> DurableBuilder,
    bounds: impl FnOnce(EpilogueBuilder) -> EpilogueBuilder,
) -> (Node, Places) {
    let places = Places::default();
    let theirs = places.clone();
    (Node::with(place, store, bounds, move |store| theirs.app(store)).await, places)
}

async fn enqueue(node: &Node, name: &str, act: Act) {
    node.store.enqueue(Durable::new(Task::new(name, act))).await.unwrap();
}

fn count(events: &[Event], name: &str) -> usize {
    events.iter().filter(|event| event.kind().name() == name).count()
}

/// Waits until so many of these happened, to whomever.
async fn happened(node: &Node, name: &'static str, times: usize) {
    node.journal.until(name, move |events| count(events, name) >= times).await;
}

async fn no_more_attempts_run_than_may(place: Place) {
    let (node, _) = bounded(&place, |epilogue| epilogue.max_running(2)).await;
    for number in 0..10 {
        enqueue(&node, &format!("job {number}"), Act::Wait).await;
    }
    happened(&node, "continuation_start", 2).await;
    // One that could begin would be begun by now: the store is looked at whenever one is promised.
    enqueue(&node, "last", Act::Wait).await;
    node.store.settled().await;
    assert_eq!(node.record.runs().len(), 2);
    let load = node.epilogue.load().unwrap();
    assert_eq!((load.running, load.reserved, load.refused, load.over), (2, 0, 0, 0), "{load:?}");
    node.record.open();
    node.completed(11).await;
    assert!(node.record.runs().iter().all(|run| run.attempt == 1));
    node.journal.ended(11).await;
    let load = node.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.over), (0, 0, 0), "{load:?}");
}

async fn an_attempt_waits_for_the_place_of_a_continuation(place: Place) {
    let (node, places) = bounded(&place, |epilogue| epilogue.max_running(1)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    enqueue(&node, "waits", Act::Succeed).await;
    happened(&node, "continuation_waits", 1).await;
    let load = node.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting), (1, 1), "{load:?}");
    assert!(node.record.runs().is_empty());
    places.let_go();
    assert_eq!(node.record.begun("waits", 1).await[0].attempt, 1);
    node.completed(1).await;
    node.journal.ended(2).await;
    let job = last(&node);
    assert_eq!(of(&node, job), ["continuation_waits/0", "continuation_start/0", "continuation_end/0", "ended/0"]);
}

/// The last life to begin.
fn last(node: &Node) -> RequestId {
    *node.journal.requests().last().unwrap()
}

/// What happened to it, from when it was there.
fn of(node: &Node, request: RequestId) -> Vec<String> {
    node.journal
        .events()
        .iter()
        .filter(|event| event.request() == request && event.kind().name() != "arrived")
        .map(line)
        .collect()
}

/// It would be lost with its process, as the store sees it, a second before it is put back.
#[derive(Serialize, Deserialize)]
struct Short;

impl DurableJob for Short {
    const KIND: &'static str = "short";
    const LIMIT: Duration = Duration::from_millis(200);
    const MAX_ATTEMPTS: u16 = 1;

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        assert!(cx.time_left() > Duration::from_millis(50), "its limit counts from here on");
        cx.state::<tokio::sync::mpsc::UnboundedSender<u16>>()?.send(cx.attempt())?;
        Ok(())
    }
}

async fn an_attempt_that_waits_too_long_is_put_back_and_counts_none(place: Place) {
    let (sender, mut ran) = tokio::sync::mpsc::unbounded_channel::<u16>();
    let grace = Duration::from_millis(400);
    let store = |store: DurableBuilder| store.register::<Short>().state(sender).rescue_after(grace);
    let (node, places) = bounded_with(&place, store, |epilogue| epilogue.max_running(1)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    node.store.enqueue(Durable::new(Short)).await.unwrap();
    // Put back twice, which takes longer than it may run and be rescued after.
    node.journal.ended(2).await;
    let none = place.number("SELECT count(*) FROM river_job WHERE state = 'discarded' OR errors IS NOT NULL").await;
    assert_eq!(none, 0, "it was not taken for lost");
    places.let_go();
    assert_eq!(soon("it runs", ran.recv()).await, Some(1));
    node.completed(1).await;
    assert!(ran.try_recv().is_err(), "it runs once");
}

/// Of a class.
#[derive(Serialize, Deserialize)]
struct Mail(String);

impl DurableJob for Mail {
    const KIND: &'static str = "mail";
    const CLASS: Option<&'static str> = Some("mail");

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        Task::new(self.0, Act::Wait).run(cx).await
    }
}

async fn a_class_bounds_the_attempts_of_its_jobs(place: Place) {
    let (node, _) = bounded_with(&place, DurableBuilder::register::<Mail>, |epilogue| {
        epilogue.max_running(4).class("mail", Bound::new(1).max_waiting(0))
    })
    .await;
    for number in 0..5 {
        node.store.enqueue(Durable::new(Mail(format!("mail {number}")))).await.unwrap();
    }
    // Others do not wait for it.
    enqueue(&node, "beside", Act::Succeed).await;
    node.record.begun("beside", 1).await;
    node.record.begun("mail 0", 1).await;
    node.completed(1).await;
    assert_eq!(node.record.runs().len(), 2, "{:?}", node.record.runs());
    let load = node.epilogue.class_load("mail").unwrap();
    assert_eq!((load.running, load.over), (1, 0), "{load:?}");
    node.record.open();
    node.completed(6).await;
}

async fn a_class_is_shared_with_continuations(place: Place) {
    let (node, places) =
        bounded_with(&place, DurableBuilder::register::<Mail>, |epilogue| epilogue.class("mail", Bound::new(1))).await;
    assert_eq!(node.post("/hold", &[], "mail").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    node.record.open();
    node.store.enqueue(Durable::new(Mail("waits".to_owned()))).await.unwrap();
    happened(&node, "continuation_waits", 1).await;
    enqueue(&node, "of none", Act::Succeed).await;
    node.completed(1).await;
    assert!(node.record.runs_of("waits").is_empty());
    places.let_go();
    node.completed(2).await;
}

async fn a_backlog_refuses_nobody(place: Place) {
    let (node, places) = bounded(&place, |epilogue| epilogue.max_running(1).max_waiting(0)).await;
    for number in 0..20 {
        enqueue(&node, &format!("job {number}"), Act::Wait).await;
    }
    happened(&node, "continuation_start", 1).await;
    // The one place is taken by a job, and the next one waits.
    assert_eq!(node.post("/plain", &[], "").await.status, 200);
    assert_eq!(node.post("/task/ok", &[], "promised").await.status, 200);
    // A continuation has room, and waits for the place.
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    assert_eq!(node.epilogue.refused(), 0);
    places.let_go();
    node.record.open();
    node.completed(21).await;
    node.journal.ended(24).await;
    let load = node.epilogue.load().unwrap();
    assert_eq!((load.running, load.waiting, load.refused, load.over), (0, 0, 0, 0), "{load:?}");
}

async fn a_request_that_promises_a_job_is_refused_as_others_are(place: Place) {
    let (node, places) = bounded(&place, |epilogue| epilogue.max_running(1).max_waiting(0)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    let refused = node.post("/task/ok", &[("Idempotency-Key", "k")], "refused").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    assert_eq!(node.store.counts().await.unwrap().unfinished(), 0);
    places.let_go();
    node.journal.ended(2).await;
    let again = node.post("/task/ok", &[("Idempotency-Key", "k")], "refused").await;
    assert_eq!(again.status, 200, "its key was not used up: {}", again.text());
    node.completed(1).await;
}

async fn a_promise_is_kept_at_once_when_no_place_is_free(place: Place) {
    let hour = Duration::from_secs(3600);
    let (node, places) =
        bounded_with(&place, |store| store.lease(hour), |epilogue| epilogue.max_running(1).max_waiting(1)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    assert_eq!(node.post("/task/ok", &[], "promised").await.status, 200);
    // Begun by its request's flush, an hour before its lease ends, it waits in turn.
    happened(&node, "continuation_waits", 1).await;
    // Its request has ended, and its room is free again.
    node.journal.ended(1).await;
    assert_eq!(node.epilogue.load().unwrap().reserved, 0);
    assert_eq!(node.post("/plain", &[], "").await.status, 200);
    places.let_go();
    node.completed(1).await;
}

async fn what_waits_at_a_drain_is_put_back_and_counts_none(place: Place) {
    let (mut node, places) = bounded(&place, |epilogue| epilogue.max_running(1)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    enqueue(&node, "waits", Act::Succeed).await;
    happened(&node, "continuation_waits", 1).await;
    node.begin_drain();
    // It does not wait for the place to be free: the drain has it back at once.
    node.journal.ended(1).await;
    assert_eq!(of(&node, last(&node)), ["continuation_waits/0", "ended/0"]);
    places.let_go();
    let record = node.record.clone();
    let report = node.stop().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.stored_jobs(), record.runs().len()), (Some(1), 0), "{report}");
    stays_stored(&place).await;
}

async fn stays_stored(place: &Place) {
    let untouched = "SELECT count(*) FROM river_job WHERE attempt = 0 AND state IN ('available', 'scheduled')";
    assert_eq!(place.number(untouched).await, 1);
    let node = Node::start(place, |_| Router::new()).await;
    assert_eq!(node.record.begun("waits", 1).await[0].attempt, 1);
    node.completed(1).await;
}

async fn what_waits_at_a_cut_is_put_back_and_counts_none(place: Place) {
    let (node, _places) =
        bounded(&place, |epilogue| epilogue.max_running(1).drain_deadline(Duration::from_millis(200))).await;
    enqueue(&node, "waits", Act::Hang).await;
    assert_eq!(node.record.begun("waits", 1).await[0].attempt, 1);
    enqueue(&node, "too", Act::Succeed).await;
    let report = node.stop().await;
    assert_eq!(report.stored_jobs(), Some(2), "{report}");
    assert_eq!(report.stragglers().len(), 1, "{report}");
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE attempt = 0 AND state = 'available'").await, 2);
}

async fn a_job_that_fails_is_told_to_the_failure_handler(place: Place) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    let node = Node::with(
        &place,
        DurableBuilder::register::<Mail>,
        |epilogue| {
            epilogue.on_failure(move |failure| {
                let line = format!("{} {:?} {}", failure.route, failure.class, failure.error);
                teller.lock().unwrap().push(line);
                async {}
            })
        },
        |_| Router::new(),
    )
    .await;
    enqueue(&node, "fails once", Act::FailUntil(2)).await;
    node.completed(1).await;
    node.journal.ended(2).await;
    assert_eq!(*told.lock().unwrap(), ["JOB /task None not yet"]);
    let first = node.journal.requests()[0];
    assert_eq!(
        of(&node, first),
        ["continuation_start/0", "continuation_failed/0", "continuation_end/0", "ended/0"],
        "as a continuation that fails"
    );
}

async fn a_panic_of_a_job_is_counted(place: Place) {
    let node = Node::start(&place, |_| Router::new()).await;
    enqueue(&node, "panics", Act::Panic).await;
    node.journal.ended(3).await;
    assert_eq!(node.epilogue.panicked(), 3);
}

async fn a_slow_job_is_named(place: Place) {
    let slow = Duration::from_millis(20);
    let node = Node::with(&place, |store| store, |epilogue| epilogue.slow_after(slow), |_| Router::new()).await;
    enqueue(&node, "slow", Act::Wait).await;
    node.journal.seen("slow").await;
    node.record.open();
    node.completed(1).await;
}

async fn a_life_of_an_attempt_ends_once(place: Place) {
    let (node, places) = bounded(&place, |epilogue| epilogue.max_running(3)).await;
    assert_eq!(node.post("/hold", &[], "").await.status, 200);
    happened(&node, "continuation_start", 1).await;
    for (name, act) in [("ok", Act::Succeed), ("again", Act::FailUntil(3)), ("panics", Act::Panic), ("no", Act::GiveUp)]
    {
        enqueue(&node, name, act).await;
    }
    // One life for each attempt: 1 + 3 + 3 + 1.
    places.let_go();
    node.journal.ended(9).await;
    let events = node.journal.events();
    for request in node.journal.requests() {
        let of: Vec<_> = events.iter().filter(|event| event.request() == request).cloned().collect();
        assert_eq!(count(&of, "ended"), 1, "{of:?}");
        assert_eq!(of.last().unwrap().kind().name(), "ended", "{of:?}");
        assert_eq!(count(&of, "continuation_start"), 1, "{of:?}");
        assert_eq!(count(&of, "continuation_end") + count(&of, "continuation_dropped"), 1, "{of:?}");
    }
    assert_eq!(node.journal.requests().len(), 9);
}
