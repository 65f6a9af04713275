//! The app: handlers that do what their plan says, and take note of it.

use std::{
    collections::HashMap,
    io,
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request},
    http::StatusCode,
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tower_epilogue::{
    ConnectionStatus, Continuation, EarlyCloseLayer, End, IgnoreAbortLayer, Lifecycle, Phase, RequestId,
    ShutdownHookLayer, TimeLimitLayer,
};
use tower_http::{compression::CompressionLayer, timeout::TimeoutLayer, trace::TraceLayer};

use super::{
    attempts::Attempts,
    plan::{Answer, Dice, HookDoes, Plan, Work, plan_of},
};

/// What a panic of the app's says: not one of a check.
pub const PANIC: &str = "chaos: as planned";

/// What the app's own code noted of one request.
#[derive(Debug, Default)]
pub struct Record {
    pub request: Option<RequestId>,
    pub handlers: u32,
    /// Those that began, in a task, when their request had its hooks run already; and their continuations.
    pub late: u32,
    pub promised_late: usize,
    /// Hooks of the handler, in the order of their registration, with those that hooks registered.
    pub registered: Vec<String>,
    pub hooks: Vec<String>,
    /// The status that each hook saw.
    pub statuses: Vec<ConnectionStatus>,
    pub broke: bool,
    /// Continuations that were returned, and those that began.
    pub promised: Vec<usize>,
    pub began: Vec<usize>,
    pub limited: bool,
}

/// The notes of one round.
#[derive(Clone)]
pub struct Notes {
    pub seed: u64,
    /// The round is drained while requests are on their way.
    drains: bool,
    records: Arc<Mutex<HashMap<u64, Record>>>,
    /// Layers' hooks are told requests, not numbers.
    pub layer_hooks: Arc<Mutex<HashMap<RequestId, Vec<String>>>>,
    /// In everything that must be gone in the end.
    token: Arc<()>,
}

impl Notes {
    pub fn new(seed: u64, drains: bool) -> Self {
        Self { seed, drains, records: Arc::default(), layer_hooks: Arc::default(), token: Arc::default() }
    }

    fn note<T>(&self, number: u64, note: impl FnOnce(&mut Record) -> T) -> T {
        note(self.records.lock().unwrap().entry(number).or_default())
    }

    pub fn records(&self) -> HashMap<u64, Record> {
        std::mem::take(&mut *self.records.lock().unwrap())
    }

    /// How many futures, bodies, hooks and continuations are still somewhere.
    pub fn alive(&self) -> usize {
        Arc::strong_count(&self.token) - 1
    }
}

/// The layers of one round, the outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Around {
    EarlyClose,
    KeepAlive,
    IgnoreAbort,
    TimeLimit(Duration),
    BusyLimit(Duration),
    Hook(u64),
    Compression,
    Trace,
    /// Somebody else's timeout: the client's abort it is not.
    Timeout(Duration),
    Attempts(Attempts),
}

pub fn arounds(dice: &mut Dice) -> Vec<Around> {
    let mut all = Vec::new();
    for place in 0..dice.below(6) {
        let short = Duration::from_millis(2 + dice.below(60));
        all.push(match dice.below(10) {
            0 | 1 => Around::EarlyClose,
            2 => Around::KeepAlive,
            3 => Around::IgnoreAbort,
            4 => Around::TimeLimit(short),
            5 => Around::BusyLimit(Duration::from_micros(100 + dice.below(3000))),
            6 | 7 => Around::Hook(place),
            8 => dice.one_of(&[Around::Compression, Around::Trace]),
            _ if dice.once_in(3) => Around::Timeout(short),
            _ => Around::Hook(place),
        });
    }
    if dice.once_in(3) {
        all.insert(dice.below(all.len() as u64 + 1) as usize, Around::Attempts(Attempts::of(dice)));
        // One that has no layer inside throws responses away that nobody else has seen.
        all.push(dice.one_of(&[Around::EarlyClose, Around::KeepAlive, Around::IgnoreAbort, Around::Hook(9)]));
    }
    all
}

