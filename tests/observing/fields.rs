//! No record of the log has two fields of one name: what writes JSON keeps the last of them alone.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex},
};

use axum::{Router, routing::get};
use tower_epilogue::{Continuation, Lifecycle};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
};

use crate::support::MemoryServer;

/// The fields of each record, as `name=value`.
#[derive(Clone, Default)]
struct Records(Arc<Mutex<Vec<Fields>>>);

#[derive(Clone, Debug, Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

impl<S: Subscriber> Layer<S> for Records {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.lock().unwrap().push(fields);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_told_with_what_panicked_and_what_it_said() {
    let records = Records::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(records.clone()));
    let handler = async |lifecycle: Lifecycle| {
        lifecycle.on_shutdown(async |_| -> () { panic!("said by the hook") }).unwrap();
        Continuation::new(async { panic!("said by the continuation") })
    };
    let panics = async || -> &'static str { panic!("said by the handler") };
    let server = MemoryServer::start(Router::new().route("/", get(handler)).route("/panics", get(panics)));
    server.get("/").await;
    server.get("/panics").await;
    server.stop().await;

    let records = records.0.lock().unwrap();
    for what in ["handler", "continuation", "hook"] {
        let told = records.iter().find(|Fields(fields)| fields.contains(&("message", format!("a {what} panicked"))));
        let Fields(told) = told.unwrap();
        assert!(told.contains(&("panic", format!("{:?}", format!("said by the {what}")))), "{told:?}");
    }
    for Fields(fields) in &*records {
        let names: HashSet<_> = fields.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), fields.len(), "{fields:?}");
    }
}
