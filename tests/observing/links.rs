//! What OpenTelemetry makes of the spans.

use std::time::Duration;

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use tower_epilogue::Continuation;
use tracing::{Instrument as _, info_span};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::support::MemoryServer;

async fn spanned(request: Request, next: Next) -> Response {
    next.run(request).instrument(info_span!("request")).await
}

#[tokio::test]
async fn a_continuation_is_a_trace_of_its_own_with_a_link_to_the_requests_span() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    const WORK: Duration = Duration::from_millis(50);
    let handler = async || {
        let one = Continuation::new(tokio::time::sleep(WORK)).class("mail");
        (one, Continuation::new(async {}), "hello")
    };
    let app = Router::new().route("/signup", get(handler)).layer(middleware::from_fn(spanned));
    let server = MemoryServer::start(app);
    assert_eq!(server.get("/signup").await.status, 200);
    server.ended(1).await;
    server.stop().await;

    let spans = exporter.get_finished_spans().unwrap();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let (request, continuations) = (named("request")[0], named("continuation"));
    assert_eq!(continuations.len(), 2, "{spans:#?}");
    for continuation in &continuations {
        assert_ne!(continuation.span_context.trace_id(), request.span_context.trace_id());
        assert_eq!(continuation.parent_span_id, SpanId::INVALID, "it is a root");
        let links: Vec<_> = continuation.links.iter().map(|link| &link.span_context).collect();
        assert_eq!(links, [&request.span_context], "{spans:#?}");
    }
    let class = continuations[0].attributes.iter().any(|pair| pair.key.as_str() == "class");
    // The one without a class was first to end, or second: one of them has one.
    assert!(class != continuations[1].attributes.iter().any(|pair| pair.key.as_str() == "class"));
    // The request's span was over before the first one was.
    let over = continuations.iter().map(|span| span.end_time).min().unwrap();
    assert!(request.end_time < over, "{spans:#?}");
}
