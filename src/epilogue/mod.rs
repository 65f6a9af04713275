//! [`Epilogue`]: owns and tracks what runs after responses, and serves apps so that it is exact.

use std::{fmt, sync::Arc, time::Duration};

use tokio::task::LocalKey;

use crate::{
    event::Event,
    pool::{CarryKey, Pool, Settings, SlowWatch},
};

#[cfg(feature = "test-util")]
pub(crate) use self::open::OpenConnections;
#[cfg(feature = "serve")]
pub use self::{
    make_service::{MakeService, MakeServiceFuture},
    serve::{Serve, WithGracefulShutdown},
};
pub use self::{
    report::{DrainReport, Straggler},
    service::{ResponseFuture, Service},
    signals::shutdown_signal,
};

mod bounds;
mod drain;
#[cfg(feature = "serve")]
mod glue;
#[cfg(feature = "serve")]
mod idle;
#[cfg(feature = "serve")]
mod make_service;
#[cfg(feature = "serve")]
mod open;
mod report;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_one;
mod service;
mod signals;

/// Runs and tracks the work after responses, and [serves](Self::serve) apps so that the moment of the flush and of a
/// client disconnect are known exactly.
///
/// Usually a process has one, made with [`new`](Self::new), or with [`builder`](Self::builder) to change settings.
/// Cloning is cheap; clones are the same `Epilogue`.
#[derive(Clone, Debug, Default)]
pub struct Epilogue {
    pub(crate) pool: Arc<Pool>,
    #[cfg(feature = "serve")]
    server: serve::Settings,
}

impl Epilogue {
    /// An `Epilogue` with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A builder, with the default settings.
    pub fn builder() -> EpilogueBuilder {
        EpilogueBuilder::default()
    }

    /// How many pieces of work are running or waiting besides the connections: continuations with their hooks, and
    /// handlers and bodies that outlived their response. The end of a request that waits for such a handler or body
    /// counts as one more.
    #[must_use]
    pub fn running(&self) -> usize {
        self.pool.running()
    }

    /// How many blocking continuations are stuck: past their limit, and still running on their thread, or waiting for one.
    #[must_use]
    pub fn stuck(&self) -> usize {
        self.pool.stuck()
    }

    /// How many requests have so far been lost: their runtime ended while something was left to run.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.pool.lost()
    }

    /// How many panics have been caught so far: of handlers, bodies, continuations, hooks, middleware, failure handlers
    /// and functions on buffered bodies, each of which cost its request only; and of apps that panicked when they were
    /// cloned for a connection, which cost that connection.
    #[must_use]
    pub fn panicked(&self) -> usize {
        self.pool.panics()
    }

    /// Waits until every event so far has been delivered to the [event function](EpilogueBuilder::on_event).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn events_delivered(&self) {
        if let Some(feed) = self.pool.feed() {
            feed.delivered().await;
        }
    }
}

/// Configures an [`Epilogue`]. Made by [`Epilogue::builder`].
#[derive(Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct EpilogueBuilder {
    pub(crate) pool: Pool,
    asked: bounds::Asked,
    #[cfg(feature = "metrics")]
    metrics: bool,
    #[cfg(feature = "serve")]
    server: serve::Settings,
}

impl fmt::Debug for EpilogueBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpilogueBuilder").field("settings", &self.settings()).finish_non_exhaustive()
    }
}

impl EpilogueBuilder {
    fn settings(&self) -> &Settings {
        &self.pool.settings
    }

