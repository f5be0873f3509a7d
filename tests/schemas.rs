//! The schemas, their examples and the decoder say the same.

#![expect(clippy::unwrap_used, reason = "in a test the panic is the report, and these functions only serve tests")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jsonschema::{Draft, Registry, Validator};
use meet_projector::event::{self, Change, Details, SessionEvent, Shape};
use meet_projector::model::{
    Attendee, Epoch, EventId, GoogleSub, Kind, MeetLink, Place, SessionId, SessionVersion, TeacherId, TimeZone,
    UnixMillis,
};
use meet_projector::plan::Code;
use meet_projector::status::{Document, DocumentError, MeetStatus, to_json};
use meet_projector::store::teachers::token_statuses;
use meet_projector::store::{Refused, TokenStatus};
use proptest::prelude::*;
use serde_json::{Value, json};

const PLACE: Place = Place { epoch: Epoch(1), sequence: 17 };
const STRUCTURED: (&str, &str) = ("Content-Type", "application/cloudevents+json");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name and path of every example of a folder, in order; never none.
fn examples(kind: &str) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder().join("examples").join(kind)).unwrap();
    let mut found: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.to_string_lossy().ends_with(".expect.json"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no examples in {kind}");
    found
}

fn schema_files() -> Vec<(String, Value)> {
    let mut files: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".schema.json"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), read_json(&path)))
        .collect();
    files.sort_by(|a, b| a.0.cmp(&b.0));
    files
}

