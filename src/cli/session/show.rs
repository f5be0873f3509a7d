//! `session show`: the story of one session.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt as _, pin_mut};
use serde_json::{Value, json};

use super::super::print::{self, Output, Tone, toned};
use super::super::{CommandError, Exit, audit, moment};
use super::next::{Next, next};
use crate::config::NatsConfig;
use crate::event::{Change, SessionEvent, decode};
use crate::model::{Epoch, Place, SessionId, UnixMillis};
use crate::nats::{Connection, NatsError, connect};
use crate::plan::{MeetEvent, Phase, Refusal, Want};
use crate::projection::{Session, Status};
use crate::store::{
    Acted, ActedFilter, DeadLetter, DeadLetterFilter, GoogleCall, Refused, RetryOutcome, Store, StoredDocument,
};

/// Which session.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  meet-projector session show ses_8Kq2
  meet-projector session show ses_8Kq2 --output json | jq .next

Events come from the stream itself; while NATS is down the rest is shown all the same. Of the calls to Google the last
twenty of a session are kept.")]
pub struct ShowArgs {
    /// The session's id in the booking backend
    id: String,
}

/// Time for NATS: the database's part of the story should not wait for a server that is away.
const NATS_TIME: Duration = Duration::from_secs(5);

/// Events read of one session at most; who has more is shown the first ones and told so.
const EVENTS_MAX: usize = 500;

/// An event of the session as the stream holds it.
struct StreamEvent {
    sequence: i64,
    stored_at: UnixMillis,
    decoded: Result<SessionEvent, Refused>,
}

/// All that is known.
struct Story {
    session: Session,
    rows: Vec<MeetEvent>,
    document: Option<StoredDocument>,
    calls: Vec<GoogleCall>,
    letters: Vec<DeadLetter>,
    actions: Vec<Acted>,
    stream: Result<Vec<StreamEvent>, String>,
    next: Next,
    retry: Option<Refusal>,
}

/// Runs the command.
pub async fn run(
    args: &ShowArgs,
    store: &Store,
    nats: &NatsConfig,
    now: UnixMillis,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let id = SessionId::parse(args.id.as_str()).map_err(|error| CommandError::usage(error.to_string()))?;
    let Some((session, rows)) = store.session(&id).await? else {
        let letters = letters(&id, store).await?;
        let hint = match letters.first() {
            Some(letter) => format!("; dead letter {} names it: `dead-letter show {}`", letter.id, letter.id),
            None => {
                "; is the id right, and was the event published? `status` shows how far the stream is read".to_owned()
            }
        };
        return Err(CommandError::failed(format!("no event of session {id} was ever folded{hint}")));
    };
    let planned = store.retry_plan(std::slice::from_ref(&id), now).await?.pop();
    let retry = match planned {
        Some((_, RetryOutcome::Refused(refusal))) => Some(refusal),
        _ => None,
    };
    let pressed = retry.clone().map_or_else(
        || Ok(crate::plan::Retried { rows: Vec::new(), clear_cool_downs: Vec::new(), calls_at_most: 0 }),
        Err,
    );
    let filter = ActedFilter { target: Some(id.as_str().to_owned()), limit: 50, ..ActedFilter::default() };
    let story = Story {
        next: next(&session, &rows, &pressed, now),
        document: store.document(&id).await?,
        calls: store.calls(&id).await?,
        letters: letters(&id, store).await?,
        actions: store.acted(&filter).await?,
        stream: stream_events(&id, session.head.stamp.epoch, nats).await,
        session,
        rows,
        retry,
    };
    match output {
        Output::Json => print::json(out, &story.wire())?,
        Output::Human => story.tell(now, out)?,
    }
    Ok(Exit::Ok)
}

async fn letters(id: &SessionId, store: &Store) -> Result<Vec<DeadLetter>, CommandError> {
    let filter = DeadLetterFilter { session: Some(id.as_str().to_owned()), limit: 50, ..DeadLetterFilter::default() };
    Ok(store.find_dead_letters(&filter).await?)
}

