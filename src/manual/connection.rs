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
//! written, and the end of the stream is held back until they all are; it leaves in a frame of its own. A response
//! without a body is known to be flushed with the connection's next turn, a moment later.
//!
//! *Over TLS* a flush means that the TLS session has given all of its records to the kernel. This is why
//! [`TrackedIo`](crate::TrackedIo) goes around the TLS stream and not inside of it.
//!
//! # Aborted
//!
//! The client left before its response was flushed. On a tracked connection one of these has happened:
//!
//! - it closed its sending side: a FIN;
//! - it reset the connection: an RST;
//! - a write failed, because nobody is there any more;
//! - on HTTP/2, it cancelled its stream: a RST_STREAM (RFC 9113, section 6.4).
//!
//! Nothing else is an abort. A response that is broken off from our side, because its body failed or the limit
//! passed, is [`BrokenOff`](crate::Sent::BrokenOff), without the bit. Everything in flight on an HTTP/1 or HTTP/2
//! connection that the client closes is aborted, pipelined requests (RFC 9112, section 9.3.2) included. A client
//! that leaves in the very moment of the flush has its response: the kernel has taken it.
//!
//! Sockets of tokio are watched while a handler waits, also where the server does not read: behind an unread upload
//! or a pipelined request. One thing hides a FIN: an upload that fills the receive window comes before
//! it, and nobody learns of the one before somebody reads the other. Of any other IO, a TLS stream for one, only
//! what its reads and writes tell is seen.
//!
//! # What a FIN means
//!
//! In TCP, "I have nothing more to send" (RFC 9293, section 3.6): the other direction stays open, and a client may
//! shut down its sending side after its request and wait for the response. In HTTP, practically every FIN is a client
//! that is gone, and the two cannot be told apart until something is written. HTTP allows a client to close
//! at any time (RFC 9112, section 9.5). So a FIN is an abort, at once.
//!
//! Where a client that closes only its half is to be served, ignore aborts on its routes: the handler runs on,
//! what it answers is written, and if it is taken, hooks see [`Flushed`](crate::Sent::Flushed) next to ABORTED.
//! This works when the request's body has been read to its end; with an unread one, the server ends the
//! connection.
//!
//! # What nobody can know
//!
//! A client whose cable is pulled sends neither FIN nor RST. Nothing tells until TCP gives up resending, which takes
//! many minutes, or never if there is nothing to send. The time limit bounds the request meanwhile, and the
//! patience bounds the wait for the flush.
//!
//! Behind a proxy, the client is the proxy. It takes responses at its own pace, and whether it closes its
//! connection when *its* client leaves is its own setting.
//!
//! # Breaking off
//!
//! A response that cannot be completed must not look complete (RFC 9112, section 8). On HTTP/1 all further
//! writes to the connection are refused, and it ends without the last chunk, or short of its declared length. On HTTP/2
//! the stream is reset when the server next asks for a frame of it; the other streams go on.
//!
//! # Without a tracked connection
//!
//! The layers alone see a response's future and its body, and no socket.
//!
//! - *Flushed* means that the body was read to its end and dropped. On HTTP/2 this can be long before its bytes
//!   leave.
//! - *Aborted* means that the future or the body was dropped before that, by whomever: the server because its client
//!   left, a timeout further out, a panic. Only the end of the whole runtime is told apart.
//! - hyper drops the work of an HTTP/1 client that left only if nothing of it waits to be read: behind an unread
//!   upload or a pipelined request the handler runs to its end, and no abort is told.
//! - A body that is cut at the limit fails when the server next asks for a frame, which a stalled reader can put
//!   off. The status, the continuations and the hooks do not wait for it.
//! - On HTTP/1, a handler that ignores an abort is moved to a task of its own, and its response goes nowhere. A client
//!   that closed only its half does not get it.
//!
//! # A loop of your own
//!
//! Whoever accepts connections hands each its own handle:
//!
//! ```no_run
//! # #[cfg(feature = "serve")]
//! # async fn run(epilogue: tower_epilogue::Epilogue, app: axum::Router) -> std::io::Result<()> {
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto, service::TowerToHyperService};
//! use tower_epilogue::TrackedIo;
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! loop {
//!     let (stream, _) = listener.accept().await?; // and a TLS handshake here, if there is one
//!     let io = TrackedIo::new(stream);
//!     let service = TowerToHyperService::new(epilogue.wrap(&io, app.clone()));
//!     tokio::spawn(async move {
//!         let server = auto::Builder::new(TokioExecutor::new());
//!         let _ = server.serve_connection_with_upgrades(TokioIo::new(io), service).await;
//!     });
//! }
//! # }
//! ```
//!
//! What such a loop does not have is the drain: [`Epilogue::running`](crate::Epilogue::running) says what is left to
//! wait for.
