//! The two databases behind one face: pools, transactions, and what their errors mean.

#[cfg(feature = "durable-postgres")]
use riverqueue::sqlx::Postgres;
use riverqueue::sqlx::{self, Transaction};
#[cfg(feature = "durable-sqlite")]
use riverqueue::sqlx::{Sqlite, SqlitePool};

use super::error::{DurableError, Kind};
#[cfg(feature = "durable-postgres")]
use super::pools::Pools;

/// Where jobs and answers are stored.
#[derive(Clone, Debug)]
pub(super) enum Database {
    #[cfg(feature = "durable-sqlite")]
    Sqlite {
        /// One connection, for all that write: they take turns in the order in which they came. With one each, they
        /// would wait for SQLite's lock by sleeping, and the busiest of them would starve the others.
        write: SqlitePool,
        /// For those that only look, and for what waits for SQLite's lock and is to hold up nobody else.
        read: SqlitePool,
    },
    #[cfg(feature = "durable-postgres")]
    Postgres(Pools),
}

/// A transaction of ours.
pub(super) enum Begun {
    #[cfg(feature = "durable-sqlite")]
    Sqlite(Transaction<'static, Sqlite>),
    #[cfg(feature = "durable-postgres")]
    Postgres(Transaction<'static, Postgres>),
}

/// A transaction, ours or the user's.
#[allow(unreachable_pub, reason = "part of a sealed trait's signature")]
pub enum Tx<'a, 'c> {
    #[cfg(feature = "durable-sqlite")]
    Sqlite(&'a mut Transaction<'c, Sqlite>),
    #[cfg(feature = "durable-postgres")]
    Postgres(&'a mut Transaction<'c, Postgres>),
}

impl std::fmt::Debug for Tx<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

/// A transaction of the user's that jobs can be stored in: sqlx's, of SQLite or of Postgres. Sealed.
pub trait DurableTransaction<'c>: Send + sealed::Erase<'c> {}

mod sealed {
    use super::Tx;

    pub trait Erase<'c> {
        fn erase(&mut self) -> Tx<'_, 'c>;
    }
}

#[cfg(feature = "durable-sqlite")]
impl<'c> DurableTransaction<'c> for Transaction<'c, Sqlite> {}
#[cfg(feature = "durable-sqlite")]
impl<'c> sealed::Erase<'c> for Transaction<'c, Sqlite> {
    fn erase(&mut self) -> Tx<'_, 'c> {
        Tx::Sqlite(self)
    }
}

#[cfg(feature = "durable-postgres")]
impl<'c> DurableTransaction<'c> for Transaction<'c, Postgres> {}
#[cfg(feature = "durable-postgres")]
impl<'c> sealed::Erase<'c> for Transaction<'c, Postgres> {
    fn erase(&mut self) -> Tx<'_, 'c> {
        Tx::Postgres(self)
    }
}

impl Database {
    /// Begins a transaction that will write. It is never abandoned half-begun.
    pub(super) async fn begin(&self) -> Result<Begun, DurableError> {
        match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite { .. } => self.begin_writer().await,
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(_) => self.begin_apart().await,
        }
    }

    /// The same over a connection that nobody waits for who has the writer write.
    pub(super) async fn begin_apart(&self) -> Result<Begun, DurableError> {
        Ok(match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite { read, .. } => Begun::Sqlite(riverqueue::database::begin_sqlite_write(read).await?),
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(pools) => Begun::Postgres(riverqueue::database::begin_postgres(&pools.all).await?),
        })
    }

    /// The same for the writer.
    pub(super) async fn begin_writer(&self) -> Result<Begun, DurableError> {
        Ok(match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite { write, .. } => match riverqueue::database::begin_sqlite_write(write).await {
                Ok(transaction) => Begun::Sqlite(transaction),
                // Whoever has the one connection that writes waits for the lock, or is busy.
                Err(error @ sqlx::Error::PoolTimedOut) => return Err(DurableError::because(Kind::Locked, error)),
                Err(error) => return Err(error.into()),
            },
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(pools) => Begun::Postgres(pools.begin_writer().await?),
        })
    }
}