/// The events of one session, by its subject; the error is a sentence.
async fn stream_events(id: &SessionId, epoch: Epoch, config: &NatsConfig) -> Result<Vec<StreamEvent>, String> {
    let read = async {
        let connection = connect(config, "meet-projector session").await?;
        read_events(&connection, id, epoch, config).await
    };
    match tokio::time::timeout(NATS_TIME, read).await {
        Ok(Ok(events)) => Ok(events),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from NATS within {} s", NATS_TIME.as_secs())),
    }
}

async fn read_events(
    connection: &Connection,
    id: &SessionId,
    epoch: Epoch,
    config: &NatsConfig,
) -> Result<Vec<StreamEvent>, NatsError> {
    let filter = subject_of(id, &config.subjects);
    let messages = connection.walk_subject(&config.stream, 1, i64::MAX, &filter).take(EVENTS_MAX);
    pin_mut!(messages);
    let mut events = Vec::new();
    while let Some(message) = messages.next().await {
        let message = message?;
        let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let place = Place { epoch, sequence: message.sequence };
        events.push(StreamEvent {
            sequence: message.sequence,
            stored_at: message.stored_at(),
            decoded: decode(&message.raw.subject, headers, &message.raw.payload, place),
        });
    }
    Ok(events)
}

/// The filter of the configuration with the session put in: its last two tokens are session and change.
fn subject_of(id: &SessionId, subjects: &str) -> String {
    let mut tokens: Vec<&str> = subjects.split('.').collect();
    match tokens.as_mut_slice() {
        [.., last] if *last == ">" => {
            tokens.pop();
            tokens.extend([id.as_str(), "*"]);
        }
        [.., session, _] => *session = id.as_str(),
        _ => {}
    }
    tokens.join(".")
}

impl Story {
    fn tell(&self, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let document: Value =
            self.document.as_ref().and_then(|stored| serde_json::from_str(&stored.json).ok()).unwrap_or_default();
        let status = document["meetStatus"].as_str().unwrap_or("unknown");
        let tone = match status {
            "READY" => Tone::Good,
            "ERROR" => Tone::Bad,
            _ => Tone::Fair,
        };
        write!(out, "{} {}", toned(&format!("session {}", self.session.id), Tone::Strong), toned(status, tone))?;
        match document["meetLink"].as_str() {
            Some(link) => writeln!(out, "  {link}")?,
            None => writeln!(out)?,
        }
        self.tell_wanted(now, out)?;
        writeln!(out, "\n{}", toned("At Google", Tone::Strong))?;
        if self.rows.is_empty() {
            writeln!(out, "  nothing, and nothing was ever wanted")?;
        }
        for row in &self.rows {
            tell_row(row, now, out)?;
        }
        writeln!(out, "\n{}", toned("What happened", Tone::Strong))?;
        if let Err(why) = &self.stream {
            writeln!(out, "  the events on the stream cannot be shown: {why}")?;
        }
        let lines = self
            .timeline()
            .into_iter()
            .map(|(at, kind, text)| vec![format!("  {}", moment::both(at, now)), kind.to_owned(), text]);
        let mut table = Vec::new();
        print::table(&mut table, &["  WHEN", "WHAT", ""], &lines.collect::<Vec<_>>())?;
        out.write_all(&table)?;
        writeln!(out, "\n{}", toned("What is next", Tone::Strong))?;
        writeln!(out, "  {}", self.next.why)?;
        match &self.retry {
            Some(_) => {}
            None => writeln!(out, "  sooner: `meet-projector session retry {}`", self.session.id)?,
        }
        Ok(())
    }

