//! The same three workloads against this crate and its peers, on one machine in one session, in turns.
//!
//! `benches/peers/run` installs what is missing and starts this; the result is `benches/RESULTS.md`, with its plot.

mod http;
mod load;
mod machine;
mod measure;
mod park;
mod peers;
mod plot;
mod report;
mod running;
mod servers;
mod single;
mod table;
mod upload;

use std::{env, path::Path, process::Command};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Turns of workload 1. The peers that are compared close up take part in all, the rest in each third.
    pub rounds: usize,
    /// Requests of one client at a time, in each of a peer's turns.
    pub singles: usize,
    /// Continuations to park, at most.
    pub parked: usize,
    pub park_rounds: usize,
    /// Uploads for each peer and each client.
    pub uploads: usize,
}

const FULL: Extent = Extent { rounds: 60, singles: 10, parked: 100_000, park_rounds: 3, uploads: 100 };
/// To try the benchmark itself; its figures are not worth much.
const QUICK: Extent = Extent { rounds: 6, singles: 5, parked: 10_000, park_rounds: 1, uploads: 10 };

const USAGE: &str =
    "peers [--quick] [--only KEY,KEY…] [--workloads respond,park,upload] [--rounds N] [--out FOLDER]\npeers serve KIND";

fn main() {
    let mut extent = FULL;
    let mut only = Vec::new();
    let mut workloads = Vec::new();
    let mut out = format!("{}/..", env!("CARGO_MANIFEST_DIR"));
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().expect(USAGE);
        let list = |value: String| value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match argument.as_str() {
            "serve" => return servers::serve(&value()),
            "--quick" => extent = QUICK,
            "--rounds" => extent.rounds = value().parse().expect(USAGE),
            "--only" => only = list(value()),
            "--workloads" => workloads = list(value()),
            "--out" => out = value(),
            _ => panic!("{USAGE}"),
        }
    }
    pin();
    let results = measure::all(extent, &only, &workloads);
    let report = report::markdown(&results, extent, &env::args().skip(1).collect::<Vec<_>>());
    std::fs::write(Path::new(&out).join("RESULTS.md"), &report).expect("the folder for the results");
    std::fs::write(Path::new(&out).join("RESULTS.svg"), plot::svg(&results)).expect("the folder for the results");
    println!("{report}");
}

/// The load has one processor, the servers another: neither starves the other.
fn pin() {
    if machine::pins() {
        let own = std::process::id().to_string();
        let status = Command::new("taskset").args(["-a", "-p", "-c", "1", &own]).output().expect("taskset").status;
        assert!(status.success(), "the load could not be pinned to a processor");
    }
}
