//! How to choose timeouts, bounds and buffers.
//!
//! | setting | default | bounds |
//! |---|---|---|
//! | [`TimeLimitLayer`](crate::TimeLimitLayer) | 60 s; without the layer, no limit | a request, from its arrival to the end of its continuations |
//! | [`patience`](crate::EpilogueBuilder::patience) | 30 s | how long a continuation waits for a slow reader |
//! | [`hook_limit`](crate::EpilogueBuilder::hook_limit) | 5 s | each hook |
//! | [`drain_deadline`](crate::EpilogueBuilder::drain_deadline) | 30 s | how long a stopping server waits before it cuts |
//! | [`max_running`](crate::EpilogueBuilder::max_running), [`Bound`](crate::Bound) of a class | none | continuations that run at once |
//! | [`max_waiting`](crate::EpilogueBuilder::max_waiting) | 1,024 | continuations that wait for a place |
//! | [`max_blocking`](crate::EpilogueBuilder::max_blocking) | 500 in a process | threads of blocking continuations |
//! | [`max_detached`](crate::EpilogueBuilder::max_detached) | none | handlers and bodies that outlive their response |
//! | [`EarlyCloseLayer::buffer_limit`](crate::EarlyCloseLayer::buffer_limit) | 1 MiB | what is held in memory to measure, compress or change a body |
//! | [`EarlyCloseLayer::patience`](crate::EarlyCloseLayer::patience) | 1 s | how long a response head waits while its body is measured |
//! | [`Tracking::write_stall`](crate::Tracking::write_stall) | 60 s; on Linux and Android `unacknowledged`, if that is shorter | a connection whose client accepts no bytes |
//! | [`Tracking::keep_alive`](crate::Tracking::keep_alive), [`unacknowledged`](crate::Tracking::unacknowledged) | 30 s each | a connection whose client is silent |
//! | `EpilogueBuilder::header_read_timeout` (feature `serve`) | 30 s | the wait for a request's head, and so, on HTTP/1, an idle keep-alive connection |
//! | `EpilogueBuilder::http2_keep_alive` (feature `serve`) | a ping each 30 s, 20 s to answer | an HTTP/2 connection whose client is silent |
//! | `EpilogueBuilder::http2_max_streams` (feature `serve`) | 200 | streams that one HTTP/2 client has open at once |
//! | [`Linger`](crate::Linger) | 64 MiB, 2 s idle, 10 s in all, 1,000 connections | a closing connection whose client is still sending |
//!
//! # The time limit
//!
//! It is the one request timeout that covers everything: the upload, the middleware, the handler, the body, a slow
//! reader of that body, and the continuations. There is none unless you set it: a router without the layer has no
//! limit, even under `Epilogue::serve`. Choose it for the work that a client waits for, with the slowest client you
//! want to serve, and give routes that are known to take longer a layer of their own.
//!
//! A continuation that needs longer should say so itself, rather than have the limit raised for everyone. It can lift
//! or restart the limit from inside, through a `Lifecycle` that it was given:
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
//! This restarts a clock that is still running. It comes too late for a continuation whose limit passed before it
//! started: where readers may be slow, restart the limit in the handler, just before it returns.
//!
//! Limits are exact to a millisecond or two, and cost little: those of all requests of a runtime have one timer of tokio's
//! between them.
//!
//! Event streams and long polls are responses that are meant to last: put
//! [`TimeLimitLayer::off`](crate::TimeLimitLayer::off) on their routes. If their router ignores aborts, also put
//! [`IgnoreAbortLayer::off`](crate::IgnoreAbortLayer::off) there: otherwise a stream whose client has left
//! [goes on for ever](crate::ignore_abort#what-has-no-end-of-its-own). An upgraded connection (a WebSocket) is past its response, and no
//! limit applies to it.
//!
//! # Wall time or busy time
//!
//! Wall-clock time is what clients and proxies see, so it is the default. It ends a request whose database hangs.
//!
//! [Busy](crate::TimeLimitLayer::busy) time counts only the polls of the request's own code, and no waiting. It is
//! right for work that may wait for long but must not compute for long: it ends a runaway loop (if the loop contains
//! an `.await`) and leaves a slow upstream alone. It never ends a request that hangs, nor a body whose reader has
//! stalled; something else must bound those. PHP on Unix counts like this. The thread of a blocking continuation
//! counts as busy the whole time.
//!
//! Neither kind can end code that never reaches an `.await`. Such code is reported once it does.
//!
//! # Patience with a slow reader
//!
//! A continuation waits until its response was flushed. A client that reads slowly, or not at all, could delay it
//! indefinitely; when the patience is over, the continuation starts, and the response goes on beside it. Short
//! responses fit into the kernel's buffers and are flushed at once, whatever their reader does, so patience matters
//! for long ones only.
//!
//! **A slow reader also uses up the time limit.** On the wall clock, time spent on the reader is no longer there for
//! the continuation, and when the limit passes the response is broken off and the continuation gets no further than
//! its first `.await`. So keep the patience well below the limit, with enough time between the two for the
//! continuation; by default it is half of the limit.
//!
//! The patience counts while the server has bytes that the client has not accepted, and stops, to begin anew, while
//! the server waits for the body's producer: a stream that trickles is not its reader's fault. A slow reader that
//! makes progress does not prolong it.
//!
//! # The limit of hooks
//!
//! Hooks run after everything else, on their own time, whether or not the time limit has passed. Each has the hook
//! limit to itself. They delay nothing except a drain. Allow what one write to your slowest store takes; anything
//! longer should be a continuation. A hook that blocks its thread is not ended by its limit.
//!
//! # The deadline of a drain
//!
//! It bounds how long a server that shuts down waits for open requests *and* for continuations, so it should be no
//! shorter than their time limit: a drain that cuts breaks promises, if loudly. At the deadline the remaining work is
//! dropped, hooks get twice the hook limit, and then the server returns; half-way through, the remaining connections
//! are closed, and they can [linger](super::connection#when-the-server-stops) for the rest. Your process manager's
//! grace period has to cover all of that: with the defaults, 30 + 10 s before the process is killed. (Kubernetes'
//! `terminationGracePeriodSeconds` is 30 s by default, `docker stop` waits 10 s.)
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
//! `None` waits without end. Threads of blocking continuations that are stuck are not waited for, nor are upgraded
//! HTTP/1 connections. On HTTP/2 an upgrade (RFC 8441) is a stream of a connection that is waited for: it is closed
//! with that connection, one hook limit after the deadline, and the report says [how many
//! connections](crate::DrainReport::closed_connections) were closed.
//!
//! **Event streams** last until somebody ends them, so a drain waits for them until its deadline, then cuts them and
//! logs that it did. Have them end when the drain [begins](crate::Lifecycle::draining); clients such as `EventSource`
//! reconnect by themselves, to the next server:
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
//! The same goes for long polls, and for continuations and jobs that have no end of their own. Other parts of the
//! process can await [`Epilogue::draining`](crate::Epilogue::draining). A readiness probe that opens a new connection
//! is refused from then on; one that keeps its connection is answered from
//! [`Epilogue::is_draining`](crate::Epilogue::is_draining).
//!
//! **WebSockets** can await it in the same way, in the task that handles the socket. The server does not wait for
//! that task: to let each socket send its close frame, give it a token of a `TaskTracker` (tokio-util's), and wait
//! for the tracker when `serve` has returned.
//!
//! # How many continuations
//!
//! Nothing bounds them by default, and under sustained load, anything unbounded grows until memory runs out. A bound
//! has two parts. **How many run** is what the slowest thing behind them can bear: the connections of a database
//! pool, the requests that a mail server accepts at once. **How many wait** is how long the last in the queue may
//! wait: with 100 that run for 100 ms each, a thousand are done in a second, so 1,000 that wait add a second, which
//! has to fit into the time limit with room to spare. A queue longer than its work can wait only makes promises that
//! the limit breaks.
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
//! **It also bounds handlers.** Nobody knows in advance what a handler will return. So under `Refuse` every request,
//! even on a route that never returns a continuation, keeps a place until its handler has returned, and `max_running`
//! and `max_waiting` together bound how many handlers run at once: with 4 and 16, the twenty-first of many slow
//! reports is answered with a 503. If you do not want that, set no `max_running`: bound the
//! [classes](crate::EpilogueBuilder::class) of the continuations, and put a
//! [`ReserveLayer`](crate::ReserveLayer) on the routes that return them. All other routes are then always admitted.
//!
//! [`Refuse`](crate::WhenFull::Refuse) is for servers with many clients: it costs the least, and answers early, so
//! that a client or a load balancer can retry. [`Hold`](crate::WhenFull::Hold) is for a few clients of your own that
//! send one request after the other: it slows them down to what can be done. [`Run`](crate::WhenFull::Run) is for
//! finding out what the bound should be, with [`Load`](crate::Load).
//!
//! The number that run is also what the foreground pays. Work that waits for others (a database, a mail server) costs
//! it next to nothing. Work that computes takes processor time: a request may wait for one slice of each continuation
//! that runs. With four running in slices of 100 µs, beside 500 requests a second on two workers, the 99th percentile
//! of those requests should rise by no more than 400 µs (`cargo bench --bench fairness`; in three runs on a quiet
//! machine with two cores it rose by 322 to 352 µs, to 2.6 to 3.1 times its own 167 to 203 µs, and by 5 ms, to 26 to
//! 31 times that, when the same work was passed to `tokio::spawn`, all of it at once). Work that computes for longer
//! without an `await` belongs on a thread: [`Continuation::blocking`](crate::Continuation::blocking), with
//! [`max_blocking`](crate::EpilogueBuilder::max_blocking).
//!
//! # Early close: buffer and patience
//!
//! Both concern bodies of unknown length; a known length is declared as it is. With compression they concern the
//! compressed output, and with a [function on buffered bodies](crate::EarlyCloseLayer::map_buffer) all bodies, first
//! plain and then compressed. Each response being measured holds one buffer, so they can cost the limit times the
//! number of concurrent requests in memory. A body that outgrows the buffer streams on without a declared length;
//! nothing else is lost.
//!
//! The patience is how long the head of such a response may be delayed. A stream whose first bytes matter (progress,
//! a page that renders as it arrives) wants zero, which measures only what is there at once.
//!
//! # Connections
//!
//! The limits of [`Tracking`](crate::Tracking) are about clients, not about requests: they end a connection whose
//! peer is gone, which then counts as an abort. They still apply where there is no time limit or aborts are ignored,
//! and they need no attention unless your clients are known to go to sleep.
//!
//! A connection lingers only if its client may still be sending: on HTTP/2 until the client closes. A drain waits for
//! it, so the total should stay well below the drain's deadline.
//!
//! # Behind a proxy
//!
//! A proxy or load balancer keeps idle connections for its next requests, for a time of its own: 60 s in AWS's load
//! balancers, and in nginx where its `upstream` has `keepalive`. Of the two ends the one with the shorter idle
//! timeout closes, and a request that the other one sends at that moment is lost: the client behind the proxy gets a
//! 502, now and then, from a healthy server. So let the `header_read_timeout` be longer than the proxy's idle
//! timeout:
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
