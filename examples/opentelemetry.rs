//! OpenTelemetry traces of requests and of their continuations: two traces, and a link.
//!
//! The spans are printed where they would be exported: replace `Printed` by the exporter of your collector.
//!
//! Run with:
//!
//! ```sh
//! cargo run --example opentelemetry
//! curl -d name=ada http://127.0.0.1:3000/signup
//! ```
//!
//! The request's span is as long as the request took. The continuation's is a trace of its own, which began when the
//! response had left, with a link to the request's span.
#![expect(clippy::print_stdout, reason = "the address and the spans are for whoever started the example")]

use std::time::Duration;

use axum::{Form, Router, routing::post};
use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use serde::Deserialize;
use tower_epilogue::{Continuation, EarlyCloseLayer, Epilogue, shutdown_signal};
use tower_http::trace::{DefaultMakeSpan, TraceLayer};
use tracing::{Level, info};
use tracing_subscriber::{filter::LevelFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// An exporter that prints.
#[derive(Debug)]
struct Printed;

impl SpanExporter for Printed {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        for span in spans {
            let took = span.end_time.duration_since(span.start_time).unwrap_or_default();
            println!("{} {} took {took:.1?}", span.span_context.trace_id(), span.name);
            if span.parent_span_id != SpanId::INVALID {
                println!("    inside of {}", span.parent_span_id);
            }
            for link in span.links.iter() {
                println!("    follows from {} of trace {}", link.span_context.span_id(), link.span_context.trace_id());
            }
            for pair in &span.attributes {
                if ["route", "class", "outcome", "uri"].contains(&pair.key.as_str()) {
                    println!("    {} = {}", pair.key, pair.value);
                }
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct User {
    name: String,
}

async fn signup(Form(user): Form<User>) -> (Continuation, &'static str) {
    let mail = async move {
        // A slow mail server.
        tokio::time::sleep(Duration::from_secs(3)).await;
        info!("mailed {}", user.name);
    };
    (Continuation::new(mail).class("mail"), "We'll email you as soon as this is done.\n")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = SdkTracerProvider::builder().with_simple_exporter(Printed).build();
    tracing_subscriber::registry()
        .with(LevelFilter::INFO)
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("signup")))
        .init();

    // The early close is inside of the router's layers with the trace: so the matched route is known to it.
    let app = Router::new()
        .route("/signup", post(signup))
        .layer(EarlyCloseLayer::new())
        .layer(TraceLayer::new_for_http().make_span_with(DefaultMakeSpan::new().level(Level::INFO)));
    let port = std::env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Epilogue::new().serve(listener, app).with_graceful_shutdown(shutdown_signal()).await?;
    provider.shutdown()?;
    Ok(())
}
