//! Stacks of layers that are put together at run time.

use std::convert::Infallible;

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
    routing::MethodRouter,
};
use http::StatusCode;
use tower::{Layer, Service, ServiceBuilder, util::BoxCloneSyncService};
use tower_epilogue::{EarlyCloseLayer, End, IgnoreAbortLayer, ShutdownHookLayer, TimeLimitLayer};
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, timeout::TimeoutLayer, trace::TraceLayer,
};

use crate::{
    app::{App, Row, note},
    support::Notes,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    EarlyClose,
    IgnoreAbort,
    TimeLimit,
    ShutdownHook,
    Compression,
    Timeout,
    Trace,
    CatchPanic,
}

pub const OURS: [Kind; 4] = [Kind::EarlyClose, Kind::IgnoreAbort, Kind::TimeLimit, Kind::ShutdownHook];
pub const THEIRS: [Kind; 4] = [Kind::Compression, Kind::Timeout, Kind::Trace, Kind::CatchPanic];

/// How the layers come around the handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// One `Router::layer` each.
    OneByOne,
    /// One `MethodRouter::layer` each: `get(h).layer(..)`.
    PerRoute,
    /// One `Router::layer` of a tuple.
    OneTuple,
    /// One `Router::layer` of a `tower::ServiceBuilder`.
    ServiceBuilder,
}

#[derive(Clone, Debug)]
pub struct Stack {
    /// The outermost first.
    pub kinds: Vec<Kind>,
    pub applied: Applied,
}

/// Every order of `kinds`.
pub fn orders(kinds: &[Kind]) -> Vec<Vec<Kind>> {
    if kinds.is_empty() {
        return vec![Vec::new()];
    }
    kinds
        .iter()
        .flat_map(|first| {
            let others: Vec<_> = kinds.iter().copied().filter(|kind| kind != first).collect();
            orders(&others).into_iter().map(|rest| [&[*first][..], &rest].concat())
        })
        .collect()
}

/// Every order of every subset of `kinds`.
pub fn ordered_subsets(kinds: &[Kind]) -> Vec<Vec<Kind>> {
    let subset = |bits: usize| kinds.iter().enumerate().filter(move |(bit, _)| bits & (1 << bit) != 0);
    (0..1 << kinds.len()).flat_map(|bits| orders(&subset(bits).map(|(_, kind)| *kind).collect::<Vec<_>>())).collect()
}

impl Stack {
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    pub fn place(&self, kind: Kind) -> Option<usize> {
        self.kinds.iter().position(|other| *other == kind)
    }

    /// The layers of this crate on the outer and on the inner side of `kind`.
    pub fn ours_around(&self, kind: Kind) -> (usize, usize) {
        let place = self.place(kind).unwrap_or_else(|| panic!("no {kind:?} in {self:?}"));
        let ours = |kinds: &[Kind]| kinds.iter().filter(|kind| OURS.contains(kind)).count();
        (ours(&self.kinds[..place]), ours(&self.kinds[place + 1..]))
    }

    pub fn around(&self, app: &App) -> Router {
        let layer =
            |place: usize| AnyLayer { kind: self.kinds.get(place).copied(), row: app.row, notes: app.notes.clone() };
        // Whoever layers one by one begins with the innermost.
        let inside_out = (0..self.kinds.len()).rev().map(layer);
        let router = match self.applied {
            Applied::OneByOne => inside_out.fold(app.router(|route| route), Router::layer),
            Applied::PerRoute => app.router(|route| inside_out.clone().fold(route, MethodRouter::layer)),
            Applied::OneTuple => {
                let layers = (layer(0), layer(1), layer(2), layer(3), layer(4), layer(5), layer(6), layer(7));
                app.router(|route| route).layer(layers)
            }
            Applied::ServiceBuilder => {
                let layers = ServiceBuilder::new().layer(layer(0)).layer(layer(1)).layer(layer(2)).layer(layer(3));
                let layers = layers.layer(layer(4)).layer(layer(5)).layer(layer(6)).layer(layer(7));
                app.router(|route| route).layer(layers)
            }
        };
        router.with_state(app.clone())
    }
}

type Boxed = BoxCloneSyncService<Request, Response, Infallible>;

/// One of the layers, or none.
#[derive(Clone)]
pub struct AnyLayer {
    pub kind: Option<Kind>,
    pub row: Row,
    pub notes: Notes,
}

impl<S> Layer<S> for AnyLayer
where
    S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    type Service = Boxed;

    fn layer(&self, inner: S) -> Boxed {
        let inner = boxed(inner);
        let Some(kind) = self.kind else {
            return inner;
        };
        match kind {
            Kind::EarlyClose => boxed(EarlyCloseLayer::new().patience(self.row.patience()).layer(inner)),
            Kind::IgnoreAbort => boxed(IgnoreAbortLayer::new().layer(inner)),
            Kind::TimeLimit => boxed(TimeLimitLayer::new(self.row.limit()).layer(inner)),
            Kind::ShutdownHook => boxed(ShutdownHookLayer::new(layers_hook(&self.notes)).layer(inner)),
            Kind::Compression => boxed(CompressionLayer::new().layer(inner)),
            Kind::Timeout => boxed(
                TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, self.row.their_timeout()).layer(inner),
            ),
            Kind::Trace => boxed(TraceLayer::new_for_http().layer(inner)),
            Kind::CatchPanic => boxed(CatchPanicLayer::new().layer(inner)),
        }
    }
}

pub fn layers_hook(notes: &Notes) -> impl FnOnce(End) -> std::future::Ready<()> + Clone + Send + Sync + 'static {
    let notes = notes.clone();
    move |end| {
        // The rows are asked on connections of their own, but for this.
        if end.route() != "GET /ping" {
            notes.add(note("layer", &end));
        }
        std::future::ready(())
    }
}

fn boxed<S>(service: S) -> Boxed
where
    S: Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send,
{
    BoxCloneSyncService::new(ServiceBuilder::new().map_response(IntoResponse::into_response).service(service))
}

/// A request without a body.
pub fn request(method: &str, path: &str) -> Request {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}
