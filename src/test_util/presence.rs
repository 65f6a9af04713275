//! Who came to a server and who left, so that it can be waited for until it has seen that.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::sync::Notify;

use crate::{epilogue::OpenConnections, pool::lock};

/// What a connection is known by at both of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    /// The client's address.
    Socket(SocketAddr),
    Memory(u64),
}

/// The clients of the harness, and the connections that its server has accepted.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: Mutex<State>,
    closing: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those that are not known to have been let go.
    clients: Vec<Client>,
    came: u64,
    accepted: u64,
    /// Connections whose client has not said yet that it came, or is none of ours.
    strangers: Vec<(Guest, u64)>,
    /// Nobody is accepted any more.
    closed: bool,
}

#[derive(Debug)]
struct Client {
    number: u64,
    guest: Guest,
    /// Its connection among those of the server, once it is accepted.
    connection: Option<u64>,
    left: bool,
}

impl Presence {
    pub(super) fn enter(self: &Arc<Self>, guest: Guest) -> Present {
        let mut state = lock(&self.state);
        let mut connection = None;
        // An address may have been a stranger's before: the last is meant.
        state.strangers.retain(|(other, key)| {
            let is_own = *other == guest;
            if is_own {
                connection = Some(*key);
            }
            !is_own
        });
        let number = state.came;
        state.came += 1;
        state.clients.push(Client { number, guest, connection, left: false });
        Present { presence: self.clone(), number }
    }

    /// The server has accepted a connection, which is the next among those that it opens.
    pub(super) fn accepted(&self, guest: Guest) {
        let mut state = lock(&self.state);
        let key = state.accepted;
        state.accepted += 1;
        match state.clients.iter_mut().find(|client| client.guest == guest && client.connection.is_none()) {
            Some(client) => client.connection = Some(key),
            None => state.strangers.push((guest, key)),
        }
    }

    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.closing.notify_waiters();
    }

    /// For whoever waits until nobody is accepted any more.
    pub(super) fn closing(&self) -> &Notify {
        &self.closing
    }

    /// Whether the server has accepted all that came, and let go of all that left.
    pub(super) fn is_seen(&self, open: &OpenConnections) -> bool {
        let mut state = lock(&self.state);
        let closed = state.closed;
        state.clients.retain(|client| {
            let gone = client.connection.map_or(closed, |key| open.has_let_go_of(key));
            !(client.left && gone)
        });
        // Nor is one of ours to be taken for a stranger that is gone, whose address it may have by now.
        state.strangers.retain(|(_, key)| !open.has_let_go_of(*key));
        state.clients.iter().all(|client| !client.left && (client.connection.is_some() || closed))
    }
}

/// One client's presence.
#[derive(Debug)]
pub(super) struct Present {
    presence: Arc<Presence>,
    number: u64,
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut state = lock(&self.presence.state);
        if let Some(client) = state.clients.iter_mut().find(|client| client.number == self.number) {
            client.left = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(presence: &Presence) -> Vec<Option<u64>> {
        lock(&presence.state).clients.iter().map(|client| client.connection).collect()
    }

    #[test]
    fn each_client_finds_its_own_connection_in_whichever_order_they_are_told_of() {
        let presence = Arc::<Presence>::default();
        // A stranger, whose address is ours later.
        presence.accepted(Guest::Memory(7));
        presence.accepted(Guest::Memory(7));
        let _accepted_before = presence.enter(Guest::Memory(7));
        let _accepted_after = presence.enter(Guest::Memory(8));
        assert_eq!(connections(&presence), [Some(1), None]);
        presence.accepted(Guest::Memory(8));
        // One that has left before it was accepted, and another with its address.
        drop(presence.enter(Guest::Memory(9)));
        let _again = presence.enter(Guest::Memory(9));
        presence.accepted(Guest::Memory(9));
        presence.accepted(Guest::Memory(9));
        assert_eq!(connections(&presence), [Some(1), Some(2), Some(3), Some(4)]);
    }

    #[test]
    fn who_was_never_accepted_is_let_go_when_nobody_is_any_more() {
        let (presence, open) = (Arc::<Presence>::default(), OpenConnections::default());
        let stays = presence.enter(Guest::Memory(1));
        assert!(!presence.is_seen(&open));
        presence.close();
        assert!(presence.is_seen(&open));
        drop(stays);
        assert!(presence.is_seen(&open) && connections(&presence).is_empty());
    }
}
