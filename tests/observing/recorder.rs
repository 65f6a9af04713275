//! A subscriber that writes down what becomes of spans.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::DefaultGuard,
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    registry::LookupSpan,
};

/// What was written down: `new NAME < PARENT {fields}`, `NAME follows OTHER`, `in NAME: MESSAGE`, `NAME: FIELD`, `close
/// NAME`.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Vec<String>>>);

impl Recorder {
    /// Records on this thread for as long as the guard lives.
    pub(super) fn install() -> (Self, DefaultGuard) {
        let recorder = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder.clone()));
        (recorder, guard)
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// The place of the only line that is this.
    #[track_caller]
    pub(super) fn place(&self, line: &str) -> usize {
        let lines = self.lines();
        let places: Vec<_> =
            lines.iter().enumerate().filter(|(_, other)| *other == line).map(|(place, _)| place).collect();
        assert_eq!(places.len(), 1, "{line}: {lines:#?}");
        places[0]
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

#[derive(Default)]
struct Fields(Vec<String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() != "request" {
            self.0.push(format!("{}={value:?}", field.name()));
        }
    }
}

/// Ours, and those of the tests.
fn is_meant(name: &str) -> bool {
    ["continuation", "durable_job", "river_job", "request", "mine", "inner"].contains(&name)
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        if !is_meant(span.name()) {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = span.parent().map_or("-", |parent| parent.name());
        self.push(format!("new {} < {parent} {{{}}}", span.name(), fields.0.join(" ")));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        self.push(format!("{}: {}", context.span(id).unwrap().name(), fields.0.join(" ")));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).map_or("what is closed", |span| span.name());
        self.push(format!("{} follows {}", name(id), name(follows)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(message) = fields.0.iter().find_map(|field| field.strip_prefix("message=")) else { return };
        self.push(format!("in {}: {message}", context.event_span(event).map_or("-", |span| span.name())));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        if is_meant(span.name()) {
            self.push(format!("close {}", span.name()));
        }
    }
}
