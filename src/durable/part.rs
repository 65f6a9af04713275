//! [`Durable`], the response part, and the slot that carries it to the layer.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex},
};

use axum_core::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::Extensions;

use super::{
    DurableError, DurableJob, DurableStore, DurableTransaction,
    engine::{NewJob, Unique},
    error::Kind,
    job::kind_error,
    store::Inner,
};
use crate::pool::{caught, lock};

/// A durable job, returned beside a response as a [`Continuation`](crate::Continuation) is.
///
/// [`DurableLayer`](super::DurableLayer) stores it *before* the response is released. If that fails, the client gets
/// a 503 instead of the response, and nothing was promised. Several in one response are stored together or not at
/// all; but one that is [in a transaction of yours](Self::in_transaction) stays stored, whatever becomes of the others.
/// Use `Option<Durable>` if there is not always work to do.
///
/// It starts within milliseconds after the flush (or once it is known that the response never will be flushed), or,
/// if this process dies in between, in any process that runs its kind, when its [lease](super::DurableBuilder::lease)
/// (30 s by default) ends.
///
/// Without a `DurableLayer` around the route the client is answered with a 500, and the log says why.
#[must_use = "a durable job is stored only if it is returned with a response"]
pub struct Durable {
    promise: Option<Promise>,
}

/// A job before and after it is stored.
pub(super) enum Promise {
    New(Result<NewJob, DurableError>),
    /// `None` for a duplicate, which is never promoted.
    Stored(Option<ByHand>),
}

/// One that was stored in the user's own transaction.
#[derive(Clone)]
pub(super) struct ByHand {
    pub(super) store: Arc<Inner>,
    pub(super) id: i64,
    /// Which tells whether it is another that has the number by now.
    pub(super) key: String,
}

impl Durable {
    /// Promises `job`. A job that cannot be serialized to JSON, or deserialized from it again (JSON has no NaN),
    /// cannot be stored: its client gets a 503.
    #[expect(clippy::needless_pass_by_value, reason = "it is given away")]
    pub fn new<J: DurableJob>(job: J) -> Self {
        let invalid = |what: &str, error| DurableError::because(Kind::Invalid(what.to_owned()), error);
        let valid = kind_error(J::KIND).map_or(Ok(()), |error| Err(DurableError::new(Kind::Invalid(error))));
        let job = valid
            .and_then(|()| {
                let payload = serde_json::to_string(&job).map_err(|error| invalid("it does not serialize", error))?;
                // What nobody could ever run is told to whoever promises it, and not to the log for ever.
                let _: J = serde_json::from_str(&payload)
                    .map_err(|error| invalid("it does not come back from the JSON that it is stored as", error))?;
                Ok(payload)
            })
            .map(|payload| NewJob {
                kind: J::KIND,
                key: String::new(),
                unique: Unique::No,
                payload,
                limit: J::LIMIT,
                max_attempts: J::MAX_ATTEMPTS,
                wait: std::time::Duration::ZERO,
                from: String::new(),
            });
        Self { promise: Some(Promise::New(job)) }
    }

