//! Durable jobs, on SQLite and on a Postgres of the tests' own. It needs the server of Postgres: Debian's package
//! `postgresql`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::mem_forget,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, missing_debug_implementations, reason = "the modules of one suite")]

#[path = "durable/attempts.rs"]
mod attempts;
#[path = "durable/back_off.rs"]
mod back_off;
#[path = "durable/beside.rs"]
mod beside;
#[path = "durable/between.rs"]
mod between;
#[path = "durable/bounds.rs"]
mod bounds;
#[path = "durable/commits.rs"]
mod commits;
#[path = "durable/common.rs"]
mod common;
#[path = "durable/completed.rs"]
mod completed;
#[path = "durable/cut.rs"]
mod cut;
#[path = "durable/drain.rs"]
mod drain;
#[path = "durable/edges.rs"]
mod edges;
#[path = "durable/failover.rs"]
mod failover;
#[path = "durable/faults.rs"]
mod faults;
#[path = "durable/fragile.rs"]
mod fragile;
#[path = "durable/half_closed.rs"]
mod half_closed;
#[path = "durable/held_back.rs"]
mod held_back;
#[path = "durable/key_cases.rs"]
mod key_cases;
#[path = "durable/keys.rs"]
mod keys;
#[path = "durable/layers.rs"]
mod layers;
#[path = "durable/locked.rs"]
mod locked;
#[path = "durable/locks.rs"]
mod locks;
#[path = "durable/meanwhile.rs"]
mod meanwhile;
#[path = "durable/nowhere.rs"]
mod nowhere;
#[path = "durable/on_its_way.rs"]
mod on_its_way;
#[path = "durable/postgres.rs"]
mod postgres;
#[path = "durable/promise.rs"]
mod promise;
#[path = "durable/stale.rs"]
mod stale;
#[path = "durable/strays.rs"]
mod strays;
#[path = "durable/untold.rs"]
mod untold;
#[path = "durable/upkeep.rs"]
mod upkeep;
#[cfg(target_os = "linux")]
#[path = "durable/vanished.rs"]
mod vanished;
#[path = "durable/whose.rs"]
mod whose;
#[path = "durable/wires.rs"]
mod wires;

mod support;
