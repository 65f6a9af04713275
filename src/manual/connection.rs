//! What "flushed" and "aborted" mean, on HTTP/1 and on HTTP/2, and what cannot be known.
//!
//! # Flushed
//!
//! A response is flushed when the kernel has accepted its last byte. That is the most that a server can learn from
//! writing. It does not mean that the client has received it: the bytes may wait in the send buffer of this machine,
//! or in that of a proxy, which then *is* the client. Even with a reader that has stalled, the kernel may accept some
//! megabytes. Once flushed, a response is out of the program's hands: no continuation that runs later can delay it,
//! and nothing can be added to it.
//!
//! *HTTP/1.* One connection carries one response at a time (RFC 9112, section 9.3). The response is flushed when the
//! server has dropped its body and then completed a flush, with more bytes written than before its head.
//!
//! *HTTP/2.* Many responses share a connection, and their frames wait for the client's flow-control windows (RFC
//! 9113, section 6.9). The server drops a body long before its bytes leave. So each chunk reports when it is written,
//! and the end of the stream is held back until they all are; it leaves in a frame of its own, which reports when it
//! is written as well. The head of a response without a body reports it through the value of its `Content-Length`,
//! `Location` or `ETag`; one that has none of these is known to be flushed at the connection's next turn, a moment
//! later. A client that goes by the declared length, as some versions of curl do, may close before that last frame
//! arrives: its response is flushed, and the connection ends with a reset, which your own accept loop sees as an
//! error. It is no failure.
//!
//! *Over TLS* a flush means that the TLS session has given all of its records to the kernel. This is why
//! [`TrackedIo`](crate::TrackedIo) wraps the TLS stream and not the socket inside it.
//!
//! # Aborted
//!
//! The client left (disconnected) before its response was flushed. On a tracked connection one of these has happened:
//!
//! - it closed its sending side: a FIN (unless [half-closed clients](crate::HalfClose) are served);
//! - it reset the connection: an RST;
//! - a write failed, because nobody is there any more, or no byte was accepted for too long;
//! - on HTTP/2, it cancelled its stream with RST_STREAM (RFC 9113, section 6.4), or it violated the protocol, for
//!   which the server ends the stream or the connection (section 5.4).
//!
//! Nothing else is an abort. A response that is broken off from our side, because its body failed or the limit
//! passed, is [`BrokenOff`](crate::Sent::BrokenOff), without the bit. If the client closes the connection, everything
//! in flight on it is aborted, including pipelined requests (RFC 9112, section 9.3.2). For a client that leaves at
//! the moment of the flush, it counts which of the two its connection sees first.
//!
//! tokio's sockets are watched while a handler or a body waits, even where the server does not read: behind an unread
//! upload or a pipelined request. That is so on Linux and Android; elsewhere, only a reset is seen in this situation.
//! One thing hides a FIN: an upload that fills the receive window arrives before it, and the FIN cannot be seen until
//! somebody reads the upload.
//!
//! For any other kind of IO, only what its reads and writes report is seen. For a TLS stream, a
//! [`TrackedSocket`](crate::TrackedSocket) below it and [`TrackedIo::over`](crate::TrackedIo::over) above it have the
//! socket watched all the same.
//!
//! # What a FIN means
//!
//! In TCP a FIN means "I have nothing more to send" (RFC 9293, section 3.6): the other direction stays open, and a
//! client may shut down its sending side after its request and wait for the response. In HTTP, practically every FIN
//! comes from a client that is gone, and the two cannot be told apart until something is written. HTTP allows a
//! client to close at any time (RFC 9112, section 9.5). So a FIN is an abort, at once, and a FIN that arrives
//! together with its request can end that request before its handler has started.
//!
//! To serve half-closed clients, there are two ways:
//!
//! - [`HalfClose::Serve`](crate::HalfClose::Serve), for all connections of a listener. A FIN is then no abort at all;
//!   that a client has really left shows by a reset, or when something is written to it.
//! - Ignored aborts, on a route. The handler runs on, its response is written, and if the client accepts it, hooks
//!   see [`Flushed`](crate::Sent::Flushed) together with ABORTED.
//!
//! Both work once the handler has started and the request body has been read to its end. On HTTP/2 such a client gets
//! no more than its flow-control windows allow (RFC 9113, section 5.2), because it can no longer enlarge them: when
//! for one second everything in flight on the connection is waiting for window space, the client counts as gone. Nor
//! can it answer a [ping](crate::EpilogueBuilder::http2_keep_alive): whatever is in flight, it counts as gone when
//! that answer is overdue, by default 50 s after the last frame it sent.
//!
//! # What nobody can know
//!
//! A client whose cable is pulled sends neither FIN nor RST. It counts as gone when its machine leaves probes or
//! bytes unanswered ([`keep_alive`](crate::Tracking::keep_alive),
//! [`unacknowledged`](crate::Tracking::unacknowledged)), by default within a minute. A client whose machine answers
//! while its program reads nothing counts as gone after the [write stall](crate::Tracking::write_stall); on Linux and
//! Android after `unacknowledged`, if that is shorter, as it is by default: these systems treat a window that stays
//! closed like an answer that does not come.
//!
//! Behind a proxy, the client is the proxy. It reads responses at its own pace, and whether it closes its connection
//! when *its* client leaves is its own setting.
//!
//! # Closing
//!
//! If a server closes while its client is still sending, the kernel answers with a reset, which can destroy the
//! response before the client has read it (RFC 9112, section 9.6). So a tracked connection lingers: it first shuts
//! down its own side, and then reads and discards whatever still arrives, until the client closes too, or a bound of
//! [`Linger`](crate::Linger) is reached. It lingers only for a client whose request was not read to its end, or whose bytes are
//! waiting unread; and, on HTTP/2, for any client that has not closed yet, because it acknowledges what it reads (RFC
//! 9113, section 6.9): even a client with nothing to upload is sending while it reads. Having been sent a GOAWAY, it
//! closes when it has read everything.
//!
//! hyper shuts down properly only what it has finished. It drops a connection whose response was broken off, and one
//! that has to end at a drain's deadline; [`Epilogue::serve`](crate::Epilogue::serve) takes such a connection back,
//! and has it linger within the same bounds. In your own accept loop it ends at once, and whatever its client had not
//! read yet may be lost.
//!
//! An HTTP/1 connection that was upgraded (a 101, or a 2xx to CONNECT) belongs to the application: shutting it down
//! shuts only the sending side, and it is for the application to read what the client still sends.
//!
//! # When the server stops
//!
//! [`Epilogue::serve`](crate::Epilogue::serve) ends a drain in steps. *When the drain begins*, the server takes the
//! connections that the operating system has already accepted, and looks once more for requests that have arrived.
//! From then on an HTTP/1 connection is closed after the response in flight. An HTTP/2 client is sent a GOAWAY with
//! the highest possible stream number and the code NO_ERROR, and, when it has answered the ping that goes with it, a
//! second one with the last stream that was accepted (RFC 9113, section 6.8); the connection is closed when its
//! streams have ended.
//!
//! *At the deadline* requests that have no response yet are answered with a 503. For the others, an HTTP/1 connection
//! is closed, and an HTTP/2 stream is reset with INTERNAL_ERROR, which is what hyper makes of every body that fails.
//!
//! *One [hook limit](crate::EpilogueBuilder::hook_limit) later* the remaining connections are closed as they are.
//! Those belong to clients that accept no more bytes, or have not answered the ping. Such an HTTP/2 client gets no
//! second GOAWAY, and may get half a frame, because hyper offers nothing but the graceful shutdown (its
//! `server::conn::http2::Connection` in version 1.12 has `graceful_shutdown`; h2's `abrupt_shutdown` is used
//! internally, for pings that time out, and not exposed). The client can tell that a stream without END_STREAM is
//! incomplete. What was flushed still reaches a client that reads on: the connections linger for up to *another hook
//! limit*, after which `serve` returns.
//!
//! # Breaking off
//!
//! A response that cannot be completed must not look complete (RFC 9112, section 8). On HTTP/1 all further writes to
//! the connection are refused, and it ends without the last chunk, or short of its declared length. On HTTP/1.0,
//! where the end of the connection may be the end of the response, it ends with a reset, or over TLS without a
//! `close_notify`. The same goes for every connection that ends while such a response is in flight. (A wrapper that
//! is not encryption has to name the socket below it, by [`TrackedIo::over`](crate::TrackedIo::over): any other IO
//! cannot be reset. On a Unix socket there are no resets: there, an HTTP/1.0 client cannot tell.)
//!
//! On HTTP/2 the stream is reset when the server next asks for one of its frames, which a client that leaves no
//! window space can delay; the other streams go on. The body's producer is dropped at once, at the limit and at a
//! drain's deadline, unless its length is known: such a body is assumed to be complete in memory.
//!
//! # One moment on HTTP/2
//!
//! Trailers, and the head of a response without a body that has no `Content-Length`, `Location` or `ETag`, leave
//! together with whatever else their connection has to send, and the connection does not report which of it was sent:
//! they count as flushed when the server's turn is over. So for a client that has read such a response, and whose
//! connection breaks before that very turn is over, an abort may be reported. The end of any other response is
//! detected by the flush right after it. Conversely, a stream that is reset while its last frame is being sent, cut
//! short by its window, may be reported as flushed. So may a stream whose trailers, or such a head, are still to be
//! sent, if its connection writes something else in that turn; if it writes nothing, the stream is reported as
//! aborted. A response without a body, or with one short piece, is also reported as aborted if a middleware around
//! [`Epilogue::wrap`](crate::Epilogue::wrap) asks its body for its end and then drops all of it at once, since that is what
//! a server does whose client has reset the stream.
//!
//! # Ends of streams on HTTP/2
//!
//! So that its flush can be seen, the end of a body leaves in a frame of its own, when all before it was flushed. Clients count
//! frames that end nothing and carry little (Rust's h2, from 0.4.16 on, ends a connection with ENHANCE_YOUR_CALM for too many
//! that are not read yet), so a last piece of less than 256 bytes takes the end along, if the length of the body is known.
//! Where its client's window has no room for all of such a piece (RFC 9113, section 6.9), it is flushed when the rest has left.
//!
//! Both hold for a server that asks whether the body has ended before it sends the head, as hyper does. A middleware around
//! [`Epilogue::wrap`](crate::Epilogue::wrap) whose body does not pass that question on gets all frames at once, and may collect
//! them: the response counts as flushed when they are gone and the server's turn is over. One that asks, and then collects a body
//! without copying it, waits for its own bytes to be sent: let it not ask, or copy.
//!
//! # Without a tracked connection
//!
//! The layers alone see a response's future and its body, and no socket.
//!
//! - *Flushed* means that the body was read to its end and dropped. On HTTP/2 this can be long before its bytes
//!   leave.
//! - *Aborted* means that the future or the body was dropped before that, whoever dropped it: the server, because its
//!   client left, or a timeout further out. Only a panic and the end of the whole runtime are told apart.
//! - hyper drops the work of an HTTP/1 client that left only if no bytes of that client wait to be read: behind an
//!   unread upload or a pipelined request the handler runs to its end, and no abort is reported.
//! - A body that is cut at the limit fails when the server next asks for a frame, which a stalled reader can delay.
//!   Its producer is dropped all the same, and the status, the continuations and the hooks do not wait for it.
//! - On HTTP/1.0 a response that is delimited by the end of its connection looks complete even if it was broken off,
//!   because the connection closes normally (RFC 9112, section 8): nothing can reset it.
//! - On HTTP/1, a handler that ignores an abort is moved to a task of its own, and its response goes nowhere. A
//!   half-closed client does not get it.
//! - A connection that closes while its client is still sending does not linger.
//!
//! # An accept loop of your own
//!
//! Your loop wraps each connection, gives it a service of its own, and drains at the end:
//!
//! ```no_run
//! # async fn run(epilogue: tower_epilogue::Epilogue, app: axum::Router) -> std::io::Result<()> {
//! use axum::serve::Listener;
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto, service::TowerToHyperService};
//! use tower_epilogue::{TrackedIo, Tracking};
//!
//! let tracking = Tracking::new();
//! let mut listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let mut stop = std::pin::pin!(tower_epilogue::shutdown_signal());
//! loop {
//!     let (stream, _) = tokio::select! {
//!         // axum's `accept` survives errors of single connections, and running out of file descriptors.
//!         accepted = Listener::accept(&mut listener) => accepted,
//!         () = &mut stop => break,
//!     };
//!     let io = TrackedIo::with(stream, &tracking); // after a TLS handshake, if there is one
//!     let service = TowerToHyperService::new(epilogue.wrap(&io, app.clone()));
//!     tokio::spawn(async move {
//!         let server = auto::Builder::new(TokioExecutor::new());
//!         let _ = server.serve_connection_with_upgrades(TokioIo::new(io), service).await;
//!     });
//! }
//! // … wait here for the connections to end, for example with hyper-util's `GracefulShutdown`.
//! println!("{}", epilogue.drain().await);
//! # Ok(())
//! # }
//! ```
