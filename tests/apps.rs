//! The layers in apps as teams write them: beside the middleware and the extractors that they use, in every place of a
//! router, under every server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may panic, and what it spawns is its own"
)]
#![allow(unreachable_pub, reason = "the modules of one suite")]

#[path = "apps/alike.rs"]
mod alike;
#[path = "apps/attempts.rs"]
mod attempts;
#[path = "apps/beside.rs"]
mod beside;
#[path = "apps/bodies.rs"]
mod bodies;
#[path = "contract/common.rs"]
#[allow(dead_code, reason = "what it needs of another suite's")]
mod common;
#[path = "apps/hedged.rs"]
mod hedged;
#[path = "apps/held.rs"]
mod held;
#[path = "apps/in_tasks.rs"]
mod in_tasks;
#[path = "apps/isolated.rs"]
mod isolated;
#[path = "apps/kept.rs"]
mod kept;
#[path = "apps/kinds.rs"]
mod kinds;
#[path = "apps/late.rs"]
mod late;
#[path = "apps/left_behind.rs"]
mod left_behind;
#[path = "apps/places.rs"]
mod places;
#[path = "apps/routes.rs"]
mod routes;
#[path = "apps/stacks.rs"]
mod stacks;
#[path = "apps/whole_stacks.rs"]
mod whole_stacks;

mod support;
