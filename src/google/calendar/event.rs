//! Reading events: tolerant of everything that may be missing, as a cancelled event may hold its id alone.

use reqwest::header::{ETAG, HeaderMap};
use serde_json::Value;

use crate::google::{RemoteConference, RemoteEvent, RemoteStatus};
use crate::model::{EventId, MeetLink, UnixMillis, digest, short_hex};

/// Reads the answer to a call about one event; the error completes "Google answered 200 but …".
pub(super) fn parse_answer(
    body: &[u8],
    headers: &HeaderMap,
    expected: &EventId,
    with_guests: bool,
) -> Result<RemoteEvent, &'static str> {
    let resource: Value = serde_json::from_slice(body).map_err(|_| "the answer is cut off or no JSON")?;
    let mut event = parse_event(resource, with_guests).ok_or("the answer is no event")?;
    if event.id != expected.as_str() {
        return Err("with another event");
    }
    if event.etag.is_empty()
        && let Some(etag) = headers.get(ETAG).and_then(|etag| etag.to_str().ok())
    {
        etag.clone_into(&mut event.etag);
    }
    Ok(event)
}

/// Reads a page of `events.list`: its events and the token of the next page.
pub(super) fn parse_page(body: &[u8], with_guests: bool) -> Result<(Vec<RemoteEvent>, Option<String>), &'static str> {
    let mut page: Value = serde_json::from_slice(body).map_err(|_| "the answer is cut off or no JSON")?;
    if !page.is_object() {
        return Err("the answer is no list of events");
    }
    let events = match page.get_mut("items").map(Value::take) {
        // Google leaves an empty list out.
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items
            .into_iter()
            .map(|item| parse_event(item, with_guests))
            .collect::<Option<_>>()
            .ok_or("the answer holds something that is no event")?,
        Some(_) => return Err("the answer is no list of events"),
    };
    Ok((events, text(&page, "nextPageToken").filter(|token| !token.is_empty()).map(str::to_owned)))
}

/// A private property of the event.
pub(super) fn private_property<'a>(resource: &'a Value, name: &str) -> Option<&'a str> {
    text(resource.get("extendedProperties")?.get("private")?, name)
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name)?.as_str()
}

/// `None` when there is no id, so that it cannot be an event.
fn parse_event(resource: Value, with_guests: bool) -> Option<RemoteEvent> {
    let id = text(&resource, "id").filter(|id| !id.is_empty())?.to_owned();
    let owned = |name| text(&resource, name).map(str::to_owned);
    let marker = |name| private_property(&resource, name).map(str::to_owned);
    Some(RemoteEvent {
        id,
        status: match text(&resource, "status") {
            Some("cancelled") => RemoteStatus::Cancelled,
            _ => RemoteStatus::Live,
        },
        etag: owned("etag").unwrap_or_default(),
        ical_uid: owned("iCalUID"),
        starts_at: instant(&resource, "start"),
        ends_at: instant(&resource, "end"),
        conference: conference(&resource),
        marked_session: marker("mpSession"),
        marked_environment: marker("mpEnv"),
        marked_hash: marker("mpHash"),
        owned_hash: owned_hash(&resource, with_guests),
        resource,
    })
}

fn instant(resource: &Value, name: &str) -> Option<UnixMillis> {
    UnixMillis::parse_rfc3339(text(resource.get(name)?, "dateTime")?).ok()
}

/// The conference, reduced to what we act on.
///
/// Which solution it is decides before the link: `hangoutLink` may outlive a Meet conference that somebody replaced.
fn conference(resource: &Value) -> RemoteConference {
    let link_of_event = || text(resource, "hangoutLink").and_then(|link| MeetLink::parse(link).ok());
    let data = match resource.get("conferenceData") {
        Some(Value::Object(members)) if !members.is_empty() => &resource["conferenceData"],
        // Older events have the link alone.
        _ => return link_of_event().map_or(RemoteConference::None, RemoteConference::Meet),
    };
    let solution = data.get("conferenceSolution").and_then(|solution| text(solution.get("key")?, "type"));
    if solution.is_some_and(|solution| solution != "hangoutsMeet") {
        return RemoteConference::Other;
    }
    let entry_points = data.get("entryPoints").and_then(Value::as_array);
    let video = entry_points
        .into_iter()
        .flatten()
        .filter(|entry| text(entry, "entryPointType") == Some("video"))
        .find_map(|entry| MeetLink::parse(text(entry, "uri")?).ok());
    let status = data.get("createRequest").and_then(|request| text(request.get("status")?, "statusCode"));
    match (status, video.filter(|_| solution.is_some()).or_else(link_of_event)) {
        (_, Some(link)) => RemoteConference::Meet(link),
        (Some("failure"), None) => RemoteConference::Failed,
        // Asked for, or there already, but without a link yet.
        (_, None) if solution.is_some() || data.get("createRequest").is_some() => RemoteConference::Pending,
        // Notes or parameters alone: nobody can enter by them.
        (_, None) => RemoteConference::None,
    }
}

