//! Who is there, and the three workloads, in turns.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use crate::{
    Extent,
    load::{Clients, PAUSE},
    park::{self, Answer},
    peers::{self, PEERS, Park, Peer},
    running::Running,
    single,
    upload::{self, Reads, Seen},
};

/// Before a server's memory is taken as its own: a server that has served.
const WARM_UP: usize = 5_000;
/// The same where each request holds a thread or a process for 100 ms.
const WARM_UP_WORKERS: usize = 100;
/// Workers that are left where all others are parked in.
const SPARE: usize = 8;

/// What one peer has shown; nothing where it was not asked.
pub struct Results {
    pub peer: &'static Peer,
    /// Or why it does not take part.
    pub version: Result<String, String>,
    pub respond: Respond,
    /// Bytes a continuation, one a round.
    pub park: Vec<f64>,
    pub parked: usize,
    pub afterwards: Vec<Seen>,
    pub meanwhile: Vec<Seen>,
}

/// Workload 1: a figure for each burst.
#[derive(Default)]
pub struct Respond {
    pub rounds: Vec<usize>,
    pub rate: Vec<f64>,
    pub p50: Vec<Duration>,
    pub p99: Vec<Duration>,
    pub cpu: Vec<Duration>,
    /// And for each request.
    pub last_byte: Vec<Duration>,
    pub close: Vec<Duration>,
}

impl Results {
    fn of(peer: &'static Peer) -> Self {
        Self {
            peer,
            version: (peer.version)(),
            respond: Respond::default(),
            park: Vec::new(),
            parked: 0,
            afterwards: Vec::new(),
            meanwhile: Vec::new(),
        }
    }
}

pub fn all(extent: Extent, only: &[String], workloads: &[String]) -> Vec<Results> {
    let chosen = |name: &str, list: &[String]| list.is_empty() || list.iter().any(|item| item == name);
    let mut results: Vec<_> = PEERS.iter().filter(|peer| chosen(peer.key, only)).map(Results::of).collect();
    if chosen("respond", workloads) {
        respond(extent, &mut results);
    }
    if chosen("upload", workloads) {
        uploads(extent, &mut results);
    }
    if chosen("park", workloads) {
        parks(extent, &mut results);
    }
    results
}

/// Starts all that can be started; who cannot is out, with the reason.
fn start(results: &mut [Results]) -> Vec<(usize, Running)> {
    let mut running = Vec::new();
    for (place, result) in results.iter_mut().enumerate() {
        if result.version.is_err() {
            continue;
        }
        match (result.peer.start)(peers::WORKERS) {
            Ok(server) => running.push((place, server)),
            Err(reason) => result.version = Err(reason),
        }
    }
    running
}

fn respond(extent: Extent, results: &mut [Results]) {
    let servers = start(results);
    let mut clients: Vec<_> = servers.iter().map(|(_, server)| Clients::new(server.address)).collect();
    for round in 0..=extent.rounds {
        eprintln!("respond, round {round} of {}", extent.rounds);
        for turn in 0..servers.len() {
            // Who goes first takes turns too.
            let turn = (turn + round) % servers.len();
            let (place, server) = &servers[turn];
            let result = &mut results[*place];
            if !result.peer.close_up && round % 3 != 0 {
                continue;
            }
            let burst = clients[turn].burst(server);
            thread::sleep(PAUSE);
            let times: Vec<_> = (0..extent.singles).map(|_| single::ask(server.address)).collect();
            thread::sleep(PAUSE);
            // The first round warms up.
            if round == 0 {
                continue;
            }
            let respond = &mut result.respond;
            respond.rounds.push(round);
            respond.rate.push(burst.rate);
            respond.p50.push(burst.p50);
            respond.p99.push(burst.p99);
            respond.cpu.push(burst.cpu);
            respond.last_byte.extend(times.iter().map(|times| times.last_byte));
            respond.close.extend(times.iter().map(|times| times.close));
        }
    }
}

fn uploads(extent: Extent, results: &mut [Results]) {
    let servers = start(results);
    for round in 0..extent.uploads {
        if round % 10 == 0 {
            eprintln!("upload, {round} of {}", extent.uploads);
        }
        for turn in 0..servers.len() {
            let (place, server) = &servers[(turn + round) % servers.len()];
            results[*place].afterwards.push(upload::upload(server.address, Reads::Afterwards));
            results[*place].meanwhile.push(upload::upload(server.address, Reads::Meanwhile));
        }
    }
}

fn parks(extent: Extent, results: &mut [Results]) {
    for round in 0..extent.park_rounds {
        for result in results.iter_mut() {
            let (Some(parks), Ok(_)) = (result.peer.park, &result.version) else { continue };
            eprintln!("park, round {} of {}, {}", round + 1, extent.park_rounds, result.peer.key);
            let count = parks.most.min(extent.parked);
            // One that fails under it has shown nothing here, which is no reason to lose the rest.
            let measured = catch_unwind(AssertUnwindSafe(|| parked(result.peer, parks, count)));
            match measured.unwrap_or_else(|_| Err("it failed with so many parked".to_owned())) {
                Ok(bytes) => {
                    result.park.push(bytes);
                    result.parked = count;
                }
                Err(reason) => eprintln!("park, {}: {reason}", result.peer.key),
            }
        }
    }
}

/// Bytes for each of `count`.
fn parked(peer: &Peer, parks: Park, count: usize) -> Result<f64, String> {
    let (before, after) = if parks.workers {
        // Beside the same server with workers for none.
        let before = park::memory(&(peer.start)(SPARE)?, WARM_UP_WORKERS);
        let server = (peer.start)(count + SPARE)?;
        park::memory(&server, WARM_UP_WORKERS);
        (before, park::memory_parked(&server, count, parks.answer))
    } else {
        let server = (peer.start)(peers::WORKERS)?;
        let warm_up = if parks.answer == Answer::Before { WARM_UP } else { 0 };
        (park::memory(&server, warm_up), park::memory_parked(&server, count, parks.answer))
    };
    Ok((after as f64 - before as f64) / count as f64)
}
