//! A subscriber that panics in the store's own tasks: it costs nothing but its lines.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use tower_epilogue::{
    Lifecycle,
    durable::{Durable, DurableBuilder, DurableStore},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::{
    common::{Act, Node, Place, Record, Task},
    locked::Locked,
    support::{PanicsIn, soon},
    untold::short,
};

/// Panics at each record that `at` says, on the thread that it is set for.
struct Fragile<F> {
    at: F,
    panics: Arc<AtomicUsize>,
}

impl<F> Subscriber for Fragile<F>
where
    F: Fn(&Event<'_>) -> bool + 'static,
{
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span() && *metadata.level() <= Level::DEBUG
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        if (self.at)(event) {
            self.panics.fetch_add(1, Ordering::SeqCst);
            panic!("as this test wants it");
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Whether a record says that anywhere.
struct Says(&'static str, bool);

impl Visit for Says {
    fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
        self.1 |= format!("{value:?}").contains(self.0);
    }
}

fn says(event: &Event<'_>, what: &'static str) -> bool {
    let mut says = Says(what, false);
    event.record(&mut says);
    says.1
}

async fn node(place: &Place, store: impl FnOnce(DurableBuilder) -> DurableBuilder) -> Node {
    let finishes = async |lifecycle: Lifecycle, name: String| {
        let _ = lifecycle.finish("finished").await;
        Durable::new(Task::ok(name))
    };
    let returns = async |name: String| (Durable::new(Task::ok(name)), "ordered");
    let record = Record::default();
    let builder = store(short(place).state(record.clone()).register::<Task>());
    let app = |store: &DurableStore| {
        Router::new().route("/", post(returns)).route("/finished", post(finishes)).layer(store.layer())
    };
    Node::of(record, builder, |epilogue| epilogue, app).await
}

const KEY: [(&str, &str); 1] = [("Idempotency-Key", "k")];

/// All that the store, and this crate, says.
async fn no_line_ends_it(place: Place) {
    let panics = Arc::new(AtomicUsize::new(0));
    let ours = |event: &Event<'_>| event.metadata().target().starts_with("tower_epilogue");
    let _set = tracing::subscriber::set_default(Fragile { at: ours, panics: panics.clone() });
    let discards = Arc::new(AtomicUsize::new(0));
    let told = discards.clone();
    let node = node(&place, |store| {
        // Its claims are to be renewed meanwhile.
        store.claim(Duration::from_secs(1)).on_discard(move |_| {
            told.fetch_add(1, Ordering::SeqCst);
        })
    })
    .await;
    let locked = Locked::take(&place).await;
    // The one that keeps is told by the writer that it failed; what is stored behind a finish is tried again.
    assert_eq!(node.post("/", &[], "refused").await.status, 503);
    assert_eq!(node.post("/finished", &[], "late").await.text(), "finished");
    assert_eq!(node.post("/", &[], "refused").await.status, 503);
    let before = panics.load(Ordering::SeqCst);
    assert!(before >= 4, "{before}");
    locked.release().await;
    node.record.begun("late", 1).await;
    assert_eq!(node.post("/", &KEY, "after").await.status, 200);
    node.record.begun("after", 1).await;
    // The runner.
    for (name, act) in [("fails", Act::FailUntil(2)), ("panics", Act::Panic), ("hopeless", Act::GiveUp)] {
        node.store.enqueue(Durable::new(Task::new(name, act))).await.unwrap();
    }
    node.record.begun("fails", 2).await;
    node.record.begun("panics", 3).await;
    node.until("two are given up, and told of", |counts| {
        counts.discarded == 2 && counts.completed == 3 && discards.load(Ordering::SeqCst) == 2
    })
    .await;
    assert!(panics.load(Ordering::SeqCst) >= before + 5);
    // Each attempt failed with what it failed with.
    let ours = "SELECT count(*) FROM river_job WHERE CAST(errors AS TEXT) LIKE '%not yet%'";
    let theirs = "SELECT count(*) FROM river_job WHERE CAST(errors AS TEXT) LIKE '%as this test wants it%'";
    assert_eq!((place.number(ours).await, place.number(theirs).await), (1, 0));
    assert!(node.stop().await.is_clean());
}

#[tokio::test]
async fn no_line_ends_the_store_of_sqlite() {
    no_line_ends_it(Place::sqlite()).await;
}

#[tokio::test]
async fn no_line_ends_the_store_of_postgres() {
    no_line_ends_it(Place::postgres()).await;
}

/// What sqlx says of a statement, in the middle of what the writer does.
#[tokio::test]
async fn no_line_of_the_driver_ends_the_writer() {
    let (panics, armed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let is_armed = armed.clone();
    let of_a_claim = move |event: &Event<'_>| {
        is_armed.load(Ordering::SeqCst)
            && event.metadata().target() == "sqlx::query"
            && says(event, "tower_epilogue_answer")
    };
    let _set = tracing::subscriber::set_default(Fragile { at: of_a_claim, panics: panics.clone() });
    let node = node(&Place::postgres(), |store| store).await;
    armed.store(true, Ordering::SeqCst);
    assert_eq!(soon("an answer", node.post("/", &KEY, "refused")).await.status, 503);
    armed.store(false, Ordering::SeqCst);
    assert!(panics.load(Ordering::SeqCst) > 0);
    assert_eq!(node.post("/", &KEY, "after").await.status, 200);
    node.record.begun("after", 1).await;
    node.completed(1).await;
    assert!(node.record.runs_of("refused").is_empty());
}

/// The span of an attempt.
#[tokio::test]
async fn no_span_costs_an_attempt() {
    for what in ["new", "enter", "exit", "close"] {
        let panics = Arc::new(AtomicUsize::new(0));
        let subscriber = tracing_subscriber::registry().with(PanicsIn(what, "durable_job", panics.clone()));
        let _set = tracing::subscriber::set_default(subscriber);
        tracing::callsite::rebuild_interest_cache();
        let node = node(&Place::sqlite(), |store| store).await;
        assert_eq!(node.post("/", &[], what).await.status, 200);
        node.completed(1).await;
        assert_eq!(node.record.runs().len(), 1, "at {what:?}");
        assert!(node.stop().await.is_clean());
        assert!(panics.load(Ordering::SeqCst) > 0, "it was never told {what:?}");
    }
}
