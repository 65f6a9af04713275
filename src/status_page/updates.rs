//! The page's own updates: a stream of events that each carry the part of it that changes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::sse::{Event, Sse};
use axum_core::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use http::{HeaderName, HeaderValue, StatusCode, header};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Shown, html};
use crate::{lifecycle::Lifecycle, pool::drains::DrainCount};

/// How often a page is brought up to date.
const EVERY: Duration = Duration::from_secs(1);
/// How many one stream has: then its browser asks again. So no server that waits for its connections waits longer,
/// also one that tells us nothing of its end, as `axum::serve` does.
const UPDATES: u32 = 60;
/// When a browser that was cut off asks again.
const RETRY: Duration = Duration::from_secs(2);

struct Updates {
    page: Arc<Shown>,
    full: bool,
    /// It is served by the server that it tells of, whose drain waits for it.
    own: bool,
    drains: watch::Receiver<DrainCount>,
    drains_before: u64,
    tick: Interval,
    left: u32,
    over: bool,
    _seat: OwnedSemaphorePermit,
}

/// A stream of a minute, and less if a drain begins that would wait for it; elsewhere, if a drain is over, so that
/// it can be watched and the other server can stop after it.
pub(super) fn updates(page: Arc<Shown>, full: bool, own: bool, lifecycle: Option<&Lifecycle>) -> Response {
    let Ok(seat) = page.ledger.viewers.clone().try_acquire_owned() else {
        let retry_after = [(header::RETRY_AFTER, HeaderValue::from_static("5"))];
        return (StatusCode::SERVICE_UNAVAILABLE, retry_after, "Too many look at this page.\n").into_response();
    };
    if let Some(lifecycle) = lifecycle {
        // Whatever holds for the routes around it: it lasts as long as its reader, and no longer.
        lifecycle.set_time_limit(Duration::ZERO);
        lifecycle.ignore_abort(false);
    }
    let drains = page.pool.drains.subscribe();
    let drains_before = drains.borrow().over;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let updates = Updates { page, full, own, drains, drains_before, tick, left: UPDATES, over: false, _seat: seat };
    let mut response = Sse::new(unfold(updates, Updates::next)).into_response();
    // nginx would hold it back.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl Updates {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.over {
            return None;
        }
        let (own, before) = (self.own, self.drains_before);
        tokio::select! {
            // The end first: then this is the last.
            biased;
            _ = self.drains.wait_for(|drains| (own && drains.under_way > 0) || drains.over > before) => self.over = true,
            _ = self.tick.tick() => {}
        }
        self.left -= 1;
        self.over |= self.left == 0;
        let snapshot = self.page.snapshot(self.full).await;
        let event = Event::default().retry(RETRY).data(html::fragment(&snapshot).into_string());
        Some((Ok(event), self))
    }
}
