//! The thirteen rules, the part of the crate that keeps each of them, and the cases they leave open.
//!
//! Comments and tests in this crate cite these numbers. Limits of a rule are stated with it.
//!
//! # 1. A returned continuation runs exactly once
//!
//! It runs whatever becomes of its response: flushed; not flushed because the client left; replaced by a middleware;
//! or dropped before any layer saw it. It starts when the response was flushed, when it is known that it never will
//! be, or when the [patience](crate::EpilogueBuilder::patience) with a slow reader (30 s by default) is over.
//!
//! Only the time limit, a drain's deadline, or the end of the runtime can stop it half-way. Each is logged with the
//! route, and a drain's report names what it cut. A continuation that was *not* put into a response was promised to
//! nobody: when it is dropped it does not run, and a warning is logged.
//!
//! Kept by `continuation` (the slot in the response, which is emptied once) and `lifecycle::ending` (the one task
//! that runs it).
//!
//! # 2. Hooks run exactly once, in the order of their registration
//!
//! They run when the handler, the body's producer and the continuations have all ended, however they ended, and the
//! response was flushed, aborted, broken off or given up on. A hook registered by another hook runs after those
//! already waiting. A hook that panics is logged, and the rest run. A hook that returns
//! [`ControlFlow::Break`](std::ops::ControlFlow::Break) skips the rest. Each hook has the [hook
//! limit](crate::EpilogueBuilder::hook_limit) to itself.
//!
//! Registering a hook after the last one has run returns an [error](crate::LifecycleError::is_too_late). A registered
//! hook is never forgotten, unless the runtime ends before the request does; that is logged.
//!
//! Kept by `lifecycle::ending`, which takes the next hook and ends the request under one lock.
//!
//! # 3. The status is a set of two bits
//!
//! [`ABORTED`](crate::ConnectionStatus::ABORTED): the client left before its response was flushed.
//! [`TIMEOUT`](crate::ConnectionStatus::TIMEOUT): the time limit, or a drain's deadline, ended the work. Bits are added and never
//! removed, so an abort and a timeout give 3 in either order. A client that leaves after its whole response was
//! flushed has not aborted.
//!
//! On a tracked connection the first bit comes from the connection alone: an outer middleware that drops the handler,
//! or a server that stops, never reads as a client abort. Without a tracked connection, every dropped response reads
//! as a client abort.
//!
//! Kept by `lifecycle::transitions` on the one word of `lifecycle::word`.
//!
//! # 4. An abort that is not ignored ends the work
//!
//! When the client disconnects, the handler's future, or the body's producer, is dropped as soon as the connection
//! knows, even behind an unread upload or a pipelined request. Then the hooks run.
//!
//! Kept by `connection` (who left) and `lifecycle::held`, `lifecycle::producer` (what is dropped).
//!
//! # 5. An abort that is ignored does not
//!
//! Handler and producer run to their end, and their output is discarded. Meanwhile the abort can be
//! [read](crate::Lifecycle::is_aborted) and [awaited](crate::Lifecycle::aborted). A [shield](crate::Lifecycle::shield) ignores
//! aborts while it lives; shields nest, and when the last one is dropped after an abort, the work ends at its next
//! `.await`.
//!
//! A FIN counts as an abort at once, unless the connection [serves](crate::HalfClose::Serve) half-closed clients.
//! While aborts are ignored, writing continues: a half-closed client still gets its response, which then counts as
//! flushed, with the bit set.
//!
//! Kept by `connection::io` (which hides the end of input from the server) and `lifecycle::held` (which moves a
//! handler that was dropped all the same to a task of its own).
//!
//! # 6. One clock
//!
//! It runs from the arrival of the request to the end of its continuations. Setting the limit in the handler restarts
//! it: a limit of 20 s that is set after 25 s allows 45 s in all. Zero lifts it. It counts wall-clock time, or
//! [busy](crate::ClockKind::Busy) time. Work is dropped at its next `.await`; a poll that ran more than 10 ms past
//! the limit is reported with its route once it returns. If the response head has not been sent, the client gets a
//! 503, or the response that the handler returns in its last poll, if its length is known; if the body is on its way,
//! the response is broken off, so that it never looks complete.
//!
//! Blocking work cannot be dropped: at the limit its request goes on without it, and its thread is counted
//! ([`Epilogue::stuck`](crate::Epilogue::stuck)) and named in the log until it returns.
//!
//! Kept by `lifecycle::clock`, `lifecycle::deadlines` (which wakes the request) and `pool::blocking` (for the threads).
//!
//! # 7. `finish` lets the response go, and the handler on
//!
//! [`finish`](crate::Lifecycle::finish) resolves with what became of the response. From then on the handler is its own continuation:
//! no abort ends it, only the clock does. The response body given to `finish` is still ended by an abort (rule 4). A
//! second `finish` returns an error. Nothing the handler does afterwards can write to this client or to another.
//!
//! The response passes through the middleware outside the innermost service of this crate. See
//! [ordering](super::ordering#finish-and-the-innermost-layer) for where that is.
//!
//! Kept by `lifecycle::held`, and `lifecycle::alone` for the rest of the handler.
//!
//! # 8. The early close
//!
//! A body is buffered up to a limit, and its exact length declared. On HTTP/1 the connection closes after the flush
//! (RFC 9112, section 9.6); HTTP/2 forbids a `Connection` header (RFC 9113, section 8.2.2) and gets none. A HEAD
//! request gets the headers of the corresponding GET. Event streams, gRPC, upgrades, 204 and 304 pass through
//! untouched; bodies past the size limit or the patience pass through as streams. A tracked connection that closes
//! while its client is still sending lingers, so that the client can read its response. No request that the client
//! has pipelined behind it (RFC 9112, section 9.3.2) is started, so it is safe to send those again.
//!
//! A 1xx is not a final response (RFC 9110, section 15.2), except for the 101 of an upgrade on HTTP/1: under this
//! crate's own service a handler that returns one has a 500 sent instead, and that is logged.
//!
//! With the feature `compression` the early close compresses and declares the length of the result; an early close
//! outside other compression does the latter too. See [early_close](crate::early_close#compression).
//!
//! Kept by `early_close`, and `connection::linger` for the close.
//!
//! # 9. Bounds
//!
//! [`max_running`](crate::EpilogueBuilder::max_running) continuations run at once, and
//! [`max_waiting`](crate::EpilogueBuilder::max_waiting) wait, first come, first served. Beyond that
//! [`when_full`](crate::EpilogueBuilder::when_full) decides: new requests are refused with a 503 before their handler
//! runs, or their responses are held back, or everything runs and is only counted. A
//! [class](crate::EpilogueBuilder::class) of continuations has a bound of its own; so have
//! [blocking](crate::EpilogueBuilder::max_blocking) continuations, and handlers and bodies that
//! [outlive](crate::EpilogueBuilder::max_detached) their response. Without a bound any number runs, except that at most 500 blocking
//! ones run at once in a process.
//!
//! A bound never breaks a promise: what was returned runs. Continuations for which there is no room wait
//! nevertheless, and are counted ([`Load::over`](crate::Load::over)) and logged.
//!
//! Kept by `pool::bounds`, `lifecycle::admission` and `lifecycle::places`.
//!
//! # 10. The drain
//!
//! `Epilogue::serve` with a graceful shutdown returns when the last connection, continuation and hook has ended, or
//! at the [deadline](crate::EpilogueBuilder::drain_deadline) (30 s by default). Whatever is left then is cut with
//! status TIMEOUT, and its hooks still run. The report names each request that was cut, with route, class, age and
//! phase, and counts the connections that had to be closed after all their requests had ended. A second signal
//! ([`Serve::with_signals`](crate::Serve::with_signals), [`Epilogue::cut`](crate::Epilogue::cut)) cuts at once. While
//! draining, the log says every second how much is left.
//!
//! `axum::serve` and your own accept loops do not wait for continuations: stop them, and then call
//! [`Epilogue::drain`](crate::Epilogue::drain).
//!
//! Kept by `epilogue::drain`.
//!
//! # 11. A panic costs one request
//!
//! None of your code runs inside a destructor, a flush or a lock of this crate, and a panic in a handler, body,
//! continuation, hook or event function is caught and logged; hooks are told of the request's own
//! ([`End::panic`](crate::End::panic)). The one exception is the destructor of work that is dropped, which has to run
//! there: a panic in it is caught as well.
//!
//! In a process built with `panic = "abort"` no panic is caught, and none of this holds.
//!
//! Kept by `pool::caught`.
//!
//! # 12. The layers compose
//!
//! Any of them, in any order, on routers and on routes, beside other middleware: [ordering](super::ordering) says
//! what each order means.
//!
//! Kept by `lifecycle::service`: the layers only note their settings on a record that they share.
//!
//! # 13. Nothing is silent
//!
//! Whatever is dropped, cut or given up on is logged with its route, and reported to the [event
//! function](crate::EpilogueBuilder::on_event). [`Epilogue`](crate::Epilogue) counts what runs, what is stuck, what
//! was refused, what panicked and what was lost. Refused requests are logged individually at level debug, and once a
//! second, with their number, at level warn: logging must not make an overload worse.
//!
//! Kept by `event` and `pool`.
//!
//! # What the rules leave open
//!
//! **Several continuations in one response** run one after the other, in the order in which they were added. They
//! share one clock.
//!
//! **A response that is dropped before any layer saw it**, by a middleware or by the handler itself, keeps its
//! promise: its continuation runs with the request whose handler is being polled, or dropped, at that moment, and a
//! warning is logged. If it is dropped anywhere else, in another task for example, the continuation runs on its own,
//! without limit or hooks, and a drain does not wait for it.
//!
//! **What a handler returns after the client left, or after `finish`,** is discarded, but a continuation in it runs.
//! After `finish`, the body is dropped, and if the response is an error (4xx or 5xx) its status is logged. If the
//! client left and aborts are ignored, the body is still produced to its end, and a server error (5xx) is logged.
//!
//! **A limit that passes before the continuation has started** (a slow reader used up the time) still starts the
//! continuation, and drops it at its first `.await`: whatever it does before that is done. A blocking one is started
//! and given up on in the same moment, so it runs to its end, as a stuck thread. The limit cannot be restarted then.
//!
//! **A limit that has passed cannot be restarted** once the status says TIMEOUT: setting it does nothing then, and what
//! is left of it stays nothing. It passes unnoticed while code runs without an `.await`; until the next one it can
//! still be restarted, since nothing was dropped and nobody was told.
//!
//! **A blocking continuation that is still waiting for its thread** at the limit counts as stuck. It runs when a
//! thread is free; a drain waits for it until then, and names it at its deadline.
//!
//! **A limit that passes while a continuation waits for its place** ends the wait: the continuation is polled once,
//! without a place, and dropped where it first waits. A blocking one counts as stuck, keeps its turn, and runs when
//! that comes; a drain waits for it until it has its thread. The same holds at a drain's deadline.
//!
//! **Several continuations of one request** take their places one after the other. The first uses the place that was
//! reserved; the others may have to wait beyond the bound. A response that is held back waits for the places of all
//! of them, as far as that many can be free at once.
//!
//! **A class and the common bound.** A continuation first waits for a place in its class, and occupies nothing of the
//! common bound until it has one; nor does a response that is held back for its class. Then it comes before new
//! requests, and waits for its common place whether or not there is room for another one waiting: there can be no
//! more of these than may run in their classes. Blocking continuations pass the gate of their class, and the bound on
//! threads instead of the common one. Attempts at durable jobs pass both, and take up places but none of the room for
//! waiting: a backlog of stored jobs refuses no request, and no bound refuses a job. An attempt that waits too long,
//! or is still waiting when a drain begins, goes back into its store without having been polled, and does not count
//! as an attempt.
//!
//! **A held response** is no longer held when its client leaves (the request is aborted) or its limit passes (the
//! client gets a 503). The continuation runs, since it was returned. Responses given to
//! [`finish`](crate::Lifecycle::finish) are held for the continuations that come with them.
//!
//! **A refused request** has passed no middleware of the router, so its 503 carries none of their headers; a request
//! that a [`ReserveLayer`](crate::ReserveLayer) refuses has passed the middleware outside that layer. Its upload is
//! not read.
//!
//! **The failure handler** and the hooks of a request need no place, and occupy none.
//!
//! **The patience** concerns readers, not producers. It begins with the head, in case the server does not ask for the
//! body's first frame, or when the server takes a frame, and stops whenever the server has to wait for the producer;
//! the next wait for the reader has the whole patience again. So a reader who takes a long body at a steady pace
//! still counts as slow, if its frames are always ready.
//!
//! **Given up** ([`Sent::GivenUp`](crate::Sent::GivenUp)) does not end a response: it may still be flushed, or
//! aborted, while the continuation runs, and the status and the hooks then see that. What happens to it after the first
//! hook has begun is not told any more, so that all hooks see the same. Hooks wait for the producer even so; only the
//! limit ends a producer whose reader never reads.
//!
//! **A response that HTTP/2 has queued to its end** when the limit passes, or a drain's deadline, cannot be broken off any
//! more. It is given up on: continuation and hooks wait for it no longer, and its client may still get all of it. Its stream
//! stays open until the client makes room for it, or leaves.
//!
//! **The limit of a layer counts from the arrival,** and so includes the time that middleware and the upload took; of
//! several limits around a route the innermost applies. [`set_time_limit`](crate::Lifecycle::set_time_limit) counts
//! from the call.
//!
//! **The response of a handler that timed out** is this crate's 503. It is flushed like any other: hooks then see
//! TIMEOUT together with [`Sent::Flushed`](crate::Sent::Flushed).
//!
//! **Several attempts between two layers,** one after another (a retry) or at once (a hedge), run the handler several
//! times within one request. All attempts share one clock, and none begins once it has run out. The continuations of
//! every attempt run, including those of discarded responses; what an attempt does after its `finish`, or after its
//! client has left and a middleware has given up on it, is waited for like any handler. One of them may call `finish`:
//! that is its own answer, an abort no longer ends it, and the others stay as they are. Of those that overlap, events
//! tell as of one handler, from the start of the first to the end of the last. Each hook that an attempt registers runs
//! too, also that of a [`ShutdownHookLayer`](crate::ShutdownHookLayer) inside the retry: to have it run once, put the
//! layer outside.
//!
//! An attempt may also run in a task of its own (`tokio::spawn`). Nothing tells then whose `finish` protects what from an
//! abort: that of one attempt, or of the middleware, protects all of them. A middleware that runs its handler so should
//! not call `finish` meanwhile: the handler may answer with what it gives. What a task is inside of is known up to the 32nd
//! time that a request enters one of our services: a retry enters all of those inside of it once more. Behind that, the
//! middleware counts as a handler, too: it keeps a place of its own, and a late `finish` may be accepted.
//!
//! **Middleware between two layers** goes on without its client like the handler, if the client left before the
//! handler had begun; its request then ends after both, and the limit ends both.
//!
//! **A timeout or other middleware outside a layer** that drops the handler is no abort on a tracked connection:
//! ignoring aborts does not save the handler, and the status stays NORMAL. Without a tracked connection it reads as a
//! client abort, and ignoring aborts does save the handler.
//!
//! **HEAD** never produces its body, unless an early close has to measure a body of unknown length, or compresses or
//! changes it. If the body was removed before it reached the early close, its length is left out (RFC 9110, section
//! 9.3.2), and so is what a [function on buffered bodies](crate::EarlyCloseLayer::map_buffer) would have made of it.
//!
//! **Trailers behind an early close.** On HTTP/2 they follow a body of declared length. On HTTP/1.1 a client that
//! accepts them (`TE: trailers`, RFC 9110, section 10.1.4) gets a chunked body without a length; but if the handler
//! declared a length, or no `Trailer` header names the trailers (hyper sends no others), it gets the length. Any
//! other client, and HTTP/1.0, gets the length, and no trailers.
//!
//! **What is whole when the limit has passed,** a page that a middleware makes of the 503 for example, leaves as it is, also
//! through an [`EarlyCloseLayer`](crate::EarlyCloseLayer) that compresses; through one with a function on buffered bodies its
//! client gets the 503. What streams, the handler's own, becomes the 503 as well, unless it promises durable jobs: then it
//! is broken off, since under an idempotency key it is the answer that a retry gets.
//!
//! **A body that fails while it is held back** becomes a 500, with nothing of the intended response, also behind
//! a client that has left; past the limit or the patience, the response is broken off. The continuation runs in either case.
//!
//! **A known length is the end,** whether it is the body's own or a declared one, and also without a tracked
//! connection: an HTTP/1 server lets go of a body once it has that many bytes, without asking for more.
//!
//! **A response that is written** ([`Output`](crate::Output)) is produced like any other body. Its flush is complete
//! when the server has had its turn to send; that does not mean that the client has read it. What its producer does
//! after `finish` is a continuation: it starts when the response was flushed or will not be, and no abort ends it,
//! only the limit. An output that is dropped unfinished breaks its response off.
//!
//! **An empty frame** of a body marks a flush, for compressors, and is never sent.
//!
//! **A streaming response that is given to `finish`** after its client has left, where aborts are ignored, is
//! produced to its end, with nobody to read it. Such a producer sets its own pace: it yields to other tasks after
//! some frames, and only its limit ends one that never ends. It also ends when aborts are no longer ignored.
//!
//! **Late hooks and continuations.** While hooks run, another hook can be registered, but a continuation can no
//! longer join the request; nor can it once the request has ended, which can happen where a middleware answers at
//! once and runs the handler in a task of its own. Such a continuation runs on its own, without limit, place or
//! hooks, and is logged. Its error goes to the failure handler; a drain waits for it, and cuts and names it at its
//! deadline. Of a handler that begins when hooks run, and of its body, no event tells but that it panicked, or that its body
//! failed; no limit ends it.
//!
//! **The status page** (feature `status-page`) counts and lists every request of its `Epilogue` except those for the
//! page itself. Its live updates are one long response: they end when a drain begins, and they are exempt from the
//! limit and the ignored aborts of the layers around them. The page itself can be refused like any request.
//!
//! **At a drain's deadline** a handler that has not answered gets a 503 sent for it, and a response on its way is
//! broken off. Everything then has twice the hook limit to end. Half-way through, the server closes the connections
//! that are left, which then [linger](super::connection#when-the-server-stops); at the end it returns. A request that
//! shows up only in this time (because its task had not yet been told that its connection closed, or because it was
//! sent before the stop) is cut and named when it does.
//!
//! **A cut comes too late** for bytes that the kernel has accepted, or that an HTTP/2 server has queued: the client
//! may then have a complete response although the status says TIMEOUT.
//!
//! **Flushed is not received.** If the next response on the same HTTP/1 connection is broken off while more of a
//! pipelining client's bytes wait unread, the system resets the connection, and whatever the client has not yet read
//! of the flushed response is lost with it. `Epilogue::serve` lingers instead; but not for bytes that arrive only
//! after the connection was closed, and not on HTTP/1.0, where a reset is the only sign that the later response is
//! incomplete.
