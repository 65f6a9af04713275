//! Opening the database with the settings that durability needs.

#[cfg(feature = "durable-postgres")]
use riverqueue::sqlx::postgres::PgPoolOptions;
#[cfg(feature = "durable-sqlite")]
use riverqueue::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

#[cfg(feature = "durable-sqlite")]
use super::error::Kind;
#[cfg(feature = "durable-postgres")]
use super::pools::{Pools, ask_for_probes, still_writes};
use super::{
    DurableError,
    builder::{DurableBuilder, Place},
    database::Database,
};

pub(super) async fn connect(builder: &DurableBuilder) -> Result<Database, DurableError> {
    Ok(match &builder.place {
        #[cfg(feature = "durable-sqlite")]
        Place::Sqlite(file) => {
            refuse_no_file(file)?;
            let options = SqliteConnectOptions::new()
                .filename(file)
                .create_if_missing(true)
                // Readers do not wait for the writer, nor it for them.
                .journal_mode(SqliteJournalMode::Wal)
                // Each commit waits for the disk: what is acknowledged survives a power cut.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(builder.busy_timeout)
                .foreign_keys(true);
            let pool = || {
                let pool = SqlitePoolOptions::new().acquire_timeout(builder.busy_timeout);
                // One that a full disk has left in the middle of a transaction is not used again.
                pool.before_acquire(|connection, _| {
                    Box::pin(async move { Ok(!riverqueue::sqlx::Connection::is_in_transaction(connection)) })
                })
            };
            let write = open(pool().max_connections(1), &options, builder.busy_timeout)
                .await
                .map_err(|error| error.at(file))?;
            Database::Sqlite { write, read: pool().max_connections(builder.connections).connect_lazy_with(options) }
        }
        #[cfg(feature = "durable-postgres")]
        Place::Postgres(url) => {
            let pool = PgPoolOptions::new().max_connections(builder.connections).acquire_timeout(builder.busy_timeout);
            let pool = pool.after_connect(|connection, _| Box::pin(ask_for_probes(connection, false)));
            // In place of sqlx's own test, which takes as long.
            let pool = pool.test_before_acquire(false);
            let pool = pool.before_acquire(|connection, _| Box::pin(still_writes(connection)));
            let options = url.parse()?;
            #[cfg(target_os = "linux")]
            let (options, pool, failure) = super::relay::lead(options, pool);
            let pool = pool.connect_with(options).await.map_err(|error| {
                #[cfg(target_os = "linux")]
                let error = failure.take().map_or(error, riverqueue::sqlx::Error::Io);
                error
            })?;
            Database::Postgres(Pools::beside(pool, true, builder.busy_timeout).await?)
        }
        #[cfg(feature = "durable-postgres")]
        Place::PostgresPool(pool) => {
            Database::Postgres(Pools::beside(pool.clone(), false, builder.busy_timeout).await?)
        }
    })
}

/// Opens the file. The first of several processes at it sets its journal up, and SQLite has the others wait for that as for
/// a deadlock, which is not at all.
#[cfg(feature = "durable-sqlite")]
async fn open(
    pool: SqlitePoolOptions,
    options: &SqliteConnectOptions,
    busy_timeout: std::time::Duration,
) -> Result<riverqueue::sqlx::SqlitePool, DurableError> {
    let began = tokio::time::Instant::now();
    loop {
        match pool.clone().connect_with(options.clone()).await.map_err(DurableError::from) {
            Err(error) if error.is_locked() && began.elapsed() < busy_timeout => {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            result => return result,
        }
    }
}

/// What SQLite, or those who know sqlx, take for something else than a file. In memory, each connection would have a database
/// of its own, of which one has the tables.
#[cfg(feature = "durable-sqlite")]
fn refuse_no_file(file: &std::path::Path) -> Result<(), DurableError> {
    let wrong = match file.to_str() {
        Some("" | ":memory:") => "`DurableStore::sqlite` takes a file: what is in memory survives nothing",
        Some(url) if url.starts_with("sqlite:") => "`DurableStore::sqlite` takes the path of a file, and no URL",
        _ => return Ok(()),
    };
    Err(DurableError::new(Kind::Settings(wrong.to_owned())))
}

#[cfg(all(test, feature = "durable-sqlite"))]
mod tests {
    use crate::{Epilogue, durable::DurableStore};

    #[tokio::test]
    async fn what_is_no_file_is_refused_with_the_reason() {
        for (place, why) in [(":memory:", "takes a file"), ("", "takes a file"), ("sqlite://orders.db", "no URL")] {
            let error = DurableStore::sqlite(place).start(&Epilogue::new()).await.unwrap_err().to_string();
            assert!(error.contains(why), "{place}: {error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_is_no_database_that_is_down() {
        let nowhere = std::env::temp_dir().join("epilogue-no-such-directory").join("jobs.db");
        for file in [nowhere, std::env::temp_dir()] {
            let error = DurableStore::sqlite(&file).start(&Epilogue::new()).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("its directory") && text.contains(&*file.to_string_lossy()), "{text}");
            // At another time it may be open files that are lacking.
            assert!(error.is_unavailable(), "{text}");
        }
    }
}
