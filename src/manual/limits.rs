//! How to choose the limits.
//!
//! | setting | default | bounds |
//! |---|---|---|
//! | [`TimeLimitLayer`](crate::TimeLimitLayer) | 60 s; no layer, no limit | a request, from its arrival to the end of its continuations |
//! | [`patience`](crate::EpilogueBuilder::patience) | 30 s | how long a continuation waits for a slow reader |
//! | [`hook_limit`](crate::EpilogueBuilder::hook_limit) | 5 s | each hook |
//! | [`drain_deadline`](crate::EpilogueBuilder::drain_deadline) | 30 s | how long a stopping server waits before it cuts |
//! | [`max_running`](crate::EpilogueBuilder::max_running), [`Bound`](crate::Bound) of a class | none | continuations that run at once |
//! | [`max_waiting`](crate::EpilogueBuilder::max_waiting) | 1,024 | those that wait for a place |
//! | [`max_blocking`](crate::EpilogueBuilder::max_blocking) | 500 in a process | threads of blocking continuations |
//! | [`max_detached`](crate::EpilogueBuilder::max_detached) | none | handlers and bodies that outlive their response |
//! | [`EarlyCloseLayer::buffer_limit`](crate::EarlyCloseLayer::buffer_limit) | 1 MiB | what is held in memory to measure, compress or change a body |
//! | [`EarlyCloseLayer::patience`](crate::EarlyCloseLayer::patience) | 1 s | how long a head waits to have its body measured |
//! | [`Tracking::write_stall`](crate::Tracking::write_stall) | 60 s; on Linux and Android `unacknowledged`, if that is shorter | a connection whose client takes no byte |
//! | [`Tracking::keep_alive`](crate::Tracking::keep_alive), [`unacknowledged`](crate::Tracking::unacknowledged) | 30 s each | a connection whose client is silent |
//! | `EpilogueBuilder::header_read_timeout` (feature `serve`) | 30 s | the wait for a request's head, and so, on HTTP/1, the idling between two requests |
//! | [`Linger`](crate::Linger) | 64 MiB, 2 s idle, 10 s in all | a closing connection whose client is still sending |
//!
//! # The time limit
//!
//! It is the one limit that everything of a request shares: the upload, the middleware, the handler, the body, a
//! reader who takes the body slowly, and the continuations. Nothing sets it by itself: a router without the layer
//! has no limit, under `Epilogue::serve` either. Choose it for the work that a client waits for, with the slowest
//! client you want to serve, and give routes that are known to take longer a layer of their own.
//!
//! A continuation that outlasts it should say so, rather than have the limit raised for everyone. The limit is
//! lifted or restarted from inside, with a handle that went along:
//!
//! ```
//! use std::time::Duration;
//! use tower_epilogue::{Continuation, Lifecycle};
//!
//! async fn export(lifecycle: Lifecycle) -> (Continuation, &'static str) {
//!     let work = Continuation::new(async move {
//!         for _part in 0..10 {
//!             lifecycle.set_time_limit(Duration::from_secs(60)); // a minute for each part
//!             // …
//!         }
//!     });
//!     (work, "It will be there in some minutes.\n")
//! }
//! # let _ = export;
//! ```
//!
//! That restarts a clock that is still running. A continuation whose limit has passed before it started is beyond
//! help: so where readers may be slow, restart the limit in the handler, just before it returns.
//!
//! Event streams and long polls are responses that are meant to last:
//! [`TimeLimitLayer::off`](crate::TimeLimitLayer::off) on their routes; and, where their router ignores aborts,
//! [`IgnoreAbortLayer::off`](crate::IgnoreAbortLayer::off), without which one whose client has left would
//! [go on for ever](crate::ignore_abort#what-has-no-end-of-its-own). An upgraded connection is past its response, and no
//! limit reaches it.
//!
//! # Wall time or busy time
//!
//! Time on the wall is what clients and proxies see, so it is the default. It ends a request whose
//! database hangs.
//!
//! [Busy](crate::TimeLimitLayer::busy) time counts the polls of the request's own code, and no waiting. It is
//! right where work may wait for long but must not compute for long: it ends a runaway loop (if that has an
//! `.await` in it) and leaves a slow upstream alone. It never ends a request that hangs, nor a body whose reader has
//! stalled; with it, something else must bound those. PHP on Unix counts like this. A thread of a blocking
//! continuation is busy for all its time.
//!
//! Neither can end code that never reaches an `.await`. That is reported when it does.
//!
//! # Patience with a slow reader
//!
//! A continuation waits until its response was flushed. A client that reads slowly, or not at all, would hold it up
//! for as long as it likes; after the patience the continuation starts, and the response goes on beside it. Short
//! responses fit the kernel's buffers and are flushed at once, whatever their reader does, so patience is about
//! long ones.
//!
//! **A slow reader spends the time limit as well.** On the wall clock, what the reader takes is missing for the
//! continuation, and when the limit passes the response is broken off and the continuation gets no further than
//! its first `.await`. So let the patience be well below the limit, with room between the two for the
//! continuation; by default it is half as long.
//!
//! The patience counts while the server has bytes that the client has not taken, and is never over while it waits for
//! the body's producer: a stream that trickles is not its reader's fault. That a slow reader makes progress does not
//! prolong it.
//!
//! # The limit of hooks
//!
//! Hooks run after everything, on their own time, the limit having passed or not. Each has the hook limit to itself.
//! They hold up nobody but a drain. Give them what one write to the slowest store takes; what may take longer is a
//! continuation. A hook that blocks its thread is not ended by its limit.
//!
//! # The deadline of a drain
//!
//! It bounds how long a stopping server waits for open requests *and* for continuations, so it should be no
//! shorter than the limit that these have: a drain that cuts breaks promises, if loudly. At the deadline the
//! work that is left is dropped, hooks get twice the hook limit, and then the server returns; what is left of connections
//! is closed after half of that, so that they can [linger](super::connection#when-the-server-stops) for the rest. Whoever
//! runs the process has to allow for all of that: with the defaults 30 + 10 s, after which the process may be killed.
//!
//! ```
//! use std::time::Duration;
//! use tower_epilogue::Epilogue;
//!
//! // A minute between the signal and the kill:
//! let epilogue = Epilogue::builder()
//!     .drain_deadline(Duration::from_secs(45))
//!     .hook_limit(Duration::from_secs(5))
//!     .patience(Duration::from_secs(10))
//!     .build();
//! # let _ = epilogue;
//! ```
//!
//! `None` waits for as long as it takes. Threads of blocking continuations that are stuck are not waited for,
//! and an upgraded HTTP/1 connection is not either. On HTTP/2 what was upgraded (RFC 8441) is a stream of a connection
//! that is waited for: it is closed with that, one hook limit after the deadline, and the report says
//! [how many connections](crate::DrainReport::closed_connections) were.
//!
//! **Event streams** end when somebody ends them, and so a drain waits for them until its deadline, then cuts them, and logs
//! that it did. Have them end when it [begins](crate::Lifecycle::draining); clients of the kind of `EventSource` come again by
//! themselves, to the next server:
//!
//! ```no_run
//! # async fn serve(listener: tokio::net::TcpListener) -> std::io::Result<()> {
//! use std::{convert::Infallible, time::Duration};
//! use axum::{Router, response::sse::{Event, Sse}, routing::get};
//! use futures_util::{Stream, StreamExt, stream};
//! use tower_epilogue::{Epilogue, Lifecycle, TimeLimitLayer};
//!
//! async fn ticks(lifecycle: Lifecycle) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
//!     let ticks = stream::repeat(()).then(|()| async {
//!         tokio::time::sleep(Duration::from_secs(1)).await;
//!         Ok(Event::default().data("tick"))
//!     });
//!     Sse::new(ticks.take_until(lifecycle.draining()))
//! }
//!
//! let app = Router::new().route("/ticks", get(ticks).layer(TimeLimitLayer::off()));
//! println!("{}", Epilogue::new().serve(listener, app).with_signals().await?);
//! # Ok(())
//! # }
//! ```
//!
//! The same for long polls, and for continuations and jobs that have no end of their own. What else in the process is to hear
//! of it awaits [`Epilogue::draining`](crate::Epilogue::draining). A probe that connects anew is refused from then on; one that
//! keeps its connection is told by [`Epilogue::is_draining`](crate::Epilogue::is_draining).
//!
//! **WebSockets** can hear of it in the same way, in the task that they go on in. The server does not wait for that: to have
//! each say that it closes, keep a token of a `TaskTracker` (tokio-util's) with it, and wait for the tracker when `serve` has
//! returned.
//!
//! # How many continuations
//!
//! Nothing bounds them by default, and under a load that lasts what is not bounded grows until memory ends. A bound has
//! two parts. **How many run** is what the slowest thing behind them bears: the connections of a database pool, the
//! requests that a mail server takes at once. **How many wait** is how long the last in the queue may wait: with 100 that
//! run for 100 ms each, a thousand are done in a second, so 1,000 that wait add a second, which has to fit the time limit
//! with room to spare. A queue that is longer than its work can wait only makes promises that the limit breaks.
//!
//! ```
//! use std::time::Duration;
//! use tower_epilogue::{Bound, Epilogue, WhenFull};
//!
//! let epilogue = Epilogue::builder()
//!     .max_running(100)
//!     .max_waiting(1_000)
//!     .retry_after(Duration::from_secs(2))
//!     .admit_always(|request| request.uri.path() == "/health")
//!     // The mail server takes four at a time, and is often slow: nobody else waits for it.
//!     .class("mail", Bound::new(4).max_waiting(500).when_full(WhenFull::Hold(Duration::from_secs(5))))
//!     .max_blocking(16)
//!     .max_detached(1_000)
//!     .build();
//! # let _ = epilogue;
//! ```
//!
//! **As many handlers.** Nobody knows what a handler will return. So under `Refuse` every request, also on a route that never
//! returns a continuation, keeps a place until its handler has returned, and `max_running` and `max_waiting` together bound how
//! many handlers run at once: with 4 and 16, the twenty-first of many slow reports is answered with a 503. Where that is not
//! meant, set no `max_running`: bound the [classes](crate::EpilogueBuilder::class) of the continuations, and put a
//! [`ReserveLayer`](crate::ReserveLayer) on the routes that return them. All other routes are then always admitted.
//!
//! [`Refuse`](crate::WhenFull::Refuse) is for servers with many clients: it costs the least, and says so early, to a
//! client or a balancer that can come again. [`Hold`](crate::WhenFull::Hold) is for few clients of your own that
//! send one request after the other: it slows them down to what can be done.
//! [`Run`](crate::WhenFull::Run) is for finding out what the bound should be, with [`Load`](crate::Load).
//!
//! The number that run is also what the foreground pays. Work that waits for others (a database, a mail server) costs it next
//! to nothing, work that computes takes its processor: a request may wait for a slice of each that runs. So with four that
//! run, each in slices of 100 µs, beside 500 requests a second on two workers, the 99th percentile of those requests is to
//! rise by no more than 400 µs (`cargo bench --bench fairness`; in three runs on a quiet machine with two cores it rose by
//! 322 to 352 µs, to 2.6 to 3.1 times its own 167 to 203 µs, and by 5 ms, to 26 to 31 times that, where the same work went
//! to `tokio::spawn`, all of it at once). Work that computes for longer without an `await` belongs on a thread:
//! [`Continuation::blocking`](crate::Continuation::blocking), with
//! [`max_blocking`](crate::EpilogueBuilder::max_blocking).
//!
//! # Early close: buffer and patience
//!
//! Both concern bodies of unknown length; a known length is declared as it is. With compression they concern what
//! comes of it, and with a [function on buffered bodies](crate::EarlyCloseLayer::map_buffer) all bodies, the plain and
//! then the compressed. The buffer is held once for each
//! response that is being measured, so the limit times the concurrent requests is what it may cost in memory.
//! A body that outgrows it streams on without a declared length, which is no loss but of the length.
//!
//! The patience is how long the head of such a response may be late. A stream whose first bytes matter (progress, a
//! page that renders as it comes) wants zero, which measures only what is there at once.
//!
//! # Connections
//!
//! The limits of [`Tracking`](crate::Tracking) are about clients and not about requests: they end a connection that
//! nobody is at the other end of, which then counts as an abort. They bound what the time limit does not, where none
//! is set or aborts are ignored, and they need no thought unless clients are known to sleep.
//!
//! A connection lingers only if its client may still be sending: on HTTP/2 until it closes. A drain waits for it, so its
//! total should stay well below the drain's deadline.
//!
//! # Behind a proxy
//!
//! A proxy, or a balancer, keeps connections for its next requests, for a time of its own: 60 s in AWS's load balancers, and
//! in nginx where its `upstream` has `keepalive`. Of two ends with a limit on idling the one with the shorter limit closes,
//! and a request that the other one sends in that moment goes nowhere: the client behind the proxy gets a 502, now and then,
//! from a server that is well. So let the `header_read_timeout` be longer than what the proxy keeps:
//!
//! ```
//! # #[cfg(feature = "serve")] {
//! use std::time::Duration;
//! use tower_epilogue::Epilogue;
//!
//! let epilogue = Epilogue::builder().header_read_timeout(Duration::from_secs(75)).build();
//! # let _ = epilogue;
//! # }
//! ```
