//! The connections to Postgres: those that all use, and the writer's own.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use riverqueue::sqlx::{
    self, PgConnection, PgPool, Postgres, Row as _, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pool::{caught, lock};

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
    /// Nobody uses these any more, though others may use `all`.
    #[expect(dead_code, reason = "it says so when it is dropped")]
    unused: Arc<DropGuard>,
}

impl Pools {
    /// The writer's connections are made as those of `all` are, and close with them; but how long they are waited for is the
    /// store's to say. One is made at once, so that what will be lacking is said at the start. `ours` says whose `all` is.
    pub(super) async fn beside(all: PgPool, ours: bool, patience: Duration) -> Result<Self, sqlx::Error> {
        let made = all.connect_options();
        let options: PgPoolOptions = all.options().clone().min_connections(0).max_connections(WRITERS);
        let options = options.acquire_timeout(patience);
        // A user may have said what is done with each of theirs.
        let options = match ours {
            true => options.after_connect(|connection, _| Box::pin(ask_for_probes(connection, true))),
            false => options,
        };
        // A server that has to wake first does so within the pool's own patience.
        drop(all.acquire().await?);
        let writer = options.connect_with((*made).clone()).await?;
        let (closed, theirs, ended) = (all.close_event(), writer.clone(), CancellationToken::new());
        let unused = Arc::new(ended.clone().drop_guard());
        #[expect(clippy::disallowed_methods, reason = "it is no work of a request, and ends with the pool")]
        tokio::spawn(async move {
            tokio::select! {
                () = closed => theirs.close().await,
                () = ended.cancelled() => {}
            }
        });
        Ok(Self { all, writer, made: Arc::new(Mutex::new(made)), unused })
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

/// Has the server ask whether this machine is still there, and undo what it has left undone if it is not. A machine that loses
/// its power says nothing, and a server asks for the first time after two hours, if it is not told otherwise: so long
/// everybody who wants the same keys would wait.
///
/// Where an answer was on its way, the server's kernel does not ask, and waits for a quarter of an hour. It waits no longer for
/// one that always `reads` at once; from others it may be the user who does not, and whose transaction that would end.
pub(super) async fn ask_for_probes(connection: &mut PgConnection, reads: bool) -> Result<(), sqlx::Error> {
    // As the relay does it for the other direction.
    let probes =
        "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '5', false),
        set_config('tcp_keepalives_count', '3', false)";
    let and_answers = "SELECT set_config('tcp_user_timeout', '20000', false)";
    for settings in [Some(probes), reads.then_some(and_answers)].into_iter().flatten() {
        match sqlx::raw_sql(settings).execute(&mut *connection).await {
            // It is older than these settings, or only speaks as Postgres does.
            Err(sqlx::Error::Database(error)) => {
                caught::tell(
                    || tracing::debug!(%error, "Postgres cannot be told to probe this machine (`tcp_keepalives_idle`)"),
                );
            }
            asked => {
                asked?;
            }
        }
    }
    Ok(())
}

/// Whether a connection is to be used again. One to a server that only reads by now, as after a fail-over, stays open, and
/// would be refused each time; who connects anew comes to the one that writes.
pub(super) async fn still_writes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match sqlx::raw_sql("SHOW transaction_read_only").fetch_one(connection).await {
        Ok(answer) => {
            let writes = answer.try_get::<String, _>(0)? != "on";
            if !writes {
                caught::tell(|| tracing::debug!("a connection to Postgres that only reads is made anew"));
            }
            Ok(writes)
        }
        // It only speaks as Postgres does.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42704") => Ok(true),
        Err(error) => Err(error),
    }
}
