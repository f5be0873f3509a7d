//! Conferences: asked for, then made some time later, or not.
//!
//! `requestId` is compared with the previous request of the same event only; a repeated one is ignored, and so is any
//! request while the event has a conference.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::refusal::Refusal;
use super::resource::Object;

/// How an account's calendar makes Google Meet conferences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConferenceMode {
    /// The answer to the request already holds the link.
    #[default]
    Instant,
    /// `pending`; this many gets later (at least one) the link is there.
    SuccessAfter(u32),
    /// `pending`; this many gets later (at least one) it is a `failure`.
    FailureAfter(u32),
    /// `failure` at once.
    Failure,
    /// `pending` for ever.
    Pending,
    /// Not allowed on this calendar: 400 "Invalid conference type value.", and the whole request fails.
    NotAllowed,
}

/// What an event remembers of its conference beside the resource itself.
#[derive(Debug, Clone, Default)]
pub(super) struct ConferenceMemory {
    last_request: Option<Box<str>>,
    /// Gets until the pending one is decided, and whether it then fails.
    undecided: Option<(u32, bool)>,
}

/// Makes meeting codes `xxx-yyyy-zzz`, each once.
#[derive(Debug, Default)]
pub(super) struct MeetCodes(u64);

impl MeetCodes {
    fn next(&mut self) -> String {
        // Ten letters. Multiplying by a number coprime to 26 permutes all 26^10 codes, so none repeats before all
        // were used, and neighbours look nothing alike.
        const CODES: u128 = 26_u128.pow(10);
        let mut rest = (u128::from(self.0) * 61_803_398_874_989 + 27_182_818_284_590) % CODES;
        self.0 += 1;
        let mut code = String::with_capacity(12);
        for place in 0..10 {
            if place == 3 || place == 7 {
                code.push('-');
            }
            code.push(char::from(b'a' + u8::try_from(rest % 26).expect("below 26")));
            rest /= 26;
        }
        code
    }
}

/// Applies the `conferenceData` of an insert, patch or update with `conferenceDataVersion=1` to `event`.
///
/// `sent` is `None` where the field is absent, which leaves everything as it is.
pub(super) fn apply(
    sent: Option<&Value>,
    event: &mut Object,
    memory: &mut ConferenceMemory,
    mode: ConferenceMode,
    codes: &mut MeetCodes,
) -> Result<(), Refusal> {
    let sent = match sent {
        None => return Ok(()),
        Some(Value::Null) => {
            remove(event, memory);
            return Ok(());
        }
        Some(Value::Object(sent)) => sent,
        Some(_) => return Err(Refusal::invalid("Invalid conference data.")),
    };
    let Some(request) = sent.get("createRequest").filter(|request| !request.is_null()) else {
        // Copying a conference from elsewhere is documented, but "can cause access issues": nothing here needs it,
        // and a resource sent back as it was read changes nothing.
        return Ok(());
    };
    let Some(request_id) = request.get("requestId").and_then(Value::as_str).filter(|id| !id.is_empty()) else {
        return Err(Refusal::new(400, "required", "Missing conference request id."));
    };
    if has_conference(event) || memory.undecided.is_some() || memory.last_request.as_deref() == Some(request_id) {
        return Ok(());
    }
    let kind = request.pointer("/conferenceSolutionKey/type").and_then(Value::as_str).unwrap_or("hangoutsMeet");
    if kind != "hangoutsMeet" || mode == ConferenceMode::NotAllowed {
        return Err(Refusal::invalid("Invalid conference type value."));
    }
    memory.last_request = Some(request_id.into());
    match mode {
        ConferenceMode::Instant => succeed(event, request_id, codes),
        ConferenceMode::Failure => undecided(event, request_id, "failure"),
        ConferenceMode::SuccessAfter(gets) | ConferenceMode::FailureAfter(gets) => {
            memory.undecided = Some((gets.max(1), matches!(mode, ConferenceMode::FailureAfter(_))));
            undecided(event, request_id, "pending");
        }
        ConferenceMode::Pending | ConferenceMode::NotAllowed => {
            memory.undecided = Some((u32::MAX, false));
            undecided(event, request_id, "pending");
        }
    }
    Ok(())
}

