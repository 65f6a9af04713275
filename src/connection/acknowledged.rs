//! Whether the client's machine has confirmed what was flushed to it.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use super::{Connection, watch::Source};

/// Whether the client's machine has acknowledged a response.
///
/// Flushed means that the kernel accepted a response; acknowledged, that the TCP of the client's machine confirmed
/// all of it (RFC 9293, section 3.8). Neither says that the client program has read it. A Unix socket has no such
/// confirmation: there, acknowledged means that the other program has read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledged {
    /// All of it was confirmed.
    Yes,
    /// The client reset the connection before that, or the response was never flushed.
    Aborted,
    /// It is not known: the connection is not tracked, its socket is unknown, or the system does not tell (only Linux
    /// does).
    Unknown,
}

/// The socket that a response is flushed to.
#[derive(Clone, Default)]
pub(crate) struct Delivered {
    source: Option<Source>,
}

impl Connection {
    /// Keeps the socket for a later [`acknowledged`](Delivered::acknowledged), also when the server drops the IO.
    pub(crate) fn keep_socket(&self) -> Delivered {
        Delivered { source: self.source() }
    }
}

/// The first look comes at once; a small write is confirmed after the delayed acknowledgement (40 ms on Linux).
const FIRST: Duration = Duration::from_millis(1);
const LAST: Duration = Duration::from_millis(100);

impl Delivered {
    /// Called after the flush: resolves when all that was written until now was confirmed, or never will be. There is no
    /// event for it: the send queue is looked at, less and less often, up to ten times a second.
    pub(crate) async fn acknowledged(&self) -> Acknowledged {
        let Some(source) = &self.source else {
            return Acknowledged::Unknown;
        };
        let upto = source.sent();
        let is_confirmed = || {
            // Counted before the look at the queue: what is written in between is in the queue alone then, and taken for what
            // was written before at worst, which is asked for again.
            let sent = source.sent();
            unacknowledged(source).map(|queued| sent.saturating_sub(queued) >= upto)
        };
        let mut pause = FIRST;
        loop {
            // A reset leaves the queue as it is for ever, so it is asked for first.
            let mut reset = pin!(source.clone().left(super::HalfClose::Serve));
            let is_reset = match is_confirmed() {
                None => return Acknowledged::Unknown,
                Some(true) if !source.is_unix() => return Acknowledged::Yes,
                // A Unix socket that is closed throws away what was not read of it, which leaves the queue empty; but before
                // that it tells of it, so it is asked after the queue.
                Some(true) => {
                    let told = poll_fn(|cx| Poll::Ready(reset.as_mut().poll(cx).is_ready())).await;
                    if !told && !source.has_error() {
                        return Acknowledged::Yes;
                    }
                    true
                }
                Some(false) => tokio::select! {
                    biased;
                    () = reset => true,
                    () = tokio::time::sleep(pause) => false,
                },
            };
            if is_reset {
                return match source.is_unix() {
                    // It may have been confirmed since the last look, and reset after that.
                    false if is_confirmed() == Some(true) => Acknowledged::Yes,
                    // What was not read may be what came behind it.
                    true if source.sent() > upto => Acknowledged::Unknown,
                    _ => Acknowledged::Aborted,
                };
            }
            pause = (pause * 2).min(LAST);
        }
    }
}

#[cfg(target_os = "linux")]
fn unacknowledged(source: &Source) -> Option<u64> {
    match source {
        Source::Tcp(tcp) => {
            // The end of the connection counts as a byte (RFC 9293, section 3.4). Looked at first: what is shut after that is
            // not in the queue, or is waited for.
            let end = u64::from(tcp.is_shut());
            super::send_queue::length(&tcp.stream).ok().map(|queued| queued.saturating_sub(end))
        }
        Source::Unix(unix) => super::send_queue::length(&unix.stream).ok(),
        #[cfg(feature = "test-util")]
        Source::Memory(_) => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn unacknowledged(_: &Source) -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use socket2::SockRef;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream, UnixStream},
    };

    use super::*;
    use crate::connection::{Tracking, socket::Socket};

    /// The client's machine takes up to 40 ms to confirm that; the response was before it.
    #[tokio::test]
    async fn the_end_of_the_connection_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for resets in [true, false] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut io = Socket::new(listener.accept().await.unwrap().0, &Tracking::new());
            io.write_all(b"hello").await.unwrap();
            client.read_exact(&mut [0; 5]).await.unwrap();
            // Now: tcp(7).
            SockRef::from(&client).set_tcp_quickack(true).unwrap();
            io.shutdown().await.unwrap();
            if resets {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                drop(client);
            }
            assert_eq!(first_look(io.source()).await, Poll::Ready(Acknowledged::Yes), "resets: {resets}");
        }
    }

    /// Also where the runtime has not been told of it yet.
    #[tokio::test]
    async fn what_was_not_read_of_a_unix_socket_that_is_closed_was_not_confirmed() {
        for (reads, expected) in [(false, Acknowledged::Aborted), (true, Acknowledged::Yes)] {
            let (mut client, server) = UnixStream::pair().unwrap();
            let mut io = Socket::new(server, &Tracking::new());
            io.write_all(b"hello").await.unwrap();
            if reads {
                client.read_exact(&mut [0; 5]).await.unwrap();
            } else {
                assert_eq!(first_look(io.source()).await, Poll::Pending);
            }
            drop(client);
            assert_eq!(first_look(io.source()).await, Poll::Ready(expected), "reads: {reads}");
        }
    }

    async fn first_look(source: Option<Source>) -> Poll<Acknowledged> {
        let delivered = Delivered { source };
        let mut acknowledged = pin!(delivered.acknowledged());
        poll_fn(|cx| Poll::Ready(acknowledged.as_mut().poll(cx))).await
    }
}
