//! Groups into the store, then acknowledgements; in that order, always.

use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::ConsumerContext;
use super::pull::HAND_BACK;
use crate::crash;
use crate::model::Place;
use crate::nats::Connection;
use crate::store::{EpochRecord, FoldOutcome, FoldReport, Incoming, Refused, StoreError};
use crate::telemetry::Chain;
use crate::telemetry::trace::{self, Processing};

/// Messages that are folded in one transaction, each with where to acknowledge it.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) incoming: Vec<Incoming>,
    pub(super) replies: Vec<Subject>,
    pub(super) spans: Vec<Processing>,
    /// The one message in it may be what kills the process: what came before it is acknowledged first.
    pub(super) is_suspect: bool,
}

/// How long a transaction that is under way may still take once the session ends.
const LAST_COMMIT: Duration = Duration::from_secs(5);

/// TERM reasons longer than this are cut: they travel in an advisory to whoever listens.
const REASON_BYTES_MAX: usize = 200;

/// Commits groups until there are no more. Once `abandon` is cancelled, what is not under way is handed back.
pub(super) struct Committer {
    pub(super) context: ConsumerContext,
    pub(super) connection: Connection,
    pub(super) record: EpochRecord,
    pub(super) abandon: CancellationToken,
}

impl Committer {
    pub(super) async fn run(self, mut groups: mpsc::Receiver<Group>) {
        let (committed, acknowledgements) = mpsc::channel(1);
        let acknowledger = Acknowledger {
            context: self.context.clone(),
            connection: self.connection.clone(),
            record: self.record.clone(),
            abandon: self.abandon.clone(),
        };
        let commit = async move {
            while let Some(group) = groups.recv().await {
                if self.abandon.is_cancelled() {
                    hand_back(&self.connection, &group.replies).await;
                    continue;
                }
                if group.is_suspect {
                    let (idle, is_idle) = oneshot::channel();
                    committed.send(Step::Tell(idle)).await.ok();
                    is_idle.await.ok();
                }
                self.commit(group, &committed).await;
            }
        };
        // A task of its own, so that one group is acknowledged while the next one is folded.
        let acknowledged = tokio::spawn(acknowledger.run(acknowledgements));
        commit.await;
        if let Err(error) = acknowledged.await {
            tracing::error!(%error, "acknowledging ended in a panic; what was committed is delivered again");
        }
    }

