//! `meet-projector epoch show|check|adopt`: which incarnation of the stream this is, and what a person decides about it.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use futures_util::{StreamExt, pin_mut};
use serde_json::{Value, json};

use super::nats::Report;
use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::event::decode;
use crate::model::{Epoch, Place, SessionId, UnixMillis};
use crate::nats::epoch::fork::fork;
use crate::nats::epoch::sight::{SightError, known, new_epoch, open, sight};
use crate::nats::epoch::{Known, Sighting, Verdict, judge};
use crate::nats::{Connection, NatsError, connect};
use crate::plan::Policy;
use crate::projection::{Session, fold};
use crate::replay::calls_of;
use crate::run::WorkError;
use crate::run::forecast::Calls;
use crate::store::{EpochRecord, Store, StoreError};

/// What to do about epochs.
#[derive(Debug, Clone, Subcommand)]
pub enum EpochCommand {
    /// List the incarnations of the stream that were read, and how far
    Show,
    /// Compare the stream with what is known of it; exit code 1 when a person has to decide
    Check,
    /// Take the stream as it is now for a new epoch
    Adopt(AdoptArgs),
}

/// How to adopt.
#[derive(Debug, Clone, Default, Args)]
pub struct AdoptArgs {
    /// Do it; without this only the plan is shown
    #[arg(long, requires = "reason")]
    pub execute: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The stream could not be looked at.
    #[error(transparent)]
    Sight(#[from] SightError),
    /// The database.
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    /// Counting what follows.
    #[error(transparent)]
    Work(#[from] WorkError),
}

impl EpochError {
    /// The exit code: 3 configuration, 4 unreachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Work(error) => error.exit_code(),
            Self::Nats(error) | Self::Sight(SightError::Nats(error)) => error.exit_code(),
            Self::Store(error) | Self::Sight(SightError::Store(error)) if error.is_transient() => 4,
            _ => 1,
        }
    }
}

/// Runs the command; `as_json` is `--output json`.
pub async fn run(
    command: &EpochCommand,
    config: &NatsConfig,
    store: &Store,
    clock: &Clock,
    as_json: bool,
) -> Result<Report, EpochError> {
    match command {
        EpochCommand::Show => show(store, as_json).await,
        EpochCommand::Check => {
            let connection = connect(config, "meet-projector epoch").await?;
            let known = known(store).await?;
            let seen = sight(&connection, config, store, &known).await?;
            Ok(check(&judge(&known, &seen), &known, &seen, as_json))
        }
        EpochCommand::Adopt(args) => {
            let connection = connect(config, "meet-projector epoch").await?;
            adopt(args, &connection, config, store, clock, as_json).await
        }
    }
}

async fn show(store: &Store, as_json: bool) -> Result<Report, EpochError> {
    let mut lines = Vec::new();
    let mut items = Vec::new();
    for record in store.epochs().await? {
        let position = store.position(record.epoch).await?;
        lines.push(format!(
            "epoch {}: stream {} created {}\n  from sequence {}, read to {} (highest {}), consumer {}\n  opened {}: {}",
            record.epoch,
            record.stream,
            record.created,
            record.first_sequence,
            position.contiguous,
            position.highest,
            record.consumer,
            record.opened_at,
            record.reason
        ));
        items.push(json!({
            "epoch": record.epoch.0, "stream": record.stream, "created": record.created,
            "firstSequence": record.first_sequence, "contiguous": position.contiguous, "highest": position.highest,
            "consumer": record.consumer, "openedAt": record.opened_at.to_rfc3339(), "reason": record.reason,
            "sources": record.sources,
        }));
    }
    if lines.is_empty() {
        lines.push("nothing was read yet: the first start opens epoch 1".to_owned());
    }
    let text = if as_json { json!({ "epochs": items }).to_string() } else { lines.join("\n") };
    Ok(Report { text, exit_code: 0 })
}

