//! The thirteen rules, what keeps each of them, and the cases that they leave open.
//!
//! The numbers are those that the comments and the tests of this crate cite. What a rule does not cover yet is
//! said with it.
//!
//! # 1. A returned continuation runs exactly once
//!
//! Whatever becomes of its response: flushed, or not because the client left, because a middleware put another
//! response in its place, or because the response was dropped before any layer saw it. It starts when
//! the response was flushed, or when it is known that it never will be, or when the
//! [patience](crate::EpilogueBuilder::patience) with a slow reader is over.
//!
//! What stops it half-way is the time limit, the deadline of a drain, or the end of the runtime. Each is logged
//! with the route, and a drain's report names what it cut. A continuation that was *not* put into a response was
//! promised to nobody: dropped, it does not run, and a warning says so.
//!
//! Kept by `continuation` (the slot in the response, which is emptied once) and `lifecycle::ending` (the one task
//! that runs it).
//!
//! # 2. Hooks run exactly once, in the order of their registration
//!
//! They run when the handler, the producer of the body and the continuations have ended, in whatever way, and
//! the response was flushed, aborted, broken off or given up on. A hook that a hook registers runs after those that
//! are waiting. One that panics is logged, and the rest run. One that returns
//! [`ControlFlow::Break`](std::ops::ControlFlow::Break) skips the rest. Each has the
//! [hook limit](crate::EpilogueBuilder::hook_limit) to itself.
//!
//! A hook that comes after the last one has run is refused with an
//! [error](crate::LifecycleError::is_too_late). It is never taken and then forgotten, unless the runtime ends
//! before the request does; that is logged.
//!
//! Kept by `lifecycle::ending`, which takes the next hook and ends the request under one lock.
//!
//! # 3. The status is a set of two bits
//!
//! [`ABORTED`](crate::ConnectionStatus::ABORTED): the client left before its response was flushed.
//! [`TIMEOUT`](crate::ConnectionStatus::TIMEOUT): the time limit, or the deadline of a drain, ended the work. Bits
//! are added and never taken away, so either order gives 3. A client that leaves after its whole response was
//! flushed has not aborted.
//!
//! On a tracked connection the first bit comes from the connection alone: an outer middleware that drops the
//! handler, and a server that stops, never read as the client. Without one, whatever drops the response reads
//! as the client.
//!
//! Kept by `lifecycle::transitions` on the one word of `lifecycle::word`.
//!
//! # 4. An abort that is not ignored ends the work
//!
//! The handler's future, or the producer of the body, is dropped as soon as the connection knows, behind an
//! unread upload or a pipelined request too. Then the hooks run.
//!
//! Kept by `connection` (who left) and `lifecycle::held`, `lifecycle::producer` (what is dropped).
//!
//! # 5. An abort that is ignored does not
//!
//! Handler and producer run to their end, and what they produce goes nowhere. Meanwhile the abort can be
//! [read](crate::Lifecycle::is_aborted) and [awaited](crate::Lifecycle::aborted). A
//! [shield](crate::Lifecycle::shield) ignores aborts while it lives; shields nest, and when the last one goes
//! after an abort, the work ends at its next `.await`.
//!
//! A FIN counts as an abort at once, unless the connection [serves](crate::HalfClose::Serve) clients that closed
//! only their half. While aborts are ignored, writing goes on: such a client still gets its response, which then
//! counts as flushed, with the bit set.
//!
//! Kept by `connection::io` (which hides the end of input from the server) and `lifecycle::held` (which moves a
//! handler that was dropped all the same to a task of its own).
//!
//! # 6. One clock
//!
//! It runs from the arrival of the request to the end of its continuations. Setting the limit in the handler
//! restarts it: 25 s and then a limit of 20 s make 45 s. Zero lifts it. It counts time on the wall, or
//! [busy](crate::ClockKind::Busy) time. Work is dropped at its next `.await`; a poll that ran more than 10 ms past
//! the limit is reported with its route once it returns. Before the head the client is answered with a 503; in the
//! body the response is broken off, so that it never looks whole.
//!
//! Blocking work cannot be dropped: at the limit its request goes on without it, and its thread is counted
//! ([`Epilogue::stuck`](crate::Epilogue::stuck)) and named in the log until it returns.
//!
//! Kept by `lifecycle::clock`, and `pool::blocking` for the threads.
//!
//! # 7. `finish` lets the response go, and the handler on
//!
//! [`finish`](crate::Lifecycle::finish) resolves with what became of the response. From then on the handler is its
//! own continuation: no abort ends it, only the clock does. The body that it gave is ended by one as any other (rule 4). A
//! second `finish` is an error value. There is nothing
//! to write to any more, so nothing that comes late can reach this client or another.
//!
//! The response passes through the middleware outside of the innermost service of this crate. See
//! [ordering](super::ordering#finish-and-the-innermost-layer) for where that is.
//!
//! Kept by `lifecycle::held`, and `lifecycle::alone` for the rest of the handler.
//!
//! # 8. The early close
//!
//! A body is buffered up to a limit, and its exact length declared. On HTTP/1 the connection closes after the flush
//! (RFC 9112, section 9.6); HTTP/2 forbids such a header (RFC 9113, section 8.2.2), and gets none. A HEAD request
//! gets the headers of its GET. Event streams, gRPC, upgrades, 204 and 304 pass through untouched; bodies past
//! the limit or the patience pass through as streams. A 1xx is no final response (RFC 9110, section 15.2), but for the 101 of
//! an upgrade on HTTP/1: under this crate's own service a 500 is sent in its place, and logged. A tracked connection that
//! closes while its client is still sending lingers, so that the client reads its response. No request that the client has
//! pipelined behind it (RFC 9112, section 9.3.2) is begun, so that all of those may be sent again.
//!
//! With the feature `compression` the early close compresses, and declares the length of what comes of it; so does
//! one that stands outside of other compression. See [early_close](crate::early_close#compression).
//!
//! Kept by `early_close`, and `connection::linger` for the close.
//!
//! # 9. Bounds
//!
//! [`max_running`](crate::EpilogueBuilder::max_running) continuations run at once, and
//! [`max_waiting`](crate::EpilogueBuilder::max_waiting) wait, first come, first served. Beyond that
//! [`when_full`](crate::EpilogueBuilder::when_full) decides: new requests are refused with a 503 before their handler
//! runs, or their responses are held back, or all of them run and are counted. A
//! [class](crate::EpilogueBuilder::class) of continuations has a bound of its own; so have
//! [blocking](crate::EpilogueBuilder::max_blocking) ones and what [outlives](crate::EpilogueBuilder::max_detached) its
//! response otherwise. Without a bound any number runs, but for blocking ones, of which 500 do in a process.
//!
//! A bound never breaks a promise: what was returned runs. What there is no room for waits all the same, and is counted
//! ([`Load::over`](crate::Load::over)) and logged.
//!
//! Kept by `pool::bounds`, `lifecycle::admission` and `lifecycle::places`.
//!
//! # 10. The drain
//!
//! `Epilogue::serve` with a graceful shutdown returns when the last connection, continuation and hook has ended,
//! or at the [deadline](crate::EpilogueBuilder::drain_deadline). What is then left is cut with status TIMEOUT, its
//! hooks get their time, and the report names each piece: route, class, age, and phase; and it counts the connections that
//! had to be closed when nothing was left on them. A second signal
//! ([`Serve::with_signals`](crate::Serve::with_signals), [`Epilogue::cut`](crate::Epilogue::cut)) cuts at once. Each
//! second of a drain is logged with how much is left.
//!
//! `axum::serve` and accept loops of your own do not wait for continuations: stop them, and then call
//! [`Epilogue::drain`](crate::Epilogue::drain).
//!
//! Kept by `epilogue::drain`.
//!
//! # 11. A panic costs one request
//!
//! Nothing of yours runs inside a destructor, a flush or a lock of this crate, and a panic in a handler, body,
//! continuation, hook or event function is caught, logged, and told to hooks ([`End::panic`](crate::End::panic)).
//! What *is* run where it must be is the destructor of work that ends: a panic there is caught as well.
//!
//! In a process built with `panic = "abort"` no panic is caught, and none of this holds.
//!
//! Kept by `pool::caught`.
//!
//! # 12. The layers compose
//!
//! Any of them, in any order, on routers and on routes, beside other middleware: [ordering](super::ordering)
//! says what each order means.
//!
//! Kept by `lifecycle::service`: the layers only set wishes on a record that they share.
//!
//! # 13. Nothing is silent
//!
//! What is dropped, cut or given up is logged with its route, and told to the
//! [event function](crate::EpilogueBuilder::on_event). [`Epilogue`](crate::Epilogue) counts what runs, what is stuck,
//! what was refused, what panicked and what was lost. Refused requests are logged each at level debug, and at level
//! warn once a second with their number: an overload must not be made worse by its log.
//!
//! Kept by `event` and `pool`.
//!
//! # What the rules leave open
//!
//! **Several continuations in one response** run one after the other, in the order in which they were added. The
//! clock is one for all of them.
//!
//! **A response that is dropped before any layer saw it**, by a middleware or by the handler itself, keeps its
//! promise: its continuation runs with the request whose handler is being polled, or dropped, at that moment, and a
//! warning tells of it. Dropped anywhere else, in another task for example, it runs on its own, without limit and hooks;
//! a drain does not wait for such a one.
//!
//! **What a handler returns after the client left, or after `finish`,** goes nowhere; a continuation in it
//! runs. That it was an error is logged after `finish`, with its status. If the client left and that is ignored, its body is
//! still produced to its end, and that it was an error of the server (5xx) is logged; after `finish` it is dropped.
//!
//! **A limit that passes before the continuation has started** (a slow reader used the time up) still starts
//! it, and drops it at its first `.await`: what it does before that is done. A blocking one is started and given
//! up in the same moment, so it runs to its end, as a stuck thread. Nothing restarts a limit that has
//! passed.
//!
//! **A blocking continuation that still waits for its thread** at the limit counts as stuck. It runs when a
//! thread is free; a drain waits for it until then, and names it at its deadline.
//!
//! **A limit that passes while a continuation waits for its place** ends the wait: it is polled once, without a place,
//! and dropped where it first waits. A blocking one counts as stuck, keeps its turn, and runs when that comes; a
//! drain waits for it until it has its thread. The same holds at a drain's deadline.
//!
//! **Several continuations of one request** take their places one after the other. The first has what was
//! reserved; the others may come to wait beyond the bound. A response that is held back is held for the places of all of
//! them, as far as so many can be free at once.
//!
//! **A class and the common bound.** A continuation passes the gate of its class first, and takes nothing of the
//! common one before it has passed; a response that is held back for its class keeps none of the common one either. Then it
//! comes before new requests, and waits for its place whether or not there is room for more that wait: of such there are
//! no more than may run in their classes. Blocking ones pass their class, and their threads instead of the common bound. Attempts at durable jobs pass both, and take places there but none of the room
//! of those that wait: a backlog of stored jobs refuses no request, and no bound refuses a job. One that waits too long,
//! or for a drain, goes back into its store without having been polled, and counts no attempt.
//!
//! **A held response** whose client leaves, or whose limit passes, is held no longer: the one has aborted, the other is
//! answered with a 503. The continuation runs, as it was returned. Responses given to
//! [`finish`](crate::Lifecycle::finish) are held for the continuations that come with them.
//!
//! **A refused request** has passed no middleware of the router, so its 503 has no headers of theirs; one that a
//! [`ReserveLayer`](crate::ReserveLayer) refuses has those of the middleware outside of it. Its upload is not read.
//!
//! **The failure handler** and the hooks of a request need no place, and hold none up.
//!
//! **The patience** is for readers, not for producers: it begins with the head, for a server that does not ask for the
//! body's first frame, and when the server takes a frame, and is never over while the server waits for the next one. A
//! reader who takes a long body at a steady pace is slow as well, once the patience is over.
//!
//! **Given up** ([`Sent::GivenUp`](crate::Sent::GivenUp)) is not the end of a response: it may still be flushed,
//! or aborted, while the continuation runs, and the status and the hooks then see that. Hooks wait for the
//! producer even so; the limit is what ends a producer whose reader never reads.
//!
//! **The limit of a layer counts from the arrival,** and so includes what middleware and upload took; of several
//! around a route the innermost holds. [`set_time_limit`](crate::Lifecycle::set_time_limit) counts from the
//! call.
//!
//! **A timed-out handler's response** is the 503 of this crate. It is flushed like any other: hooks then see
//! TIMEOUT together with [`Sent::Flushed`](crate::Sent::Flushed).
//!
//! **A retry between two layers** makes the handler run again inside of one request. There is one clock for all
//! attempts, and none begins when it has run out; the continuations of every attempt run, those of responses that were
//! thrown away too, and what an attempt does after its `finish` is waited for as any handler is. So does each hook
//! that an attempt registers, a [`ShutdownHookLayer`](crate::ShutdownHookLayer) inside of the retry among them: where it is
//! to run once, it stands outside.
//!
//! **A timeout or other middleware outside of a layer** that drops the handler: on a tracked connection that is
//! no abort, so ignoring aborts does not save the handler, and the status stays NORMAL. Without one it reads
//! as the client's abort, and does.
//!
//! **HEAD** never produces its body, except where an early close has to measure one whose length is not known, or
//! that it compresses or changes. Where a body was taken off before that, its length is left out (RFC 9110, section
//! 9.3.2), and so is what a [function on buffered bodies](crate::EarlyCloseLayer::map_buffer) would have made of it.
//!
//! **Trailers behind an early close.** On HTTP/2 they follow a body of declared length. On HTTP/1.1 a client that takes
//! them (`TE: trailers`) gets chunks and no length, unless the handler declared one, or no `Trailer` header names them,
//! without which hyper does not send them; any other client, and HTTP/1.0, gets the length, and the trailers have no way to
//! it.
//!
//! **A body that fails while it is held back** is a 500, with nothing of the response that it was to be; past the limit
//! or the patience it is a broken response. The continuation runs in either case.
//!
//! **A known length is the end,** be it the body's own or a declared one, without a tracked connection too: an HTTP/1 server
//! lets go of a body when it has so many bytes, without asking for more.
//!
//! **A response that is written** ([`Output`](crate::Output)) is produced like any other body. Its flush is
//! complete when the server has had its turn to send, which is not yet a client that reads. What its producer does after
//! `finish` is a continuation: it starts when the response was flushed or will not be, and an abort no longer ends it;
//! the limit does. An output that is dropped unfinished breaks its response off.
//!
//! **An empty frame** of a body is the mark of a flush, for compressors, and never sent.
//!
//! **A streaming response that is given to `finish`** when its client has left already, and that is ignored, is
//! produced to its end, with nobody to read it. A producer without a reader has no pace but its own: it lets others have
//! their turn after some frames, and its limit is what ends one that never ends. It ends, too, when aborts are no longer
//! ignored.
//!
//! **Hooks and continuations that come late.** While hooks run, another hook can be registered, but a continuation
//! can no longer join the request, nor when that has ended, as it may have where a middleware answers at once and runs the
//! handler in a task of its own. It runs on its own, without limit, place and hooks, and is logged. Its error goes to the
//! failure handler; a drain waits for it, and cuts and names it at its deadline.
//!
//! **The status page** (feature `status-page`) counts and lists every request of its `Epilogue` but those for itself. Its
//! updates are a long response: they end when a drain begins, as a client's own would not, and neither the limit nor
//! ignored aborts of the layers around them concern them. The page itself can be refused as any request can.
//!
//! **At a drain's deadline** a handler that has not answered is answered for with a 503, and a response on its way
//! is broken off. Everything gets twice the hook limit to come to its end; after half of that the server closes the
//! connections that are left, which then [linger](super::connection#when-the-server-stops), and after all of it it
//! returns. What shows only in this time (a request whose connection has closed and whose task has not been told yet, or
//! one that had been sent before the stop) is cut and named when it shows.
//!
//! **A cut comes too late** for bytes that the kernel has taken, or that an HTTP/2 server has queued: the client may then
//! have a whole response although the status says TIMEOUT.
//!
//! **Flushed is not received.** If a response behind it on the same HTTP/1 connection is broken off while more of a
//! pipelining client's bytes wait unread, the system resets the connection, and what the client has not read yet of the
//! flushed one is lost with it. `Epilogue::serve` lingers instead; but not for bytes that come only after the connection
//! was closed, and not on HTTP/1.0, where a reset is what tells that the other is not whole.
