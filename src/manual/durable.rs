//! Durable jobs: what they survive, what can still go wrong, and what to do about it.
//!
//! [`durable`](crate::durable) is for work whose loss is not acceptable. A [`Continuation`](crate::Continuation) is for
//! everything else: it costs no disk, it needs no second thought about running twice, and a crash loses it.
//!
//! # What is promised
//!
//! 1. A response that carries a [`Durable`](crate::durable::Durable) leaves only after its jobs are committed. If they
//!    cannot be, the client gets a 503 in its place.
//! 2. A committed job runs to its end at least once, in this process or another, or it is given up after its last
//!    attempt: then it stays on record ([`discarded`](crate::durable::DurableStore::discarded)), and is reported.
//! 3. It is not started before its response was flushed, or is known never to be; but for one whose response takes longer
//!    than the [lease](crate::durable::DurableBuilder::lease), or whose process died in between: that starts when the
//!    lease ends. A flush that comes later does not start it again.
//! 4. A job that is running, or done, is never started by the promise of another with its key.
//!
//! They hold as far as the database keeps what it has committed: SQLite is opened with `synchronous=FULL`; Postgres has
//! to run with `fsync` and `synchronous_commit` on, as it does by default.
//!
//! # What can still go wrong
//!
//! | what happens | what comes of it | what to do |
//! |---|---|---|
//! | The process dies after a job's effect, and before it was noted. | The job runs again. | Give [`idempotency_key`](crate::durable::JobContext::idempotency_key) to whatever the job calls. Where the effect is in the store's own database, write it in the transaction of [`complete_in_transaction`](crate::durable::JobContext::complete_in_transaction). |
//! | The handler charges a card, and the process dies before the response's job is stored. | A foreign effect that nobody here knows of. | Have the job charge, and not the handler: store the intent first. Or [`in_transaction`](crate::durable::Durable::in_transaction), before the charge. |
//! | The job is stored, and the connection breaks before the client hears of it. | The client does not know, and asks again. | Clients send an `Idempotency-Key`, or the job has a key that the order determines ([`with_key`](crate::durable::Durable::with_key)). |
//! | The database goes away in the middle of a commit. | The client gets a 503, and the job may be stored all the same. It runs when its lease ends. | The same: under a key, asking again finds it. |
//! | The machine of the database vanishes without a word: its power, the network. | What waits for its answer is given up within 25 s (Linux, [`postgres`](crate::durable::DurableStore::postgres)), and then it is as above. With a [pool of yours](crate::durable::DurableStore::postgres_pool) it waits for ever, unless the pool has probes. | Nothing, or probes. |
//! | The machine of a process vanishes so, in the middle of a transaction. | Whoever stores what has the same key waits, and with it all that its process stores, until the server gives the machine up: within 25 s ([`postgres`](crate::durable::DurableStore::postgres)). With a [pool of yours](crate::durable::DurableStore::postgres_pool) that takes two hours, as Postgres is set by default. | Nothing, or `tcp_keepalives_idle` and `tcp_user_timeout` in the settings of the server. |
//! | The database cannot be reached, or SQLite's lock is somebody else's. | Clients get a 503 after the [`busy_timeout`](crate::durable::DurableBuilder::busy_timeout), or twice that where others wait before them. What nobody can be told of is [tried again](#what-nobody-can-be-told-of). | Nothing. |
//! | The database is reached, and does not answer for long. | What is to be stored waits, within its request's limit; beyond 10,000 that wait in a process (those count whose requests have given up) a client gets a 503 at once. What nobody can be told of waits all the same. | Nothing. |
//! | The request's time limit passes while its job is being stored. | The client gets a 503, and the job is stored, or not, and runs if it is. | The same. |
//! | The job is stored in a transaction of yours, whose commit is forgotten or fails, and its part is returned all the same. | Nothing is stored, though the client is told that it is; the log says so. | Commit, and let its error be the answer. |
//! | A job blocks its thread past its limit, for longer than [`rescue_after`](crate::durable::DurableBuilder::rescue_after). | It is taken for lost, and runs twice at the same time. | Do not block: `spawn_blocking`, with a limit of its own. |
//! | A process is suspended, or does not reach its database, for longer than the limit and `rescue_after` of an attempt that waits for its place. | Another process takes the job. The first one does not run it, but puts it back: it runs a second time. | The key, as above. |
//! | The last attempt ends with its process. | The job is discarded by the process that rescues it. [`on_discard`](crate::durable::DurableBuilder::on_discard) is not called, since no process ran it to its end. | Watch the number of discarded jobs ([`counts`](crate::durable::DurableStore::counts)). |
//! | A job does not come back from the JSON that it is stored as: a number that is none, a field that is written otherwise than read. | Its client gets a 503. | Types that are read as they are written. |
//! | A new version of the program cannot read what an old one stored. | The job stays stored, counts no attempt, is looked at again each half minute, and the log says so each time. | Add fields with `#[serde(default)]`; take none away before the old jobs are done; or let both versions run for a while. |
//! | Somebody cancels a job with River's tools. | It does not begin, or is dropped at its next `.await`, with the status TIMEOUT, and is noted as cancelled. No list or count here has it any more. | Nothing. |
//! | No process knows the job's kind any more. | It stays stored, untouched. | Run one that knows it, or delete it. |
//! | Other programs use River's tables in the same database. | Of all of them one leads, and it discards the jobs that a dead process has left and whose kind it does not know: theirs, or yours. Jobs in a queue of theirs that has the name of a kind here fail in this process, and this one's in theirs. | Give it a schema of its own: a [pool](crate::durable::DurableStore::postgres_pool) whose connections set `search_path`. |
//! | The clocks of machines differ, or one of them jumps. | Leases, rescues, and the ends of claims on keys come that much earlier or later. Where a claim that is kept is taken for expired, its handler runs a second time, and one of the two has its client told with a 503 that nothing was promised. | Keep `rescue_after` and [`claim`](crate::durable::DurableBuilder::claim) above the difference. |
//! | The client left while its job was being stored. | It is stored, and starts at once. If the database is out, it is as with a 503 that the client did not wait for; but where its leaving is ignored ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)), or what is stored was given to [`finish`](crate::Lifecycle::finish), it [outlasts](#what-nobody-can-be-told-of) that. | Nothing. |
//! | A middleware *inside* of the `DurableLayer` puts another response in the place of the handler's, or no `DurableLayer` stands there and no service of this crate does either. | Nothing is stored, and the log says so. | The layer goes inside of what replaces responses. |
//! | The store fails between the commit and the flush. | The job starts when its lease ends. | Nothing. |
//! | The client left while its handler ran on ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)). | What the handler promises is stored all the same, though its answer goes nowhere, and [outlasts](#what-nobody-can-be-told-of) an outage of the database; under an `Idempotency-Key` the answer is kept, for who asks again. | Nothing. |
//!
//! # What nobody can be told of
//!
//! Whoever waits for a response is told that its job was not stored. Nobody is there for what a handler promises when its
//! client has left and that is ignored ([`IgnoreAbortLayer`](crate::IgnoreAbortLayer)), or leaves while it is being stored, nor
//! for what it returns after its [`finish`](crate::Lifecycle::finish). While the database is out (it cannot be reached, it is locked, its disk is full),
//! that is tried again: at once, and then after pauses that grow from 100 ms to 5 s, for an
//! [hour](crate::durable::DurableBuilder::outlast).
//!
//! - **It holds up nobody.** It is tried one at a time, in transactions of its own, over connections that no request waits
//!   for. Nor does its request wait: after the first attempt that goes on to its end, and its time limit has no say any more.
//!   One that passes during the first attempt ends it, and the log says so.
//! - **It is stored once.** A receipt is stored with it, in `tower_epilogue_answer`, from the first attempt on. Where the
//!   answer to a commit was lost, that tells whether it is to be stored again, whatever has become of the job meanwhile. One
//!   that was stored so starts when its lease ends. The receipt goes with what is written next, once it is known to be stored;
//!   where that fails, or it never was known, as that of an attempt which its request's limit has ended and whose commit had
//!   no answer, it goes a day after the hour is over. Since a client may leave at any moment, all that is promised where that
//!   is ignored, or given to `finish`, has one: two statements more for all that is committed together.
//! - **It keeps its key.** Who asks again under its `Idempotency-Key` gets a 409, and once it is stored the answer. But a claim
//!   that could not be renewed for as long as it [holds](crate::durable::DurableBuilder::claim) may be taken over by who asks
//!   again: then that one's promise counts, and this one is given up.
//! - **A drain waits for it**, to its deadline, and then names it in its report.
//! - **It has an end.** When the hour is over, or where as much waits as fits into 64 MiB (each counts as 4 KiB and what it
//!   stores), it is lost, as it is with an outage that no later attempt could mend: tables that are missing, a pool that is
//!   closed. So it is with the end of the process.
//! - **It is in the log**: once that it waits (level warn), and once that it is stored (info) or lost (error).
//!
//! A client that has closed its sending side alone counts as one that has left, and may be reading still: then it gets a 503
//! that says that its work is tried again. Without a key, asking again may have it done twice.
//!
//! # Keys
//!
//! Two different things have that name. The *client's* key, in the header `Idempotency-Key`
//! ([draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/)), names a request: see
//! [`DurableLayer`](crate::durable::DurableLayer) for what is answered when. The *job's* key names an effect. It is
//! [yours](crate::durable::Durable::with_key), or else made of the client's request (the same whenever that is repeated), or else
//! random; all attempts at one job have the same. A job that is stored [in a transaction](crate::durable::Durable::in_transaction)
//! knows of no request: give it the client's key by hand
//! ([`IdempotencyKey::as_str`](crate::durable::IdempotencyKey::as_str)), so that the handler may begin anew, as it does where
//! its process died between that transaction and the answer.
//!
//! An answer is kept for a day ([`keep_answers`](crate::durable::DurableBuilder::keep_answers)) in the same transaction as
//! its jobs. After that the key may be used for something else. What is given again passes nothing that stands inside of
//! the layer: who may ask is to be settled outside of it. Put the layer *inside* of sessions, too, whose cookie would be set
//! again as it was then, and of compression, so that what is kept is not compressed for one client and given to another.
//!
//! # One lifecycle
//!
//! An attempt is a life of its own in the [`Epilogue`](crate::Epilogue) that the store was started in, under the route
//! `JOB /` and its kind: its events come to `on_event`, its hooks have the hook limit, [`running`](crate::Epilogue::running)
//! counts it, its span says which route promised it. The request that promised it has a continuation for it, in its events
//! and counts: that wakes the stored job after the flush, and is over at once. The attempt's limit is its kind's and not
//! that of the request, of which it is no part.
//!
//! It has its place among the continuations, in its [class](crate::durable::DurableJob::CLASS) and then in the common
//! bound, first come, first served ([`max_running`](crate::EpilogueBuilder::max_running),
//! [`class`](crate::EpilogueBuilder::class)). What that means for jobs and for requests:
//!
//! - **Jobs are never refused for a bound.** What is promised is stored, whatever runs; a process fetches no more of a
//!   kind at once than could ever run. An attempt that finds no place waits, and is told of by
//!   [`ContinuationWaits`](crate::EventKind::ContinuationWaits). Its limit counts from its place on, its store is told that
//!   it is not lost, and it counts no attempt before it runs.
//! - **It does not wait for ever.** After four times [`rescue_after`](crate::durable::DurableBuilder::rescue_after) it is put
//!   back, without having been polled, for whichever process has a place; so it is if the store cannot be told that it
//!   waits. A drain puts all that wait back at once. Of such a one, events tell
//!   that it waits, and its end.
//! - **A backlog refuses nobody.** Attempts take places, and none of the room in which continuations wait
//!   ([`max_waiting`](crate::EpilogueBuilder::max_waiting)): whether a request is admitted depends on continuations alone,
//!   however many jobs there are. So, while jobs run, that many continuations more may come to wait.
//! - **A request that promises a job is admitted as every other is**: one that is refused has run no handler, and has not
//!   used up its `Idempotency-Key`. With its response its room is free again, and that is never
//!   [held](crate::WhenFull::Hold) for the job, whose promise is kept already. A
//!   [`ReserveLayer`](crate::ReserveLayer) on its route refuses it while its class is full of continuations.
//!
//! An error goes to the [failure handler](crate::EpilogueBuilder::on_failure) as that of a continuation does, each attempt's;
//! the log says besides what becomes of the job. Panics are [counted](crate::Epilogue::panicked), slow attempts are
//! [named](crate::EpilogueBuilder::slow_after).
//!
//! A drain begins no more jobs, waits for those that run, cuts them at its deadline, and says how many stay stored. What
//! it cuts counts no attempt. What is promised while it drains is stored, and left to others or to the next start. A
//! store that has drained goes on promising, and runs nothing.
//!
//! # The settings
//!
//! | setting | default | why |
//! |---|---|---|
//! | [`lease`](crate::durable::DurableBuilder::lease) | 30 s | Longer than most responses take to leave, shorter than what a waiting customer minds. |
//! | [`LIMIT`](crate::durable::DurableJob::LIMIT), [`rescue_after`](crate::durable::DurableBuilder::rescue_after) | 60 s, and 30 s past it | A job whose process died looks like one that takes its time: only its age tells them apart. A short limit has it run again sooner. |
//! | [`leader_lease`](crate::durable::DurableBuilder::leader_lease) | 5 s | One process looks after leases, retries and rescues. If it dies, another does 15 s later; until then jobs that are promised and flushed start as ever. |
//! | [`MAX_ATTEMPTS`](crate::durable::DurableJob::MAX_ATTEMPTS), [`backoff`](crate::durable::DurableJob::backoff) | 20; 2 s doubling to 1 h | Some nine hours in all: an outage over night is survived. |
//! | [`CONCURRENCY`](crate::durable::DurableJob::CONCURRENCY) | 16 of each kind | Slow kinds do not hold up others. Without bounds of the `Epilogue`, what runs at once in one process is the sum over its kinds. |
//! | [`fetch_cooldown`](crate::durable::DurableBuilder::fetch_cooldown), [`poll_interval`](crate::durable::DurableBuilder::poll_interval) | 5 ms, 1 s | The first bounds how often a busy process asks; the second is for what nobody is told of: retries that are due, and what other processes promise on SQLite. |
//! | [`outlast`](crate::durable::DurableBuilder::outlast) | 1 h | Most outages are over by then, and who waits for a drain has its deadline. |
//! | SQLite: WAL, `synchronous=FULL`, [`busy_timeout`](crate::durable::DurableBuilder::busy_timeout) | 5 s | Readers do not wait for the writer; commits wait for the disk; writers wait for each other. |
//! | SQLite: one connection writes | | All that a process writes takes turns in the order in which it came. Several *processes* on one file wait for SQLite's lock by sleeping, which is not fair to the less busy: for more than one busy process, take Postgres. |
//! | SQLite: the file | | On a local disk. Network file systems do not lock as SQLite needs it. |
//!
//! # What it costs
//!
//! A commit before each response, and some writes after it. `cargo bench --bench durable --features full` measures it, in
//! one run beside the same route with a continuation in memory; only what is beside each other in one run can be compared.
//! In five runs with 64 clients, on a small virtual machine that was busy with other work (two cores, a virtual disk), there
//! was one response with a job in SQLite for 11 with a continuation in memory (7 to 13), and one with a job in Postgres for
//! 17 (12 to 26). From the flush to the start, in the median of one request at a time: 0.002 ms in memory, 6.4 to 7.3 ms with
//! SQLite, 8.3 to 11.9 ms with Postgres, of which 5 ms are the `fetch_cooldown` after the job before.
//!
//! Where aborts are ignored, and behind a `finish`, each promise has its receipt. In seven runs, each beside the same route
//! without, there were 0.81 of the responses a second with SQLite (0.55 to 0.89); with Postgres the difference was lost in the
//! noise (0.87 to 1.49).
//!
//! Requests that promise at the same moment share one commit, so that a slow disk costs each of them its time once, and
//! not once for each before them.
