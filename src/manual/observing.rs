//! What can be observed of requests: events, tracing spans, logs, metrics, and slow requests.
//!
//! # Events
//!
//! A function given to [`EpilogueBuilder::on_event`](crate::EpilogueBuilder::on_event) is called with every phase
//! change of every request, from [`Arrived`](crate::EventKind::Arrived) to [`Ended`](crate::EventKind::Ended), in a
//! task of its own. Metrics and the status page are made from the same events. Without a listener no event is
//! created. Attempts at durable jobs have events as requests do, under the method `JOB` (which a client may also
//! send).
//!
//! # The matched route
//!
//! Only axum's router knows which route matched, and it tells only what is inside it: one of this crate's layers, on
//! the router or on a route, or the [`Lifecycle`](crate::Lifecycle) extractor of a handler. Until one of them has
//! seen the request, and where there is none, logs and events name the path, and metrics say `unmatched`. To have
//! every route of an app named, put any layer of this crate on its router; `.layer(TimeLimitLayer::off())` does
//! nothing else.
//!
//! # Spans
//!
//! This crate creates no span for a request: that is for tower-http's `TraceLayer`, or a middleware of yours.
//!
//! **Hooks** run inside the span that was current where they were registered: in a handler, the request's span, which
//! stays open until its last hook has run. If a request has hooks *and* long continuations, and its span should be no
//! longer than its latency, register the hook outside the span: with a
//! [`ShutdownHookLayer`](crate::ShutdownHookLayer) outside the `TraceLayer`.
//!
//! **A continuation** runs in a span of its own, named `continuation`, target `tower_epilogue`, level info. It is a
//! root span, and *follows from* the span that was current where [`Continuation::new`](crate::Continuation::new) was
//! called. As a child of the request's span it would keep that open, and a request answered in 5 ms would appear to
//! take as long as its mail. So the request's span closes when its response has left, and the continuation's begins.
//! If one response has several continuations, the spans of the later ones begin at the same moment, and include the
//! wait for their turn. OpenTelemetry shows two traces and a link from the second to the first: see the example
//! `opentelemetry`. The rest of a handler after its [`finish`](crate::Lifecycle::finish) is such a continuation too,
//! and so is that of a producer after [`Output::finish`](crate::Output::finish); a handler that goes on because
//! aborts are ignored stays in the request's span.
//!
//! | field | |
//! |---|---|
//! | `route` | the method and the matched route, or the path |
//! | `class` | the continuation's [class](crate::Continuation::class), if it has one |
//! | `request` | its [`RequestId`](crate::RequestId): record it in the request's span too, to find one from the other in a log |
//! | `outcome` | at the end: `ended`, also after an error or a panic, which are logged inside the span; or `dropped` |
//!
//! A span that you create inside the work, as by `#[instrument]`, is a child of the continuation's span. One that you
//! create *in the handler* and put around the work is a child of the request's span, and keeps that open: instead,
//! create it with `parent: None` and pass it to [`Continuation::in_span`](crate::Continuation::in_span), which uses
//! it in place of ours. To keep the request's own span current in a continuation, and so open for as long, pass
//! `Span::current()`.
//!
//! **An attempt at a durable job** runs in a span named `durable_job`, with its kind, number and attempt, inside the
//! engine's own `river_job`, which is a root span. Its field `from` holds the route that stored it, or nothing for a
//! job that was stored in a transaction of yours, or outside any response: put whatever should be known of its
//! request into the job.
//!
//! If no subscriber enables spans of `tower_epilogue` at level info, there is no span, and nothing is computed for
//! it; the work does not run in the request's span instead.
//!
//! # Logs
//!
//! | level | what |
//! |---|---|
//! | error | a broken promise or broken user code: panics, failed and lost continuations, a drain that had to cut work that is not stored. Somebody should look at each |
//! | warn | what was ended from outside, and is accounted for: limits that passed, bodies that failed, slow work, refused requests (at once, and then once a second, with their number), misuse that was corrected, durable jobs that wait for their database and whose client can no longer be told |
//! | info | the spans of continuations; rare events that are nobody's fault: a slow reader that is no longer waited for, the progress of a drain, durable jobs that are stored after such a wait |
//! | debug | each refused request; clients that send no request in time; retries inside the durable store |
//! | trace | errors of single connections and sockets |
//!
//! Requests that go well are not logged at all, at any level: that is for a `TraceLayer`, or for an event function.
//!
//! Log records name their request in the field `route`, an error in `error`, and the message of a panic in `panic`.
//!
//! # Metrics
//!
//! With the feature `metrics`, `EpilogueBuilder::metrics` reports all requests of that `Epilogue` to the recorder
//! that is installed for the [`metrics`](https://docs.rs/metrics) facade, for Prometheus for example. Times are in
//! seconds.
//!
//! | name | kind | labels | |
//! |---|---|---|---|
//! | `tower_epilogue_requests_total` | counter | method, route | requests that ended, with all of their work; refused requests included |
//! | `tower_epilogue_refused_total` | counter | method, route, class | requests answered with a 503, because there was no place for their work |
//! | `tower_epilogue_aborted_total` | counter | method, route | requests whose client left before the response was flushed |
//! | `tower_epilogue_timed_out_total` | counter | method, route | requests that their limit or a drain's deadline ended; counted at their end |
//! | `tower_epilogue_panicked_total` | counter | method, route, what | panics; `what` is as in [`EventKind::Panicked`](crate::EventKind::Panicked) |
//! | `tower_epilogue_continuations_total` | counter | method, route, class, outcome | continuations that ended: `ended`, `failed`, `panicked` or `dropped` |
//! | `tower_epilogue_bodies_failed_total` | counter | method, route | response bodies that returned an error: the response is broken off, or replaced by a 500 |
//! | `tower_epilogue_hooks_dropped_total` | counter | method, route | hooks that exceeded the [hook limit](crate::EpilogueBuilder::hook_limit) |
//! | `tower_epilogue_active_requests` | gauge | | requests that have arrived and not ended |
//! | `tower_epilogue_running_continuations` | gauge | method, route, class | continuations that run, or wait for their thread |
//! | `tower_epilogue_waiting_continuations` | gauge | method, route, class | continuations that wait for a place |
//! | `tower_epilogue_arrival_to_flush_seconds` | histogram | method, route | from the arrival until the response was flushed |
//! | `tower_epilogue_flush_seconds` | histogram | method, route | from the moment the response is handed to the server until it was flushed |
//! | `tower_epilogue_continuation_seconds` | histogram | method, route, class | from a continuation's start to its end |
//!
//! No client can create a label value: `route` is the matched route or `unmatched`; `method` is one of the usual
//! methods or `_OTHER`, which also stands for a `JOB` sent by a client. Requests that are refused before they are
//! routed are `unmatched`. `class` is `none` for continuations without one. For durable jobs the method is `JOB` and
//! the route is the kind of job, `/charge` for example; a response that carries jobs has one additional continuation,
//! without a class, that starts them. What a handler does after its `finish` is not counted among these
//! continuations: its request stays an active one meanwhile. Without the feature `serve` every route is `unmatched`.
//!
//! All of this is made from events, in the task that delivers them: requests do not pay for the recorder, and the
//! figures lag as far behind as the events do. While a request is unfinished, about 200 bytes are kept for it. A
//! request that went down with its runtime leaves the gauges, and is counted only by
//! [`Epilogue::lost`](crate::Epilogue::lost). A panic in the recorder is logged, and loses the rest of the event that it was
//! given.
//!
//! With Prometheus, histograms need buckets to be summed over several servers: set them, because the exporter renders
//! summaries by default.
//!
//! # What takes long
//!
//! [`slow_after`](crate::EpilogueBuilder::slow_after) logs each request whose handler or continuation takes longer, once,
//! while it is still running. [`slow_poll`](crate::EpilogueBuilder::slow_poll) logs polls that block their thread.
//!
//! With the feature `backtrace`, the first also says *where* the request is waiting, as far as the futures on the way
//! are marked with `#[async_backtrace::framed]`:
//!
//! ```text
//! WARN a request takes long route="GET /report" age=5.2s phase="continuing" frames=
//!    └╼ shop::report::{{closure}} at src/report.rs:40:1
//!       └╼ shop::mailer::send::{{closure}} at src/mailer.rs:12:1
//! ```
//!
//! The frames are this request's alone: its work is polled inside a frame of its own, by which its tree is found.
//! Work that is being polled at that moment shows as `[POLLING]`, so the place that blocks its thread is not shown.
//! Blocking continuations, bodies and hooks have no frames. Where nothing is marked, only route, class, age and phase
//! are logged. It costs a lock and a thread-local access per poll, and only where `slow_after` is set.
//!
//! Mark handlers, continuations, and what they call. `async-backtrace` keeps pointers from inner frames to outer
//! ones, and assumes that the outer ones live longer. So do **not** mark a middleware that is outside a handler which
//! may go on without its client (`IgnoreAbortLayer`, `finish`), and do not move a marked future that was polled in a
//! handler to a task of its own: spawn it before it is first polled.
