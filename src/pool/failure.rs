//! Where the errors of continuations go.

use std::{error::Error as StdError, fmt, future::Future, pin::Pin, time::Duration};

use axum_core::BoxError;

use super::caught;
use crate::{event::RequestId, status::ConnectionStatus};

/// A continuation that returned an error, as passed to
/// [`EpilogueBuilder::on_failure`](crate::EpilogueBuilder::on_failure).
#[non_exhaustive]
pub struct Failure {
    /// The request that it belongs to.
    pub request: RequestId,
    /// The method and the matched route, or the path if no route is known: `POST /orders`.
    pub route: String,
    /// Its [class](crate::Continuation::class), if it has one.
    pub class: Option<&'static str>,
    /// The error that it returned.
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

/// What an error says, with its sources, where the reason often is ("error sending request"). Each is the user's code.
pub(crate) fn message(error: &(dyn StdError + 'static)) -> String {
    caught::call(|| chain(error)).unwrap_or_else(|payload| {
        caught::dispose(payload);
        "an error whose message panicked".to_owned()
    })
}

/// Many say what their source says as well: that is not said again.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug)]
    struct Sending(io::Error, bool);

    impl fmt::Display for Sending {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("error sending request")?;
            if self.1 { write!(f, ": {}", self.0) } else { Ok(()) }
        }
    }

    impl StdError for Sending {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn a_message_has_each_source_once() {
        for says_its_source in [false, true] {
            let error = Sending(io::Error::other("connection refused"), says_its_source);
            assert_eq!(message(&error), "error sending request: connection refused");
        }
        // Boxed errors, and axum's, say nothing of their own.
        let boxed = axum_core::Error::new(Sending(io::Error::other("connection refused"), false));
        assert_eq!(message(&boxed), "error sending request: connection refused");
    }
}
