//! A short queue.

use std::collections::VecDeque;

/// First in, first out. Most requests have at most one of a kind, and a million of them may wait: so the first needs no
/// memory of its own.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "several are rare, and every request has room for what stands here")]
pub(crate) enum Queue<T> {
    #[default]
    Empty,
    One(T),
    Many(Box<VecDeque<T>>),
}

impl<T> Queue<T> {
    #[inline]
    pub(crate) fn push_back(&mut self, item: T) {
        match self {
            Self::Empty => *self = Self::One(item),
            Self::One(_) => self.spread().push_back(item),
            Self::Many(all) => all.push_back(item),
        }
    }

    #[cfg(any(feature = "durable-sqlite", feature = "durable-postgres"))]
    pub(crate) fn push_front(&mut self, item: T) {
        match self {
            Self::Empty => *self = Self::One(item),
            Self::One(_) | Self::Many(_) => self.spread().push_front(item),
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::Empty => (None, None),
            Self::One(item) => (Some(item), None),
            Self::Many(all) => (None, Some(all.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let (one, many) = match self {
            Self::Empty => (None, None),
            Self::One(item) => (Some(item), None),
            Self::Many(all) => (None, Some(all.iter_mut())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn spread(&mut self) -> &mut VecDeque<T> {
        let all: VecDeque<T> = match std::mem::take(self) {
            Self::Many(all) => *all,
            Self::One(item) => VecDeque::from([item]),
            Self::Empty => VecDeque::new(),
        };
        *self = Self::Many(Box::new(all));
        match self {
            Self::Many(all) => all,
            Self::Empty | Self::One(_) => unreachable!("it was just spread"),
        }
    }
}

/// Takes out the first.
impl<T> Iterator for Queue<T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        match std::mem::take(self) {
            Self::Empty => None,
            Self::One(item) => Some(item),
            Self::Many(mut all) => {
                let item = all.pop_front();
                if !all.is_empty() {
                    *self = Self::Many(all);
                }
                item
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_first_leaves_first_and_behind_the_last_it_is_empty() {
        for count in 0..4 {
            let mut queue = Queue::default();
            (0..count).for_each(|item| queue.push_back(item));
            queue.iter_mut().for_each(|item| *item += 1);
            assert!(queue.iter().copied().eq(1..=count));
            for item in 1..=count {
                assert!(!queue.is_empty());
                assert_eq!(queue.next(), Some(item));
            }
            assert!(queue.is_empty() && queue.next().is_none(), "of {count}");
        }
    }
}
