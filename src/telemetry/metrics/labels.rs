//! Labels: few values each, all known beforehand, never an id.

use prometheus_client::encoding::EncodeLabelSet;

/// Declares a set of labels.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
            pub struct $name {
                $($(#[$field_doc])* pub $field: $type,)+
            }
        )+
    };
}

labels! {
    /// Of [`Metrics::events`](super::Metrics::events).
    EventLabels {
        /// How the event was wrapped: `structured`, `binary`, `nest`, `bare`; `unknown` when nobody could tell.
        shape: &'static str,
        /// What the fold made of it, or `dead_letter`.
        outcome: &'static str,
    }
    /// Of [`Metrics::google_requests`](super::Metrics::google_requests).
    GoogleLabels {
        /// [`crate::google::Call::operation`], or `token` for the token endpoint.
        operation: &'static str,
        /// `ok`, or the word of the failure.
        outcome: &'static str,
    }
    /// Of [`Metrics::jobs`](super::Metrics::jobs).
    JobLabels {
        /// [`crate::google::Call::operation`], or `none` where no call was due.
        operation: &'static str,
        /// `success`, `failure`, `superseded` (something newer was wanted, or another process took over) or
        /// `not_recorded`.
        outcome: &'static str,
    }
    /// Of [`Metrics::http_requests`](super::Metrics::http_requests).
    HttpLabels {
        /// The route's pattern, or `other`.
        route: &'static str,
        /// The status code.
        status: u16,
    }
    /// One route.
    RouteLabel {
        /// As in [`HttpLabels`].
        route: &'static str,
    }
    /// Of [`Metrics::sessions`](super::Metrics::sessions).
    StatusLabel {
        /// `meetStatus`.
        status: &'static str,
    }
    /// Of [`Metrics::sessions_at_risk`](super::Metrics::sessions_at_risk).
    WindowLabel {
        /// `30m`, `2h` or `24h`; each holds those before it.
        window: &'static str,
    }
    /// Of what happens for one of several reasons.
    ReasonLabel {
        /// The code of the failure, in small letters.
        reason: String,
    }
    /// Of what is of one of several kinds.
    KindLabel {
        /// `changed` or `deleted`.
        kind: &'static str,
    }
    /// Of what ends well or not.
    OutcomeLabel {
        /// `ok`, or the word of the failure.
        outcome: &'static str,
    }
    /// Of what is in one of several states.
    StateLabel {
        /// The state.
        state: &'static str,
    }
    /// Of what operators, or the service itself, run.
    RunLabel {
        /// `replay`, `rebuild`, `verify` or `leftovers`.
        run: &'static str,
    }
    /// Of the two breakers.
    BreakerLabel {
        /// `calendar` or `token`.
        breaker: &'static str,
    }
    /// Of the parts that can be paused.
    PartLabel {
        /// `ingest` or `reconcile`.
        part: &'static str,
    }
    /// Of connections to the database.
    PoolLabels {
        /// `read` and `write` on SQLite, `all` on PostgreSQL.
        pool: &'static str,
        /// `idle` or `busy`.
        state: &'static str,
    }
    /// Of exemplars.
    TraceLabel {
        /// The trace in which the observation was made.
        trace_id: String,
    }
}
