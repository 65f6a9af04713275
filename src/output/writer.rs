use std::{
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

use super::{OutputError, OutputResponse, pipe::Pipe};

/// The writing side of a response. See the [module docs](super).
///
/// If it is dropped before [`finish`](Self::finish), the response is broken off, so that half a page never looks
/// complete, unless it belongs to a producer ([`Lifecycle::output`](crate::Lifecycle::output)) that returns `Ok`.
pub struct Output {
    pipe: Arc<Pipe>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("finished", &self.pipe.is_finished())
            .field("closed", &self.pipe.is_closed())
            .finish_non_exhaustive()
    }
}

impl Output {
    /// A writer, and the response that it writes: for work that runs elsewhere, in the handler after
    /// [`finish`](crate::Lifecycle::finish) or in a task.
    ///
    /// Such work is not dropped when the client leaves. Its next write then returns an error; or, if aborts are
    /// ignored, all writes are accepted and discarded.
    ///
    /// It belongs under a service of this crate. Without any, each flush is sent as an empty frame on HTTP/2, of which some
    /// clients end the connection (h2 after 100; RFC 9113, section 10.5).
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_epilogue::{Lifecycle, Output, OutputError};
    ///
    /// async fn import(lifecycle: Lifecycle) {
    ///     let (mut output, response) = Output::channel();
    ///     let work = async move {
    ///         for row in 1..=3 {
    ///             output.write(format!("row {row}\n")).await?;
    ///             output.flush().await?;
    ///         }
    ///         output.finish().await
    ///     };
    ///     // The response leaves now, while it is written.
    ///     let (_sent, _written): (_, Result<(), OutputError>) = tokio::join!(lifecycle.finish(response), work);
    /// }
    ///
    /// let app: Router = Router::new().route("/import", get(import));
    /// # let _ = app;
    /// ```
    pub fn channel() -> (Self, OutputResponse) {
        let pipe = Arc::new(Pipe::new(super::BUFFER));
        (Self { pipe: pipe.clone() }, OutputResponse::new(pipe))
    }

    /// Writes all of `data`. Waits while the buffer is full because the client is not reading.
    ///
    /// It leaves as soon as the connection has room for it, also without a [`flush`](Self::flush), unless the response
    /// [holds](OutputResponse::hold_until_flush) it.
    ///
    /// # Errors
    ///
    /// After the client left (unless aborts are ignored), after the response was broken off or replaced, and after
    /// [`finish`](Self::finish). What was written before may or may not have left.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: if it is dropped while it waits, an unknown part of `data` has been written.
    pub async fn write(&mut self, data: impl AsRef<[u8]> + Send) -> Result<(), OutputError> {
        let mut rest = data.as_ref();
        loop {
            let written = poll_fn(|cx| self.pipe.poll_write(cx, rest)).await?;
            rest = &rest[written..];
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends everything written so far, through every compressor of this crate that is outside. Resolves when the
    /// server has taken it and had its turn to send; the client may not have received it yet.
    ///
    /// # Errors
    ///
    /// After the client left (unless aborts are ignored), or after the response was broken off or replaced. Not after
    /// [`finish`](Self::finish): nothing is left to flush then.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. If it is dropped after that, the flush takes place all the same.
    pub async fn flush(&mut self) -> Result<(), OutputError> {
        poll_fn(|cx| self.pipe.poll_flush(cx)).await
    }

    /// Ends the response. Resolves when the server has taken its end.
    ///
    /// In a [producer](crate::Lifecycle::output), whatever comes after it runs as a continuation: once the response
    /// was flushed, or will not be. A client disconnect no longer ends it.
    ///
    /// # Errors
    ///
    /// If it was called before, or nobody reads the response any more.
    ///
    /// # Cancel safety
    ///
    /// Nothing happens before the first poll. If it is dropped after that, the response ends all the same.
    pub async fn finish(&mut self) -> Result<(), OutputError> {
        let mut begun = false;
        poll_fn(|cx| {
            if !std::mem::replace(&mut begun, true) {
                self.pipe.finish()?;
            }
            self.pipe.poll_ended(cx)
        })
        .await
    }

    /// Whether the next write would return an error, because nobody reads the response any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.pipe.is_closed()
    }
}

/// `poll_shutdown` is [`finish`](Output::finish), and may be repeated. Errors are of the kind
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe), with an [`OutputError`] inside.
impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(ready!(self.pipe.poll_write(cx, data))?))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(ready!(self.pipe.poll_flush(cx))?))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.pipe.is_finished() {
            self.pipe.finish()?;
        }
        Poll::Ready(Ok(ready!(self.pipe.poll_ended(cx))?))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.pipe.writer_dropped();
    }
}
