//! How an app of yours may be tested: an order that must not stop half-way, and a mail that is sent after it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, routing::post};
use tower_epilogue::{
    ConnectionStatus, Continuation, IgnoreAbortLayer, Lifecycle, TimeLimitLayer,
    test_util::{Leave, TestServer, every_await_point},
};

/// The app under test.
#[derive(Clone, Default)]
struct Shop {
    charged: Arc<AtomicUsize>,
    stored: Arc<AtomicUsize>,
    mails: Arc<AtomicUsize>,
}

impl Shop {
    async fn order(self, lifecycle: Lifecycle) -> (Continuation, &'static str) {
        let shield = lifecycle.shield();
        tokio::time::sleep(Duration::from_millis(20)).await; // The bank.
        self.charged.fetch_add(1, SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await; // The database.
        self.stored.fetch_add(1, SeqCst);
        drop(shield);
        let mail = async move {
            tokio::time::sleep(Duration::from_millis(50)).await; // The mail server.
            self.mails.fetch_add(1, SeqCst);
        };
        (Continuation::new(mail), "ordered")
    }

    fn app(&self) -> Router {
        let shop = self.clone();
        Router::new()
            .route("/order", post(move |lifecycle| shop.order(lifecycle)))
            .layer(TimeLimitLayer::new(Duration::from_secs(30)))
    }
}

#[tokio::test]
async fn the_customer_does_not_wait_for_the_mail() {
    let shop = Shop::default();
    let server = TestServer::on_socket(shop.app()).await;
    let mut client = server.connect().await;
    client.send_post("/order", "book=1").await;
    assert_eq!(client.response().await.text(), "ordered");
    assert_eq!(shop.mails.load(SeqCst), 0);

    server.settled().await;
    assert_eq!(shop.mails.load(SeqCst), 1);
    server.journal().only().assert_flushed_before_continuation();
}

#[tokio::test]
async fn an_order_whose_customer_leaves_is_whole() {
    for how in [Leave::Fin, Leave::Close, Leave::Reset] {
        let shop = Shop::default();
        let server = TestServer::on_socket(shop.app()).await;
        let mut client = server.connect().await;
        client.send_post("/order", "book=1").await;
        server.journal().begun(1).await;
        client.leave(how).await;

        server.settled().await;
        assert_eq!((shop.charged.load(SeqCst), shop.stored.load(SeqCst)), (1, 1), "{how:?}");
        server.journal().only().assert_aborted();
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_is_whole_wherever_its_customer_leaves() {
    let points = every_await_point(async |server| {
        let shop = Shop::default();
        let story = server.post(shop.app(), "/order", "book=1").await;
        assert_eq!(shop.charged.load(SeqCst), shop.stored.load(SeqCst), "{story}");
        story.assert_contract();
    })
    .await;
    assert_eq!(points, 2, "the bank and the database");
}

#[tokio::test(start_paused = true)]
async fn a_mail_server_that_hangs_is_given_up_at_the_limit() {
    let app = Router::new().route("/", post(async || (Continuation::new(std::future::pending()), "ordered")));
    let limit = TimeLimitLayer::new(Duration::from_secs(60));
    let server = TestServer::in_memory(app.layer((limit, IgnoreAbortLayer::new())));
    let mut client = server.connect().await;
    client.send_post("/", "").await;
    client.response().await.assert_whole();

    server.settled().await;
    let story = server.journal().only();
    story.assert_status(ConnectionStatus::TIMEOUT);
    story.assert_order(&["flushed", "continuation_start", "continuation_dropped", "ended"]);
    assert!(server.stop().await.is_clean());
}
