//! The connections to Postgres: those that all use, and the writer's own.

use std::sync::{Arc, Mutex};

use riverqueue::sqlx::{
    self, PgPool, Postgres, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::pool::lock;

/// How many the writer has: the second while the first is still being tested for its next use, which may take until its
/// server is given up.
const WRITERS: u32 = 2;

/// Whoever uses the others, and for how long, no request waits for the writer's.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    pub(super) all: PgPool,
    writer: PgPool,
    /// How the writer's are made.
    made: Arc<Mutex<Arc<PgConnectOptions>>>,
}

impl Pools {
    /// The writer's connections are made as those of `all` are, and close with them. One is made at once, so that what will be
    /// lacking is said at the start.
    pub(super) async fn beside(all: PgPool) -> Result<Self, sqlx::Error> {
        let made = all.connect_options();
        let options: PgPoolOptions = all.options().clone().min_connections(0).max_connections(WRITERS);
        let writer = options.connect_with((*made).clone()).await?;
        let (closed, theirs) = (all.close_event(), writer.clone());
        #[expect(clippy::disallowed_methods, reason = "it is no work of a request, and ends with the pool")]
        tokio::spawn(async move {
            closed.await;
            theirs.close().await;
        });
        Ok(Self { all, writer, made: Arc::new(Mutex::new(made)) })
    }

    /// Begins a transaction of the writer's.
    pub(super) async fn begin_writer(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.follow();
        // The writer's are closed behind them, by a task that has its turn when it has.
        if self.all.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        riverqueue::database::begin_postgres(&self.writer).await
    }

    /// A pool may be told to connect otherwise: with a new password, for example.
    fn follow(&self) {
        let now = self.all.connect_options();
        let mut made = lock(&self.made);
        if !Arc::ptr_eq(&made, &now) {
            self.writer.set_connect_options((*now).clone());
            *made = now;
        }
    }
}
