//! A store that somebody else has locked, until the test lets go of it.

use tower_epilogue::durable::sqlx;

use crate::common::Place;

/// Somebody else's transaction, which everything that writes has to wait for.
pub enum Locked {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Locked {
    pub async fn take(place: &Place) -> Self {
        use sqlx::Connection as _;
        match place {
            Place::Sqlite(file) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file.path);
                let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::query("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                Self::Sqlite(connection)
            }
            Place::Postgres(url) => {
                let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                sqlx::query("BEGIN").execute(&mut connection).await.unwrap();
                let lock = "LOCK TABLE river_job IN SHARE ROW EXCLUSIVE MODE";
                sqlx::query(lock).execute(&mut connection).await.unwrap();
                Self::Postgres(connection)
            }
        }
    }

    /// As every process does, once they have expired.
    pub async fn forget_claims(&mut self) {
        let forget = "DELETE FROM tower_epilogue_answer WHERE key NOT LIKE 'stored:%'";
        match self {
            Self::Sqlite(connection) => sqlx::query(forget).execute(connection).await.unwrap().rows_affected(),
            Self::Postgres(connection) => sqlx::query(forget).execute(connection).await.unwrap().rows_affected(),
        };
    }

    pub async fn commit(self) {
        self.end("COMMIT").await;
    }

    pub async fn release(self) {
        self.end("ROLLBACK").await;
    }

    async fn end(self, how: &'static str) {
        match self {
            Self::Sqlite(mut connection) => drop(sqlx::query(how).execute(&mut connection).await.unwrap()),
            Self::Postgres(mut connection) => drop(sqlx::query(how).execute(&mut connection).await.unwrap()),
        }
    }
}
