//! Attempts that fail when their job is over already, completed in a transaction of their own or cancelled: what is said of
//! them.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::Router;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tower_epilogue::durable::{Durable, DurableBuilder, DurableJob, JobContext, JobError, sqlx};

use crate::{
    common::{Node, Place, on_both},
    support::{logs, soon},
    upkeep::cancel,
};

on_both!(
    it_is_said_that_they_are_not_tried_again,
    nobody_is_told_that_it_was_given_up,
    whose_transaction_was_rolled_back_is_tried_again,
    nor_of_one_that_was_cancelled,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Then {
    Fail,
    GiveUp,
    Panic,
    Hang,
    /// It has rolled back what it was completed in.
    Undo,
}

/// Is completed in a transaction, and then does as it is told. The last attempt is the `LAST`.
#[derive(Serialize, Deserialize)]
struct Completes<const LAST: u16>(Then, String);

async fn end<DB>(transaction: sqlx::Transaction<'_, DB>, commits: bool) -> Result<(), sqlx::Error>
where
    DB: sqlx::Database,
{
    if commits { transaction.commit().await } else { transaction.rollback().await }
}

impl<const LAST: u16> DurableJob for Completes<LAST> {
    const KIND: &'static str = if LAST == 1 { "completes-once" } else { "completes" };
    const MAX_ATTEMPTS: u16 = LAST;
    const LIMIT: Duration = Duration::from_millis(500);

    fn backoff(_: u16) -> Duration {
        Duration::from_millis(20)
    }

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        let Self(then, marker) = self;
        let commits = then != Then::Undo || cx.attempt() > 1;
        if let Ok(mut transaction) = cx.store().begin_sqlite().await {
            cx.complete_in_transaction(&mut transaction).await?;
            end(transaction, commits).await?;
        } else {
            let mut transaction = cx.store().begin_postgres().await?;
            cx.complete_in_transaction(&mut transaction).await?;
            end(transaction, commits).await?;
        }
        match then {
            Then::Fail | Then::Undo => Err(marker.into()),
            Then::GiveUp => Err(JobError::give_up(marker)),
            Then::Panic => panic!("{marker}"),
            Then::Hang => std::future::pending().await,
        }
    }
}

const NOT_AGAIN: &str = "a durable job failed after it was completed";
const AGAIN: &str = "will be retried";
const GIVEN_UP: &str = "was discarded";

/// What the log has of it.
fn said(marker: &str, what: &str) -> usize {
    logs().with(marker).iter().filter(|line| line.contains(what)).count()
}

async fn node(place: &Place, discards: &Arc<AtomicUsize>) -> Node {
    logs();
    let counts = discards.clone();
    let store = |store: DurableBuilder| {
        let store = store.register::<Completes<1>>().register::<Completes<3>>();
        store.on_discard(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
        })
    };
    Node::with(place, store, |epilogue| epilogue, |_| Router::new()).await
}

fn markers(place: &Place, name: &str) -> impl Fn(Then) -> String {
    let kind = if matches!(place, Place::Sqlite(_)) { "sqlite" } else { "postgres" };
    let name = format!("{name}-{kind}");
    move |then| format!("completed-{name}-{then:?}")
}

const ALL: [Then; 4] = [Then::Fail, Then::GiveUp, Then::Panic, Then::Hang];

/// A job of each kind, of which it is said that it is completed, and nothing else.
async fn completed<const LAST: u16>(place: &Place, name: &str) -> (Node, Arc<AtomicUsize>) {
    let (discards, marker) = (Arc::default(), markers(place, name));
    let node = node(place, &discards).await;
    for then in ALL {
        node.store.enqueue(Durable::new(Completes::<LAST>(then, marker(then)))).await.unwrap();
    }
    node.completed(4).await;
    node.journal.ended(4).await;
    for then in [Then::Fail, Then::GiveUp, Then::Panic] {
        logs().until("it is said", |_| said(&marker(then), NOT_AGAIN) == 1).await;
        assert_eq!((said(&marker(then), AGAIN), said(&marker(then), GIVEN_UP)), (0, 0), "{then:?}");
    }
    (node, discards)
}

async fn it_is_said_that_they_are_not_tried_again(place: Place) {
    let (node, discards) = completed::<3>(&place, "again").await;
    let report = node.stop().await;
    assert_eq!((report.stored_jobs(), discards.load(Ordering::SeqCst)), (Some(0), 0));
}

async fn nobody_is_told_that_it_was_given_up(place: Place) {
    let (node, discards) = completed::<1>(&place, "last").await;
    let store = node.store.clone();
    node.stop().await;
    assert_eq!((store.counts().await.unwrap().discarded, discards.load(Ordering::SeqCst)), (0, 0));
}

async fn whose_transaction_was_rolled_back_is_tried_again(place: Place) {
    let (discards, marker) = (Arc::default(), markers(&place, "undone"));
    let node = node(&place, &discards).await;
    node.store.enqueue(Durable::new(Completes::<3>(Then::Undo, marker(Then::Undo)))).await.unwrap();
    node.completed(1).await;
    node.journal.ended(2).await;
    let marker = marker(Then::Undo);
    logs().until("it is said", |_| said(&marker, NOT_AGAIN) == 1).await;
    assert_eq!((said(&marker, AGAIN), said(&marker, GIVEN_UP)), (1, 0));
}

/// Sees that it is to end, and says that it failed.
#[derive(Serialize, Deserialize)]
struct Stubborn<const LAST: u16>(String);

impl<const LAST: u16> DurableJob for Stubborn<LAST> {
    const KIND: &'static str = if LAST == 1 { "stubborn-once" } else { "stubborn" };
    const MAX_ATTEMPTS: u16 = LAST;
    const LIMIT: Duration = Duration::from_secs(3600);

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        cx.state::<mpsc::UnboundedSender<()>>()?.send(())?;
        // It is polled once more before it would be dropped.
        poll_fn(|_| if cx.status().is_timeout() { Poll::Ready(()) } else { Poll::Pending }).await;
        Err(self.0.into())
    }
}

async fn nor_of_one_that_was_cancelled(place: Place) {
    cancelled::<1>(&place).await;
    // A store of its own: it is the first job there.
    let place = if matches!(place, Place::Sqlite(_)) { Place::sqlite() } else { Place::postgres() };
    cancelled::<3>(&place).await;
}

async fn cancelled<const LAST: u16>(place: &Place) {
    logs();
    let marker = markers(place, &format!("cancelled-{LAST}"))(Then::Fail);
    let (begins, mut begun) = mpsc::unbounded_channel::<()>();
    let discards = Arc::new(AtomicUsize::new(0));
    let counts = discards.clone();
    let store = |store: DurableBuilder| {
        store.register::<Stubborn<LAST>>().state(begins).on_discard(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
        })
    };
    let node = Node::with(place, store, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Stubborn::<LAST>(marker.clone()))).await.unwrap();
    soon("it begins", begun.recv()).await;
    cancel(place).await;
    node.journal.ended(1).await;
    assert!(node.stop().await.is_clean());
    assert_eq!(place.number("SELECT count(*) FROM river_job WHERE state = 'cancelled'").await, 1);
    assert_eq!((said(&marker, AGAIN), said(&marker, GIVEN_UP), discards.load(Ordering::SeqCst)), (0, 0, 0));
}
