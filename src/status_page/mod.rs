//! A status page for operators that shows what an [`Epilogue`] does: what runs and waits, what was refused, aborted
//! and lost, the slowest requests and the latest failures, as HTML, JSON and OpenMetrics. It is the counterpart of
//! PHP-FPM's status page.
//!
//! It is off, and nothing is collected, until it is switched on in the builder:
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_epilogue::Epilogue;
//!
//! let epilogue = Epilogue::builder().status_page().build();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .nest("/status", epilogue.status_page());
//! # let _ = app;
//! ```
//!
//! It is then at `/status`; axum does not route `/status/` to it.
//!
//! # Who must not see it
//!
//! Anybody to whom you would not show your access log: clients, above all. The page names routes, shows how busy the
//! server is (and so when it can be overwhelmed), and which requests fail. It does no authorization; that is up to
//! you. It shows no query string, header or body, nor the text of an error or panic, because each can contain what a
//! client sent: those are in the log. For a matched request it shows the route (`/users/{id}`), for any other the
//! path as the client sent it, which may contain a name or a token. The path is all that is known of a request if
//! nothing of this crate is inside the router. So put one of the layers on the router, with `Router::layer`, or take
//! [`Lifecycle`] in the handler: then the route is known.
//!
//! On another listener, reachable only from the machine itself:
//!
//! ```no_run
//! # use axum::Router;
//! # use tower_epilogue::Epilogue;
//! # async fn serve(epilogue: Epilogue, app: Router) -> std::io::Result<()> {
//! use tokio::net::TcpListener;
//!
//! let page: Router = epilogue.status_page();
//! let inside = TcpListener::bind("127.0.0.1:9000").await?;
//! // A server of its own: it stays reachable while the app's server drains.
//! tokio::spawn(async { axum::serve(inside, page).await });
//!
//! let outside = TcpListener::bind("0.0.0.0:80").await?;
//! epilogue.serve(outside, app).with_signals().await?;
//! # Ok(()) }
//! ```
//!
//! Or in the same app, behind your own authorization:
//!
//! ```
//! use axum::{Router, extract::Request, http::StatusCode, middleware::{Next, from_fn}, response::Response};
//! use tower_epilogue::Epilogue;
//!
//! async fn only_operators(request: Request, next: Next) -> Result<Response, StatusCode> {
//!     // Yours: a session, mutual TLS, the user that a proxy in front has checked …
//!     # fn is_operator(_: &Request) -> bool { false }
//!     if is_operator(&request) { Ok(next.run(request).await) } else { Err(StatusCode::NOT_FOUND) }
//! }
//!
//! # let epilogue = Epilogue::builder().status_page().build();
//! let page = epilogue.status_page().layer(from_fn(only_operators));
//! let app: Router = Router::new().nest("/status", page);
//! # let _ = app;
//! ```
//!
//! # Formats
//!
//! | path, or query | or `Accept` | format |
//! |---|---|---|
//! | `/`, `?html` | `text/html` | the page, which updates itself; without JavaScript it reloads |
//! | `/json`, `?json` | `application/json` | the same as JSON |
//! | `/metrics`, `?openmetrics` | `application/openmetrics-text` | counters and gauges as OpenMetrics 1.0, for Prometheus |
//! | `?events` | `text/event-stream` | the page's live updates, one per second for a minute, for at most 16 readers |
//!
//! The path takes precedence over the query, and the query over the header. `?full` lists up to 1,000 unfinished
//! requests instead of 20. The default is HTML (RFC 9110, section 12.5.1). The page loads nothing from elsewhere, and
//! its `Content-Security-Policy` lets nothing but its own script run in it.
//!
//! # What is counted
//!
//! *Accepted* requests are those that were not *refused*; everything else is about accepted requests only. They are
//! *in flight* until their last hook has ended. *Flushed*, *aborted* and *timed out* say what became of them; a
//! request that is flushed and then times out in its continuation is both. *Running* is everything unfinished that
//! does not *wait* for a place; the chart has the maximum of both in each second. A blocking continuation that has
//! its place and waits for its thread counts as running; the bounds list these separately, in the row *blocking*, if
//! [`max_blocking`](EpilogueBuilder::max_blocking) is set. Attempts at durable jobs are counted and listed as such,
//! with their kind; the work of each also counts among the *continuations*, and so does what starts the jobs of a
//! response. Only connections that this crate tracks are counted. *Worked* is how long the handler and the
//! continuations took: a stream that lasts for hours is not slow. *Dropped* are continuations that a limit or a drain
//! ended, and *hooks dropped* are hooks that exceeded the hook limit. The slowest requests and the failures are at
//! most 20 each, since the page was switched on. In the OpenMetrics format, requests and jobs are counted when they
//! end, so that a counter never goes down.
//!
//! The page's own requests are neither counted nor listed; but while a middleware in front of the page waits, they
//! appear in the chart, and a place that a bound reserves for one is *reserved*, as for any request. The live updates
//! end when a drain begins, so that they do not delay it; on another listener, when the drain is over; and after a
//! minute, when the page requests more, so a server that does not announce its shutdown, such as `axum::serve`, waits
//! for them no longer than that. Time limits and ignored aborts around the page do not affect them.
//!
//! A request for the page can be refused like any other, unless [`admit_always`](EpilogueBuilder::admit_always)
//! exempts it or the page has a listener of its own.
//!
//! # The names in JSON
//!
//! These names and their meanings are stable: only a breaking release changes them. New ones may be added. Times are
//! in seconds.
//!
//! | name | what |
//! |---|---|
//! | `uptime_seconds` | since the page was switched on |
//! | `draining` | whether a drain is under way |
//! | `connections_open` | how many are open |
//! | `requests` | `accepted`, that is `in_flight` and `ended`; of these `flushed`, `aborted` and (durable jobs included) `timed_out`; then `refused` |
//! | `jobs` | attempts at durable jobs: `in_flight` and `ended` |
//! | `now` | `waiting` and `running`; of the latter `handling`, `sending`, `continuing` and `ending`; then handlers and bodies that are `detached` from [their response](EpilogueBuilder::max_detached), and threads that are [`stuck`](Epilogue::stuck) |
//! | `continuations` | `started`, `dropped` and `failed` |
//! | `bodies_failed` | responses whose body returned an error |
//! | `hooks_dropped` | hooks that exceeded the hook limit |
//! | `panicked`, `lost` | [`Epilogue::panicked`] and [`Epilogue::lost`] |
//! | `bounds` | a list: `bound` (`all`, `class`, `blocking` or `detached`), `class`, `max_running`, `max_waiting` (`null` for any number), `running`, `waiting`, `reserved`, `refused`, and `over`: accepted beyond the bound |
//! | `history` | the last three minutes, the oldest second first: the maximum of `running` and `waiting` in each |
//! | `live` | a list of unfinished requests and jobs, the oldest first: `route`, `class`, `phase`, `age_seconds`, `status`, `durable_job` |
//! | `live_left_out` | how many are missing in that list |
//! | `slowest`, `failures` | lists: `route`, `class`, `work_seconds`, `age_seconds`, `ended_seconds_ago`, `status`, `faults` (`dropped`, `failed`, `panicked`, `timed out`), `durable_job` |
//!
//! # The names in OpenMetrics
//!
//! They begin with `epilogue_pool_`, and are as stable. They are sums over all routes: for values by route, and
//! times, use the feature `metrics`, which has [names of its own](crate::manual::observing#metrics). Note that it
//! counts continuations that ended, and includes refused requests; here, continuations are counted when they start,
//! and refused requests are not included.
//!
//! | name | kind | what |
//! |---|---|---|
//! | `requests_total` | counter | accepted requests that have ended |
//! | `requests_refused_total` | counter | requests that were refused |
//! | `responses_flushed_total` | counter | responses that were flushed |
//! | `requests_aborted_total` | counter | requests whose client left before that |
//! | `requests_timed_out_total` | counter | requests and jobs whose limit passed, or that a drain cut |
//! | `continuations_total`, `continuations_dropped_total`, `continuations_failed_total` | counter | continuations that were started, dropped before their end, that returned an error |
//! | `bodies_failed_total` | counter | responses whose body returned an error |
//! | `hooks_dropped_total` | counter | hooks that exceeded the hook limit |
//! | `jobs_total` | counter | attempts at durable jobs that have ended |
//! | `panics_total`, `lost_total` | counter | [`Epilogue::panicked`] and [`Epilogue::lost`] |
//! | `requests_in_flight`, `jobs_in_flight` | gauge | those that have not ended |
//! | `running`, `waiting` | gauge | unfinished requests and jobs: those that do not wait for a place, and those that do |
//! | `in_phase` | gauge | both, by `phase`: `handling`, `sending`, `waiting`, `continuing`, `ending` |
//! | `detached`, `stuck` | gauge | as in `now` above |
//! | `connections_open`, `draining` | gauge | as above; 1 while a drain is under way |
//! | `uptime_seconds` | gauge | since the page was switched on |
//! | `bound_max_running`, `bound_max_waiting`, `bound_running`, `bound_waiting`, `bound_reserved` | gauge | by `bound` and `class`, as in `bounds` above; without the second where any number may wait |
//! | `bound_refused_total`, `bound_over_total` | counter | by `bound` and `class` |
//!
//! # What it costs
//!
//! When switched on: about 200 bytes per request in flight, and per event a lock and a few additions in the task that
//! delivers events. What is kept about finished requests is bounded.
//!
//! # Differences from FPM's page
//!
//! There are no processes, so it lists requests instead. There is no `?xml` and no plain text, and `?full` shows no
//! query, user, script or memory.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::Request, routing::get};
use axum_core::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use self::{
    ledger::Ledger,
    negotiate::{Form, Wanted, is_full},
    snapshot::Snapshot,
};
use crate::{
    epilogue::{Epilogue, EpilogueBuilder},
    lifecycle::Lifecycle,
    pool::{Pool, caught},
};

