//! What notices say. Pure; names teachers and sessions by their ids, and nobody by an address: no link, no token, no
//! e-mail.

use std::fmt::Write as _;

use super::decide::{Seen, Tell};
use crate::google::breaker::Open;
use crate::model::UnixMillis;
use crate::store::notices::{Unconnected, WithoutLink};
use crate::store::teachers::token_status;

/// So many are named; the rest is counted.
const NAMED_MAX: usize = 5;

/// A cause with its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// As it is seen.
    pub seen: Seen,
    /// What to say of it.
    pub text: String,
}

/// The whole text of a notice.
pub fn notice(tell: Tell, story: Option<&Story>, resolved: &str) -> String {
    match (tell, story) {
        (Tell::Resolved, _) | (_, None) => format!("Resolved: {resolved}"),
        (Tell::Reminder, Some(story)) => format!("Still: {}", story.text),
        (Tell::Grown, Some(story)) => format!("Now: {}", story.text),
        (Tell::Appeared, Some(story)) => story.text.clone(),
    }
}

/// Teachers who have to connect (again).
pub fn unconnected(teachers: &[Unconnected]) -> Option<Story> {
    let sessions: i64 = teachers.iter().map(|teacher| teacher.blocked_sessions).sum();
    let named = teachers.iter().map(|teacher| {
        let status = token_status(teacher.status);
        match teacher.next_starts_at {
            None => format!("{} ({status}, no session waits)", teacher.teacher),
            Some(start) => {
                let many = plural(teacher.blocked_sessions, "session");
                format!("{} ({status}, {many}, the next at {})", teacher.teacher, minute(start))
            }
        }
    });
    story(
        teachers.iter().map(|teacher| teacher.teacher.to_string()).collect(),
        sessions > 0,
        format!(
            "{} to connect Google Calendar (again); {} for that",
            verb(count(teachers.len()), "teacher", "has", "have"),
            verb(sessions, "session", "waits", "wait"),
        ),
        named,
    )
}

/// Sessions that start soon without a link.
pub fn without_link(sessions: &[WithoutLink]) -> Option<Story> {
    let named = sessions.iter().map(|session| {
        let why = session.code.as_deref().unwrap_or("in work");
        format!("{} of teacher {} at {} ({why})", session.session, session.teacher, minute(session.starts_at))
    });
    let begins = verb(count(sessions.len()), "session", "starts", "start");
    story(
        sessions.iter().map(|session| session.session.to_string()).collect(),
        true,
        format!("{begins} within 30 minutes, or began, without a Meet link"),
        named,
    )
}

/// Open dead letters.
pub fn dead_letters(number: i64, newest: &[i64]) -> Option<Story> {
    let named = std::iter::once("`meet-projector dead-letter list` says what to mend".to_owned());
    let letters = verb(number, "booking event", "was", "were");
    let head = format!("{letters} not understood and given up on (open dead letters)");
    story(newest.iter().map(ToString::to_string).collect(), true, head, named)
}

/// Grants that end by themselves.
pub fn ending<T: std::fmt::Display>(grants: &[(T, UnixMillis)]) -> Option<Story> {
    let named = grants.iter().map(|(teacher, at)| format!("{teacher} at {}", minute(*at)));
    let grant = verb(count(grants.len()), "teacher's access", "ends", "end");
    story(
        grants.iter().map(|(teacher, _)| teacher.to_string()).collect(),
        true,
        format!("{grant} within three days; connecting again before then keeps it"),
        named,
    )
}

/// A breaker that is open.
pub fn breaker(what: &str, open: Option<&Open>) -> Option<Story> {
    let open = open?;
    let text = format!(
        "Google refuses this installation at {what} since {}, so calls there pause but one a minute. It is our \
         set-up, not the teachers': {}",
        minute(open.since),
        open.message
    );
    Some(Story { seen: Seen { members: Vec::new(), reminds: true }, text })
}

