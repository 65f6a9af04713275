//! Whether there is room for a request, and for the continuations that it brings (contract rule 9).

use std::{future::Future, pin::Pin, sync::Arc};

use axum_core::{body::Body, response::Response};
use http::{HeaderValue, Request, StatusCode, header};
use tokio::time::Instant;

use super::{
    shared::{Core, Rare, Shared},
    word,
};
use crate::{
    continuation::Continuation,
    event::EventKind,
    pool::{
        bounds::{Bounds, Gate, Ticket, Turn, WhenFull},
        caught, lock,
    },
};

/// Tickets on their way.
pub(super) type Reserving = Pin<Box<dyn Future<Output = Vec<Ticket>> + Send>>;

impl Shared {
    fn bounds(&self) -> Option<&Bounds> {
        self.pool().bounds.as_deref()
    }

    /// Keeps a place for this request, or gives the answer that it gets in place of its handler's.
    pub(crate) fn admit<B>(&self, request: &mut Request<B>) -> Option<Response> {
        let bounds = self.bounds()?;
        let pool = self.pool();
        let refusing = |gate: &&Arc<Gate>| gate.when_full() == WhenFull::Refuse;
        let too_many_detached = bounds.max_detached.is_some_and(|most| pool.detached() >= most);
        let too_many_blocking = bounds.max_blocking_waiting.is_some_and(|most| pool.threads.waiting() >= most);
        if too_many_detached || too_many_blocking {
            if is_exempt(self, bounds, request) {
                return None;
            }
            let (count, why) = match too_many_detached {
                true => (
                    &bounds.refused_detached,
                    "as many handlers and bodies outlive their response as `max_detached` allows",
                ),
                false => (&bounds.refused_blocking, "as many blocking continuations wait as `max_waiting` allows"),
            };
            bounds.refusals.tell(&self.route(), why);
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Some(self.refuse());
        }
        let gate = bounds.all.as_ref().filter(refusing)?;
        match gate.reserve() {
            Some(ticket) => self.keep_ticket(ticket),
            None if is_exempt(self, bounds, request) => {}
            None => {
                gate.refuse(&self.route());
                return Some(self.refuse());
            }
        }
        None
    }

    /// The same for a class, as a layer asks.
    pub(crate) fn admit_class<B>(&self, class: &'static str, request: &mut Request<B>) -> Option<Response> {
        let bounds = self.bounds()?;
        let Some(gate) = bounds.class(class) else {
            self.tell_unbounded(bounds, class);
            return None;
        };
        if gate.when_full() != WhenFull::Refuse || self.has_spare_ticket(gate) {
            return None;
        }
        match gate.reserve() {
            Some(ticket) => {
                self.keep_ticket(ticket);
                None
            }
            None if is_exempt(self, bounds, request) => None,
            None => {
                gate.refuse(&self.route());
                self.note_told_class(gate.class);
                let refusal = self.refuse();
                self.note_told_class(None);
                Some(refusal)
            }
        }
    }

    /// While other classes have a bound, the name of one that has none may be misspelt (contract rule 13).
    fn tell_unbounded(&self, bounds: &Bounds, class: &'static str) {
        if !bounds.classes.is_empty() && bounds.unbounded.is_news(class) {
            let bounded: Vec<_> = bounds.classes.iter().filter_map(|gate| gate.class).collect();
            let route = self.route();
            caught::tell(|| {
                tracing::warn!(
                    route,
                    class,
                    ?bounded,
                    "`ReserveLayer` does nothing: other classes have a bound, this one has none"
                );
            });
        }
    }

    /// Whether an attempt before, whose response was thrown away, has kept a place that none of its continuations needs.
    fn has_spare_ticket(&self, gate: &Arc<Gate>) -> bool {
        let core = lock(&self.core);
        let kept = core.rare.iter().flat_map(|rare| &rare.tickets).filter(|ticket| Arc::ptr_eq(&ticket.gate, gate));
        let needs = |continuation: &&Continuation| continuation.class_name() == gate.class;
        kept.count() > core.continuations.iter().filter(needs).count()
    }

