//! Why the order of the layers does not matter, and where other middleware goes.
//!
//! # One record, two ends
//!
//! A request has one record, in its extensions. The first service of this crate that the request meets, which is the
//! outermost, creates it; the others find it. On the way in, a layer only notes its setting there: a limit, an
//! ignored abort, a hook. None of them acts on what another one noted. The *outermost* service watches the response
//! until it is flushed, and then runs continuations and hooks. The *innermost* one holds the handler's future: it
//! drops it, keeps it alive, or lets a finished response out. So any set of these layers behaves the same in any
//! order.
//!
//! Of several layers of one kind around a route, the innermost applies: a route's own layer overrides its router's.
//! Hooks add up, those of outer layers first.
//!
//! Under `Epilogue::serve` and `Epilogue::make_service` the outermost service is the server's own, outside all
//! middleware.
//!
//! # What middleware must leave in place
//!
//! The record travels in the request's extensions. A middleware that builds a new request without copying them breaks
//! the chain: the next layer inside begins a record of its own, without the connection and without the settings of
//! the [`Epilogue`](crate::Epilogue).
//!
//! Conversely, a handler that calls another app on behalf of its request (a batch endpoint) must not pass the record
//! on. With a copy of the extensions, each call becomes part of the one request, as for a
//! [retry](super::contract#what-the-rules-leave-open); and the handler is then outside the services inside that
//! app, so that it can no longer call `finish`. Remove the [`Lifecycle`](crate::Lifecycle) from the copy, with
//! `extensions.remove::<Lifecycle>()`, and each call has a lifecycle of its own, with the default settings, for which
//! no drain waits.
//!
//! Continuations travel in the response's extensions, but only as far as the innermost service. What middleware
//! outside it does to the response does not matter to them.
//!
//! # finish and the innermost layer
//!
//! "The handler" is everything inside the innermost of our services. A response given to
//! [`finish`](crate::Lifecycle::finish) leaves from there, and passes through the middleware outside: headers are
//! set, cookies written, bodies compressed. Middleware *inside* is still part of the handler's future and does not
//! see that response.
//!
//! Without any layer there is only the server's own service, and all middleware is inside it. So a router whose
//! handlers call `finish` wants one of our layers next to its routes. In axum, a layer that is added later is further
//! out:
//!
//! ```
//! use axum::{Router, body::Body, http::{HeaderValue, Request, header::SERVER}, routing::get};
//! use tower::ServiceExt;
//! use tower_epilogue::{IgnoreAbortLayer, Lifecycle};
//! use tower_http::set_header::SetResponseHeaderLayer;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! async fn early(lifecycle: Lifecycle) {
//!     let _ = lifecycle.finish("this leaves now").await;
//!     // … and this goes on.
//! }
//!
//! let app: Router = Router::new()
//!     .route("/", get(early))
//!     .layer(IgnoreAbortLayer::off()) // next to the routes
//!     .layer(SetResponseHeaderLayer::overriding(SERVER, HeaderValue::from_static("mine")));
//!
//! let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
//! assert_eq!(response.headers()[SERVER], "mine");
//! # }
//! ```
//!
//! For the same reason, a handler that outlives its client or its response takes along the middleware inside the
//! innermost layer: a timeout there still ends it, and a concurrency limit there still counts it. Middleware outside
//! has let go of it. And if one of our layers is inside axum's router, logs and hooks name a request by its matched
//! route, otherwise by its path.
//!
//! # Beside tower-http's layers
//!
//! Every order keeps the [contract](super::contract). This is what each order means.
//!
//! ## Compression
//!
//! `EarlyCloseLayer` outside `CompressionLayer` buffers the compressed body and declares its length. Inside, it
//! declares the length of the plain body, which the compression removes again, since it no longer fits: the response
//! is chunked on HTTP/1.1 (RFC 9112, section 7.1), so its end is still unambiguous, and `Connection: close` stays. On
//! HTTP/1.0 its end is the end of the connection. So where a declared length matters, put `EarlyCloseLayer` outside,
//! or let it compress by itself (`EarlyCloseLayer::compress`, feature `compression`). If both compress, the inner one
//! does, and the other leaves its response alone.
//!
//! A continuation starts after the last compressed byte in every order.
//!
//! [`End::body_bytes`](crate::End::body_bytes) counts what the outermost service gave to the server, so compressed
//! bytes.
//!
//! ## Durable jobs
//!
//! A `DurableLayer` (feature `durable`) stores what the responses that reach it promise. So it belongs inside whatever
//! replaces responses, and better inside an `EarlyCloseLayer`, so that jobs are stored before their response is held back.
//!
//! ## Timeout
//!
//! `TimeoutLayer` ends with the head of the response; a [`TimeLimitLayer`](crate::TimeLimitLayer) also covers body
//! and continuation. With both in place, the shorter one acts first.
//!
//! - *Inside* our innermost layer, the timeout is part of the handler. Its response is an ordinary one, the status is
//!   NORMAL, and ignoring aborts makes no difference to it.
//! - *Outside* it, on a tracked connection: the handler is dropped, whether or not aborts are ignored, because it is
//!   not the client who left. The timeout's response is sent, and the status is NORMAL.
//! - *Outside all* our layers, without a tracked connection: the layers see a dropped response and take it for an
//!   abort. A handler that ignores aborts goes on, and hooks see ABORTED.
//!
//! ## Trace
//!
//! `TraceLayer` creates a span for each request. A hook keeps the span that is current where it is registered: from a
//! handler, that is the request's span in either order. A continuation has a span of its own, which [follows
//! from](super::observing#spans) the one that is current where it is created. A
//! [`ShutdownHookLayer`](crate::ShutdownHookLayer) registers its hook on the way in, so its hook is in the span only if
//! the layer is inside `TraceLayer`.
//!
//! Outside our layers, `TraceLayer` sees their 503 and reports a failure. Inside, it is dropped together with the
//! handler and reports nothing. Its latencies end with the head and with the body, never with the continuation.
//!
//! ## Catch-panic
//!
//! `CatchPanicLayer` *inside* our innermost layer turns the panic into an ordinary 500 of the handler:
//! [`End::panic`](crate::End::panic) is `None`. *Outside* it, the panic is recorded and propagates
//! outwards, and `CatchPanicLayer` answers. With neither, the server of this crate answers with a 500 of its own;
//! under another server, the layers alone let the panic propagate. If it passes all of them, hooks see
//! [`BrokenOff`](crate::Sent::BrokenOff), because the response that is sent further out is not seen.
//!
//! Panics in bodies, continuations and hooks never reach `CatchPanicLayer`; they are caught where they happen.
//!
//! ## Load shedding, concurrency limits, retries
//!
//! A permit that is held by the response future is released when the response leaves, or when `finish` lets it leave:
//! continuations do not hold it, if its layer is outside our innermost one. A retry may go anywhere; [the
//! contract](super::contract#what-the-rules-leave-open) says what its attempts share.