/// Compiles one schema file; the others are found beside it, nothing is fetched.
pub fn validator(file: &str) -> Validator {
    let mut registry = Registry::new();
    for (name, schema) in schema_files() {
        registry = registry.add(format!("json-schema:///{name}"), schema).unwrap();
    }
    let registry = registry.prepare().unwrap();
    let schema = json!({"$ref": format!("json-schema:///{file}")});
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_registry(&registry)
        .should_validate_formats(true)
        .build(&schema)
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

static SESSION_EVENT: LazyLock<Validator> = LazyLock::new(|| validator("session-event.schema.json"));

/// The subject that the structured event in `value` belongs on, as far as it says.
fn subject_of(value: &Value) -> String {
    let change = match value["type"].as_str().unwrap_or_default() {
        "bookings.SessionRescheduled.v1" => "rescheduled",
        "bookings.SessionCanceled.v1" => "canceled",
        _ => "scheduled",
    };
    let session = value["data"]["sessionId"].as_str().filter(|id| SessionId::parse(*id).is_ok()).unwrap_or("ses_8Kq2");
    format!("bookings.session.{session}.{change}")
}

fn decode(value: &Value) -> Result<SessionEvent, Refused> {
    event::decode(&subject_of(value), [STRUCTURED], value.to_string().as_bytes(), PLACE)
}

fn assert_is_a_sentence(refused: &Refused) {
    let reason = &refused.reason;
    assert!(reason.chars().count() <= 400, "too long: {reason}");
    assert!(!reason.is_empty() && !reason.ends_with('.') && !reason.contains(char::is_control), "{reason:?}");
    assert!(refused.class.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')), "{}", refused.class);
}

#[test]
fn schemas_keep_the_meta_schema_and_are_named_by_their_file() {
    for (name, schema) in schema_files() {
        jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
        assert_eq!(schema["$id"], name, "{name}");
        assert!(validator(&name).is_valid(&json!("anything")) == (name == "common.schema.json"), "{name}");
    }
}

#[test]
fn valid_examples_keep_the_schema_and_decode() {
    let mut seen = BTreeSet::new();
    for (name, path) in examples("valid") {
        let value = read_json(&path);
        if let Some(error) = SESSION_EVENT.iter_errors(&value).next() {
            panic!("{name}: {error} at {}", error.instance_path());
        }
        let event = event::decode(&subject_of(&value), [STRUCTURED], &read(&path), PLACE)
            .unwrap_or_else(|refused| panic!("{name}: {}", refused.reason));
        assert_eq!(event.shape, Shape::Structured, "{name}");
        assert_eq!(event, event::decode_unpublished(&read(&path)).unwrap(), "{name}");
        assert_eq!(event::subject(&event), subject_of(&value), "{name}");
        seen.insert((event.change.as_str(), event.details.map(|details| details.kind.as_str())));
    }
    for change in ["scheduled", "rescheduled", "canceled"] {
        for kind in ["private", "group", "course"] {
            assert!(seen.contains(&(change, Some(kind))), "no example of a {kind} session {change}");
        }
    }
    assert!(seen.contains(&("canceled", None)), "no example of a cancel without details");
}

#[test]
fn invalid_examples_are_refused_for_the_reason_they_name() {
    for (name, path) in examples("invalid") {
        let expected = read_json(&path.with_extension("expect.json"));
        let value = read_json(&path);
        let refused = event::decode(&subject_of(&value), [STRUCTURED], &read(&path), PLACE)
            .expect_err(&format!("{name} has to be refused"));
        assert_eq!(refused.class, expected["class"], "{name}: {}", refused.reason);
        let field = expected["field"].as_str().unwrap();
        let names_field = refused.reason.split(' ').any(|word| word.trim_end_matches(':') == field);
        assert!(names_field || refused.reason.starts_with(field), "{name}: {field} is not named: {}", refused.reason);
        assert_is_a_sentence(&refused);
        assert!(refused.session.is_some(), "{name}");
        assert_eq!(SESSION_EVENT.is_valid(&value), expected["schemaRejects"] == false, "{name}: what the schema says");
    }
}

#[test]
fn sentences_of_the_invalid_examples() {
    let mut sentences = String::new();
    for (name, path) in examples("invalid") {
        let value = read_json(&path);
        let refused = event::decode(&subject_of(&value), [STRUCTURED], &read(&path), PLACE).unwrap_err();
        writeln!(sentences, "{name}: {}", refused.reason).unwrap();
    }
    insta::assert_snapshot!(sentences, @r#"
    301-attendees: data.attendees has 301 entries, but may have at most 300
    attendee-as-text: data.attendees[0] is a string, but has to be an object
    attendee-without-e-mail: data.attendees[0].email is missing or null; send an e-mail address
    attendees-as-object: data.attendees is an object, but has to be an array
    bad-event-time: time "22 Nov 2026" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    batch-of-events: the payload is an array, but has to be an object
    canceled-bad-start: data.startsAt "soon" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    canceled-end-before-start: data.endsAt 2026-12-01T08:00:00Z is not after data.startsAt 2026-12-01T09:00:00Z; send a later end
    canceled-title-as-number: data.title is 7, but has to be a string
    canceled-unknown-kind: data.kind is "trial", but has to be private, group or course
    canceled-without-teacher: data.teacherId is missing or null; send 1 to 64 characters of A-Z a-z 0-9 _ -
    data-as-array: data is an array, but has to be an object
    data-as-base64: data_base64 is not read; send the session as a JSON object in data
    data-as-text: data is a string, but has to be an object
    description-too-long: data.description has 8001 characters, but has to have 0 to 8000
    duplicate-version: data.version is there twice; send it once
    e-mail-too-long: data.attendees[0].email is not an address: one @ with something on either side, no spaces, at most 254 characters
    e-mail-with-space: data.attendees[0].email is not an address: one @ with something on either side, no spaces, at most 254 characters
    e-mail-with-two-ats: data.attendees[0].email is not an address: one @ with something on either side, no spaces, at most 254 characters
    e-mail-without-at: data.attendees[1].email is not an address: one @ with something on either side, no spaces, at most 254 characters
    end-before-start: data.endsAt 2026-12-01T08:00:00Z is not after data.startsAt 2026-12-01T09:00:00Z; send a later end
    end-equals-start: data.endsAt 2026-12-01T09:00:00Z is not after data.startsAt 2026-12-01T09:00:00Z; send a later end
    id-empty: id is "", but has to be 1 to 255 characters without NUL
    kind-in-capitals: data.kind is "PRIVATE", but has to be private, group or course
    missing-data: data is missing or null; send the whole session after the change as an object
    missing-id: id is missing or null; send the event's own id, 1 to 255 characters
    missing-teacher: data.teacherId is missing or null; send 1 to 64 characters of A-Z a-z 0-9 _ -
    missing-title: data.title is missing or null; send 1 to 1000 characters
    missing-version: data.version is missing or null; send the booking row's counter, a whole number from 1 to 9007199254740991
    null-title: data.title is missing or null; send 1 to 1000 characters
    session-id-as-number: data.sessionId is 1234, but has to be a string
    session-id-empty: data.sessionId "" is not a session id: 1 to 64 characters of A-Z a-z 0-9 _ -
    session-id-too-long: data.sessionId "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" is not a session id: 1 to 64 characters of A-Z a-z 0-9 _ -
    session-id-with-dot: data.sessionId "ses.8Kq2" is not a session id: 1 to 64 characters of A-Z a-z 0-9 _ -
    specversion-0.3: specversion is "0.3", but has to be "1.0"
    specversion-as-number: specversion is 1.0, but has to be a string
    start-as-epoch-milliseconds: data.startsAt is 1796115600000, but has to be a string
    start-in-words: data.startsAt "tomorrow at nine" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    start-on-february-30: data.startsAt "2026-02-30T09:00:00Z" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    start-without-offset: data.startsAt "2026-12-01T09:00:00" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    subject-is-another-session: subject "ses_other" is not data.sessionId ses_8Kq2; set both to the session's id
    teacher-id-not-ascii: data.teacherId "niño" is not a teacher id: 1 to 64 characters of A-Z a-z 0-9 _ -
    teacher-id-with-space: data.teacherId "tch 42" is not a teacher id: 1 to 64 characters of A-Z a-z 0-9 _ -
    time-zone-as-offset: data.timeZone "UTC+01:00" is not a time zone of the IANA database, such as Europe/Madrid
    title-as-number: data.title is 7, but has to be a string
    title-empty: data.title has 0 characters, but has to have 1 to 1000
    title-too-long: data.title has 1001 characters, but has to have 1 to 1000
    title-with-nul: data.title holds a NUL character (\u0000); leave it out
    type-of-a-later-version: type "bookings.SessionScheduled.v2" is not known here; send bookings.SessionScheduled.v1, bookings.SessionRescheduled.v1 or bookings.SessionCanceled.v1
    unknown-kind: data.kind is "trial", but has to be private, group or course
    unknown-time-zone: data.timeZone "Europe/Atlantis" is not a time zone of the IANA database, such as Europe/Madrid
    unknown-type: type "bookings.SessionCompleted.v1" is not known here; send bookings.SessionScheduled.v1, bookings.SessionRescheduled.v1 or bookings.SessionCanceled.v1
    url-of-another-scheme: data.url "javascript:alert(1)" is not a web address: https:// or http://, no spaces, at most 2048 characters
    url-without-host: data.url "https://:80" is not a web address: https:// or http://, no spaces, at most 2048 characters
    url-without-scheme: data.url "example.com/sessions/1" is not a web address: https:// or http://, no spaces, at most 2048 characters
    version-as-text: data.version is "1", but has to be a whole number from 1 to 9007199254740991
    version-beyond-64-bits: data.version is 1e+20, but has to be a whole number from 1 to 9007199254740991
    version-fraction: data.version is 1.5, but has to be a whole number from 1 to 9007199254740991
    version-negative: data.version is -1, but has to be a whole number from 1 to 9007199254740991
    version-too-large: data.version is 9007199254740992, but has to be a whole number from 1 to 9007199254740991
    version-zero: data.version is 0, but has to be a whole number from 1 to 9007199254740991
    "#);
}

/// The event without what a shape cannot carry.
fn meaning(event: &SessionEvent) -> SessionEvent {
    SessionEvent {
        event_id: String::new(),
        source: None,
        shape: Shape::Structured,
        occurred_at: None,
        traceparent: None,
        ..event.clone()
    }
}

/// Percent-encoding as the CloudEvents bindings ask for it: everything outside of printable ASCII, `"` and `%`.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'"' | b'%' | 0..=b' ' | 0x7f.. => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        })
        .collect()
}

#[test]
fn the_other_shapes_of_valid_examples_mean_the_same() {
    for (name, path) in examples("valid") {
        let value = read_json(&path);
        let subject = subject_of(&value);
        let expected = decode(&value).unwrap();
        let data = value["data"].to_string();

        let attributes: Vec<(String, String)> = ["specversion", "id", "source", "type", "subject", "time"]
            .into_iter()
            .filter_map(|name| Some((format!("CE-{name}"), percent_encoded(value[name].as_str()?))))
            .chain([("content-type".to_owned(), "application/json".to_owned())])
            .chain(value["traceparent"].as_str().map(|text| ("Traceparent".to_owned(), text.to_owned())))
            .collect();
        let headers = || attributes.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let binary = event::decode(&subject, headers(), data.as_bytes(), PLACE).unwrap();
        assert_eq!(binary, SessionEvent { shape: Shape::Binary, ..expected.clone() }, "{name}");

        let nest = json!({"pattern": subject, "data": value["data"]}).to_string();
        let nest = event::decode(&subject, [], nest.as_bytes(), PLACE).unwrap();
        assert_eq!((nest.shape, &*nest.event_id), (Shape::Nest, "1-17"), "{name}");
        assert_eq!(meaning(&nest), meaning(&expected), "{name}");

        let nest = json!({"pattern": subject, "data": value}).to_string();
        let nest = event::decode(&subject, [], nest.as_bytes(), PLACE).unwrap();
        assert_eq!(nest, SessionEvent { shape: Shape::Nest, ..expected.clone() }, "{name}");

        let bare = event::decode(&subject, [("Nats-Msg-Id", "row-7")], data.as_bytes(), PLACE).unwrap();
        assert_eq!((bare.shape, &*bare.event_id, &bare.source), (Shape::Bare, "row-7", &None), "{name}");
        assert_eq!(meaning(&bare), meaning(&expected), "{name}");
    }
}

#[test]
fn what_the_schemas_require_the_decoder_requires() {
    let by_type = [
        ("session-scheduled.schema.json", "private-scheduled"),
        ("session-rescheduled.schema.json", "group-rescheduled"),
        ("session-canceled.schema.json", "course-canceled"),
    ];
    for (file, example) in by_type {
        let value = read_json(&folder().join("examples/valid").join(format!("{example}.json")));
        let required = |file: &str| -> BTreeSet<String> {
            let schema = read_json(&folder().join(file));
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        for (pointer, required, prefix) in
            [("", required("envelope.schema.json"), ""), ("/data", required(file), "data.")]
        {
            let object = value.pointer(pointer).unwrap().as_object().unwrap();
            for name in object.keys() {
                let mut without = value.clone();
                without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(name);
                let subject = subject_of(&value);
                let decoded = event::decode(&subject, [STRUCTURED], without.to_string().as_bytes(), PLACE);
                assert_eq!(SESSION_EVENT.is_valid(&without), !required.contains(name), "{file}: {prefix}{name}");
                match decoded {
                    Err(refused) => {
                        assert!(required.contains(name), "{file} lacks {prefix}{name}: {}", refused.reason);
                        assert_eq!(refused.class, "missing_field");
                        assert!(
                            refused.reason.starts_with(&format!("{prefix}{name} is missing")),
                            "{}",
                            refused.reason
                        );
                    }
                    Ok(_) => assert!(!required.contains(name), "{file} requires {prefix}{name}, the decoder does not"),
                }
            }
            let absent: Vec<_> = required.iter().filter(|name| !object.contains_key(*name)).collect();
            assert!(absent.is_empty(), "{example} does not hold {absent:?}, so they were not tried");
        }
    }
}

#[test]
fn every_time_zone_that_is_known_keeps_the_schema() {
    let mut value = read_json(&folder().join("examples/valid/private-scheduled.json"));
    let zones = validator("common.schema.json#/$defs/timeZone");
    for zone in chrono_tz::TZ_VARIANTS {
        assert!(zones.is_valid(&json!(zone.name())), "{zone}");
    }
    value["data"]["timeZone"] = json!(chrono_tz::TZ_VARIANTS[7].name());
    assert!(decode(&value).is_ok());
}

#[test]
fn results_keep_their_schema() {
    let status_event = validator("status-event.schema.json");
    for (name, path) in examples("status") {
        let value = read_json(&path);
        if let Some(error) = status_event.iter_errors(&value).next() {
            panic!("{name}: {error} at {}", error.instance_path());
        }
        assert!(!SESSION_EVENT.is_valid(&value), "{name} is not a booking event");
        let document = value["data"].as_object().unwrap();
        for field in document.keys() {
            let mut without = value.clone();
            without["data"].as_object_mut().unwrap().remove(field);
            assert!(
                !status_event.is_valid(&without),
                "{name}: every field is there, null rather than missing: {field}"
            );
        }
    }
    let schema = read_json(&folder().join("status-changed.schema.json"));
    let codes: Vec<_> = Code::WORDS.iter().map(|(_, word)| json!(word)).collect();
    assert_eq!(schema["$defs"]["error"]["properties"]["code"]["examples"], Value::Array(codes));
}

#[test]
fn teachers_statuses_keep_their_schema() {
    let event = validator("teacher-status-event.schema.json");
    for (name, path) in examples("teacher") {
        let value = read_json(&path);
        if let Some(error) = event.iter_errors(&value).next() {
            panic!("{name}: {error} at {}", error.instance_path());
        }
        for field in value["data"].as_object().unwrap().keys() {
            let mut without = value.clone();
            without["data"].as_object_mut().unwrap().remove(field);
            assert!(!event.is_valid(&without), "{name}: every field is there: {field}");
        }
    }
    let properties = &read_json(&folder().join("teacher-status-changed.schema.json"))["properties"];
    let words: Vec<_> = TokenStatus::WORDS.iter().map(|(_, word)| json!(word)).collect();
    assert_eq!(properties["tokenStatus"]["enum"], Value::Array(words));
    let words: Vec<_> = token_statuses().map(|word| json!(word)).collect();
    assert_eq!(properties["previousTokenStatus"]["enum"], Value::Array(words));
    let asyncapi: Value =
        serde_norway::from_str(&String::from_utf8(read(&folder().join("asyncapi.yaml"))).unwrap()).unwrap();
    let subjects: Vec<_> = TokenStatus::WORDS.iter().map(|(_, word)| json!(word.to_lowercase())).collect();
    assert_eq!(asyncapi["channels"]["meetTeachers"]["parameters"]["status"]["enum"], Value::Array(subjects));
    let example = &asyncapi["components"]["messages"]["TeacherStatusChanged"]["examples"][0]["payload"];
    assert_eq!(*example, read_json(&folder().join("examples/teacher/reconnect-required.json")));
}

#[test]
fn what_the_service_says_of_a_session_keeps_the_schema() {
    let schema = validator("status-changed.schema.json");
    let mut document = Document {
        session: SessionId::parse("ses_1").unwrap(),
        meet_status: MeetStatus::Canceled,
        meet_link: None,
        meet_event_id: None,
        teacher: TeacherId::parse("tch_1").unwrap(),
        kind: None,
        starts_at: None,
        ends_at: None,
        version: 1,
        up_to_date: false,
        error: None,
    };
    let check = |document: &Document| {
        let value: Value = serde_json::from_str(&to_json(document, UnixMillis::new(1_795_000_000_123))).unwrap();
        if let Some(error) = schema.iter_errors(&value).next() {
            panic!("{error} at {} of {value}", error.instance_path());
        }
        let names: BTreeSet<_> = value.as_object().unwrap().keys().cloned().collect();
        let known = read_json(&folder().join("status-changed.schema.json"));
        assert_eq!(names, known["properties"].as_object().unwrap().keys().cloned().collect(), "fields of the schema");
    };
    check(&document);

    document.meet_link = Some(MeetLink::parse("https://meet.google.com/abc-defg-hij").unwrap());
    document.meet_event_id =
        Some(EventId::derive("test", &document.session, &GoogleSub("1".into()), 0).as_str().to_owned());
    document.kind = Some(Kind::Course);
    document.starts_at = Some(UnixMillis::new(1_796_000_000_000));
    document.ends_at = Some(UnixMillis::new(1_796_000_000_250));
    for (status, _) in MeetStatus::WORDS {
        check(&Document { meet_status: status, ..document.clone() });
    }
    for (code, _) in Code::WORDS {
        for (action, next_attempt_at) in [("wait", Some(UnixMillis::new(1_795_000_060_000))), ("contact_admin", None)] {
            let since = UnixMillis::new(1_795_000_000_000);
            let message = "what happened".to_owned();
            let error = DocumentError { code, message, action, retryable: true, since, attempts: 3, next_attempt_at };
            check(&Document { meet_status: MeetStatus::Error, error: Some(error), ..document.clone() });
        }
    }
}

#[test]
fn asyncapi_speaks_of_what_is_there() {
    let text = String::from_utf8(read(&folder().join("asyncapi.yaml"))).unwrap();
    let document: Value = serde_norway::from_str(&text).unwrap();
    assert_eq!(document["asyncapi"], "3.0.0");
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    let mut files = BTreeSet::new();
    for reference in references {
        if let Some(pointer) = reference.strip_prefix('#') {
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        } else {
            assert!(folder().join(&reference).is_file(), "{reference} is not a file");
            files.insert(reference);
        }
    }
    assert!(files.len() >= 5, "{files:?}");

    let changes = &document["channels"]["bookings"]["parameters"]["change"]["enum"];
    assert_eq!(*changes, json!(["scheduled", "rescheduled", "canceled"]));
    let names: BTreeSet<_> =
        document["components"]["messages"].as_object().unwrap().values().map(|m| m["name"].as_str().unwrap()).collect();
    for change in [Change::Scheduled, Change::Rescheduled, Change::Canceled] {
        assert!(names.contains(change.type_name()), "{change:?}");
    }
    assert_eq!(meet_projector::cli::event::ASYNCAPI, text);
}

fn collect_references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str() {
                    Some(text) if name == "$ref" => into.push(text.to_owned()),
                    _ => collect_references(field, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, into)),
        _ => {}
    }
}

// ------------------------------------------------------------------------------------------------------------ generated

fn any_text(characters: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = String> {
    let character = any::<char>().prop_filter("PostgreSQL holds no NUL", |c| *c != '\0');
    prop::collection::vec(character, characters).prop_map(String::from_iter)
}

fn any_attendee() -> impl Strategy<Value = Attendee> {
    ("[a-z0-9.+é]{1,40}@[a-z0-9-]{1,40}[.]com", prop::option::of(any_text(1..=40)))
        .prop_map(|(email, display_name)| Attendee { email, display_name })
}

fn any_details() -> impl Strategy<Value = Details> {
    (
        prop::sample::select(vec![Kind::Private, Kind::Group, Kind::Course]),
        any_text(1..=80),
        prop::option::of(any_text(1..=300)),
        // Years 1970 to 2100: RFC 3339 ends with the year 9999.
        (0_i64..4_102_444_800_000, 1_i64..10_000_000_000),
        prop::sample::select(chrono_tz::TZ_VARIANTS.to_vec()),
        prop::collection::vec(any_attendee(), 0..6),
        prop::option::of("https?://[a-z]{1,20}[.]example/[a-zA-Z0-9/?&=#-]{0,60}"),
    )
        .prop_map(|(kind, title, description, (starts, lasts), zone, attendees, url)| Details {
            kind,
            title,
            description,
            starts_at: UnixMillis::new(starts),
            ends_at: UnixMillis::new(starts + lasts),
            time_zone: TimeZone::parse(zone.name()).unwrap(),
            attendees,
            url,
        })
}

prop_compose! {
    fn any_event()(
        event_id in any_text(1..=60),
        source in any_text(1..=60),
        change in prop::sample::select(vec![Change::Scheduled, Change::Rescheduled, Change::Canceled]),
        session in "[A-Za-z0-9_-]{1,64}",
        version in 1..=SessionVersion::MAX,
        teacher in "[A-Za-z0-9_-]{1,64}",
        details in any_details(),
        without_details in any::<bool>(),
        occurred_at in prop::option::of(0_i64..4_102_444_800_000),
        trace in prop::option::of("00-[1-9a-f][0-9a-f]{31}-[1-9a-f][0-9a-f]{15}-0[01]"),
    ) -> SessionEvent {
        SessionEvent {
            event_id,
            source: Some(source),
            shape: Shape::Structured,
            change,
            session: SessionId::parse(session).unwrap(),
            version: SessionVersion::new(version).unwrap(),
            teacher: TeacherId::parse(teacher).unwrap(),
            details: (change != Change::Canceled || !without_details).then_some(details),
            occurred_at: occurred_at.map(UnixMillis::new),
            traceparent: trace,
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any_text(0..=12).prop_map(Value::from),
        prop::sample::select(vec!["", "1.0", "private", "2026-12-01T09:00:00Z", "Europe/Madrid", "ses_8Kq2", "a@b"])
            .prop_map(Value::from),
        prop::sample::select(vec![0_u64, 1, (1 << 53) - 1, 1 << 53, u64::MAX]).prop_map(Value::from),
        prop::sample::select(vec![1.0_f64, 1.5, -0.0, 9.0e15, 1e300]).prop_map(Value::from),
    ];
    let name = prop::sample::select(vec![
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "data",
        "pattern",
        "sessionId",
        "version",
        "teacherId",
        "kind",
        "attendees",
        "email",
        "other",
    ]);
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(String::from), inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// JSON pointers to every value inside.
fn pointers(value: &Value, at: String, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                pointers(field, format!("{at}/{name}"), into);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers(item, format!("{at}/{index}"), into);
            }
        }
        _ => {}
    }
    into.push(at);
}

static VALID: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let mut values: Vec<Value> = examples("valid").iter().map(|(_, path)| read_json(path)).collect();
    values.retain(|value| value["data"]["attendees"].as_array().is_none_or(|people| people.len() < 10));
    values
});

