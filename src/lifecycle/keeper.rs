//! Who stores what a response promises that goes nowhere.

use std::sync::Arc;

use axum_core::response::Response;

use super::{Lifecycle, nowhere::Promised, shared::Shared, word};
use crate::pool::lock;

/// A layer that stores promises, and may be gone before its request's handler is.
pub(crate) trait Keeper: Send + Sync {
    /// Whether it is: what a handler promises then does not come by it.
    fn is_gone(&self) -> bool;
    /// Stores what the response promises, which goes nowhere. It was `returned`, or else given to `finish`.
    fn keep(&self, lifecycle: Lifecycle, response: Response, returned: bool) -> Promised;
}

/// Those around one handler, the innermost last.
pub(super) type Keepers = Vec<Arc<dyn Keeper>>;

impl Shared {
    pub(crate) fn add_keeper(&self, keeper: Arc<dyn Keeper>) {
        lock(&self.core).rare().keepers.push(keeper);
    }

    pub(super) fn keepers(&self) -> Keepers {
        lock(&self.core).rare.as_ref().map(|rare| rare.keepers.clone()).unwrap_or_default()
    }

    /// The innermost of the keepers first, as for a response on its way out: of those that there are, or that there were when
    /// the handler that `returned` it began to go on alone. `None` if it was given to `finish`.
    pub(super) fn store_promises(self: &Arc<Self>, mut response: Response, returned: Option<Keepers>) -> Promised {
        let (by_return, before) = (returned.is_some(), returned.unwrap_or_default());
        let now = self.keepers();
        let keepers = if now.is_empty() { before } else { now };
        for keeper in keepers.iter().rev() {
            match keeper.keep(Lifecycle(self.clone()), response, by_return) {
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
