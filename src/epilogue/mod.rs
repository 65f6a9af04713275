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

/// Owns what runs after responses, tracks it, and serves apps so that the moment of the flush and the client's
/// leaving are known exactly.
///
/// Cloning is cheap; clones are the same `Epilogue`.
#[derive(Clone, Debug, Default)]
pub struct Epilogue {
    pub(crate) pool: Arc<Pool>,
    #[cfg(feature = "serve")]
    server: serve::Settings,
}

impl Epilogue {
    /// One with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins with the default settings.
    pub fn builder() -> EpilogueBuilder {
        EpilogueBuilder::default()
    }

    /// How many pieces of work run or wait beside the connections: continuations with their hooks, and handlers
    /// and bodies that outlived their response. The end of a request waits for such a handler or body, and counts
    /// beside it.
    #[must_use]
    pub fn running(&self) -> usize {
        self.pool.running()
    }

    /// How many threads of blocking continuations are still busy past their limit.
    #[must_use]
    pub fn stuck(&self) -> usize {
        self.pool.stuck()
    }

    /// How many requests had something left to run when their runtime ended.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.pool.lost()
    }

    /// How many panics of handlers, bodies, continuations, hooks and middleware were caught so far, each of which cost
    /// its request only.
    #[must_use]
    pub fn panicked(&self) -> usize {
        self.pool.panics()
    }

    /// Waits until every event so far has been given to the [event function](EpilogueBuilder::on_event).
    pub async fn events_delivered(&self) {
        if let Some(feed) = self.pool.feed() {
            feed.delivered().await;
        }
    }
}

/// Sets an [`Epilogue`] up.
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

    /// How long a slow reader is waited for before its continuation starts; 30 s by default.
    ///
    /// It counts while the server has bytes that the client does not take, not while the body is produced.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.pool.settings.patience = patience;
        self
    }

    /// How long each hook may run; 5 s by default. At the limit it is dropped at its next `.await`, and the
    /// hooks after it run.
    pub fn hook_limit(mut self, limit: Duration) -> Self {
        self.pool.settings.hook_limit = limit;
        self
    }

    /// How long a drain waits for connections, continuations and hooks before it cuts what is left, with
    /// status TIMEOUT; 30 s by default. `None` waits without end.
    pub fn drain_deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.pool.settings.drain_deadline = deadline.into();
        self
    }

    /// Has each request named in the log, once, whose handler or continuation still runs so long after its arrival: with
    /// its route, class, age and phase. Off by default. It is noticed with a delay of up to a quarter, and of a second
    /// at most. A response on its way is not meant: it may be meant to last. With the feature `backtrace`, the futures that
    /// it [waits in](crate::manual::observing#what-takes-long) are named too.
    pub fn slow_after(mut self, age: Duration) -> Self {
        self.pool.slow = Some(SlowWatch::new(age));
        self
    }

    /// Has each poll of a handler, body, continuation or hook named in the log, with its route, that held up its thread
    /// for so long, once it returns. Off by default; on, it costs two looks at the clock for each poll.
    pub fn slow_poll(mut self, time: Duration) -> Self {
        self.pool.settings.slow_poll = Some(time);
        self
    }

    /// Has `listener` called with every phase change of every request: for journals, metrics and tests.
    ///
    /// It is called in a task of its own, never under a lock, in a destructor or in a flush. Events of one
    /// request come in their order. It should return quickly: what happens meanwhile waits in memory, and the thread is one
    /// of the runtime's, of which it is to block none (`tokio::task::block_in_place` is for what has to). A panic in it is
    /// logged. Without a listener no event is made. A drain waits until it was told of everything, but no longer than for
    /// its work: to twice the hook limit after the deadline, or after it was cut, and a second at least.
    /// Given several times, each function is called, in the order in which they were given.
    pub fn on_event<F>(self, listener: F) -> Self
    where
        F: Fn(&Event) + Send + Sync + 'static,
    {
        self.pool.listen(Arc::new(listener));
        self
    }

    /// Has counts, gauges and times of all requests recorded through the [`metrics`](https://docs.rs/metrics) facade, by
    /// the recorder that is installed: see the [manual](crate::manual::observing#metrics) for names and labels.
    #[cfg(feature = "metrics")]
    pub fn metrics(mut self) -> Self {
        self.metrics = true;
        self
    }

    /// Has a task-local of yours go along into continuations, hooks and handlers that outlive their response,
    /// where its value is a clone of the one that was in scope around our innermost layer.
    ///
    /// What is scoped inside of the handler, around the future of a continuation, needs no help.
    pub fn carry<T>(mut self, key: &'static LocalKey<T>) -> Self
    where
        T: Clone + Send + Sync + 'static,
    {
        self.pool.carries.push(Box::new(CarryKey(key)));
        self
    }

    /// Ready for use.
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
    /// How its connections are treated whose clients are slow, silent or gone half-way.
    pub fn tracking(mut self, tracking: crate::connection::Tracking) -> Self {
        self.server.tracking = tracking;
        self
    }

    /// How long the server waits for a request's head, 30 s by default: from the moment at which it begins to wait, so
    /// an HTTP/1 connection that idles so long between two requests is closed as well. One of HTTP/2 has so long until its
    /// first request, and from then on [pings](Self::http2_keep_alive). `None` waits without end, as `axum::serve` does.
    ///
    /// A proxy in front may keep idle connections [for longer](crate::manual::limits#behind-a-proxy).
    pub fn header_read_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.server.header_read = limit.into();
        self
    }

    /// How often an HTTP/2 client is pinged, 30 s by default, and how long it may take to answer, 20 s by default
    /// (RFC 9113, section 6.7). `None` does not ping.
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
