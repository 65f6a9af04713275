//! `RESULTS.md`.

use std::fmt::Write as _;

use crate::{
    Extent, load, machine,
    measure::Results,
    peers::{BARE, BASELINE, BY_HAND, LEAST, OURS, PLAIN, WORKERS},
    table::{cell, count, cpu, median, quantile, rate, ratios, time},
    upload::{Seen, UPLOAD},
};

pub fn markdown(results: &[Results], extent: Extent, arguments: &[String]) -> String {
    let mut text = String::from("# Beside the peers\n\n");
    let command = ["benches/peers/run"].into_iter().chain(arguments.iter().map(String::as_str));
    let _ = write!(
        text,
        "Written by `{}` on {}.\n\nMachine: {}.\n\n![The figures as bars](RESULTS.svg)\n\n",
        command.collect::<Vec<_>>().join(" "),
        machine::date(),
        machine::describe()
    );
    targets(&mut text, results);
    respond(&mut text, results, extent);
    park(&mut text, results);
    upload(&mut text, results);
    versions(&mut text, results);
    commands(&mut text);
    text
}

fn find<'a>(results: &'a [Results], key: &str) -> Option<&'a Results> {
    results.iter().find(|result| result.peer.key == key)
}

fn whole(seen: &[Seen]) -> Option<f64> {
    (!seen.is_empty()).then(|| seen.iter().filter(|seen| seen.whole).count() as f64 / seen.len() as f64)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// The median, and between what the middle half of the figures lies.
fn spread(figures: &[f64]) -> Option<String> {
    let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| quantile(figures, share));
    Some(format!("{:.3} ({:.3} to {:.3})", middle?, low?, high?))
}

fn targets(text: &mut String, results: &[Results]) {
    let (Some(ours), Some(spawn)) = (find(results, OURS), find(results, BASELINE)) else { return };
    text.push_str("## What it was to reach\n\n| workload | target | measured | reached |\n|---|---|---|---|\n");
    let mut row = |workload: &str, target: &str, measured: String, reached: Option<bool>| {
        let reached = reached.map_or("not measured", |reached| if reached { "yes" } else { "no" });
        let _ = writeln!(text, "| {workload} | {target} | {measured} | {reached} |");
    };
    let rates = ratios(ours, spawn, rate);
    row(
        "respond",
        "at least 0.98 of the requests a second of axum with `tokio::spawn`",
        cell(spread(&rates), |rates| rates),
        median(&rates).map(|ratio| ratio >= 0.98),
    );
    let bytes = median(&ours.park).zip(median(&spawn.park)).map(|(ours, spawn)| ours / spawn);
    row(
        "park",
        "at most 1.15 of the bytes of axum with `tokio::spawn`",
        cell(bytes, |ratio| format!("{ratio:.2}")),
        bytes.map(|ratio| ratio <= 1.15),
    );
    let plain = find(results, PLAIN).and_then(|plain| whole(&plain.afterwards));
    let shares = whole(&ours.afterwards).zip(whole(&ours.meanwhile));
    row(
        "upload",
        "100% where plain axum loses responses",
        cell(shares, |(one, two)| {
            format!("{} and {}; plain axum {}", percent(one), percent(two), cell(plain, percent))
        }),
        shares.map(|(one, two)| one == 1.0 && two == 1.0),
    );
    text.push_str(
        "\nRatios are medians over the rounds, in brackets the middle half of them. The server that this crate is compared \
         with answers and spawns, and does nothing else; here the same request has a lifecycle, four layers, a limit \
         that is waited for, a flush to wait for, a task that is tracked, and a hook that runs at the end.\n\n",
    );
    floor(text, results, spawn);
}

/// What stands between that server and any other way to have a layer start the work.
fn floor(text: &mut String, results: &[Results], spawn: &Results) {
    let figure =
        |key: &str, of| cell(find(results, key).and_then(|peer| spread(&ratios(peer, spawn, of))), |text| text);
    let bytes = |key: &str| {
        let parked = find(results, key).and_then(|peer| median(&peer.park)).zip(median(&spawn.park));
        cell(parked, |(bytes, spawn)| format!("{:.2}", bytes / spawn))
    };
    let _ = write!(
        text,
        "Four more servers show what of it is this crate's; each of them does less than it has to. The first is that same \
         server under one layer that does nothing: its requests a second are {} of it, and its CPU time a request {}. In \
         the second, a layer spawns the work when the response's body is gone, and nobody knows of it then: {} and {}, \
         and {} of its bytes when parked. The third spawns the same under a time limit, whose timer is tokio's: {} and {}, \
         and {} of its bytes. The fourth has what a team writes by hand (the same, the work goes along in the response, a \
         tracker, caught panics, a limit of the handler; no flush, no abort, no hook, no report): {} and {}, and {} of its \
         bytes.\n\n",
        figure("empty-layer", rate),
        figure("empty-layer", cpu),
        figure(BARE, rate),
        figure(BARE, cpu),
        bytes(BARE),
        figure(LEAST, rate),
        figure(LEAST, cpu),
        bytes(LEAST),
        figure(BY_HAND, rate),
        figure(BY_HAND, cpu),
        bytes(BY_HAND),
    );
}

