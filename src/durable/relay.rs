//! The way to a Postgres on another machine, on which it is noticed that the machine is gone.
//!
//! A machine that loses its power says nothing, and who has sent its statement and waits for the answer sends nothing
//! either: it would wait for ever. Keep-alive probes tell, and sqlx, which opens its sockets itself, has no setting for them
//! (transact-rs/sqlx, issue 3540). So it is given a socket of this process to connect to, and what it says there is carried
//! to a socket of ours and back, byte for byte; TLS stays between it and Postgres. Once sqlx can, this goes.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use riverqueue::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixListener, UnixStream},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{pools::ask_for_probes, store::random_name};
use crate::pool::{caught, lock};

/// Whoever is silent is asked after this time, and again after it.
const PROBE: Duration = Duration::from_secs(5);
/// Who has answered nothing for so long is gone.
const GONE: Duration = Duration::from_secs(20);
/// How often one is tried that refuses, since it starts, and it is looked whether it is still waited for.
const AGAIN: Duration = Duration::from_millis(100);

const NO_PROBES: &str = "no keep-alive probes on connections to Postgres: a machine that vanishes will not be noticed";

/// Where the connections of one pool lead to.
#[derive(Default)]
struct Way {
    host: String,
    port: u16,
    /// Why the last connection could not be made: all that sqlx sees is that its own was closed.
    failure: Mutex<Option<io::Error>>,
}

/// Why a connection could not be made.
pub(super) struct Failure(Option<Arc<Way>>);

impl Failure {
    pub(super) fn take(&self) -> Option<io::Error> {
        self.0.as_ref().and_then(|way| lock(&way.failure).take())
    }
}

/// Has the connections of a pool that is being made led through here. They go as they came where the server is on this
/// machine's own file system, and where this process may not have such a socket.
pub(super) fn lead(options: PgConnectOptions, pool: PgPoolOptions) -> (PgConnectOptions, PgPoolOptions, Failure) {
    if options.get_socket().is_some() || options.get_host().starts_with('/') {
        return (options, pool, Failure(None));
    }
    // In Linux's abstract namespace: no file, which somebody might tidy away. The rest of the name is sqlx's.
    let directory = format!("\0tower-epilogue-{}", random_name());
    let listener = match UnixListener::bind(format!("{directory}/.s.PGSQL.{}", options.get_port())) {
        Ok(listener) => listener,
        Err(error) => {
            caught::tell(|| tracing::warn!(%error, "{NO_PROBES}"));
            return (options, pool, Failure(None));
        }
    };
    let end = CancellationToken::new();
    // An address of IPv6 comes in the brackets that its URL has it in.
    let host = options.get_host().trim_matches(['[', ']']).to_owned();
    let way = Arc::new(Way { host, port: options.get_port(), ..Way::default() });
    #[expect(clippy::disallowed_methods, reason = "it is no work of a request, and ends with the pool")]
    tokio::spawn(end.clone().run_until_cancelled_owned(accept(listener, way.clone())));
    // The pool has it with its functions, and drops it with them.
    let ends = Arc::new(end.drop_guard());
    let pool = pool.after_connect(move |connection, _| {
        let _ = &ends;
        Box::pin(ask_for_probes(connection, false))
    });
    (options.socket(directory), pool, Failure(Some(way)))
}

async fn accept(listener: UnixListener, way: Arc<Way>) {
    loop {
        match listener.accept().await {
            Ok((local, _)) => {
                let way = way.clone();
                #[expect(
                    clippy::disallowed_methods,
                    reason = "it is no work of a request, and ends with its connection"
                )]
                tokio::spawn(async move { carry(local, &way).await });
            }
            Err(error) => {
                caught::tell(|| tracing::warn!(%error, "connections to Postgres cannot be relayed"));
                sleep(PROBE).await;
            }
        }
    }
}

async fn carry(mut local: UnixStream, way: &Way) {
    // Anybody on this machine can connect to an abstract name; it is there for this process alone.
    let process = i32::try_from(std::process::id()).ok();
    if local.peer_cred().ok().and_then(|peer| peer.pid()) != process {
        caught::tell(|| tracing::debug!("another process tried to use the relay to Postgres: it was refused"));
        return;
    }
    let mut remote = match connect(&local, way).await {
        Ok(Some(remote)) => remote,
        Ok(None) => return,
        Err(error) => {
            caught::tell(|| tracing::warn!(%error, host = way.host, port = way.port, "cannot connect to Postgres"));
            *lock(&way.failure) = Some(error);
            return;
        }
    };
    if let Err(error) = watch(&remote) {
        caught::tell(|| tracing::warn!(%error, "{NO_PROBES}"));
    }
    match tokio::io::copy_bidirectional(&mut local, &mut remote).await {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            let (host, port) = (&way.host, way.port);
            caught::tell(|| {
                tracing::warn!(host, port, "the database's machine does not answer: the connection is given up on");
            });
        }
        // Whoever was using it tells of it; and an end that came while the other still spoke is none to tell of.
        Err(error) => caught::tell(|| tracing::debug!(%error, "a connection to Postgres broke")),
        Ok(_) => {}
    }
}

fn watch(remote: &TcpStream) -> io::Result<()> {
    remote.set_nodelay(true)?;
    let socket = SockRef::from(remote);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE))?;
    // It counts for the probes, too (Linux, tcp(7)).
    socket.set_tcp_user_timeout(Some(GONE))
}

/// As sqlx does it: one that refuses may be starting. `None` if it is no longer waited for.
async fn connect(local: &UnixStream, way: &Way) -> io::Result<Option<TcpStream>> {
    loop {
        let mut connecting = std::pin::pin!(TcpStream::connect((&*way.host, way.port)));
        let connected = loop {
            tokio::select! {
                connected = &mut connecting => break connected,
                () = sleep(AGAIN) => if has_left(local).await? {
                    return Ok(None);
                },
            }
        };
        match connected {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(AGAIN).await,
            done => return done.map(Some),
        }
        if has_left(local).await? {
            return Ok(None);
        }
    }
}

/// Whether the other end is closed, as far as is known.
async fn has_left(local: &UnixStream) -> io::Result<bool> {
    tokio::select! {
        biased;
        ready = local.ready(Interest::READABLE) => Ok(ready?.is_read_closed()),
        () = std::future::ready(()) => Ok(false),
    }
}