mod connections;
mod entry;
mod history;
mod html;
mod ledger;
mod lists;
mod negotiate;
mod openmetrics;
mod picture;
mod sheet;
mod snapshot;
mod updates;

/// How long the page waits for the events before it to be counted.
const CATCH_UP: Duration = Duration::from_secs(1);

impl EpilogueBuilder {
    /// Switches on [`Epilogue::status_page`], and the counting for it. Off by default. See
    /// [`status_page`](crate::status_page) for who must not see the page.
    pub fn status_page(mut self) -> Self {
        let ledger = Arc::new(Ledger::new());
        self.pool.census = Some(ledger.clone());
        let listening = ledger.clone();
        self.pool.listen_for_lost(Arc::new(move |request| listening.lost(request)));
        self.on_event(move |event| ledger.note(event))
    }
}

impl Epilogue {
    /// The [status page](crate::status_page), to nest in an app or to serve on a listener of its own. It does no
    /// authorization: see [who must not see it](crate::status_page#who-must-not-see-it). All of them show the same
    /// page.
    ///
    /// Without [`EpilogueBuilder::status_page`] it responds with a 404, and the log says why.
    pub fn status_page<S>(&self) -> Router<S>
    where
        S: Clone + Send + Sync + 'static,
    {
        let ledger = self.pool.census.clone().and_then(|census| census.as_any().downcast::<Ledger>().ok());
        let Some(ledger) = ledger else {
            caught::tell(|| {
                tracing::warn!("the status page is off: switch it on with `Epilogue::builder().status_page()`");
            });
            return Router::new().route("/", get(async || StatusCode::NOT_FOUND));
        };
        let page = Arc::new(Shown { ledger, pool: self.pool.clone() });
        let form = |form: Option<Form>| {
            let page = page.clone();
            get(move |request: Request| page.answer(form, request))
        };
        Router::new()
            .route("/", form(None))
            .route("/json", form(Some(Form::Json)))
            .route("/metrics", form(Some(Form::OpenMetrics)))
    }
}

