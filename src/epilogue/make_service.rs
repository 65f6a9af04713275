//! The app's service for each connection of a tracked listener.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use axum::serve::{IncomingStream, Listener};

use super::{Epilogue, Service, service::ready_made};
use crate::{
    connection::{Connection, TrackedListener},
    pool::Pool,
};

impl Epilogue {
    /// Makes the app's service for each connection of a [`TrackedListener`], for [`axum::serve()`].
    ///
    /// `axum::serve` returns while continuations are still running: await [`Epilogue::drain`] after it, as below.
    ///
    /// It is the outermost of our services, and turns a panic of the app into a 500. Requests carry
    /// [`ConnectInfo`](axum::extract::ConnectInfo) with the listener's address type.
    ///
    /// ```no_run
    /// # async fn serve(app: axum::Router) -> std::io::Result<()> {
    /// use tower_epilogue::{Epilogue, TrackedListener, shutdown_signal};
    ///
    /// let epilogue = Epilogue::new();
    /// let listener = TrackedListener::new(tokio::net::TcpListener::bind("127.0.0.1:3000").await?);
    /// axum::serve(listener, epilogue.make_service(app)).with_graceful_shutdown(shutdown_signal()).await?;
    /// println!("{}", epilogue.drain().await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn make_service<S: 'static>(&self, app: S) -> MakeService<S> {
        MakeService { app: ready_made(app), pool: self.pool.clone() }
    }
}

/// Made by [`Epilogue::make_service`].
#[derive(Clone, Debug)]
pub struct MakeService<S> {
    app: S,
    pool: Arc<Pool>,
}

/// The future of [`MakeService`]; ready at once.
pub type MakeServiceFuture<S, A> = Ready<Result<Service<S, A>, Infallible>>;

impl<L, S> tower_service::Service<IncomingStream<'_, TrackedListener<L>>> for MakeService<S>
where
    L: Listener,
    L::Addr: Clone + Sync + 'static,
    S: Clone,
{
    type Response = Service<S, L::Addr>;
    type Error = Infallible;
    type Future = MakeServiceFuture<S, L::Addr>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, TrackedListener<L>>) -> Self::Future {
        let address = Some(stream.remote_addr().clone());
        let connection = stream.io().connection().clone();
        // In the task that accepts all connections.
        ready(Ok(Service::cloned(&self.app, self.pool.clone(), connection, address)))
    }
}

impl<S: Clone> MakeService<S> {
    pub(super) fn for_connection<A>(&self, connection: Connection, address: Option<A>) -> Service<S, A> {
        Service::new(self.app.clone(), self.pool.clone(), connection, address)
    }
}
