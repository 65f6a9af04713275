//! Carries events to the user's function, outside of every lock, destructor and flush.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{caught, lock};
use crate::event::{Event, RequestId};

/// The user's function.
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
    /// Each for a share of the requests.
    orders: [Mutex<()>; 16],
}

struct Delivery {
    listener: Listener,
    receiver: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Message>>>,
    task: Option<JoinHandle<()>>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").finish_non_exhaustive()
    }
}

impl Feed {
    pub(crate) fn new(listener: Listener) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            orders: Default::default(),
            delivery: Mutex::new(Delivery {
                listener,
                receiver: Arc::new(tokio::sync::Mutex::new(receiver)),
                task: None,
            }),
        }
    }

    /// Keeps one request's transitions in the order of their events.
    pub(crate) fn order(&self, request: RequestId) -> impl Drop + '_ {
        let share = request.0 as usize % self.orders.len();
        lock(&self.orders[share])
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
        let (listener, receiver) = (delivery.listener.clone(), delivery.receiver.clone());
        delivery.task = Some(runtime.spawn(async move {
            let mut receiver = receiver.lock().await;
            while let Some(message) = receiver.recv().await {
                match message {
                    Message::Event(event) => {
                        if let Err(payload) = caught::call(|| listener(&event)) {
                            tracing::error!(
                                message = super::panic_message(&*payload),
                                event = event.kind().name(),
                                "the event function panicked"
                            );
                        }
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
