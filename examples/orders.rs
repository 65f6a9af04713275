//! An order that survives the process: stored before it is accepted, then charged, booked and mailed.
//!
//! Run with: `cargo run --example orders --features full` (SQLite, in the file `orders.db`), or on
//! Postgres, with `DATABASE_URL=postgres://user:password@host/database` in the environment.
//!
//! ```sh
//! curl -i -d 17 http://127.0.0.1:3000/order
//! # A double click: the first response again, and no second order.
//! curl -i -H 'Idempotency-Key: "click-1"' -d 18 http://127.0.0.1:3000/order
//! curl -i -H 'Idempotency-Key: "click-1"' -d 18 http://127.0.0.1:3000/order
//! # Kill it while it is charging, and start it again: within a minute the order is charged, under the same key.
//! curl -d 19 http://127.0.0.1:3000/order && pkill -9 -x orders
//! ```
//!
//! # Two processes
//!
//! With Postgres, start it twice; `ADDRESS=127.0.0.1:3001` gives the second one an address of its own. Orders that
//! one accepts may be charged by the other, and are as soon as the first is fully occupied. Kill one: jobs that it was
//! running are considered lost 30 s after their limit of 10 s, and done by the other within a minute of the kill; jobs
//! that it had accepted and not started are done at once.
#![expect(clippy::print_stdout, reason = "it shows what it does")]

use std::{env, error::Error, time::Duration};

use axum::{Router, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, time::sleep};
use tower_epilogue::{
    Epilogue,
    durable::{Durable, DurableJob, DurableStore, JobContext, JobError, sqlx},
};

/// The payment provider. Real ones, too, take a key, and charge once for it however often they are asked.
#[derive(Clone)]
struct Provider;

impl Provider {
    async fn charge(&self, order: i64, key: &str) {
        sleep(Duration::from_secs(2)).await;
        println!("order {order}: charged, under the key {key}");
    }
}

#[derive(Serialize, Deserialize)]
struct Charge {
    order: i64,
}

impl DurableJob for Charge {
    const KIND: &'static str = "charge";
    const LIMIT: Duration = Duration::from_secs(10);

    async fn run(self, cx: JobContext) -> Result<(), JobError> {
        println!("order {}: attempt {} of {}", self.order, cx.attempt(), cx.max_attempts());
        // A crash right after it has it asked again, under the same key.
        cx.state::<Provider>()?.charge(self.order, cx.idempotency_key()).await;
        // Booking it, promising the mail, and noting that this job is done: all or nothing, so that it happens once.
        macro_rules! book {
            ($transaction:expr) => {{
                let mut transaction = $transaction;
                sqlx::query("INSERT INTO booked (order_number) VALUES ($1)")
                    .bind(self.order)
                    .execute(&mut *transaction)
                    .await?;
                let mail = Durable::in_transaction(Mail { order: self.order }, cx.store(), &mut transaction).await?;
                cx.complete_in_transaction(&mut transaction).await?;
                transaction.commit().await?;
                cx.store().enqueue(mail).await?;
            }};
        }
        if on_postgres() {
            book!(cx.store().begin_postgres().await?);
        } else {
            book!(cx.store().begin_sqlite().await?);
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Mail {
    order: i64,
}

impl DurableJob for Mail {
    const KIND: &'static str = "mail";

    async fn run(self, _: JobContext) -> Result<(), JobError> {
        sleep(Duration::from_secs(1)).await;
        println!("order {}: mailed", self.order);
        Ok(())
    }
}

/// By the order's number, so that an order which comes twice within a day is charged once, also without the client's
/// key.
async fn order(body: String) -> Result<(StatusCode, Durable, &'static str), StatusCode> {
    let order = body.trim().parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let charge = Durable::new(Charge { order }).with_key(format!("order-{order}"));
    Ok((StatusCode::ACCEPTED, charge, "We have your order, and will mail you.\n"))
}

fn on_postgres() -> bool {
    env::var_os("DATABASE_URL").is_some()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).init();
    let store = match env::var("DATABASE_URL") {
        Ok(url) => DurableStore::postgres(url).migrate(true),
        Err(_) => DurableStore::sqlite("orders.db"),
    };
    let epilogue = Epilogue::new();
    let store = store.register::<Charge>().register::<Mail>().state(Provider).start(&epilogue).await?;
    let table = "CREATE TABLE IF NOT EXISTS booked (order_number BIGINT PRIMARY KEY)";
    if on_postgres() {
        let mut transaction = store.begin_postgres().await?;
        sqlx::query(table).execute(&mut *transaction).await?;
        transaction.commit().await?;
    } else {
        let mut transaction = store.begin_sqlite().await?;
        sqlx::query(table).execute(&mut *transaction).await?;
        transaction.commit().await?;
    }

    let app = Router::new().route("/order", post(order)).layer(store.layer());
    let listener = TcpListener::bind(env::var("ADDRESS").unwrap_or("127.0.0.1:3000".to_owned())).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let report = epilogue.serve(listener, app).with_signals().await?;
    println!("{report}");
    Ok(())
}