    /// Gives it an idempotency key of your own, such as an order's number. Without one it gets a key derived from its
    /// request's `Idempotency-Key`, if there is one, or else a random one; retries keep it.
    ///
    /// While a job of the same kind and key is stored (completed ones are kept for a day), no second one is stored:
    /// the response is released as if it had been, because the first job keeps its promise. A job that was given up
    /// on does not count. An empty key means no key; with a key that contains a NUL, the job cannot be stored.
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        let key = key.into();
        if let Some(Promise::New(promised)) = &mut self.promise {
            match promised {
                // Postgres would fail each time, and with it at first all that is written in the same moment.
                Ok(_) if key.contains('\0') => {
                    *promised = Err(DurableError::new(Kind::Invalid("its key has a NUL in it".to_owned())));
                }
                Ok(job) => {
                    job.key = key;
                    job.unique = Unique::WhileKept;
                }
                Err(_) => {}
            }
        }
        self
    }

    /// Stores `job` in a transaction of your own (a transactional outbox): it is stored if and only if what you write
    /// in the same transaction is. Return the `Durable` with the response, and the job starts as soon as that was
    /// flushed; otherwise, or if you commit after the flush, it starts when its lease ends.
    ///
    /// `transaction` is one of sqlx ([`durable::sqlx`](super::sqlx)) on the database of `store`. Begin it with
    /// [`DurableStore::begin_sqlite`] or [`DurableStore::begin_postgres`], which cannot be dropped half-begun.
    ///
    /// Its key is random, whatever the client has sent: use [`store_in`](Self::store_in) to choose one.
    ///
    /// ```no_run
    /// # #[cfg(feature = "durable-sqlite")] mod example {
    /// # use axum::{extract::State, http::StatusCode};
    /// # use tower_epilogue::durable::{Durable, DurableError, DurableJob, DurableStore, JobContext, JobError, sqlx};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Mail { order: i64 }
    /// # impl DurableJob for Mail {
    /// #     const KIND: &'static str = "mail";
    /// #     async fn run(self, _: JobContext) -> Result<(), JobError> { Ok(()) }
    /// # }
    /// /// The order is there if and only if its mail is.
    /// async fn order(State(store): State<DurableStore>, item: String) -> Result<(StatusCode, Durable), DurableError> {
    ///     let mut transaction = store.begin_sqlite().await?;
    ///     let order = sqlx::query_scalar("INSERT INTO orders (item) VALUES ($1) RETURNING id")
    ///         .bind(item)
    ///         .fetch_one(&mut *transaction)
    ///         .await?;
    ///     let mail = Durable::in_transaction(Mail { order }, &store, &mut transaction).await?;
    ///     transaction.commit().await?;
    ///     Ok((StatusCode::CREATED, mail))
    /// }
    /// # fn app(store: DurableStore) -> axum::Router {
    /// #     axum::Router::new().route("/order", axum::routing::post(order)).layer(store.layer()).with_state(store)
    /// # }
    /// # }
    /// ```
    ///
    /// If the transaction is dropped before its end, it is rolled back, and its job with it; if the `Durable` is
    /// returned all the same, the log says that there is no such job.
    ///
    /// # Errors
    ///
    /// If it cannot be stored. Roll the transaction back.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, it may have stored the job in the transaction: roll that back.
    pub async fn in_transaction<'c, J, T>(
        job: J,
        store: &DurableStore,
        transaction: &mut T,
    ) -> Result<Self, DurableError>
    where
        J: DurableJob,
        T: DurableTransaction<'c>,
    {
        Self::new(job).store_in(store, transaction).await
    }

    /// As [`in_transaction`](Self::in_transaction), for a job that has a [key](Self::with_key) of its own, for
    /// example that of the client's request, [`IdempotencyKey::as_str`](super::IdempotencyKey::as_str).
    ///
    /// If the process dies between the handler's commit and the response, the handler runs again when its client
    /// retries. So what it writes should have the client's key, too:
    ///
    /// ```no_run
    /// # #[cfg(feature = "durable-sqlite")] mod example {
    /// # use axum::{extract::State, http::StatusCode};
    /// # use tower_epilogue::durable::{
    /// #     Durable, DurableError, DurableJob, DurableStore, IdempotencyKey, JobContext, JobError, sqlx,
    /// # };
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Mail { order: i64 }
    /// # impl DurableJob for Mail {
    /// #     const KIND: &'static str = "mail";
    /// #     async fn run(self, _: JobContext) -> Result<(), JobError> { Ok(()) }
    /// # }
    /// async fn order(
    ///     State(store): State<DurableStore>,
    ///     key: IdempotencyKey,
    ///     item: String,
    /// ) -> Result<(StatusCode, Durable), DurableError> {
    ///     let insert = "INSERT INTO orders (client_key, item) VALUES ($1, $2)
    ///         ON CONFLICT (client_key) DO UPDATE SET client_key = excluded.client_key RETURNING id";
    ///     let mut transaction = store.begin_sqlite().await?;
    ///     let order =
    ///         sqlx::query_scalar(insert).bind(key.as_str()).bind(item).fetch_one(&mut *transaction).await?;
    ///     let mail = Durable::new(Mail { order }).with_key(key.as_str());
    ///     let mail = mail.store_in(&store, &mut transaction).await?;
    ///     transaction.commit().await?;
    ///     Ok((StatusCode::CREATED, mail))
    /// }
    /// # fn app(store: DurableStore) -> axum::Router {
    /// #     axum::Router::new().route("/order", axum::routing::post(order)).layer(store.layer()).with_state(store)
    /// # }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If it cannot be stored. Roll the transaction back.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped, it may have stored the job in the transaction: roll that back.
    pub async fn store_in<'c, T>(mut self, store: &DurableStore, transaction: &mut T) -> Result<Self, DurableError>
    where
        T: DurableTransaction<'c>,
    {
        if let Some(Promise::New(job)) = self.promise.take() {
            self.promise = Some(Promise::Stored(store.insert_in(job?, transaction.erase()).await?));
        }
        Ok(self)
    }

    /// Adds it to a response of any tower service, after those already in it.
    pub fn attach<B>(self, response: &mut http::Response<B>) {
        self.attach_to(response.extensions_mut());
    }

    fn attach_to(mut self, extensions: &mut Extensions) {
        let Some(promise) = self.promise.take() else { return };
        if let Some(slot) = extensions.get::<Slot>() {
            let mut waiting = lock(&slot.0.0);
            // One that was emptied may be shared with the copies that a cache gives to other requests.
            if !waiting.is_empty() {
                return waiting.push(promise);
            }
        }
        extensions.insert(Slot(Arc::new(Waiting(Mutex::new(vec![promise])))));
    }

    /// Puts a promise back after `change`.
    pub(super) fn put_back(mut promise: Promise, extensions: &mut Extensions, change: impl FnOnce(&mut NewJob)) {
        if let Promise::New(Ok(job)) = &mut promise {
            change(job);
        }
        Self { promise: Some(promise) }.attach_to(extensions);
    }

    pub(super) fn into_promise(mut self) -> Option<Promise> {
        self.promise.take()
    }

    /// Whether a response carries any.
    pub(super) fn is_in(extensions: &Extensions) -> bool {
        extensions.get::<Slot>().is_some_and(|slot| !lock(&slot.0.0).is_empty())
    }

    /// Takes all that a response carries.
    pub(super) fn take_from(extensions: &mut Extensions) -> Vec<Promise> {
        match extensions.remove::<Slot>() {
            Some(slot) => std::mem::take(&mut *lock(&slot.0.0)),
            None => Vec::new(),
        }
    }
}