    fn refuse(&self) -> Response {
        self.tell(EventKind::Refused);
        let seconds = self.bounds().map_or(1, Bounds::retry_after);
        let mut response = Response::new(Body::from("The server is busy. Try again later.\n"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }

    fn keep_ticket(&self, ticket: Ticket) {
        lock(&self.core).rare().tickets.push(ticket);
    }

    pub(super) fn keep_tickets(&self, tickets: Vec<Ticket>) {
        lock(&self.core).rare().tickets.extend(tickets);
    }

    /// The ticket for the first gate of a continuation that is about to wait for its place, and those for the others; where
    /// none was kept for the first, there may be no room.
    pub(super) fn tickets(&self, class: Option<&str>, blocking: bool) -> Vec<Turn> {
        let Some(bounds) = self.bounds() else { return Vec::new() };
        let gates: Vec<_> = bounds.gates(class, blocking).collect();
        if self.is_job {
            return gates.into_iter().cloned().map(Turn::Beside).collect();
        }
        let mut core = lock(&self.core);
        core.rare().starting = None;
        let tickets = &mut core.rare().tickets;
        let kept: Vec<_> = gates
            .iter()
            .map(|gate| {
                let index = tickets.iter().position(|ticket| Arc::ptr_eq(&ticket.gate, gate))?;
                Some(tickets.swap_remove(index))
            })
            .collect();
        // What follows may log, which is not to be done under a lock (contract rule 11).
        drop(core);
        let turns = gates.into_iter().zip(kept).enumerate();
        turns
            .map(|(place, (gate, kept))| match kept {
                Some(ticket) => Turn::Kept(ticket),
                None if place == 0 => Turn::Kept(gate.insist()),
                None => Turn::Onward(gate.clone()),
            })
            .collect()
    }

    /// The handler is over: places that none of its continuations will take are given back.
    pub(super) fn release_tickets(&self) {
        let Some(bounds) = self.bounds() else { return };
        if self.word().has(word::HANDLER) {
            return;
        }
        let mut core = lock(&self.core);
        let needs = |continuation: &Continuation, gate: &Arc<Gate>| {
            gates(bounds, continuation).any(|needed| Arc::ptr_eq(needed, gate))
        };
        let tickets = std::mem::take(&mut core.rare().tickets);
        let starting = core.rare().starting;
        let starts = |gate: &Arc<Gate>| {
            let mut needed = starting.into_iter().flat_map(|(class, blocking)| bounds.gates(class, blocking));
            needed.any(|needed| Arc::ptr_eq(needed, gate))
        };
        let (kept, unused): (Vec<_>, Vec<_>) = tickets.into_iter().partition(|ticket| {
            starts(&ticket.gate) || core.continuations.iter().any(|continuation| needs(continuation, &ticket.gate))
        });
        core.rare().tickets = kept;
        drop(core);
        // Outside of the lock: this wakes those that wait for them.
        drop(unused);
    }

    /// No continuation can come any more.
    pub(super) fn drop_tickets(&self) {
        if self.bounds().is_some() {
            let tickets = std::mem::take(&mut lock(&self.core).rare().tickets);
            drop(tickets);
        }
    }

    /// What a response has to wait for, where bounds hold responses back.
    pub(super) fn reserving(&self) -> Option<Reserving> {
        let bounds = self.bounds()?;
        // Whoever goes on after `finish` may bring more.
        let handles = self.word().has(word::HANDLER);
        let mut core = lock(&self.core);
        core.continuations.iter().next()?;
        let mut missing = Vec::new();
        // In one order for all responses, so that no two wait for what the other keeps.
        for gate in bounds.in_order() {
            let WhenFull::Hold(limit) = gate.when_full() else { continue };
            let tickets = core.rare.iter().flat_map(|rare| &rare.tickets);
            let kept = tickets.filter(|ticket| Arc::ptr_eq(&ticket.gate, gate)).count();
            let passes = |continuation: &&Continuation| gates(bounds, continuation).any(|own| Arc::ptr_eq(own, gate));
            let needed = core.continuations.iter().filter(passes).count();
            if needed > kept {
                missing.push((gate.clone(), needed - kept, limit));
            }
        }
        if missing.is_empty() {
            return None;
        }
        // What waits for a place in its class takes none of the others: once it has that, it queues for the common one.
        let unused = bounds.all.as_ref().filter(|all| all.when_full() == WhenFull::Refuse).map(|all| {
            let waits = |own: &Arc<Gate>| missing.iter().any(|(gate, ..)| Arc::ptr_eq(gate, own));
            let needs = |continuation: &&Continuation| {
                let passes = gates(bounds, continuation).any(|own| Arc::ptr_eq(own, all));
                passes && !gates(bounds, continuation).any(waits)
            };
            let needed = core.continuations.iter().filter(needs).count() + usize::from(handles);
            core.rare().take_beyond(all, needed)
        });
        drop(core);
        // Outside of the lock: this wakes those that wait for them.
        drop(unused);
        Some(Box::pin(async move {
            let began = Instant::now();
            let mut tickets = Vec::with_capacity(missing.len());
            for (gate, count, limit) in missing {
                // The time is the response's, for however many places.
                let limit = limit.saturating_sub(began.elapsed());
                tickets.extend(gate.reserve_within(count, limit).await);
            }
            tickets
        }))
    }
}

impl Rare {
    /// The tickets for a gate beyond so many.
    fn take_beyond(&mut self, gate: &Arc<Gate>, needed: usize) -> Vec<Ticket> {
        let mut count = 0;
        let tickets = std::mem::take(&mut self.tickets).into_iter();
        let (kept, beyond) = tickets.partition(|ticket| {
            let is_of_gate = Arc::ptr_eq(&ticket.gate, gate);
            count += usize::from(is_of_gate);
            !is_of_gate || count <= needed
        });
        self.tickets = kept;
        beyond
    }
}

impl Core {
    /// A continuation was taken out, and will take its tickets: until then they are not given back.
    pub(super) fn note_starting(&mut self, continuation: &Continuation) {
        if let Some(rare) = self.rare.as_mut().filter(|rare| !rare.tickets.is_empty() && !continuation.is_brief()) {
            rare.starting = Some((continuation.class_name(), continuation.is_blocking()));
        }
    }
}

/// The gates that a continuation passes; one of ours that is done in a moment passes none.
fn gates<'a>(bounds: &'a Bounds, continuation: &Continuation) -> impl Iterator<Item = &'a Arc<Gate>> {
    let brief = continuation.is_brief();
    bounds.gates(continuation.class_name(), continuation.is_blocking()).filter(move |_| !brief)
}

