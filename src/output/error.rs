use std::{fmt, io};

/// An [`Output`](super::Output) cannot take what it was given.
///
/// As an [`io::Error`] it is a `BrokenPipe`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputError {
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Closed,
    Finished,
}

impl OutputError {
    pub(super) const CLOSED: Self = Self { kind: Kind::Closed };
    pub(super) const FINISHED: Self = Self { kind: Kind::Finished };

    /// Nobody reads this response's body any more: the client left, the time limit passed, or a middleware replaced
    /// the response. [`Lifecycle::status`](crate::Lifecycle::status) shows the first two.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        matches!(self.kind, Kind::Closed)
    }

    /// The output was [finished](super::Output::finish) before.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        matches!(self.kind, Kind::Finished)
    }
}

impl fmt::Display for OutputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Closed => {
                "nobody reads this output any more: its client left, its time limit passed, or its response was \
                 replaced; stop writing, or ignore aborts if the work has to go on"
            }
            Kind::Finished => "this output is finished already: write before `finish`, and call `finish` only once",
        })
    }
}

impl std::error::Error for OutputError {}

impl From<OutputError> for io::Error {
    fn from(error: OutputError) -> Self {
        Self::new(io::ErrorKind::BrokenPipe, error)
    }
}
