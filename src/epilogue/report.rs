//! What a drain had to leave behind (contract rule 10).

use std::{fmt, time::Duration};

use crate::pool::Description;

/// What a drain found still running at its deadline, and cut.
#[derive(Clone, Debug, Default)]
pub struct DrainReport {
    pub(super) stragglers: Vec<Straggler>,
}

impl DrainReport {
    /// Whether everything ended by itself.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.stragglers.is_empty()
    }

    /// What was cut, the oldest first.
    #[must_use]
    pub fn stragglers(&self) -> &[Straggler] {
        &self.stragglers
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return f.write_str("drained: everything ended by itself");
        }
        write!(f, "drained with {} cut at the deadline:", self.stragglers.len())?;
        self.stragglers.iter().try_for_each(|straggler| write!(f, " {straggler};"))
    }
}

/// One request that a drain's deadline cut.
#[derive(Clone, Debug)]
pub struct Straggler {
    route: String,
    age: Duration,
    phase: &'static str,
}

impl From<Description> for Straggler {
    fn from(Description { route, age, phase }: Description) -> Self {
        Self { route, age, phase }
    }
}

impl Straggler {
    /// Its method and matched route, or path.
    #[must_use]
    pub fn route(&self) -> &str {
        &self.route
    }

    /// The time from its arrival to the cut.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Where in its life it was cut: `handling`, `sending`, `continuing` or `ending`.
    #[must_use]
    pub fn phase(&self) -> &str {
        self.phase
    }
}

impl fmt::Display for Straggler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {:.1} s old)", self.route, self.phase, self.age.as_secs_f64())
    }
}
