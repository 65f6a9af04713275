//! Task-locals that go along with work which leaves the request's task.

use std::{future::Future, pin::Pin, sync::Arc};

use tokio::task::LocalKey;

/// A boxed future of the kind that every detached piece of work becomes.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Something that is in scope now and shall be in scope where the work goes on.
pub(crate) trait Carry: Send + Sync {
    /// Its value now; `None` where it is not in scope.
    fn capture(&self) -> Option<Box<dyn Captured>>;
}

/// A value on its way.
pub(crate) trait Captured: Send {
    /// The same value, for more work. Calls nobody.
    fn another(&self) -> Box<dyn Captured>;
    fn around(self: Box<Self>, work: Work) -> Work;
    fn around_blocking(self: Box<Self>, work: Box<dyn FnOnce() + Send>) -> Box<dyn FnOnce() + Send>;
}

/// A [`tokio::task_local!`] key.
pub(crate) struct CarryKey<T: 'static>(pub(crate) &'static LocalKey<T>);

struct Value<T: 'static> {
    key: &'static LocalKey<T>,
    /// Cloned, which is the user's code, where several have it.
    value: Arc<T>,
}

impl<T: Clone + Send + Sync + 'static> Carry for CarryKey<T> {
    fn capture(&self) -> Option<Box<dyn Captured>> {
        let value = self.0.try_with(T::clone).ok()?;
        Some(Box::new(Value { key: self.0, value: Arc::new(value) }))
    }
}

impl<T: Clone + Send + Sync + 'static> Captured for Value<T> {
    fn another(&self) -> Box<dyn Captured> {
        Box::new(Self { key: self.key, value: self.value.clone() })
    }

    fn around(self: Box<Self>, work: Work) -> Work {
        let Self { key, value } = *self;
        match Arc::try_unwrap(value) {
            Ok(value) => Box::pin(key.scope(value, work)),
            Err(value) => Box::pin(async move { key.scope(T::clone(&value), work).await }),
        }
    }

    fn around_blocking(self: Box<Self>, work: Box<dyn FnOnce() + Send>) -> Box<dyn FnOnce() + Send> {
        Box::new(move || self.key.sync_scope(Arc::unwrap_or_clone(self.value), work))
    }
}

/// Runs `work` with everything of `captured` in scope.
pub(crate) async fn carried<T, F>(captured: Vec<Box<dyn Captured>>, work: F) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    if captured.is_empty() {
        return work.await;
    }
    let (done, outcome) = tokio::sync::oneshot::channel();
    let mut work: Work = Box::pin(async move {
        // Whoever awaits the outcome is the one who polls this.
        let _ = done.send(work.await);
    });
    for value in captured {
        work = value.around(work);
    }
    work.await;
    match outcome.await {
        Ok(outcome) => outcome,
        // The work returned, so it has sent; there is nothing else to give.
        Err(_) => std::future::pending().await,
    }
}
