//! Who stores what a response promises that goes nowhere.

use std::sync::Arc;

use axum_core::response::Response;

use super::{Lifecycle, nowhere::Promised, shared::Shared};
use crate::pool::lock;

/// A layer that stores promises, and may be gone before its request's handler is.
pub(crate) trait Keeper: Send + Sync {
    /// Whether it is: what a handler promises then does not come by it.
    fn is_gone(&self) -> bool;
    /// Stores what the response promises, which goes nowhere. It was `returned`, or else given to `finish`.
    fn keep(&self, lifecycle: Lifecycle, response: Response, returned: bool) -> Promised;
}

impl Shared {
    pub(crate) fn add_keeper(&self, keeper: Arc<dyn Keeper>) {
        lock(&self.core).rare().keepers.push(keeper);
    }

    /// The innermost first, as for a response on its way out.
    pub(super) fn store_promises(self: &Arc<Self>, mut response: Response, returned: bool) -> Promised {
        let keepers = lock(&self.core).rare.as_ref().map(|rare| rare.keepers.clone()).unwrap_or_default();
        for keeper in keepers.iter().rev() {
            match keeper.keep(Lifecycle(self.clone()), response, returned) {
                Promised::Nothing(back) => response = back,
                storing => return storing,
            }
        }
        Promised::Nothing(response)
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
