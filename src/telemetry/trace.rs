//! Spans: which there are, what they are called, and how they hang together.
//!
//! One trace leads from the publisher's `traceparent` to the result: `process` (one event, with `decode`, and `fold` where
//! the event is alone in its transaction) is a child of the publisher's span, and its context is what the database keeps
//! with the session; `reconcile` with the requests to Google, and `send` to stream `MEET`, are children of that. Where
//! work is batched or comes much later there is a link instead of a parent: one `fold` of many events, a retry after
//! [`LATE_MS`], the daily look at an event that was settled long ago.
//!
//! Names and attributes follow <https://opentelemetry.io/docs/specs/semconv/messaging/> and
//! <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>: names by template, ids as attributes. Never in a span:
//! tokens, links, addresses, titles, bodies, whole URLs (a calendar id may be an address). Nothing is passed on to Google.
//!
//! Every span has the target [`TARGET`], which no log line shows. Without an exporter nobody is interested in that target,
//! and a span costs one load.

use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, global};
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::model::UnixMillis;
use crate::store::{EpochRecord, Incoming, Job, OutboxMessage};

/// The target of all spans.
pub const TARGET: &str = "meet_projector::trace";

/// Name of the instrumentation scope.
pub(super) const SCOPE: &str = "meet-projector";

/// A reconciliation this long after the failure began is another trace, with a link: viewers show a trace as one piece of
/// work, and one that lasts for hours hides what happened when.
const LATE_MS: i64 = 5 * 60_000;

tokio::task_local! {
    /// How often the request that is being made was made before.
    static RESENT: u32;
}

/// Reads `00-<trace>-<span>-<flags>`, <https://www.w3.org/TR/trace-context/#traceparent-header>.
pub fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_well_formed = version.len() == 2 && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    if !is_well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(flags) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

fn to_text(context: &SpanContext) -> Option<String> {
    let flags = u8::from(context.is_sampled());
    context.is_valid().then(|| format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
}

/// The trace id for an exemplar, when that trace is exported.
pub fn sampled_id(traceparent: Option<&str>) -> Option<String> {
    parse(traceparent?).filter(SpanContext::is_sampled).map(|context| context.trace_id().to_string())
}

/// The trace and span that the caller works in, when there are any.
pub fn current() -> Option<SpanContext> {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        context.is_valid().then(|| context.clone())
    })
}

/// The trace id of the caller's span for an exemplar, when it is exported.
pub fn current_sampled_id() -> Option<String> {
    current().filter(SpanContext::is_sampled).map(|context| context.trace_id().to_string())
}

fn context_of(span: &Span) -> SpanContext {
    span.context().span().span_context().clone()
}

fn set_parent(span: &Span, parent: &SpanContext) {
    // Refused only for a span that was started; ours is a moment old.
    span.set_parent(Context::new().with_remote_span_context(parent.clone())).ok();
}

/// One event, from its receipt to its acknowledgement. Ends when it is dropped.
#[derive(Debug, Clone)]
pub struct Processing(Span, Option<SystemTime>);

impl Processing {
    /// An event was received.
    pub fn begin() -> Self {
        let span = info_span!(
            target: TARGET, parent: None, "process",
            otel.name = Empty, otel.kind = "consumer", otel.status_code = Empty,
            messaging.system = "nats", messaging.operation.name = "process", messaging.operation.type = "process",
            messaging.destination.name = Empty, messaging.destination.template = Empty,
            messaging.consumer.group.name = Empty, messaging.message.id = Empty, messaging.message.body.size = Empty,
            messaging.nats.stream.sequence = Empty, meet.session.id = Empty, meet.teacher.id = Empty,
            meet.outcome = Empty, error.type = Empty,
        );
        let begun_at = (!span.is_disabled()).then(opentelemetry::time::now);
        Self(span, begun_at)
    }

