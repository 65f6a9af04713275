//! The `Idempotency-Key`: the first answer again, and the status codes of the draft.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::StatusCode,
    response::IntoResponse,
    routing::{get, post},
};
use tokio::sync::watch;
use tower_epilogue::durable::{Durable, DurableStore, IdempotencyKey};

use crate::{
    common::{Node, Place, Record, Task, on_both, post as ask, request},
    support::{Client, soon},
};

on_both!(
    who_asks_again_gets_the_first_answer,
    another_request_under_the_key_is_a_422,
    while_the_first_runs_the_second_gets_a_409,
    what_is_no_key_is_a_400,
    a_key_can_be_required,
    an_answer_without_a_job_is_not_kept,
    a_client_that_leaves_gives_its_key_back,
    a_key_is_its_clients_own,
    the_claim_of_a_dead_process_expires,
    the_claim_of_a_live_process_does_not,
    twenty_clicks_are_one_order,
    jobs_have_the_clients_key,
    an_answer_expires,
    a_key_that_cannot_be_claimed_is_a_503,
);

struct Orders {
    node: Node,
    handled: Arc<watch::Sender<u32>>,
}

async fn orders(place: &Place, layer: impl FnOnce(&DurableStore) -> tower_epilogue::durable::DurableLayer) -> Orders {
    orders_with(place, Duration::from_secs(30), Duration::from_secs(3600), layer).await
}

async fn orders_with(
    place: &Place,
    claim: Duration,
    keep: Duration,
    layer: impl FnOnce(&DurableStore) -> tower_epilogue::durable::DurableLayer,
) -> Orders {
    let handled = Arc::new(watch::Sender::new(0));
    let record = Record::default();
    let (counter, gate) = (handled.clone(), record.gate.clone());
    let handler = move |key: Option<IdempotencyKey>, body: String| async move {
        let mut number = 0;
        counter.send_modify(|handled| {
            *handled += 1;
            number = *handled;
        });
        if body.starts_with("wait") {
            let _ = gate.subscribe().wait_for(|open| *open).await;
        }
        if body.starts_with("refuse") {
            return (StatusCode::UNPROCESSABLE_ENTITY, "no such thing").into_response();
        }
        let headers =
            [("x-order", number.to_string()), ("x-key", key.map(|key| key.as_str().to_owned()).unwrap_or_default())];
        (StatusCode::CREATED, headers, Durable::new(Task::ok(body)), format!("order {number}")).into_response()
    };
    let builder = crate::common::quick(place.store()).claim(claim).keep_answers(keep);
    let builder = builder.state(record.clone()).register::<Task>();
    let node = Node::of(
        record,
        builder,
        |epilogue| epilogue,
        |store| Router::new().route("/", post(handler)).route("/", get(|| async { "read" })).layer(layer(store)),
    )
    .await;
    Orders { node, handled }
}

impl Orders {
    async fn ask(&self, key: &str, body: &str) -> crate::support::Reply {
        self.node.post("/", &[("Idempotency-Key", key)], body).await
    }

    fn handled(&self) -> u32 {
        *self.handled.borrow()
    }

    /// Waits until the first handler runs.
    async fn begun(&self) {
        soon("a handler begins", self.handled.subscribe().wait_for(|handled| *handled > 0)).await.unwrap();
    }
}

async fn who_asks_again_gets_the_first_answer(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let first = orders.ask("\"click\"", "shoes").await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
    let again = orders.ask("click", "shoes").await;
    assert_eq!((again.status, again.text()), (201, "order 1".to_owned()));
    assert_eq!(again.header("x-order"), Some("1"));
    assert_eq!(again.header("content-length"), Some("7"));
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    // The same string, with a parameter, which says nothing of it.
    let with_parameter = orders.ask(" \"click\"; source=button", "shoes").await;
    assert_eq!(with_parameter.text(), "order 1");
    assert_eq!(orders.handled(), 1);
    orders.node.completed(1).await;
    assert_eq!(orders.node.record.runs().len(), 1);
    // Without a key, each is an order of its own.
    for number in 2..4 {
        assert_eq!(orders.node.post("/", &[], "shoes").await.text(), format!("order {number}"));
    }
    orders.node.completed(3).await;
}

async fn another_request_under_the_key_is_a_422(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    assert_eq!(orders.ask("k", "shoes").await.status, 201);
    let other = orders.ask("k", "boots").await;
    assert_eq!((other.status, other.header("content-type")), (422, Some("application/problem+json")));
    let headers = [("Idempotency-Key", "k")];
    assert_eq!(orders.node.post("/?size=41", &headers, "shoes").await.status, 422, "the query belongs to it");
    assert_eq!(orders.handled(), 1);
}

async fn while_the_first_runs_the_second_gets_a_409(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let address = orders.node.address;
    let first = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "wait").await.text() });
    orders.begun().await;
    let second = orders.ask("k", "wait").await;
    assert_eq!((second.status, second.header("retry-after")), (409, Some("1")));
    assert_eq!(orders.ask("k", "else").await.status, 422);
    orders.node.record.open();
    assert_eq!(first.await.unwrap(), "order 1");
    assert_eq!(orders.ask("k", "wait").await.text(), "order 1");
    assert_eq!(orders.handled(), 1);
}

async fn what_is_no_key_is_a_400(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    for key in ["", "\"\"", "\"open", "\"a\"b", "\"a\" b", "\"a\\b\"", "a\"b", "a\\b", &"x".repeat(256)] {
        let reply = orders.ask(key, "shoes").await;
        assert_eq!((reply.status, reply.header("content-type")), (400, Some("application/problem+json")), "{key:?}");
    }
    let two = orders.node.post("/", &[("Idempotency-Key", "a"), ("Idempotency-Key", "b")], "shoes").await;
    assert_eq!(two.status, 400);
    let long = "y".repeat(1024 * 1024 + 1);
    assert_eq!(orders.ask("k", &long).await.status, 413);
    assert_eq!(orders.handled(), 0);
}

