//! Where the errors of continuations go.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use axum_core::BoxError;

use crate::{event::RequestId, status::ConnectionStatus};

/// A continuation that returned an error.
#[non_exhaustive]
pub struct Failure {
    /// Its request.
    pub request: RequestId,
    /// The method and the matched route, or the path where no route is known.
    pub route: String,
    /// Its [class](crate::Continuation::class), if it has one.
    pub class: Option<&'static str>,
    /// What it returned.
    pub error: BoxError,
    /// The request's status at that moment.
    pub status: ConnectionStatus,
    /// The time since the request's arrival.
    pub elapsed: Duration,
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("request", &self.request)
            .field("route", &self.route)
            .field("class", &self.class)
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

/// The user's function for failures.
pub(crate) type FailureHandler = Box<dyn Fn(Failure) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;
