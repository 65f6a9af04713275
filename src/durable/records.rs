//! First answers, kept beside the jobs so that a client who asks again with the same idempotency key gets them again; and
//! receipts, by which what is tried again is known to be stored already.

use riverqueue::sqlx;

use super::{
    database::{Begun, Database, Tx, in_tx},
    error::{DurableError, Kind},
};

/// A claim on a key: whoever has it runs the handler.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// The key with all that scopes it, hashed.
    pub(super) key: String,
    /// Which request with that key: a later claim is another's.
    pub(super) owner: String,
    /// What was asked, hashed.
    pub(super) fingerprint: String,
    /// Key and fingerprint, hashed: what is promised under a key that has expired may be something else.
    pub(super) name: String,
}

/// An answer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// JSON: a list of names and values.
    pub(super) headers: String,
    pub(super) body: Vec<u8>,
}

/// What the store says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claimed {
    /// It is ours.
    First,
    /// It was used for another request.
    Mismatch,
    /// The first request with it still runs.
    Running,
    Answered(Answer),
}

#[cfg(feature = "durable-sqlite")]
const SQLITE_TABLE: &str = "CREATE TABLE IF NOT EXISTS tower_epilogue_answer (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, fingerprint TEXT NOT NULL, expires_ms BIGINT NOT NULL,
    status INTEGER, headers TEXT, body BLOB) WITHOUT ROWID";
#[cfg(feature = "durable-postgres")]
const POSTGRES_TABLE: &str = "CREATE TABLE IF NOT EXISTS tower_epilogue_answer (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, fingerprint TEXT NOT NULL, expires_ms BIGINT NOT NULL,
    status INTEGER, headers TEXT, body BYTEA)";
const INDEX: &str = "CREATE INDEX IF NOT EXISTS tower_epilogue_answer_expires ON tower_epilogue_answer (expires_ms)";
const CHECK: &str = "SELECT count(*) FROM tower_epilogue_answer WHERE key = ''";

pub(super) async fn migrate(database: &Database) -> Result<(), DurableError> {
    let mut begun = database.begin().await?;
    match &mut begun {
        #[cfg(feature = "durable-sqlite")]
        Begun::Sqlite(transaction) => {
            sqlx::query(SQLITE_TABLE).execute(&mut **transaction).await?;
        }
        #[cfg(feature = "durable-postgres")]
        Begun::Postgres(transaction) => {
            // Two processes that start at once: `IF NOT EXISTS` alone is no protection against that.
            sqlx::query("SELECT pg_advisory_xact_lock(7310868735421120609)").execute(&mut **transaction).await?;
            sqlx::query(POSTGRES_TABLE).execute(&mut **transaction).await?;
        }
    }
    let mut tx = begun.tx();
    in_tx!(&mut tx, INDEX, [], execute)?;
    begun.commit().await
}

pub(super) async fn check(database: &Database) -> Result<(), DurableError> {
    match database {
        #[cfg(feature = "durable-sqlite")]
        Database::Sqlite { read, .. } => sqlx::query(CHECK).execute(read).await.map(drop)?,
        #[cfg(feature = "durable-postgres")]
        Database::Postgres(pools) => sqlx::query(CHECK).execute(&pools.all).await.map(drop)?,
    }
    Ok(())
}

// One that has expired may be taken by anybody.
const CLAIM: &str = "INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms) VALUES ($1, $2, $3, $4)
    ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, fingerprint = excluded.fingerprint,
        expires_ms = excluded.expires_ms, status = NULL, headers = NULL, body = NULL
    WHERE tower_epilogue_answer.expires_ms <= $5";
const LOOK: &str = "SELECT fingerprint, status, headers, body FROM tower_epilogue_answer WHERE key = $1";

type Row = (String, Option<i32>, Option<String>, Option<Vec<u8>>);

