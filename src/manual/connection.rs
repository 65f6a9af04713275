//! What "flushed" and "aborted" mean, on HTTP/1 and on HTTP/2, and what cannot be known.
//!
//! # Flushed
//!
//! A response is flushed when the kernel has taken its last byte. That is the most that a server can learn from
//! writing. It does not mean that the client has it: the bytes may wait in the send buffer of this machine, or in
//! that of a proxy, which then *is* the client. With a reader that has stalled, some megabytes are taken all the
//! same. What is flushed is out of the program's hands: no continuation that runs later can delay it, and nothing can
//! be added to it.
//!
//! *HTTP/1.* One connection carries one response at a time (RFC 9112, section 9.3). The response is flushed when the
//! server has let go of its body and then completed a flush, with more bytes written than before its head.
//!
//! *HTTP/2.* Many responses share a connection, and their frames wait for the client's windows (RFC 9113, section
//! 6.9). The server lets go of a body long before its bytes leave. So each chunk tells when it is
//! written, and the end of the stream is held back until they all are; it leaves in a frame of its own, which tells
//! when it is written, too. So does the head of a response without a body, by the value of one of its headers; where it has none
//! that can, it is known to be flushed with the connection's next turn, a moment later. A client that goes by the declared length, as some versions of curl do, may close before that frame comes: its
//! response is flushed, and the connection ends with a reset, which an accept loop of your own is told of as an error. It is
//! no failure.
//!
//! *Over TLS* a flush means that the TLS session has given all of its records to the kernel. This is why
//! [`TrackedIo`](crate::TrackedIo) goes around the TLS stream and not inside of it.
//!
//! # Aborted
//!
//! The client left before its response was flushed. On a tracked connection one of these has happened:
//!
//! - it closed its sending side: a FIN (unless [that](crate::HalfClose) is not to count);
//! - it reset the connection: an RST;
//! - a write failed, because nobody is there any more, or nobody has taken a byte for too long;
//! - on HTTP/2, it cancelled its stream: a RST_STREAM (RFC 9113, section 6.4); or it broke the protocol, for which the server
//!   ends its stream, or its connection (section 5.4).
//!
//! Nothing else is an abort. A response that is broken off from our side, because its body failed or the limit
//! passed, is [`BrokenOff`](crate::Sent::BrokenOff), without the bit. Everything in flight on an HTTP/1 or HTTP/2
//! connection that the client closes is aborted, pipelined requests (RFC 9112, section 9.3.2) included. A client
//! that leaves in the moment of the flush has aborted or not, whichever its connection sees first.
//!
//! Sockets of tokio are watched while a handler or a body waits, also where the server does not read: behind an
//! unread upload or a pipelined request; on Linux and Android, that is: elsewhere they tell there of a reset alone. One
//! thing hides a FIN: an upload that fills the receive window comes before it, and nobody learns of the one before
//! somebody reads the other.
//!
//! Of any other IO only what its reads and writes tell is seen. For a TLS stream, a
//! [`TrackedSocket`](crate::TrackedSocket) below it and [`TrackedIo::over`](crate::TrackedIo::over) above it have the
//! socket watched all the same.
//!
//! # What a FIN means
//!
//! In TCP, "I have nothing more to send" (RFC 9293, section 3.6): the other direction stays open, and a client may
//! shut down its sending side after its request and wait for the response. In HTTP, practically every FIN is a client
//! that is gone, and the two cannot be told apart until something is written. HTTP allows a client to close
//! at any time (RFC 9112, section 9.5). So a FIN is an abort, at once, and one that comes together with its request
//! can end that before its handler has begun.
//!
//! Where clients that close only their half are to be served, there are two ways:
//!
//! - [`HalfClose::Serve`](crate::HalfClose::Serve), for all of a listener's connections. A FIN is then no abort at
//!   all; that a client really left shows by a reset, or when something is written to it.
//! - Ignored aborts, on a route. The handler runs on, what it answers is written, and if that is taken, hooks see
//!   [`Flushed`](crate::Sent::Flushed) next to ABORTED.
//!
//! Both work once the handler has begun and the request's body has been read to its end. On HTTP/2 such a client gets what its
//! windows take (RFC 9113, section 5.2), for it can widen none any more: when nothing is on its way but responses that wait for
//! that, for a second, it has left. Nor can it answer a [ping](crate::EpilogueBuilder::http2_keep_alive):
//! whatever is on its way, it has left when that answer is overdue, by default 50 s after the last that it sent.
//!
//! # What nobody can know
//!
//! A client whose cable is pulled sends neither FIN nor RST. It counts as gone when its machine leaves probes or bytes
//! unanswered ([`keep_alive`](crate::Tracking::keep_alive), [`unacknowledged`](crate::Tracking::unacknowledged)), by
//! default within a minute. A client whose machine answers while its program takes no byte counts as gone after the
//! [write stall](crate::Tracking::write_stall); on Linux and Android after `unacknowledged`, if that is shorter, as it is by
//! default: to these systems a window that stays closed is as good as no answer.
//!
//! Behind a proxy, the client is the proxy. It takes responses at its own pace, and whether it closes its
//! connection when *its* client leaves is its own setting.
//!
//! # Closing
//!
//! A server that closes while its client is still sending makes the kernel answer with a reset, which can destroy the
//! response before it is read (RFC 9112, section 9.6). So a tracked connection first shuts its own side, and then
//! reads what still comes and throws it away: until the client closes, too, or a bound of
//! [`Linger`](crate::Linger) is reached. Only a client whose request was not read to its end, or of whom bytes are
//! waiting, is waited for; and one of HTTP/2, if it has not closed yet: it acknowledges what it reads (RFC 9113, section
//! 6.9), so that even a client with nothing to upload is sending while it reads. Having been told to go away, it closes
//! when it has read all.
//!
//! hyper closes in order only what it has finished. It drops a connection whose response was broken off, and one that has to
//! end at a drain's deadline; [`Epilogue::serve`](crate::Epilogue::serve) takes such a one back, and has it linger within
//! the same bounds. In accept loops of your own it ends at once, and what its client had not read yet may be lost.
//!
//! An HTTP/1 connection that was upgraded (a 101, or a 2xx to CONNECT) is the application's: what that shuts is its sending
//! side alone, and what the client still sends is for it to read.
//!
//! # When the server stops
//!
//! [`Epilogue::serve`](crate::Epilogue::serve) ends a drain in steps. *When it begins*, the server takes the
//! connections that its system has accepted, and looks once more for requests that have come; then an HTTP/1 connection is closed after the response that is on its way. An HTTP/2 client is
//! sent a GOAWAY with the highest number that a stream can have and the code NO_ERROR, and, when it has answered the ping
//! that comes with it, another one with the last stream that was taken up (RFC 9113, section 6.8); the connection is
//! closed when the streams have ended.
//!
//! *At the deadline* requests that have no response yet are answered with a 503. Of those that have, an HTTP/1 connection is
//! ended, and an HTTP/2 stream is reset with INTERNAL_ERROR, which is what hyper makes of every body that fails.
//!
//! *One [hook limit](crate::EpilogueBuilder::hook_limit) later* the connections that are left are closed as they are. Those
//! are of clients that take no more bytes, or have not answered the ping. Such an HTTP/2 client has no second GOAWAY, and
//! may have half a frame: of hyper's connections nothing but the graceful shutdown can be asked (its
//! `server::conn::http2::Connection` in version 1.12 has `graceful_shutdown`; h2's `abrupt_shutdown` is used inside, for
//! pings that time out, and not given out). A stream that lacks its END_STREAM is not whole. What was flushed still reaches
//! a client that reads on: the connections linger for up to *another hook limit*, after which `serve` returns.
//!
//! # Breaking off
//!
//! A response that cannot be completed must not look complete (RFC 9112, section 8). On HTTP/1 all further
//! writes to the connection are refused, and it ends without the last chunk, or short of its declared length; on HTTP/1.0,
//! where the end of the connection may be that of the response, with a reset, or over TLS without a `close_notify`. So it
//! is with every connection that ends while such a response is on its way. (A wrapper that is no encryption has to tell of
//! the socket below it, by [`TrackedIo::over`](crate::TrackedIo::over): of any other IO there is no reset.) On HTTP/2 the stream is reset when the server
//! next asks for a frame of it, which a client that leaves no room for one can put off; the other streams go on. What is
//! produced for it is dropped at once at the limit and at a drain's deadline, unless its length is known: then it is taken to
//! be whole in memory. On a Unix socket there are no resets: there an HTTP/1.0 client
//! cannot tell.
//!
//! # One moment on HTTP/2
//!
//! Trailers, and the head of a response without a body that has neither a `Content-Length`, a `Location` nor an `ETag`, leave
//! with whatever else their connection has to send, and the connection does not tell which of it that was: they count as
//! flushed when the server's turn is over. So a client that has read such a response, and whose connection breaks while that
//! very turn is not over, may be told as aborted. The end of any other response counts from the flush right after it. The
//! other way round, a stream that is reset while its last frame is on its way, cut short by its window, may be told as
//! flushed. So may one of which such a head, or trailers, are still to leave, if its connection writes something else in that
//! turn; where it writes nothing, it is told as aborted. So is a response without a body that a middleware around
//! [`Epilogue::wrap`](crate::Epilogue::wrap) throws away right after it has asked it for its end: that is what a server does
//! whose client has reset the stream.
//!
//! # Without a tracked connection
//!
//! The layers alone see a response's future and its body, and no socket.
//!
//! - *Flushed* means that the body was read to its end and dropped. On HTTP/2 this can be long before its bytes
//!   leave.
//! - *Aborted* means that the future or the body was dropped before that, by whomever: by the server because its
//!   client left, or by a timeout further out. Only a panic and the end of the whole runtime are told apart.
//! - hyper drops the work of an HTTP/1 client that left only if nothing of it waits to be read: behind an unread
//!   upload or a pipelined request the handler runs to its end, and no abort is told.
//! - A body that is cut at the limit fails when the server next asks for a frame, which a stalled reader can put
//!   off. Its producer is dropped all the same, and the status, the continuations and the hooks do not wait for it.
//! - On HTTP/1.0 a response that ends with its connection looks whole where it was broken off, for that ends in order
//!   (RFC 9112, section 8): nobody can have it reset.
//! - On HTTP/1, a handler that ignores an abort is moved to a task of its own, and its response goes nowhere. A client
//!   that closed only its half does not get it.
//!
//! - A connection that closes while its client is still sending does not linger.
//!
//! # A loop of your own
//!
//! Whoever accepts connections hands each its own handle, and drains at the end:
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
//!         // axum's, which outlives errors of single connections, and a want of file descriptors.
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
//! // … here, wait for the connections: that is the loop's own business.
//! println!("{}", epilogue.drain().await);
//! # Ok(())
//! # }
//! ```
