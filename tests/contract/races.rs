//! A crowd of requests on several threads, in which clients leave, limits pass, handlers finish, panic and shield
//! themselves in every order: what happens differs from run to run, what may not happen does not.

use std::{collections::HashMap, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Path,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::{StreamExt, stream};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, Event, EventKind, IgnoreAbortLayer, Lifecycle, ShutdownHookLayer, TimeLimitLayer,
};

use crate::support::{Client, Notes, Server, h2client::Http2, soon};

const REQUESTS: u64 = 300;

/// Numbers that look random and are the same in every run (splitmix64).
fn scatter(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `which`-th number of a request, below `bound`.
fn pick(number: u64, which: u64, bound: u64) -> u64 {
    scatter(number.wrapping_mul(31).wrapping_add(which)) % bound
}

fn moment(number: u64, which: u64) -> Duration {
    Duration::from_micros(pick(number, which, 1500))
}

async fn handler(number: u64, notes: Notes, lifecycle: Lifecycle) -> Response {
    let id = lifecycle.id();
    let hook = notes.clone();
    if lifecycle.on_shutdown(async move |end| hook.add(format!("{} hook", end.request()))).is_err() {
        notes.add(format!("{id} began after its end"));
    }
    match pick(number, 1, 4) {
        0 => lifecycle.set_time_limit(moment(number, 2)),
        1 => {
            lifecycle.ignore_abort(true);
        }
        _ => {}
    }
    let continuation = {
        let notes = notes.clone();
        move || {
            notes.add(format!("{id} returned"));
            let notes = notes.clone();
            if pick(number, 3, 4) == 0 {
                return Continuation::blocking(move || notes.add(format!("{id} continuation")));
            }
            Continuation::new(async move {
                notes.add(format!("{id} continuation"));
                tokio::time::sleep(moment(number, 4)).await;
            })
        }
    };
    match pick(number, 5, 6) {
        0 => (continuation(), "at once").into_response(),
        1 => {
            tokio::time::sleep(moment(number, 6)).await;
            (continuation(), "later").into_response()
        }
        2 => {
            let _ = lifecycle.finish((continuation(), "finished")).await;
            tokio::time::sleep(moment(number, 6)).await;
            continuation().into_response()
        }
        3 => {
            let frames = stream::unfold(0, move |frame| async move {
                tokio::time::sleep(moment(number, 7 + frame) / 4).await;
                (frame < 4).then(|| (Ok::<_, std::io::Error>(vec![b'x'; 5000]), frame + 1))
            });
            (continuation(), Body::from_stream(frames)).into_response()
        }
        4 => {
            let shield = lifecycle.shield();
            tokio::time::sleep(moment(number, 6)).await;
            drop(shield);
            tokio::time::sleep(moment(number, 7)).await;
            continuation().into_response()
        }
        _ => {
            tokio::time::sleep(moment(number, 6)).await;
            panic!("a handler panics, as this test wants it");
        }
    }
}

fn app(turn: usize, notes: &Notes) -> Router {
    let theirs = notes.clone();
    let handler =
        async move |Path(number): Path<u64>, lifecycle: Lifecycle| handler(number, theirs.clone(), lifecycle).await;
    let app = Router::new().route("/{number}", get(handler));
    let hooks = notes.clone();
    let hook = ShutdownHookLayer::new(async move |end: tower_epilogue::End| {
        hooks.add(format!("{} layer", end.request()));
    });
    let (close, limit) = (EarlyCloseLayer::new(), TimeLimitLayer::new(Duration::from_millis(20)));
    match turn {
        0 => app.layer(hook),
        1 => app.layer((close, hook, limit)),
        2 => app.layer((IgnoreAbortLayer::new(), hook)).layer(close),
        _ => app.layer(limit).layer(IgnoreAbortLayer::new()).layer((hook, close)),
    }
}

async fn http1(server: &Server, number: u64) {
    let mut client = Client::connect(server.address).await;
    client.send(&format!("GET /{number} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
    let how = pick(number, 20, 5);
    if how < 3 {
        tokio::time::sleep(moment(number, 21)).await;
    }
    match how {
        0 => client.close(),
        1 => client.reset(),
        2 => {
            client.half_close().await;
            client.reply().await;
        }
        _ => {
            client.reply().await;
        }
    }
}

async fn http2(client: &mut Http2, number: u64) {
    let path = format!("/{number}");
    if pick(number, 20, 3) > 0 {
        let _ = client.get(&path).await;
        return;
    }
    let response = client.start("GET", &path).await;
    tokio::time::sleep(moment(number, 21)).await;
    drop(response);
}

/// What the contract says of every request, whatever became of it.
fn check(events: &[&Event], notes: &[&str], what: &str) {
    let count = |name: &str| events.iter().filter(|event| event.kind().name() == name).count();
    let place = |name: &str| events.iter().position(|event| event.kind().name() == name);
    let last = events.last().unwrap();
    assert!(*last.kind() == EventKind::Ended && count("ended") == 1, "{what}");
    for pair in events.windows(2) {
        assert!(pair[1].status().contains(pair[0].status()), "bits are only ever added: {what}");
        assert!(pair[1].at() >= pair[0].at(), "{what}");
    }
    assert_eq!(count("handler_start"), 1, "{what}");
    assert_eq!(count("handler_end") + count("handler_dropped"), 1, "{what}");
    assert_eq!(count("continuation_start"), count("continuation_end") + count("continuation_dropped"), "{what}");
    assert_eq!(count("hook_start"), count("hook_end"), "{what}");
    assert!(count("flushed") <= 1 && count("aborted") <= 1, "{what}");
    assert_eq!(count("aborted") == 1, last.status().is_aborted(), "{what}");
    if let (Some(flushed), Some(aborted)) = (place("flushed"), place("aborted")) {
        assert!(aborted < flushed, "a whole response is not aborted: {what}");
    }
    if let (Some(flushed), Some(started)) = (place("flushed"), place("continuation_start")) {
        // At the limit nothing waits for what HTTP/2's queue has already, and it may leave all the same.
        assert!(flushed < started || last.status().is_timeout(), "{what}");
    }
    let hooks = place("hook_start").unwrap();
    let before = ["handler_end", "handler_dropped", "body_end", "body_dropped", "flushed", "continuation_end"];
    for name in before.into_iter().chain(["continuation_dropped", "aborted"]) {
        assert!(place(name).is_none_or(|place| place < hooks), "{name}: {what}");
    }
    let noted = |note: &str| notes.iter().filter(|other| **other == note).count();
    assert_eq!((noted("layer"), noted("hook")), (1, 1), "hooks run exactly once: {what}");
    assert_eq!(noted("continuation"), noted("returned"), "what is returned runs exactly once: {what}");
    assert_eq!(noted("continuation"), count("continuation_start"), "{what}");
}

async fn crowd(turn: usize, is_http2: bool) {
    let notes = Notes::default();
    let server = Server::start(app(turn, &notes)).await;
    let numbers = (0..REQUESTS).map(|number| number * 4 + turn as u64);
    if is_http2 {
        // Ten connections, some of which are lost in the end with what is on them.
        let clients = stream::iter(0..10).for_each_concurrent(None, |part| {
            let (server, numbers) = (&server, numbers.clone());
            async move {
                let mut client = Http2::connect(server.address).await;
                for number in numbers.filter(|number| number / 4 % 10 == part) {
                    http2(&mut client, number).await;
                }
                client.abort();
            }
        });
        clients.await;
    } else {
        stream::iter(numbers).for_each_concurrent(24, |number| http1(&server, number)).await;
    }
    let (journal, epilogue) = (server.journal.clone(), server.epilogue.clone());
    let report = server.stop().await;
    assert!(report.is_clean(), "{report}");
    // Blocking continuations that were given up at a limit run all the same, when a thread is free.
    soon("the threads end", async {
        while epilogue.stuck() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let events = journal.events();
    let mut requests: HashMap<_, (Vec<&Event>, Vec<&str>)> = HashMap::new();
    for event in &events {
        requests.entry(event.request().to_string()).or_default().0.push(event);
    }
    let notes = notes.all();
    for note in &notes {
        let (request, what) = note.split_once(' ').unwrap();
        requests.get_mut(request).unwrap().1.push(what);
    }
    for (events, notes) in requests.values() {
        assert_eq!(*events.last().unwrap().kind(), EventKind::Ended, "{notes:?} {events:#?}");
        assert!(!notes.contains(&"began after its end"), "{notes:?} {events:#?}");
        // A handler whose client left at once may not have registered its hook.
        if notes.contains(&"hook") {
            check(events, notes, &format!("{notes:?} {events:#?}"));
        }
    }
    assert!(requests.len() as u64 > REQUESTS / 2, "{}", requests.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_may_not_happen_does_not_on_http1() {
    for turn in 0..4 {
        crowd(turn, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_may_not_happen_does_not_on_http2() {
    for turn in 0..4 {
        crowd(turn, true).await;
    }
}
