//! Guests of an event: ours, and those the teacher added.
//!
//! A patch replaces the whole array, so what stands there has to be sent again, answers included. Which guests are ours
//! is kept in the private property `mpGuests`: without it a student who left could not be told from a colleague whom
//! the teacher invited by hand, and either the one would keep the invitation or the other lose it.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::event::private_property;
use crate::model::{Attendee, digest};

/// Characters of one guest in the marker: 25 bits, so two of 200 guests collide once in 1,700 events, and then the
/// worst that happens is that one stays invited.
const MARK_CHARS: usize = 5;
/// The longest value of a private property that Google keeps whole: 204 guests; it allows 200.
const MARKER_CHARS_MAX: usize = 1024;

/// The guests to send.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Merged {
    /// For `attendees`.
    pub(super) attendees: Vec<Value>,
    /// For the private property `mpGuests`: marks of those that are ours, one after the other.
    pub(super) marker: String,
}

/// Addresses differ in case without being different guests.
fn key(email: &str) -> String {
    email.trim().to_lowercase()
}

fn mark(key: &str) -> String {
    let mut mark = data_encoding::BASE32HEX_NOPAD.encode(&digest(&[b"mp/guest/1", key.as_bytes()])[..4]);
    mark.truncate(MARK_CHARS);
    mark.make_ascii_lowercase();
    mark
}

/// The guests of `event` with ours brought to `wanted`: those wanted stay as they are or are added, those that were
/// ours and are not wanted any more go, everybody else stays.
pub(super) fn merge(event: &Value, wanted: &[Attendee]) -> Merged {
    let were_ours: HashSet<&[u8]> = private_property(event, "mpGuests")
        .map(|marker| marker.as_bytes().chunks_exact(MARK_CHARS).collect())
        .unwrap_or_default();
    let wanted_keys: HashSet<String> = wanted.iter().map(|guest| key(&guest.email)).collect();
    let mut present = HashSet::new();
    let mut attendees = Vec::with_capacity(wanted.len());
    for guest in event.get("attendees").and_then(Value::as_array).into_iter().flatten() {
        let key = guest.get("email").and_then(Value::as_str).map(key).unwrap_or_default();
        let is_fixed = ["self", "organizer", "resource"].iter().any(|flag| guest.get(flag) == Some(&Value::Bool(true)));
        if is_fixed || wanted_keys.contains(&key) || !were_ours.contains(mark(&key).as_bytes()) {
            present.insert(key);
            attendees.push(guest.clone());
        }
    }
    let mut marker = String::new();
    let mut noted = HashSet::new();
    for guest in wanted {
        let key = key(&guest.email);
        if noted.insert(mark(&key)) && marker.len() + MARK_CHARS <= MARKER_CHARS_MAX {
            marker.push_str(&mark(&key));
        }
        if present.insert(key) {
            // No `responseStatus`: setting one can hide the event from guests with strict invitation settings.
            attendees.push(match &guest.display_name {
                Some(name) => json!({"email": guest.email, "displayName": name}),
                None => json!({"email": guest.email}),
            });
        }
    }
    Merged { attendees, marker }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(emails: &[&str]) -> Vec<Attendee> {
        emails.iter().map(|email| Attendee { email: (*email).into(), display_name: None }).collect()
    }

    fn emails(merged: &Merged) -> Vec<&str> {
        merged.attendees.iter().map(|guest| guest["email"].as_str().unwrap()).collect()
    }

    #[test]
    fn answers_and_the_teachers_own_guests_stay_and_those_who_left_go() {
        let first = merge(&Value::Null, &guests(&["ana@example.com", "bo@example.com"]));
        assert_eq!(emails(&first), ["ana@example.com", "bo@example.com"]);
        let event = json!({
            "attendees": [
                {"email": "teacher@example.com", "self": true, "organizer": true, "responseStatus": "accepted"},
                {"email": "Ana@example.com", "responseStatus": "accepted"},
                {"email": "bo@example.com", "responseStatus": "declined"},
                {"email": "colleague@example.com", "responseStatus": "tentative"},
            ],
            "extendedProperties": {"private": {"mpGuests": first.marker}},
        });
        let second = merge(&event, &guests(&["ana@example.com", "cy@example.com"]));
        assert_eq!(
            emails(&second),
            ["teacher@example.com", "Ana@example.com", "colleague@example.com", "cy@example.com"]
        );
        assert_eq!(second.attendees[1]["responseStatus"], "accepted");
        assert_eq!(second.attendees[3], json!({"email": "cy@example.com"}));

        // Once more, nothing changes.
        let event = json!({
            "attendees": second.attendees, "extendedProperties": {"private": {"mpGuests": second.marker}},
        });
        assert_eq!(merge(&event, &guests(&["ana@example.com", "cy@example.com"])), second);
        // And none wanted: ours go, the others stay.
        assert_eq!(emails(&merge(&event, &[])), ["teacher@example.com", "colleague@example.com"]);
    }

    #[test]
    fn without_a_marker_nobody_is_removed_and_nobody_is_there_twice() {
        let event = json!({"attendees": [{"email": "bo@example.com"}, {"id": "no email"}]});
        let merged = merge(&event, &guests(&["BO@example.com", "ana@example.com", "ana@example.com"]));
        assert_eq!(merged.attendees.len(), 3);
        assert_eq!(merged.marker.len(), 2 * MARK_CHARS);
    }

    #[test]
    fn the_marker_fits_a_private_property() {
        let many: Vec<Attendee> =
            (0..1000).map(|n| Attendee { email: format!("{n}@example.com"), display_name: None }).collect();
        let merged = merge(&Value::Null, &many);
        assert_eq!(merged.attendees.len(), 1000);
        assert!(merged.marker.len() <= MARKER_CHARS_MAX);
    }
}
