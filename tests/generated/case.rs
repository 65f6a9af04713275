//! What is drawn.

use http::StatusCode;
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
    sample::{select, subsequence},
};

use crate::fetch::Version;

/// One response, one request for it, and what stands around.
#[derive(Clone, Debug)]
pub struct Case {
    pub version: Version,
    pub answer: Answer,
    pub asks: Asks,
    pub early_close: EarlyClose,
    /// The outermost first; the early close is among them.
    pub layers: Vec<Kind>,
    /// Under a server of this crate, or the layers alone under `axum::serve`.
    pub tracked: bool,
}

/// What the handler answers.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// The lengths of the body's pieces.
    pub pieces: Vec<usize>,
    /// Compressible, or not at all.
    pub noise: bool,
    /// In one piece whose length is known.
    pub known: bool,
    /// The handler declares the length (and it is right).
    pub declares: bool,
    /// Each piece is waited for.
    pub waits: bool,
    pub trailers: bool,
    /// The body fails after so many pieces.
    pub fails_after: Option<usize>,
    pub content_type: Option<&'static str>,
    pub extra: Vec<(&'static str, &'static str)>,
    /// By `Lifecycle::finish`, and not by returning.
    pub finishes: bool,
}

/// How the client asks.
#[derive(Clone, Debug)]
pub struct Asks {
    pub head: bool,
    pub accepts: Option<&'static str>,
    pub takes_trailers: bool,
}

/// The settings of the early close.
#[derive(Clone, Debug)]
pub struct EarlyClose {
    /// Relative to the body's length.
    pub limit: Limit,
    pub patient: bool,
    pub closes: bool,
    pub compresses: bool,
    pub maps: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Limit {
    None,
    Half,
    OneLess,
    Exact,
    Plenty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    EarlyClose,
    IgnoreAbort,
    TimeLimit,
    ShutdownHook,
    Compression,
    Timeout,
    Trace,
    CatchPanic,
}

const OTHERS: [Kind; 7] = [
    Kind::IgnoreAbort,
    Kind::TimeLimit,
    Kind::ShutdownHook,
    Kind::Compression,
    Kind::Timeout,
    Kind::Trace,
    Kind::CatchPanic,
];

const EXTRA: [(&str, &str); 7] = [
    ("etag", "\"tag\""),
    ("vary", "cookie"),
    ("set-cookie", "a=b"),
    ("set-cookie", "c=d; path=/"),
    ("cache-control", "no-transform"),
    ("content-encoding", "identity"),
    ("x-accel-buffering", "no"),
];

const TYPES: [&str; 4] = ["text/plain", "application/json", "image/png", "text/event-stream"];

const ACCEPTS: [&str; 8] =
    ["gzip", "br", "zstd", "deflate", "identity", "gzip;q=0.5, br;q=0.7", "*", "gzip;q=0, identity"];

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    let length = prop_oneof![
        12 => 0..100_usize,
        8 => 100..3000_usize,
        2 => 3000..20_000_usize,
        1 => 20_000..150_000_usize,
        2 => select(vec![4095, 4096, 4097, 8191, 8192, 8193, 65_536]),
    ];
    vec(length, 0..6)
}

fn answer() -> impl Strategy<Value = Answer> {
    let status = prop_oneof![6 => Just(200), 2 => select(vec![201, 203, 303, 404, 500]), 1 => select(vec![204, 304])];
    let fails = option::weighted(0.2, 0..6_usize);
    let kind = prop_oneof![2 => Just(None), 5 => select(&TYPES[..]).prop_map(Some)];
    let extra = prop_oneof![2 => Just(Vec::new()), 2 => subsequence(&EXTRA[..], 0..3)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), proptest::bool::weighted(0.2));
    (status, pieces(), fails, kind, extra, flags, proptest::bool::weighted(0.2)).prop_map(
        |(status, pieces, fails_after, content_type, extra, flags, trailers)| {
            let (noise, known, declares, waits, finishes) = flags;
            let bodiless = status == 204 || status == 304;
            let pieces = if bodiless { Vec::new() } else { pieces };
            // A 204 with a stream is a mistake, which tower-http's compression turns into bytes on HTTP/2.
            let known = known || bodiless;
            let fails_after = fails_after.filter(|_| !known && !bodiless).map(|after| after.min(pieces.len()));
            Answer {
                status: StatusCode::from_u16(status).unwrap(),
                noise,
                known,
                // Nobody declares the length of what fails half-way, and of what there is not.
                declares: declares && fails_after.is_none() && !bodiless,
                waits,
                trailers: trailers && !known && fails_after.is_none() && !bodiless,
                fails_after,
                content_type,
                extra,
                pieces,
                finishes,
            }
        },
    )
}

fn early_close() -> impl Strategy<Value = EarlyClose> {
    let limit = prop_oneof![
        1 => Just(Limit::None),
        1 => Just(Limit::Half),
        1 => Just(Limit::OneLess),
        1 => Just(Limit::Exact),
        6 => Just(Limit::Plenty),
    ];
    let flags = (proptest::bool::weighted(0.8), any::<bool>(), any::<bool>(), proptest::bool::weighted(0.3));
    (limit, flags).prop_map(|(limit, (patient, closes, compresses, maps))| EarlyClose {
        limit,
        patient,
        closes,
        compresses,
        maps,
    })
}

pub fn case(version: Version) -> impl Strategy<Value = Case> {
    let accepts = prop_oneof![1 => Just(None), 4 => select(&ACCEPTS[..]).prop_map(Some)];
    let asks = (proptest::bool::weighted(0.25), accepts, any::<bool>());
    let layers = subsequence(&OTHERS[..], 0..=OTHERS.len()).prop_flat_map(|mut layers| {
        layers.push(Kind::EarlyClose);
        Just(layers).prop_shuffle()
    });
    (answer(), asks, early_close(), layers, proptest::bool::weighted(0.8)).prop_map(
        move |(mut answer, (head, accepts, takes_trailers), early_close, layers, tracked)| {
            // A body that is finished has its own test of what becomes of one that fails.
            answer.finishes &= answer.fails_after.is_none();
            let asks = Asks { head, accepts, takes_trailers };
            Case { version, answer, asks, early_close, layers, tracked }
        },
    )
}

impl Case {
    pub fn length(&self) -> usize {
        self.answer.pieces.iter().sum()
    }

    pub fn limit(&self) -> usize {
        match self.early_close.limit {
            Limit::None => 0,
            Limit::Half => self.length() / 2,
            Limit::OneLess => self.length().saturating_sub(1),
            Limit::Exact => self.length(),
            Limit::Plenty => 1024 * 1024,
        }
    }

    pub fn place(&self, kind: Kind) -> Option<usize> {
        self.layers.iter().position(|other| *other == kind)
    }
}