async fn a_key_can_be_required(place: Place) {
    let orders = orders(&place, |store| store.layer().require_key()).await;
    assert_eq!(orders.node.post("/", &[], "shoes").await.status, 400);
    assert_eq!(orders.ask("k", "shoes").await.status, 201);
    let mut client = Client::connect(orders.node.address).await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(client.reply().await.text(), "read", "a safe method needs none");
}

async fn an_answer_without_a_job_is_not_kept(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    assert_eq!(orders.ask("k", "refuse").await.status, 422);
    orders.node.store.settled().await;
    assert_eq!(orders.ask("k", "shoes").await.status, 201);
    assert_eq!(orders.handled(), 2);
}

async fn a_client_that_leaves_gives_its_key_back(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let mut client = Client::connect(orders.node.address).await;
    client.send(&request("/", &[("Idempotency-Key", "k")], "wait")).await;
    orders.begun().await;
    client.reset();
    orders.node.journal.seen("handler_dropped").await;
    orders.node.record.open();
    soon("the key is free", async {
        while orders.ask("k", "wait").await.status == 409 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    orders.node.completed(1).await;
    assert_eq!(orders.node.record.runs().len(), 1);
}

async fn a_key_is_its_clients_own(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let asked = |who: &'static str| {
        let headers = [("Idempotency-Key", "k"), ("Authorization", who)];
        let node = &orders.node;
        async move { node.post("/", &headers, "shoes").await.text() }
    };
    assert_eq!(asked("Bearer one").await, "order 1");
    assert_eq!(asked("Bearer two").await, "order 2");
    assert_eq!(asked("Bearer one").await, "order 1");
    orders.node.completed(2).await;
}

/// The claim is made under another process's name: it is not renewed.
async fn the_claim_of_a_dead_process_expires(place: Place) {
    let orders = orders_with(&place, Duration::from_millis(600), Duration::from_secs(3600), DurableStore::layer).await;
    assert_eq!(orders.ask("k", "shoes").await.status, 201);
    orders.node.completed(1).await;
    place.execute("UPDATE tower_epilogue_answer SET status = NULL, owner = 'dead', expires_ms = 9000000000000").await;
    assert_eq!(orders.ask("k", "shoes").await.status, 409);
    place.execute("UPDATE tower_epilogue_answer SET expires_ms = 1").await;
    let reply = orders.ask("k", "shoes").await;
    assert_eq!((reply.status, orders.handled()), (201, 2));
    // Whatever its handler had done, the job of the second has the same key.
    let runs = orders.node.record.begun("shoes", 2).await;
    assert_eq!(runs[0].key, runs[1].key);
}

async fn the_claim_of_a_live_process_does_not(place: Place) {
    let orders = orders_with(&place, Duration::from_millis(300), Duration::from_secs(3600), DurableStore::layer).await;
    let address = orders.node.address;
    let first = tokio::spawn(async move { ask(address, "/", &[("Idempotency-Key", "k")], "wait").await.status });
    orders.begun().await;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(orders.ask("k", "wait").await.status, 409);
    }
    orders.node.record.open();
    assert_eq!(first.await.unwrap(), 201);
    assert_eq!(orders.handled(), 1);
}

async fn twenty_clicks_are_one_order(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let address = orders.node.address;
    let clicks = (0..20).map(|_| {
        tokio::spawn(async move {
            loop {
                let reply = ask(address, "/", &[("Idempotency-Key", "k")], "shoes").await;
                if reply.status != 409 {
                    return (reply.status, reply.text());
                }
            }
        })
    });
    for click in clicks.collect::<Vec<_>>() {
        assert_eq!(click.await.unwrap(), (201, "order 1".to_owned()));
    }
    orders.node.completed(1).await;
    assert_eq!((orders.handled(), orders.node.record.runs().len()), (1, 1));
}

async fn jobs_have_the_clients_key(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    let reply = orders.ask("k", "shoes").await;
    let key = reply.header("x-key").unwrap().to_owned();
    assert_eq!(key.len(), 64);
    let runs = orders.node.record.begun("shoes", 1).await;
    assert_eq!(runs[0].key, format!("{key}:0"));
}

async fn an_answer_expires(place: Place) {
    let orders = orders_with(&place, Duration::from_secs(30), Duration::from_millis(200), DurableStore::layer).await;
    assert_eq!(orders.ask("k", "shoes").await.text(), "order 1");
    orders.node.completed(1).await;
    soon("the answer is forgotten", async {
        while orders.ask("k", "shoes").await.text() == "order 1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // An order like any other, which is not taken for the first.
    orders.node.completed(2).await;
    assert_eq!(orders.node.record.runs().len(), 2);
}

async fn a_key_that_cannot_be_claimed_is_a_503(place: Place) {
    let orders = orders(&place, DurableStore::layer).await;
    place.execute("ALTER TABLE tower_epilogue_answer RENAME TO tower_epilogue_answer_away").await;
    let reply = orders.ask("k", "shoes").await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{}", reply.text());
    assert_eq!(orders.handled(), 0, "its handler does not run: a second request with the key would run it again");
    place.execute("ALTER TABLE tower_epilogue_answer_away RENAME TO tower_epilogue_answer").await;
    assert_eq!(orders.ask("k", "shoes").await.status, 201);
    orders.node.completed(1).await;
}
