//! A middleware between the layers that makes two attempts at each request.

use std::{future::Future, pin::pin, time::Duration};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use futures_util::future::{Either, select};
use tokio::task::JoinSet;

use super::plan::Dice;

/// Which attempts it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// One after the other; it throws the first response away.
    Again,
    /// It gives up on the first one after that time, if there is no response yet, and makes the second.
    GivesUp(Duration),
    /// Both at once: the first response is the answer.
    Hedges(In, In),
}

/// What an attempt of several at once runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// The middleware's own future.
    Future,
    /// A task that is aborted with it.
    ItsTask,
    /// A task that goes on when the middleware has answered.
    FreeTask,
}

impl Attempts {
    pub fn of(dice: &mut Dice) -> Self {
        let runs_in = |dice: &mut Dice| dice.one_of(&[In::Future, In::ItsTask, In::FreeTask]);
        match dice.below(5) {
            0 => Self::Again,
            1 => Self::GivesUp(dice.moment()),
            _ => Self::Hedges(runs_in(dice), runs_in(dice)),
        }
    }

    pub fn spawns(self) -> bool {
        matches!(self, Self::Hedges(one, other) if (one, other) != (In::Future, In::Future))
    }

    pub async fn make(self, request: Request, next: Next) -> Response {
        let first = next.clone().run(copy(&request));
        let second = next.run(request);
        match self {
            Self::Again => {
                drop(first.await);
                second.await
            }
            Self::GivesUp(after) => match tokio::time::timeout(after, first).await {
                Ok(response) => response,
                Err(_) => second.await,
            },
            Self::Hedges(one, other) => {
                let (one, other) = (pin!(one.run(first)), pin!(other.run(second)));
                match select(one, other).await {
                    Either::Left((response, _)) | Either::Right((response, _)) => response,
                }
            }
        }
    }
}

impl In {
    async fn run(self, attempt: impl Future<Output = Response> + Send + 'static) -> Response {
        match self {
            Self::Future => attempt.await,
            Self::ItsTask => {
                let mut tasks = JoinSet::new();
                tasks.spawn(attempt);
                answer(tasks.join_next().await)
            }
            Self::FreeTask => answer(Some(tokio::spawn(attempt).await)),
        }
    }
}

/// A panic goes on where it is waited for.
fn answer(ended: Option<Result<Response, tokio::task::JoinError>>) -> Response {
    ended.unwrap().unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Without its body, which the second attempt has.
fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
