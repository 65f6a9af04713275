//! Carries events to the functions that listen to them, outside of every lock, destructor and flush.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{caught, lock};
use crate::event::{Event, EventKind, RequestId, Route};

/// A function of the user's, or one of ours.
pub(crate) type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// One of ours, told of each request that will never tell of its end, since its runtime ended before.
pub(crate) type LostListener = Arc<dyn Fn(RequestId) + Send + Sync>;

/// Those that are told of what happens.
#[derive(Clone, Default)]
struct Listeners {
    events: Vec<Listener>,
    lost: Vec<LostListener>,
}

enum Message {
    Event(Event),
    Lost(RequestId),
    /// Answered when everything before it has been delivered.
    Barrier(oneshot::Sender<()>),
}

/// How many are taken out of the queue at once.
///
/// One by one, a task gets 128 of them in its turn (tokio's budget). Where there is more to do than time to do it, all others
/// make more than that in theirs, and the queue grows without end; in batches a turn is enough for thousands.
const BATCH: usize = 64;

/// A queue of events and the task that empties it.
///
/// Phase changes happen in places where no user code may run (contract rule 11): in a destructor, in a
/// connection's flush. So they are queued there, which takes no lock of ours, and delivered here.
pub(crate) struct Feed {
    sender: mpsc::UnboundedSender<Message>,
    delivery: Mutex<Delivery>,
    /// Each for a share of the requests that have not ended: nobody pays for it where nobody listens.
    told: [Share; 16],
}

#[derive(Default)]
struct Share {
    told: Mutex<HashMap<RequestId, Told>>,
    /// The request whose end was told last. Written and read under that lock, for which no order is needed.
    ended: AtomicU64,
}

/// What the events of a request carry besides what happened; kept from one to the next.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) route: Option<Arc<Route>>,
    /// Of the continuation that runs or waits for its place.
    pub(crate) class: Option<&'static str>,
}

/// Some requests' share of that.
pub(crate) struct ToldOf<'a> {
    told: MutexGuard<'a, HashMap<RequestId, Told>>,
    feed: &'a Feed,
}

impl ToldOf<'_> {
    pub(crate) fn of(&mut self, request: RequestId) -> &mut Told {
        self.told.entry(request).or_default()
    }

    /// It has ended, which was told right before; or it is gone, and its end never is.
    pub(crate) fn forget(&mut self, request: RequestId) {
        self.told.remove(&request);
        // A crowd is not to keep its room when it is gone.
        if self.told.capacity() > FEW.max(4 * self.told.len()) {
            let room = 2 * self.told.len();
            self.told.shrink_to(room);
        }
        if self.feed.share(request).ended.load(Ordering::Relaxed) != request.0 {
            let _ = self.feed.sender.send(Message::Lost(request));
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.told.len()
    }
}

/// So many requests' room is not worth giving back.
const FEW: usize = 256;

struct Delivery {
    listeners: Arc<Mutex<Arc<Listeners>>>,
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
                listeners: Arc::default(),
                receiver: Arc::new(tokio::sync::Mutex::new(receiver)),
                task: None,
            }),
        }
    }

    /// Adds a listener. They are called in the order in which they were added; a panic of one is not seen by the others.
    pub(crate) fn add(&self, listener: Listener) {
        self.change(|listeners| listeners.events.push(listener));
    }

    /// Adds one that is told of lost requests.
    #[cfg(any(feature = "metrics", feature = "status-page"))]
    pub(crate) fn add_for_lost(&self, listener: LostListener) {
        self.change(|listeners| listeners.lost.push(listener));
    }

    fn change(&self, change: impl FnOnce(&mut Listeners)) {
        let listeners = lock(&self.delivery).listeners.clone();
        change(Arc::make_mut(&mut lock(&listeners)));
    }

    fn share(&self, request: RequestId) -> &Share {
        &self.told[request.0 as usize % self.told.len()]
    }

    /// What was told of requests, this one among them; held, it keeps its transitions in the order of their events.
    pub(crate) fn told(&self, request: RequestId) -> ToldOf<'_> {
        ToldOf { told: lock(&self.share(request).told), feed: self }
    }

    /// Queues an event.
    pub(crate) fn push(&self, event: Event) {
        if event.kind == EventKind::Ended {
            self.share(event.request).ended.store(event.request.0, Ordering::Relaxed);
        }
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
            let mut batch = Vec::with_capacity(BATCH);
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                for message in batch.drain(..) {
                    match message {
                        // Called outside of the lock (contract rule 11).
                        Message::Event(event) => {
                            let listeners = lock(&listeners).clone();
                            listeners.events.iter().for_each(|listener| tell(&event, || listener(&event)));
                        }
                        Message::Lost(request) => {
                            let listeners = lock(&listeners).clone();
                            let told = listeners.lost.iter().map(|listener| caught::call(|| listener(request)));
                            told.filter_map(Result::err).for_each(caught::dispose);
                        }
                        Message::Barrier(reached) => {
                            let _ = reached.send(());
                        }
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

fn tell(event: &Event, call: impl FnOnce()) {
    let Err(payload) = caught::call(call) else { return };
    // A subscriber may panic as well, which is not to cost the events that are left.
    let told = caught::call(|| {
        tracing::error!(
            panic = super::panic_message(&*payload),
            event = event.kind().name(),
            "the event function panicked"
        );
    });
    [Err(payload), told].into_iter().filter_map(Result::err).for_each(caught::dispose);
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::{event::Route, status::ConnectionStatus};

    fn event() -> Event {
        Event {
            request: RequestId::next(),
            kind: EventKind::Arrived,
            status: ConnectionStatus::NORMAL,
            at: Duration::ZERO,
            route: Arc::new(Route { name: "GET /".into(), method: 3, matched: false, is_job: false }),
            class: None,
        }
    }

    #[tokio::test]
    async fn a_turn_is_enough_for_what_a_crowd_made_in_theirs() {
        let (feed, told) = (Feed::new(), Arc::new(AtomicUsize::new(0)));
        let tells = told.clone();
        feed.add(Arc::new(move |_| {
            tells.fetch_add(1, Ordering::Relaxed);
        }));
        feed.delivered().await;
        (0..5_000).for_each(|_| feed.push(event()));
        tokio::task::yield_now().await;
        assert_eq!(told.load(Ordering::Relaxed), 5_000);
        (0..5_000).for_each(|_| feed.push(event()));
        feed.delivered().await;
        assert_eq!(told.load(Ordering::Relaxed), 10_000);
    }

    #[test]
    fn what_was_told_of_a_crowd_is_forgotten_with_it() {
        let (feed, crowd) = (Feed::new(), 0..if cfg!(miri) { 5_000 } else { 100_000 });
        for request in crowd.clone().map(RequestId) {
            feed.told(request).of(request).class = Some("mail");
        }
        assert!(lock(&feed.told[0].told).capacity() > FEW);
        for request in crowd.map(RequestId) {
            feed.told(request).forget(request);
        }
        for share in &feed.told {
            let share = lock(&share.told);
            assert!(share.is_empty() && share.capacity() <= 2 * FEW, "{}", share.capacity());
        }
    }
}
