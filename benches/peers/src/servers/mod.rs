//! The servers in Rust. Each runs in a process of its own, on a runtime of one thread, and prints its address.
//!
//! All have the same three routes: `/respond` answers and has 100 ms of work left; `/park` answers and has an hour of
//! work left; `/upload` answers a POST with [`PAGE`] bytes at once, without a look at what is uploaded, and closes.

use std::{io::Write as _, net::SocketAddr, time::Duration};

mod axum_peers;
mod by_hand;
mod least;
mod trillium_peer;

/// How much work is left after an answer.
const WORK: Duration = Duration::from_millis(100);
/// Longer than the benchmark.
const PARKED: Duration = Duration::from_secs(3_600);
const HELLO: &str = "hello";
/// The answer to an upload.
pub const PAGE: usize = 1024 * 1024;

/// The kinds that [`serve`] knows, named as on the command line.
pub const KINDS: [&str; 9] =
    ["axum-no-work", "axum-waits", "axum-spawn", "empty-layer", "bare", "least", "by-hand", "epilogue", "trillium"];

static PAGE_BYTES: [u8; PAGE] = [b'x'; PAGE];

/// Serves until it is killed.
pub fn serve(kind: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match kind {
            "axum-no-work" => axum_peers::no_work().await,
            "axum-waits" => axum_peers::waits().await,
            "axum-spawn" => axum_peers::spawn().await,
            "empty-layer" => axum_peers::empty_layer().await,
            "bare" => least::bare().await,
            "least" => least::serve().await,
            "by-hand" => by_hand::serve().await,
            "epilogue" => axum_peers::epilogue().await,
            "trillium" => trillium_peer::serve().await,
            _ => panic!("no such server: {kind}; there are {KINDS:?}"),
        }
    });
}

fn announce(address: SocketAddr) {
    println!("{address}");
    std::io::stdout().flush().unwrap();
}
