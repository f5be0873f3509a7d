//! The rules of the event resource as JSON: what a client may set, what Google makes of it.
//!
//! <https://developers.google.com/workspace/calendar/api/v3/reference/events>. Pure functions over maps.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeZone as _};
use chrono_tz::Tz;
use serde_json::{Map, Value, json};

use super::refusal::Refusal;

pub(super) type Object = Map<String, Value>;

/// What a client sends of these is ignored. `conferenceData`, `sequence` and `status` have rules of their own.
const READ_ONLY: [&str; 18] = [
    "kind",
    "etag",
    "id",
    "htmlLink",
    "created",
    "updated",
    "creator",
    "organizer",
    "iCalUID",
    "hangoutLink",
    "eventType",
    "conferenceData",
    "sequence",
    "status",
    "locked",
    "privateCopy",
    "recurringEventId",
    "originalStartTime",
];

/// Google leaves these out of its answers when they have their default.
fn is_default(field: &str, value: &Value) -> bool {
    match field {
        "transparency" => value == "opaque",
        "visibility" => value == "default",
        "guestsCanModify" | "anyoneCanAddSelf" => value == &Value::Bool(false),
        "guestsCanInviteOthers" | "guestsCanSeeOtherGuests" => value == &Value::Bool(true),
        _ => false,
    }
}

pub(super) fn parse_object(body: &[u8]) -> Result<Object, Refusal> {
    serde_json::from_slice(body).map_err(|_| Refusal::new(400, "parseError", "Parse Error"))
}

/// Reads back what the store itself wrote.
pub(super) fn parse_stored(body: &[u8]) -> Object {
    serde_json::from_slice(body).expect("the store wrote it")
}

/// `[0-9a-v]{5,1024}`
pub(super) fn is_event_id(text: &str) -> bool {
    (5..=1024).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'v').contains(&b))
}

/// Takes out what a client may not set.
pub(super) fn without_read_only(mut sent: Object) -> Object {
    for field in READ_ONLY {
        sent.remove(field);
    }
    sent
}

/// The fields of `current` that a PUT does not replace.
pub(super) fn read_only_of(current: &Object) -> Object {
    READ_ONLY.iter().filter_map(|&field| current.get(field).map(|value| (field.to_owned(), value.clone()))).collect()
}

/// JSON merge: objects merge, `null` removes, everything else (arrays too) replaces.
pub(super) fn merge(target: &mut Object, patch: Object) {
    for (field, value) in patch {
        match value {
            Value::Null => {
                target.remove(&field);
            }
            Value::Object(patch) => {
                if let Some(Value::Object(inner)) = target.get_mut(&field) {
                    merge(inner, patch);
                } else {
                    let mut inner = Object::new();
                    merge(&mut inner, patch);
                    target.insert(field, Value::Object(inner));
                }
            }
            value => {
                target.insert(field, value);
            }
        }
    }
}

/// Start and end in Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// Checks a whole resource and puts it into the form in which Google answers.
pub(super) fn settle(event: &mut Object, zone: Tz) -> Result<Span, Refusal> {
    // The end first, because that is the one Google names when both are missing.
    let end = settle_time(event, "end", zone)?;
    let start = settle_time(event, "start", zone)?;
    if end < start {
        return Err(Refusal::of(400, "timeRangeEmpty"));
    }
    settle_attendees(event)?;
    settle_properties(event)?;
    event.retain(|field, value| !value.is_null() && !is_default(field, value));
    event.entry("reminders").or_insert_with(|| json!({"useDefault": true}));
    Ok(Span { start, end })
}

fn settle_time(event: &mut Object, field: &str, calendar_zone: Tz) -> Result<i64, Refusal> {
    let missing = || Refusal::new(400, "required", format!("Missing {field} time."));
    let invalid = || Refusal::invalid(format!("Invalid {field} time."));
    let Some(Value::Object(time)) = event.get_mut(field) else { return Err(missing()) };
    time.retain(|_, value| !value.is_null());
    let named = match time.get("timeZone") {
        None => None,
        Some(name) => Some(
            name.as_str()
                .and_then(|name| name.parse::<Tz>().ok())
                .ok_or_else(|| Refusal::invalid(format!("Invalid time zone definition for {field} time.")))?,
        ),
    };
    match (time.get("dateTime"), time.get("date")) {
        (None, None) => Err(missing()),
        (Some(Value::String(text)), None) => {
            let moment = if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
                moment.to_utc()
            } else {
                let local = NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S").map_err(|_| invalid())?;
                let zone = named.ok_or_else(|| {
                    Refusal::new(400, "required", format!("Missing time zone definition for {field} time."))
                })?;
                zone.from_local_datetime(&local).earliest().ok_or_else(invalid)?.to_utc()
            };
            // Google answers in the calendar's zone, whatever was sent, and without fractions of a second.
            let shown = moment.with_timezone(&calendar_zone).to_rfc3339_opts(SecondsFormat::Secs, true);
            time.insert("dateTime".to_owned(), shown.into());
            time.insert("timeZone".to_owned(), named.unwrap_or(calendar_zone).name().into());
            Ok(moment.timestamp() * 1000)
        }
        (None, Some(Value::String(text))) => {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| invalid())?;
            let midnight = date.and_hms_opt(0, 0, 0).ok_or_else(invalid)?;
            let zone = named.unwrap_or(calendar_zone);
            let moment = zone.from_local_datetime(&midnight).earliest().ok_or_else(invalid)?;
            Ok(moment.timestamp() * 1000)
        }
        _ => Err(invalid()),
    }
}

