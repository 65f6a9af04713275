//! [`DurableLayer`]: stores what a response promises before it is released.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use axum_core::{body::Body, response::Response};
use http::{Request, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    DurableStore,
    commit::{Commit, Promised, ResponseFuture, keep_promises, stamp},
    idempotency::{self, Guard, IdempotencyKey},
    records::Claimed,
    store::Inner,
};
use crate::{
    lifecycle::{Lifecycle, SendBody, enter},
    pool::lock,
};

/// Layer that stores the durable jobs which its handlers return, before their responses are released. Made by
/// [`DurableStore::layer`].
///
/// A request with an `Idempotency-Key` header, unless its method is safe (GET, HEAD, OPTIONS, TRACE), is answered once:
///
/// | the client sends | it gets |
/// |---|---|
/// | a new key | the handler's answer, which is stored together with its jobs |
/// | the key again, with the same body | the first answer again, with `Idempotency-Replayed: true` |
/// | the key again, with another body, query or `Content-Type` | 422 |
/// | the key again, while the first still runs | 409 |
/// | something that is no key | 400 |
///
/// A key is a quoted string, whose parameters are ignored (RFC 9651, sections 3.1.2 and 3.3.3), or the same without its
/// quotes, as most clients send it.
///
/// The key counts for one method, path and client. The path is the one that was asked for (without the feature `serve`, what
/// `Router::nest` leaves of it); the client is what [`scope`](Self::scope) says. A form whose parts a client separates by
/// another boundary each time (`multipart/form-data`) is another body each time.
///
/// An answer without a durable job (a refusal, a failure) is not kept: the client may correct its request and use the
/// key again. Bodies over 64 KiB, of unknown length, or that broke off are not kept either, and are missing from the answer
/// when it is given again, as trailers are.
///
/// Of several layers of one store around a route, the outermost that reads the key answers for all.
#[derive(Clone)]
pub struct DurableLayer {
    store: DurableStore,
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    required: bool,
    body_limit: usize,
    scope: Arc<dyn Fn(&Parts) -> String + Send + Sync>,
}

impl DurableLayer {
    pub(super) fn new(store: DurableStore) -> Self {
        let scope = Arc::new(idempotency::default_scope);
        Self { store, settings: Settings { required: false, body_limit: 1024 * 1024, scope } }
    }

    /// Answers 400 to requests without an `Idempotency-Key`.
    #[must_use]
    pub fn require_key(mut self) -> Self {
        self.settings.required = true;
        self
    }

    /// How long a body with an `Idempotency-Key` may be, since it is read whole before the handler runs; 1 MiB by
    /// default. A longer one is answered with 413.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.settings.body_limit = bytes;
        self
    }

    /// Tells clients apart, so that a key which one of them has used does not get another its answer. By default it is
    /// the `Authorization` header; where clients are known by a session cookie, return the session's or the user's name. So
    /// too where a client may have got a new token before it asks again: by default it is then another.
    #[must_use]
    pub fn scope(mut self, scope: impl Fn(&Parts) -> String + Send + Sync + 'static) -> Self {
        self.settings.scope = Arc::new(scope);
        self
    }
}

impl fmt::Debug for DurableLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableLayer").field("required", &self.settings.required).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for DurableLayer {
    type Service = DurableService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        DurableService { inner, store: self.store.clone(), settings: self.settings.clone() }
    }
}

/// Service that stores what its handlers promise. See [`DurableLayer`].
#[derive(Clone)]
pub struct DurableService<S> {
    inner: S,
    store: DurableStore,
    settings: Settings,
}

impl<S: fmt::Debug> fmt::Debug for DurableService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The store in which a request's key was claimed by a layer around this one.
#[derive(Clone)]
struct Keeper(Arc<Inner>);

/// The claim of a request, if it has a key, shared by what runs the handler and what stores its promise: given back when
/// neither is left.
pub(super) type Claimant = Arc<Mutex<Option<Guard>>>;

/// With what runs a handler, which may be left alone: where its client has left and it goes on all the same, or where it has
/// given its response to `finish`. What it promises then is its own to store.
#[doc(hidden)]
#[allow(unreachable_pub, reason = "it is in a variant of a public enum")]
pub struct Alone {
    claimant: Claimant,
    store: DurableStore,
    lifecycle: Lifecycle,
}

impl fmt::Debug for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alone").finish_non_exhaustive()
    }
}

impl Alone {
    /// What becomes of its response.
    fn keep(self, response: Response) -> Promised {
        if Arc::strong_count(&self.claimant) > 1 {
            // What stands around it is there.
            return Promised::Nothing(response);
        }
        let guard = lock(&self.claimant).take();
        keep_promises(&self.store.0, &self.lifecycle, response, guard)
    }
}