    /// How long a continuation waits for a slow reader of its response before it starts all the same; 30 s by
    /// default.
    ///
    /// It counts while the server has bytes that the client does not accept, and begins anew when the server had to
    /// wait for the body's producer in between.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.pool.settings.patience = patience;
        self
    }

    /// How long each hook may run; 5 s by default. At the limit it is dropped at its next `.await`, and the hooks
    /// after it run.
    ///
    /// A drain uses it as well: one hook limit after the deadline it closes the connections that are left, and after
    /// [two it returns](crate::manual::limits#the-deadline-of-a-drain).
    pub fn hook_limit(mut self, limit: Duration) -> Self {
        self.pool.settings.hook_limit = limit;
        self
    }

    /// How long a graceful shutdown (drain) waits for connections, continuations and hooks before it cuts what is
    /// left, with status TIMEOUT; 30 s by default. `None` waits without end. After the deadline it takes up to twice
    /// the [hook limit](Self::hook_limit) more until the drain returns.
    pub fn drain_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.pool.settings.drain_deadline = deadline.into();
        self
    }

    /// Logs each request whose handler or continuation is still running at this age (counted from its arrival), once,
    /// at level warn, with its route, class, age and phase. Off by default. It is noticed up to a quarter of `age`
    /// late: at least 10 ms, and at most 1 s. A response that is being sent does not count, because it may be meant to last.
    /// With the feature `backtrace`, the log entry also shows the futures that it is [waiting
    /// in](crate::manual::observing#what-takes-long).
    pub fn slow_after(mut self, age: Duration) -> Self {
        self.pool.slow = Some(SlowWatch::new(age));
        self
    }

    /// Logs each poll of a handler, body, continuation or hook that blocked its thread for `time` or longer, with its
    /// route, once it returns. Off by default. It costs two clock readings per poll.
    pub fn slow_poll(mut self, time: Duration) -> Self {
        self.pool.settings.slow_poll = Some(time);
        self
    }

    /// Calls `listener` with every phase change of every request: for journals, metrics and tests.
    ///
    /// It is called in a task of its own, never under a lock, in a destructor or in a flush. Events of one request
    /// arrive in order. It should return quickly and must not block (use `tokio::task::block_in_place` if it has to):
    /// it runs on a thread of the runtime, and events wait in memory meanwhile. A panic in it is logged. Without a
    /// listener no event is created. A drain waits until all events have been delivered, but no longer than for the
    /// work itself: twice the hook limit after its deadline or its cut, and at least 1 s.
    ///
    /// If it is called several times, every function is called, in the order in which they were given.
    pub fn on_event<F>(self, listener: F) -> Self
    where
        F: Fn(&Event) + Send + Sync + 'static,
    {
        self.pool.listen(Arc::new(listener));
        self
    }

    /// Records counters, gauges and histograms of all requests through the [`metrics`](https://docs.rs/metrics)
    /// facade, for Prometheus for example: see the [manual](crate::manual::observing#metrics) for names and labels.
    /// Off by default.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self) -> Self {
        self.metrics = true;
        self
    }

    /// Carries a task-local of yours over into continuations, hooks and handlers that outlive their response, as a
    /// clone of the value that was in scope around our innermost layer.
    ///
    /// A task-local that is scoped inside the handler, around the future of a continuation, needs no help.
    pub fn carry<T>(mut self, key: &'static LocalKey<T>) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        self.pool.carries.push(Box::new(CarryKey(key)));
        self
    }

    /// Builds the `Epilogue`.
    #[must_use]
    pub fn build(mut self) -> Epilogue {
        self.settle_bounds();
        #[cfg(feature = "metrics")]
        if self.metrics {
            let metrics = Arc::new(crate::metrics::Metrics::new());
            let listening = metrics.clone();
            self.pool.listen(Arc::new(move |event| listening.listen(event)));
            self.pool.listen_for_lost(Arc::new(move |request| metrics.lost(request)));
        }
        Epilogue {
            pool: Arc::new(self.pool),
            #[cfg(feature = "serve")]
            server: self.server,
        }
    }
}

/// Settings of [`Epilogue::serve`].
#[cfg(feature = "serve")]
impl EpilogueBuilder {
    /// How tracked connections are treated: slow, silent and half-closed clients, and the lingering close.
    pub fn tracking(mut self, tracking: crate::connection::Tracking) -> Self {
        self.server.tracking = tracking;
        self
    }

    /// How long the server waits for a request's head, 30 s by default, against slowloris attacks. It counts from the
    /// moment at which the server begins to wait, so it is also the idle timeout of an HTTP/1 keep-alive connection.
    /// An HTTP/2 connection has this long until its first request, and from then on [pings](Self::http2_keep_alive).
    /// `None` waits without end, as `axum::serve` does.
    ///
    /// Behind a proxy that keeps idle connections for longer, [raise it](crate::manual::limits#behind-a-proxy).
    pub fn header_read_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.server.header_read = limit.into();
        self
    }

    /// How often an HTTP/2 client is pinged, 30 s by default, and how long it may take to answer before its
    /// connection is closed, 20 s by default (RFC 9113, section 6.7). `None` does not ping.
    pub fn http2_keep_alive(mut self, every: impl Into<Option<Duration>>, answer_within: Duration) -> Self {
        self.server.http2_ping = every.into();
        self.server.http2_pong = answer_within;
        self
    }

    /// How many streams an HTTP/2 client may have open at once, 200 by default (`SETTINGS_MAX_CONCURRENT_STREAMS`,
    /// RFC 9113, section 6.5.2).
    pub fn http2_max_streams(mut self, streams: u32) -> Self {
        self.server.http2_streams = streams;
        self
    }
}
