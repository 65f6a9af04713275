//! The state of one request in one word, so that what ends it and what it does cannot disagree.
//!
//! Every transition is one compare-and-swap on this word. Handler end, body end, flush, abort, limit, drain
//! and drop come in any order and from any thread; each asks the word whether it still may happen.

use std::fmt;

use crate::status::{ConnectionStatus, Sent};

/// A snapshot of the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Word(pub(super) u64);

// Bits 0 and 1 are those of `ConnectionStatus`.
const STATUS: u64 = 0b11;
// Bits 2 to 4: the fate of the response, 0 while it is open.
const SENT_SHIFT: u64 = 2;
const SENT: u64 = 0b111 << SENT_SHIFT;

/// The handler's future exists and has not returned.
pub(super) const HANDLER: u64 = 1 << 5;
/// HTTP/2: the server has, or is given, the end of the response, and nothing takes it back.
pub(super) const WHOLE: u64 = 1 << 6;
/// The response was handed to the server, or never will be.
pub(super) const HEAD: u64 = 1 << 7;
/// Waiting for a slow reader is over.
pub(super) const GAVE_UP: u64 = 1 << 8;
/// A task brings this request to its end.
pub(super) const ENDING: u64 = 1 << 9;
/// Nothing more happens.
pub(super) const ENDED: u64 = 1 << 10;
/// `ignore_abort(true)`.
pub(super) const IGNORE: u64 = 1 << 11;
/// `finish` was called.
pub(super) const FINISHED: u64 = 1 << 12;
/// There is, or was, a continuation or a hook.
pub(super) const WORK: u64 = 1 << 13;
/// The request's body was read to its end.
pub(super) const UPLOADED: u64 = 1 << 14;
/// A continuation runs.
pub(super) const CONTINUING: u64 = 1 << 15;
/// The hooks run.
pub(super) const HOOKS: u64 = 1 << 16;
/// Somebody awaits the abort or the fate of the response.
pub(super) const AWAITED: u64 = 1 << 17;
/// Something of the user's panicked.
pub(super) const PANICKED: u64 = 1 << 18;
/// The response's body failed, and that was told of.
pub(super) const BODY_FAILED: u64 = 1 << 19;
// Bits 20 to 33: how many bodies are there whose producer has not ended. A middleware that asks again may leave several; those
// beyond what fits in here are not waited for.
const ONE_PRODUCER: u64 = 1 << 20;
/// There is one.
pub(super) const PRODUCER: u64 = 0x3FFF * ONE_PRODUCER;
// Bits 34 to 47: how many go on without a reader.
const ONE_UNREAD: u64 = 1 << 34;
/// There is one.
pub(super) const UNREAD: u64 = 0x3FFF * ONE_UNREAD;
// Bits 48 to 51 change with each further attempt of the handler.
const ONE_ATTEMPT: u64 = 1 << 48;
const ATTEMPT: u64 = 0xF * ONE_ATTEMPT;
// Bits 52 to 63: the number of shields.
const SHIELD: u64 = 1 << 52;

impl Word {
    pub(crate) fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    pub(crate) fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    pub(crate) fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    pub(crate) fn status(self) -> ConnectionStatus {
        ConnectionStatus::from_bits_truncate((self.0 & STATUS) as u8)
    }

    pub(crate) fn with_status(self, status: ConnectionStatus) -> Self {
        self.with(u64::from(status.bits()))
    }

    /// The fate of the response; `None` while it is open.
    pub(crate) fn sent(self) -> Option<Sent> {
        match (self.0 & SENT) >> SENT_SHIFT {
            0 => None,
            1 => Some(Sent::Flushed),
            2 => Some(Sent::Aborted),
            _ => Some(Sent::BrokenOff),
        }
    }

    /// Decides the fate of the response, unless it is decided.
    pub(crate) fn with_sent(self, sent: Sent) -> Self {
        if self.sent().is_some() {
            return self;
        }
        let code = match sent {
            Sent::Flushed => 1,
            Sent::Aborted => 2,
            Sent::BrokenOff => 3,
            Sent::GivenUp => return self.with(GAVE_UP),
        };
        self.with(code << SENT_SHIFT)
    }

    /// The fate of the response as far as anybody waits for it.
    pub(crate) fn known_sent(self) -> Option<Sent> {
        self.sent().or(self.has(GAVE_UP).then_some(Sent::GivenUp))
    }

    /// Whether it may still be decided what becomes of the response. What the hooks are told is final, also of one that was
    /// given up on.
    pub(crate) fn is_open(self) -> bool {
        self.sent().is_none() && !self.has(HOOKS)
    }

    /// Whether the response must not look whole.
    pub(crate) fn is_broken_off(self) -> bool {
        matches!(self.sent(), Some(Sent::Aborted | Sent::BrokenOff))
    }

    /// Whether an abort is ignored: by the setting or by a shield.
    pub(crate) fn ignores_abort(self) -> bool {
        self.has(IGNORE) || self.0 >= SHIELD
    }

    pub(crate) fn shielded(self) -> Option<Self> {
        self.0.checked_add(SHIELD).map(Self)
    }

    pub(crate) fn unshielded(self) -> Self {
        Self(self.0 - SHIELD)
    }

    /// Another attempt of the handler has begun: whoever was about to end that has to look again.
    pub(crate) fn attempted(self) -> Self {
        Self(self.0 & !ATTEMPT | self.0.wrapping_add(ONE_ATTEMPT) & ATTEMPT)
    }

