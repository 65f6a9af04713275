//! Durable background jobs that survive the process: a persistent job queue in SQLite or Postgres.
//!
//! A [`Continuation`](crate::Continuation) lives in memory, and dies with its process. Where that is not acceptable,
//! a durable job is stored before the response leaves, and run by this process or another: at least once.
//!
//! ```no_run
//! # #[cfg(feature = "durable-sqlite")] mod example {
//! use axum::{Json, Router, http::StatusCode, routing::post};
//! use serde::{Deserialize, Serialize};
//! use tower_epilogue::{
//!     Epilogue,
//!     durable::{Durable, DurableJob, DurableStore, JobContext, JobError},
//! };
//!
//! #[derive(Serialize, Deserialize)]
//! struct Charge {
//!     order: u64,
//! }
//!
//! impl DurableJob for Charge {
//!     const KIND: &'static str = "charge";
//!
//!     async fn run(self, cx: JobContext) -> Result<(), JobError> {
//!         println!("charging order {} under the key {}", self.order, cx.idempotency_key());
//!         Ok(())
//!     }
//! }
//!
//! async fn order(Json(order): Json<u64>) -> (StatusCode, Durable, &'static str) {
//!     (StatusCode::ACCEPTED, Durable::new(Charge { order }), "We have your order.\n")
//! }
//!
//! # pub
//! async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//!     let epilogue = Epilogue::new();
//!     let store = DurableStore::sqlite("orders.db").register::<Charge>().start(&epilogue).await?;
//!     let app = Router::new().route("/order", post(order)).layer(store.layer());
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     let report = epilogue.serve(listener, app).with_signals().await?;
//!     println!("{report}"); // says how many jobs stay stored
//!     Ok(())
//! }
//! # }
//! ```
//!
//! The manual says [what can still go wrong](crate::manual::durable), and what to do about it.
//!
//! # What it is made of
//!
//! The jobs are [River](https://riverqueue.com) jobs, through its Rust client `riverqueue`, in a SQLite file (feature
//! `durable-sqlite`) or in Postgres (feature `durable-postgres`). It needs Rust 1.95. The tables are River's, so its
//! tools can inspect them. Each kind of job is one River queue.
//!
//! # Differences from `Continuation`
//!
//! A durable job is a value, not a closure. It is retried, it may run twice, it may run in another process, and it
//! costs a commit before the response. It runs in the same [`Epilogue`](crate::Epilogue), with its own time limit
//! instead of its request's.

pub use riverqueue::sqlx;

pub(crate) use self::part::{is_promised, take_unkept};
pub use self::{
    builder::DurableBuilder,
    commit::ResponseFuture,
    context::JobContext,
    database::DurableTransaction,
    engine::{DiscardedJob, JobCounts},
    error::DurableError,
    idempotency::IdempotencyKey,
    job::{DurableJob, JobError},
    layer::{Before, DurableLayer, DurableService},
    part::Durable,
    store::DurableStore,
};

mod builder;
mod claimant;
mod commit;
mod connect;
mod context;
mod database;
mod elsewhere;
mod engine;
mod error;
mod held;
mod idempotency;
mod job;
mod keep;
mod layer;
mod op;
mod outlast;
mod part;
#[cfg(feature = "durable-postgres")]
mod pools;
mod records;
#[cfg(all(feature = "durable-postgres", target_os = "linux"))]
mod relay;
mod river;
mod runner;
mod store;
mod writer;
mod writing;