/// Asked only when the request would be refused.
fn is_exempt<B>(shared: &Shared, bounds: &Bounds, request: &mut Request<B>) -> bool {
    let Some(exempt) = &bounds.exempt else { return false };
    // The parts are lent, not copied: what is in the extensions may not be clonable.
    let (mut parts, ()) = Request::new(()).into_parts();
    let swap = |parts: &mut http::request::Parts, request: &mut Request<B>| {
        std::mem::swap(&mut parts.method, request.method_mut());
        std::mem::swap(&mut parts.uri, request.uri_mut());
        std::mem::swap(&mut parts.version, request.version_mut());
        std::mem::swap(&mut parts.headers, request.headers_mut());
        std::mem::swap(&mut parts.extensions, request.extensions_mut());
    };
    swap(&mut parts, request);
    // A nested router has taken its own part off the path.
    #[cfg(feature = "serve")]
    let nested = parts.extensions.get::<axum::extract::OriginalUri>().map(|whole| whole.0.clone());
    #[cfg(feature = "serve")]
    let nested = nested.map(|whole| std::mem::replace(&mut parts.uri, whole));
    let answer = caught::call(|| exempt(&parts));
    #[cfg(feature = "serve")]
    if let Some(nested) = nested {
        parts.uri = nested;
    }
    swap(&mut parts, request);
    match answer {
        Ok(exempt) => exempt,
        Err(payload) => {
            let panic = crate::pool::panic_message(&*payload);
            caught::tell(|| tracing::error!(route = shared.route(), panic, "`admit_always` panicked"));
            caught::dispose(payload);
            false
        }
    }
}
