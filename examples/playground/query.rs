//! What a request of `/run` asks for.

use std::{ops::RangeInclusive, str::FromStr, time::Duration};

use axum::{
    extract::Query,
    http::{HeaderValue, StatusCode, Uri},
};
use tower_epilogue::ClockKind;

const MAX_MS: u64 = 60_000;
const MAX_BODY: usize = 64 * 1024 * 1024;
const MAX_CHUNKS: usize = 10_000;
const MAX_HOOKS: usize = 100;

/// One request, as its query says.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The journal's name.
    pub(crate) id: String,
    pub(crate) status: StatusCode,
    /// The response body's length in bytes.
    pub(crate) body: usize,
    /// Zero: the body is of known length, in one piece.
    pub(crate) chunks: usize,
    pub(crate) chunk_time: Duration,
    /// Whether the handler reads the request's body to its end first.
    pub(crate) read: bool,
    pub(crate) work: Duration,
    pub(crate) busy: Duration,
    /// The continuation, and how long it goes on.
    pub(crate) then: Option<(Then, Duration)>,
    /// How long the handler goes on after `finish`.
    pub(crate) finish: Option<Duration>,
    pub(crate) close: bool,
    pub(crate) compress: bool,
    pub(crate) ignore_abort: bool,
    pub(crate) limit: Option<Duration>,
    pub(crate) clock: ClockKind,
    /// The limit that the handler sets, and how long it works after that.
    pub(crate) extend: Option<(Duration, Duration)>,
    pub(crate) hooks: usize,
    pub(crate) hook: FirstHook,
    pub(crate) panic: bool,
    pub(crate) redirect: Option<HeaderValue>,
}

/// What the continuation does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Then {
    #[default]
    Async,
    Blocking,
    Panic,
}

/// What the first hook does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum FirstHook {
    #[default]
    Ok,
    Panic,
    /// Registers one more.
    Nest,
    /// Breaks: the hooks after it do not run.
    Stop,
    Slow,
}

impl Run {
    /// Reads a query; the error is one plain sentence.
    pub(crate) fn parse(uri: &Uri) -> Result<Self, String> {
        let mut query = Pairs::read(uri)?;
        let (then, then_time) = (
            query.choice("then", &[("async", Then::Async), ("blocking", Then::Blocking), ("panic", Then::Panic)])?,
            query.time("then_ms")?,
        );
        let (limit, work_after) = (query.time("extend_ms")?, query.time("extend_work_ms")?);
        let run = Self {
            id: query.id()?,
            status: query.status()?,
            body: query.number("body", 0..=MAX_BODY)?.unwrap_or(64),
            chunks: query.number("chunks", 0..=MAX_CHUNKS)?.unwrap_or(0),
            chunk_time: query.time("chunk_ms")?.unwrap_or_default(),
            read: query.flag("read")?,
            work: query.time("work_ms")?.unwrap_or_default(),
            busy: query.time("busy_ms")?.unwrap_or_default(),
            then: then_time.map(|time| (then, time)),
            finish: query.time("finish_ms")?,
            close: query.flag("close")?,
            compress: query.flag("compress")?,
            ignore_abort: query.flag("ignore_abort")?,
            limit: query.time("limit_ms")?,
            clock: query.choice("clock", &[("wall", ClockKind::Wall), ("busy", ClockKind::Busy)])?,
            extend: limit.map(|limit| (limit, work_after.unwrap_or_default())),
            hooks: query.number("hooks", 0..=MAX_HOOKS)?.unwrap_or(1),
            hook: query.choice(
                "hook",
                &[
                    ("ok", FirstHook::Ok),
                    ("panic", FirstHook::Panic),
                    ("nest", FirstHook::Nest),
                    ("stop", FirstHook::Stop),
                    ("slow", FirstHook::Slow),
                ],
            )?,
            panic: query.flag("panic")?,
            redirect: query.location("redirect")?,
        };
        query.end()?;
        Ok(run)
    }
}

/// The query's pairs that were not taken yet.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn read(uri: &Uri) -> Result<Self, String> {
        let Query(pairs): Query<Vec<(String, String)>> =
            Query::try_from_uri(uri).map_err(|_| "The query cannot be read.".to_owned())?;
        for (place, (name, _)) in pairs.iter().enumerate() {
            if pairs[..place].iter().any(|(other, _)| other == name) {
                return Err(format!("The parameter `{}` is there twice.", name.escape_debug()));
            }
        }
        Ok(Self(pairs))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let place = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(place).1)
    }

    /// What is left is unknown.
    fn end(self) -> Result<(), String> {
        match self.0.first() {
            Some((name, _)) => Err(format!("There is no parameter `{}`.", name.escape_debug())),
            None => Ok(()),
        }
    }

    fn id(&mut self) -> Result<String, String> {
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        self.take("id")
            .filter(|id| (1..=64).contains(&id.len()) && id.bytes().all(of_a_name))
            .ok_or_else(|| "id must be given, as 1 to 64 letters, digits, `_` or `-`.".to_owned())
    }

    fn status(&mut self) -> Result<StatusCode, String> {
        // An informational response is not the last one, so a handler cannot answer with it.
        let code = self.number("status", 200..=599)?.unwrap_or(200);
        StatusCode::from_u16(code).map_err(|_| format!("{code} is no status."))
    }

    fn number<N>(&mut self, name: &str, range: RangeInclusive<N>) -> Result<Option<N>, String>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (least, most) = (range.start(), range.end());
        // Digits alone: Rust's own parsers take a `+` too.
        Some(value)
            .filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|value| value.parse().ok())
            .filter(|number| range.contains(number))
            .map(Some)
            .ok_or_else(|| format!("{name} must be a whole number from {least} to {most}."))
    }

    fn time(&mut self, name: &str) -> Result<Option<Duration>, String> {
        Ok(self.number(name, 0..=MAX_MS)?.map(Duration::from_millis))
    }

    fn flag(&mut self, name: &str) -> Result<bool, String> {
        match self.take(name).as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(_) => Err(format!("{name} must be 0 or 1.")),
        }
    }

    fn choice<T: Copy + Default>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<T, String> {
        let Some(value) = self.take(name) else { return Ok(T::default()) };
        choices.iter().find(|(choice, _)| *choice == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<_> = choices.iter().map(|(choice, _)| *choice).collect();
            format!("{name} must be one of {}.", known.join(", "))
        })
    }

    fn location(&mut self, name: &str) -> Result<Option<HeaderValue>, String> {
        let Some(value) = self.take(name) else { return Ok(None) };
        Some(value)
            .filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()))
            .and_then(|value| HeaderValue::from_str(&value).ok())
            .map(Some)
            .ok_or_else(|| format!("{name} must be a location, in visible ASCII characters."))
    }
}
