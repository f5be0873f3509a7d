//! What was seen, as one screen and as JSON with names that stay.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::super::moment::{both, relative, span};
use super::super::print::{self, Tone, toned};
use super::gather::{Seen, Stream};
use crate::model::{TeacherId, UnixMillis};
use crate::store::TokenStatus;

const WORDS: [&str; 4] = ["READY", "PENDING", "ERROR", "CANCELED"];

fn count(seen: &Seen, word: &str) -> i64 {
    seen.overview.sessions.iter().find(|(known, _)| known == word).map_or(0, |(_, number)| *number)
}

/// A line with its heading at the left.
fn line(out: &mut dyn Write, heading: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{heading:<10} {text}")
}

/// Draws the screen.
pub(super) fn draw(seen: &Seen, attention: &[String], now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let overview = &seen.overview;
    let headline =
        if attention.is_empty() { toned("all is well", Tone::Good) } else { toned("needs a person", Tone::Bad) };
    writeln!(out, "meet-projector {} at {}: {headline}", env!("CARGO_PKG_VERSION"), both_short(now))?;
    for need in attention {
        writeln!(out, "  {} {need}", toned("!", Tone::Bad))?;
    }
    writeln!(out)?;
    draw_service(seen, now, out)?;
    draw_stream(seen, now, out)?;

    let counts: Vec<_> = WORDS.iter().map(|word| format!("{} {word}", count(seen, word))).collect();
    line(out, "sessions", &counts.join(", "))?;
    if !overview.errors.is_empty() {
        let errors: Vec<_> =
            overview.errors.iter().map(|(code, number)| format!("{number} {}", code.as_str())).collect();
        line(out, "", &format!("errors of sessions to come: {}", errors.join(", ")))?;
    }
    if let Some(pending) = &overview.oldest_pending {
        let since = both(pending.since, now);
        line(out, "", &format!("pending for longest: {} of {}, since {since}", pending.session, pending.teacher))?;
    }
    line(out, "calendars", &format!("{} due, {} being worked on", overview.due_calendars, overview.held_calendars))?;
    for (teacher, until) in &overview.cool_downs {
        line(out, "", &format!("{teacher}: Google limits changes, goes on {}", both(*until, now)))?;
    }
    let outbox = overview.outbox_oldest.map_or_else(String::new, |at| format!(", the oldest {}", relative(at, now)));
    line(out, "results", &format!("{} wait to be published{outbox}", overview.outbox))?;
    let letters: Vec<_> = overview.dead_letters.iter().map(|(class, number)| format!("{number} {class}")).collect();
    let letters = if letters.is_empty() { "no open ones".to_owned() } else { format!("open: {}", letters.join(", ")) };
    line(out, "letters", &letters)?;
    for (at, pause) in overview.pauses.iter().enumerate() {
        let until =
            pause.until.map_or_else(|| "until somebody resumes it".to_owned(), |at| format!("ends {}", both(at, now)));
        let text =
            format!("{} by {} {}, {until}: {}", pause.what(), pause.actor, relative(pause.since, now), pause.reason);
        line(out, if at == 0 { "paused" } else { "" }, &text)?;
    }
    for run in &seen.runs {
        let who = run.actor.as_deref().unwrap_or("somebody");
        let outcome = run.outcome.as_deref().unwrap_or("done");
        line(out, "last run", &format!("{} of {} {} by {who}: {outcome}", run.action, run.target, both(run.at, now)))?;
    }
    draw_danger(seen, now, out)?;
    draw_teachers(seen, now, out)
}

fn both_short(now: UnixMillis) -> UnixMillis {
    UnixMillis::new(now.get() - now.get().rem_euclid(1000))
}

fn draw_service(seen: &Seen, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if seen.alive.is_empty() {
        line(out, "service", &toned("does not run", Tone::Bad))?;
    }
    for (at, state) in &seen.alive {
        let process = &seen.overview.processes[*at];
        let doing = if state.blocked.is_some() {
            "waits for a decision about the stream"
        } else if state.ingest_stands_still {
            "ingest is paused"
        } else if !state.nats_connected {
            "not connected to NATS"
        } else if state.caught_up {
            "caught up"
        } else {
            "catching up"
        };
        let text = format!(
            "{} on {} (pid {}), release {}, up {}, heard of {}: {doing}",
            &process.id.get(..8).unwrap_or(&process.id),
            process.host,
            process.pid,
            process.version,
            span(now.since(process.started_at)),
            relative(process.seen_at, now)
        );
        line(out, "service", &text)?;
        for open in &state.breakers {
            let since = both(UnixMillis::new(open.since_ms), now);
            let probe = relative(UnixMillis::new(open.probe_at_ms), now);
            line(out, "", &format!("breaker of the {} API open since {since}, next probe {probe}", open.api))?;
        }
        for drift in &state.drift {
            line(out, "", &format!("the durable consumer differs: {drift}; `nats apply` mends it"))?;
        }
    }
    for (name, holder, until) in &seen.overview.leases {
        line(out, "", &format!("lease {name} held by {holder}, ends {}", relative(*until, now)))?;
    }
    line(out, "database", &seen.database)
}

