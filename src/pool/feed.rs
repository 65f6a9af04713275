//! Carries events to the functions that listen to them, outside of every lock, destructor and flush.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{caught, lock};
use crate::event::{Event, RequestId, Route};

/// A function of the user's, or one of ours.
pub(crate) type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

enum Message {
    Event(Event),
    /// Answered when everything before it has been delivered.
    Barrier(oneshot::Sender<()>),
}

/// A queue of events and the task that empties it.
///
/// Phase changes happen in places where no user code may run (contract rule 11): in a destructor, in a
/// connection's flush. So they are queued there, which takes no lock of ours, and delivered here.
pub(crate) struct Feed {
    sender: mpsc::UnboundedSender<Message>,
    delivery: Mutex<Delivery>,
    /// Each for a share of the requests that have not ended: nobody pays for it where nobody listens.
    told: [Mutex<HashMap<RequestId, Told>>; 16],
}

/// What the events of a request carry besides what happened; kept from one to the next.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) route: Option<Arc<Route>>,
    /// Of the continuation that runs or waits for its place.
    pub(crate) class: Option<&'static str>,
}

/// Some requests' share of that.
pub(crate) struct ToldOf<'a>(MutexGuard<'a, HashMap<RequestId, Told>>);

impl ToldOf<'_> {
    pub(crate) fn of(&mut self, request: RequestId) -> &mut Told {
        self.0.entry(request).or_default()
    }

    /// It has ended.
    pub(crate) fn forget(&mut self, request: RequestId) {
        self.0.remove(&request);
    }
}

struct Delivery {
    listeners: Arc<Mutex<Arc<[Listener]>>>,
    receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Message>>>,
    task: Option<JoinHandle<()>>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl Feed {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            told: Default::default(),
            delivery: Mutex::new(Delivery {
                listeners: Arc::new(Mutex::new(Arc::new([]))),
                receiver: Arc::new(tokio::sync::Mutex::new(receiver)),
                task: None,
            }),
        }
    }

    /// Adds a listener. They are called in the order in which they were added; a panic of one is not seen by the others.
    pub(crate) fn add(&self, listener: Listener) {
        let listeners = lock(&self.delivery).listeners.clone();
        let mut listeners = lock(&listeners);
        *listeners = listeners.iter().cloned().chain([listener]).collect();
    }

    /// What was told of requests, this one among them; held, it keeps its transitions in the order of their events.
    pub(crate) fn told(&self, request: RequestId) -> ToldOf<'_> {
        let share = request.0 as usize % self.told.len();
        ToldOf(lock(&self.told[share]))
    }

    /// Queues an event.
    pub(crate) fn push(&self, event: Event) {
        // The receiver lives as long as we do.
        let _ = self.sender.send(Message::Event(event));
    }

    /// Makes sure that a task delivers: called where a request arrives, so that it is there before the first
    /// event, and again after the runtime that it ran on has ended.
    pub(crate) fn ensure_delivery(&self) {
        let mut delivery = lock(&self.delivery);
        if delivery.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let (listeners, receiver) = (delivery.listeners.clone(), delivery.receiver.clone());
        delivery.task = Some(runtime.spawn(async move {
            let mut receiver = receiver.lock().await;
            while let Some(message) = receiver.recv().await {
                match message {
                    Message::Event(event) => {
                        // Called outside of the lock (contract rule 11).
                        let listeners = lock(&listeners).clone();
                        listeners.iter().for_each(|listener| tell(listener, &event));
                    }
                    Message::Barrier(reached) => {
                        let _ = reached.send(());
                    }
                }
            }
        }));
    }

    /// Waits until every event queued so far has been delivered.
    pub(crate) async fn delivered(&self) {
        self.ensure_delivery();
        let (reached, wait) = oneshot::channel();
        if self.sender.send(Message::Barrier(reached)).is_ok() {
            let _ = wait.await;
        }
    }
}

fn tell(listener: &Listener, event: &Event) {
    if let Err(payload) = caught::call(|| listener(event)) {
        tracing::error!(
            message = super::panic_message(&*payload),
            event = event.kind().name(),
            "the event function panicked"
        );
        caught::dispose(payload);
    }
}
