//! What `settled` waits for, and that the harness fails instead of hanging.

use std::{panic::AssertUnwindSafe, time::Duration};

use axum::{Router, routing::get};
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tower_epilogue::{
    Continuation, EarlyCloseLayer, End, Epilogue, Lifecycle, ShutdownHookLayer,
    test_util::{Leave, TestServer},
};

/// Routes whose work waits until the gate is opened.
fn app(gate: &watch::Sender<bool>) -> Router {
    let gate = gate.subscribe();
    let passed = move || {
        let mut gate = gate.clone();
        async move { drop(gate.wait_for(|open| *open).await) }
    };
    let (work, finished, hook) = (passed.clone(), passed.clone(), passed);
    let finish = async move |lifecycle: Lifecycle| {
        lifecycle.finish("finished").await.unwrap();
        finished().await;
    };
    let hook = ShutdownHookLayer::new(move |_: End| hook());
    Router::new()
        .route("/continuation", get(async move || (Continuation::new(work()), "work")))
        .route("/finish", get(finish))
        .route("/hook", get(async || "hook").layer(hook))
}

#[tokio::test]
async fn it_waits_for_continuations_handlers_that_go_on_and_hooks() {
    for path in ["/continuation", "/finish", "/hook"] {
        let gate = watch::Sender::new(false);
        for server in [TestServer::on_socket(app(&gate)).await, TestServer::in_memory(app(&gate))] {
            gate.send_replace(false);
            server.get(path).await.assert_whole();
            let mut settled = Box::pin(server.settled());
            assert!(tokio::time::timeout(Duration::from_millis(20), &mut settled).await.is_err(), "{path}");
            gate.send_replace(true);
            settled.await;
            assert_eq!(server.epilogue().running(), 0);
            server.journal().assert_contract();
        }
    }
}

#[tokio::test]
async fn it_sees_those_leave_who_left() {
    let gate = watch::Sender::new(true);
    for server in [TestServer::on_socket(app(&gate)).await, TestServer::in_memory(app(&gate))] {
        for how in [Leave::Close, Leave::Reset] {
            for _ in 0..20 {
                let mut client = server.connect().await;
                client.send_get("/continuation").await;
                client.leave(how).await;
            }
        }
        server.settled().await;
        let stories = server.journal().stories();
        server.journal().assert_contract();
        assert!(server.stop().await.is_clean());
        assert!(stories.len() <= 40);
    }
}

#[tokio::test]
async fn it_can_be_called_again_and_when_nothing_has_happened() {
    let gate = watch::Sender::new(true);
    let server = TestServer::on_socket(app(&gate)).await;
    server.settled().await;
    for count in 1..4 {
        server.get("/finish").await.assert_whole();
        server.settled().await;
        assert_eq!(server.journal().stories().len(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_happen_fails_the_test_also_under_a_paused_clock() {
    let gate = watch::Sender::new(false);
    let patience = Duration::from_millis(50);
    let server = TestServer::builder()
        .epilogue(|epilogue| epilogue.drain_deadline(None).header_read_timeout(None))
        .patience(patience)
        .in_memory(app(&gate));
    server.get("/continuation").await.assert_whole();
    let mut client = server.connect().await;
    let failures = [
        AssertUnwindSafe(server.settled()).catch_unwind().await.unwrap_err(),
        AssertUnwindSafe(async { drop(client.response().await) }).catch_unwind().await.unwrap_err(),
        AssertUnwindSafe(async { drop(server.stop().await) }).catch_unwind().await.unwrap_err(),
    ];
    let messages = failures.map(|payload| *payload.downcast::<String>().unwrap());
    assert!(messages[0].contains("the server settles") && messages[0].contains("continuation_start"), "{messages:?}");
    assert!(messages[1].contains("a response comes"), "{messages:?}");
    assert!(messages[2].contains("the server drains"), "{messages:?}");
}

#[tokio::test]
async fn the_end_of_a_response_is_where_its_framing_says() {
    let app = Router::new().route("/", get(async || "hello")).layer(EarlyCloseLayer::new());
    let server = TestServer::on_socket(app).await;
    let mut client = server.connect().await;
    client.send_get("/").await;
    let response = client.response().await;
    assert_eq!((response.header("connection"), response.text().as_str()), (Some("close"), "hello"));
    let (rest, error) = client.read_to_end().await;
    assert!(rest.is_empty() && error.is_none(), "{error:?}");
}

/// As the app's own, which is what is to be tested.
#[tokio::test]
async fn an_epilogue_that_was_set_up_elsewhere_writes_into_the_journal_too() {
    let (told, counted) =
        (std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::atomic::Ordering::SeqCst);
    let theirs = told.clone();
    let own = Epilogue::builder().on_event(move |_| {
        theirs.fetch_add(1, counted);
    });
    let gate = watch::Sender::new(true);
    let server = TestServer::builder().epilogue(|_| own).on_socket(app(&gate)).await;
    server.get("/continuation").await.assert_whole();
    server.settled().await;
    let story = server.journal().only();
    story.assert_continuations(1);
    assert_eq!(told.load(counted), story.events().len(), "each event once: {story}");
}

/// The rest of such a response is nobody's work any more, and may be on its way for as long as its reader likes.
#[tokio::test(start_paused = true)]
async fn it_does_not_wait_for_a_response_that_was_given_up_on() {
    let app = Router::new().route("/", get(async || (Continuation::new(async {}), vec![b'x'; 10_000])));
    let server = TestServer::in_memory(app);
    let mut client = server.connect_narrow(100).await;
    client.send_get("/").await;
    client.stop_response_at(50, Leave::Silence).await;
    server.settled().await;
    let story = server.journal().only();
    story.assert_not_flushed();
    story.assert_continuations(1);
    assert_eq!(story.events().last().unwrap().at(), Duration::from_secs(30), "the patience: {story}");
    client.leave(Leave::Close).await;
    server.settled().await;
    story.assert_contract();
}

/// Who stays while the server closes its connection is not taken for another who left.
#[tokio::test]
async fn it_tells_those_who_left_from_those_whom_the_server_closed() {
    let app = Router::new().route("/", get(async || "hello")).layer(EarlyCloseLayer::new());
    for server in [TestServer::on_socket(app.clone()).await, TestServer::in_memory(app)] {
        let mut closed = server.connect().await;
        closed.send_get("/").await;
        closed.response().await.assert_whole();
        closed.read_to_end().await;
        let mut leaves = server.connect().await;
        server.settled().await;
        // The server has had no turn to look at it.
        leaves.send_get("/").await;
        leaves.leave(Leave::Close).await;
        server.settled().await;
        let seen = server.journal().stories().len();
        drop(closed);
        server.stop().await;
        assert_eq!(seen, 2, "that of the one who left has arrived before");
    }
}

#[tokio::test]
async fn thousands_of_requests_are_waited_for_while_they_come() {
    const MANY: usize = 4_000;
    let app = Router::new().route("/", get(async || (Continuation::new(tokio::task::yield_now()), "hello")));
    // Of which each would take as long as all that came before it, were those looked through.
    let server = TestServer::builder().patience(Duration::from_secs(30)).in_memory(app);
    let clients = async {
        for _ in 0..MANY {
            server.get("/").await.assert_whole();
        }
    };
    tokio::join!(clients, server.journal().begun(MANY), server.journal().ended(MANY));
    server.settled().await;
    server.journal().assert_contract();
}