/// A hash over the owned fields by what they mean: a time is its instant (Google answers in the calendar's offset), a
/// missing description is an empty one, guests are their addresses in order.
fn owned_hash(resource: &Value, with_guests: bool) -> String {
    let moment = |name: &str| {
        let Some(moment) = resource.get(name) else { return (String::new(), "") };
        let at = match instant(resource, name) {
            Some(at) => at.get().to_string(),
            // An all-day event, or a form we do not know: as it stands.
            None => ["date", "dateTime"].into_iter().filter_map(|member| text(moment, member)).collect(),
        };
        (at, text(moment, "timeZone").unwrap_or_default())
    };
    let ((start, start_zone), (end, end_zone)) = (moment("start"), moment("end"));
    let mut guests: Vec<String> = Vec::new();
    if with_guests {
        let emails = resource.get("attendees").and_then(Value::as_array).into_iter().flatten();
        guests.extend(emails.filter_map(|guest| text(guest, "email")).map(str::to_lowercase));
        guests.sort_unstable();
    }
    let mut fields: Vec<&[u8]> = vec![
        b"mp/owned/1",
        text(resource, "summary").unwrap_or_default().as_bytes(),
        text(resource, "description").unwrap_or_default().as_bytes(),
        start.as_bytes(),
        start_zone.as_bytes(),
        end.as_bytes(),
        end_zone.as_bytes(),
        resource.get("source").and_then(|source| text(source, "url")).unwrap_or_default().as_bytes(),
    ];
    fields.extend(guests.iter().map(String::as_bytes));
    short_hex(&digest(&fields))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conference_of(resource: Value) -> RemoteConference {
        let Value::Object(mut event) = resource else { unreachable!() };
        event.insert("id".into(), "x".into());
        parse_event(event.into(), false).unwrap().conference
    }

    #[test]
    fn the_conference_is_what_its_solution_says() {
        let meet = |link: &str| RemoteConference::Meet(MeetLink::parse(link).unwrap());
        let solution = |kind: &str| json!({"key": {"type": kind}});
        let video = json!([
            {"entryPointType": "phone", "uri": "tel:+1"},
            {"entryPointType": "video", "uri": "https://meet.google.com/abc-defg-hij"},
        ]);
        for (resource, expected) in [
            (json!({}), RemoteConference::None),
            (json!({"conferenceData": null}), RemoteConference::None),
            (json!({"conferenceData": {}}), RemoteConference::None),
            (json!({"conferenceData": {"notes": "n"}}), RemoteConference::None),
            (json!({"hangoutLink": "https://meet.google.com/old"}), meet("https://meet.google.com/old")),
            (json!({"hangoutLink": "https://evil.example/meet.google.com"}), RemoteConference::None),
            (
                json!({"conferenceData": {"conferenceSolution": solution("hangoutsMeet"), "entryPoints": video}}),
                meet("https://meet.google.com/abc-defg-hij"),
            ),
            (
                json!({"conferenceData": {"conferenceSolution": solution("hangoutsMeet"),
                    "entryPoints": [{"entryPointType": "video", "uri": "http://meet.google.com/abc"}]}}),
                RemoteConference::Pending,
            ),
            (
                json!({"conferenceData": {"conferenceSolution": solution("hangoutsMeet")},
                    "hangoutLink": "https://meet.google.com/abc"}),
                meet("https://meet.google.com/abc"),
            ),
            (
                json!({"conferenceData": {"conferenceSolution": solution("addOn"), "entryPoints": video},
                    "hangoutLink": "https://meet.google.com/abc"}),
                RemoteConference::Other,
            ),
            (json!({"conferenceData": {"createRequest": {"requestId": "r"}}}), RemoteConference::Pending),
            (
                json!({"conferenceData": {"createRequest": {"status": {"statusCode": "pending"}}}}),
                RemoteConference::Pending,
            ),
            (
                json!({"conferenceData": {"createRequest": {"status": {"statusCode": "failure"}}}}),
                RemoteConference::Failed,
            ),
            (
                json!({"conferenceData": {"createRequest": {"status": {"statusCode": "success"}},
                    "conferenceSolution": solution("hangoutsMeet"), "entryPoints": video}}),
                meet("https://meet.google.com/abc-defg-hij"),
            ),
        ] {
            assert_eq!(conference_of(resource.clone()), expected, "{resource}");
        }
    }

    #[test]
    fn a_cancelled_event_may_be_an_id_alone() {
        let event = parse_event(json!({"id": "abc", "status": "cancelled"}), false).unwrap();
        assert_eq!(event.status, RemoteStatus::Cancelled);
        assert_eq!((event.starts_at, event.etag.as_str(), event.marked_session), (None, "", None));
        assert_eq!(parse_event(json!({"id": ""}), false), None);
        assert_eq!(parse_event(json!([]), false), None);
        // Wrong types are as good as missing.
        assert!(parse_event(json!({"id": "abc", "start": 7, "conferenceData": [], "attendees": {}}), true).is_some());
    }

    #[test]
    fn the_owned_hash_sees_meaning_and_not_form() {
        let event = || {
            json!({"id": "x", "summary": "Piano", "description": "d",
                "start": {"dateTime": "2026-12-01T09:00:00Z", "timeZone": "Europe/Madrid"},
                "end": {"dateTime": "2026-12-01T10:00:00Z", "timeZone": "Europe/Madrid"},
                "source": {"title": "t", "url": "https://example.com/s"},
                "attendees": [{"email": "a@x"}, {"email": "b@x"}]})
        };
        let hash = |event: &Value| owned_hash(event, true);
        let set = |pointer: &str, value: Value| {
            let mut changed = event();
            *changed.pointer_mut(pointer).unwrap() = value;
            changed
        };
        for same in [
            set("/start/dateTime", json!("2026-12-01T10:00:00+01:00")),
            set("/start/dateTime", json!("2026-12-01T09:00:00.000Z")),
            set("/source/title", json!("other")),
            set("/attendees", json!([{"email": "B@x", "responseStatus": "accepted"}, {"email": "a@x"}])),
            set("/id", json!("y")),
        ] {
            assert_eq!(hash(&same), hash(&event()), "{same}");
        }
        for other in [
            set("/summary", json!("Pian")),
            set("/description", json!("e")),
            set("/description", Value::Null),
            set("/start/dateTime", json!("2026-12-01T09:00:00+01:00")),
            set("/start/timeZone", json!("Europe/Paris")),
            set("/end/dateTime", json!("2026-12-01T10:00:01Z")),
            set("/start", json!({"date": "2026-12-01"})),
            set("/source/url", json!("https://example.com/t")),
            set("/attendees", json!([{"email": "a@x"}])),
        ] {
            assert_ne!(hash(&other), hash(&event()), "{other}");
        }
        // Guests are the teacher's own affair while none are wanted.
        assert_eq!(owned_hash(&set("/attendees", json!([])), false), owned_hash(&event(), false));
        assert_ne!(
            hash(&set("/start", json!({"date": "2026-12-01"}))),
            hash(&set("/start", json!({"date": "2026-12-02"})))
        );
        // `null`, missing and empty are one.
        assert_eq!(hash(&set("/description", Value::Null)), hash(&set("/description", json!(""))));
    }

    #[test]
    fn pages_are_read_strictly() {
        assert_eq!(parse_page(b"{}", false), Ok((vec![], None)));
        let (events, next) = parse_page(br#"{"items":[{"id":"a"}],"nextPageToken":"p"}"#, false).unwrap();
        assert_eq!((events.len(), next.as_deref()), (1, Some("p")));
        for bad in [&b"[]"[..], b"{\"items\":[", b"{\"items\":7}", b"{\"items\":[{}]}", b""] {
            assert!(parse_page(bad, false).is_err());
        }
    }
}