fn respond(text: &mut String, results: &[Results], extent: Extent) {
    let baseline = find(results, BASELINE);
    let _ = write!(
        text,
        "## Respond, with a continuation of 100 ms\n\n\
         {} clients on kept connections, each of which asks again as soon as it has its answer (`GET /respond`, the \
         answer is `hello`). Every server has one processor to itself, the load has another. All servers live at \
         once and take turns: 0.15 s to get going, 0.3 s that count, 0.3 s to come to rest, {} rounds (those below \
         the Rust peers take part in every third). CPU is what all threads and processes of a server ran, a request. \
         Then, {} times a round, one client at a time that asks for `Connection: close`: the time from its request \
         to the last byte, and to the end of the connection.\n\n\
         | server | requests/s | ratio to `tokio::spawn` | CPU a request | ratio | p50 | p99 | last byte p50 | p99 | \
         close p50 | p99 |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
        load::CLIENTS,
        extent.rounds,
        extent.singles,
    );
    for result in results.iter().filter(|result| result.version.is_ok()) {
        let own = &result.respond;
        let ratio =
            |of| cell(baseline.and_then(|other| median(&ratios(result, other, of))), |ratio| format!("{ratio:.3}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            result.peer.name,
            cell(median(&own.rate), count),
            ratio(rate),
            cell(median(&own.cpu), |cpu| format!("{:.2} µs", cpu.as_secs_f64() * 1e6)),
            ratio(cpu),
            cell(median(&own.p50), time),
            cell(median(&own.p99), time),
            cell(median(&own.last_byte), time),
            cell(quantile(&own.last_byte, 0.99), time),
            cell(median(&own.close), time),
            cell(quantile(&own.close, 0.99), time),
        );
    }
    let _ = write!(
        text,
        "\nPuma has {WORKERS} threads and PHP-FPM {WORKERS} processes, each of which a continuation holds until its \
         end: so many times ten requests a second is all they can reach, however fast they are. uvicorn answers the \
         next request of a connection only when the background task of the one before has ended. Plain axum's \
         clients wait for the work itself.\n\n"
    );
}

fn park(text: &mut String, results: &[Results]) {
    text.push_str(
        "## Park\n\n\
         Requests whose work waits for an hour, each on a connection of its own that closes after the answer. The \
         server's memory (`Pss`) with all of them parked, less that after some thousands of short ones, over their \
         number. Where each holds a thread or a process, that is what it costs: the memory is then beside that of a \
         server with hardly any.\n\n| server | parked | bytes each | ratio to `tokio::spawn` |\n|---|---|---|---|\n",
    );
    let baseline = find(results, BASELINE).and_then(|spawn| median(&spawn.park));
    for result in results {
        let (Some(parks), Ok(_)) = (result.peer.park, &result.version) else { continue };
        let bytes = median(&result.park);
        let why = if parks.why.is_empty() { String::new() } else { format!(" ({})", parks.why) };
        let _ = writeln!(
            text,
            "| {} | {}{why} | {} | {} |",
            result.peer.name,
            count(result.parked as f64),
            cell(bytes, count),
            cell(bytes.zip(baseline), |(bytes, baseline)| format!("{:.2}", bytes / baseline)),
        );
    }
    text.push('\n');
}

fn upload(text: &mut String, results: &[Results]) {
    let _ = write!(
        text,
        "## Early close of an unread upload\n\n\
         The client uploads {} MiB, 64 KiB a millisecond; the server answers at once with 1 MiB and `Connection: \
         close`, and does not read the upload. One client sends until it has sent all or cannot, then reads; the other \
         reads while it sends. A response is whole when every byte of it has come. \"Early\": of the second client's \
         responses, how many began before its upload had ended.\n\n\
         | server | whole, reads afterwards | whole, reads meanwhile | early |\n|---|---|---|---|\n",
        UPLOAD / 1024 / 1024
    );
    for result in results.iter().filter(|result| result.version.is_ok()) {
        let early = result.meanwhile.iter().filter(|seen| seen.early).count() as f64 / result.meanwhile.len() as f64;
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            result.peer.name,
            cell(whole(&result.afterwards), percent),
            cell(whole(&result.meanwhile), percent),
            cell((!early.is_nan()).then_some(early), percent),
        );
    }
    text.push_str(
        "\nnginx and Puma take in the whole upload before the application is asked: nothing is lost, and nothing is \
         early.\n\n",
    );
}

fn versions(text: &mut String, results: &[Results]) {
    text.push_str("## Who took part\n\n| server | its means | versions |\n|---|---|---|\n");
    for result in results {
        let version = match &result.version {
            Ok(version) => version.clone(),
            Err(reason) => format!("**skipped**: {reason}"),
        };
        let _ = writeln!(text, "| {} | {} | {version} |", result.peer.name, result.peer.means);
    }
    text.push_str(
        "\nThe servers in Rust, in `benches/peers/src/servers`, run on a tokio runtime of one thread with the system's \
         allocator, as one processor is all that any server has here. The others are in `benches/peers/others`. Every \
         server sets `TCP_NODELAY`, which is the default of those that are not in Rust.\n\n",
    );
}

fn commands(text: &mut String) {
    text.push_str(
        "## Every command\n\n```sh\n\
         # What is not there is installed by the first line, where that may be; what cannot be is skipped, with the reason.\n\
         benches/peers/run              # everything; RESULTS.md and RESULTS.svg are written\n\
         benches/peers/run --quick      # a short run, to try the benchmark itself\n\
         benches/peers/run --only axum-spawn,epilogue --workloads respond,park,upload --out FOLDER\n\
         # It starts each server like this, on processor 0 (`taskset -c 0`):\n\
         peers serve axum-no-work|axum-waits|axum-spawn|empty-layer|bare|least|by-hand|epilogue|trillium\n\
         python3 others/starlette_peer.py\n\
         node others/node_peer.mjs\n\
         php-fpm --nodaemonize --fpm-config FILE; nginx -c FILE   # both files are written by src/peers.rs\n\
         puma --quiet --environment production --threads 64:64 --bind tcp://127.0.0.1:0 others/config.ru\n```\n",
    );
}
