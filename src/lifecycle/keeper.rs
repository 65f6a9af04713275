//! Who stores what a response promises that goes nowhere.

use std::{any::Any, sync::Arc};

use axum_core::response::Response;
use http::response::Parts;

use super::{
    Lifecycle,
    nowhere::{How, Promised, Storing, go_on_held},
    response::taken_off,
    running::Around,
    shared::Shared,
    word,
};
use crate::{
    durable::is_promised,
    pool::{caught, lock},
    status::ConnectionStatus,
};

/// A layer that stores promises, and may be gone before its request's handler is.
pub(crate) trait Keeper: Send + Sync {
    /// Whether it is: what a handler promises then does not come by it.
    fn is_gone(&self) -> bool;
    /// Stores what the response promises, which goes nowhere.
    fn keep(&self, lifecycle: Lifecycle, response: Response, how: How, whose: Whose) -> Promised;
    /// Something goes on that may promise something, as long as the value lives: a handler alone, or a response that is held
    /// back.
    fn goes_on(&self) -> GoesOn;
}

/// Whatever a [`Keeper`] knows it for.
pub(crate) type GoesOn = Box<dyn Any + Send + Sync>;

/// Whose response a [`Keeper`] is to keep.
pub(crate) enum Whose {
    /// Something in service.
    InService,
    /// What it knows to go on, and to do so still.
    GoesOn,
    /// What went on until now.
    WentOn(#[expect(dead_code, reason = "it is told to go on as long as this lives")] GoesOn),
}

/// Those around what goes on; the innermost last. `None` for those that there are.
pub(super) struct Keepers(Option<Vec<Known>>);

/// A keeper, and what it knows it for.
type Known = (Arc<dyn Keeper>, Option<GoesOn>);

impl Keepers {
    pub(super) const fn none() -> Self {
        Self(None)
    }

    /// The same, for what it comes to before its end.
    pub(super) fn again(&self) -> Self {
        let again = |known: &Known| (known.0.clone(), None);
        Self(self.0.as_ref().map(|known| known.iter().map(again).collect()))
    }
}

impl Shared {
    pub(crate) fn add_keeper(&self, keeper: Arc<dyn Keeper>) {
        lock(&self.core).rare().keepers.push(keeper);
    }

    fn all_keepers(&self) -> Vec<Arc<dyn Keeper>> {
        lock(&self.core).rare.as_ref().map(|rare| rare.keepers.clone()).unwrap_or_default()
    }

    /// Tells those that there are.
    pub(super) fn keepers(&self) -> Keepers {
        let tell = |keeper: Arc<dyn Keeper>| {
            let told = keeper.goes_on();
            (keeper, Some(told))
        };
        Keepers(Some(self.all_keepers().into_iter().map(tell).collect()))
    }

    /// The innermost of the keepers first, as for a response on its way out: of those that there are, or that were around it
    /// when it began to go on.
    pub(super) fn store_promises(self: &Arc<Self>, mut response: Response, how: How, around: Keepers) -> Promised {
        let goes_on = around.0.is_some();
        let there = || self.all_keepers().into_iter().map(|keeper| (keeper, None)).collect();
        for (keeper, told) in around.0.unwrap_or_else(there).into_iter().rev() {
            let whose = match told {
                Some(told) => Whose::WentOn(told),
                None if goes_on => Whose::GoesOn,
                None => Whose::InService,
            };
            match keeper.keep(Lifecycle(self.clone(), Around::NOTHING), response, how, whose) {
                Promised::Nothing(back) => response = back,
                storing => return storing,
            }
        }
        Promised::Nothing(response)
    }

    /// A keeper is gone. If the handler is, too, nothing more comes for it.
    pub(crate) fn keeper_left(&self) {
        if !self.word().has(word::HANDLER) {
            self.release_keepers(false);
        }
    }

    /// Whether an attempt is in service: it may be about to go on by itself, with whatever keeps it.
    pub(crate) fn is_in_service(&self) -> bool {
        self.running.in_service() > 0
    }

    /// Whether no response leaves any more.
    pub(crate) fn has_answered(&self) -> bool {
        self.word().has(word::HEAD)
    }

    /// Nothing more comes for those that are gone, or for `all`.
    pub(super) fn release_keepers(&self, all: bool) {
        let mut core = lock(&self.core);
        let Some(rare) = &mut core.rare else { return };
        let (released, kept): (Vec<_>, _) =
            std::mem::take(&mut rare.keepers).into_iter().partition(|keeper| all || keeper.is_gone());
        rare.keepers = kept;
        drop(core);
        drop(released);
    }
}

/// What a response promises while a layer holds that back: its head as it came, and those who would store it.
pub(crate) struct HeldBack {
    head: Parts,
    /// `None` when they wait for what it comes to.
    kept: Option<Kept>,
}

/// Those who store what was held back. They may be gone before it is.
pub(super) struct Kept {
    owner: Arc<Shared>,
    keepers: Keepers,
    how: How,
}

impl HeldBack {
    /// `None` if it promises nothing.
    pub(crate) fn of(lifecycle: &Lifecycle, head: &Parts) -> Option<Self> {
        is_promised(&head.extensions).then(|| {
            let owner = lifecycle.0.clone();
            let how = if owner.is_finished() { How::Finished } else { How::Returned };
            let kept = Kept { keepers: owner.keepers(), how, owner };
            Self { head: head.clone(), kept: Some(kept) }
        })
    }

    /// It, as far as it is there.
    pub(crate) fn into_response(self) -> Response {
        Response::from_parts(self.head, taken_off())
    }

    /// Nobody waits for it any more. If that is because its client left, what it promises is stored: behind the `rest` of its
    /// way, where that is ignored.
    pub(crate) fn left(mut self, rest: impl FnOnce(Self) -> Storing) {
        let Some(kept) = self.kept.take() else { return };
        let owner = kept.owner.clone();
        if owner.producer_survives_drop() {
            return go_on_held(&owner, rest(self), kept);
        }
        // It does not end between.
        owner.producer_started();
        caught::discard(rest);
        if owner.word().status() == ConnectionStatus::ABORTED {
            go_on_held(&owner, Box::pin(std::future::ready(self.into_response())), kept);
        }
        owner.producer_ended(None);
    }
}

impl Kept {
    pub(super) fn how(&self) -> How {
        self.how
    }

    /// Stores what it came to.
    pub(super) fn store(self, response: Response) -> Promised {
        self.owner.store_promises(response, self.how, self.keepers)
    }
}
