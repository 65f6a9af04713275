//! What River has no call for, and its migrations.

use riverqueue::sqlx;

use crate::durable::{
    database::{Database, Tx, in_tx},
    engine::JobCounts,
    error::{DurableError, Kind},
};

fn migration(error: riverqueue::migrate::Error) -> DurableError {
    match error {
        riverqueue::migrate::Error::Database(error) => error.into(),
        error => DurableError::because(Kind::Schema("the engine's migration failed".to_owned()), error),
    }
}

pub(super) async fn migrate(database: &Database) -> Result<(), DurableError> {
    match database {
        #[cfg(feature = "durable-sqlite")]
        Database::Sqlite { write, .. } => {
            riverqueue::migrate::SqliteMigrator::new(write.clone()).migrate_up().await.map_err(migration)?;
        }
        #[cfg(feature = "durable-postgres")]
        Database::Postgres(pools) => {
            riverqueue::migrate::PostgresMigrator::new(pools.all.clone()).migrate_up().await.map_err(migration)?;
        }
    }
    Ok(())
}

pub(super) async fn check(database: &Database) -> Result<(), DurableError> {
    let valid = match database {
        #[cfg(feature = "durable-sqlite")]
        Database::Sqlite { read, .. } => riverqueue::migrate::SqliteMigrator::new(read.clone()).validate(None).await,
        #[cfg(feature = "durable-postgres")]
        Database::Postgres(pools) => riverqueue::migrate::PostgresMigrator::new(pools.all.clone()).validate(None).await,
    };
    let valid = valid.map_err(migration)?;
    if valid.is_valid() {
        return Ok(());
    }
    Err(DurableError::new(Kind::Schema("migrations of the job engine are missing".to_owned())))
}

/// Those that wait for the end of their lease, and no others: one that has run, or that runs, is never run again by
/// this, and one that waits for its next attempt goes on waiting, also where the last one was put back and counts none. (River's own `retry` would run a completed job once
/// more, which a slow reader's late flush would then do.)
pub(super) async fn promote(ids: &[i64], tx: Tx<'_, '_>) -> Result<(), DurableError> {
    match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            let ids = serde_json::to_string(ids).map_err(|error| DurableError::because(Kind::Other, error))?;
            sqlx::query(
                "UPDATE river_job SET state = 'available', scheduled_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
                 WHERE id IN (SELECT value FROM json_each($1)) AND attempted_at IS NULL
                   AND (state = 'scheduled'
                     OR state = 'available' AND scheduled_at > strftime('%Y-%m-%d %H:%M:%f', 'now'))",
            )
            .bind(ids)
            .execute(&mut **transaction)
            .await?;
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            // Other processes are told as River tells them.
            sqlx::query(
                "WITH promoted AS (
                   UPDATE river_job SET state = 'available', scheduled_at = now()
                   WHERE id = ANY($1) AND attempted_at IS NULL
                     AND (state = 'scheduled' OR state = 'available' AND scheduled_at > now())
                   RETURNING queue)
                 SELECT pg_notify(current_schema() || '.river_insert', json_build_object('queue', queue)::text)
                 FROM (SELECT DISTINCT queue FROM promoted) AS queues",
            )
            .bind(ids)
            .execute(&mut **transaction)
            .await?;
        }
    }
    Ok(())
}

/// Those of them that are committed, with their keys.
pub(super) async fn are_there(ids: &[i64], tx: Tx<'_, '_>) -> Result<Vec<(i64, String)>, DurableError> {
    Ok(match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            let ids = serde_json::to_string(ids).map_err(|error| DurableError::because(Kind::Other, error))?;
            let look = "SELECT id, args ->> '$.key' FROM river_job
                WHERE id IN (SELECT value FROM json_each($1)) AND kind = 'tower_epilogue'";
            sqlx::query_as(look).bind(ids).fetch_all(&mut **transaction).await?
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            let look = "SELECT id, args ->> 'key' FROM river_job WHERE id = ANY($1) AND kind = 'tower_epilogue'";
            sqlx::query_as(look).bind(ids).fetch_all(&mut **transaction).await?
        }
    })
}

/// Whether it is, for as long as the transaction lasts. One of others who use the engine's tables is none.
pub(super) async fn is_discarded(id: i64, mut tx: Tx<'_, '_>) -> Result<bool, DurableError> {
    let look = "UPDATE river_job SET state = state WHERE id = $1 AND state = 'discarded' AND kind = 'tower_epilogue'";
    Ok(in_tx!(&mut tx, look, [id], execute)? > 0)
}

/// Whether it is, once whoever has it in a transaction has ended that: on SQLite nobody else writes meanwhile.
pub(super) async fn is_completed(database: &Database, id: i64) -> Result<bool, DurableError> {
    let mut begun = database.begin().await?;
    let completed: Option<bool> = match begun.tx() {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            sqlx::query_scalar("SELECT state = 'completed' FROM river_job WHERE id = $1")
                .bind(id)
                .fetch_optional(&mut **transaction)
                .await?
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            sqlx::query_scalar("SELECT state = 'completed' FROM river_job WHERE id = $1 FOR UPDATE")
                .bind(id)
                .fetch_optional(&mut **transaction)
                .await?
        }
    };
    begun.rollback().await;
    Ok(completed.unwrap_or(false))
}

/// Its age counts from now.
pub(super) async fn hold(database: &Database, id: i64, attempt: u16) -> Result<bool, DurableError> {
    let attempt = i64::from(attempt);
    let mut begun = database.begin().await?;
    let rows = match begun.tx() {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => sqlx::query(
            "UPDATE river_job SET attempted_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
             WHERE id = $1 AND attempt = $2 AND state = 'running'",
        )
        .bind(id)
        .bind(attempt)
        .execute(&mut **transaction)
        .await?
        .rows_affected(),
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => sqlx::query(
            "UPDATE river_job SET attempted_at = now() WHERE id = $1 AND attempt = $2 AND state = 'running'",
        )
        .bind(id)
        .bind(attempt)
        .execute(&mut **transaction)
        .await?
        .rows_affected(),
    };
    begun.commit().await?;
    Ok(rows > 0)
}

const COUNTS: &str = "SELECT CAST(state AS TEXT), count(*) FROM river_job WHERE kind = 'tower_epilogue' GROUP BY state";

pub(super) async fn counts(database: &Database) -> Result<JobCounts, DurableError> {
    let rows: Vec<(String, i64)> = match database {
        #[cfg(feature = "durable-sqlite")]
        Database::Sqlite { read, .. } => sqlx::query_as(COUNTS).fetch_all(read).await?,
        #[cfg(feature = "durable-postgres")]
        Database::Postgres(pools) => sqlx::query_as(COUNTS).fetch_all(&pools.all).await?,
    };
    let mut counts = JobCounts::default();
    for (state, count) in rows {
        let count = u64::try_from(count).unwrap_or_default();
        match state.as_str() {
            "scheduled" => counts.scheduled = count,
            "available" => counts.available = count,
            "running" => counts.running = count,
            "retryable" => counts.retryable = count,
            "completed" => counts.completed = count,
            "discarded" => counts.discarded = count,
            _ => {}
        }
    }
    Ok(counts)
}