    fn tell_wanted(&self, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let stamp = self.session.head.stamp;
        let status = status_word(&self.session);
        if let Some((_, details)) = &self.session.details {
            writeln!(
                out,
                "  lesson   {:?}, {}, teacher {}",
                details.title,
                details.kind.as_str(),
                self.session.head.teacher
            )?;
            writeln!(
                out,
                "  time     {} to {} ({}), starts {}",
                details.starts_at,
                details.ends_at,
                details.time_zone.name(),
                moment::relative(details.starts_at, now)
            )?;
        } else {
            writeln!(out, "  lesson   nothing is known but its cancel; teacher {}", self.session.head.teacher)?;
        }
        writeln!(
            out,
            "  wanted   {status}, by version {} (epoch {}, stream sequence {})",
            stamp.version, stamp.epoch, stamp.sequence
        )
    }

    /// Everything that happened, oldest first.
    fn timeline(&self) -> Vec<(UnixMillis, &'static str, String)> {
        let mut lines = Vec::new();
        for event in self.stream.iter().flatten() {
            let text = match &event.decoded {
                Ok(decoded) => {
                    format!("{}, version {} (sequence {})", change(decoded), decoded.version, event.sequence)
                }
                Err(refused) => format!("cannot be read (sequence {}): {}", event.sequence, refused.reason),
            };
            lines.push((event.stored_at, "event", text));
        }
        for letter in &self.letters {
            let text = format!("{} ({}): {}", letter.id, letter.state, letter.refused.reason);
            lines.push((letter.at, "dead letter", text));
        }
        for call in &self.calls {
            let mut text = format!("{} {} on the calendar of {}", call.operation, call.outcome.as_str(), call.teacher);
            if let Some(code) = call.code {
                text.push_str(&format!(", {}: {}", code.as_str(), call.message.as_deref().unwrap_or_default()));
            }
            lines.push((call.at, "Google", text));
        }
        for acted in &self.actions {
            let who = acted.actor.as_deref().unwrap_or("somebody");
            let why = acted.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let outcome = acted.outcome.as_deref().unwrap_or("done");
            lines.push((acted.at, "operator", format!("{} by {who}{why}: {outcome}", acted.action)));
        }
        lines.sort_by_key(|(at, ..)| *at);
        lines
    }

    fn wire(&self) -> Value {
        let document: Value =
            self.document.as_ref().and_then(|stored| serde_json::from_str(&stored.json).ok()).unwrap_or_default();
        let stamp = self.session.head.stamp;
        let details = self.session.details.as_ref().map(|(_, details)| {
            json!({
                "kind": details.kind.as_str(), "title": details.title, "startsAt": details.starts_at.to_rfc3339(),
                "endsAt": details.ends_at.to_rfc3339(), "timeZone": details.time_zone.name(),
            })
        });
        let stream = self.stream.as_ref().ok().map(|events| {
            let events = events.iter().map(|event| match &event.decoded {
                Ok(decoded) => json!({
                    "sequence": event.sequence, "storedAt": event.stored_at.to_rfc3339(), "eventId": decoded.event_id,
                    "change": change(decoded), "version": decoded.version.get(), "error": null,
                }),
                Err(refused) => json!({
                    "sequence": event.sequence, "storedAt": event.stored_at.to_rfc3339(), "eventId": null,
                    "change": null, "version": null, "error": refused.reason,
                }),
            });
            events.collect::<Vec<_>>()
        });
        json!({
            "document": document,
            "desired": {
                "status": status_word(&self.session), "version": stamp.version.get(), "epoch": stamp.epoch.0,
                "sequence": stamp.sequence, "teacherId": self.session.head.teacher.as_str(), "details": details,
            },
            "events": self.rows.iter().map(wire_row).collect::<Vec<_>>(),
            "stream": stream,
            "streamError": self.stream.as_ref().err(),
            "calls": self.calls.iter().map(wire_call).collect::<Vec<_>>(),
            "deadLetters": self.letters.iter().map(|letter| json!({
                "id": letter.id, "at": letter.at.to_rfc3339(), "state": letter.state, "class": letter.refused.class,
                "reason": letter.refused.reason,
            })).collect::<Vec<_>>(),
            "actions": self.actions.iter().map(audit::wire).collect::<Vec<_>>(),
            "next": {
                "at": self.next.at.map(UnixMillis::to_rfc3339), "why": self.next.why, "action": self.next.action,
                "retryHelps": self.retry.is_none(), "retryRefused": self.retry.as_ref().map(|refusal| refusal.code),
            },
        })
    }
}

