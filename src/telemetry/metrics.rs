//! Every metric instrument, in one list.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: one prefix, base units, the unit last. Labels have few
//! values that are known beforehand; a session or teacher id is never one. Instruments are atomics, so that counting
//! costs nanoseconds; gauges that come from the database are read when they are scraped.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::google::error::GoogleError;
use crate::model::UnixMillis;
use crate::store::Counts;

/// Labels of [`Metrics::events`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    /// How the event was wrapped: `structured`, `binary`, `nest`, `bare`; `unknown` when nobody could tell.
    pub shape: &'static str,
    /// What the fold made of it, or `dead_letter`.
    pub outcome: &'static str,
}

/// Labels of [`Metrics::google_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GoogleLabels {
    /// [`crate::google::Call::operation`], or `token` for the token endpoint.
    pub operation: &'static str,
    /// `ok`, or the word of the failure.
    pub outcome: &'static str,
}

/// Label of one operation at Google.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperationLabel {
    /// As in [`GoogleLabels`].
    pub operation: &'static str,
}

/// Labels of [`Metrics::http_requests`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpLabels {
    /// The route's pattern, or `other`.
    pub route: &'static str,
    /// The status code.
    pub status: u16,
}

/// Label of one route.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabel {
    /// As in [`HttpLabels`].
    pub route: &'static str,
}

/// Label of [`Metrics::sessions`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    /// `meetStatus`.
    pub status: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;
type Timings<Label> = Family<Label, Histogram, fn() -> Histogram>;

/// All instruments and the registry they are in. One for each process, shared behind an `Arc`.
pub struct Metrics {
    registry: Registry,
    /// Messages read from the stream.
    pub events: Family<EventLabels, Counter>,
    /// Messages of the stream that were not applied yet.
    pub lag_messages: Gauge,
    /// Messages that the server delivered more than once.
    pub redeliveries: Counter,
    /// Open dead letters.
    pub dead_letters: Gauge,
    /// Sessions by `meetStatus`.
    pub sessions: Family<StatusLabel, Gauge>,
    /// Rows at Google that are due.
    pub due: Gauge,
    /// Requests to Google.
    pub google_requests: Family<GoogleLabels, Counter>,
    /// How long Google took.
    pub google_request_seconds: Timings<OperationLabel>,
    /// Results that wait to be published.
    pub outbox_messages: Gauge,
    /// Age of the oldest of them.
    pub outbox_oldest_seconds: Seconds,
    /// HTTP requests answered.
    pub http_requests: Family<HttpLabels, Counter>,
    /// How long an answer took; long-polls are not in it.
    pub http_request_seconds: Timings<RouteLabel>,
    /// Long-polls under way.
    pub http_waits: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// 100 µs to 3 s: a cached read takes some 100 µs, the slowest list some 10 ms.
fn http_buckets() -> Histogram {
    Histogram::new([0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
}

/// 50 ms to 30 s: Google answers in 200 to 800 ms, and we give up after 30 s.
fn google_buckets() -> Histogram {
    Histogram::new([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 15.0, 30.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("meet_projector"),
            events: Family::default(),
            lag_messages: Gauge::default(),
            redeliveries: Counter::default(),
            dead_letters: Gauge::default(),
            sessions: Family::default(),
            due: Gauge::default(),
            google_requests: Family::default(),
            google_request_seconds: Family::new_with_constructor(google_buckets),
            outbox_messages: Gauge::default(),
            outbox_oldest_seconds: Seconds::default(),
            http_requests: Family::default(),
            http_request_seconds: Family::new_with_constructor(http_buckets),
            http_waits: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    /// The list. A counter's `_total` and a unit's name are added by the encoder.
    fn register(&mut self) {
        let into = &mut self.registry;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        into.register("build", "The program that runs", build);
        into.register("events", "Messages read from the stream, by shape and outcome", self.events.clone());
        into.register("lag_messages", "Messages of the stream that were not applied yet", self.lag_messages.clone());
        into.register("redeliveries", "Messages that the server delivered again", self.redeliveries.clone());
        into.register("dead_letters", "Open dead letters", self.dead_letters.clone());
        into.register("sessions", "Sessions by meetStatus", self.sessions.clone());
        into.register("due", "Events at Google that are due to be looked at or written", self.due.clone());
        into.register("google_requests", "Requests to Google, by operation and outcome", self.google_requests.clone());
        into.register_with_unit(
            "google_request_duration",
            "How long Google took to answer",
            Unit::Seconds,
            self.google_request_seconds.clone(),
        );
        into.register("outbox_messages", "Results that wait to be published", self.outbox_messages.clone());
        into.register_with_unit(
            "outbox_oldest",
            "Age of the oldest result that waits to be published",
            Unit::Seconds,
            self.outbox_oldest_seconds.clone(),
        );
        into.register("http_requests", "HTTP requests answered, by route and status", self.http_requests.clone());
        into.register_with_unit(
            "http_request_duration",
            "How long an answer took, long-polls left out",
            Unit::Seconds,
            self.http_request_seconds.clone(),
        );
        into.register("http_waits", "Long-polls under way", self.http_waits.clone());
    }

    /// Takes over what the database counted.
    pub fn set_counts(&self, counts: &Counts, outbox_oldest: Option<UnixMillis>, now: UnixMillis) {
        let by_status = [
            ("PENDING", counts.pending),
            ("READY", counts.ready),
            ("ERROR", counts.error),
            ("CANCELED", counts.canceled),
        ];
        for (status, count) in by_status {
            self.sessions.get_or_create(&StatusLabel { status }).set(count);
        }
        self.dead_letters.set(counts.dead_letters);
        self.outbox_messages.set(counts.outbox);
        self.due.set(counts.due);
        // Ages in milliseconds stay far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "an age of 2^53 ms is 285,000 years")]
        let age = outbox_oldest.map_or(0.0, |oldest| now.since(oldest).max(0) as f64 / 1_000.0);
        self.outbox_oldest_seconds.set(age);
    }

    /// Counts one request to Google: `None` is a success.
    pub fn google_request(&self, operation: &'static str, error: Option<&GoogleError>, took: Duration) {
        let outcome = error.map_or("ok", |error| error.class.as_str());
        self.google_requests.get_or_create(&GoogleLabels { operation, outcome }).inc();
        self.google_request_seconds.get_or_create(&OperationLabel { operation }).observe(took.as_secs_f64());
    }

    /// The exposition of OpenMetrics 1.0.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}
