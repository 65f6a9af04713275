//! Every order once more, with the layers' own types: nothing boxed stands between them.

use axum::Router;
use tower::ServiceBuilder;
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};

use crate::{
    app::{App, ROWS},
    expected::expected,
    run::{Way, ask},
    stack::{Applied, Kind, Stack, layers_hook},
};

macro_rules! layer {
    (EarlyClose, $app:expr) => {
        EarlyCloseLayer::new().patience($app.row.patience())
    };
    (IgnoreAbort, $app:expr) => {
        IgnoreAbortLayer::new()
    };
    (TimeLimit, $app:expr) => {
        TimeLimitLayer::new($app.row.limit())
    };
    (ShutdownHook, $app:expr) => {
        ShutdownHookLayer::new(layers_hook(&$app.notes))
    };
}

/// Each order as a tuple and as a builder.
macro_rules! every_order {
    ($($first:ident $second:ident $third:ident $fourth:ident,)*) => {
        fn around(app: &App, stack: &Stack) -> Router {
            let router = app.router(|route| route);
            let router = match (stack.kinds.as_slice(), stack.applied) {
                $(
                    ([Kind::$first, Kind::$second, Kind::$third, Kind::$fourth], Applied::OneTuple) => router.layer((
                        layer!($first, app), layer!($second, app), layer!($third, app), layer!($fourth, app),
                    )),
                    ([Kind::$first, Kind::$second, Kind::$third, Kind::$fourth], _) => router.layer(
                        ServiceBuilder::new()
                            .layer(layer!($first, app))
                            .layer(layer!($second, app))
                            .layer(layer!($third, app))
                            .layer(layer!($fourth, app)),
                    ),
                )*
                _ => unreachable!("not an order of all four"),
            };
            router.with_state(app.clone())
        }

        fn stacks() -> Vec<Stack> {
            let orders = [$([Kind::$first, Kind::$second, Kind::$third, Kind::$fourth],)*];
            let applied = [Applied::OneTuple, Applied::ServiceBuilder];
            orders
                .iter()
                .flat_map(|kinds| applied.map(|applied| Stack { kinds: kinds.to_vec(), applied }))
                .collect()
        }
    };
}

every_order! {
    EarlyClose IgnoreAbort TimeLimit ShutdownHook,
    EarlyClose IgnoreAbort ShutdownHook TimeLimit,
    EarlyClose TimeLimit IgnoreAbort ShutdownHook,
    EarlyClose TimeLimit ShutdownHook IgnoreAbort,
    EarlyClose ShutdownHook IgnoreAbort TimeLimit,
    EarlyClose ShutdownHook TimeLimit IgnoreAbort,
    IgnoreAbort EarlyClose TimeLimit ShutdownHook,
    IgnoreAbort EarlyClose ShutdownHook TimeLimit,
    IgnoreAbort TimeLimit EarlyClose ShutdownHook,
    IgnoreAbort TimeLimit ShutdownHook EarlyClose,
    IgnoreAbort ShutdownHook EarlyClose TimeLimit,
    IgnoreAbort ShutdownHook TimeLimit EarlyClose,
    TimeLimit EarlyClose IgnoreAbort ShutdownHook,
    TimeLimit EarlyClose ShutdownHook IgnoreAbort,
    TimeLimit IgnoreAbort EarlyClose ShutdownHook,
    TimeLimit IgnoreAbort ShutdownHook EarlyClose,
    TimeLimit ShutdownHook EarlyClose IgnoreAbort,
    TimeLimit ShutdownHook IgnoreAbort EarlyClose,
    ShutdownHook EarlyClose IgnoreAbort TimeLimit,
    ShutdownHook EarlyClose TimeLimit IgnoreAbort,
    ShutdownHook IgnoreAbort EarlyClose TimeLimit,
    ShutdownHook IgnoreAbort TimeLimit EarlyClose,
    ShutdownHook TimeLimit EarlyClose IgnoreAbort,
    ShutdownHook TimeLimit IgnoreAbort EarlyClose,
}

async fn check(way: Way) {
    for stack in stacks() {
        for row in ROWS {
            let app = App::new(row, true);
            let seen = ask(&app, around(&app, &stack), way).await;
            assert_eq!(seen, expected(row, &stack, way), "{row:?} {way:?} {stack:?}");
        }
    }
}

#[tokio::test]
async fn every_order_of_the_bare_types_keeps_the_contract_on_http1() {
    check(Way::Http1).await;
}

#[tokio::test]
async fn every_order_of_the_bare_types_keeps_the_contract_on_http2() {
    check(Way::Http2).await;
}

#[tokio::test(start_paused = true)]
async fn every_order_of_the_bare_types_keeps_the_contract_without_a_server_of_ours() {
    check(Way::Alone).await;
}