impl ConferenceMemory {
    /// Counts one get; true when the pending conference is now to be decided with [`decide`].
    pub(super) fn count_get(&mut self) -> bool {
        match &mut self.undecided {
            None | Some((u32::MAX, _)) => false,
            Some((gets, _)) => {
                *gets -= 1;
                *gets == 0
            }
        }
    }
}

/// Ends a pending conference.
pub(super) fn decide(event: &mut Object, memory: &mut ConferenceMemory, codes: &mut MeetCodes) {
    let Some((_, fails)) = memory.undecided.take() else { return };
    let request_id = memory.last_request.clone().unwrap_or_default();
    if fails {
        undecided(event, &request_id, "failure");
    } else {
        succeed(event, &request_id, codes);
    }
}

/// Takes the conference away, pending or not. The last request id stays remembered.
pub(super) fn remove(event: &mut Object, memory: &mut ConferenceMemory) {
    memory.undecided = None;
    event.remove("conferenceData");
    event.remove("hangoutLink");
}

/// Puts a conference of another provider in its place, as an add-on in the teacher's calendar does.
pub(super) fn replace_by_other(event: &mut Object, memory: &mut ConferenceMemory) {
    remove(event, memory);
    event.insert(
        "conferenceData".to_owned(),
        json!({
            "conferenceId": "94512345678",
            "conferenceSolution": {"key": {"type": "addOn"}, "name": "Zoom Meeting"},
            "entryPoints": [{"entryPointType": "video", "uri": "https://zoom.example.com/j/94512345678"}],
        }),
    );
}

fn has_conference(event: &Object) -> bool {
    event.get("conferenceData").is_some_and(|data| data.get("entryPoints").is_some())
}

fn undecided(event: &mut Object, request_id: &str, status: &str) {
    event.insert("conferenceData".to_owned(), json!({"createRequest": create_request(request_id, status)}));
}

fn create_request(request_id: &str, status: &str) -> Value {
    json!({
        "requestId": request_id,
        "conferenceSolutionKey": {"type": "hangoutsMeet"},
        "status": {"statusCode": status},
    })
}

fn succeed(event: &mut Object, request_id: &str, codes: &mut MeetCodes) {
    let code = codes.next();
    let uri = format!("https://meet.google.com/{code}");
    event.insert("hangoutLink".to_owned(), uri.as_str().into());
    event.insert(
        "conferenceData".to_owned(),
        json!({
            "createRequest": create_request(request_id, "success"),
            "entryPoints": [{"entryPointType": "video", "label": uri["https://".len()..], "uri": uri}],
            "conferenceSolution": {"key": {"type": "hangoutsMeet"}, "name": "Google Meet"},
            "conferenceId": code,
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str) -> Value {
        json!({"createRequest": {"requestId": id, "conferenceSolutionKey": {"type": "hangoutsMeet"}}})
    }

    #[test]
    fn codes_do_not_repeat() {
        let mut codes = MeetCodes::default();
        let all: std::collections::HashSet<_> = (0..10_000).map(|_| codes.next()).collect();
        assert_eq!(all.len(), 10_000);
        assert!(all.iter().all(|code| code.len() == 12 && code.as_bytes()[3] == b'-' && code.as_bytes()[8] == b'-'));
    }

    #[test]
    fn after_a_failure_only_a_new_request_id_is_heard() {
        let (mut event, mut memory, mut codes) = (Object::new(), ConferenceMemory::default(), MeetCodes::default());
        let mut ask = |id: &str, mode| {
            apply(Some(&asked(id)), &mut event, &mut memory, mode, &mut codes).unwrap();
            event.clone()
        };
        let failed = ask("one", ConferenceMode::Failure);
        assert_eq!(ask("one", ConferenceMode::Instant), failed);
        let ready = ask("two", ConferenceMode::Instant);
        assert!(ready.contains_key("hangoutLink"));
        assert_eq!(ask("three", ConferenceMode::Instant), ready);
    }
}
