//! A kind's own back-off that panics: the default one is taken, and what the job failed with is stored.

use std::time::Duration;

use axum::Router;
use serde::{Deserialize, Serialize};
use tower_epilogue::durable::{Durable, DurableBuilder, DurableJob, JobContext, JobError};

use crate::{
    common::{Node, Place, on_both},
    support::soon,
};

on_both!(a_back_off_that_panics_is_the_default);

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
