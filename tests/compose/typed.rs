//! Every order once more, with the layers' own types: nothing boxed stands between them.

use axum::{Router, body::Body};
use http::StatusCode;
use tower::ServiceBuilder;
use tower_epilogue::{EarlyCloseLayer, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, map_response_body::MapResponseBodyLayer,
    timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::{
    app::{App, ROWS, Row},
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
    (Compression, $app:expr) => {
        CompressionLayer::new()
    };
    (Timeout, $app:expr) => {
        (
            TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, $app.row.their_timeout()),
            // It takes no body that has no default.
            MapResponseBodyLayer::new(Body::new),
        )
    };
    (Trace, $app:expr) => {
        TraceLayer::new_for_http()
    };
    (CatchPanic, $app:expr) => {
        CatchPanicLayer::new()
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

/// Beside tower-http's, whose bodies have types of their own.
macro_rules! between_theirs {
    ($($first:ident $second:ident $third:ident $fourth:ident $fifth:ident $sixth:ident $seventh:ident $eighth:ident,)*) => {
        fn routers(app: &App) -> Vec<(Stack, Router)> {
            vec![$({
                let layers = ServiceBuilder::new()
                    .layer(layer!($first, app))
                    .layer(layer!($second, app))
                    .layer(layer!($third, app))
                    .layer(layer!($fourth, app))
                    .layer(layer!($fifth, app))
                    .layer(layer!($sixth, app))
                    .layer(layer!($seventh, app))
                    .layer(layer!($eighth, app));
                let kinds = vec![
                    Kind::$first, Kind::$second, Kind::$third, Kind::$fourth,
                    Kind::$fifth, Kind::$sixth, Kind::$seventh, Kind::$eighth,
                ];
                let router = app.router(|route| route).layer(layers).with_state(app.clone());
                (Stack { kinds, applied: Applied::ServiceBuilder }, router)
            },)*]
        }
    };
}

between_theirs! {
    EarlyClose Compression IgnoreAbort Timeout TimeLimit Trace ShutdownHook CatchPanic,
    EarlyClose CatchPanic ShutdownHook Trace TimeLimit Timeout IgnoreAbort Compression,
    Timeout TimeLimit Trace ShutdownHook CatchPanic EarlyClose Compression IgnoreAbort,
    Timeout IgnoreAbort Compression EarlyClose CatchPanic ShutdownHook Trace TimeLimit,
    ShutdownHook CatchPanic EarlyClose Compression IgnoreAbort Timeout TimeLimit Trace,
    ShutdownHook Trace TimeLimit Timeout IgnoreAbort Compression EarlyClose CatchPanic,
    Timeout Trace CatchPanic EarlyClose IgnoreAbort TimeLimit ShutdownHook Compression,
    Timeout Compression ShutdownHook TimeLimit IgnoreAbort EarlyClose CatchPanic Trace,
    EarlyClose IgnoreAbort TimeLimit ShutdownHook Compression Timeout Trace CatchPanic,
    EarlyClose CatchPanic Trace Timeout Compression ShutdownHook TimeLimit IgnoreAbort,
    ShutdownHook Compression Timeout Trace CatchPanic EarlyClose IgnoreAbort TimeLimit,
}

async fn check_between_theirs(way: Way, rows: &[Row]) {
    for row in rows {
        let orders = routers(&App::new(*row, true)).len();
        for order in 0..orders {
            let app = App::new(*row, true);
            let (stack, router) = routers(&app).swap_remove(order);
            let seen = ask(&app, router, way).await;
            assert_eq!(seen, expected(*row, &stack, way), "{row:?} {way:?} {stack:?}");
        }
    }
}

#[tokio::test]
async fn the_bare_types_between_theirs_keep_the_contract_on_http1() {
    check_between_theirs(Way::Http1, &ROWS).await;
}

#[tokio::test]
async fn the_bare_types_between_theirs_keep_the_contract_on_http2() {
    check_between_theirs(Way::Http2, &ROWS).await;
}

#[tokio::test(start_paused = true)]
async fn the_bare_types_between_theirs_keep_the_contract_without_a_server_of_ours() {
    check_between_theirs(Way::Alone, &ROWS).await;
}
