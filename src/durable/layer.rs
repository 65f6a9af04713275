//! [`DurableLayer`]: stores what a response promises before it is released.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use axum_core::{body::Body, response::Response};
use http::{Request, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Durable, DurableStore,
    claimant::Claimant,
    commit::{Commit, ResponseFuture, Waiting},
    idempotency::{self, Guard, IdempotencyKey},
    keep::{Asker, Claims, keep_promises, stamp},
    records::Claimed,
    store::Inner,
};
use crate::{
    lifecycle::{GoesOn, How, Keeper, Lifecycle, Promised, SendBody, Whose, enter},
    pool::caught,
};

/// Layer that stores the durable jobs that its handlers return, before their responses are released. Made by
/// [`DurableStore::layer`].
///
/// A request with an `Idempotency-Key` header is executed only once, unless its method is safe (GET, HEAD, OPTIONS,
/// TRACE; RFC 9110, section 9.2.1):
///
/// | the client sends | it gets |
/// |---|---|
/// | a new key | the handler's response, which is stored together with its jobs |
/// | the key again, with the same body | the first response again, with `Idempotency-Replayed: true` |
/// | the key again, with another body, query or `Content-Type` | 422 |
/// | the key again, while the first request is still running | 409 |
/// | a malformed key | 400 |
///
/// A key is a quoted string, whose parameters are ignored (RFC 9651, sections 3.1.2 and 3.3.3), or the same without
/// quotes, as most clients send it.
///
/// The key is scoped to one method, path and client. The path is that of the request (without the feature `serve`,
/// what `Router::nest` leaves of it); the client is what [`scope`](Self::scope) returns. A `multipart/form-data` body
/// whose client picks a new boundary for each retry counts as a different body each time.
///
/// A response without a durable job (a refusal, a failure) is not kept: the client may correct its request and use
/// the key again. If it was given to [`finish`](crate::Lifecycle::finish), this holds once the handler has ended.
/// Bodies over 64 KiB, of unknown length, or that broke off are not kept either, and are missing from the replayed
/// response, as are trailers.
///
/// A replayed response bypasses everything inside this layer. Authorize the client outside it, so that a revoked
/// `Authorization` is not served.
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

    /// Answers requests without an `Idempotency-Key` with a 400. By default they are accepted.
    #[must_use]
    pub fn require_key(mut self) -> Self {
        self.settings.required = true;
        self
    }

    /// The maximum size of the body of a request with an `Idempotency-Key`, which is read whole before the handler
    /// runs; 1 MiB by default. A longer one is answered with a 413.
    #[must_use]
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.settings.body_limit = bytes;
        self
    }

    /// Tells clients apart, so that one client's key does not get another client its response. By default it is the
    /// `Authorization` header. If clients are identified by a session cookie, return the session's or the user's id.
    /// Do so too if a client may get a new token before it retries: by default it then counts as a different client.
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

/// Service of [`DurableLayer`].
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
struct ClaimedIn(Arc<Inner>);

/// What is left of this layer for a request: its handler may go on where its client has left, or where it has given its
/// response to `finish`.
struct Left {
    claimant: Arc<Claimant>,
    store: Arc<Inner>,
    /// What waits for the response.
    waits: Weak<()>,
}

impl Keeper for Left {
    fn is_gone(&self) -> bool {
        self.waits.strong_count() == 0
    }

    fn keep(&self, lifecycle: Lifecycle, mut response: Response, how: How, whose: Whose) -> Promised {
        let promises = Durable::is_in(response.extensions());
        if how == How::Finished && !promises {
            // The handler runs on, and so does its claim.
            return Promised::Nothing(response);
        }
        // What is returned after `finish` is no answer to anybody; what else goes nowhere is kept: who asks again has asked
        // once.
        let is_answer = how != How::ReturnedLate;
        // What still waits for a response will get one, and its claim is for that, unless what goes on alone has promised
        // before.
        let has_left = self.is_gone() || lifecycle.0.has_answered();
        let may_answer = promises && is_answer;
        let goes_on = !matches!(whose, Whose::InService);
        // Nor is it for anything else as long as another goes on.
        let another = self.claimant.going() > usize::from(goes_on) || lifecycle.0.is_in_service();
        let takes = if may_answer { has_left || goes_on } else { has_left && !another };
        let guard = takes.then(|| self.claimant.take()).flatten();
        // Only now: whoever finds that nothing goes on gives the claim back.
        drop(whose);
        // Those of the response that is waited for have the same keys, and are other jobs, perhaps.
        if let Some(claim) = guard.as_ref().and_then(Guard::claim).filter(|_| how != How::Finished && has_left) {
            stamp(response.extensions_mut(), claim);
        }
        let (answered, late) = if is_answer { (guard, None) } else { (None, guard) };
        let claims = Claims::new(answered, late, &self.claimant, &lifecycle);
        keep_promises(&self.store, &lifecycle, response, claims, Asker::Gone)
    }