fn story(members: Vec<String>, reminds: bool, head: String, named: impl Iterator<Item = String>) -> Option<Story> {
    if members.is_empty() {
        return None;
    }
    let mut text = head;
    let mut more = 0_usize;
    for (at, name) in named.enumerate() {
        if at < NAMED_MAX {
            let start = if at == 0 { ": " } else { ", " };
            text.extend([start, &name]);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        // Writing to a text cannot fail.
        write!(text, ", and {more} more").ok();
    }
    Some(Story { seen: Seen { members, reminds }, text })
}

fn count(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

fn plural(number: i64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn verb(number: i64, noun: &str, one: &str, many: &str) -> String {
    format!("{} {}", plural(number, noun), if number == 1 { one } else { many })
}

/// `2026-12-01 09:00 UTC`
fn minute(at: UnixMillis) -> String {
    let text = at.to_rfc3339();
    match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SessionId, TeacherId};
    use crate::store::TokenStatus;

    fn teacher(n: usize) -> TeacherId {
        TeacherId::parse(format!("tch_{n}")).unwrap()
    }

    const START: UnixMillis = UnixMillis::new(1_796_115_600_000);

    #[test]
    fn teachers_are_one_notice_however_many() {
        let one = |n: usize, sessions: i64| Unconnected {
            teacher: teacher(n),
            status: (n > 0).then_some(TokenStatus::ReconnectRequired),
            blocked_sessions: sessions,
            next_starts_at: (sessions > 0).then_some(START),
        };
        let text = |teachers: &[Unconnected]| unconnected(teachers).unwrap().text;
        insta::assert_snapshot!(text(&[one(0, 1)]), @"1 teacher has to connect Google Calendar (again); 1 session waits for that: tch_0 (NOT_CONNECTED, 1 session, the next at 2026-12-01 09:00 UTC)");
        let many: Vec<_> = (0..7).map(|n| one(n, if n == 4 { 0 } else { 20 })).collect();
        insta::assert_snapshot!(text(&many), @"7 teachers have to connect Google Calendar (again); 120 sessions wait for that: tch_0 (NOT_CONNECTED, 20 sessions, the next at 2026-12-01 09:00 UTC), tch_1 (RECONNECT_REQUIRED, 20 sessions, the next at 2026-12-01 09:00 UTC), tch_2 (RECONNECT_REQUIRED, 20 sessions, the next at 2026-12-01 09:00 UTC), tch_3 (RECONNECT_REQUIRED, 20 sessions, the next at 2026-12-01 09:00 UTC), tch_4 (RECONNECT_REQUIRED, no session waits), and 2 more");
        assert!(!unconnected(&[one(3, 0)]).unwrap().seen.reminds, "nobody waits, so one notice is enough");
        assert_eq!(unconnected(&[]), None);
    }

    #[test]
    fn the_other_causes_say_what_to_do() {
        let session = WithoutLink {
            session: SessionId::parse("ses_1").unwrap(),
            teacher: teacher(1),
            starts_at: START,
            code: Some("GOOGLE_UNAVAILABLE".to_owned()),
        };
        insta::assert_snapshot!(without_link(&[session]).unwrap().text, @"1 session starts within 30 minutes, or began, without a Meet link: ses_1 of teacher tch_1 at 2026-12-01 09:00 UTC (GOOGLE_UNAVAILABLE)");
        let letters = dead_letters(2, &[9, 7]).unwrap();
        insta::assert_snapshot!(letters.text, @"2 booking events were not understood and given up on (open dead letters): `meet-projector dead-letter list` says what to mend");
        insta::assert_snapshot!(notice(Tell::Reminder, Some(&letters), ""), @"Still: 2 booking events were not understood and given up on (open dead letters): `meet-projector dead-letter list` says what to mend");
        insta::assert_snapshot!(ending(&[(teacher(1), START)]).unwrap().text, @"1 teacher's access ends within three days; connecting again before then keeps it: tch_1 at 2026-12-01 09:00 UTC");
        let open = Open { since: START, probe_at: START, message: "token: Google answered 401".into(), reason: None };
        insta::assert_snapshot!(breaker("its token endpoint", Some(&open)).unwrap().text, @"Google refuses this installation at its token endpoint since 2026-12-01 09:00 UTC, so calls there pause but one a minute. It is our set-up, not the teachers': token: Google answered 401");
        assert_eq!(notice(Tell::Resolved, None, "every teacher is connected"), "Resolved: every teacher is connected");
    }
}