impl Begun {
    pub(super) fn tx(&mut self) -> Tx<'_, 'static> {
        match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite(transaction) => Tx::Sqlite(transaction),
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(transaction) => Tx::Postgres(transaction),
        }
    }

    pub(super) async fn commit(self) -> Result<(), DurableError> {
        match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite(transaction) => transaction.commit().await?,
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }

    pub(super) async fn rollback(self) {
        // One that cannot be rolled back is dropped with its connection, which comes to the same.
        let _ = match self {
            #[cfg(feature = "durable-sqlite")]
            Self::Sqlite(transaction) => transaction.rollback().await,
            #[cfg(feature = "durable-postgres")]
            Self::Postgres(transaction) => transaction.rollback().await,
        };
    }
}

/// Runs one statement in a transaction of either kind. Both take `$1` for the first value.
macro_rules! in_tx {
    ($tx:expr, $sql:expr, [$($value:expr),*], $run:ident) => {
        match $tx {
            #[cfg(feature = "durable-sqlite")]
            $crate::durable::database::Tx::Sqlite(transaction) => {
                riverqueue::sqlx::query($sql)$(.bind($value))*.$run(&mut ***transaction).await
                    .map_err($crate::durable::DurableError::from)
                    .map(|done| $crate::durable::database::Rows::rows(done))
            }
            #[cfg(feature = "durable-postgres")]
            $crate::durable::database::Tx::Postgres(transaction) => {
                riverqueue::sqlx::query($sql)$(.bind($value))*.$run(&mut ***transaction).await
                    .map_err($crate::durable::DurableError::from)
                    .map(|done| $crate::durable::database::Rows::rows(done))
            }
        }
    };
}
pub(super) use in_tx;

/// What both kinds of result have in common.
pub(super) trait Rows {
    fn rows(self) -> u64;
}

#[cfg(feature = "durable-sqlite")]
impl Rows for sqlx::sqlite::SqliteQueryResult {
    fn rows(self) -> u64 {
        self.rows_affected()
    }
}

#[cfg(feature = "durable-postgres")]
impl Rows for sqlx::postgres::PgQueryResult {
    fn rows(self) -> u64 {
        self.rows_affected()
    }
}

/// What a database's own error code means, for both at once: SQLite's (extended) numbers, Postgres's five letters
/// (appendix A of its manual).
fn classify(error: &(dyn sqlx::error::DatabaseError + 'static)) -> Kind {
    let code = error.code().unwrap_or_default();
    // SQLite's primary code is the low byte of the extended one.
    if let (Ok(number), true) = (code.parse::<u32>(), code.len() < 5) {
        return match number & 0xff {
            5 | 6 => Kind::Locked,
            13 => Kind::Full,
            // SQLITE_IOERR_WRITE and _FSYNC: what some file systems say in place of "full". SQLITE_READONLY: one that was mounted
            // anew after an error is.
            8 | 10 => Kind::Unavailable,
            14 => Kind::CannotOpen,
            1 if error.message().contains("no such table") || error.message().contains("no such column") => {
                Kind::Schema(error.message().to_owned())
            }
            _ => Kind::Other,
        };
    }
    match &*code {
        "53100" => Kind::Full,
        // Undefined table, column, function or type; invalid schema.
        "42P01" | "42703" | "42883" | "42704" | "3F000" => Kind::Schema(error.message().to_owned()),
        // Shutting down, starting up, too many connections.
        _ if code.starts_with("57P") || code.starts_with("53") || code.starts_with("08") => Kind::Unavailable,
        // Read-only after a fail-over; the server's own limits for a lock, a statement, and a transaction that is idle, or long.
        "25006" | "55P03" | "57014" | "25P03" | "25P04" => Kind::Unavailable,
        // Its files, or what it runs on; what a proxy says that finds no server.
        _ if code.starts_with("58") => Kind::Unavailable,
        // Its password, or its right to log in, may be changed back, or the proxy's that stands between.
        _ if code.starts_with("28") => Kind::Refused,
        // Undone without a reason, a serialization failure, a deadlock; and what nobody knows to be done or not.
        "40000" | "40001" | "40P01" => Kind::Conflict,
        "40003" => Kind::Unavailable,
        _ => Kind::Other,
    }
}

impl From<sqlx::Error> for DurableError {
    fn from(error: sqlx::Error) -> Self {
        let kind = match &error {
            sqlx::Error::Database(database) => classify(&**database),
            sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => Kind::Full,
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::WorkerCrashed => Kind::Unavailable,
            sqlx::Error::PoolClosed => Kind::Stopped,
            _ => Kind::Other,
        };
        Self::because(kind, error)
    }
}
