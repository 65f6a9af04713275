//! The plot: a panel for each workload, a bar for each peer.

use std::fmt::Write as _;

use crate::{
    measure::Results,
    peers::OURS,
    table::{count, median},
};

const WIDTH: f64 = 900.0;
const LABEL: f64 = 210.0;
const BAR: f64 = 18.0;
const STEP: f64 = 25.0;
const SCALE: f64 = WIDTH - LABEL - 110.0;

/// A bar's length and what is written beside it; `None` where nothing was measured.
type Figure = Option<(f64, String)>;

fn panel(svg: &mut String, top: &mut f64, title: &str, logarithmic: bool, bars: &[(&str, bool, Figure)]) {
    let figures = bars.iter().filter_map(|(_, _, figure)| figure.as_ref().map(|(value, _)| *value));
    let (least, most) = figures.fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
    let length = |value: f64| {
        if logarithmic {
            // A tenth of the scale is left to the least.
            let share = (value / least).ln() / (most / least).ln().max(f64::EPSILON);
            SCALE * (0.1 + 0.9 * share)
        } else {
            SCALE * value / most.max(f64::EPSILON)
        }
    };
    let _ = writeln!(svg, r#"<text x="10" y="{:.0}" class="title">{title}</text>"#, *top + 16.0);
    *top += 30.0;
    for (name, ours, figure) in bars {
        let middle = *top + BAR * 0.75;
        let _ = writeln!(svg, r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{name}</text>"#, LABEL - 8.0);
        let end = match figure {
            Some((value, _)) => {
                let length = length(*value);
                let class = if *ours { "ours" } else { "bar" };
                let _ = writeln!(
                    svg,
                    r#"<rect class="{class}" x="{LABEL}" y="{top:.0}" width="{length:.1}" height="{BAR}"/>"#
                );
                LABEL + length
            }
            None => LABEL,
        };
        let text = figure.as_ref().map_or("not measured", |(_, text)| text);
        let _ = writeln!(svg, r#"<text x="{:.0}" y="{middle:.0}">{text}</text>"#, end + 6.0);
        *top += STEP;
    }
    *top += 20.0;
}

pub fn svg(results: &[Results]) -> String {
    let mut body = String::new();
    let mut top = 10.0;
    let mut draw = |title: &str, logarithmic: bool, figure: &dyn Fn(&Results) -> Figure| {
        let bars: Vec<_> =
            results.iter().map(|result| (plain(result), result.peer.key == OURS, figure(result))).collect();
        let bars: Vec<_> = bars.iter().map(|(name, ours, figure)| (name.as_str(), *ours, figure.clone())).collect();
        panel(&mut body, &mut top, title, logarithmic, &bars);
    };
    draw("Responses with 100 ms of work after them: requests a second (logarithmic)", true, &|result| {
        median(&result.respond.rate).map(|rate| (rate, count(rate)))
    });
    draw("One client at a time: time to the close, median (logarithmic)", true, &|result| {
        let close = median(&result.respond.close)?;
        Some((close.as_secs_f64(), crate::table::time(close)))
    });
    draw("Parked: bytes a continuation (logarithmic)", true, &|result| {
        median(&result.park).map(|bytes| (bytes, format!("{} (at {})", count(bytes), count(result.parked as f64))))
    });
    draw("Early close of an unread upload: whole responses, client that reads afterwards", false, &|result| {
        let seen = &result.afterwards;
        let whole = seen.iter().filter(|seen| seen.whole).count();
        (!seen.is_empty()).then(|| (whole as f64, format!("{whole} of {}", seen.len())))
    });
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" width=\"{WIDTH}\" height=\"{top}\">\n\
         <style>text {{ font: 13px sans-serif; fill: #333 }} .title {{ font-weight: bold; font-size: 14px }} \
         .bar {{ fill: #9db4c8 }} .ours {{ fill: #c8553d }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
    )
}

fn plain(result: &Results) -> String {
    result.peer.name.replace('`', "")
}
