//! How a request ended: the two bits of [`ConnectionStatus`], and the fate of its response.

use std::fmt;

bitflags::bitflags! {
    /// How a request's connection and its time limit fared, as PHP's `connection_status()` tells it.
    ///
    /// A set of two bits, of which both can be there at once. Bits are only ever added, in either order
    /// (contract rule 3).
    ///
    /// ```
    /// use tower_epilogue::ConnectionStatus;
    ///
    /// let both = ConnectionStatus::ABORTED | ConnectionStatus::TIMEOUT;
    /// assert_eq!(both.bits(), 3);
    /// assert_eq!(ConnectionStatus::NORMAL.bits(), 0);
    /// assert_eq!(both.to_string(), "ABORTED | TIMEOUT");
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ConnectionStatus: u8 {
        /// The client left before its response was flushed.
        const ABORTED = 1;
        /// The time limit, or the deadline of a drain, ended the work.
        const TIMEOUT = 2;
    }
}

impl ConnectionStatus {
    /// Neither aborted nor timed out.
    pub const NORMAL: Self = Self::empty();

    /// Whether neither bit is set.
    #[must_use]
    pub const fn is_normal(self) -> bool {
        self.is_empty()
    }

    /// Whether the client left before its response was flushed.
    #[must_use]
    pub const fn is_aborted(self) -> bool {
        self.contains(Self::ABORTED)
    }

    /// Whether the time limit, or the deadline of a drain, ended the work.
    #[must_use]
    pub const fn is_timeout(self) -> bool {
        self.contains(Self::TIMEOUT)
    }
}

impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.is_aborted(), self.is_timeout()) {
            (false, false) => "NORMAL",
            (true, false) => "ABORTED",
            (false, true) => "TIMEOUT",
            (true, true) => "ABORTED | TIMEOUT",
        })
    }
}

impl fmt::Debug for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What became of a response.
///
/// [`Lifecycle::finish`](crate::Lifecycle::finish) resolves with it, and [`End::sent`](crate::End::sent) tells it to hooks.
/// It is decided once for each request, but for [`GivenUp`](Self::GivenUp), in whose place one of the others may come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sent {
    /// The kernel took every byte of it. (That the client's machine has them is more than a server can know
    /// from a flush.) Without a tracked connection: the body was read to its end, which is weaker.
    Flushed,
    /// The client left before that.
    Aborted,
    /// It was broken off from our side: its body failed, the time limit passed while it was on its way, or
    /// the server was stopped.
    BrokenOff,
    /// The reader was so slow that waiting for it ended. The response may still be on its way: what becomes of it before
    /// the hooks run is what they are told.
    GivenUp,
}

impl Sent {
    /// Whether the kernel took every byte.
    #[must_use]
    pub const fn is_flushed(self) -> bool {
        matches!(self, Self::Flushed)
    }
}

/// As logs say it.
impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flushed => "flushed",
            Self::Aborted => "aborted",
            Self::BrokenOff => "broken off",
            Self::GivenUp => "given up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_can_log_how_its_request_ended_in_words() {
        let line = |sent: Sent| format!("{}, {sent}", ConnectionStatus::ABORTED);
        assert_eq!(line(Sent::Aborted), "ABORTED, aborted");
        assert_eq!(line(Sent::BrokenOff), "ABORTED, broken off");
    }

    #[test]
    fn bits_add_up_in_either_order() {
        let mut first = ConnectionStatus::NORMAL;
        first |= ConnectionStatus::TIMEOUT;
        first |= ConnectionStatus::ABORTED;
        let mut second = ConnectionStatus::NORMAL;
        second |= ConnectionStatus::ABORTED;
        second |= ConnectionStatus::TIMEOUT;
        assert_eq!(first, second);
        assert_eq!(first.bits(), 3);
        assert!(!first.is_normal() && first.is_aborted() && first.is_timeout());
        assert_eq!(format!("{first:?}"), "ABORTED | TIMEOUT");
    }
}