/// Whether a response carries any job.
pub(crate) fn is_promised(extensions: &Extensions) -> bool {
    Durable::is_in(extensions)
}

/// Takes from a response what nobody has stored: whether there was any.
pub(crate) fn take_unkept(extensions: &mut Extensions) -> bool {
    // Most responses carry nothing at all.
    !extensions.is_empty() && Durable::take_from(extensions).iter().any(|promise| matches!(promise, Promise::New(_)))
}

/// The response extension. Cloned extensions share one list, so that each is stored once.
#[derive(Clone)]
struct Slot(Arc<Waiting>);

struct Waiting(Mutex<Vec<Promise>>);

impl Drop for Waiting {
    /// The response was dropped, or left, before any layer saw it. That is no promise that could be kept here: where none
    /// of our services stands, nothing knows the store. But it is said (contract rule 13).
    fn drop(&mut self) {
        let unkept = std::mem::take(&mut *lock(&self.0));
        for promise in &unkept {
            if let Promise::New(job) = promise {
                let kind = job.as_ref().map(|job| job.kind).unwrap_or_default();
                caught::tell(|| {
                    tracing::error!(
                        kind,
                        "a response with a durable job left, or was dropped, before a `DurableLayer` saw it: the job is not \
                     stored. Add `.layer(store.layer())` outside of what drops responses"
                    );
                });
            }
        }
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.promise {
            Some(Promise::New(Ok(job))) => job.kind,
            Some(Promise::New(Err(_))) => "invalid",
            Some(Promise::Stored(_)) => "stored",
            None => "taken",
        };
        f.debug_tuple("Durable").field(&state).finish()
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        if let Some(Promise::New(_)) = self.promise {
            caught::tell(|| {
                tracing::warn!("a durable job was dropped and is not stored: return it as a part of the response");
            });
        }
    }
}

impl IntoResponseParts for Durable {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        self.attach_to(parts.extensions_mut());
        Ok(parts)
    }
}

impl IntoResponse for Durable {
    fn into_response(self) -> Response {
        (self, ()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::durable::{JobContext, JobError};

    #[derive(Serialize, Deserialize)]
    struct Job;

    impl DurableJob for Job {
        const KIND: &'static str = "job";

        async fn run(self, _: JobContext) -> Result<(), JobError> {
            Ok(())
        }
    }

    #[test]
    fn what_a_copy_is_given_whose_own_was_taken_is_that_copys() {
        let mut response = (Durable::new(Job), "body").into_response();
        let mut copies = [(); 2].map(|()| response.extensions().clone());
        assert_eq!(Durable::take_from(response.extensions_mut()).len(), 1);
        for copy in &mut copies {
            Durable::new(Job).attach_to(copy);
            Durable::new(Job).attach_to(copy);
        }
        for copy in &mut copies {
            assert_eq!(Durable::take_from(copy).len(), 2);
        }
    }
}