/// A page and what it shows.
struct Shown {
    ledger: Arc<Ledger>,
    pool: Arc<Pool>,
}

impl Shown {
    /// `form` is what the path says.
    async fn answer(self: Arc<Self>, form: Option<Form>, request: Request) -> Response {
        let query = request.uri().query();
        let wanted = match form {
            Some(form) => Wanted { form, full: is_full(query) },
            None => Wanted::parse(query, request.headers()),
        };
        let lifecycle = request.extensions().get::<Lifecycle>().cloned();
        let own = lifecycle.as_ref().is_some_and(|lifecycle| self.ledger.disregard(lifecycle.id()));
        drop(request);
        let full = wanted.full;
        let mut response = match wanted.form {
            Form::Events => updates::updates(self, full, own, lifecycle.as_ref()),
            Form::Html => typed("text/html; charset=utf-8", html::document(&self.snapshot(full).await, full)),
            Form::Json => match serde_json::to_string(&self.snapshot(full).await) {
                Ok(text) => typed("application/json", text),
                Err(error) => failed(&error),
            },
            Form::OpenMetrics => match openmetrics::render(self.snapshot(full).await) {
                Ok(text) => typed(openmetrics::CONTENT_TYPE, text),
                Err(error) => failed(&error),
            },
        };
        guard(response.headers_mut());
        response
    }

    /// With everything counted that happened before.
    async fn snapshot(&self, full: bool) -> Snapshot {
        if let Some(feed) = self.pool.feed() {
            // An event function that is slow delays them: then what has been counted must do.
            let _ = tokio::time::timeout(CATCH_UP, feed.delivered()).await;
        }
        Snapshot::take(&self.ledger, &self.pool, full)
    }
}

fn typed(content_type: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], text).into_response()
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    caught::tell(|| tracing::error!(error, "the status page could not be rendered"));
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

/// For whoever is let in, and for nobody else.
fn guard(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept"),
        (header::CONTENT_SECURITY_POLICY, html::CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}