fn check(verdict: &Verdict, known: &Known, seen: &Sighting, as_json: bool) -> Report {
    let (word, sentence, advice) = match verdict {
        Verdict::First => ("first", "nothing was read yet: the first start opens epoch 1".to_owned(), None),
        Verdict::Same => ("same", "the stream is the one we read".to_owned(), None),
        Verdict::SameRestamped => {
            ("same", "the stream is the one we read, although its creation time changed".to_owned(), None)
        }
        Verdict::New(reason) => ("new", format!("{reason}; the service adopts it by itself"), None),
        Verdict::Ambiguous(ambiguity) => {
            ("ambiguous", ambiguity.seen.clone(), Some((ambiguity.advice.clone(), ambiguity.fork)))
        }
    };
    let exit_code = u8::from(advice.is_some());
    let text = if as_json {
        let mut value = evidence(known, seen);
        value["verdict"] = json!(word);
        value["seen"] = json!(sentence);
        value["advice"] = json!(advice.as_ref().map(|(advice, _)| advice));
        value["fork"] = json!(advice.and_then(|(_, fork)| fork));
        value.to_string()
    } else {
        let fork = advice.as_ref().and_then(|(_, fork)| *fork);
        let fork = fork.map_or_else(String::new, |at| format!("\nthe histories are the same up to sequence {at}"));
        let advice = advice.map_or_else(String::new, |(advice, _)| format!("\n{advice}"));
        format!("{sentence}{fork}{advice}")
    };
    Report { text, exit_code }
}

fn evidence(known: &Known, seen: &Sighting) -> Value {
    let traces: Vec<Value> = seen
        .position
        .iter()
        .map(|trace| (known.position.highest, *trace))
        .chain(seen.anchors.iter().copied())
        .map(|(sequence, trace)| json!({ "sequence": sequence, "trace": format!("{trace:?}").to_ascii_lowercase() }))
        .collect();
    json!({
        "stream": seen.stream, "created": seen.created,
        "knownCreated": known.current.as_ref().map(|record| &record.created),
        "firstSequence": seen.first_sequence, "lastSequence": seen.last_sequence, "messages": seen.messages,
        "highestRead": known.position.highest, "traces": traces, "sources": seen.sources,
    })
}

async fn adopt(
    args: &AdoptArgs,
    connection: &Connection,
    config: &NatsConfig,
    store: &Store,
    clock: &Clock,
    as_json: bool,
) -> Result<Report, EpochError> {
    let known = known(store).await?;
    let seen = sight(connection, config, store, &known).await?;
    let verdict = judge(&known, &seen);
    let (Verdict::Ambiguous(_) | Verdict::New(_), Some(current)) = (&verdict, &known.current) else {
        return Ok(Report { exit_code: 0, ..nothing_to_adopt(&check(&verdict, &known, &seen, as_json), as_json) });
    };
    let fork = match &verdict {
        Verdict::Ambiguous(ambiguity) => fork(connection, store, &known, &seen, ambiguity.fork).await?,
        _ => None,
    };
    let first = fork.map_or(seen.first_sequence, |fork| (fork + 1).max(seen.first_sequence)).max(1);
    let reason = format!("adopted: {}", args.reason.as_deref().unwrap_or("(not given)"));
    let record = new_epoch(config, &seen, Epoch(current.epoch.0 + 1), first, clock.now(), reason);
    let lost = Place { epoch: current.epoch, sequence: fork.unwrap_or(0) };
    let mut plan = Plan::preview(connection, store, &seen, record, clock.now()).await?;
    plan.fork = fork;
    (plan.lost, plan.lost_named) = store.sessions_after(lost, NAMED).await?;
    if !args.execute {
        return Ok(Report { text: plan.shown(&verdict, false, as_json), exit_code: 0 });
    }
    open(store, &plan.record).await?;
    let target = format!("epoch {}", plan.record.epoch);
    store.audit("epoch adopt", &target, args.reason.as_deref(), clock.now()).await?;
    // Nobody acknowledges on the old durable any more; left behind it only holds a little state at the server.
    if let Err(error) = connection.delete_consumer(&current.stream, &current.consumer).await {
        tracing::warn!(consumer = current.consumer, %error, "the durable of the old epoch is left behind; delete it");
    }
    Ok(Report { text: plan.shown(&verdict, true, as_json), exit_code: 0 })
}

fn nothing_to_adopt(checked: &Report, as_json: bool) -> Report {
    let text = if as_json { checked.text.clone() } else { format!("{}: there is nothing to adopt", checked.text) };
    Report { text, exit_code: 0 }
}

fn names(ids: &[SessionId]) -> Vec<&str> {
    ids.iter().map(SessionId::as_str).collect()
}

/// Sessions named in a plan.
const NAMED: i64 = 10;

