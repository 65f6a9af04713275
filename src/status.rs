//! How a request ended: the two bits of [`ConnectionStatus`], and the fate of its response.

use std::fmt;

bitflags::bitflags! {
    /// Whether a request's client left, and whether its time limit passed: PHP's `connection_status()`.
    ///
    /// A set of two bits, both of which can be set. Bits are only ever added, in either order ([contract rule
    /// 3](crate::manual::contract#3-the-status-is-a-set-of-two-bits)).
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
        /// The client left (disconnected) before its response was flushed.
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
/// [`Lifecycle::finish`](crate::Lifecycle::finish) resolves with it, and hooks read it from [`End::sent`](crate::End::sent).
/// It is decided once for each request, except that [`GivenUp`](Self::GivenUp) may later be replaced by one of the
/// others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sent {
    /// The kernel accepted every byte of it, which does not tell whether the client has received them. Without a
    /// tracked connection: the body was read to its end, which is weaker.
    Flushed,
    /// The client left before that.
    Aborted,
    /// It was broken off from our side: its body failed, the time limit passed while it was on its way, or the server
    /// closed the connection, for example at a drain's deadline.
    BrokenOff,
    /// The reader was so slow that the [patience](crate::EpilogueBuilder::patience) ran out; or, on HTTP/2, that the time limit
    /// passed when the server had queued the end of the response, which nothing takes back. It may still be on its way: hooks
    /// see what has become of it by the time the first of them runs.
    GivenUp,
}

impl Sent {
    /// Whether the kernel accepted every byte.
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
