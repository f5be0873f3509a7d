//! What needs a person, each in one sentence with the next step. Pure: the exit code follows from it.

use super::super::moment;
use super::super::print::count;
use super::gather::Seen;
use crate::model::UnixMillis;
use crate::status::advice;

/// A lesson that starts within this time and has no link cannot wait.
const URGENT_MS: i64 = 3_600_000;

/// Events and results that wait for longer are not on their way.
const LATE_MS: i64 = 5 * 60_000;

/// What needs a person, most urgent first.
pub(super) fn attention(seen: &Seen, now: UnixMillis) -> Vec<String> {
    let overview = &seen.overview;
    let mut needs = Vec::new();
    let urgent = overview.in_danger.iter().filter(|session| session.starts_at.since(now) < URGENT_MS).count();
    match urgent {
        0 => {}
        1 => needs.push("1 lesson runs or starts within the hour and has no link".to_owned()),
        _ => needs.push(format!("{urgent} lessons run or start within the hour and have no link")),
    }
    if seen.alive.is_empty() {
        let last = overview.processes.iter().map(|process| process.seen_at).max();
        let last = last.map_or_else(String::new, |at| format!(" (last heard of {})", moment::relative(at, now)));
        needs.push(format!("the service does not run{last}: start `meet-projector serve`"));
    }
    if let Err(why) = &seen.nats {
        needs.push(format!("NATS cannot be looked at: {why}"));
    }
    if seen.nats.as_ref().is_ok_and(|stream| !stream.exists) {
        needs.push("the stream does not exist: `meet-projector nats apply` makes it".to_owned());
    }
    for (_, state) in &seen.alive {
        if let Some(why) = &state.blocked {
            needs.push(format!("ingest waits for a decision: {why}"));
        } else if let Some(why) = &state.last_error {
            needs.push(format!("ingest does not work: {why}"));
        }
        needs.extend(state.forbidden.clone());
        for open in &state.breakers {
            needs.push(format!("Google refuses this installation ({} API): {}", open.api, open.message));
        }
    }
    needs.dedup();
    teachers_and_errors(seen, &mut needs);
    let letters: i64 = overview.dead_letters.iter().map(|(_, number)| number).sum();
    if letters > 0 {
        needs.push(format!("{}: `meet-projector dead-letter list`", count(letters, "open dead letter")));
    }
    for pause in overview.pauses.iter().filter(|pause| pause.until.is_none()) {
        needs.push(pause.sentence());
    }
    let late = |at: Option<UnixMillis>| at.filter(|at| now.since(*at) > LATE_MS);
    if let Some(at) = late(seen.nats.as_ref().ok().and_then(|stream| stream.oldest_unread)) {
        needs.push(format!("events wait on the stream since {}", moment::both(at, now)));
    }
    if let Some(at) = late(overview.outbox_oldest) {
        needs.push(format!("results are not published since {}", moment::both(at, now)));
    }
    needs
}

fn teachers_and_errors(seen: &Seen, needs: &mut Vec<String>) {
    let waiting = seen.overview.teachers.iter().filter(|teacher| teacher.sessions > 0);
    let (teachers, sessions) = waiting.fold((0, 0), |(count, sum), teacher| (count + 1, sum + teacher.sessions));
    if teachers > 0 {
        let have = if teachers == 1 { "has" } else { "have" };
        let waiting = count(sessions, "session");
        needs.push(format!("{} {have} to connect Google, with {waiting} waiting", count(teachers, "teacher")));
    }
    for (code, number) in &seen.overview.errors {
        let (action, _) = advice(*code);
        if matches!(action, "retry" | "contact_admin") {
            let word = code.as_str();
            needs.push(format!(
                "{} with {word} ({action}): `meet-projector session retry --failed --code {word}` once mended",
                count(*number, "session")
            ));
        }
    }
}