    /// One more body is produced.
    pub(crate) fn producing(self) -> Option<Self> {
        (self.0 & PRODUCER != PRODUCER).then(|| Self(self.0 + ONE_PRODUCER))
    }

    /// One of them has ended.
    pub(crate) fn produced(self) -> Self {
        Self(self.0 - ONE_PRODUCER)
    }

    /// Whether there are several.
    pub(crate) fn has_producers(self) -> bool {
        self.0 & PRODUCER > ONE_PRODUCER
    }

    /// One more goes on without a reader.
    pub(crate) fn producing_unread(self) -> Self {
        if self.0 & UNREAD == UNREAD { self } else { Self(self.0 + ONE_UNREAD) }
    }

    /// One of those has ended.
    pub(crate) fn produced_unread(self) -> Self {
        Self(self.0 - ONE_UNREAD)
    }

    /// Whether the client left and that is to end the work.
    pub(crate) fn is_abandoned(self) -> bool {
        self.status().is_aborted() && !self.ignores_abort()
    }

    /// Whether handler or producer are about to be dropped, because the client left: nothing starts before that.
    pub(crate) fn drops_its_work(self) -> bool {
        self.is_abandoned() && (self.has(PRODUCER | UNREAD) || (self.has(HANDLER) && !self.has(FINISHED)))
    }

    /// Whether all that the hooks wait for has happened.
    pub(crate) fn is_settled(self) -> bool {
        self.has(HEAD) && !self.has(HANDLER | PRODUCER | UNREAD) && self.known_sent().is_some()
    }

    pub(crate) fn phase(self) -> Phase {
        if self.has(ENDED) {
            Phase::Ended
        } else if self.has(HOOKS) {
            Phase::Ending
        } else if self.has(CONTINUING) || (self.has(FINISHED) && self.known_sent().is_some()) {
            Phase::Continuing
        } else if self.has(HEAD) && (self.has(FINISHED) || !self.has(HANDLER)) {
            Phase::Sending
        } else {
            Phase::Handling
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{:#x}", self.phase(), self.status(), self.0)
    }
}

/// The phase that a request is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// The handler is running and has not responded.
    Handling,
    /// The response is on its way.
    Sending,
    /// The response has left, or has been given up on; the continuation, or the rest of a handler that called
    /// [`finish`](crate::Lifecycle::finish), is running or waiting to run.
    Continuing,
    /// The hooks are running.
    Ending,
    /// Everything has ended.
    Ended,
}

impl Phase {
    /// The phase in one lower-case word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Handling => "handling",
            Self::Sending => "sending",
            Self::Continuing => "continuing",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fate_of_a_response_is_decided_once() {
        let word = Word(0).with_sent(Sent::GivenUp);
        assert_eq!((word.sent(), word.known_sent()), (None, Some(Sent::GivenUp)));
        let word = word.with_sent(Sent::Flushed).with_sent(Sent::Aborted);
        assert_eq!(word.known_sent(), Some(Sent::Flushed));
        assert_eq!(Word(0).with_sent(Sent::Aborted).sent(), Some(Sent::Aborted));
        assert_eq!(Word(0).with_sent(Sent::BrokenOff).sent(), Some(Sent::BrokenOff));
    }

    #[test]
    fn shields_nest_and_leave_the_setting_alone() {
        let aborted = Word(0).with_status(ConnectionStatus::ABORTED);
        assert!(aborted.is_abandoned());
        let two = aborted.shielded().and_then(Word::shielded).unwrap();
        assert!(!two.is_abandoned());
        assert!(!two.unshielded().is_abandoned());
        assert!(two.unshielded().unshielded().is_abandoned());
        assert_eq!(two.unshielded().unshielded(), aborted);
        assert!(!aborted.with(IGNORE).is_abandoned());
        let full = (0..4095).fold(Word(0), |word, _| word.shielded().unwrap());
        assert_eq!(full.shielded(), None);
    }

    #[test]
    fn hooks_wait_for_handler_body_and_response() {
        let sent = Word(0).with(HEAD).with_sent(Sent::Flushed);
        assert!(sent.is_settled());
        assert!(!sent.with(HANDLER).is_settled());
        let one = sent.producing().unwrap();
        assert!(!one.is_settled());
        assert!(!one.producing().unwrap().produced().is_settled());
        assert!(one.produced().is_settled());
        let thrown_away = one.producing_unread().produced();
        assert!(!thrown_away.is_settled() && !thrown_away.has(PRODUCER));
        assert!(thrown_away.produced_unread().is_settled());
        // What does not fit in changes nothing beside it.
        let full = (1..0x3FFF).fold(one, |word, _| word.producing().unwrap());
        assert_eq!((full.producing(), full.has(UNREAD)), (None, false));
        let full = (0..0x3FFF).fold(one, |word, _| word.producing_unread());
        assert_eq!(full.producing_unread(), full);
        let attempted: Vec<_> = (0..16).scan(full, |word, _| Some(std::mem::replace(word, word.attempted()))).collect();
        assert!(attempted[1..].iter().all(|word| *word != full && word.has(UNREAD)));
        assert_eq!(attempted[15].attempted(), full);
        assert!(!sent.without(HEAD).is_settled());
        assert!(!Word(0).with(HEAD).is_settled());
        assert!(Word(0).with(HEAD | GAVE_UP).is_settled());
    }
}
