//! Booking events as the backend publishes them: structured CloudEvents of some 700 bytes.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use meet_projector::event::{Change, SessionEvent, encode, subject};
use meet_projector::model::{Attendee, SessionVersion, UnixMillis};
use meet_projector::nats::Connection;

use crate::support::service::{HOUR_MS, lesson_at};

/// Publishes under way at once.
const IN_FLIGHT: usize = 256;

/// A message ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Ready {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// Version `version` of session `number`; each version moves the lesson by a day.
pub(crate) fn lesson(number: usize, version: i64, teacher: usize, now: UnixMillis) -> SessionEvent {
    let slot = i64::try_from(number % 1_000).unwrap();
    let starts_at = now.plus(72 * HOUR_MS - now.get().rem_euclid(HOUR_MS) + (slot + 24 * version) * HOUR_MS);
    let mut event = lesson_at(&session(number), teacher, starts_at);
    event.event_id = format!("019ab7c2-6a10-7c3e-{version:04x}-{number:012x}");
    event.version = SessionVersion::new(version).unwrap();
    event.change = if version == 1 { Change::Scheduled } else { Change::Rescheduled };
    event.traceparent = Some(format!("00-{number:032x}-{version:016x}-01"));
    event.occurred_at = Some(now);
    if let Some(details) = &mut event.details {
        details.title = format!("Piano, lesson {number}");
        details.description = Some("Bring the notes of last week and a pencil.".to_owned());
        details.attendees = vec![Attendee {
            email: format!("student-{number}@example.com"),
            display_name: Some(format!("Student {number}")),
        }];
    }
    event
}

/// The id of session `number`.
pub(crate) fn session(number: usize) -> String {
    format!("ses_{number:06}")
}

/// The message of an event.
pub(crate) fn ready(event: &SessionEvent) -> Ready {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.event_id.as_str());
    headers.insert("Content-Type", "application/cloudevents+json");
    let payload = Bytes::from(encode(event).to_string());
    debug_assert!((600..800).contains(&payload.len()), "{} bytes", payload.len());
    Ready { subject: subject(event), headers, payload }
}

/// Publishes all of them, in this order, and returns when all are stored.
pub(crate) async fn publish(connection: &Connection, events: impl IntoIterator<Item = Ready>) {
    let mut stored = stream::iter(events)
        .map(async |event| connection.publish_stored("BOOKINGS", &event.subject, event.headers, event.payload).await)
        .buffer_unordered(IN_FLIGHT);
    while let Some(answer) = stored.next().await {
        answer.unwrap();
    }
}

/// The last sequence of the stream.
pub(crate) async fn last_sequence(connection: &Connection) -> i64 {
    connection.stream_info("BOOKINGS").await.unwrap().unwrap().state.last_seq
}