/// Claims a key until `until`, or says what became of it.
pub(super) async fn claim(
    claim: &Claim,
    now_ms: i64,
    until_ms: i64,
    tx: &mut Tx<'_, '_>,
) -> Result<Claimed, DurableError> {
    let Claim { key, owner, fingerprint, .. } = claim;
    if in_tx!(tx, CLAIM, [key, owner, fingerprint, until_ms, now_ms], execute)? == 1 {
        return Ok(Claimed::First);
    }
    let row: Option<Row> = match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => sqlx::query_as(LOOK).bind(key).fetch_optional(&mut ***transaction).await?,
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => sqlx::query_as(LOOK).bind(key).fetch_optional(&mut ***transaction).await?,
    };
    Ok(match row {
        Some((theirs, ..)) if theirs != *fingerprint => Claimed::Mismatch,
        Some((_, Some(status), headers, body)) => Claimed::Answered(Answer {
            status: u16::try_from(status).unwrap_or(500),
            headers: headers.unwrap_or_default(),
            body: body.unwrap_or_default(),
        }),
        // Also one that was given up in this moment: the client asks again.
        _ => Claimed::Running,
    })
}

// A claim may have expired meanwhile, and been forgotten.
const ANSWER: &str = "INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms, status, headers, body)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (key) DO UPDATE SET status = excluded.status,
        headers = excluded.headers, body = excluded.body, expires_ms = excluded.expires_ms
    WHERE tower_epilogue_answer.owner = excluded.owner AND tower_epilogue_answer.status IS NULL";

/// Keeps the answer until `until`. An error if the claim was lost to another, so that its jobs are not stored either.
pub(super) async fn answer(
    claim: &Claim,
    answer: &Answer,
    until_ms: i64,
    tx: &mut Tx<'_, '_>,
) -> Result<(), DurableError> {
    let Claim { key, owner, fingerprint, .. } = claim;
    let Answer { status, headers, body } = answer;
    let values = (i32::from(*status), headers, body);
    let rows = in_tx!(tx, ANSWER, [key, owner, fingerprint, until_ms, values.0, values.1, values.2], execute)?;
    if rows == 1 { Ok(()) } else { Err(DurableError::new(Kind::ClaimLost)) }
}

const RELEASE: &str = "DELETE FROM tower_epilogue_answer WHERE key = $1 AND owner = $2 AND status IS NULL";

/// Gives a key back: nothing was promised under it.
pub(super) async fn release(claim: &Claim, tx: &mut Tx<'_, '_>) -> Result<(), DurableError> {
    in_tx!(tx, RELEASE, [&claim.key, &claim.owner], execute).map(drop)
}

// An owner has one key.
#[cfg(feature = "durable-sqlite")]
const SQLITE_RENEW: &str =
    "UPDATE tower_epilogue_answer SET expires_ms = $1 WHERE key IN (SELECT value FROM json_each($2))
    AND owner IN (SELECT value FROM json_each($3)) AND status IS NULL";
// By their keys, as all others take them: of two that have one each and want the other's, the database would fail one.
#[cfg(feature = "durable-postgres")]
const POSTGRES_RENEW: &str = "WITH held AS MATERIALIZED
    (SELECT key FROM tower_epilogue_answer WHERE key = ANY($2) AND owner = ANY($3) AND status IS NULL
        ORDER BY key COLLATE \"C\" FOR UPDATE)
    UPDATE tower_epilogue_answer SET expires_ms = $1 WHERE key IN (SELECT key FROM held)";

/// Says that their handlers still run: in one statement, since whoever has something stored waits for it.
pub(super) async fn renew(
    claims: impl Iterator<Item = &Claim>,
    until_ms: i64,
    tx: &mut Tx<'_, '_>,
) -> Result<(), DurableError> {
    let (keys, owners): (Vec<_>, Vec<_>) = claims.map(|claim| (&*claim.key, &*claim.owner)).unzip();
    match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            let renew = sqlx::query(SQLITE_RENEW).bind(until_ms).bind(json(&keys)?).bind(json(&owners)?);
            renew.execute(&mut ***transaction).await?;
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            let renew = sqlx::query(POSTGRES_RENEW).bind(until_ms).bind(keys).bind(owners);
            renew.execute(&mut ***transaction).await?;
        }
    }
    Ok(())
}

