//! A session as one line of text that is the same wherever and whenever it was folded: for comparing two projections
//! byte by byte, and for keeping one beside the other.
//!
//! Every field that the fold determines is in it and nothing else: no document, no row, no time of ours.

use serde::{Deserialize, Serialize};

use super::{Head, Session, Stamp, Status};
use crate::event::Details;
use crate::model::{Attendee, Epoch, Kind, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    session_id: String,
    head: HeadLine,
    details: Option<DetailsLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HeadLine {
    epoch: i64,
    version: i64,
    sequence: i64,
    status: String,
    teacher_id: String,
    content_hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DetailsLine {
    epoch: i64,
    version: i64,
    sequence: i64,
    kind: String,
    title: String,
    description: Option<String>,
    starts_at_ms: i64,
    ends_at_ms: i64,
    time_zone: String,
    attendees: Vec<(String, Option<String>)>,
    url: Option<String>,
}

/// The line, without an end of line.
pub fn line(session: &Session) -> String {
    let head = &session.head;
    let line = Line {
        session_id: session.id.as_str().to_owned(),
        head: HeadLine {
            epoch: head.stamp.epoch.0,
            version: head.stamp.version.get(),
            sequence: head.stamp.sequence,
            status: match head.status {
                Status::Scheduled => "scheduled".to_owned(),
                Status::Canceled => "canceled".to_owned(),
            },
            teacher_id: head.teacher.as_str().to_owned(),
            content_hash: head.content_hash.clone(),
        },
        details: session.details.as_ref().map(|(stamp, details)| DetailsLine {
            epoch: stamp.epoch.0,
            version: stamp.version.get(),
            sequence: stamp.sequence,
            kind: details.kind.as_str().to_owned(),
            title: details.title.clone(),
            description: details.description.clone(),
            starts_at_ms: details.starts_at.get(),
            ends_at_ms: details.ends_at.get(),
            time_zone: details.time_zone.name().to_owned(),
            attendees: details
                .attendees
                .iter()
                .map(|attendee| (attendee.email.clone(), attendee.display_name.clone()))
                .collect(),
            url: details.url.clone(),
        }),
    };
    serde_json::to_string(&line).expect("a struct of texts and numbers always serialises")
}

/// The session of a line; `None` for what [`line()`] cannot have written.
pub fn parse(text: &str) -> Option<Session> {
    let line: Line = serde_json::from_str(text).ok()?;
    let stamp = |epoch, version, sequence| {
        Some(Stamp { epoch: Epoch(epoch), version: SessionVersion::new(version).ok()?, sequence })
    };
    let details = match line.details {
        None => None,
        Some(details) => Some((
            stamp(details.epoch, details.version, details.sequence)?,
            Details {
                kind: Kind::parse(&details.kind)?,
                title: details.title,
                description: details.description,
                starts_at: UnixMillis::new(details.starts_at_ms),
                ends_at: UnixMillis::new(details.ends_at_ms),
                time_zone: TimeZone::parse(&details.time_zone).ok()?,
                attendees: details
                    .attendees
                    .into_iter()
                    .map(|(email, display_name)| Attendee { email, display_name })
                    .collect(),
                url: details.url,
            },
        )),
    };
    Some(Session {
        id: SessionId::parse(line.session_id).ok()?,
        head: Head {
            stamp: stamp(line.head.epoch, line.head.version, line.head.sequence)?,
            status: match line.head.status.as_str() {
                "scheduled" => Status::Scheduled,
                "canceled" => Status::Canceled,
                _ => return None,
            },
            teacher: TeacherId::parse(line.head.teacher_id).ok()?,
            content_hash: line.head.content_hash,
        },
        details,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_everything_and_reads_back() {
        let stamp = Stamp { epoch: Epoch(2), version: SessionVersion::new(7).unwrap(), sequence: 41 };
        let head = Head {
            stamp,
            status: Status::Canceled,
            teacher: TeacherId::parse("tch_1").unwrap(),
            content_hash: "abc".into(),
        };
        let details = Details {
            kind: Kind::Group,
            title: "Ünïcode \"quoted\"".into(),
            description: Some(String::new()),
            starts_at: UnixMillis::new(5),
            ends_at: UnixMillis::new(6),
            time_zone: TimeZone::parse("Europe/Madrid").unwrap(),
            attendees: vec![Attendee { email: "a@b".into(), display_name: None }],
            url: None,
        };
        let without = Session { id: SessionId::parse("s").unwrap(), head, details: None };
        let with = Session { details: Some((stamp, details)), ..without.clone() };
        for session in [without, with] {
            assert_eq!(parse(&line(&session)), Some(session));
        }
        assert_eq!(parse("{}"), None);
    }
}
