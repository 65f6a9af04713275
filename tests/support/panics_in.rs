//! A subscriber whose output nobody takes any more.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tracing::{
    Subscriber,
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

/// A subscriber that panics whenever it is told that of a span with that name, and counts how often.
pub struct PanicsIn(pub &'static str, pub &'static str, pub Arc<AtomicUsize>);

impl PanicsIn {
    fn is_told<S: for<'a> LookupSpan<'a> + Subscriber>(&self, what: &str, id: &Id, context: &Context<'_, S>) {
        if what == self.0 && context.span(id).is_some_and(|span| span.name() == self.1) {
            self.2.fetch_add(1, Ordering::SeqCst);
            panic!("the subscriber panics, as this test wants it");
        }
    }
}

impl<S: for<'a> LookupSpan<'a> + Subscriber> Layer<S> for PanicsIn {
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        self.is_told("new", id, &context);
    }

    fn on_record(&self, id: &Id, _: &Record<'_>, context: Context<'_, S>) {
        self.is_told("record", id, &context);
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.is_told("enter", id, &context);
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.is_told("exit", id, &context);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        self.is_told("close", &id, &context);
    }
}