fn draw_stream(seen: &Seen, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let position = seen.epoch.as_ref().map(|(record, position)| {
        let gaps = if position.highest > position.contiguous {
            format!(", gaps up to {}", position.highest)
        } else {
            String::new()
        };
        format!("epoch {}, read to sequence {}{gaps}", record.epoch, position.contiguous)
    });
    let position = position.unwrap_or_else(|| "nothing was read yet".to_owned());
    match &seen.nats {
        Err(why) => line(out, "stream", &format!("{position}; {}", toned(why, Tone::Bad))),
        Ok(stream) if !stream.exists => {
            line(out, "stream", &format!("does not exist on nats-server {}", stream.server))
        }
        Ok(stream) => {
            let text = format!(
                "{position}; nats-server {}, stream of {}, sequences {} to {}",
                stream.server,
                stream.created.as_deref().unwrap_or("unknown"),
                stream.first,
                stream.last
            );
            line(out, "stream", &text)?;
            let age = stream.oldest_unread.map_or_else(String::new, |at| format!(", the oldest {}", relative(at, now)));
            let unacknowledged = stream.consumer.as_ref().map_or(0, |consumer| consumer.num_ack_pending);
            line(
                out,
                "lag",
                &format!(
                    "{}{age}; {unacknowledged} handed out and not acknowledged",
                    print::count(stream.lag, "event")
                ),
            )
        }
    }
}

fn draw_danger(seen: &Seen, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let overview = &seen.overview;
    if overview.in_danger.is_empty() {
        return Ok(());
    }
    let more = overview.in_danger_count - overview.in_danger.len();
    let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
    writeln!(out, "\n{}{more}", toned("Lessons of the next 24 hours without a link", Tone::Strong))?;
    let rows: Vec<_> = overview
        .in_danger
        .iter()
        .map(|session| {
            vec![
                format!("  {}", both(session.starts_at, now)),
                session.session.to_string(),
                session.teacher.to_string(),
                session.code.clone().unwrap_or_else(|| session.status.clone()),
                session.message.clone().unwrap_or_else(|| "work is under way".to_owned()),
            ]
        })
        .collect();
    let mut table = Vec::new();
    print::table(&mut table, &["  STARTS", "SESSION", "TEACHER", "REASON", ""], &rows)?;
    out.write_all(&table)
}

fn draw_teachers(seen: &Seen, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let teachers = &seen.overview.teachers;
    if teachers.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}", toned("Teachers who have to connect Google", Tone::Strong))?;
    let shown = 15;
    let rows: Vec<_> = teachers
        .iter()
        .take(shown)
        .map(|teacher| {
            vec![
                format!("  {}", teacher.teacher),
                teacher.code.as_str().to_owned(),
                format!("{} waiting", print::count(teacher.sessions, "session")),
                teacher.next_start.map_or_else(String::new, |at| format!("the first starts {}", both(at, now))),
            ]
        })
        .collect();
    let mut table = Vec::new();
    print::table(&mut table, &["  TEACHER", "REASON", "", ""], &rows)?;
    out.write_all(&table)?;
    if teachers.len() > shown {
        writeln!(out, "  and {} more", teachers.len() - shown)?;
    }
    Ok(())
}

