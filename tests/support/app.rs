//! What the apps of the tests are made of: gates, bodies, and hooks and middleware of a few lines.

use std::{io, sync::Arc};

/// Holds work back until the test opens it; open from then on.
#[derive(Clone)]
pub struct Gate(Arc<tokio::sync::watch::Sender<bool>>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(tokio::sync::watch::Sender::new(false)))
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}

/// A route that answers, with a continuation that is held back by `gate`.
pub fn held<R: axum::response::IntoResponse>(
    gate: &Gate,
    response: impl Fn() -> R + Clone + Send + Sync + 'static,
) -> axum::routing::MethodRouter {
    let gate = gate.clone();
    let answer = async move || {
        let work = tower_epilogue::Continuation::new(async move { gate.passed().await });
        (work, response())
    };
    axum::routing::get(answer)
}

/// A body whose length nobody knows beforehand.
pub fn streamed(parts: &'static [&'static str]) -> axum::body::Body {
    axum::body::Body::from_stream(tokio_stream::iter(parts.iter().map(|part| Ok::<_, io::Error>(*part))))
}

/// A middleware that puts the body into a task of its own, so that it is produced ahead of its reader.
pub async fn pumps(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let (parts, body) = next.run(request).await.into_parts();
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut body = body.into_data_stream();
        while let Some(piece) = futures_util::StreamExt::next(&mut body).await {
            // Nobody may be there to take it.
            let _ = sender.send(piece).await;
        }
    });
    axum::response::Response::from_parts(
        parts,
        axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver)),
    )
}

/// A hook that only tells.
pub trait TellingHook: FnOnce(tower_epilogue::End) -> std::future::Ready<()> + Clone + Send + Sync + 'static {}

impl<H> TellingHook for H where H: FnOnce(tower_epilogue::End) -> std::future::Ready<()> + Clone + Send + Sync + 'static {}

/// How requests ended, in order: the status, and what became of the response.
pub type Ends = tokio::sync::mpsc::UnboundedReceiver<(tower_epilogue::ConnectionStatus, tower_epilogue::Sent)>;

/// A layer whose hook tells how each request ended.
pub fn ends() -> (tower_epilogue::ShutdownHookLayer<impl TellingHook>, Ends) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let hook = move |end: tower_epilogue::End| {
        // The test may have seen enough.
        let _ = sender.send((end.status(), end.sent()));
        std::future::ready(())
    };
    (tower_epilogue::ShutdownHookLayer::new(hook), receiver)
}