pub fn app(arounds: &[Around], notes: &Notes) -> Router {
    let theirs = notes.clone();
    let several = arounds.iter().any(|around| matches!(around, Around::Attempts(_)));
    let handler = async move |Path(number): Path<u64>, lifecycle: Lifecycle, request: Request| {
        handler(number, several, theirs.clone(), lifecycle, request).await
    };
    let mut app = Router::new().route("/{number}", any(handler));
    for around in arounds.iter().rev() {
        app = match *around {
            Around::EarlyClose => app.layer(EarlyCloseLayer::new()),
            Around::KeepAlive => app.layer(EarlyCloseLayer::new().keep_alive()),
            Around::IgnoreAbort => app.layer(IgnoreAbortLayer::new()),
            Around::TimeLimit(limit) => app.layer(TimeLimitLayer::new(limit)),
            Around::BusyLimit(limit) => app.layer(TimeLimitLayer::busy(limit)),
            Around::Hook(place) => {
                let notes = notes.clone();
                app.layer(ShutdownHookLayer::new(async move |end: End| {
                    let _token = notes.token.clone();
                    notes.layer_hooks.lock().unwrap().entry(end.request()).or_default().push(layer_hook(place));
                }))
            }
            Around::Compression => app.layer(CompressionLayer::new()),
            Around::Trace => app.layer(TraceLayer::new_for_http()),
            Around::Timeout(limit) => app.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limit)),
            Around::Attempts(attempts) => app.layer(from_fn(move |request, next| attempts.make(request, next))),
        };
    }
    app
}

pub fn layer_hook(place: u64) -> String {
    format!("layer {place}")
}

fn register(notes: &Notes, number: u64, name: &str, does: HookDoes, lifecycle: &Lifecycle) {
    let (inside, own) = (notes.clone(), name.to_owned());
    let handle = lifecycle.clone();
    let hook = async move |end: End| {
        let _token = inside.token.clone();
        inside.note(number, |record| {
            record.hooks.push(own.clone());
            record.statuses.push(end.status());
        });
        match does {
            HookDoes::Nothing => {}
            HookDoes::Wait(time) => tokio::time::sleep(time).await,
            HookDoes::Panic => panic!("{PANIC}"),
            HookDoes::Break => {
                inside.note(number, |record| record.broke = true);
                return ControlFlow::Break(());
            }
            HookDoes::Another => register(&inside, number, &format!("{own}+"), HookDoes::Nothing, &handle),
        }
        ControlFlow::Continue(())
    };
    // Noted first: it may run before this returns.
    notes.note(number, |record| record.registered.push(name.to_owned()));
    if lifecycle.on_shutdown(hook).is_err() {
        notes.note(number, |record| record.registered.retain(|other| other != name));
    }
}

fn continuations(notes: &Notes, number: u64, plan: &Plan, from: usize, lifecycle: &Lifecycle) -> Vec<Continuation> {
    let make = |(at, work): (usize, &Work)| {
        let place = from + at;
        notes.note(number, |record| record.promised.push(place));
        let (notes, handle) = (notes.clone(), lifecycle.clone());
        let began = move || notes.note(number, |record| record.began.push(place));
        match *work {
            Work::Async(time) => Continuation::new(async move {
                began();
                tokio::time::sleep(time).await;
                drop(handle);
            }),
            Work::Blocking(time) => Continuation::blocking(move || {
                began();
                std::thread::sleep(time);
            }),
            Work::Panic => Continuation::new(async move {
                began();
                panic!("{PANIC}");
            }),
            Work::Endless => Continuation::new(async move {
                began();
                std::future::pending::<()>().await;
            }),
        }
    };
    plan.work.iter().enumerate().map(make).collect()
}

fn with(mut response: Response, work: Vec<Continuation>) -> Response {
    work.into_iter().for_each(|continuation| continuation.attach(&mut response));
    response
}