const fn change(event: &SessionEvent) -> &'static str {
    match event.change {
        Change::Scheduled => "scheduled",
        Change::Rescheduled => "rescheduled",
        Change::Canceled => "canceled",
    }
}

const fn status_word(session: &Session) -> &'static str {
    match session.head.status {
        Status::Scheduled => "scheduled",
        Status::Canceled => "canceled",
    }
}

fn phase_word(phase: Phase) -> &'static str {
    Phase::WORDS.iter().find(|(known, _)| *known == phase).map_or("unknown", |(_, word)| word)
}

fn tell_row(row: &MeetEvent, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let want = if row.want == Want::Present { "wanted" } else { "to be gone" };
    let state = match row.phase {
        Phase::New => "nothing was sent yet",
        Phase::Unknown => "it may be there: to be looked up",
        Phase::Missing => "looked, and it is not there",
        Phase::Live => "it is there",
        Phase::Tombstone => "it was deleted in the calendar",
        Phase::Absent => "it is gone, or never was",
        Phase::Foreign => "its id belongs to an event that is not ours",
    };
    let settled = if row.settled { "agrees" } else { "does not agree yet" };
    writeln!(out, "  event {} on the calendar of {}: {want}; {state}; {settled}", row.ordinal, row.teacher)?;
    if let Some(binding) = &row.binding {
        writeln!(out, "    id {} in {}, generation {}", binding.event_id, binding.calendar, binding.generation)?;
    }
    if let Some(intent) = &row.intent {
        let begun = moment::both(intent.at, now);
        writeln!(out, "    {} begun {begun}, outcome not recorded yet", intent.operation)?;
    }
    if let Some(failure) = &row.failure {
        writeln!(
            out,
            "    {} since {} ({} attempts): {}",
            failure.code.as_str(),
            moment::both(failure.since, now),
            failure.attempts,
            failure.message
        )?;
    }
    Ok(())
}

fn wire_row(row: &MeetEvent) -> Value {
    let binding = row.binding.as_ref();
    json!({
        "ordinal": row.ordinal,
        "teacherId": row.teacher.as_str(),
        "want": if row.want == Want::Present { "present" } else { "absent" },
        "phase": phase_word(row.phase),
        "settled": row.settled,
        "eventId": binding.map(|binding| binding.event_id.as_str().to_owned()),
        "calendar": binding.map(|binding| binding.calendar.clone()),
        "generation": binding.map(|binding| binding.generation),
        "intent": row.intent.as_ref().map(|intent| intent.operation.clone()),
        "error": row.failure.as_ref().map(|failure| failure.code.as_str()),
        "attempts": row.failure.as_ref().map(|failure| failure.attempts),
        "nextAttemptAt": row.next_attempt_at.map(UnixMillis::to_rfc3339),
    })
}

fn wire_call(call: &GoogleCall) -> Value {
    json!({
        "number": call.number, "ordinal": call.ordinal, "teacherId": call.teacher.as_str(),
        "operation": call.operation, "begunAt": call.begun_at.map(UnixMillis::to_rfc3339),
        "at": call.at.to_rfc3339(), "outcome": call.outcome.as_str(), "phase": phase_word(call.phase),
        "code": call.code.map(crate::plan::Code::as_str), "message": call.message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_its_own_subject() {
        let id = SessionId::parse("s1").unwrap();
        assert_eq!(subject_of(&id, "bookings.session.*.*"), "bookings.session.s1.*");
        assert_eq!(subject_of(&id, "bookings.session.>"), "bookings.session.s1.*");
        assert_eq!(subject_of(&id, "a.b.*.*"), "a.b.s1.*");
    }
}