fn settle_attendees(event: &mut Object) -> Result<(), Refusal> {
    match event.get_mut("attendees") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(attendees)) => {
            for attendee in attendees.iter_mut() {
                let Value::Object(attendee) = attendee else { return Err(Refusal::invalid("Invalid attendee.")) };
                match attendee.get("email") {
                    Some(Value::String(email)) if email.contains('@') => {}
                    None => return Err(Refusal::new(400, "required", "Missing attendee email.")),
                    _ => return Err(Refusal::invalid("Invalid attendee email.")),
                }
                attendee.entry("responseStatus").or_insert_with(|| "needsAction".into());
            }
            if attendees.is_empty() {
                event.remove("attendees");
            }
            Ok(())
        }
        Some(_) => Err(Refusal::invalid("Invalid attendees.")),
    }
}

/// Keys over 44 characters are silently dropped, values silently cut to 1,024; at most 300 properties and 32 kB an
/// event (<https://developers.google.com/workspace/calendar/api/guides/extended-properties>).
fn settle_properties(event: &mut Object) -> Result<(), Refusal> {
    let Some(Value::Object(extended)) = event.get_mut("extendedProperties") else { return Ok(()) };
    let (mut count, mut bytes) = (0, 0);
    for side in ["private", "shared"] {
        let Some(Value::Object(properties)) = extended.get_mut(side) else { continue };
        properties.retain(|key, value| !value.is_null() && key.chars().count() <= 44);
        for (key, value) in properties.iter_mut() {
            let Value::String(text) = value else { return Err(Refusal::invalid("Invalid extended property value.")) };
            if let Some((cut, _)) = text.char_indices().nth(1024) {
                text.truncate(cut);
            }
            count += 1;
            bytes += key.len() + text.len();
        }
    }
    extended.retain(|_, side| side.as_object().is_some_and(|side| !side.is_empty()));
    if count > 300 || bytes > 32 * 1024 {
        return Err(Refusal::invalid("The extended properties of the event exceed the limit."));
    }
    if extended.is_empty() {
        event.remove("extendedProperties");
    }
    Ok(())
}

pub(super) fn private_property<'a>(event: &'a Object, key: &str) -> Option<&'a str> {
    event.get("extendedProperties")?.get("private")?.get(key)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            _ => unreachable!(),
        }
    }

    #[test]
    fn times_are_answered_in_the_zone_of_the_calendar() {
        let mut event = object(json!({
            "start": {"dateTime": "2026-12-01T09:00:00.250Z", "timeZone": "America/New_York", "date": null},
            "end": {"dateTime": "2026-12-01T10:00:00", "timeZone": "UTC"},
        }));
        let span = settle(&mut event, chrono_tz::Europe::Madrid).unwrap();
        assert_eq!(span.end - span.start, 3_600_000);
        assert_eq!(event["start"], json!({"dateTime": "2026-12-01T10:00:00+01:00", "timeZone": "America/New_York"}));
        assert_eq!(event["end"], json!({"dateTime": "2026-12-01T11:00:00+01:00", "timeZone": "UTC"}));
    }

    #[test]
    fn merging_replaces_arrays_and_clears_with_null() {
        let mut event = object(json!({"a": {"x": 1, "y": 2}, "list": [1, 2], "gone": 1}));
        merge(&mut event, object(json!({"a": {"x": 3, "z": null}, "list": [9], "gone": null, "new": {"k": null}})));
        assert_eq!(Value::Object(event), json!({"a": {"x": 3, "y": 2}, "list": [9], "new": {}}));
    }

    #[test]
    fn long_property_keys_vanish_and_long_values_are_cut() {
        let mut event = object(json!({
            "start": {"date": "2026-12-01"}, "end": {"date": "2026-12-02"},
            "extendedProperties": {"private": {"k".repeat(45): "v", "ok": "ñ".repeat(1025)}},
        }));
        settle(&mut event, Tz::UTC).unwrap();
        assert_eq!(private_property(&event, "ok").map(|text| text.chars().count()), Some(1024));
        assert_eq!(private_property(&event, &"k".repeat(45)), None);
    }
}