    fn goes_on(&self) -> GoesOn {
        Box::new(self.claimant.goes_on())
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
        let outer = request.extensions().get::<ClaimedIn>().is_some_and(|store| Arc::ptr_eq(&store.0, &self.store.0));
        let applies = !outer && idempotency::applies_to(request.method());
        let key = if applies { idempotency::read(request.headers()) } else { Ok(None) };
        let refusal = match &key {
            Err(()) => Some(idempotency::malformed()),
            Ok(None) if self.settings.required && applies => Some(idempotency::missing()),
            Ok(_) => None,
        };
        let key = key.ok().flatten().map(Cow::into_owned);
        // What waits for the response, and its claim.
        let waiting = (!outer).then(|| Waiting::new(lifecycle.clone()));
        let kept = (!outer).then(|| self.store.0.clone());
        let claimant = waiting.as_ref().map(|waiting| {
            let (claimant, store) = (waiting.claimant.clone(), self.store.0.clone());
            lifecycle.0.add_keeper(Arc::new(Left { claimant: claimant.clone(), store, waits: waiting.is_there() }));
            claimant
        });
        let call = || match (refusal, key, claimant) {
            (Some(refusal), ..) => Before::Keyed { future: Box::pin(std::future::ready(Ok(refusal))) },
            (None, Some(key), Some(claimant)) => {
                // The one that is ready is the one that is called.
                let later = self.inner.clone();
                let inner = std::mem::replace(&mut self.inner, later);
                let (store, settings) = (self.store.0.clone(), self.settings.clone());
                Before::Keyed { future: Box::pin(keyed(inner, request, key, claimant, store, settings)) }
            }
            (None, ..) => Before::Plain { future: self.inner.call(request) },
        };
        ResponseFuture::new(entered.call_shaped(call, |hold| Commit::new(hold, kept, lifecycle, waiting)))
    }
}

/// Runs the handler of a request with a key, if it is the first with it.
async fn keyed<S, ResBody>(
    mut inner: S,
    request: Request<Body>,
    key: String,
    claimant: Arc<Claimant>,
    store: Arc<Inner>,
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
    let room = match store.room() {
        Ok(room) => room,
        Err(error) => {
            let route = parts.extensions.get::<Lifecycle>().map(|lifecycle| lifecycle.0.route());
            caught::tell(|| tracing::error!(route, %error, "a request with an idempotency key is answered with a 503"));
            return Ok(idempotency::not_stored());
        }
    };
    // Before the store is asked: dropped meanwhile, it gives the claim back.
    let guard = Guard::new(claim.clone(), store.clone());
    match store.claim(claim.clone(), room).await {
        Ok(Claimed::First) => claimant.put(guard),
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
    parts.extensions.insert(ClaimedIn(store));
    let response = inner.call(Request::from_parts(parts, Body::from(body))).await?;
    let mut response = response.map(SendBody::into_body);
    stamp(response.extensions_mut(), &claim);
    Ok(response)
}

pin_project_lite::pin_project! {
    /// The inner service's future, with what comes before it.
    #[project = BeforeProjection]
    pub enum Before<F, E> {
        #[doc(hidden)]
        Plain { #[pin] future: F },
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            BeforeProjection::Plain { future } => future.poll(cx).map_ok(|response| response.map(SendBody::into_body)),
            BeforeProjection::Keyed { future } => future.as_mut().poll(cx),
        }
    }
}
