//! What an attempt failed with is stored: where its kind's own back-off panics, too, for which the default one is taken, and of
//! a long error as much as it takes.

use std::time::Duration;

use axum::Router;
use serde::{Deserialize, Serialize};
use tower_epilogue::durable::{Durable, DurableBuilder, DurableJob, JobContext, JobError};

use crate::{
    common::{Node, Place, on_both},
    support::soon,
};

on_both!(a_back_off_that_panics_is_the_default, of_a_long_error_its_beginning_is_stored);

/// Its back-off is the user's, and wrong.
#[derive(Serialize, Deserialize)]
struct Wrong;

impl DurableJob for Wrong {
    const KIND: &'static str = "wrong";
    const LIMIT: Duration = Duration::from_millis(100);

    fn backoff(attempt: u16) -> Duration {
        panic!("no back-off after attempt {attempt}")
    }

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Err("it fails".into())
    }
}

async fn a_back_off_that_panics_is_the_default(place: Place) {
    // Without that failure being stored it would be rescued; not before it can be, on a busy machine either.
    let store = |store: DurableBuilder| store.register::<Wrong>().rescue_after(Duration::from_secs(3));
    let node = Node::with(&place, store, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Wrong)).await.unwrap();
    soon("it waits for its next attempt", async {
        while node.store.counts().await.unwrap().retryable == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let errors = match &place {
        Place::Sqlite(_) => "SELECT count(*) FROM river_job WHERE json(errors) LIKE '%it fails%'",
        Place::Postgres(_) => "SELECT count(*) FROM river_job WHERE array_to_string(errors, ' ') LIKE '%it fails%'",
    };
    assert_eq!(place.number(errors).await, 1);
}

/// Its error has all that it was answered.
#[derive(Serialize, Deserialize)]
struct Verbose;

impl DurableJob for Verbose {
    const KIND: &'static str = "verbose";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        Err(JobError::give_up(format!("it fails: {}", "ä".repeat(1024 * 1024))))
    }
}

async fn of_a_long_error_its_beginning_is_stored(place: Place) {
    let node = Node::with(&place, DurableBuilder::register::<Verbose>, |epilogue| epilogue, |_| Router::new()).await;
    node.store.enqueue(Durable::new(Verbose)).await.unwrap();
    node.until("it is given up", |counts| counts.discarded == 1).await;
    let error = node.store.discarded(1).await.unwrap().remove(0).error;
    assert!(error.starts_with("it fails: ä") && error.ends_with("ä…"), "{}", error.len());
    assert!(error.len() <= 17 * 1024, "{}", error.len());
}
