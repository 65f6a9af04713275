//! The way to a Postgres on another machine, on which it is noticed that the machine is gone.
//!
//! A machine that loses its power says nothing, and who has sent its statement and waits for the answer sends nothing
//! either: it would wait for ever. Keep-alive probes tell, and sqlx, which opens its sockets itself, has no setting for them
//! (transact-rs/sqlx, issue 3540). So it is given a socket of this process to connect to, and what it says there is carried
//! to a socket of ours and back, byte for byte; TLS stays between it and Postgres. Once sqlx can, this goes.

use std::{io, sync::Arc, time::Duration};

use riverqueue::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::store::random_name;

/// Whoever is silent is asked after this time, and again after it.
const PROBE: Duration = Duration::from_secs(5);
/// Who has answered nothing for so long is gone.
const GONE: Duration = Duration::from_secs(20);
/// How often one is tried that refuses, since it starts.
const AGAIN: Duration = Duration::from_millis(100);

/// Has the connections of a pool that is being made led through here. They go as they came where the server is on this
/// machine's own file system, and where this process may not have such a socket.
pub(super) fn lead(options: PgConnectOptions, pool: PgPoolOptions) -> (PgConnectOptions, PgPoolOptions) {
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return (options, pool);
    }
    // In Linux's abstract namespace: no file, which somebody might tidy away. The rest of the name is sqlx's.
    let directory = format!("\0tower-epilogue-{}", random_name());
    let listener = match UnixListener::bind(format!("{directory}/.s.PGSQL.{}", options.get_port())) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "it will not be noticed when the machine of the database vanishes");
            return (options, pool);
        }
    };
    let end = CancellationToken::new();
    let server = Arc::new((options.get_host().to_owned(), options.get_port()));
    #[expect(clippy::disallowed_methods, reason = "it is no work of a request, and ends with the pool")]
    tokio::spawn(end.clone().run_until_cancelled_owned(accept(listener, server)));
    // The pool has it with its functions, and drops it with them.
    let ends = Arc::new(end.drop_guard());
    let pool = pool.after_connect(move |_, _| {
        let _ = &ends;
        Box::pin(async { Ok(()) })
    });
    (options.socket(directory), pool)
}

async fn accept(listener: UnixListener, server: Arc<(String, u16)>) {
    loop {
        match listener.accept().await {
            Ok((local, _)) => {
                let server = server.clone();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "it is no work of a request, and ends with its connection"
                )]
                tokio::spawn(async move {
                    if let Err(error) = carry(local, &server).await {
                        tracing::warn!(%error, host = server.0, port = server.1, "a connection to Postgres broke");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection to Postgres can be made");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn carry(mut local: UnixStream, (host, port): &(String, u16)) -> io::Result<()> {
    // Anybody on this machine can connect to an abstract name; it is there for this process alone.
    let process = i32::try_from(std::process::id()).ok();
    if local.peer_cred()?.pid() != process {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is another process's"));
    }
    let Some(mut remote) = connect(&local, host, *port).await? else { return Ok(()) };
    remote.set_nodelay(true)?;
    let socket = SockRef::from(&remote);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE))?;
    // It counts for the probes, too (Linux, tcp(7)).
    socket.set_tcp_user_timeout(Some(GONE))?;
    tokio::io::copy_bidirectional(&mut local, &mut remote).await?;
    Ok(())
}

/// As sqlx does it: one that refuses may be starting. `None` if it is no longer waited for.
async fn connect(local: &UnixStream, host: &str, port: u16) -> io::Result<Option<TcpStream>> {
    loop {
        match timeout(GONE, TcpStream::connect((host, port))).await? {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(AGAIN).await,
            done => return done.map(Some),
        }
        if local.ready(tokio::io::Interest::READABLE).await?.is_read_closed() {
            return Ok(None);
        }
    }
}
