//! The table.

use crate::{
    app::Row,
    run::{Answer, Seen, Way},
    stack::{Kind, Stack},
};

const TIMED_OUT: &str = "This request could not be finished in time.\n";
const PANICKED: &str = "Internal Server Error\n";
const CAUGHT: &str = "Service panicked";

/// What a row comes to in a stack. Nothing here asks in which order the layers stand, but for where a panic is
/// caught.
pub fn expected(row: Row, stack: &Stack, way: Way) -> Seen {
    let ignores = stack.has(Kind::IgnoreAbort);
    let limited = stack.has(Kind::TimeLimit);
    let closes = stack.has(Kind::EarlyClose);
    let ok = |body: &str, length: Option<usize>| answer(200, body, length, closes);
    let table = match row {
        Row::Plain => Life {
            answer: ok("plain", Some(5)),
            did: &["continuation"],
            went: &["handler_end/0", "flushed:5/0", "continuation_start/0", "continuation_end/0"],
            ..Life::NORMAL
        },
        Row::Head => Life {
            answer: ok("", Some(5)),
            did: &["continuation"],
            went: &["handler_end/0", "flushed:0/0", "continuation_start/0", "continuation_end/0"],
            ..Life::NORMAL
        },
        Row::Finish => Life {
            answer: ok("early", Some(5)),
            did: &["finish: Flushed", "rest"],
            went: &["flushed:5/0", "finish_resolved/0", "handler_end/0"],
            ..Life::NORMAL
        },
        Row::Stream => Life {
            answer: ok("stream", closes.then_some(6)),
            went: &["handler_end/0", "body_end/0", "flushed:6/0"],
            ..Life::NORMAL
        },
        Row::HeadOfStream => {
            Life { answer: ok("", closes.then_some(6)), went: &["handler_end/0", "flushed:0/0"], ..Life::NORMAL }
        }
        Row::Leave if ignores => {
            Life { did: &["started", "went on"], went: &["aborted/1", "handler_end/1"], ..Life::ABORTED }
        }
        Row::Leave => Life { did: &["started"], went: &["aborted/1", "handler_dropped/1"], ..Life::ABORTED },
        Row::ReaderLeaves if ignores => {
            Life { did: &["produced on"], went: &["handler_end/0", "aborted/1", "body_end/1"], ..Life::ABORTED }
        }
        Row::ReaderLeaves => Life { went: &["handler_end/0", "aborted/1", "body_dropped/1"], ..Life::ABORTED },
        Row::Limit if limited => Life {
            answer: answer(503, TIMED_OUT, Some(TIMED_OUT.len()), closes),
            went: &["handler_dropped/2", "flushed:44/2"],
            saw: "TIMEOUT, Flushed",
            status: 2,
            ..Life::NORMAL
        },
        Row::Limit => Life { answer: ok("late", Some(4)), went: &["handler_end/0", "flushed:4/0"], ..Life::NORMAL },
        Row::Panic => panicked(stack, way),
        Row::TheirTimeout => {
            let (_, inside) = stack.ours_around(Kind::Timeout);
            // What stands inside of it was dropped, and shapes nothing.
            let closes = closes && stack.place(Kind::EarlyClose) < stack.place(Kind::Timeout);
            Life {
                answer: answer(504, "", Some(0), closes),
                went: if inside > 0 {
                    &["handler_dropped/0", "flushed:0/0"]
                } else {
                    &["handler_end/0", "flushed:0/0"]
                },
                ..Life::NORMAL
            }
        }
        Row::Large => unreachable!("its length depends on the encoding"),
    };
    table.seen(stack, way)
}

/// A panic is caught by whoever stands closest outside of it, and seen by our services inside of that.
fn panicked(stack: &Stack, way: Way) -> Life {
    let normal = "NORMAL, Flushed";
    let panicked = "NORMAL, Flushed, panicked";
    if stack.has(Kind::CatchPanic) {
        let (outside, inside) = stack.ours_around(Kind::CatchPanic);
        let close = stack.place(Kind::EarlyClose) < stack.place(Kind::CatchPanic) && stack.has(Kind::EarlyClose);
        return Life {
            answer: answer(500, CAUGHT, Some(CAUGHT.len()), close),
            saw: match (inside > 0, outside > 0 || way != Way::Alone) {
                (false, _) => normal,
                (true, true) => panicked,
                (true, false) => "NORMAL, BrokenOff, panicked",
            },
            went: &["handler_end/0", "flushed:16/0"],
            ..Life::NORMAL
        };
    }
    if way == Way::Alone {
        return Life { saw: "NORMAL, BrokenOff, panicked", ..Life::NORMAL };
    }
    // It went through the layers to the outermost of our services, so that none shaped the answer.
    let answer = answer(500, PANICKED, Some(PANICKED.len()), false);
    Life { answer, saw: panicked, went: &["handler_end/0", "flushed:22/0"], ..Life::NORMAL }
}

fn answer(status: u16, body: &str, length: Option<usize>, close: bool) -> Option<Answer> {
    Some(Answer { status, body: body.to_owned(), length: length.map(|length| length as u64), close })
}

/// One request, but for what all have in common.
struct Life {
    answer: Option<Answer>,
    /// What the app noted before its hooks ran.
    did: &'static [&'static str],
    /// What the journal says between the handler's start and the first hook.
    went: &'static [&'static str],
    /// What hooks saw.
    saw: &'static str,
    status: u8,
}

impl Life {
    const NORMAL: Self = Self { answer: None, did: &[], went: &[], saw: "NORMAL, Flushed", status: 0 };
    const ABORTED: Self = Self { saw: "ABORTED, Aborted", status: 1, ..Self::NORMAL };

    fn seen(self, stack: &Stack, way: Way) -> Seen {
        let Self { mut answer, did, went, saw, status } = self;
        // `Connection` does not exist on HTTP/2.
        if let Some(answer) = answer.as_mut().filter(|_| way == Way::Http2) {
            answer.close = false;
        }
        // The layer registers its hook before the handler does.
        let hooks: &[&str] = if stack.has(Kind::ShutdownHook) { &["layer", "handler"] } else { &["handler"] };
        let saw = hooks.iter().map(|who| format!("{who}'s hook: {saw}"));
        let notes = did.iter().map(ToString::to_string).chain(saw).collect();
        if way == Way::Alone {
            return Seen { answer, notes, journal: Vec::new() };
        }
        let mut journal = vec!["handler_start/0".to_owned()];
        journal.extend(went.iter().map(ToString::to_string));
        for hook in 0..hooks.len() {
            journal.extend([format!("hook_start:{hook}/{status}"), format!("hook_end:{hook}/{status}")]);
        }
        journal.push(format!("ended/{status}"));
        Seen { answer, notes, journal }
    }
}