/// What adopting would do.
struct Plan {
    record: EpochRecord,
    events: u64,
    unreadable: u64,
    sessions: usize,
    changed: usize,
    /// Some of the sessions that change.
    named: Vec<SessionId>,
    calls: Calls,
    /// Both histories are the same up to here.
    fork: Option<i64>,
    /// Sessions whose newest event is no longer in the stream; they stay as they are.
    lost: i64,
    lost_named: Vec<SessionId>,
}

impl Plan {
    /// Reads the events of the new epoch and folds them onto what is known, in memory.
    async fn preview(
        connection: &Connection,
        store: &Store,
        seen: &Sighting,
        record: EpochRecord,
        now: UnixMillis,
    ) -> Result<Self, EpochError> {
        let mut sessions: HashMap<SessionId, (Option<String>, Option<Session>)> = HashMap::new();
        let (mut events, mut unreadable) = (0, 0);
        let messages = connection.walk(&seen.stream, record.first_sequence, seen.last_sequence);
        pin_mut!(messages);
        while let Some(message) = messages.next().await {
            let message = message?;
            events += 1;
            let place = Place { epoch: record.epoch, sequence: message.sequence };
            let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let Ok(event) = decode(&message.raw.subject, headers, &message.raw.payload, place) else {
                unreadable += 1;
                continue;
            };
            if !sessions.contains_key(&event.session) {
                let session = store.session(&event.session).await?.map(|(session, _)| session);
                let before = session.as_ref().map(Session::desired_hash);
                sessions.insert(event.session.clone(), (before, session));
            }
            if let Some((_, state)) = sessions.get_mut(&event.session) {
                *state = Some(fold(state.take(), &event, place).0);
            }
        }
        let changes: Vec<_> = sessions
            .values()
            .filter_map(|(before, after)| {
                let after = after.as_ref()?;
                (before.as_deref() != Some(after.desired_hash().as_str())).then(|| (before.clone(), after))
            })
            .collect();
        // Which calls there are does not depend on how events are named.
        let policy = Policy { environment: String::new(), attendees: false, repairs_max: 0 };
        let mut calls = Calls::default();
        for page in changes.chunks(500) {
            calls.add(&calls_of(store, page, &policy, now).await?);
        }
        let mut named: Vec<_> = changes.iter().map(|(_, after)| after.id.clone()).collect();
        named.sort_unstable();
        named.truncate(usize::try_from(NAMED).unwrap_or_default());
        Ok(Self {
            events,
            unreadable,
            sessions: sessions.len(),
            changed: changes.len(),
            named,
            calls,
            fork: None,
            lost: 0,
            lost_named: Vec::new(),
            record,
        })
    }

    fn shown(&self, verdict: &Verdict, done: bool, as_json: bool) -> String {
        let Self { record, events, unreadable, sessions, changed, named, calls, fork, lost, lost_named } = self;
        let why = match verdict {
            Verdict::Ambiguous(ambiguity) => ambiguity.seen.as_str(),
            Verdict::New(reason) => reason.as_str(),
            _ => "",
        };
        if as_json {
            return json!({
                "executed": done, "seen": why, "epoch": record.epoch.0, "firstSequence": record.first_sequence,
                "consumer": record.consumer, "events": events, "unreadable": unreadable, "sessions": sessions,
                "sessionsChanged": changed, "sessions": names(named), "calls": calls, "callsToGoogle": calls.writes(),
                "fork": fork, "sessionsWithoutTheirEvent": lost, "withoutTheirEvent": names(lost_named),
            })
            .to_string();
        }
        let (verb, end) = if done {
            ("opened", "The service goes on within seconds, without a restart.")
        } else {
            ("would open", "Nothing was done. Add --execute --reason TEXT to do it.")
        };
        let fork = fork.map_or_else(String::new, |at| {
            format!(
                "the histories are the same up to sequence {at}
"
            )
        });
        let named = if named.is_empty() { String::new() } else { format!(" ({})", names(named).join(", ")) };
        let lost = if *lost == 0 {
            String::new()
        } else {
            let which = names(lost_named).join(", ");
            format!(
                "{lost} sessions come from events that the stream no longer holds; they stay as they are ({which})
"
            )
        };
        format!(
            "{why}
{fork}{verb} epoch {} from sequence {} with consumer {}
{events} events of {sessions} sessions are \
             read ({unreadable} unreadable); {changed} sessions change{named}
{lost}{calls}
{end}",
            record.epoch, record.first_sequence, record.consumer
        )
    }
}