/// The same as JSON.
pub(super) fn wire(seen: &Seen, attention: &[String], now: UnixMillis) -> Value {
    let overview = &seen.overview;
    let time = |at: Option<UnixMillis>| at.map(UnixMillis::to_rfc3339);
    let sessions: serde_json::Map<String, Value> =
        WORDS.iter().map(|word| (word.to_ascii_lowercase(), json!(count(seen, word)))).collect();
    let by_name = |pairs: &[(String, i64)]| -> Value {
        pairs.iter().map(|(name, number)| (name.clone(), json!(number))).collect::<serde_json::Map<_, _>>().into()
    };
    json!({
        "at": now.to_rfc3339(),
        "version": env!("CARGO_PKG_VERSION"),
        "healthy": attention.is_empty(),
        "attention": attention,
        "database": seen.database,
        "epoch": seen.epoch.as_ref().map(|(record, position)| json!({
            "epoch": record.epoch.0, "stream": record.stream, "created": record.created, "consumer": record.consumer,
            "contiguous": position.contiguous, "highest": position.highest,
        })),
        "nats": wire_nats(&seen.nats, now),
        "processes": wire_processes(seen, now),
        "leases": overview.leases.iter().map(|(name, holder, until)| json!({
            "name": name, "holder": holder, "until": until.to_rfc3339(),
        })).collect::<Vec<_>>(),
        "sessions": sessions,
        "errors": overview.errors.iter().map(|(code, number)| (code.as_str().to_owned(), json!(number)))
            .collect::<serde_json::Map<_, _>>(),
        "oldestPending": overview.oldest_pending.as_ref().map(|pending| json!({
            "sessionId": pending.session.as_str(), "teacherId": pending.teacher.as_str(),
            "since": pending.since.to_rfc3339(), "ageSeconds": now.since(pending.since).max(0) / 1000,
        })),
        "inDanger": overview.in_danger.iter().map(|session| json!({
            "sessionId": session.session.as_str(), "teacherId": session.teacher.as_str(),
            "startsAt": session.starts_at.to_rfc3339(), "meetStatus": session.status, "code": session.code,
            "message": session.message,
        })).collect::<Vec<_>>(),
        "inDangerCount": overview.in_danger_count,
        "teachers": overview.teachers.iter().map(|teacher| json!({
            "teacherId": teacher.teacher.as_str(), "code": teacher.code.as_str(),
            "tokenStatus": teacher.status.map(TokenStatus::as_str), "blockedSessions": teacher.sessions,
            "nextBlockedStartsAt": time(teacher.next_start),
        })).collect::<Vec<_>>(),
        "coolDowns": overview.cool_downs.iter().map(|(teacher, until)| json!({
            "teacherId": teacher.as_str(), "until": until.to_rfc3339(),
        })).collect::<Vec<_>>(),
        "deadLetters": {
            "open": overview.dead_letters.iter().map(|(_, number)| number).sum::<i64>(),
            "byClass": by_name(&overview.dead_letters),
        },
        "calendars": {"due": overview.due_calendars, "held": overview.held_calendars},
        "outbox": {"waiting": overview.outbox, "oldestAt": time(overview.outbox_oldest)},
        "pauses": overview.pauses.iter().map(|pause| json!({
            "scope": pause.scope.as_str(), "teacherId": pause.teacher.as_ref().map(TeacherId::as_str),
            "since": pause.since.to_rfc3339(), "until": time(pause.until), "actor": pause.actor, "reason": pause.reason,
        })).collect::<Vec<_>>(),
        "lastRuns": seen.runs.iter().map(super::super::audit::wire).collect::<Vec<_>>(),
    })
}

fn wire_nats(nats: &Result<Stream, String>, now: UnixMillis) -> Value {
    match nats {
        Err(why) => json!({"reachable": false, "error": why}),
        Ok(stream) => json!({
            "reachable": true, "error": null, "serverVersion": stream.server, "streamExists": stream.exists,
            "created": stream.created, "firstSequence": stream.first, "lastSequence": stream.last,
            "lagEvents": stream.lag,
            "lagSeconds": stream.oldest_unread.map_or(0, |at| now.since(at).max(0) / 1000),
            "unacknowledged": stream.consumer.as_ref().map(|consumer| consumer.num_ack_pending),
        }),
    }
}

fn wire_processes(seen: &Seen, now: UnixMillis) -> Vec<Value> {
    let processes = seen.overview.processes.iter().enumerate();
    processes
        .map(|(at, process)| {
            let state = seen.alive.iter().find(|(alive, _)| *alive == at).map(|(_, state)| state);
            json!({
                "id": process.id, "host": process.host, "pid": process.pid, "version": process.version,
                "startedAt": process.started_at.to_rfc3339(), "seenAt": process.seen_at.to_rfc3339(),
                "alive": process.is_alive(now), "natsConnected": state.map(|state| state.nats_connected),
                "caughtUp": state.map(|state| state.caught_up),
                "ingestStandsStill": state.map(|state| state.ingest_stands_still),
                "blocked": state.and_then(|state| state.blocked.clone()),
                "lastError": state.and_then(|state| state.last_error.clone()),
                "drift": state.map(|state| state.drift.clone()),
                "breakers": state.map(|state| state.breakers.iter().map(|open| json!({
                    "api": open.api, "since": UnixMillis::new(open.since_ms).to_rfc3339(),
                    "probeAt": UnixMillis::new(open.probe_at_ms).to_rfc3339(), "message": open.message,
                })).collect::<Vec<_>>()),
            })
        })
        .collect()
}
