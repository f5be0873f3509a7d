//! Events of ours at Google that a lost or older database does not know of.
//!
//! A durable consumer that is ahead of the database tells that somebody acted on events which this database has never
//! seen: it was lost, or a backup was put back. Before anything is written then, all that is remembered is doubted
//! ([`Store::suspect`]): each event that should be there is looked at, and found again by its id or its marker. What is
//! *not* remembered is looked for here: a session that was canceled meanwhile, and teachers who have lost a session to
//! another, may have an event at Google and no row. Their (session, teacher) pairs are in the events between the database's
//! position and the consumer's; each becomes a row that looks for such events and removes them
//! ([`crate::plan::search_for`]), and that waits like every other until its teacher is connected.
//!
//! The reconciler does nothing before that is done, so it never acts on half a memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::model::{Epoch, UnixMillis};
use crate::run::source::Source;
use crate::run::{HOLD_MS, Kind, Run, RunError, State, WorkError};
use crate::store::{Store, StoreError};
use crate::telemetry::Chain;

/// Messages read at a time.
const GROUP: usize = 500;

/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);

/// What the search works with.
#[derive(Debug)]
pub struct LeftoversContext {
    /// Where the stream is.
    pub nats: NatsConfig,
    /// Where rows are added.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Told when rows were added.
    pub wake: Arc<Notify>,
    /// Whether everything of the stream is processed.
    pub caught_up: watch::Receiver<bool>,
    /// Told whether the reconciler may act: everything is processed, and no search is open.
    pub may_act: watch::Sender<bool>,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// Notes that the events after `from` and up to `to` were acted on by somebody who remembered more than this database,
/// and doubts what it remembers of Google.
pub async fn suspect(store: &Store, epoch: Epoch, from: i64, to: i64, now: UnixMillis) -> Result<(), StoreError> {
    let mut run = Run::new(Kind::Leftovers, epoch, json!({}), from, to, now);
    run.holder = None;
    run.reason = Some("the durable consumer was ahead of the database: it was lost, or a backup was put back".into());
    let doubted = store.suspect(&run, now).await?;
    tracing::warn!(
        run = run.id,
        from = from + 1,
        to,
        doubted,
        "the database knows less than was done: it was lost or restored. Every event at Google is looked at before \
         anything is written, and what nobody remembers is looked for"
    );
    Ok(())
}

/// Passes `caught_up` on to the reconciler, after what may be left over is known.
pub async fn run(mut context: LeftoversContext) {
    let cancel = context.cancel.clone();
    loop {
        let is_caught_up = *context.caught_up.borrow_and_update();
        if is_caught_up {
            match search(&context).await {
                Ok(()) => {
                    context.may_act.send_replace(true);
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "what may be left over at Google is not known yet; trying again");
                    context.may_act.send_replace(false);
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => continue,
                        () = cancel.cancelled() => return,
                    }
                }
            }
        } else {
            context.may_act.send_replace(false);
        }
        tokio::select! {
            changed = context.caught_up.changed() => if changed.is_err() { return },
            () = cancel.cancelled() => return,
        }
    }
}

/// Carries out every search that is open.
async fn search(context: &LeftoversContext) -> Result<(), WorkError> {
    let store = &context.store;
    for run in store.open_runs(Kind::Leftovers).await? {
        let source = Source::open(&context.nats, store, "meet-projector leftovers").await?;
        let now = context.clock.now();
        let holder = format!("{}-leftovers", std::process::id());
        let Some(mut run) = store.take_run(&run.id, &holder, now, now.plus(HOLD_MS)).await? else {
            // Another replica is at it; nobody acts before it is done.
            return Err(RunError::Busy(run.id).into());
        };
        let mut rows = 0;
        if run.epoch == source.record.epoch {
            match walk(context, &source, &mut run).await {
                Ok(added) => rows = added,
                Err(error) => {
                    // Free at once for the next try; where the database is away, when its time is up.
                    run.state = State::Stopped;
                    drop(store.end_run(&run, context.clock.now()).await);
                    return Err(error);
                }
            }
        }
        run.state = State::Finished;
        run.proof = Some(json!({ "events": run.counts.events, "rowsAdded": rows }));
        store.end_run(&run, context.clock.now()).await?;
        tracing::info!(run = run.id, events = run.counts.events, rows, "forgotten events are looked for at Google");
        context.wake.notify_one();
    }
    Ok(())
}

async fn walk(context: &LeftoversContext, source: &Source, run: &mut Run) -> Result<i64, WorkError> {
    let filter = source.filter(None);
    let mut rows = 0;
    let goal = run.goal.min(source.history.last);
    while run.cursor < goal {
        let chunk = source.read(run.cursor + 1, goal, &filter, GROUP).await?;
        run.cursor = chunk.next - 1;
        let mut pairs = BTreeSet::new();
        for incoming in chunk.messages.into_iter().map(|message| source.incoming(message)) {
            run.counts.events += 1;
            if let Ok(event) = incoming.decoded {
                pairs.insert((event.session, event.teacher));
            }
        }
        let now = context.clock.now();
        match context.store.add_searches(run, &pairs, now, now.plus(HOLD_MS)).await? {
            Some(added) => rows += added,
            None => return Err(RunError::TakenOver(run.id.clone()).into()),
        }
    }
    Ok(rows)
}
