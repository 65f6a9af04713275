//! Medians, ratios, and how figures are written.

use std::time::Duration;

use crate::measure::Results;

/// Of sorted figures the one at this share of them; `None` without figures.
pub fn quantile<T: Copy + PartialOrd>(figures: &[T], share: f64) -> Option<T> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied()
}

pub fn median<T: Copy + PartialOrd>(figures: &[T]) -> Option<T> {
    quantile(figures, 0.5)
}

/// Round by round, what `of` tells of this peer over what it tells of the other.
pub fn ratios(this: &Results, other: &Results, of: fn(&Results, usize) -> f64) -> Vec<f64> {
    let rounds = &this.respond.rounds;
    let pairs = rounds.iter().enumerate().filter_map(|(place, round)| {
        let same = other.respond.rounds.iter().position(|other| other == round)?;
        Some(of(this, place) / of(other, same))
    });
    pairs.collect()
}

pub fn rate(results: &Results, place: usize) -> f64 {
    results.respond.rate[place]
}

pub fn cpu(results: &Results, place: usize) -> f64 {
    results.respond.cpu[place].as_secs_f64()
}

/// As it stands in a cell of a table.
pub fn cell<T>(figure: Option<T>, write: impl FnOnce(T) -> String) -> String {
    figure.map_or_else(|| "–".to_owned(), write)
}

pub fn time(figure: Duration) -> String {
    let micros = figure.as_secs_f64() * 1e6;
    if micros < 1_000.0 {
        format!("{micros:.0} µs")
    } else if micros < 10_000.0 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{:.0} ms", micros / 1e3)
    }
}

/// A whole number with its thousands set apart.
pub fn count(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