    /// It was decoded. From here on the event carries this span's context, so that whatever is done for it, in whichever
    /// process, belongs to its trace.
    pub fn decoded(&self, incoming: &mut Incoming, record: &EpochRecord, filter: &str) {
        let (span, Some(begun_at)) = (&self.0, self.1) else { return };
        let ended_at = opentelemetry::time::now();
        let template = template(filter);
        span.record("otel.name", format!("process {template}"));
        span.record("messaging.destination.name", &record.stream);
        span.record("messaging.destination.template", &template);
        span.record("messaging.consumer.group.name", &record.consumer);
        span.record("messaging.message.body.size", incoming.raw.payload.len());
        span.record("messaging.nats.stream.sequence", incoming.sequence);
        if let Ok(event) = &mut incoming.decoded {
            span.record("messaging.message.id", &event.event_id);
            span.record("meet.session.id", event.session.as_str());
            span.record("meet.teacher.id", event.teacher.as_str());
            if let Some(publisher) = event.traceparent.as_deref().and_then(parse) {
                set_parent(span, &publisher);
            }
            if let Some(text) = to_text(&context_of(span)) {
                event.traceparent = Some(text);
            }
        }
        self.decode_span(begun_at, ended_at);
    }

    /// The decoding, told afterwards: only by then is it known which trace it belongs to.
    fn decode_span(&self, begun_at: SystemTime, ended_at: SystemTime) {
        let context = self.0.context();
        if context.span().span_context().is_sampled() {
            let tracer = global::tracer(SCOPE);
            let builder = tracer.span_builder("decode").with_start_time(begun_at);
            tracer.build_with_context(builder, &context).end_with_timestamp(ended_at);
        }
    }

    /// What became of it.
    pub fn settled(&self, outcome: &'static str, refused: Option<&'static str>) {
        self.0.record("meet.outcome", outcome);
        if let Some(class) = refused {
            self.0.record("otel.status_code", "ERROR");
            self.0.record("error.type", class);
        }
    }
}

/// `bookings.session.*.*` as a template: what stands for the stars.
fn template(filter: &str) -> String {
    let mut tokens: Vec<&str> = filter.split('.').collect();
    if let [.., session, change] = tokens.as_mut_slice() {
        (*session, *change) = ("{sessionId}", "{change}");
    }
    tokens.join(".")
}

/// One transaction that folds events: inside the trace of the event when there is one, with links when there are many.
pub fn fold(events: &[Processing]) -> Span {
    let named = |parent: Option<tracing::span::Id>| info_span!(target: TARGET, parent: parent, "fold", messaging.batch.message_count = events.len());
    match events {
        [] => Span::none(),
        [one] => named(one.0.id()),
        [first, ..] if first.0.is_disabled() => Span::none(),
        many => {
            let sampled: Vec<_> = many
                .iter()
                .map(|event| (event, context_of(&event.0)))
                .filter(|(_, context)| context.is_sampled())
                .collect();
            if sampled.is_empty() {
                return Span::none();
            }
            let span = named(None);
            for (_, context) in &sampled {
                span.add_link(context.clone());
            }
            let batch = context_of(&span);
            for (event, _) in sampled {
                event.0.add_link(batch.clone());
            }
            span
        }
    }
}

/// One round of making one session's event at Google agree.
pub fn reconcile(job: &Job, now: UnixMillis) -> Span {
    let span = info_span!(
        target: TARGET, parent: None, "reconcile",
        otel.status_code = Empty, error.type = Empty, meet.operation = Empty, meet.outcome = Empty,
        meet.session.id = job.row.session.as_str(), meet.teacher.id = job.row.teacher.as_str(),
        meet.attempt = job.row.failure.as_ref().map_or(0, |failure| failure.attempts) + 1,
    );
    if span.is_disabled() {
        return span;
    }
    if let Some(event) = job.traceparent.as_deref().and_then(parse) {
        if is_apart(job, now) {
            span.add_link(event);
        } else {
            set_parent(&span, &event);
        }
    }
    span
}

/// Whether the work is so far from its event that it is a trace of its own.
fn is_apart(job: &Job, now: UnixMillis) -> bool {
    job.row.settled || job.row.failure.as_ref().is_some_and(|failure| now.since(failure.since) > LATE_MS)
}

/// Notes in the current `reconcile` what was called and what came of it.
pub fn reconciled(operation: Option<&'static str>, outcome: &'static str, error: Option<&'static str>) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    span.record("meet.operation", operation.unwrap_or("none"));
    span.record("meet.outcome", outcome);
    if let Some(class) = error {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", class);
    }
}

/// Runs what makes a request, telling its span how often that request was made before.
pub async fn resent<T>(times: u32, request: impl Future<Output = T>) -> T {
    RESENT.scope(times, request).await
}

