//! The page as OpenMetrics 1.0.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::snapshot::{BoundLoad, Snapshot};

/// With which a scraper is told what it gets.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// # Errors
///
/// None, but for those of the encoder's own.
pub(super) fn render(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("epilogue_pool");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::with_capacity(8 * 1024);
    encode(&mut text, &registry)?;
    Ok(text)
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counters: [(&str, &str, u64); 13] = [
            ("requests", "Requests that were accepted and have ended", self.requests.ended),
            ("requests_refused", "Requests that were refused", self.requests.refused),
            ("responses_flushed", "Responses that were flushed", self.requests.flushed),
            ("requests_aborted", "Requests whose client left before the response was flushed", self.requests.aborted),
            ("requests_timed_out", "Requests and jobs whose limit passed, or that were cut", self.requests.timed_out),
            ("continuations", "Continuations that were started", self.continuations.started),
            ("continuations_dropped", "Continuations that were dropped before their end", self.continuations.dropped),
            ("continuations_failed", "Continuations that returned an error", self.continuations.failed),
            ("bodies_failed", "Responses whose body returned an error", self.bodies_failed),
            ("hooks_dropped", "Hooks that exceeded the hook limit", self.hooks_dropped),
            ("jobs", "Attempts at durable jobs that have ended", self.jobs.ended),
            ("panics", "Panics that were caught", self.panicked as u64),
            ("lost", "Requests whose runtime ended before their work did", self.lost as u64),
        ];
        for (name, help, value) in counters {
            counter(&mut encoder, name, help, value)?;
        }
        let gauges: [(&str, &str, u64); 7] = [
            ("requests_in_flight", "Accepted requests that have not ended", self.requests.in_flight),
            ("jobs_in_flight", "Attempts at durable jobs that have not ended", self.jobs.in_flight),
            ("running", "Unfinished requests and jobs that do not wait for a place", self.now.running),
            ("waiting", "Continuations that wait for a place", self.now.waiting),
            ("connections_open", "Open connections", self.connections_open as u64),
            ("detached", "Handlers and bodies that outlive their response", self.now.detached as u64),
            ("stuck", "Threads of blocking continuations that are busy past their limit", self.now.stuck as u64),
        ];
        for (name, help, value) in gauges {
            gauge(&mut encoder, name, help, value)?;
        }
        gauge(&mut encoder, "draining", "Whether a drain is under way", u64::from(self.draining))?;
        let uptime = ConstGauge::new(self.uptime_seconds);
        let help = "The time since the page was switched on";
        uptime.encode(encoder.encode_descriptor("uptime", help, Some(&Unit::Seconds), MetricType::Gauge)?)?;

        let now = &self.now;
        let phases = [
            ("handling", now.handling),
            ("sending", now.sending),
            ("waiting", now.waiting),
            ("continuing", now.continuing),
            ("ending", now.ending),
        ];
        let rows = phases.map(|(phase, value)| ([("phase", phase)], value));
        gauges_of(&mut encoder, "in_phase", "Unfinished requests and jobs", &rows)?;
        self.encode_bounds(&mut encoder)
    }
}

impl Snapshot {
    fn encode_bounds(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Column<T> = (&'static str, &'static str, fn(&BoundLoad) -> T);
        if self.bounds.is_empty() {
            return Ok(());
        }
        let gauges: [Column<Option<u64>>; 5] = [
            ("bound_max_running", "How many may run at once", |bound| Some(bound.max_running as u64)),
            ("bound_max_waiting", "How many may wait", |bound| bound.max_waiting.map(|most| most as u64)),
            ("bound_running", "How many run", |bound| Some(bound.running as u64)),
            ("bound_waiting", "How many wait", |bound| Some(bound.waiting as u64)),
            ("bound_reserved", "Places reserved for requests whose handler is running", |bound| {
                Some(bound.reserved as u64)
            }),
        ];
        for (name, help, value) in gauges {
            let rows = self.bounds.iter().filter_map(|bound| Some((bound.labels(), value(bound)?)));
            let rows: Vec<_> = rows.collect();
            // A family without a sample tells nothing.
            if !rows.is_empty() {
                gauges_of(encoder, name, help, &rows)?;
            }
        }
        let counters: [Column<u64>; 2] = [
            ("bound_refused", "Requests that were refused because of it", |bound| bound.refused),
            ("bound_over", "Continuations accepted beyond it", |bound| bound.over),
        ];
        for (name, help, value) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for bound in &self.bounds {
                let labels = bound.labels();
                ConstCounter::new(value(bound)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl BoundLoad {
    /// Two, so that no class can be taken for the bound of all.
    fn labels(&self) -> [(&'static str, &'static str); 2] {
        [("bound", self.bound), ("class", self.class.unwrap_or_default())]
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    ConstCounter::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

fn gauges_of<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: &[(L, u64)],
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}
