//! Durable jobs: what they survive, what can still go wrong, and what to do about it.
//!
//! [`durable`](crate::durable) is for work whose loss is not acceptable. A [`Continuation`](crate::Continuation) is for
//! everything else: it costs no disk write, you need not worry about it running twice, and a crash loses it.
//!
//! # What is promised
//!
//! 1. A response that carries a [`Durable`](crate::durable::Durable) leaves only after its jobs are committed. If
//!    they cannot be, the client gets a 503 instead.
//! 2. A committed job runs to its end at least once, in this process or another, or it is given up on after its last
//!    attempt: then it stays on record ([`discarded`](crate::durable::DurableStore::discarded)), and is reported.
//! 3. It is not started before its response was flushed, or is known never to be. The exception is a job whose
//!    response takes longer than the [lease](crate::durable::DurableBuilder::lease), or whose process died in
//!    between: it starts when the lease ends. A later flush does not start it again.
//! 4. A job that is running, or done, is never started again because another one is promised under the same key.
//!
//! These promises depend on the database keeping what it has committed: SQLite is opened with `synchronous=FULL`;
//! Postgres has to run with `fsync` and `synchronous_commit` on, as it does by default.
//!
//! # What can still go wrong
//!
//! | what happens | the result | what to do |
//! |---|---|---|
//! | The process dies, or its drain ends while the database does not answer, after a job's effect, but before the job is marked as done. | The job runs again. | Pass [`idempotency_key`](crate::durable::JobContext::idempotency_key) to whatever the job calls. If the effect is in the store's own database, write it in the transaction of [`complete_in_transaction`](crate::durable::JobContext::complete_in_transaction). |
//! | The handler charges a card, and the process dies before the response's job is stored. | An external effect that nothing here knows of. | Have the job charge the card, not the handler: store the intent first. Or use [`in_transaction`](crate::durable::Durable::in_transaction), before the charge. |
//! | The job is stored, and the connection breaks before the client hears of it. | The client does not know, and retries. | Clients send an `Idempotency-Key`, or the job has a key determined by the order ([`with_key`](crate::durable::Durable::with_key)). |
//! | The database goes away in the middle of a commit. | The client gets a 503, and the job may be stored all the same. If so, it runs when its lease ends. | The same: under a key, a retry finds it. |
//! | The database's machine vanishes without closing its connections: power or network failure. | What waits for its answer is given up on within 25 s (Linux, [`postgres`](crate::durable::DurableStore::postgres)), and then it is as above. With a [pool of yours](crate::durable::DurableStore::postgres_pool) it waits for ever, unless the pool has keep-alive probes. | Nothing; or add probes. |
//! | The machine of a process vanishes in the same way, in the middle of a transaction. | A process that stores a job with the same key waits, and everything else it stores waits too, until the database server gives up on the lost machine: within 25 s ([`postgres`](crate::durable::DurableStore::postgres)). With a [pool of yours](crate::durable::DurableStore::postgres_pool) that takes two hours by Postgres' default. | Nothing; or set `tcp_keepalives_idle` and `tcp_user_timeout` on the server. |
//! | The database cannot be reached, or another process holds SQLite's lock. | Clients get a 503 after the [`busy_timeout`](crate::durable::DurableBuilder::busy_timeout), or after twice that if others are waiting before them. Jobs whose client can no longer be told are [retried](#what-nobody-can-be-told-of). | Nothing. |
//! | The database is reached, and does not answer for a long time. | Writes wait, within their request's limit; once 10,000 wait in a process (including those whose requests have given up) clients get a 503 at once. Jobs whose client can no longer be told wait all the same. | Nothing. |
//! | The request's time limit passes while its job is being stored. | The client gets a 503; the job may or may not be stored, and runs if it is. | The same. |
//! | The job is stored in a transaction of yours, whose commit is forgotten or fails, and its part is returned all the same. | Nothing is stored, although the client is told that it is; the log says so. | Commit, and respond with the commit's error. |
//! | A job blocks its thread past its limit, for longer than [`rescue_after`](crate::durable::DurableBuilder::rescue_after). | It is considered lost, and runs twice at the same time. | Do not block: use `spawn_blocking`, with a limit of its own. |
//! | A process is suspended, or cannot reach its database, for longer than the limit and `rescue_after` of an attempt that it has not begun. | Another process takes the job. The first one does not run it, but puts it back: it runs a second time. | The key, as above. |
//! | The same, of an attempt that it has begun. | Another process runs the job again. If the first attempt failed, it is recorded, late, as the other one that failed: the job is retried while that one may still be running. | The key, as above. |
//! | The process dies during the last attempt, or while that waits for its place; or its connection breaks as it takes the job for that. | The job is discarded by the process that rescues it. [`on_discard`](crate::durable::DurableBuilder::on_discard) is not called, because no process ran it to its end. | Monitor the number of discarded jobs ([`counts`](crate::durable::DurableStore::counts)). |
//! | A job cannot be read back from its own JSON: a NaN, or a field that is serialized differently than it is deserialized. | Its client gets a 503. | Types that deserialize from what they serialize to. |
//! | A new version of the program cannot read what an old one stored. | The job stays stored, does not use up an attempt, is tried again every 30 s, and the log says so each time. | Add fields with `#[serde(default)]`; remove none before the old jobs are done; or run both versions for a while. |
//! | Somebody cancels a job with River's tools. | It does not start, or is dropped at its next `.await` with the status TIMEOUT, and is recorded as cancelled. No list or count here includes it any more. | Nothing. |
//! | No process knows the job's kind any more. | It stays stored, untouched. | Run a process that knows it, or delete it. |
//! | Other programs use River's tables in the same database. | One of all these processes leads, and discards jobs of kinds it does not know that a dead process has left: theirs, or yours. Jobs in one of their queues that has the name of a kind here fail in this process, and this one's in theirs. | Use a separate schema: a [pool](crate::durable::DurableStore::postgres_pool) whose connections set `search_path`. |
//! | The clocks of machines differ, or one of them jumps. | Leases, rescues, and the expiry of claims on keys come that much earlier or later. If a claim that is still held is considered expired, its handler runs a second time, and one of the two clients is told with a 503 that nothing was promised. | Keep `rescue_after` and [`claim`](crate::durable::DurableBuilder::claim) above the difference. |
//! | The client left while its job was being stored. | It is stored, and starts at once. If the database is down, the result is the same as after a 503, which the client did not wait for; but if the abort is ignored ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)), or the job was given to [`finish`](crate::Lifecycle::finish), it [outlasts](#what-nobody-can-be-told-of) the outage. | Nothing. |
//! | A middleware *inside* the `DurableLayer` replaces the handler's response; or there is no `DurableLayer`, nor any service of this crate, around the handler. | Nothing is stored, and the log says so. | Put the layer inside whatever replaces responses. |
//! | The client leaves while an [`EarlyCloseLayer`](crate::EarlyCloseLayer) *inside* the `DurableLayer` holds the response back. | The job is stored, and starts at once. Under an `Idempotency-Key` the response is kept for a retry: without its body, unless the abort is ignored. A response whose body fails by itself promises nothing. | Put the layer inside the `EarlyCloseLayer`: then the job is stored before anything is held back. |
//! | A middleware *inside* the `DurableLayer` answers in place of a handler, or of a response that is held back, which goes on because its client has left and that is ignored. | What it promises is stored. Until then, or to its request's time limit, it keeps its `Idempotency-Key`: a retry gets a 409, and afterwards the response that was the first to be stored, which is the middleware's own only if that promises a job. Each of several attempts stores what it promises. | Nothing; but make no second attempt at what may not be done twice. |
//! | The store fails between the commit and the flush. | The job starts when its lease ends. | Nothing. |
//! | The client left while its handler ran on ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)). | What the handler promises is stored all the same, although its response is discarded, and [outlasts](#what-nobody-can-be-told-of) an outage of the database; under an `Idempotency-Key` the response is kept for a retry. | Nothing. |
//!
//! # What nobody can be told of
//!
//! A client that waits for its response is told if its job was not stored. But nobody can be told if the handler's
//! client has left and that is ignored ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)), if it leaves while the job is
//! being stored, or if the job is returned after [`finish`](crate::Lifecycle::finish). While the database is out
//! (unreachable, locked, or its disk is full), storing such a job is retried: at once, and then after pauses that
//! grow from 100 ms to 5 s, for an [hour](crate::durable::DurableBuilder::outlast).
//!
//! - **It delays nobody.** Retries are made one at a time, in transactions of their own, over connections that no
//!   request waits for. Its own request does not wait either: after the first attempt the request goes on to its end,
//!   and the time limit no longer applies to the job. A limit that passes during the first attempt ends the attempt,
//!   and the log says so.
//! - **It is stored once.** A receipt is stored with it, in `tower_epilogue_answer`, from the first attempt on. If
//!   the answer to a commit was lost, the receipt tells whether to store it again, whatever has become of the job
//!   meanwhile. A job stored in this way starts when its lease ends. Once the job is known to be stored, the receipt
//!   is deleted together with the next write. If that fails, or if it never became known (for example because the
//!   request's limit ended the attempt and its commit got no answer), the receipt is deleted a day after the hour is
//!   over. Because a client may leave at any moment, every job that is promised where aborts are ignored, or given to
//!   `finish`, has a receipt: two more statements for all that is committed together.
//! - **It keeps its key.** A retry under its `Idempotency-Key` gets a 409, and once it is stored, the response. But a
//!   claim that could not be renewed for as long as it [holds](crate::durable::DurableBuilder::claim) may be taken
//!   over by a retry: then the promise of the retry counts, and this one is given up on.
//! - **A drain waits for it** until its deadline, and then names it in its report.
//! - **It has an end.** It is lost when the hour is over; when as much waits as fits into 64 MiB (each counts as 4
//!   KiB plus what it stores); when the failure is one that no retry could mend (missing tables, a closed pool); and
//!   when the process ends.
//! - **It is in the log**: once when it starts to wait (level warn), and once when it is stored (info) or lost
//!   (error).
//!
//! A client that has closed only its sending side counts as one that has left, but may still be reading: it then gets
//! a 503 that says that its work is being retried. Without a key, a retry by that client may have it done twice.
//!
//! # Keys
//!
//! Two different things are called a key. The *client's* key, in the header `Idempotency-Key`
//! ([draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/)), names a request: see
//! [`DurableLayer`](crate::durable::DurableLayer) for the response to each case. The *job's* key names an effect. It is
//! [yours](crate::durable::Durable::with_key), or else derived from the client's request (the same whenever that is repeated), or else
//! random; all attempts at one job have the same key. A job that is stored [in a
//! transaction](crate::durable::Durable::in_transaction) knows nothing of a request: give it the client's key by hand
//! ([`IdempotencyKey::as_str`](crate::durable::IdempotencyKey::as_str)), so that the handler may start over, as it
//! does if its process died between that transaction and the response.
//!
//! A response is kept for a day ([`keep_answers`](crate::durable::DurableBuilder::keep_answers)), in the same
//! transaction as its jobs. After that the key may be used for something else. A replayed response bypasses
//! everything inside the layer, so authorize clients outside it. Put the layer *inside* session layers, whose cookie
//! would otherwise be set again as it was then, and inside compression, so that a response is not compressed for one
//! client and replayed to another.
//!
//! # One lifecycle
//!
//! An attempt has a lifecycle of its own in the [`Epilogue`](crate::Epilogue) that the store was started in, under
//! the route `JOB /` followed by its kind: its events go to `on_event`, its hooks have the hook limit,
//! [`running`](crate::Epilogue::running) counts it, and its span names the route that promised it. The request that
//! promised it has a continuation for it, in its events and counts, which wakes the stored job after the flush, and
//! is over at once. The attempt's time limit is that of its kind, not that of the request, of which it is no part.
//!
//! It takes its place among the continuations, in its [class](crate::durable::DurableJob::CLASS) and then in the
//! common bound, first come, first served ([`max_running`](crate::EpilogueBuilder::max_running),
//! [`class`](crate::EpilogueBuilder::class)). What that means for jobs and for requests:
//!
//! - **Jobs are never refused because of a bound.** What is promised is stored, whatever is running; a process
//!   fetches no more jobs of a kind at once than could ever run. An attempt that finds no place waits, which is
//!   reported as [`ContinuationWaits`](crate::EventKind::ContinuationWaits). Its limit counts from the moment it has
//!   its place; meanwhile its store is told that it is not lost. If it is put back without having run, it does not
//!   count as an attempt; if its process dies meanwhile, it does.
//! - **It does not wait for ever.** After four times [`rescue_after`](crate::durable::DurableBuilder::rescue_after)
//!   it is put back, without having been polled, for whichever process has a place; so it is if the store cannot be
//!   told that it waits. A drain puts all waiting attempts back at once. For such an attempt, events report the wait
//!   and its end.
//! - **A backlog refuses nobody.** Attempts take up places, but none of the room in which continuations wait
//!   ([`max_waiting`](crate::EpilogueBuilder::max_waiting)): whether a request is admitted depends on continuations
//!   alone, however many jobs there are. So while jobs run, that many more continuations may have to wait.
//! - **A request that promises a job is admitted like any other**: a refused one has run no handler, and has not used
//!   up its `Idempotency-Key`. Its room is free again as soon as it responds, and its response is never
//!   [held](crate::WhenFull::Hold) for the job, because the job is stored already. A
//!   [`ReserveLayer`](crate::ReserveLayer) on its route refuses it while its class is full of continuations.
//!
//! The error of each attempt goes to the [failure handler](crate::EpilogueBuilder::on_failure), like that of a
//! continuation; the log also says what becomes of the job. Panics are [counted](crate::Epilogue::panicked), slow
//! attempts are [logged](crate::EpilogueBuilder::slow_after).
//!
//! A drain starts no more jobs, waits for those that run, cuts them at its deadline, and reports how many stay
//! stored. An attempt that it cuts does not count. What is promised while it drains is stored, and left to other
//! processes or to the next start. A store that has drained still accepts promises, and runs nothing.
//!
//! # The settings
//!
//! | setting | default | why |
//! |---|---|---|
//! | [`lease`](crate::durable::DurableBuilder::lease) | 30 s | Longer than most responses take to leave, shorter than a waiting customer minds. |
//! | [`LIMIT`](crate::durable::DurableJob::LIMIT), [`rescue_after`](crate::durable::DurableBuilder::rescue_after) | 60 s, and 30 s past it | A job whose process died looks like one that takes its time: only its age tells them apart. A shorter limit has it run again sooner. |
//! | [`leader_lease`](crate::durable::DurableBuilder::leader_lease) | 5 s | One process looks after leases, retries and rescues. If it dies, another one takes over up to 21 s later; until then, jobs that are promised and flushed start as usual. |
//! | [`MAX_ATTEMPTS`](crate::durable::DurableJob::MAX_ATTEMPTS), [`backoff`](crate::durable::DurableJob::backoff) | 20; 2 s doubling to 1 h | About nine hours in all: an overnight outage is survived. |
//! | [`CONCURRENCY`](crate::durable::DurableJob::CONCURRENCY) | 16 of each kind | Slow kinds do not delay others. Without bounds on the `Epilogue`, the number that run at once in one process is the sum over its kinds. |
//! | [`fetch_cooldown`](crate::durable::DurableBuilder::fetch_cooldown), [`poll_interval`](crate::durable::DurableBuilder::poll_interval) | 5 ms, 1 s | The first bounds how often a busy process queries; the second is for what no process is notified of: retries that are due, and, on SQLite, what other processes promise. |
//! | [`outlast`](crate::durable::DurableBuilder::outlast) | 1 h | Most outages are over by then; a drain waits no longer than its deadline. |
//! | SQLite: WAL, `synchronous=FULL`, [`busy_timeout`](crate::durable::DurableBuilder::busy_timeout) | 5 s | Readers do not wait for the writer; commits wait for the disk; writers wait for each other. |
//! | SQLite: one connection writes | | All writes of a process take turns, in order of arrival. Several *processes* on one file wait for SQLite's lock by sleeping, which is unfair to the less busy one: for more than one busy process, use Postgres. |
//! | SQLite: the file | | On a local disk. Network file systems do not lock as SQLite needs it. |
//!
//! # What it costs
//!
//! One commit before each response, and some writes after it. `cargo bench --bench durable --features full` measures
//! it, in one run together with the same route with a continuation in memory; only figures of one run can be
//! compared. In five runs with 64 clients, on a small virtual machine that was busy with other work (two cores, a
//! virtual disk), there was one response with a job in SQLite for every 11 with a continuation in memory (7 to 13),
//! and one with a job in Postgres for every 17 (12 to 26). The median time from the flush to the start, one request
//! at a time, was 0.002 ms in memory, 6.4 to 7.3 ms with SQLite, and 8.3 to 11.9 ms with Postgres, of which 5 ms are
//! the `fetch_cooldown` after the previous job.
//!
//! Where aborts are ignored, and after `finish`, each promise has a receipt. In seven runs, each compared with the
//! same route without, there were 0.81 of the responses per second with SQLite (0.55 to 0.89); with Postgres the
//! difference was lost in the noise (0.87 to 1.49).
//!
//! Requests that promise at the same moment share one commit, so on a slow disk each of them waits for one commit,
//! not for one per request before it.
