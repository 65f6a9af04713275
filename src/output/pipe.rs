//! What the writer and the body of one response share.
//!
//! Bytes are counted from the start of the response, so that a flush is a position: it is complete when everything
//! before it was taken, and the reader came back for more.

use std::{
    sync::Mutex,
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;
use bytes::{Bytes, BytesMut};

use super::OutputError;
use crate::pool::lock;

/// Wakers are not ours: nothing is done with one while the state is locked.
#[derive(Debug)]
pub(super) struct Pipe {
    state: Mutex<State>,
    writer: AtomicWaker,
    reader: AtomicWaker,
}

#[derive(Debug)]
struct State {
    buffer: BytesMut,
    capacity: usize,
    /// Only what is flushed or finished, or a full buffer, leaves.
    holds: bool,
    written: u64,
    /// What the body has given out; never less than `flushed`.
    given: u64,
    flushed: u64,
    /// A flush was asked for up to here, and the body has not told of it.
    flush_to: Option<u64>,
    /// The body has told of a flush up to here, and was not asked for more since.
    told: Option<u64>,
    writer: Writer,
    reader: Reader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    Open,
    Finished,
    /// Without a `finish`.
    Dropped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Open,
    /// It was given the end.
    Ended,
    /// It went before the end.
    Gone,
}

/// What the body is to give next.
#[derive(Debug)]
pub(super) enum Next {
    Data(Bytes),
    /// Everything so far is to reach the client now.
    Flush,
    End,
    /// The writer is gone and has not said that this is all.
    Unfinished,
}

impl Pipe {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            buffer: BytesMut::new(),
            capacity,
            holds: false,
            written: 0,
            given: 0,
            flushed: 0,
            flush_to: None,
            told: None,
            writer: Writer::Open,
            reader: Reader::Open,
        };
        Self { state: Mutex::new(state), writer: AtomicWaker::new(), reader: AtomicWaker::new() }
    }

    pub(super) fn set_capacity(&self, bytes: usize) {
        lock(&self.state).capacity = bytes.max(1);
    }

    pub(super) fn set_holds(&self) {
        lock(&self.state).holds = true;
    }

    /// What `look` finds in the state. While there is nothing, `waits` wakes the task: it looks once more when that is
    /// settled, so that no change goes unseen.
    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        waits: &AtomicWaker,
        mut look: impl FnMut(&mut State) -> Poll<T>,
    ) -> Poll<T> {
        let found = look(&mut lock(&self.state));
        if found.is_ready() {
            return found;
        }
        waits.register(cx.waker());
        look(&mut lock(&self.state))
    }
}

// === the writer's side ===

impl Pipe {
    /// Takes in as much as there is room for.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, OutputError>> {
        let mut leaves = false;
        let polled = self.poll(cx, &self.writer, |state| {
            state.check()?;
            if data.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let room = state.capacity.saturating_sub(state.buffer.len());
            if room == 0 {
                return Poll::Pending;
            }
            let taken = room.min(data.len());
            state.buffer.extend_from_slice(&data[..taken]);
            state.written += taken as u64;
            leaves = state.leaves();
            Poll::Ready(Ok(taken))
        });
        if leaves {
            self.reader.wake();
        }
        polled
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), OutputError>> {
        let polled = self.poll(cx, &self.writer, |state| {
            if state.writer == Writer::Finished || state.flushed == state.written {
                return Poll::Ready(Ok(()));
            }
            if state.reader == Reader::Gone {
                return Poll::Ready(Err(OutputError::CLOSED));
            }
            state.flush_to = (state.told != Some(state.written)).then_some(state.written);
            Poll::Pending
        });
        if polled.is_pending() {
            self.reader.wake();
        }
        polled
    }

    /// Says that this is all. Errs if that was said before, or nobody is there to hear it.
    pub(super) fn finish(&self) -> Result<(), OutputError> {
        let mut state = lock(&self.state);
        state.check()?;
        state.writer = Writer::Finished;
        drop(state);
        self.reader.wake();
        Ok(())
    }

    /// Waits until the reader was given the end.
    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Result<(), OutputError>> {
        self.poll(cx, &self.writer, |state| match state.reader {
            Reader::Ended => Poll::Ready(Ok(())),
            Reader::Gone => Poll::Ready(Err(OutputError::CLOSED)),
            Reader::Open => Poll::Pending,
        })
    }

    pub(super) fn is_finished(&self) -> bool {
        lock(&self.state).writer == Writer::Finished
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).reader == Reader::Gone
    }

    pub(super) fn writer_dropped(&self) {
        let mut state = lock(&self.state);
        if state.writer == Writer::Open {
            state.writer = Writer::Dropped;
        }
        drop(state);
        drop(self.writer.take());
        self.reader.wake();
    }
}

// === the body's side ===

impl Pipe {
    /// The body is asked for more: is that what a flush waited for? Completes it, or leaves it for the next time.
    pub(super) fn was_asked_for_more(&self, completes: bool) -> bool {
        let mut state = lock(&self.state);
        let Some(position) = state.told else { return false };
        if completes {
            state.told = None;
            state.flushed = position;
            drop(state);
            self.writer.wake();
        }
        true
    }

    /// The producer that has the writer has returned, and so said that this is all, unless the writer lives on elsewhere.
    pub(super) fn producer_returned(&self) {
        let mut state = lock(&self.state);
        if state.writer == Writer::Dropped {
            state.writer = Writer::Finished;
        }
    }

    /// `produced`: a producer of ours runs, which has the say in what the writer's end means.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>, produced: bool) -> Poll<Next> {
        let polled = self.poll(cx, &self.reader, |state| {
            if state.leaves() {
                let data = state.buffer.split().freeze();
                state.given = state.written;
                return Poll::Ready(Next::Data(data));
            }
            match state.writer {
                Writer::Finished => {
                    state.reader = Reader::Ended;
                    return Poll::Ready(Next::End);
                }
                Writer::Dropped if !produced => return Poll::Ready(Next::Unfinished),
                Writer::Open | Writer::Dropped => {}
            }
            if state.flush_to.take_if(|position| *position <= state.given).is_some() {
                state.told = Some(state.given);
                return Poll::Ready(Next::Flush);
            }
            Poll::Pending
        });
        if matches!(polled, Poll::Ready(Next::Data(_) | Next::End)) {
            self.writer.wake();
        }
        polled
    }

    pub(super) fn reader_dropped(&self) {
        let mut state = lock(&self.state);
        if state.reader == Reader::Open {
            // An HTTP/1 server does not ask for the end of a body whose length was declared.
            let has_all = state.writer == Writer::Finished && state.given == state.written;
            state.reader = if has_all { Reader::Ended } else { Reader::Gone };
        }
        let unread = std::mem::take(&mut state.buffer);
        drop(state);
        drop((unread, self.reader.take()));
        self.writer.wake();
    }
}

impl State {
    /// Whether the writer may go on.
    fn check(&self) -> Result<(), OutputError> {
        if self.writer == Writer::Finished {
            Err(OutputError::FINISHED)
        } else if self.reader == Reader::Gone {
            Err(OutputError::CLOSED)
        } else {
            Ok(())
        }
    }

    /// Whether there is something that may leave.
    fn leaves(&self) -> bool {
        !self.buffer.is_empty()
            && (!self.holds
                || self.flush_to.is_some()
                || self.writer != Writer::Open
                || self.buffer.len() >= self.capacity)
    }
}
