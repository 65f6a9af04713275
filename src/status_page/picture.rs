//! What ran and waited in the last minutes, drawn.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::{history::SECONDS, snapshot::HistoryPoint};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 120.0;
/// Room for the words above.
const TOP: f64 = 20.0;

/// The last second is at the right edge.
pub(super) fn picture(history: &[HistoryPoint]) -> Markup {
    let most = history.iter().map(|point| point.running.max(point.waiting)).max().unwrap_or(0);
    let running = path(history, most, |point| point.running);
    let waiting = path(history, most, |point| point.waiting);
    let now = history.last();
    let (runs, waits) = (now.map_or(0, |point| point.running), now.map_or(0, |point| point.waiting));
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img"
            aria-label={ "Of the last three minutes: " (runs) " run and " (waits) " wait in this second; " (most) " at most." } {
            path.area d={ (running) " V" (HEIGHT) " H" (first(history.len())) " Z" } {}
            path.over d=(waiting) {}
            text.running x="8" y="14" { "running" }
            text.waiting x="60" y="14" { "waiting" }
            text x=(WIDTH - 8.0) y="14" text-anchor="end" { "last 3 minutes, at most " (most) " in a second" }
        }
    }
}

fn x(place: usize) -> f64 {
    WIDTH * place as f64 / SECONDS as f64
}

/// Where the oldest of so many begins.
fn first(length: usize) -> f64 {
    x(SECONDS - length.min(SECONDS))
}

/// One step a second.
fn path(history: &[HistoryPoint], most: u64, value: impl Fn(&HistoryPoint) -> u64) -> String {
    let mut path = String::with_capacity(history.len() * 12);
    let missing = SECONDS - history.len().min(SECONDS);
    let mut last = None;
    for (place, point) in history.iter().enumerate() {
        let height = (HEIGHT - TOP - 2.0) * value(point) as f64 / most.max(1) as f64;
        let y = HEIGHT - 1.0 - height;
        // Writing into a string does not fail.
        let _ = match last {
            None => write!(path, "M{:.0} {y:.1}", x(missing)),
            Some(last) if last == value(point) => Ok(()),
            Some(_) => write!(path, " H{:.0} V{y:.1}", x(missing + place)),
        };
        last = Some(value(point));
    }
    let _ = write!(path, " H{WIDTH}");
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(u64, u64)]) -> Vec<HistoryPoint> {
        values.iter().map(|&(running, waiting)| HistoryPoint { running, waiting }).collect()
    }

    #[test]
    fn steps_go_up_to_the_most_and_end_at_the_right_edge() {
        let history = points(&[(0, 0), (2, 0), (2, 4), (1, 0)]);
        assert_eq!(path(&history, 4, |point| point.running), "M704 119.0 H708 V70.0 H716 V94.5 H720");
        assert_eq!(path(&history, 4, |point| point.waiting), "M704 119.0 H712 V21.0 H716 V119.0 H720");
    }

    #[test]
    fn a_quiet_server_is_a_line_at_the_bottom() {
        let history = points(&[(0, 0); SECONDS]);
        assert_eq!(path(&history, 0, |point| point.running), "M0 119.0 H720");
        assert!(picture(&history).into_string().contains("at most 0 in a second"));
    }
}
