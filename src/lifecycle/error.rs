//! What the handle answers when it cannot do what it was asked.

use std::fmt;

use axum_core::response::{IntoResponse, Response};
use http::StatusCode;

/// A call on a [`Lifecycle`](crate::Lifecycle) came too late or twice.
///
/// As a response it is a 500 with the error's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifecycleError {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    HookTooLate,
    FinishedTwice,
    AlreadyAnswered,
}

impl LifecycleError {
    pub(super) const fn new(kind: Kind) -> Self {
        Self { kind }
    }

    /// A hook was registered after the last hook had run: it will not run.
    #[must_use]
    pub const fn is_too_late(&self) -> bool {
        matches!(self.kind, Kind::HookTooLate)
    }

    /// [`finish`](crate::Lifecycle::finish) was called before: this response was dropped.
    #[must_use]
    pub const fn is_finished_twice(&self) -> bool {
        matches!(self.kind, Kind::FinishedTwice)
    }

    /// The handler has answered already: the response given to [`finish`](crate::Lifecycle::finish) was dropped.
    #[must_use]
    pub const fn is_already_answered(&self) -> bool {
        matches!(self.kind, Kind::AlreadyAnswered)
    }
}

impl fmt::Display for LifecycleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::HookTooLate => {
                "the request has ended: register hooks while its handler, body, continuation or hooks still run"
            }
            Kind::FinishedTwice => "the response has been finished already: call `finish` only once per request",
            Kind::AlreadyAnswered => {
                "the handler has answered already: call `finish` before it returns, and do not return a response as well"
            }
        })
    }
}

impl std::error::Error for LifecycleError {}

impl IntoResponse for LifecycleError {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// The handler takes a [`Lifecycle`](crate::Lifecycle), and no service of this crate is around it.
///
/// As a response it is a 500 whose text says what to add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingLifecycle(pub(super) ());

impl fmt::Display for MissingLifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this handler takes a `Lifecycle`, but no service of tower-epilogue is around it: serve the router with \
             `Epilogue::serve` or `Epilogue::make_service`, or add one of its layers, for example \
             `.layer(TimeLimitLayer::off())`",
        )
    }
}

impl std::error::Error for MissingLifecycle {}

impl IntoResponse for MissingLifecycle {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
