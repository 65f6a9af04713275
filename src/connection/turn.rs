//! A server's turn: it reads what there is, and then writes and flushes.

/// The type of a frame, its fourth byte; no flags follow it, and the stream 0.
const GOAWAY: u8 = 7;

/// Where the server is in it: whether a flush may be its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The server reads; what it writes meanwhile it writes out of turn.
    Reading,
    /// It has read all there is, and writes.
    Writing,
    /// The same, and it says goodbye first: what it had in hand it may have thrown away.
    Parting,
    /// It could not write all there is.
    Stalled,
    /// The same while it read: of what it has read there may be more that it has not acted on.
    StalledReading,
}

impl Turn {
    /// The server writes, beginning with these `bytes`.
    ///
    /// With a GOAWAY (RFC 9113, section 6.8) it begins where its connection ends, gently, or at once: then it lets go of all
    /// that is queued before it writes, as it does of what it has written, and nothing else tells the one from the other.
    pub(super) fn write_begins(&mut self, bytes: &[u8]) {
        if *self == Self::Writing && matches!(bytes, [_, _, _, GOAWAY, 0, 0, 0, 0, 0, ..]) {
            *self = Self::Parting;
        }
    }

    /// A write, or a flush, waits.
    pub(super) fn stall(&mut self) {
        *self = match self {
            Self::Reading | Self::StalledReading => Self::StalledReading,
            _ => Self::Stalled,
        };
    }

    pub(super) fn is_stalled(self) -> bool {
        matches!(self, Self::Stalled | Self::StalledReading)
    }
}
