//! The payment provider: outside of the process that is killed, and it remembers.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use axum::{Router, extract::State, http::HeaderMap, routing::post};
use tokio::{net::TcpListener, sync::watch};

#[derive(Clone)]
pub struct Provider {
    pub address: SocketAddr,
    state: Memory,
}

#[derive(Clone)]
struct Memory(Arc<watch::Sender<Ledger>>);

#[derive(Default)]
pub struct Ledger {
    calls: u64,
    /// The keys under which each order was charged: one charge for each.
    charges: HashMap<String, HashSet<String>>,
    /// Orders whose job came to its end.
    pub completed: HashSet<String>,
    pub processes: HashSet<String>,
}

impl Provider {
    pub async fn start() -> Self {
        let state = Memory(Arc::new(watch::Sender::default()));
        let app =
            Router::new().route("/charge", post(charge)).route("/completed", post(completed)).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, state }
    }

    /// For those who wait until something was done.
    pub fn watch(&self) -> watch::Receiver<Ledger> {
        self.state.0.subscribe()
    }

    pub fn effects(&self) -> HashMap<String, HashSet<String>> {
        self.state.0.borrow().charges.clone()
    }

    pub fn calls(&self) -> u64 {
        self.state.0.borrow().calls
    }

    pub fn processes(&self) -> HashSet<String> {
        self.state.0.borrow().processes.clone()
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers[name].to_str().unwrap().to_owned()
}

async fn charge(State(state): State<Memory>, headers: HeaderMap, order: String) {
    let (key, process) = (header(&headers, "idempotency-key"), header(&headers, "x-process"));
    state.0.send_modify(|ledger| {
        ledger.calls += 1;
        ledger.charges.entry(order).or_default().insert(key);
        ledger.processes.insert(process);
    });
}

async fn completed(State(state): State<Memory>, order: String) {
    state.0.send_modify(|ledger| {
        ledger.completed.insert(order);
    });
}