impl<S, ResBody> Service<Request<Body>> for DurableService<S>
where
    S: Service<Request<Body>, Response = http::Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: SendBody,
{
    type Response = Response;
    type Error = S::Error;
    type Future = ResponseFuture<Before<S::Future, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let entered = enter(&mut request);
        let lifecycle = entered.lifecycle();
        // One further out has the claim, and will store what is promised under it.
        let outer = request.extensions().get::<Keeper>().is_some_and(|keeper| Arc::ptr_eq(&keeper.0, &self.store.0));
        let applies = !outer && idempotency::applies_to(request.method());
        let key = if applies { idempotency::read(request.headers()) } else { Ok(None) };
        let refusal = match &key {
            Err(()) => Some(idempotency::malformed()),
            Ok(None) if self.settings.required && applies => Some(idempotency::missing()),
            Ok(_) => None,
        };
        let key = key.ok().flatten().map(Cow::into_owned);
        let claimant = (!outer).then(Claimant::default);
        let kept = (!outer).then(|| self.store.0.clone());
        let alone = claimant.clone().map(|claimant| {
            let (store, lifecycle) = (self.store.clone(), lifecycle.clone());
            Alone { claimant, store, lifecycle }
        });
        let call = || match (refusal, key, alone) {
            (Some(refusal), ..) => Before::Keyed { future: Box::pin(std::future::ready(Ok(refusal))) },
            (None, Some(key), Some(alone)) => {
                // The one that is ready is the one that is called.
                let later = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, later);
                Before::Keyed { future: Box::pin(keyed(inner, request, key, alone, self.settings.clone())) }
            }
            (None, _, alone) => Before::Plain { future: self.inner.call(request), alone },
        };
        ResponseFuture::new(entered.call_shaped(call, |hold| Commit::new(hold, kept, lifecycle, claimant)))
    }
}

/// Runs the handler of a request with a key, if it is the first with it.
async fn keyed<S, ResBody>(
    mut inner: S,
    request: Request<Body>,
    key: String,
    alone: Alone,
    settings: Settings,
) -> Result<Response, S::Error>
where
    S: Service<Request<Body>, Response = http::Response<ResBody>>,
    ResBody: SendBody,
{
    let (mut parts, body) = request.into_parts();
    let body = match Limited::new(body, settings.body_limit).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(idempotency::unread(&*error)),
    };
    let scope = (settings.scope)(&parts);
    let claim = idempotency::claim(&parts, &scope, &key, &body);
    // Before the store is asked: dropped meanwhile, it gives the claim back.
    let store = alone.store.0.clone();
    let guard = Guard::new(claim.clone(), store.clone());
    match store.claim(claim.clone()).await {
        Ok(Claimed::First) => *lock(&alone.claimant) = Some(guard),
        Ok(claimed) => {
            guard.settle();
            return Ok(match claimed {
                Claimed::Answered(answer) => idempotency::replay(answer),
                Claimed::Mismatch => idempotency::mismatch(),
                _ => idempotency::still_running(),
            });
        }
        Err(_) => return Ok(idempotency::not_stored()),
    }
    parts.extensions.insert(IdempotencyKey::from(&claim));
    parts.extensions.insert(Keeper(store));
    let response = inner.call(Request::from_parts(parts, Body::from(body))).await?;
    let mut response = response.map(SendBody::into_body);
    stamp(response.extensions_mut(), &claim);
    // Its answer is kept also where it goes nowhere: who asks again has asked once.
    Ok(match alone.keep(response) {
        Promised::Storing(storing) => storing.await,
        Promised::Nothing(response) => response,
    })
}

pin_project_lite::pin_project! {
    /// The inner service's future, with what comes before it, and after it where nobody else is left for that.
    #[project = BeforeProjection]
    pub enum Before<F, E> {
        #[doc(hidden)]
        Plain {
            #[pin]
            future: F,
            alone: Option<Alone>,
        },
        #[doc(hidden)]
        Keyed { future: Pin<Box<dyn Future<Output = Result<Response, E>> + Send>> },
    }
}

impl<F, E> fmt::Debug for Before<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Before").finish_non_exhaustive()
    }
}

impl<F, ResBody, E> Future for Before<F, E>
where
    F: Future<Output = Result<http::Response<ResBody>, E>>,
    ResBody: SendBody,
{
    type Output = Result<Response, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let storing = match self.as_mut().project() {
            BeforeProjection::Keyed { future } => return future.as_mut().poll(cx),
            BeforeProjection::Plain { future, alone } => {
                let response = ready!(future.poll(cx))?.map(SendBody::into_body);
                let Some(alone) = alone.take() else { return Poll::Ready(Ok(response)) };
                match alone.keep(response) {
                    Promised::Nothing(response) => return Poll::Ready(Ok(response)),
                    Promised::Storing(storing) => async move { Ok(storing.await) },
                }
            }
        };
        self.set(Self::Keyed { future: Box::pin(storing) });
        self.poll(cx)
    }
}
