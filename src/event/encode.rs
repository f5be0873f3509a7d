//! A [`SessionEvent`] as the one shape that publishers are asked for.

use serde_json::{Map, Value, json};

use super::SessionEvent;

/// The source of events that came without one.
const DEFAULT_SOURCE: &str = "/services/bookings";

/// The structured CloudEvent that decodes to `event` again; for samples and tests. An event without a source gets
/// `/services/bookings`, and the shape is always the structured one.
pub fn encode(event: &SessionEvent) -> Value {
    let mut data = Map::new();
    data.insert("sessionId".into(), event.session.as_str().into());
    data.insert("version".into(), event.version.get().into());
    data.insert("teacherId".into(), event.teacher.as_str().into());
    if let Some(details) = &event.details {
        let attendees: Vec<Value> = details
            .attendees
            .iter()
            .map(|attendee| match &attendee.display_name {
                Some(name) => json!({"email": attendee.email, "displayName": name}),
                None => json!({"email": attendee.email}),
            })
            .collect();
        data.insert("kind".into(), details.kind.as_str().into());
        data.insert("title".into(), details.title.as_str().into());
        data.insert("description".into(), details.description.as_deref().into());
        data.insert("startsAt".into(), details.starts_at.to_rfc3339().into());
        data.insert("endsAt".into(), details.ends_at.to_rfc3339().into());
        data.insert("timeZone".into(), details.time_zone.name().into());
        data.insert("attendees".into(), attendees.into());
        data.insert("url".into(), details.url.as_deref().into());
    }

    let mut envelope = Map::new();
    envelope.insert("specversion".into(), "1.0".into());
    envelope.insert("id".into(), event.event_id.as_str().into());
    envelope.insert("source".into(), event.source.as_deref().unwrap_or(DEFAULT_SOURCE).into());
    envelope.insert("type".into(), event.change.type_name().into());
    envelope.insert("subject".into(), event.session.as_str().into());
    if let Some(time) = event.occurred_at {
        envelope.insert("time".into(), time.to_rfc3339().into());
    }
    envelope.insert("datacontenttype".into(), "application/json".into());
    if let Some(traceparent) = &event.traceparent {
        envelope.insert("traceparent".into(), traceparent.as_str().into());
    }
    envelope.insert("data".into(), data.into());
    envelope.into()
}

/// The subject that the event belongs on: `bookings.session.<sessionId>.<change>`.
pub fn subject(event: &SessionEvent) -> String {
    subject_under("bookings.session.*.*", event)
}

/// The subject of the event under a filter such as `NATS_SUBJECTS`: its last two tokens are replaced by session and
/// change.
pub fn subject_under(filter: &str, event: &SessionEvent) -> String {
    let prefix = filter.rsplitn(3, '.').nth(2).map_or(String::new(), |prefix| format!("{prefix}."));
    format!("{prefix}{}.{}", event.session, event.change.as_str())
}
