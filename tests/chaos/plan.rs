//! What a request does and what its client does to it: all of it made from one seed.

use std::time::Duration;

/// Numbers that look random and are the same for the same seed (splitmix64).
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut dice = Self(seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        dice.roll();
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Mostly short, seldom long.
    pub fn moment(&mut self) -> Duration {
        let most = self.one_of(&[1, 200, 1_000, 5_000, 20_000]);
        Duration::from_micros(self.below(most))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Sized, of so many bytes.
    Whole(usize),
    /// So many frames of so many bytes, with waits.
    Stream(u64, usize),
    /// A stream that fails after so many frames.
    BrokenStream(u64),
    /// A stream that panics after so many frames.
    PanickingStream(u64),
    /// By `finish`; then the handler goes on.
    Finish(usize),
    /// By a `finish` that is dropped while it waits.
    FinishUnawaited,
    NoContent,
    Panic,
    /// Never.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Async(Duration),
    Blocking(Duration),
    Panic,
    /// Ends at a limit or a drain's deadline only.
    Endless,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookDoes {
    Nothing,
    Wait(Duration),
    Panic,
    Break,
    /// Registers another one.
    Another,
}

/// What a handler does.
#[derive(Clone, Debug)]
pub struct Plan {
    pub reads_upload: bool,
    pub ignores: bool,
    pub shield: bool,
    pub limit: Option<Duration>,
    pub hooks: Vec<HookDoes>,
    pub before: Duration,
    pub answer: Answer,
    pub after: Duration,
    pub work: Vec<Work>,
}

impl Plan {
    pub fn of(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed, number.wrapping_mul(2));
        let dice = &mut dice;
        let limit = dice.once_in(4).then(|| Duration::from_micros(1 + dice.below(30_000)));
        let size = dice.one_of(&[0, 1, 100, 5_000, 70_000, 300_000]);
        let answer = match dice.below(24) {
            0..=6 => Answer::Whole(size as usize),
            7..=12 => Answer::Stream(1 + dice.below(6), size as usize / 4),
            13 => Answer::BrokenStream(dice.below(3)),
            14 => Answer::PanickingStream(dice.below(3)),
            15..=18 => Answer::Finish(size as usize),
            19 => Answer::FinishUnawaited,
            20 => Answer::NoContent,
            21 => Answer::Panic,
            _ => Answer::Never,
        };
        let hook = |dice: &mut Dice| match dice.below(8) {
            0 => HookDoes::Wait(dice.moment()),
            1 => HookDoes::Panic,
            2 if dice.once_in(3) => HookDoes::Break,
            3 => HookDoes::Another,
            _ => HookDoes::Nothing,
        };
        let work = |dice: &mut Dice| match dice.below(12) {
            0 | 1 => Work::Blocking(dice.moment() / 8),
            2 => Work::Panic,
            3 if limit.is_some() => Work::Endless,
            _ => Work::Async(dice.moment()),
        };
        Self {
            reads_upload: dice.once_in(2),
            ignores: dice.once_in(5),
            shield: dice.once_in(6),
            limit,
            hooks: (0..dice.below(4)).map(|_| hook(dice)).collect(),
            before: dice.moment(),
            answer,
            after: dice.moment(),
            work: (0..dice.one_of(&[0, 1, 1, 1, 2])).map(|_| work(dice)).collect(),
        }
    }
}

impl Plan {
    /// No limit ends it.
    pub fn ends_by_itself(&mut self) {
        if self.answer == Answer::Never {
            self.answer = Answer::NoContent;
        }
        self.work.retain(|work| *work != Work::Endless);
    }
}

/// That of one attempt of several at a request, each of which ends by itself.
pub fn plan_of(seed: u64, number: u64, attempt: u32) -> Plan {
    let mut plan = Plan::of(seed.wrapping_add(u64::from(attempt) << 32), number);
    if plan.answer == Answer::Never {
        plan.limit.get_or_insert(Duration::from_millis(30));
    }
    plan
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http10,
    Http11,
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Fin,
    Close,
    Reset,
}

/// What a client does with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It reads all of the response.
    Reads,
    /// It reads slowly, and all.
    ReadsSlowly,
    /// It leaves at that moment.
    LeavesAfter(Duration, Leave),
    /// It leaves when it has read so many bytes.
    LeavesAt(usize, Leave),
}

/// Less than what a server's kernel takes of an upload that nobody reads.
const FITS_A_WINDOW: usize = 64_000;

/// One connection, and the requests on it.
#[derive(Clone, Debug)]
pub struct Visit {
    pub protocol: Protocol,
    pub begins: Duration,
    pub pipelined: bool,
    /// The numbers of its requests, with their uploads.
    pub requests: Vec<(u64, usize)>,
    /// What it does with each; on HTTP/1 the first that leaves is the last.
    pub deeds: Vec<Deed>,
    /// HTTP/2: the connection is lost after that time.
    pub lost: Option<Duration>,
}

impl Visit {
    /// `first` is the number of its first request.
    pub fn of(seed: u64, first: u64, spread: Duration) -> Self {
        let mut dice = Dice::new(seed, first.wrapping_mul(2) + 1);
        let dice = &mut dice;
        let protocol = dice.one_of(&[Protocol::Http10, Protocol::Http11, Protocol::Http11, Protocol::Http2]);
        let count = match protocol {
            Protocol::Http10 => 1,
            Protocol::Http11 => 1 + dice.below(4),
            Protocol::Http2 => 1 + dice.below(12),
        };
        let upload = |dice: &mut Dice| dice.one_of(&[0, 0, 0, 0, 10, 3_000, 60_000]);
        let leave = |dice: &mut Dice| dice.one_of(&[Leave::Fin, Leave::Close, Leave::Reset]);
        // Somebody has to end it.
        let endless = |number| {
            let plan = Plan::of(seed, number);
            plan.answer == Answer::Never && plan.limit.is_none()
        };
        let deed = |number: u64, dice: &mut Dice| match dice.below(8) {
            _ if endless(number) => Deed::LeavesAfter(dice.moment(), leave(dice)),
            0 | 1 => Deed::LeavesAfter(dice.moment(), leave(dice)),
            2 => Deed::LeavesAt(dice.one_of(&[0, 1, 50, 150, 4_000, 100_000]), leave(dice)),
            3 if dice.once_in(4) => Deed::ReadsSlowly,
            _ => Deed::Reads,
        };
        let begins = Duration::from_micros(dice.below(spread.as_micros() as u64));
        let requests: Vec<_> = (first..first + count).map(|number| (number, upload(dice))).collect();
        let mut deeds: Vec<_> = requests.iter().map(|(number, _)| deed(*number, dice)).collect();
        let lost = dice.once_in(6).then(|| dice.moment());
        let pipelined = dice.once_in(3);
        // A FIN behind a full receive window is not seen, and here nothing else would end the request: such a client
        // resets, which is seen at once (see `manual::connection`).
        let unread: usize = requests.iter().map(|(_, upload)| *upload).sum();
        if pipelined && unread > FITS_A_WINDOW && requests.iter().any(|(number, _)| endless(*number)) {
            for deed in &mut deeds {
                if let Deed::LeavesAfter(_, how) | Deed::LeavesAt(_, how) = deed {
                    *how = Leave::Reset;
                }
            }
        }
        Self { protocol, begins, pipelined, requests, deeds, lost }
    }
}
