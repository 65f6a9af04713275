//! The payment provider: outside of the process that is killed, and it remembers.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, http::HeaderMap, routing::post};
use tokio::net::TcpListener;

#[derive(Clone)]
pub struct Provider {
    pub address: SocketAddr,
    state: Memory,
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Ledger>>);

#[derive(Default)]
struct Ledger {
    calls: u64,
    /// The keys under which each order was charged: one charge for each.
    charges: HashMap<String, HashSet<String>>,
    /// Orders whose job came to its end.
    completed: HashSet<String>,
    processes: HashSet<String>,
}

impl Provider {
    pub async fn start() -> Self {
        let state = Memory::default();
        let app =
            Router::new().route("/charge", post(charge)).route("/completed", post(completed)).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, state }
    }

    pub fn completed(&self, order: &str) -> bool {
        self.state.0.lock().unwrap().completed.contains(order)
    }

    pub fn effects(&self) -> HashMap<String, HashSet<String>> {
        self.state.0.lock().unwrap().charges.clone()
    }

    pub fn calls(&self) -> u64 {
        self.state.0.lock().unwrap().calls
    }

    pub fn processes(&self) -> HashSet<String> {
        self.state.0.lock().unwrap().processes.clone()
    }
}

fn header(headers: &HeaderMap, name: &str) -> String {
    headers[name].to_str().unwrap().to_owned()
}

async fn charge(State(state): State<Memory>, headers: HeaderMap, order: String) {
    let mut ledger = state.0.lock().unwrap();
    ledger.calls += 1;
    ledger.charges.entry(order).or_default().insert(header(&headers, "idempotency-key"));
    ledger.processes.insert(header(&headers, "x-process"));
}

async fn completed(State(state): State<Memory>, order: String) {
    state.0.lock().unwrap().completed.insert(order);
}