async fn handler(number: u64, several: bool, notes: Notes, lifecycle: Lifecycle, request: Request) -> Response {
    let token = notes.token.clone();
    let is_late = matches!(lifecycle.phase(), Phase::Ending | Phase::Ended);
    let (attempt, plan) = notes.note(number, |record| {
        let attempt = record.handlers;
        let mut plan = if several { plan_of(notes.seed, number, attempt) } else { Plan::of(notes.seed, number) };
        if is_late {
            plan.ends_by_itself();
        }
        record.request = Some(lifecycle.id());
        record.handlers += 1;
        record.late += u32::from(is_late);
        record.limited |= plan.limit.is_some();
        (attempt, plan)
    });
    for (place, does) in plan.hooks.iter().enumerate() {
        register(&notes, number, &format!("hook {place} of attempt {attempt}"), *does, &lifecycle);
    }
    if plan.ignores {
        lifecycle.ignore_abort(true);
    }
    if let Some(limit) = plan.limit {
        lifecycle.set_time_limit(limit);
    }
    let shield = plan.shield.then(|| lifecycle.shield());
    if plan.reads_upload {
        let _ = axum::body::to_bytes(request.into_body(), 1 << 20).await;
    }
    if !plan.before.is_zero() {
        tokio::time::sleep(plan.before).await;
    }
    drop(shield);
    // Each of the request has a number of its own.
    let first = attempt as usize * 100;
    let work = || continuations(&notes, number, &plan, first, &lifecycle);
    if is_late {
        notes.note(number, |record| record.promised_late += plan.work.len() * 2);
    }
    let response = match plan.answer {
        Answer::Whole(size) => with(vec![b'x'; size].into_response(), work()),
        Answer::NoContent => with(StatusCode::NO_CONTENT.into_response(), work()),
        Answer::Stream(frames, size) => with(streamed(&notes, number, frames, size, StreamEnd::Well), work()),
        Answer::BrokenStream(frames) => with(streamed(&notes, number, frames, 100, StreamEnd::Error), work()),
        Answer::PanickingStream(frames) => with(streamed(&notes, number, frames, 100, StreamEnd::Panic), work()),
        Answer::Finish(size) => {
            let _ = lifecycle.finish(with(vec![b'x'; size].into_response(), work())).await;
            tokio::time::sleep(plan.after).await;
            with(().into_response(), continuations(&notes, number, &plan, first + plan.work.len(), &lifecycle))
        }
        Answer::FinishUnawaited => {
            let _ = lifecycle.finish("finished").now_or_never();
            tokio::time::sleep(plan.after).await;
            with(().into_response(), work())
        }
        Answer::Panic => panic!("{PANIC}"),
        Answer::Never => {
            if plan.limit.is_none() && !notes.drains {
                // Nothing else would end it.
                lifecycle.ignore_abort(false);
            }
            std::future::pending().await
        }
    };
    drop(token);
    response
}

#[derive(Clone, Copy)]
enum StreamEnd {
    Well,
    Error,
    Panic,
}

fn streamed(notes: &Notes, number: u64, frames: u64, size: usize, end: StreamEnd) -> Response {
    let token = notes.token.clone();
    let seed = notes.seed;
    let frames = stream::unfold(0, move |frame| {
        let _token = token.clone();
        async move {
            let mut dice = Dice::new(seed, number.wrapping_mul(64).wrapping_add(frame));
            if dice.once_in(2) {
                tokio::time::sleep(dice.moment() / 4).await;
            }
            match end {
                _ if frame < frames => Some((Ok(Bytes::from(vec![b'y'; size])), frame + 1)),
                StreamEnd::Well => None,
                StreamEnd::Error => Some((Err(io::Error::other(PANIC)), frame + 1)),
                StreamEnd::Panic => panic!("{PANIC}"),
            }
        }
    });
    // Fused: tower-http's compression polls once more after the end.
    Body::from_stream(frames.fuse().boxed()).into_response()
}