/// One HTTP request of ours. `template` is the path with names for its ids; the host may be told, the URL may not.
pub fn http_client(method: &reqwest::Method, server: Option<&str>, port: Option<u16>, template: &str) -> Span {
    let span = info_span!(
        target: TARGET, "http",
        otel.name = Empty, otel.kind = "client", otel.status_code = Empty, http.request.method = method.as_str(),
        server.address = server, server.port = port, url.template = template, http.request.resend_count = Empty,
        http.response.status_code = Empty, error.type = Empty,
    );
    if !span.is_disabled() {
        span.record("otel.name", format!("{method} {template}"));
        if let Some(times) = RESENT.try_with(|times| *times).ok().filter(|times| *times > 0) {
            span.record("http.request.resend_count", times);
        }
    }
    span
}

/// Notes the answer to [`http_client`]; `None` when there was none, for `reason`.
pub fn answered(span: &Span, status: Option<u16>, reason: &'static str) {
    if let Some(status) = status {
        span.record("http.response.status_code", status);
        if status >= 400 {
            span.record("otel.status_code", "ERROR");
            span.record("error.type", status.to_string());
        }
    } else {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", reason);
    }
}

/// One result on its way to stream `MEET`, and the `traceparent` it goes with.
pub fn send(stream: &str, message: &OutboxMessage) -> (Span, Option<String>) {
    let span = info_span!(
        target: TARGET, parent: None, "send",
        otel.name = Empty, otel.kind = "producer", otel.status_code = Empty, error.type = Empty,
        messaging.system = "nats", messaging.operation.name = "send", messaging.operation.type = "send",
        messaging.destination.name = stream, messaging.destination.template = Empty,
        messaging.message.id = message.message_id, messaging.message.body.size = message.payload.len(),
        meet.key = message.key,
    );
    if span.is_disabled() {
        return (span, message.traceparent.clone());
    }
    let template = match message.subject.strip_prefix("meet.teacher.") {
        Some(_) => "meet.teacher.{teacherId}.{status}",
        None => "meet.session.{sessionId}.{status}",
    };
    span.record("otel.name", format!("send {template}"));
    span.record("messaging.destination.template", template);
    if let Some(event) = message.traceparent.as_deref().and_then(parse) {
        set_parent(&span, &event);
    }
    let traceparent = to_text(&context_of(&span)).or_else(|| message.traceparent.clone());
    (span, traceparent)
}

/// The result was refused.
pub fn not_sent(span: &Span, reason: &'static str) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", reason);
}

/// One request to our API. `traceparent` is read only when somebody wants the span.
pub fn http_server<'a>(method: &str, route: &'static str, traceparent: impl FnOnce() -> Option<&'a str>) -> Span {
    let span = info_span!(
        target: TARGET, parent: None, "http server",
        otel.name = Empty, otel.kind = "server", otel.status_code = Empty, http.request.method = method,
        http.route = route, http.response.status_code = Empty, error.type = Empty,
    );
    if !span.is_disabled() {
        span.record("otel.name", format!("{method} {route}"));
        if let Some(caller) = traceparent().and_then(parse) {
            set_parent(&span, &caller);
        }
    }
    span
}

/// Notes the status of [`http_server`]; only what is our fault is an error there.
pub fn served(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_and_written_as_the_specification_says() {
        let context = parse(GOOD).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(to_text(&context).unwrap(), GOOD);
        assert_eq!(sampled_id(Some(GOOD)).unwrap(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let unsampled = GOOD.replace("-01", "-00");
        assert_eq!(sampled_id(Some(&unsampled)), None);
        assert_eq!(to_text(&parse(&unsampled).unwrap()).unwrap(), unsampled);
        // A later version may have more fields, and flags that we do not know.
        assert!(parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more").is_some());
        for bad in [
            "",
            "nonsense",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-zzf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn templates_name_what_stands_for_the_stars() {
        assert_eq!(template("bookings.session.*.*"), "bookings.session.{sessionId}.{change}");
        assert_eq!(template("eu.bookings.*.*"), "eu.bookings.{sessionId}.{change}");
    }

    #[test]
    fn without_a_subscriber_there_are_no_spans() {
        assert!(Processing::begin().0.is_disabled());
        assert!(fold(&[Processing::begin(), Processing::begin()]).is_disabled());
        assert!(http_server("GET", "/livez", || unreachable!("nobody wants it")).is_disabled());
        assert_eq!(current(), None);
    }
}
