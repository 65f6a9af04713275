//! The page as HTML. Everything in it that comes from outside is escaped by maud.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    picture::picture,
    snapshot::{BoundLoad, LiveRow, PastRow, Snapshot},
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing may be loaded or run but what is in the page: these are the hashes of its style and its script.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    style-src 'sha256-VXniH601lQ8q7kbVoIu6Rz+heirh/MxZO5E/CS64mbU='; script-src 'sha256-LwQ8p/cSIPZxHE2fNHd5h6L6Nq8qhmcJXyNv1X1O9Yc='; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(super) fn document(snapshot: &Snapshot, full: bool) -> String {
    let markup = html! {
        (DOCTYPE)
        html lang="en" data-full=(if full { "yes" } else { "no" }) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="robots" content="noindex";
                noscript { meta http-equiv="refresh" content="5"; }
                title { "Status: tower-epilogue" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "tower-epilogue" }
                    span #state .quiet role="status" { "as loaded" }
                    nav {
                        @if full { a href="?" { "short" } } @else { a href="?full" { "full" } }
                        a href=(if full { "?json&full" } else { "?json" }) { "JSON" }
                        a href="?openmetrics" { "OpenMetrics" }
                    }
                }
                main #live { (fragment(snapshot)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    markup.into_string()
}

/// What changes: also sent alone, as an update.
pub(super) fn fragment(snapshot: &Snapshot) -> Markup {
    html! {
        p.quiet {
            "up " (age(snapshot.uptime_seconds)) ", open connections: " span data-name="connections_open" { (snapshot.connections_open) }
            @if snapshot.draining { strong.bad data-name="draining" { ", draining" } }
        }
        (totals(snapshot))
        (picture(&snapshot.history))
        @if !snapshot.bounds.is_empty() { (bounds(&snapshot.bounds)) }
        h2 { "In flight" }
        (live(&snapshot.live, snapshot.live_left_out))
        h2 { "Slowest" }
        (past(&snapshot.slowest, "No request has ended yet."))
        h2 { "Latest failures" }
        (past(&snapshot.failures, "None."))
    }
}

fn totals(snapshot: &Snapshot) -> Markup {
    let Snapshot { requests, now, continuations, jobs, .. } = snapshot;
    let calm = [
        ("accepted", requests.accepted),
        ("in_flight", requests.in_flight),
        ("running", now.running),
        ("waiting", now.waiting),
        ("detached", now.detached as u64),
        ("flushed", requests.flushed),
        ("aborted", requests.aborted),
        ("continuations", continuations.started),
        ("durable_jobs", jobs.ended),
    ];
    // These are red when there are any.
    let bad = [
        ("refused", requests.refused),
        ("timed_out", requests.timed_out),
        ("failed", continuations.failed),
        ("bodies_failed", snapshot.bodies_failed),
        ("panicked", snapshot.panicked as u64),
        ("dropped", continuations.dropped),
        ("hooks_dropped", snapshot.hooks_dropped),
        ("stuck", now.stuck as u64),
        ("lost", snapshot.lost as u64),
    ];
    let all = calm.map(|(name, value)| (name, value, false)).into_iter();
    let all = all.chain(bad.map(|(name, value)| (name, value, value > 0)));
    html! {
        dl {
            @for (name, value, bad) in all {
                div { dt { (name.replace('_', " ")) } dd.bad[bad] data-name=(name) { (value) } }
            }
        }
    }
}

fn bounds(bounds: &[BoundLoad]) -> Markup {
    html! {
        h2 { "Bounds" }
        div.table { table {
            thead { tr {
                th { "bound" }
                @for name in ["running", "limit", "waiting", "limit", "reserved", "refused", "over limit"] { th.number { (name) } }
            } }
            tbody { @for bound in bounds { tr {
                td { @match bound.class { Some(class) => (class), None => span.quiet { (bound.bound) } } }
                @for value in [bound.running, bound.max_running, bound.waiting] { td.number { (value) } }
                td.number { @match bound.max_waiting { Some(most) => (most), None => "any" } }
                td.number { (bound.reserved) }
                td.number { (bound.refused) }
                td.number { (bound.over) }
            } } }
        } }
    }
}

fn live(rows: &[LiveRow], left_out: u64) -> Markup {
    html! {
        @if rows.is_empty() && left_out == 0 { p.quiet { "Nothing is in flight." } } @else {
            div.table { table {
                thead { tr { th { "route" } th { "class" } th { "phase" } th.number { "age" } th { "status" } } }
                tbody { @for row in rows { tr {
                    td.route { (row.route) (job(row.durable_job)) }
                    td { (row.class.unwrap_or_default()) }
                    td { (row.phase) }
                    td.number { (age(row.age_seconds)) }
                    td { (row.status) }
                } } }
            } }
            @if left_out > 0 { p.quiet { "and " (left_out) " more, all of them younger" } }
        }
    }
}

fn past(rows: &[PastRow], none: &str) -> Markup {
    html! {
        @if rows.is_empty() { p.quiet { (none) } } @else {
            div.table { table {
                thead { tr {
                    th { "route" } th { "class" } th.number { "work time" } th.number { "total time" } th { "status" } th { "faults" }
                    th.number { "ended" }
                } }
                tbody { @for row in rows { tr {
                    td.route { (row.route) (job(row.durable_job)) }
                    td { (row.class.unwrap_or_default()) }
                    td.number { (age(row.work_seconds)) }
                    td.number { (age(row.age_seconds)) }
                    td { (row.status) }
                    td.bad { (row.faults.join(", ")) }
                    td.number { (age(row.ended_seconds_ago)) " ago" }
                } } }
            } }
        }
    }
}

fn job(stored: bool) -> Markup {
    html! { @if stored { span.quiet { " durable job" } } }
}

/// For people: two units at most.
fn age(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0 => format!("{:.0} ms", seconds * 1000.0),
        1..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86400, whole % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use sha2::{Digest as _, Sha256};

    use super::*;

    #[test]
    fn the_policy_names_the_style_and_the_script_that_the_page_has() {
        for (directive, text) in [("style-src", STYLE), ("script-src", SCRIPT)] {
            let hash = STANDARD.encode(Sha256::digest(text));
            let expected = format!("{directive} 'sha256-{hash}';");
            assert!(CONTENT_SECURITY_POLICY.contains(&expected), "{expected}");
        }
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let hostile = "<script>alert('&\"1\"')</script>";
        let text = "&lt;script&gt;alert('&amp;&quot;1&quot;')&lt;/script&gt;";
        let row = LiveRow {
            route: hostile.to_owned(),
            class: Some("<class>"),
            phase: "handling",
            age_seconds: 1.0,
            status: "NORMAL".to_owned(),
            durable_job: false,
        };
        let ended = PastRow {
            route: hostile.into(),
            class: Some("<class>"),
            work_seconds: 1.0,
            age_seconds: 2.0,
            ended_seconds_ago: 3.0,
            status: "NORMAL".to_owned(),
            faults: vec!["failed"],
            durable_job: false,
        };
        for html in [live(&[row], 0).into_string(), past(&[ended], "").into_string()] {
            assert!(html.contains(text) && html.contains("&lt;class&gt;"), "{html}");
            assert!(!html.contains("<script") && !html.contains("<class"), "{html}");
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.1234, "123 ms"),
            (1.0, "1.0 s"),
            (9.94, "9.9 s"),
            (59.9, "59 s"),
            (61.0, "1 min 1 s"),
            (3_600.0, "1 h 0 min"),
            (200_000.0, "2 d 7 h"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
