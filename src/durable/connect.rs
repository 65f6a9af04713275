//! Opening the database with the settings that durability needs.

#[cfg(feature = "durable-postgres")]
use riverqueue::sqlx::postgres::PgPoolOptions;
#[cfg(feature = "durable-sqlite")]
use riverqueue::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::{
    DurableError,
    builder::{DurableBuilder, Place},
    database::Database,
};

pub(super) async fn connect(builder: &DurableBuilder) -> Result<Database, DurableError> {
    Ok(match &builder.place {
        #[cfg(feature = "durable-sqlite")]
        Place::Sqlite(file) => {
            let options = SqliteConnectOptions::new()
                .filename(file)
                .create_if_missing(true)
                // Readers do not wait for the writer, nor it for them.
                .journal_mode(SqliteJournalMode::Wal)
                // Each commit waits for the disk: what is acknowledged survives a power cut.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(builder.busy_timeout)
                .foreign_keys(true);
            let pool = || SqlitePoolOptions::new().acquire_timeout(builder.busy_timeout);
            let write = pool().max_connections(1).connect_with(options.clone()).await?;
            Database::Sqlite { write, read: pool().max_connections(builder.connections).connect_lazy_with(options) }
        }
        #[cfg(feature = "durable-postgres")]
        Place::Postgres(url) => Database::Postgres(
            PgPoolOptions::new()
                .max_connections(builder.connections)
                .acquire_timeout(builder.busy_timeout)
                .connect(url)
                .await?,
        ),
        #[cfg(feature = "durable-postgres")]
        Place::PostgresPool(pool) => Database::Postgres(pool.clone()),
    })
}
