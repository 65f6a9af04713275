//! The playground's queries: whatever comes is read or refused, and what is read is within its bounds.

use std::time::Duration;

use axum::http::Uri;

#[allow(dead_code, reason = "the playground reads more of it")]
#[path = "../../examples/playground/query.rs"]
mod playground;

pub(crate) fn run(data: &[u8]) {
    // As hyper gives it: a target with bytes that none may have is refused before.
    let target: Vec<u8> = b"/run?".iter().chain(data).copied().collect();
    let Ok(uri) = Uri::from_maybe_shared(bytes::Bytes::from(target)) else { return };
    let minute = Duration::from_secs(60);
    match playground::Run::parse(&uri) {
        Ok(run) => {
            assert!((1..=64).contains(&run.id.len()) && run.id.is_ascii());
            assert!(run.body <= 64 * 1024 * 1024 && run.chunks <= 10_000 && run.hooks <= 100);
            assert!((200..=599).contains(&run.status.as_u16()));
            assert!(run.work <= minute && run.busy <= minute && run.chunk_time <= minute);
            assert!(run.limit.is_none_or(|limit| limit <= minute) && run.finish.is_none_or(|time| time <= minute));
            assert!(run.then.is_none_or(|(_, time)| time <= minute));
        }
        // One plain sentence.
        Err(error) => assert!(error.ends_with('.') && !error.contains('\n'), "{error:?}"),
    }
}
