//! In which form a client wants the page: by its query, as FPM's page is asked, or by its `Accept` header.

use http::{HeaderMap, header};

use crate::quality::thousandths;

/// The forms that the page has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Html,
    Json,
    OpenMetrics,
    /// The page's own updates.
    Events,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) form: Form,
    /// More of what runs than the oldest few.
    pub(super) full: bool,
}

impl Wanted {
    /// The first form that the query names counts; without one, the header decides.
    pub(super) fn parse(query: Option<&str>, headers: &HeaderMap) -> Self {
        let form = keys(query).find_map(Form::named).unwrap_or_else(|| accepted(headers));
        Self { form, full: is_full(query) }
    }
}

/// Whether the query says `full`.
pub(super) fn is_full(query: Option<&str>) -> bool {
    keys(query).any(|key| key == "full")
}

/// A key's value, if it has one, means nothing.
fn keys(query: Option<&str>) -> impl Iterator<Item = &str> {
    query.unwrap_or_default().split('&').filter_map(|pair| pair.split('=').next())
}

impl Form {
    fn named(key: &str) -> Option<Self> {
        match key {
            "html" => Some(Self::Html),
            "json" => Some(Self::Json),
            "openmetrics" => Some(Self::OpenMetrics),
            "events" => Some(Self::Events),
            _ => None,
        }
    }

    fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Html => ("text", "html"),
            Self::Json => ("application", "json"),
            Self::OpenMetrics => ("application", "openmetrics-text"),
            Self::Events => ("text", "event-stream"),
        }
    }
}

/// The form that the header weighs most, the first of these if it weighs several alike. HTML if it names none of them:
/// an answer is of more use than a 406 (RFC 9110, section 12.4.1).
fn accepted(headers: &HeaderMap) -> Form {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges: Vec<_> = values.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
    let mut best = (0, Form::Html);
    for form in [Form::Html, Form::Json, Form::OpenMetrics, Form::Events] {
        let weight = weight(&ranges, form);
        if weight > best.0 {
            best = (weight, form);
        }
    }
    best.1
}

/// That of the range that names the form most exactly (RFC 9110, section 12.5.1).
fn weight(ranges: &[Range<'_>], form: Form) -> u16 {
    let matching = ranges.iter().filter_map(|range| Some((range.precision(form)?, range.weight)));
    matching.max().map_or(0, |(_, weight)| weight)
}

/// One media range, without parameters other than its weight: of each form there is one version.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// In thousandths.
    weight: u16,
}

impl<'a> Range<'a> {
    /// What cannot be read counts as not there.
    fn parse(range: &'a str) -> Option<Self> {
        let mut parts = range.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let mut weight = 1000;
        for parameter in parts {
            let Some((key, value)) = parameter.split_once('=') else { continue };
            if key.trim().eq_ignore_ascii_case("q") {
                weight = thousandths(value.trim())?;
            }
        }
        Some(Self { kind, subtype, weight })
    }

    fn precision(&self, form: Form) -> Option<u8> {
        let (kind, subtype) = form.media_type();
        match (self.kind, self.subtype) {
            (own, other) if own.eq_ignore_ascii_case(kind) && other.eq_ignore_ascii_case(subtype) => Some(2),
            (own, "*") if own.eq_ignore_ascii_case(kind) => Some(1),
            ("*", "*") => Some(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wanted(query: &str, accept: &[&'static str]) -> Wanted {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, HeaderValue::from_static(value));
        }
        Wanted::parse(Some(query), &headers)
    }

    #[test]
    fn the_header_decides_where_the_query_does_not() {
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
                          q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, form) in [
            (&[][..], Form::Html),
            (&["*/*"], Form::Html),
            (&[firefox], Form::Html),
            (&[prometheus], Form::OpenMetrics),
            (&["application/json"], Form::Json),
            (&["Application/JSON; charset=utf-8"], Form::Json),
            (&["application/*"], Form::Json),
            (&["text/event-stream"], Form::Events),
            (&["text/html;q=0.4", "application/json ; Q=0.5"], Form::Json),
            (&["text/html;q=0, */*"], Form::Json),
            (&["text/*;q=0.3, application/json;q=0.2"], Form::Html),
            (&["application/*, application/json;q=0"], Form::OpenMetrics),
            (&["image/png"], Form::Html),
            (&["application/json;q=2"], Form::Html),
            (&["application/json;q=0.1234"], Form::Html),
            (&["nonsense", ",,;;", "/", "*"], Form::Html),
        ] {
            assert_eq!(wanted("", accept), Wanted { form, full: false }, "{accept:?}");
        }
    }

    #[test]
    fn the_query_comes_first() {
        for (query, form, full) in [
            ("json", Form::Json, false),
            ("json&full", Form::Json, true),
            ("full&json", Form::Json, true),
            ("full", Form::OpenMetrics, true),
            ("html", Form::Html, false),
            ("openmetrics=1", Form::OpenMetrics, false),
            ("events&full=", Form::Events, true),
            ("json&html", Form::Json, false),
            ("xml", Form::OpenMetrics, false),
            ("JSON", Form::OpenMetrics, false),
            ("x=json&fullest", Form::OpenMetrics, false),
            ("&&=&%6a", Form::OpenMetrics, false),
        ] {
            assert_eq!(wanted(query, &["application/openmetrics-text"]), Wanted { form, full }, "{query}");
        }
    }
}