    /// Folds the group, again and again while the database is away. Where it refuses, message by message, so that one
    /// that no database keeps becomes a dead letter and never stops the others.
    async fn commit(&self, mut group: Group, committed: &mpsc::Sender<Step>) {
        let mut failures = 0_u32;
        loop {
            let error = match self.fold(&group.incoming).instrument(trace::fold(&group.spans)).await {
                Some(Ok(report)) => {
                    crash::here("after_fold");
                    if report.work_due {
                        self.context.wake.notify_one();
                    }
                    // The other end is there until this one is dropped, unless it panicked; then nothing is acknowledged.
                    committed.send(Step::Acknowledge(Box::new((group, report)))).await.ok();
                    return;
                }
                Some(Err(error)) => error,
                None => return hand_back(&self.connection, &group.replies).await,
            };
            let is_refusal = matches!(error, StoreError::Failed { .. });
            if is_refusal && group.incoming.len() > 1 {
                tracing::warn!(error = %Chain(&error), "the database refused a group; folding its messages one by one");
                for ((incoming, reply), span) in group.incoming.into_iter().zip(group.replies).zip(group.spans) {
                    let alone =
                        Group { incoming: vec![incoming], replies: vec![reply], spans: vec![span], is_suspect: false };
                    Box::pin(self.commit(alone, committed)).await;
                }
                return;
            }
            if is_refusal && let Some(incoming) = group.incoming.iter_mut().find(|incoming| incoming.decoded.is_ok()) {
                tracing::error!(sequence = incoming.sequence, error = %Chain(&error), "the database refused a message");
                let session = incoming.decoded.as_ref().ok().map(|event| event.session.clone());
                let reason = "the database refused this event; the log at the time of this dead letter says why".into();
                incoming.decoded = Err(Refused { class: "not_storable", reason, session });
                continue;
            }
            failures += 1;
            let text = Chain(&error).to_string();
            self.context.health.failed(&text);
            if failures == 1 {
                tracing::error!(error = %text, "events cannot be stored; trying again until it works");
            }
            let pause = Duration::from_millis(50 * u64::from(1_u32 << failures.min(7))).min(Duration::from_secs(5));
            tokio::select! {
                () = self.abandon.cancelled() => return hand_back(&self.connection, &group.replies).await,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// `None` when the session ended and the database did not answer in time. Whether the transaction was committed is
    /// unknown then, which is why it is handed back: twice is harmless, never is not.
    async fn fold(&self, incoming: &[Incoming]) -> Option<Result<FoldReport, StoreError>> {
        crash::here("before_fold");
        let fold = self.context.store.fold(self.record.epoch, incoming, self.context.clock.now());
        tokio::pin!(fold);
        tokio::select! {
            report = &mut fold => Some(report),
            () = self.abandon.cancelled() => tokio::time::timeout(LAST_COMMIT, fold).await.ok(),
        }
    }
}

/// What is done after a commit.
enum Step {
    /// Acknowledges a group.
    Acknowledge(Box<(Group, FoldReport)>),
    /// Says that everything before is acknowledged.
    Tell(oneshot::Sender<()>),
}

/// Acknowledges what is committed, in the order of the commits.
struct Acknowledger {
    context: ConsumerContext,
    connection: Connection,
    record: EpochRecord,
    abandon: CancellationToken,
}

impl Acknowledger {
    async fn run(self, mut steps: mpsc::Receiver<Step>) {
        while let Some(step) = steps.recv().await {
            match step {
                Step::Acknowledge(done) => {
                    let (group, report) = *done;
                    self.committed(&group, report).await;
                }
                // Who asked may be gone.
                Step::Tell(idle) => drop(idle.send(())),
            }
        }
    }

    async fn committed(&self, group: &Group, report: FoldReport) {
        // While the server is away the library takes some thousand messages and then keeps the next one waiting.
        tokio::select! {
            () = self.acknowledge(group, &report) => {}
            () = self.after_the_end() => tracing::debug!("the server is away; what was committed comes again"),
        }
        crash::here("after_ack");
        for (span, outcome) in group.spans.iter().zip(&report.outcomes) {
            span.settled(outcome.word(), outcome.refusal());
        }
        let shapes = group.incoming.iter().map(|incoming| incoming.decoded.as_ref().ok().map(|event| event.shape));
        self.context.health.committed(report.outcomes.iter().zip(shapes), &report.position);
        for sequence in report.displaced {
            tokio::select! {
                () = self.complete(sequence) => {}
                () = self.after_the_end() => return,
            }
        }
    }

    async fn acknowledge(&self, group: &Group, report: &FoldReport) {
        let client = &self.connection.client;
        for ((reply, incoming), outcome) in group.replies.iter().zip(&group.incoming).zip(&report.outcomes) {
            if let Some(class) = outcome.refusal() {
                let session =
                    incoming.decoded.as_ref().map_or_else(|refused| refused.session.as_ref(), |e| Some(&e.session));
                let session = session.map(tracing::field::display);
                // The reason may quote what was sent; it is for whoever may read dead letters.
                tracing::warn!(
                    sequence = incoming.sequence,
                    class,
                    session_id = session,
                    "a message became a dead letter"
                );
            }
            let body = match (outcome, &incoming.decoded) {
                (FoldOutcome::DeadLetter(_), Err(refused)) => term(refused.class, &refused.reason),
                (FoldOutcome::DeadLetter(class), Ok(_)) => term(class, "see the dead letters of meet-projector"),
                (FoldOutcome::Folded(_), _) => Bytes::from_static(b"+ACK"),
            };
            // Lost acknowledgements only bring the message again.
            if let Err(error) = client.publish(reply.clone(), body).await {
                tracing::debug!(%error, sequence = incoming.sequence, "could not acknowledge");
            }
        }
    }

    /// Returns a little after the session ended.
    async fn after_the_end(&self) {
        self.abandon.cancelled().await;
        tokio::time::sleep(HAND_BACK).await;
    }

    /// Reads back a message that lost its place to an earlier one after it had been folded. What fails here is done at
    /// the next start.
    async fn complete(&self, sequence: i64) {
        let place = Place { epoch: self.record.epoch, sequence };
        match self.connection.get(&self.record.stream, sequence).await {
            Ok(Some(message)) => {
                if let Err(error) = self.context.store.complete_dead_letter(place, &message.raw).await {
                    tracing::warn!(sequence, error = %Chain(&error), "a dead letter has no message yet");
                }
            }
            Ok(None) => tracing::warn!(sequence, "a dead letter has no message yet: the stream did not show it"),
            Err(error) => tracing::warn!(sequence, %error, "a dead letter has no message yet"),
        }
    }
}

/// Tells the server to deliver these again at once, if it can be reached.
pub(super) async fn hand_back(connection: &Connection, replies: &[Subject]) {
    let handed_back = async {
        for reply in replies {
            connection
                .client
                .publish(reply.clone(), Bytes::from_static(b"-NAK"))
                .await
                .map_err(|error| error.to_string())?;
        }
        Ok::<_, String>(())
    };
    match timeout(HAND_BACK, handed_back).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error, "could not hand messages back; they come again after ack_wait"),
        Err(_) => tracing::debug!("the server is away; what was under way comes again after ack_wait"),
    }
}

/// `+TERM` with a reason of one line, as `nats consumer` tooling shows it in the advisory.
fn term(class: &str, reason: &str) -> Bytes {
    let mut text = format!("+TERM {class}: {}", reason.replace(['\r', '\n'], " "));
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_one_line_and_cut_between_characters() {
        assert_eq!(term("bad_value", "a\nb"), Bytes::from_static(b"+TERM bad_value: a b"));
        let long = term("bad_value", &"ñ".repeat(500));
        assert!(long.len() <= REASON_BYTES_MAX && std::str::from_utf8(&long).is_ok());
    }
}
