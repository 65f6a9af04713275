//! Why the order of the layers does not matter, and where other middleware stands.
//!
//! # One record, two ends
//!
//! A request has one record, in its extensions. The first service of this crate that it meets, which is the
//! outermost, makes it; the others find it. A layer on the way in only notes its wish there: a limit, an
//! ignored abort, a hook. None of them acts on what another one noted. The *outermost* service watches the
//! response until it is flushed, and then runs continuations and hooks. The *innermost* one holds the handler's
//! future: it drops it, keeps it alive, or lets a finished response out. So any set of these layers in any
//! order behaves alike.
//!
//! Of several layers of one kind around a route, the innermost holds: a route's own layer overrules its router's.
//! Hooks add up, those of outer layers first.
//!
//! Under `Epilogue::serve` and `Epilogue::make_service` the outermost service is the server's own, outside of every
//! middleware.
//!
//! # What middleware must leave in place
//!
//! The record travels in the request's extensions. A middleware that builds a new request and forgets to copy
//! them cuts the rest off: the next layer inside begins a record of its own, without the connection and without the
//! settings of the [`Epilogue`](crate::Epilogue).
//!
//! The other way round, a handler that asks an app of its own on behalf of its request (a batch) must not hand the record
//! on. With a copy of the extensions each call is a part of the one request, as for a
//! [retry](super::contract#what-the-rules-leave-open), and the handler stands outside of the services that are inside of
//! the app, so that it can no longer finish. Take the [`Lifecycle`](crate::Lifecycle) out of the copy, and each call has a
//! life of its own, with the default settings, for which no drain waits: `extensions.remove::<Lifecycle>()`.
//!
//! Continuations travel in the response's extensions, but no further than to the innermost service. What middleware
//! outside of it does to the response does not matter to them.
//!
//! # finish and the innermost layer
//!
//! "The handler" is everything inside the innermost of our services. A response given to
//! [`finish`](crate::Lifecycle::finish) leaves from there, and passes through what stands outside: headers are
//! set, cookies written, bodies compressed. Middleware *inside* is still at work in the handler's future and does
//! not see that response.
//!
//! With no layer at all, only the server's own service is there, and all middleware is inside of it. So a router
//! whose handlers finish early wants one of our layers next to its routes. A layer that is added later is outside:
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
//! For the same reason a handler that outlives its client or its response takes the middleware inside of the
//! innermost layer along: a timeout there still ends it, and a concurrency limit there still counts it. One
//! outside has let go. And where one of our layers stands inside of axum's router, logs and hooks name a request by
//! its matched route, elsewhere by its path.
//!
//! # Beside tower-http's layers
//!
//! Every order keeps the [contract](super::contract). This is what each means.
//!
//! ## Compression
//!
//! `EarlyCloseLayer` outside of `CompressionLayer` buffers the compressed body and declares its length. Inside, it
//! declares the length of the plain one, which the compression then takes off again, since it no longer fits: the
//! response is chunked on HTTP/1.1 (RFC 9112, section 7.1), which ends it just as exactly, and
//! `Connection: close` stays. On HTTP/1.0 it then ends with its connection. So: outside, where a declared length
//! matters; or in place of it, with the feature `compression`, by `EarlyCloseLayer::compress`. Where both compress, the
//! inner one does, and the other leaves its response alone.
//!
//! A continuation starts after the last compressed byte in every order.
//!
//! [`End::body_bytes`](crate::End::body_bytes) counts what the outermost service gave to the server, so compressed
//! bytes.
//!
//! ## Timeout
//!
//! `TimeoutLayer` ends with the head of the response; a [`TimeLimitLayer`](crate::TimeLimitLayer) goes on
//! through body and continuation. Where both stand, the shorter one acts first.
//!
//! - *Inside* of our innermost layer, the timeout is a part of the handler. Its answer is an ordinary one, the
//!   status is NORMAL, and ignoring aborts has no say in it.
//! - *Outside* of it on a tracked connection: the handler is dropped, ignored aborts or not, since it is not the
//!   client who left. The timeout's answer goes out, and the status is NORMAL.
//! - *Outside of all* our layers without a tracked connection: the layers see a dropped response and take it for
//!   an abort. A handler that ignores aborts goes on, and hooks see ABORTED.
//!
//! ## Trace
//!
//! `TraceLayer` makes a span for each request. A hook takes along the span that is current where it is registered: from
//! a handler, that is the request's span in either order. A continuation has a span of its own, which [follows
//! from](super::observing#spans) the one that is current where it is made. A
//! [`ShutdownHookLayer`](crate::ShutdownHookLayer) registers its hook on the way in, so its hook is in the span only where
//! the layer stands inside of `TraceLayer`.
//!
//! Outside of our layers, `TraceLayer` sees their 503 and reports a failure. Inside, it is dropped together with
//! the handler and reports nothing. Its latencies end with the head and with the body, never with the
//! continuation.
//!
//! ## Catch-panic
//!
//! `CatchPanicLayer` *inside* of our innermost layer turns the panic into an ordinary 500 of the handler:
//! [`End::panic`](crate::End::panic) knows nothing of it. *Outside* of it, the panic is recorded and goes on
//! outwards, and `CatchPanicLayer` answers. With neither, the server of this crate answers with a 500 of its own;
//! under another server, layers alone let the panic go on. Where it passes all of them, hooks see
//! [`BrokenOff`](crate::Sent::BrokenOff), since what is answered further out is not seen.
//!
//! Panics in bodies, continuations and hooks never reach `CatchPanicLayer`; they are caught where they happen.
//!
//! ## Load shedding, concurrency limits, retries
//!
//! A permit that is bound to the response's future is given back when the response leaves, or when `finish` lets it
//! leave: continuations do not hold it, if its layer stands outside of our innermost one. A retry may stand
//! anywhere; [the contract](super::contract#what-the-rules-leave-open) says what its attempts share.
