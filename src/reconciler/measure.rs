//! What a round for one session is counted as.

use std::sync::Arc;

use tracing::Span;

use super::Context;
use crate::google::Call;
use crate::plan::Code;
use crate::plan::{MeetEvent, Phase, Want};
use crate::store::{Job, Written};
use crate::telemetry::metrics::KindLabel;
use crate::telemetry::trace;

/// What an answer did to a row, as far as it is counted; taken before the row goes to the writer.
#[derive(Debug, Clone, Copy)]
struct Counted {
    /// The session has its link now and had not before.
    became_ready: bool,
    /// A repair of what somebody else did to the event.
    repaired: Option<&'static str>,
    /// It failed for this reason and will be tried again.
    retry: Option<Code>,
}

impl Counted {
    fn of(job: &Job, call: &Call, after: &MeetEvent) -> Self {
        let before = &job.row;
        let is_repair = after.repairs > before.repairs;
        let repaired = is_repair.then(|| match before.phase {
            Phase::Tombstone => "deleted",
            _ if *call == Call::Restore => "deleted",
            _ => "changed",
        });
        let is_ready = after.want == Want::Present && after.settled && after.link.is_some();
        let more_attempts = |code: &Code| {
            let attempts = |row: &MeetEvent| {
                row.failure.as_ref().filter(|failure| failure.code == *code).map_or(0, |failure| failure.attempts)
            };
            attempts(after) > attempts(before) && after.next_attempt_at.is_some()
        };
        Self {
            // What was ready before and was repaired is no new link, whenever its event was published.
            became_ready: is_ready && !before.settled && after.repairs == 0,
            repaired,
            retry: after.failure.as_ref().map(|failure| failure.code).filter(more_attempts),
        }
    }
}

/// A call whose result is not recorded yet; counted when it is.
#[derive(Debug)]
pub(super) struct Round {
    job: Arc<Job>,
    operation: &'static str,
    /// The class of a failure that the plan did not expect.
    failed: Option<&'static str>,
    counted: Counted,
    /// Ends when the result is recorded.
    span: Span,
}

impl Round {
    /// Begun in the span that is current.
    pub(super) fn new(job: &Arc<Job>, call: &Call, failed: Option<&'static str>, after: &MeetEvent) -> Self {
        Self {
            job: Arc::clone(job),
            operation: call.operation(),
            failed,
            counted: Counted::of(job, call, after),
            span: Span::current(),
        }
    }

    /// Counts it, now that its result is recorded or refused.
    pub(super) fn count(&self, context: &Context, written: Written) {
        let Self { job, operation, failed, counted, span } = self;
        let metrics = &context.gateway.metrics;
        let outcome = match (written, failed) {
            (Written::No, _) => "superseded",
            (_, Some(_)) => "failure",
            (_, None) => "success",
        };
        metrics.job(Some(operation), outcome);
        span.in_scope(|| trace::reconciled(Some(operation), outcome, *failed));
        if written == Written::No {
            return;
        }
        if let Some(kind) = counted.repaired {
            metrics.drift.get_or_create(&KindLabel { kind }).inc();
        }
        if let Some(code) = counted.retry {
            metrics.retry(code);
        }
        if counted.became_ready
            && written == Written::Yes
            && let Some(published_at) = job.published_at
        {
            metrics.linked(published_at, context.clock.now(), job.traceparent.as_deref());
        }
    }
}