#[cfg(feature = "durable-sqlite")]
const SQLITE_RECEIPTS: &str = "INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms)
    SELECT value, '', '', $2 FROM json_each($1) WHERE true ON CONFLICT (key) DO NOTHING RETURNING key";
#[cfg(feature = "durable-postgres")]
const POSTGRES_RECEIPTS: &str = "INSERT INTO tower_epilogue_answer (key, owner, fingerprint, expires_ms)
    SELECT value, '', '', $2 FROM json_array_elements_text($1::json) ON CONFLICT (key) DO NOTHING RETURNING key";

/// Says that what is written in this transaction was, by names of their own. Gives those that are new: what has another was
/// written in an earlier one, and is not to be written again.
pub(super) async fn leave_receipts(
    names: &[&str],
    until_ms: i64,
    tx: &mut Tx<'_, '_>,
) -> Result<Vec<String>, DurableError> {
    let names = json(names)?;
    Ok(match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            sqlx::query_scalar(SQLITE_RECEIPTS).bind(names).bind(until_ms).fetch_all(&mut ***transaction).await?
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            sqlx::query_scalar(POSTGRES_RECEIPTS).bind(names).bind(until_ms).fetch_all(&mut ***transaction).await?
        }
    })
}

#[cfg(feature = "durable-sqlite")]
const SQLITE_FORGET: &str = "DELETE FROM tower_epilogue_answer WHERE key IN (SELECT value FROM json_each($1))";
#[cfg(feature = "durable-postgres")]
const POSTGRES_FORGET: &str = "DELETE FROM tower_epilogue_answer WHERE key = ANY($1)";

/// Nobody will ask for them any more.
pub(super) async fn forget_receipts(names: &[&str], tx: &mut Tx<'_, '_>) -> Result<(), DurableError> {
    match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(transaction) => {
            sqlx::query(SQLITE_FORGET).bind(json(names)?).execute(&mut ***transaction).await?;
        }
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(transaction) => {
            sqlx::query(POSTGRES_FORGET).bind(names).execute(&mut ***transaction).await?;
        }
    }
    Ok(())
}

/// A list, as both databases take one.
fn json(names: &[&str]) -> Result<String, DurableError> {
    serde_json::to_string(names).map_err(|error| DurableError::because(Kind::Other, error))
}

/// How many answers are forgotten at once.
pub(super) const FORGOTTEN: u32 = 1000;

#[cfg(feature = "durable-sqlite")]
const SQLITE_CLEAN: &str = "DELETE FROM tower_epilogue_answer WHERE key IN
    (SELECT key FROM tower_epilogue_answer WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2)";
// What is being claimed anew is let be: it would be waited for in another order than that of the keys, in which others wait.
#[cfg(feature = "durable-postgres")]
const POSTGRES_CLEAN: &str = "WITH expired AS MATERIALIZED
    (SELECT key FROM tower_epilogue_answer WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2 FOR UPDATE SKIP LOCKED)
    DELETE FROM tower_epilogue_answer WHERE key IN (SELECT key FROM expired)";

/// Forgets what has expired, or so many of that.
pub(super) async fn clean(now_ms: i64, tx: &mut Tx<'_, '_>) -> Result<u64, DurableError> {
    let sql = match tx {
        #[cfg(feature = "durable-sqlite")]
        Tx::Sqlite(_) => SQLITE_CLEAN,
        #[cfg(feature = "durable-postgres")]
        Tx::Postgres(_) => POSTGRES_CLEAN,
    };
    in_tx!(tx, sql, [now_ms, i64::from(FORGOTTEN)], execute)
}
