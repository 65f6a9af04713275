//! The connections of a pool, to count those that are open.

use std::sync::{Mutex, Weak};

use crate::pool::{census::Open, lock};

/// So few are not worth looking at.
const FEW: usize = 32;

/// Those that are open, and some that are not any more: within twice of what was open when they were looked at.
#[derive(Default)]
pub(super) struct Connections(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    all: Vec<Weak<dyn Open>>,
    /// With so many, those that are closed go.
    most: usize,
}

impl Connections {
    pub(super) fn add(&self, connection: Weak<dyn Open>) {
        let mut kept = lock(&self.0);
        if kept.all.len() >= kept.most {
            kept.forget_closed();
        }
        kept.all.push(connection);
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        let mut kept = lock(&self.0);
        kept.forget_closed();
        kept.all.len()
    }
}

impl Kept {
    fn forget_closed(&mut self) {
        self.all.retain(|connection| connection.upgrade().is_some_and(|connection| connection.is_open()));
        self.most = FEW.max(2 * self.all.len());
        // A crowd is not to keep its room when it is gone.
        self.all.shrink_to(self.most);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    struct Always;

    impl Open for Always {
        fn is_open(&self) -> bool {
            true
        }
    }

    struct Closed;

    impl Open for Closed {
        fn is_open(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_closed_one_that_is_still_held_does_not_count() {
        let connections = Connections::default();
        let (open, closed): (Arc<dyn Open>, Arc<dyn Open>) = (Arc::new(Always), Arc::new(Closed));
        connections.add(Arc::downgrade(&open));
        connections.add(Arc::downgrade(&closed));
        assert_eq!(connections.open(), 1);
    }

    #[test]
    fn closed_ones_are_forgotten_after_a_crowd_too() {
        let connections = Connections::default();
        let connect = || {
            let connection: Arc<dyn Open> = Arc::new(Always);
            connections.add(Arc::downgrade(&connection));
            connection
        };
        let crowd: Vec<_> = (0..10_000).map(|_| connect()).collect();
        assert_eq!(connections.open(), crowd.len());
        drop(crowd);
        (0..30_000).for_each(|_| drop(connect()));
        let kept = lock(&connections.0);
        assert!(kept.all.len() <= FEW && kept.all.capacity() <= 2 * FEW, "{} {}", kept.all.len(), kept.all.capacity());
    }
}
