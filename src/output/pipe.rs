//! What the writer and the body of one response share.
//!
//! Bytes are counted from the start of the response, so that a flush is a position: it is complete when everything
//! before it was taken, and the reader came back for more.

use std::{
    sync::Mutex,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};

use super::OutputError;
use crate::pool::lock;

#[derive(Debug)]
pub(super) struct Pipe(Mutex<State>);

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
    writer_waker: Option<Waker>,
    reader_waker: Option<Waker>,
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
        Self(Mutex::new(State {
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
            writer_waker: None,
            reader_waker: None,
        }))
    }

    pub(super) fn set_capacity(&self, bytes: usize) {
        lock(&self.0).capacity = bytes.max(1);
    }

    pub(super) fn set_holds(&self) {
        lock(&self.0).holds = true;
    }

    /// Changes the state and then wakes whom `change` says: outside of the lock, since a waker is not ours.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> (T, Option<Waker>)) -> T {
        let mut state = lock(&self.0);
        let (value, waker) = change(&mut state);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        value
    }
}

// === the writer's side ===

impl Pipe {
    /// Takes in as much as there is room for.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, OutputError>> {
        self.change(|state| {
            if let Err(error) = state.check() {
                return (Poll::Ready(Err(error)), None);
            }
            if data.is_empty() {
                return (Poll::Ready(Ok(0)), None);
            }
            let room = state.capacity.saturating_sub(state.buffer.len());
            if room == 0 {
                state.writer_waker = Some(cx.waker().clone());
                return (Poll::Pending, None);
            }
            let taken = room.min(data.len());
            state.buffer.extend_from_slice(&data[..taken]);
            state.written += taken as u64;
            let waker = if state.leaves() { state.reader_waker.take() } else { None };
            (Poll::Ready(Ok(taken)), waker)
        })
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), OutputError>> {
        self.change(|state| {
            if state.writer == Writer::Finished || state.flushed == state.written {
                return (Poll::Ready(Ok(())), None);
            }
            if state.reader == Reader::Gone {
                return (Poll::Ready(Err(OutputError::CLOSED)), None);
            }
            state.flush_to = (state.told != Some(state.written)).then_some(state.written);
            state.writer_waker = Some(cx.waker().clone());
            (Poll::Pending, state.reader_waker.take())
        })
    }

    /// Says that this is all. Errs if that was said before, or nobody is there to hear it.
    pub(super) fn finish(&self) -> Result<(), OutputError> {
        self.change(|state| match state.check() {
            Ok(()) => {
                state.writer = Writer::Finished;
                (Ok(()), state.reader_waker.take())
            }
            Err(error) => (Err(error), None),
        })
    }

    /// Waits until the reader was given the end.
    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<Result<(), OutputError>> {
        let mut state = lock(&self.0);
        match state.reader {
            Reader::Ended => Poll::Ready(Ok(())),
            Reader::Gone => Poll::Ready(Err(OutputError::CLOSED)),
            Reader::Open => {
                state.writer_waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        lock(&self.0).writer == Writer::Finished
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0).reader == Reader::Gone
    }

    pub(super) fn writer_dropped(&self) {
        self.change(|state| {
            if state.writer == Writer::Open {
                state.writer = Writer::Dropped;
            }
            ((), state.reader_waker.take())
        });
    }
}

// === the body's side ===

impl Pipe {
    /// The body is asked for more: is that what a flush waited for? Completes it, or leaves it for the next time.
    pub(super) fn was_asked_for_more(&self, completes: bool) -> bool {
        self.change(|state| match state.told {
            Some(position) if completes => {
                state.told = None;
                state.flushed = position;
                (true, state.writer_waker.take())
            }
            told => (told.is_some(), None),
        })
    }

    /// The producer that has the writer has returned, and so said that this is all, unless the writer lives on elsewhere.
    pub(super) fn producer_returned(&self) {
        let mut state = lock(&self.0);
        if state.writer == Writer::Dropped {
            state.writer = Writer::Finished;
        }
    }

    /// `produced`: a producer of ours runs, which has the say in what the writer's end means.
    pub(super) fn poll_next(&self, cx: &mut Context<'_>, produced: bool) -> Poll<Next> {
        self.change(|state| {
            if state.leaves() {
                let data = state.buffer.split().freeze();
                state.given = state.written;
                return (Poll::Ready(Next::Data(data)), state.writer_waker.take());
            }
            match state.writer {
                Writer::Finished => {
                    state.reader = Reader::Ended;
                    return (Poll::Ready(Next::End), state.writer_waker.take());
                }
                Writer::Dropped if !produced => return (Poll::Ready(Next::Unfinished), None),
                Writer::Open | Writer::Dropped => {}
            }
            if state.flush_to.take_if(|position| *position <= state.given).is_some() {
                state.told = Some(state.given);
                return (Poll::Ready(Next::Flush), None);
            }
            state.reader_waker = Some(cx.waker().clone());
            (Poll::Pending, None)
        })
    }

    pub(super) fn reader_dropped(&self) {
        let unread = self.change(|state| {
            if state.reader == Reader::Open {
                // An HTTP/1 server does not ask for the end of a body whose length was declared.
                let has_all = state.writer == Writer::Finished && state.given == state.written;
                state.reader = if has_all { Reader::Ended } else { Reader::Gone };
            }
            (std::mem::take(&mut state.buffer), state.writer_waker.take())
        });
        drop(unread);
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
