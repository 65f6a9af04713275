//! Chaos: rounds of a server with random layers, and a crowd whose requests and clients do whatever their dice say.
//! After each round the contract is held against every request, and nothing may be left behind.
//!
//! `CHAOS_SECONDS` is how long it runs (20), `CHAOS_SEED` where it begins. A seed gives the same plans in each run, not
//! the same timing: `CHAOS_SEED=… CHAOS_ROUNDS=1` repeats a round until it fails again.

#![allow(unreachable_pub, reason = "the parts of one test")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "helpers of a test, and what it spawns is its own"
)]

use std::{
    panic,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{runtime::Handle, task::JoinSet};
use tower_epilogue::test_util::TestServer;

#[path = "chaos/app.rs"]
mod app;

#[path = "chaos/attempts.rs"]
mod attempts;

#[path = "chaos/check.rs"]
mod check;

#[path = "chaos/client.rs"]
mod client;

#[path = "chaos/plan.rs"]
mod plan;

use self::{
    app::{Notes, PANIC, app, arounds},
    check::{Counts, Round},
    plan::{Dice, Visit},
};

/// The connections of one round.
const VISITS: u64 = 700;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

/// The app panics by the thousand: those need not be read.
fn silence_planned_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let planned = info.payload().downcast_ref::<String>().is_some_and(|message| message == PANIC)
            || info.payload().downcast_ref::<&str>().is_some_and(|message| *message == PANIC);
        if !planned {
            before(info);
        }
    }));
}

/// What a process must not have more of after a round than before.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    tasks: usize,
    files: usize,
}

impl Left {
    fn now() -> Self {
        let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self { tasks: Handle::current().metrics().num_alive_tasks(), files }
    }

    /// Waits until no more is left than `before`: some things end a moment after they were told of.
    async fn behind(before: &Self) -> Result<(), Self> {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let now = Self::now();
            if now.tasks <= before.tasks && now.files <= before.files {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(now);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn round(seed: u64) -> Counts {
    let mut dice = Dice::new(seed, u64::MAX);
    let mut arounds = arounds(&mut dice);
    let drained_early = dice.once_in(3);
    if !drained_early {
        // What waits for ever uses no busy time up: only a drain would end it.
        arounds.retain(|around| !matches!(around, app::Around::BusyLimit(_)));
    }
    let spread = Duration::from_millis(dice.one_of(&[1, 50, 300]));
    let deadline = match drained_early {
        true => Duration::from_millis(dice.one_of(&[1, 20, 200])),
        false => Duration::from_secs(60),
    };
    let notes = Notes::new(seed, drained_early);
    let before = Left::now();
    let mut server = TestServer::builder()
        .epilogue(|epilogue| epilogue.drain_deadline(deadline).hook_limit(Duration::from_secs(5)))
        .patience(Duration::from_secs(40))
        .on_socket(app(&arounds, &notes))
        .await;
    let address = server.address().expect("a socket");
    let mut crowd = JoinSet::new();
    for visit in 0..VISITS {
        crowd.spawn(client::visit(address, Visit::of(seed, visit * 16, spread)));
    }
    let mut outcomes = Vec::new();
    if drained_early {
        tokio::time::sleep(Duration::from_micros(dice.below(400_000))).await;
        server.begin_drain();
    } else {
        outcomes = crowd.join_all().await.concat();
        crowd = JoinSet::new();
        server.settled().await;
    }
    let (journal, epilogue) = (server.journal().clone(), server.epilogue().clone());
    let stopping = Instant::now();
    let report = server.stop().await;
    if stopping.elapsed() > Duration::from_secs(5) {
        println!("drain took {:?}", stopping.elapsed());
        for story in journal.stories() {
            if story.events().last().unwrap().at() > Duration::from_secs(4) || !story.has_ended() {
                println!("{story}");
            }
        }
    }
    outcomes.extend(crowd.join_all().await.concat());
    // Blocking continuations that were given up at a limit run all the same, when a thread is free.
    let until = Instant::now() + Duration::from_secs(20);
    while epilogue.stuck() > 0 {
        assert!(Instant::now() < until, "{} threads stay stuck", epilogue.stuck());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    epilogue.events_delivered().await;
    if (epilogue.running(), epilogue.lost()) != (0, 0) {
        let open: Vec<_> = journal.stories().into_iter().filter(|story| !story.has_ended()).collect();
        let records = notes.records();
        let plans =
            records.iter().filter(|(_, record)| open.iter().any(|story| Some(story.request()) == record.request));
        let plans: Vec<_> = plans.map(|(number, record)| (plan::Plan::of(seed, *number), record)).collect();
        panic!(
            "{} run on, {} were lost: {open:#?} {plans:#?} {arounds:?} {report}",
            epilogue.running(),
            epilogue.lost()
        );
    }
    drop(epilogue);
    let round = Round { arounds, notes, journal, outcomes, report, drained_early };
    let counts = round.check();
    let Round { notes, journal, .. } = round;
    drop(journal);
    if let Err(left) = Left::behind(&before).await {
        panic!("left behind: {left:?}, before it were {before:?}");
    }
    assert_eq!(notes.alive(), 0, "futures, bodies, hooks or continuations are still somewhere");
    counts
}

#[test]
fn the_contract_holds_of_every_request_in_a_chaos_of_them() {
    silence_planned_panics();
    let seconds = setting("CHAOS_SECONDS").unwrap_or(20);
    let rounds = setting("CHAOS_ROUNDS").unwrap_or(u64::MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_millis() as u64);
    let seed = setting("CHAOS_SEED").unwrap_or(now);
    println!("CHAOS_SEED={seed} begins");
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut sum = Counts::default();
    let mut done = 0;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    while done < rounds && Instant::now() < until {
        let seed = seed.wrapping_add(done);
        let outcome = runtime.block_on(async { tokio::spawn(round(seed)).await });
        if let Err(error) = outcome.as_ref() {
            panic!("replay with CHAOS_SEED={seed} CHAOS_ROUNDS=1: {error}");
        }
        sum.add(&outcome.unwrap_or_default());
        done += 1;
    }
    println!("CHAOS_SEED={seed}: {done} rounds, {sum:?}");
    assert!(sum.flushed > 0 && sum.aborted > 0 && sum.continuations > 0 && sum.hooks > 0, "it was no chaos: {sum:?}");
}
