//! What waits for the writer, in the order in which it came.

use std::{collections::VecDeque, time::Duration};

use tokio::sync::mpsc;

use super::op::Op;

/// How many requests share a transaction at most.
const TOGETHER: usize = 256;

/// How much they hold at most: Postgres takes no gigabyte at once, and refuses all for it.
const BYTES: usize = 16 * 1024 * 1024;

pub(super) struct Queue {
    ops: mpsc::UnboundedReceiver<Op>,
    /// What was taken out of the channel and has not had its turn.
    left: VecDeque<Op>,
}

impl Queue {
    pub(super) fn new(ops: mpsc::UnboundedReceiver<Op>) -> Self {
        Self { ops, left: VecDeque::new() }
    }

    /// Takes the next ones that are written together. None when nobody can send any more.
    ///
    /// Dropped before it is done, it has taken nothing.
    pub(super) async fn next(&mut self, batch: &mut Vec<Op>) -> usize {
        if self.left.is_empty() {
            self.ops.recv_many(batch, TOGETHER).await;
            self.left.extend(batch.drain(..));
        }
        let mut bytes = 0;
        while batch.len() < TOGETHER {
            let Some(op) = self.left.pop_front() else { break };
            bytes += op.bytes();
            // One that holds more than that is written alone.
            if bytes > BYTES && !batch.is_empty() {
                self.left.push_front(op);
                break;
            }
            batch.push(op);
        }
        batch.len()
    }

    /// Puts these behind what is there.
    pub(super) fn add(&mut self, ops: Vec<Op>) {
        self.left.extend(ops);
    }

    /// Takes out those whom somebody has waited for so long.
    pub(super) fn take_late(&mut self, patience: Duration) -> Vec<Op> {
        while let Ok(op) = self.ops.try_recv() {
            self.left.push_back(op);
        }
        let (late, rest): (Vec<_>, _) = self.left.drain(..).partition(|op| op.has_waited(patience));
        self.left = rest.into();
        late
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::durable::{
        engine::{NewJob, Unique},
        op::Reply,
    };

    fn keep(bytes: usize) -> Op {
        let job = NewJob {
            kind: "large",
            key: String::new(),
            unique: Unique::No,
            payload: "x".repeat(bytes),
            limit: Duration::ZERO,
            max_attempts: 1,
            wait: Duration::ZERO,
            from: String::new(),
        };
        Op::Keep { jobs: vec![job], answer: None, reply: Reply::new(oneshot::channel().0, None) }
    }

    /// 256 of a few MiB each are more than Postgres takes in one message: it closes the connection, and all would be refused.
    #[tokio::test]
    async fn no_more_is_written_together_than_a_database_takes() {
        let (sender, ops) = mpsc::unbounded_channel();
        for bytes in [BYTES / 2, BYTES / 2, 1, BYTES + 1, BYTES + 1, 1] {
            sender.send(keep(bytes)).unwrap();
        }
        drop(sender);
        let (mut queue, mut batches) = (Queue::new(ops), Vec::new());
        loop {
            let mut batch = Vec::new();
            match queue.next(&mut batch).await {
                0 => break,
                count => batches.push(count),
            }
        }
        assert_eq!(batches, [2, 1, 1, 1, 1]);
    }
}