/// Reads the bytes as any shape; whatever comes out is an event or a sentence.
fn decode_all_ways(payload: &[u8]) -> Vec<Result<SessionEvent, Refused>> {
    let header_sets: [&[(&str, &str)]; 3] = [
        &[],
        &[STRUCTURED],
        &[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "SessionScheduled")],
    ];
    let results: Vec<_> = header_sets
        .into_iter()
        .map(|headers| event::decode("bookings.session.s.scheduled", headers.iter().copied(), payload, PLACE))
        .collect();
    results.iter().filter_map(|result| result.as_ref().err()).for_each(assert_is_a_sentence);
    results
}

proptest! {
    #[test]
    fn an_encoded_event_keeps_the_schema_and_decodes_to_itself(event in any_event()) {
        let value = event::encode(&event);
        if let Some(error) = SESSION_EVENT.iter_errors(&value).next() {
            panic!("{error} at {}", error.instance_path());
        }
        let subject = event::subject(&event);
        let payload = value.to_string();
        prop_assert_eq!(&event::decode(&subject, [STRUCTURED], payload.as_bytes(), PLACE).unwrap(), &event);
        prop_assert_eq!(&event::decode(&subject, [], payload.as_bytes(), PLACE).unwrap(), &event);
    }

    #[test]
    fn any_bytes_give_an_event_or_a_sentence(payload in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_all_ways(&payload);
    }

    #[test]
    fn any_json_gives_an_event_or_a_sentence(value in any_json()) {
        decode_all_ways(value.to_string().as_bytes());
    }

    #[test]
    fn any_subject_and_headers_give_an_event_or_a_sentence(
        subject in any_text(0..=300),
        names in prop::collection::vec((prop::sample::select(vec![
            "ce-specversion", "ce-id", "ce-type", "CE-Type", "ce-source", "ce-time", "Content-Type", "nats-msg-id", "traceparent",
        ]), any_text(0..=90)), 0..6),
        example in 0..VALID.len(),
    ) {
        let headers = names.iter().map(|(name, value)| (*name, value.as_str()));
        let subjects = [subject, subject_of(&VALID[example])];
        for subject in subjects {
            if let Err(refused) = event::decode(&subject, headers.clone(), VALID[example].to_string().as_bytes(), PLACE) {
                assert_is_a_sentence(&refused);
            }
        }
    }

    /// The schema is never stricter than the decoder.
    #[test]
    fn what_decodes_keeps_the_schema(example in 0..VALID.len(), pick in any::<prop::sample::Index>(), new in any_json()) {
        let mut value = VALID[example].clone();
        let mut places = Vec::new();
        pointers(&value, String::new(), &mut places);
        *value.pointer_mut(pick.get::<String>(&places)).unwrap() = new;
        match decode(&value) {
            Ok(_) => prop_assert!(SESSION_EVENT.is_valid(&value), "the schema refuses {value}"),
            Err(refused) => assert_is_a_sentence(&refused),
        }
    }

    #[test]
    fn cut_or_flipped_bytes_give_an_event_or_a_sentence(
        example in 0..VALID.len(),
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let whole = VALID[example].to_string().into_bytes();
        let cut = cut.index(whole.len());
        for result in decode_all_ways(&whole[..cut]) {
            prop_assert!(result.is_err(), "{cut} of {} bytes were taken for an event", whole.len());
        }
        let mut flipped = whole;
        for (at, byte) in flips {
            let at = at.index(flipped.len());
            flipped[at] = byte;
        }
        decode_all_ways(&flipped);
    }
}
