//! What can be seen of requests from outside: events, spans, the log, metrics, and what takes long.
//!
//! # Events
//!
//! [`EpilogueBuilder::on_event`](crate::EpilogueBuilder::on_event) has a function called with every phase change of every
//! request, from [`Arrived`](crate::EventKind::Arrived) to [`Ended`](crate::EventKind::Ended), in a task of its own. What
//! follows is made from the same events, or beside them. Without a listener no event is made. Attempts at durable jobs have
//! events as requests do, under the method `JOB`; which a client can send as well, if it likes.
//!
//! # The matched route
//!
//! It is axum's router that knows which route matched, and it tells what is inside of it: one of this crate's layers, on
//! the router or on a route, or the [`Lifecycle`](crate::Lifecycle) extractor of a handler. Until one of them has seen the
//! request, and where none does, logs and events name the path, and metrics say `unmatched`. To have every route of an app
//! named, put any layer of this crate around its router: `.layer(TimeLimitLayer::off())` does nothing else.
//!
//! # Spans
//!
//! This crate makes no span for a request: that is for tower-http's `TraceLayer`, or for a middleware of yours.
//!
//! **Hooks** run inside of the span that was current where they were registered, so in a handler's the request's. It stays
//! open until its last hook has run. Where a request has hooks *and* long continuations, and its span is to be as long as
//! its latency, register the hook outside of it: a [`ShutdownHookLayer`](crate::ShutdownHookLayer) outside of the
//! `TraceLayer`.
//!
//! **A continuation** runs in a span of its own, named `continuation`, target `tower_epilogue`, level info. It is a root, and
//! *follows from* the span that was current where [`Continuation::new`](crate::Continuation::new) was called. As a child of
//! the request's it would keep that open, and a request answered in 5 ms would show as one of the minutes that its mail took.
//! So the request's span closes when its response has left and the continuation's begins; of several continuations in one
//! response, those behind the first have theirs from the same moment, and wait in it for their turn. OpenTelemetry shows two
//! traces and a link from the second to the first: see the example `opentelemetry`. The rest of a handler after its
//! [`finish`](crate::Lifecycle::finish) is such a continuation too, and so is that of a producer after
//! [`Output::finish`](crate::Output::finish); a handler that goes on because aborts are ignored is
//! still the request's.
//!
//! | field | |
//! |---|---|
//! | `route` | the method and the matched route, or the path |
//! | `class` | the continuation's [class](crate::Continuation::class), if it has one |
//! | `request` | its [`RequestId`](crate::RequestId): give the request's span the same, to find one from the other in a log |
//! | `outcome` | at the end: `ended`, also after an error or a panic, which are logged inside of it; or `dropped` |
//!
//! A span of your own inside of the work, as of an `#[instrument]`ed function, is a child of it. One that you made *in the
//! handler* and put around the work is a child of the request's, and keeps that open: give it to
//! [`Continuation::in_span`](crate::Continuation::in_span), made with `parent: None`, and it is used in the place of ours. To
//! have the request's own span current in a continuation, with what that does to its length, give it
//! `Span::current()`.
//!
//! **An attempt at a durable job** runs in a span named `durable_job`, with its kind, number and attempt, inside of the
//! engine's own `river_job`, which is a root. In its field `from` it has the route that stored it; nothing for a job that
//! was stored in a transaction of yours, or outside of any response: put into the job what is to be known of its request.
//!
//! Where no subscriber wants spans of `tower_epilogue` at info, there is none, and nothing of it is computed; the work does
//! not run in the request's instead.
//!
//! # The log
//!
//! | level | what |
//! |---|---|
//! | error | a promise that was not kept or user code that broke: panics, failed and lost continuations, a drain that had to cut what is not stored. Each is for somebody to look at |
//! | warn | what was ended from outside and is so accounted for: limits that passed, bodies that failed, work that takes long, requests that are refused (at once, and then once a second, with their number), misuse that was put right, durable jobs that wait for their database where nobody can be told |
//! | info | the spans of continuations; rare turns that are nobody's fault: a slow reader that is no longer waited for, the progress of a drain, durable jobs that are stored after such a wait |
//! | debug | each refused request, connections that fall silent |
//! | trace | errors of single sockets |
//!
//! Requests that go well are not logged at all, at any level: that is for a `TraceLayer`, or for a function on events.
//!
//! Records name their request in the field `route`, what an error says in `error`, and what a panic said in `panic`.
//!
//! # Metrics
//!
//! With the feature `metrics`, `EpilogueBuilder::metrics` has the recorder that is installed for the
//! [`metrics`](https://docs.rs/metrics) facade told of all requests of that `Epilogue`. Times are in seconds.
//!
//! | name | kind | labels | |
//! |---|---|---|---|
//! | `tower_epilogue_requests_total` | counter | method, route | requests that ended, with all of their work; also those that were refused |
//! | `tower_epilogue_refused_total` | counter | method, route, class | answered with a 503, for want of a place |
//! | `tower_epilogue_aborted_total` | counter | method, route | whose client left before the response was flushed |
//! | `tower_epilogue_timed_out_total` | counter | method, route | that their limit or a drain's deadline ended; counted at their end |
//! | `tower_epilogue_panicked_total` | counter | method, route, what | panics, of what [`EventKind::Panicked`](crate::EventKind::Panicked) names |
//! | `tower_epilogue_continuations_total` | counter | method, route, class, outcome | continuations that ended: `ended`, `failed`, `panicked` or `dropped` |
//! | `tower_epilogue_bodies_failed_total` | counter | method, route | bodies that gave an error: it breaks their response off, or has a 500 take its place |
//! | `tower_epilogue_hooks_dropped_total` | counter | method, route | hooks that ran out of their [own time](crate::EpilogueBuilder::hook_limit) |
//! | `tower_epilogue_active_requests` | gauge | | requests that have arrived and not ended |
//! | `tower_epilogue_running_continuations` | gauge | method, route, class | continuations that run, or wait for their thread |
//! | `tower_epilogue_waiting_continuations` | gauge | method, route, class | continuations that wait for a place |
//! | `tower_epilogue_arrival_to_flush_seconds` | histogram | method, route | from the arrival until the response was flushed |
//! | `tower_epilogue_flush_seconds` | histogram | method, route | from the response's hand-over to the server until it was flushed |
//! | `tower_epilogue_continuation_seconds` | histogram | method, route, class | from a continuation's start to its end |
//!
//! No client can make a label of its own: `route` is the matched route or `unmatched`, `method` one of the usual or `_OTHER`,
//! which is also what a client has that sends `JOB`.
//! Requests that are refused before they are routed are `unmatched`. `class` is `none` for continuations without one. For
//! durable jobs the method is `JOB` and the route the kind of job, `/charge` for example; a response that carries jobs has one
//! continuation more, of no class, that starts them. What a handler does after its `finish` is none of these continuations:
//! its request is an active one meanwhile. Without the feature `serve` every route is `unmatched`.
//!
//! All of it is made from events, in the task that delivers them: so requests do not pay for the recorder, and figures are
//! behind by as long as the events are. For as long as a request has not ended, some of it is kept to reckon with, about
//! 200 bytes. One that went down with its runtime leaves the gauges, and is counted by
//! [`Epilogue::lost`](crate::Epilogue::lost) alone. A recorder's panic is logged, and costs what is left of the event that it
//! was told of.
//!
//! Prometheus needs buckets to sum histograms over several servers: set them, as the exporter has summaries by default.
//!
//! # What takes long
//!
//! [`slow_after`](crate::EpilogueBuilder::slow_after) names each request whose handler or continuation takes longer, once,
//! while it still does. [`slow_poll`](crate::EpilogueBuilder::slow_poll) names polls that hold up their thread.
//!
//! With the feature `backtrace`, the first also tells *where* it waits, as far as the futures on the way are marked with
//! `#[async_backtrace::framed]`:
//!
//! ```text
//! WARN a request takes long route="GET /report" age=5.2s phase="continuing" frames=
//!    └╼ shop::report::{{closure}} at src/report.rs:40:1
//!       └╼ shop::mailer::send::{{closure}} at src/mailer.rs:12:1
//! ```
//!
//! The frames are this request's alone: its work is polled inside of a frame of its own, by which its tree is found. Work
//! that is being polled at that moment shows as `[POLLING]`, so what blocks its thread is not named further. Blocking
//! continuations, bodies and hooks have no frames. Where nothing is marked, route, class, age and phase are all that is told.
//! It costs a lock and a look at a thread-local for each poll, and only where `slow_after` is set.
//!
//! Mark handlers, continuations, and what they call. `async-backtrace` keeps pointers from inner frames to outer ones, and
//! takes for granted that what is outside lives longer. So do **not** mark a middleware that stands outside of a handler
//! which may go on without its client (`IgnoreAbortLayer`, `finish`), and do not hand a marked future that was polled in a
//! handler to a task of its own: spawn it before it is polled.
