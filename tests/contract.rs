//! The contract, rule by rule: each test is named with the sentence that it proves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "contract/common.rs"]
mod common;
#[path = "contract/races.rs"]
mod races;
#[path = "contract/rule_01.rs"]
mod rule_01;
#[path = "contract/rule_01_patience.rs"]
mod rule_01_patience;
#[path = "contract/rule_02.rs"]
mod rule_02;
#[path = "contract/rule_03.rs"]
mod rule_03;
#[path = "contract/rule_04.rs"]
mod rule_04;
#[path = "contract/rule_04_finished.rs"]
mod rule_04_finished;
#[path = "contract/rule_05.rs"]
mod rule_05;
#[path = "contract/rule_06.rs"]
mod rule_06;
#[path = "contract/rule_06_busy.rs"]
mod rule_06_busy;
#[path = "contract/rule_06_many.rs"]
mod rule_06_many;
#[path = "contract/rule_06_parts.rs"]
mod rule_06_parts;
#[path = "contract/rule_07.rs"]
mod rule_07;
#[path = "contract/rule_07_elsewhere.rs"]
mod rule_07_elsewhere;
#[path = "contract/rule_07_rest.rs"]
mod rule_07_rest;
#[path = "contract/rule_08_streams.rs"]
mod rule_08_streams;
#[path = "contract/rule_10.rs"]
mod rule_10;
#[path = "contract/rule_11.rs"]
mod rule_11;
#[path = "contract/rule_13.rs"]
mod rule_13;
#[path = "contract/surroundings.rs"]
mod surroundings;

mod support;

/// The layers compose: that is a suite of its own, `compose`.
mod rule_12 {}
