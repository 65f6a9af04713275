//! The app of a case: its handler, and its layers around it.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, response::Parts};
use tokio::sync::mpsc::UnboundedSender;
use tower::{Layer, Service, ServiceBuilder, util::BoxCloneSyncService};
use tower_epilogue::{
    Continuation, EarlyCloseLayer, End, IgnoreAbortLayer, Lifecycle, Sent, ShutdownHookLayer, TimeLimitLayer,
};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::{
    case::{Case, Kind},
    support::PATIENCE,
};

/// How a request ended, as its hook saw it.
#[derive(Clone, Debug)]
pub struct Ended {
    pub status: u8,
    pub sent: Sent,
    pub body_bytes: u64,
    /// How often its continuation had run.
    pub continued: usize,
}

/// Without any layer.
pub fn plain(case: &Case) -> Router {
    let answer = case.answer.clone();
    Router::new().route("/", get(async move || answer.response()))
}

/// With the layers of the case; `ended` is told of each request's end.
pub fn layered(case: &Case, ended: &UnboundedSender<Ended>) -> Router {
    let (answer, ended) = (case.answer.clone(), ended.clone());
    let handler = async move |lifecycle: Lifecycle| -> Response {
        let continued = Arc::new(AtomicUsize::new(0));
        let count = continued.clone();
        let hook = async move |end: End| {
            let (status, sent, body_bytes) = (end.status().bits(), end.sent(), end.body_bytes());
            // The test may have failed and gone.
            let _ = ended.send(Ended { status, sent, body_bytes, continued: count.load(Ordering::Acquire) });
        };
        lifecycle.on_shutdown(hook).unwrap();
        let work = async move {
            continued.fetch_add(1, Ordering::AcqRel);
        };
        if answer.finishes {
            lifecycle.finish(answer.response()).await.unwrap();
            work.await;
            return StatusCode::IM_A_TEAPOT.into_response();
        }
        (Continuation::new(work), answer.response()).into_response()
    };
    let inside_out = case.layers.iter().rev().map(|kind| AnyLayer(*kind, case.clone()));
    inside_out.fold(Router::new().route("/", get(handler)), Router::layer)
}

type Boxed = BoxCloneSyncService<Request, Response, Infallible>;

#[derive(Clone)]
struct AnyLayer(Kind, Case);

impl<S> Layer<S> for AnyLayer
where
    S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    type Service = Boxed;

    fn layer(&self, inner: S) -> Boxed {
        let inner = boxed(inner);
        match self.0 {
            Kind::EarlyClose => boxed(early_close(&self.1).layer(inner)),
            Kind::IgnoreAbort => boxed(IgnoreAbortLayer::new().layer(inner)),
            Kind::TimeLimit => boxed(TimeLimitLayer::new(PATIENCE * 2).layer(inner)),
            Kind::ShutdownHook => boxed(ShutdownHookLayer::new(async |_| {}).layer(inner)),
            Kind::Compression => boxed(CompressionLayer::new().layer(inner)),
            Kind::Timeout => {
                boxed(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, PATIENCE * 2).layer(inner))
            }
            Kind::Trace => boxed(TraceLayer::new_for_http().layer(inner)),
            Kind::CatchPanic => boxed(CatchPanicLayer::new().layer(inner)),
        }
    }
}

fn early_close(case: &Case) -> EarlyCloseLayer {
    let settings = &case.early_close;
    let patience = if settings.patient { PATIENCE } else { Duration::ZERO };
    let mut layer = EarlyCloseLayer::new().buffer_limit(case.limit()).patience(patience);
    if !settings.closes {
        layer = layer.keep_alive();
    }
    if settings.compresses {
        layer = layer.compress();
    }
    if settings.maps {
        layer = layer.map_buffer(async |mut parts: Parts, bytes: Bytes| {
            tokio::task::yield_now().await;
            parts.headers.insert("x-mapped", HeaderValue::from_static("yes"));
            Ok::<_, Infallible>((parts, bytes))
        });
    }
    layer
}

fn boxed<S>(service: S) -> Boxed
where
    S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    BoxCloneSyncService::new(ServiceBuilder::new().map_response(IntoResponse::into_response).service(service))
}
