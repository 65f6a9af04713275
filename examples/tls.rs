//! Exact under TLS, HTTP/1.1 and HTTP/2 by ALPN: the socket below is watched for client disconnects, and the stream
//! above knows of the flush.
//!
//! Run with: `cargo run --example tls`
//!
//! ```sh
//! curl -ik https://localhost:3000/             # HTTP/2
//! curl -ik --http1.1 https://localhost:3000/
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, reason = "a program, not a library")]

use std::{env, error::Error, pin::pin, sync::Arc, time::Duration};

use axum::{Router, routing::get, serve::Listener};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tower_epilogue::{Continuation, Epilogue, TrackedIo, TrackedSocket, Tracking, shutdown_signal};

async fn hello() -> (Continuation, &'static str) {
    (Continuation::new(async { println!("the response was flushed, encryption and all") }), "hello\n")
}

/// A certificate that nobody signed: for a demonstration.
fn acceptor() -> Result<TlsAcceptor, Box<dyn Error + Send + Sync>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What all connections share.
#[derive(Clone)]
struct Server {
    tls: TlsAcceptor,
    http: Builder<TokioExecutor>,
    epilogue: Epilogue,
    app: Router,
    tracking: Tracking,
}

async fn serve(stream: TcpStream, server: Server, watcher: Watcher) {
    let socket = TrackedSocket::new(stream, &server.tracking);
    let below = socket.handle();
    // A client that goes on with it for ever, or does not begin, would keep its place for ever.
    let Ok(Ok(encrypted)) = timeout(Duration::from_secs(10), server.tls.accept(socket)).await else {
        return;
    };
    let io = TrackedIo::over(encrypted, &below, &server.tracking);
    let service = TowerToHyperService::new(server.epilogue.wrap(&io, server.app));
    let connection = server.http.serve_connection_with_upgrades(TokioIo::new(io), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        // No failure of the server: a client left, or, on HTTP/2, has read all and not waited for the end.
        eprintln!("a connection ended: {error}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let app = Router::new().route("/", get(hello));
    let port = env::var("PORT").unwrap_or_else(|_| "3000".to_owned());
    let mut listener = TcpListener::bind(format!("127.0.0.1:{port}")).await?;
    println!("listening on https://localhost:{}", listener.local_addr()?.port());

    let mut http = Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    let (epilogue, tracking) = (Epilogue::new(), Tracking::new());
    let server = Server { tls: acceptor()?, http, epilogue, app, tracking };
    let graceful = GracefulShutdown::new();
    // One for all turns: a signal that comes between two of them counts.
    let mut stop = pin!(shutdown_signal());
    loop {
        let stream = tokio::select! {
            // axum's, which outlives errors of single connections, and a want of file descriptors.
            (stream, _) = Listener::accept(&mut listener) => stream,
            () = &mut stop => break,
        };
        tokio::spawn(serve(stream, server.clone(), graceful.watcher()));
    }
    // Requests that are under way end first; but not every client takes its response.
    if timeout(Duration::from_secs(20), graceful.shutdown()).await.is_err() {
        println!("some connections did not end in time");
    }
    // Then what runs after responses.
    println!("{}", server.epilogue.drain().await);
    Ok(())
}
