//! Every metric instrument, in one list.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: one prefix, base units, the unit last. Labels have few
//! values that are known beforehand; a session or teacher id is never one. Instruments are atomics, so that counting
//! costs nanoseconds; gauges that come from the database are read when they are scraped, see [`super::scrape`].
//!
//! Every series that can be foreseen is there from the start with 0: a rate over a counter that appears with its first
//! failure does not see that failure.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::trace;
use crate::google::error::GoogleError;
use crate::model::UnixMillis;
use crate::plan::Code;
use crate::run::Kind;
use crate::store::TokenStatus;

pub mod labels;

pub use labels::{
    BreakerLabel, EventLabels, GoogleLabels, HttpLabels, JobLabels, KindLabel, OutcomeLabel, PartLabel, PoolLabels,
    ReasonLabel, RouteLabel, RunLabel, StateLabel, StatusLabel, TraceLabel, WindowLabel,
};

/// A gauge of seconds.
pub type Seconds = Gauge<f64, AtomicU64>;
type Timings<Label> = Family<Label, Histogram, fn() -> Histogram>;
type Traced = HistogramWithExemplars<TraceLabel>;

/// Declares the instruments once: their type, their name and what they say.
macro_rules! instruments {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $new:expr, $name:literal $(in $unit:ident)?, $help:literal;)+) => {
        /// All instruments and the registry they are in. One for each process, shared behind an `Arc`.
        pub struct Metrics {
            registry: Registry,
            waiting_since_ms: AtomicI64,
            $($(#[$doc])* #[doc = $help] pub $field: $type,)+
        }

        impl Metrics {
            /// All at zero; `started_at` is when the process was started.
            pub fn starting(started_at: UnixMillis) -> Self {
                let this = Self { registry: Registry::default(), waiting_since_ms: AtomicI64::new(NOTHING), $($field: $new,)+ };
                this.registered(started_at)
            }

            fn register(&self, into: &mut Registry) {
                $(instruments!(@one into, self.$field, $name, $help $(, $unit)?);)+
            }

            /// Name without prefix and suffix, and help text, of each: for documents and tests.
            pub const LIST: &'static [(&'static str, &'static str)] = &[$(($name, $help),)+];
        }
    };
    (@one $into:ident, $metric:expr, $name:literal, $help:literal) => {
        $into.register($name, $help, $metric.clone())
    };
    (@one $into:ident, $metric:expr, $name:literal, $help:literal, $unit:ident) => {
        $into.register_with_unit($name, $help, Unit::$unit, $metric.clone())
    };
}

instruments! {
    events: Family<EventLabels, Counter> = Family::default(), "events",
        "Messages read from the stream, by shape and outcome";
    lag_messages: Gauge = Gauge::default(), "lag_messages",
        "Messages of the stream that were not received yet";
    lag_seconds: Seconds = Seconds::default(), "lag" in Seconds,
        "Age of the oldest message known to wait, 0 when none does";
    redeliveries: Counter = Counter::default(), "redeliveries",
        "Messages that the server delivered again";
    nats_connected: Gauge = Gauge::default(), "nats_connected",
        "Whether NATS can be reached, 1 or 0";
    ingest_blocked: Gauge = Gauge::default(), "ingest_blocked",
        "Whether ingest waits for a person to decide about the stream's epoch, 1 or 0";
    paused: Family<PartLabel, Gauge> = Family::default(), "paused",
        "Whether an operator paused this part, 1 or 0";
    run_silence: Family<RunLabel, Seconds> = Family::default(), "run_silence" in Seconds,
        "How long a run that is not at its end has not moved, 0 when none is open";
    run_remaining_events: Family<RunLabel, Gauge> = Family::default(), "run_remaining_events",
        "Sequences of the stream that a run which is not at its end has before it";
    clock_ahead: Seconds = Seconds::default(), "clock_ahead" in Seconds,
        "By how much our clock is ahead of Google's, from the last answer; exact to a second and the time of the call";
    dead_letters: Gauge = Gauge::default(), "dead_letters",
        "Open dead letters";
    sessions: Family<StatusLabel, Gauge> = Family::default(), "sessions",
        "Sessions by meetStatus";
    sessions_at_risk: Family<WindowLabel, Gauge> = Family::default(), "sessions_at_risk",
        "Sessions without a link that start within the window";
    oldest_pending: Seconds = Seconds::default(), "oldest_pending" in Seconds,
        "How long the oldest pending session that is not over has been pending, 0 when none is";
    event_to_link: Traced = Traced::new(LINK_BUCKETS.into_iter()), "event_to_link_duration" in Seconds,
        "From the publishing of an event to its link being recorded as ready";
    due: Gauge = Gauge::default(), "due",
        "Events at Google that are due to be looked at or written";
    jobs: Family<JobLabels, Counter> = Family::default(), "jobs",
        "Rounds of making one session agree at Google, by operation and outcome";
    retries: Family<ReasonLabel, Counter> = Family::default(), "retries",
        "Calls that will be made again, by the reason of the failure";
    drift: Family<KindLabel, Counter> = Family::default(), "drift",
        "Events at Google found changed or deleted by somebody else, and repaired";
    google_requests: Family<GoogleLabels, Counter> = Family::default(), "google_requests",
        "Requests to Google, by operation and outcome";
    google_request_seconds: Family<GoogleLabels, Traced, fn() -> Traced> = Family::new_with_constructor(google_buckets),
        "google_request_duration" in Seconds,
        "How long Google took to answer, by operation and outcome";
    google_breaker_open: Family<BreakerLabel, Gauge> = Family::default(), "google_breaker_open",
        "Whether calls pause because Google refuses this installation, 1 or 0";
    cool_downs: Counter = Counter::default(), "cool_downs",
        "Times that Google limited a calendar and its writes were paused";
    calendars_cooling_down: Gauge = Gauge::default(), "calendars_cooling_down",
        "Calendars whose writes are paused now";
    token_refreshes: Family<OutcomeLabel, Counter> = Family::default(), "token_refreshes",
        "Access tokens asked for, by outcome";
    teacher_connections: Family<StateLabel, Gauge> = Family::default(), "teacher_connections",
        "Teachers by the state of their grant";
    outbox_messages: Gauge = Gauge::default(), "outbox_messages",
        "Results that wait to be published";
    outbox_oldest: Seconds = Seconds::default(), "outbox_oldest" in Seconds,
        "Age of the oldest result that waits to be published";
    http_requests: Family<HttpLabels, Counter> = Family::default(), "http_requests",
        "HTTP requests answered, by route and status";
    http_request_seconds: Timings<RouteLabel> = Family::new_with_constructor(http_buckets),
        "http_request_duration" in Seconds,
        "How long an answer took, long-polls left out";
    http_waits: Gauge = Gauge::default(), "http_waits",
        "Long-polls under way";
    db_connections: Family<PoolLabels, Gauge> = Family::default(), "db_connections",
        "Connections to the database, by pool and state";
    database_up: Gauge = Gauge::default(), "database_up",
        "Whether the database answered the last time gauges were read, 1 or 0";
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
fn google_buckets() -> Traced {
    Traced::new([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 15.0, 30.0].into_iter())
}

/// 100 ms to a day: a second or two when all is well; minutes when Google limits us, hours when a teacher has to act.
const LINK_BUCKETS: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0];

/// No message waits.
const NOTHING: i64 = i64::MAX;

/// What [`crate::google::Call::operation`] can be.
const OPERATIONS: [&str; 7] = ["get", "list", "insert", "patch", "add_conference", "restore", "delete"];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero, for a process whose start nobody asks for.
    pub fn new() -> Self {
        Self::starting(UnixMillis::new(0))
    }

    fn registered(mut self, started_at: UnixMillis) -> Self {
        let mut registry = Registry::default();
        // The name that every exporter gives it, so that dashboards for all processes find it.
        let started = Seconds::default();
        started.set(seconds(started_at.get()));
        registry.register("process_start_time_seconds", "When the process was started, in seconds since 1970", started);
        let ours = registry.sub_registry_with_prefix("meet_projector");
        ours.register("build", "The program that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        self.register(ours);
        self.registry = registry;
        self.foresee();
        self
    }

    /// Makes the series that can be foreseen.
    fn foresee(&self) {
        for outcome in ["applied", "stale", "duplicate", "conflict", "dead_letter"] {
            drop(self.events.get_or_create(&EventLabels { shape: "structured", outcome }));
        }
        for operation in OPERATIONS {
            for outcome in ["ok", "transient", "rate_limited", "cool_down"] {
                drop(self.google_requests.get_or_create(&GoogleLabels { operation, outcome }));
            }
            for outcome in ["success", "failure"] {
                drop(self.jobs.get_or_create(&JobLabels { operation, outcome }));
            }
            drop(self.google_request_seconds.get_or_create(&GoogleLabels { operation, outcome: "ok" }));
        }
        for outcome in ["ok", "transient", "reconnect_required", "misconfigured"] {
            drop(self.token_refreshes.get_or_create(&OutcomeLabel { outcome }));
        }
        for (code, _) in Code::WORDS {
            drop(self.retries.get_or_create(&reason(code)));
        }
        for kind in ["changed", "deleted"] {
            drop(self.drift.get_or_create(&KindLabel { kind }));
        }
        for breaker in ["calendar", "token"] {
            drop(self.google_breaker_open.get_or_create(&BreakerLabel { breaker }));
        }
        for part in ["ingest", "reconcile"] {
            drop(self.paused.get_or_create(&PartLabel { part }));
        }
        for (_, run) in Kind::WORDS {
            drop(self.run_silence.get_or_create(&RunLabel { run }));
            drop(self.run_remaining_events.get_or_create(&RunLabel { run }));
        }
        for window in ["30m", "2h", "24h"] {
            drop(self.sessions_at_risk.get_or_create(&WindowLabel { window }));
        }
        for (_, state) in TokenStatus::WORDS {
            drop(self.teacher_connections.get_or_create(&StateLabel { state }));
        }
    }

    /// Counts one call at Google, all its requests together: `None` is a success. The caller's span becomes the exemplar.
    pub fn google_request(&self, operation: &'static str, error: Option<&GoogleError>, took: Duration) {
        let outcome = error.map_or("ok", |error| error.class.as_str());
        let labels = GoogleLabels { operation, outcome };
        self.google_requests.get_or_create(&labels).inc();
        let trace = trace::current_sampled_id().map(|trace_id| TraceLabel { trace_id });
        self.google_request_seconds.get_or_create(&labels).observe(took.as_secs_f64(), trace, None);
    }

    /// Counts one access token asked for at Google's token endpoint.
    pub fn token_refresh(&self, error: Option<&GoogleError>, took: Duration) {
        let outcome = error.map_or("ok", |error| error.class.as_str());
        self.token_refreshes.get_or_create(&OutcomeLabel { outcome }).inc();
        self.google_request("token", error, took);
    }

    /// Notes since when the oldest message of the stream waits, if one does.
    pub fn waiting(&self, since: Option<UnixMillis>) {
        self.waiting_since_ms.store(since.map_or(NOTHING, UnixMillis::get), Ordering::Relaxed);
    }

    /// Brings the ages up to `now` that are not read from the database.
    pub fn age(&self, now: UnixMillis) {
        let since = self.waiting_since_ms.load(Ordering::Relaxed);
        self.lag_seconds.set(if since == NOTHING { 0.0 } else { seconds((now.get() - since).max(0)) });
    }

    /// Notes what Google's clock said in an answer that has just come. `Date` has whole seconds, so half a second is
    /// added to it.
    pub fn google_said(&self, date: UnixMillis, now: UnixMillis) {
        self.clock_ahead.set(seconds(now.since(date.plus(500))));
    }

    /// Notes whether calls pause.
    pub fn breaker(&self, breaker: &'static str, is_open: bool) {
        self.google_breaker_open.get_or_create(&BreakerLabel { breaker }).set(i64::from(is_open));
    }

    /// Notes whether an operator paused `ingest` or `reconcile`.
    pub fn pause(&self, part: &'static str, is_paused: bool) {
        self.paused.get_or_create(&PartLabel { part }).set(i64::from(is_paused));
    }

    /// Counts one round for a session; see [`JobLabels`].
    pub fn job(&self, operation: Option<&'static str>, outcome: &'static str) {
        self.jobs.get_or_create(&JobLabels { operation: operation.unwrap_or("none"), outcome }).inc();
    }

    /// Counts a call that will be made again.
    pub fn retry(&self, code: Code) {
        self.retries.get_or_create(&reason(code)).inc();
    }

    /// A session became ready. `traceparent` is that of the event that wanted it.
    pub fn linked(&self, published_at: UnixMillis, now: UnixMillis, traceparent: Option<&str>) {
        let trace = trace::sampled_id(traceparent).map(|trace_id| TraceLabel { trace_id });
        self.event_to_link.observe(seconds(now.since(published_at).max(0)), trace, None);
    }

    /// The exposition of OpenMetrics 1.0.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a String does not fail");
        text
    }
}

fn reason(code: Code) -> ReasonLabel {
    let word = Code::WORDS.iter().find(|(known, _)| *known == code).map_or("", |(_, word)| word);
    ReasonLabel { reason: word.to_ascii_lowercase() }
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "2^53 ms are 285,000 years")]
pub fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}
