//! The sample lessons: all three kinds, a reschedule, a cancel, a teacher who is not connected, and one bad event.

use serde_json::{Value, json};

use crate::model::UnixMillis;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// One event of the story.
pub(super) struct Sample {
    /// Its subject.
    pub(super) subject: String,
    /// Its CloudEvent, or text that is none.
    pub(super) payload: String,
    /// `Nats-Msg-Id`.
    pub(super) id: String,
}

/// How a sample session should end.
pub(super) struct Expected {
    /// The session.
    pub(super) session: &'static str,
    /// What happened to it, for the reader.
    pub(super) story: &'static str,
    /// `meetStatus` at the end.
    pub(super) status: &'static str,
}

/// Every sample session.
pub(super) const EXPECTED: [Expected; 5] = [
    Expected { session: "piano-1", story: "private lesson of Ana", status: "READY" },
    Expected { session: "english-b1", story: "group of Ben, moved by a day: same link", status: "READY" },
    Expected { session: "course-17-5", story: "lesson 5 of Ana's course", status: "READY" },
    Expected { session: "guitar-3", story: "private lesson of Ben, canceled", status: "CANCELED" },
    Expected { session: "chess-1", story: "private lesson of Carla, who has not connected Google", status: "ERROR" },
];

/// The events, in the order in which the booking backend would publish them.
pub(super) fn samples(now: UnixMillis) -> Vec<Sample> {
    // The next full hour in three days: lessons lie in the future whenever this runs.
    let start = now.plus(3 * DAY_MS - now.get().rem_euclid(HOUR_MS));
    let lesson = |session: &str, version: i64, kind: &str, teacher: &str, title: &str, starts_at: UnixMillis| {
        json!({
            "sessionId": session, "version": version, "kind": kind, "teacherId": teacher, "title": title,
            "description": null, "startsAt": starts_at.to_rfc3339(), "endsAt": starts_at.plus(HOUR_MS).to_rfc3339(),
            "timeZone": "Europe/Madrid", "attendees": [{"email": "student@example.com", "displayName": "A student"}],
            "url": format!("https://school.example.com/sessions/{session}"),
        })
    };
    let later = start.plus(DAY_MS);
    vec![
        event("Scheduled", now, &lesson("piano-1", 1, "private", "tch_ana", "Piano with Ana", start)),
        event("Scheduled", now, &lesson("english-b1", 1, "group", "tch_ben", "Conversation B1", start)),
        event("Scheduled", now, &lesson("course-17-5", 1, "course", "tch_ana", "Harmony, lesson 5", later)),
        event("Scheduled", now, &lesson("guitar-3", 1, "private", "tch_ben", "Guitar with Ben", later)),
        event("Scheduled", now, &lesson("chess-1", 1, "private", "tch_carla", "Chess with Carla", start)),
        event("Rescheduled", now, &lesson("english-b1", 2, "group", "tch_ben", "Conversation B1", later)),
        event(
            "Canceled",
            now,
            &json!({"sessionId": "guitar-3", "version": 2, "teacherId": "tch_ben", "reason": "student is ill"}),
        ),
        bad(event("Scheduled", now, &lesson("drums-9", 1, "private", "tch_ben", "Drums with Ben", start))),
    ]
}

fn event(change: &str, now: UnixMillis, data: &Value) -> Sample {
    let session = data["sessionId"].as_str().unwrap_or_default();
    let id = uuid::Uuid::now_v7().to_string();
    let event = json!({
        "specversion": "1.0", "id": id, "source": "/services/bookings", "type": format!("bookings.Session{change}.v1"),
        "subject": session, "time": now.to_rfc3339(), "datacontenttype": "application/json", "data": data,
    });
    Sample { subject: format!("bookings.session.{session}.{}", change.to_lowercase()), payload: event.to_string(), id }
}

/// A publisher's mistake: the lesson ends before it starts.
fn bad(sample: Sample) -> Sample {
    let mut event: Value = serde_json::from_str(&sample.payload).unwrap_or_default();
    event["data"]["endsAt"] = json!("2020-01-01T00:00:00Z");
    Sample { payload: event.to_string(), ..sample }
}
