//! Whatever becomes of requests and of their continuations: nothing promised is lost or runs twice, no more run than may, and
//! every place is given back, once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::Path,
    http::Uri,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{task::JoinSet, time::sleep};
use tower_epilogue::{
    Bound, Continuation, EpilogueBuilder, EventKind, IgnoreAbortLayer, Lifecycle, Load, ReserveLayer, TimeLimitLayer,
    WhenFull,
};

use crate::{
    Meter,
    support::{Gate, MemoryServer},
};

const MILLI: Duration = Duration::from_millis(1);
const REQUESTS: u64 = 60;
const MAIL: usize = 2;
const ALL: usize = 3;
const WAITING: usize = 2;

/// Numbers that look random and are the same for each seed (SplitMix64).
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn some_millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.roll(most))
    }
}

/// What was returned, and how often it began.
type Promises = Arc<Mutex<HashMap<(u64, u64), u32>>>;

#[derive(Clone)]
struct Round {
    seed: u64,
    promises: Promises,
    /// Those of no class and those of the class `mail` that never waited past their limit.
    meters: [Meter; 2],
    gate: Gate,
}

impl Round {
    fn work(&self, number: u64, place: u64, dice: &mut Dice, limited: bool) -> Continuation {
        let key = (number, place);
        self.promises.lock().unwrap().insert(key, 0);
        let is_mail = dice.roll(2) == 0;
        let (kind, takes) = (dice.roll(8), dice.some_millis(20));
        let promises = self.promises.clone();
        let begins = move || *promises.lock().unwrap().get_mut(&key).unwrap() += 1;
        // One whose limit passes while it waits is polled without a place.
        let meters = (!limited).then(|| self.meters.clone());
        let runs = async move {
            begins();
            let _mail = meters.as_ref().filter(|_| is_mail).map(|meters| meters[1].enter());
            let _all = meters.as_ref().map(|meters| meters[0].enter());
            sleep(takes).await;
            if kind == 0 {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        };
        let promises = self.promises.clone();
        let work = match kind {
            1 => Continuation::blocking(move || *promises.lock().unwrap().get_mut(&key).unwrap() += 1),
            2 => Continuation::try_new(async move {
                runs.await;
                Err("on purpose")
            }),
            _ => Continuation::new(runs),
        };
        if is_mail { work.class("mail") } else { work }
    }

    async fn handler(self, number: u64, lifecycle: Lifecycle, path: Uri) -> Response {
        let mut dice = Dice(self.seed ^ (number << 32));
        let sets = dice.roll(4) == 0;
        let limited = sets || path.path().starts_with("/limited");
        if sets {
            lifecycle.set_time_limit(dice.some_millis(60) + MILLI);
        }
        if dice.roll(3) == 0 {
            lifecycle.on_shutdown(async |_| sleep(MILLI).await).unwrap();
        }
        sleep(dice.some_millis(10)).await;
        let some = |dice: &mut Dice, from: u64| -> Vec<_> {
            (0..dice.roll(4)).map(|place| self.work(number, from + place, dice, limited)).collect()
        };
        if dice.roll(4) == 0 {
            let mut early = "finished".into_response();
            some(&mut dice, 10).into_iter().for_each(|work| work.attach(&mut early));
            let _ = lifecycle.finish(early).await;
            sleep(dice.some_millis(10)).await;
        }
        if dice.roll(8) == 0 {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        let mut response = match dice.roll(3) {
            0 => vec![b'x'; 200_000].into_response(),
            _ => "returned".into_response(),
        };
        some(&mut dice, 0).into_iter().for_each(|work| work.attach(&mut response));
        response
    }

    fn app(&self) -> Router {
        let (round, gate) = (self.clone(), self.gate.clone());
        let handler = get(async move |Path(number): Path<u64>, lifecycle: Lifecycle, path: Uri| {
            round.handler(number, lifecycle, path).await
        });
        let waits = |class: bool| {
            let gate = gate.clone();
            get(async move || {
                let work = Continuation::new(async move { gate.passed().await });
                (if class { work.class("mail") } else { work }, "waits")
            })
        };
        Router::new()
            .route("/plain/{number}", handler.clone())
            .route("/mail/{number}", handler.clone().layer(ReserveLayer::class("mail")))
            .route("/limited/{number}", handler.clone().layer(TimeLimitLayer::new(15 * MILLI)))
            .route("/ignores/{number}", handler.layer(IgnoreAbortLayer::new()))
            .route("/waits", waits(false))
            .route("/waits/mail", waits(true).layer(ReserveLayer::class("mail")))
    }
}

const HOLD: WhenFull = WhenFull::Hold(Duration::from_millis(40));

fn bounds(builder: EpilogueBuilder, all: WhenFull, mail: WhenFull) -> EpilogueBuilder {
    let mail = Bound::new(MAIL).max_waiting(WAITING).when_full(mail);
    builder.max_running(ALL).max_waiting(WAITING).when_full(all).class("mail", mail).max_blocking(2)
}

async fn round(seed: u64, all: WhenFull, mail: WhenFull) {
    let what = format!("seed {seed}, {all:?}, {mail:?}");
    let round = Round { seed, promises: Promises::default(), meters: Default::default(), gate: Gate::closed() };
    let server = MemoryServer::with(round.app(), |builder| bounds(builder, all, mail));
    let mut dice = Dice(seed);
    let mut clients = JoinSet::new();
    for number in 0..REQUESTS {
        let mut client = server.connect_narrow(16 * 1024);
        let path = ["plain", "mail", "plain", "limited", "ignores"][dice.roll(5) as usize];
        let (leaves, after) = (dice.roll(3) == 0, dice.some_millis(60));
        clients.spawn(async move {
            client.send(&format!("GET /{path}/{number} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await;
            if leaves {
                sleep(after).await;
                return 0;
            }
            client.reply().await.status
        });
        sleep(dice.some_millis(6)).await;
    }
    let answers = clients.join_all().await;
    let ended = || server.journal.events().iter().filter(|event| *event.kind() == EventKind::Ended).count();
    for turn in 0.. {
        // A blocking continuation may outlast its request.
        if ended() as u64 == REQUESTS && server.epilogue.running() + server.epilogue.stuck() == 0 {
            break;
        }
        assert!(turn < 10_000, "{what}: {:#?}", server.journal.events());
        sleep(MILLI).await;
        // tokio's clock does not wait for the threads of blocking continuations.
        tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap();
    }
    assert!(answers.iter().all(|status| [0, 200, 500, 503].contains(status)), "{what}: {answers:?}");
    let all_of = |count: usize, load: Load| {
        assert_eq!((load.running, load.waiting, load.reserved), (0, 0, 0), "{what}: {count}");
    };
    all_of(0, server.epilogue.load().unwrap());
    all_of(1, server.epilogue.class_load("mail").unwrap());
    let promises = round.promises.lock().unwrap().clone();
    let wrong: Vec<_> = promises.iter().filter(|(_, began)| **began != 1).collect();
    assert!(wrong.is_empty(), "{what}: of {} promises {wrong:?}", promises.len());
    assert!(all == WhenFull::Run || round.meters[0].most() <= ALL, "{what}: {}", round.meters[0].most());
    assert!(mail == WhenFull::Run || round.meters[1].most() <= MAIL, "{what}: {}", round.meters[1].most());
    // As many are taken on as in the beginning, and not one more.
    for (path, room, policy) in [("/waits/mail", MAIL + WAITING, mail), ("/waits", ALL + WAITING, all)] {
        if policy == WhenFull::Run {
            continue;
        }
        let before = server.epilogue.load().unwrap();
        let taken = before.running + before.waiting + before.reserved;
        let room = if path == "/waits" { room - taken } else { room };
        for place in 0..room {
            let began = tokio::time::Instant::now();
            assert_eq!(server.get(path).await.status, 200, "{what}: {path} {place}");
            assert!(began.elapsed() < 5 * MILLI, "{what}: {path} {place}: {:?}", began.elapsed());
            sleep(MILLI).await;
        }
        let began = tokio::time::Instant::now();
        match policy {
            WhenFull::Refuse => assert_eq!(server.get(path).await.status, 503, "{what}: {path}"),
            _ => {
                assert_eq!(server.get(path).await.status, 200, "{what}: {path}");
                assert!(began.elapsed() >= 40 * MILLI, "{what}: {path}: {:?}", began.elapsed());
            }
        }
    }
    round.gate.open();
    assert!(server.stop().await.is_clean(), "{what}");
}

#[tokio::test(start_paused = true)]
async fn whatever_becomes_of_requests_every_place_is_given_back_once() {
    for seed in [0, 1, 6, 24] {
        for all in [WhenFull::Refuse, HOLD, WhenFull::Run] {
            for mail in [WhenFull::Refuse, HOLD, WhenFull::Run] {
                round(seed, all, mail).await;
            }
        }
    }
}
