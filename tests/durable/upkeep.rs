//! What operators do and meet: jobs that are revived, settings at their ends, a database that cannot be reached for long.

use std::time::Duration;

use axum::Router;
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableStore},
};

use crate::{
    common::{Place, Record, Task, on_both, quick},
};

on_both!(
    a_store_runs_its_jobs_where_its_epilogue_is_out_of_sight,
);

/// Whoever set it up has kept the store alone.
async fn a_store_runs_its_jobs_where_its_epilogue_is_out_of_sight(place: Place) {
    let record = Record::default();
    let builder = quick(place.store()).state(record.clone()).register::<Task>();
    let store: DurableStore = builder.start(&Epilogue::new()).await.unwrap();
    store.enqueue(Durable::new(Task::ok("promised"))).await.unwrap();
    record.begun("promised", 1).await;
}

