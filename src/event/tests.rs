//! What cannot stand as an example file: bytes that are no JSON, headers, subjects, sizes.

use super::*;
use crate::model::Epoch;

const PLACE: Place = Place { epoch: Epoch(3), sequence: 41 };
const SUBJECT: &str = "bookings.session.ses_1.scheduled";
const DATA: &str = r#"{"sessionId":"ses_1","version":2,"kind":"group","teacherId":"t","title":"T",
    "startsAt":"2026-12-01T09:00:00Z","endsAt":"2026-12-01T10:00:00Z","timeZone":"Europe/Madrid"}"#;
const CE: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "e1"),
    ("ce-source", "/services/bookings"),
    ("ce-type", "bookings.SessionScheduled.v1"),
];
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn bare(payload: impl AsRef<[u8]>) -> Result<SessionEvent, Refused> {
    decode(SUBJECT, [], payload.as_ref(), PLACE)
}

/// `class: reason` of a payload without headers.
fn refusal(payload: impl AsRef<[u8]>) -> String {
    let refused = bare(payload).unwrap_err();
    assert_eq!(refused.session, SessionId::parse("ses_1").ok());
    format!("{}: {}", refused.class, refused.reason)
}

fn with_headers(headers: &[(&str, &str)]) -> Result<SessionEvent, String> {
    decode(SUBJECT, headers.iter().copied(), DATA.as_bytes(), PLACE)
        .map_err(|refused| format!("{}: {}", refused.class, refused.reason))
}

#[test]
fn bytes_that_are_no_json_get_a_sentence() {
    let sentences = [
        refusal(""),
        refusal(" \n"),
        refusal([0x1f, 0x8b, 0x08, 0x00]),
        refusal("hello"),
        refusal(&DATA[..100]),
        refusal(format!("{DATA} trailing")),
        refusal("\u{feff}{}"),
        refusal(r#"{"sessionId":"\ud800"}"#),
        refusal(r#"{"sessionId":"ses_1","version":1e999}"#),
    ];
    insta::assert_snapshot!(sentences.join("\n"), @"
    empty: the payload is empty; send the event as JSON
    empty: the payload is empty; send the event as JSON
    not_utf8: the payload stops being UTF-8 at byte 1; send JSON text, neither compressed nor binary
    not_json: the payload is not JSON: expected value at line 1 column 1, inside the payload; send valid JSON
    not_json: the payload is JSON that ends too early, after 100 bytes inside startsAt; send all of it
    not_json: the payload is not JSON: trailing characters at line 2 column 99, inside the payload; send valid JSON
    not_json: the payload is not JSON: expected value at line 1 column 1, inside the payload; send valid JSON
    not_json: the payload is not JSON: unexpected end of hex escape at line 1 column 21, inside sessionId; send valid JSON
    bad_value: version is a number too large to be read; send the booking row's counter, a whole number from 1 to 9007199254740991
    ");
}

#[test]
fn json_of_no_known_shape_gets_a_sentence() {
    let sentences = [
        refusal("{}"),
        refusal("null"),
        refusal("[[]]"),
        refusal("\"text\""),
        refusal(r#"{"pattern":"x","data":{}}"#),
        refusal(r#"{"pattern":"x","data":7}"#),
        refusal(r#"{"pattern":"x","data":null}"#),
        refusal(r#"{"pattern":{"cmd":"x"},"data":{"specversion":"1.0","id":"1"}}"#),
        refusal(r#"{"pattern":"x","data":{"pattern":"x","data":{}}}"#),
        refusal(r#"{"pattern":"x","data":{},"id":"1"}"#),
    ];
    insta::assert_snapshot!(sentences.join("\n"), @"
    unknown_shape: the payload is neither a CloudEvent (specversion is missing) nor a session (sessionId is missing); send a structured CloudEvent as in schemas/session-event.schema.json
    wrong_type: the payload is JSON, but has to be a JSON object
    wrong_type: the payload is JSON, but has to be a JSON object
    wrong_type: the payload is JSON, but has to be a JSON object
    missing_field: data.sessionId is missing or null; send 1 to 64 characters of A-Z a-z 0-9 _ -
    wrong_type: data is 7, but has to be an object
    missing_field: data is missing or null; send the whole session after the change as an object
    missing_field: data.source is missing or null; send the publisher's name, such as /services/bookings
    missing_field: data.sessionId is missing or null; send 1 to 64 characters of A-Z a-z 0-9 _ -
    unknown_shape: the payload is neither a CloudEvent (specversion is missing) nor a session (sessionId is missing); send a structured CloudEvent as in schemas/session-event.schema.json
    ");
}

#[test]
fn payloads_are_bounded_in_size_and_depth() {
    let sized = |bytes: usize| {
        let empty = DATA.replacen('{', r#"{"x":"","#, 1);
        DATA.replacen('{', &format!(r#"{{"x":"{}","#, "y".repeat(bytes - empty.len())), 1)
    };
    assert_eq!(sized(PAYLOAD_BYTES_MAX).len(), PAYLOAD_BYTES_MAX);
    assert!(bare(sized(PAYLOAD_BYTES_MAX)).is_ok());
    insta::assert_snapshot!(refusal(sized(PAYLOAD_BYTES_MAX + 1)), @"oversized: the payload has 524289 bytes, but at most 524288 are read; send a shorter description or fewer extra fields");

    let nested = |levels: usize| {
        DATA.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(levels - 1), "]".repeat(levels - 1)), 1)
    };
    assert!(bare(nested(DEPTH_MAX)).is_ok());
    assert!(serde_json::from_str::<serde_json::Value>(&nested(DEPTH_MAX)).is_ok());
    insta::assert_snapshot!(refusal(nested(DEPTH_MAX + 1)), @"too_deep: the payload nests objects or arrays more than 127 deep; send flat fields");
    insta::assert_snapshot!(refusal("[".repeat(400_000)), @"too_deep: the payload nests objects or arrays more than 127 deep; send flat fields");
    // Brackets in texts are not nesting.
    assert!(bare(DATA.replace("\"T\"", &format!("\"{}\\\"\"", "[".repeat(500)))).is_ok());
}

#[test]
fn sentences_stay_short_and_printable_whatever_was_sent() {
    for text in
        ["x".repeat(100_000), "\u{1}\u{202e}".repeat(5000), "\u{10ffff}".repeat(5000), "\", expected ".repeat(50)]
    {
        let text = serde_json::Value::from(text).to_string();
        for field in ["\"group\"", "\"T\"", "2", "\"ses_1\"", "\"Europe/Madrid\"", "\"2026-12-01T09:00:00Z\""] {
            let Err(refused) = bare(DATA.replacen(field, &text, 1)) else { continue };
            assert!(refused.reason.chars().count() <= 400, "{}", refused.reason);
            assert!(!refused.reason.contains(char::is_control), "{}", refused.reason);
        }
    }
    insta::assert_snapshot!(refusal(DATA.replace("\"group\"", &format!("\"{}\"", "k".repeat(200)))), @r#"unknown_kind: kind is "kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…", but has to be private, group or course"#);
    insta::assert_snapshot!(refusal(DATA.replace("\"version\":2", r#""version":"2, expected \"x\"""#)), @r#"wrong_type: version is "2, expected \"x\"", but has to be a whole number from 1 to 9007199254740991"#);
}

#[test]
fn subject_and_body_must_name_the_same() {
    let of = |subject: &str| {
        let refused = decode(subject, CE, DATA.as_bytes(), PLACE).unwrap_err();
        format!("{:?} {}: {}", refused.session.map(|id| id.to_string()), refused.class, refused.reason)
    };
    let sentences = [
        of("bookings.session.other.scheduled"),
        of("bookings.session.ses_1.canceled"),
        of("bookings.session.ses_1.completed"),
        of("bookings.session.a b.scheduled"),
        of("bookings"),
        of(""),
        of(&"x".repeat(3000)),
    ];
    insta::assert_snapshot!(sentences.join("\n"), @r#"
    Some("other") session_mismatch: sessionId ses_1 is not the session of the subject "bookings.session.other.scheduled"; publish every event under its own session
    Some("ses_1") change_mismatch: header ce-type bookings.SessionScheduled.v1 does not go with the subject "bookings.session.ses_1.canceled"; publish it on a subject that ends in scheduled
    Some("ses_1") bad_subject: the subject "bookings.session.ses_1.completed" ends in "completed", but has to end in scheduled, rescheduled or canceled
    Some("ses_1") bad_subject: the subject "bookings.session.a b.scheduled" has "a b" for a session id, which takes 1 to 64 characters of A-Z a-z 0-9 _ -
    Some("ses_1") bad_subject: the subject "bookings" has to end in the session id and scheduled, rescheduled or canceled
    Some("ses_1") bad_subject: the subject "" has to end in the session id and scheduled, rescheduled or canceled
    Some("ses_1") bad_subject: the subject "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…" has to end in the session id and scheduled, rescheduled or canceled
    "#);
    assert!(decode("school.eu.v3.ses_1.scheduled", CE, DATA.as_bytes(), PLACE).is_ok());
    assert!(decode("ses_1.scheduled", CE, DATA.as_bytes(), PLACE).is_ok());
}

#[test]
fn binary_mode_reads_its_headers_without_case_and_percent_decoded() {
    let event = with_headers(&[
        ("CE-SpecVersion", "1.0"),
        ("Ce-Id", "caf%C3%A9 100%"),
        ("ce-source", "/services/bookings%20%22x%22"),
        ("CE-TYPE", "SessionScheduled"),
        ("ce-subject", "ses%5F1"),
        ("ce-time", "2026-11-22T20:15:04.211Z"),
        ("content-type", "application/json"),
        ("ce-traceparent", TRACE),
        ("Nats-Msg-Id", "not this one"),
    ])
    .unwrap();
    assert_eq!(event.shape, Shape::Binary);
    assert_eq!(event.event_id, "café 100%");
    assert_eq!(event.source.as_deref(), Some("/services/bookings \"x\""));
    assert_eq!(event.occurred_at, UnixMillis::parse_rfc3339("2026-11-22T20:15:04.211Z").ok());
    assert_eq!(event.traceparent.as_deref(), Some(TRACE));

    let sentences = [
        &[("ce-specversion", "1.0")][..],
        &[("ce-specversion", "2.0")],
        &[CE[0], CE[1], CE[2], ("ce-type", "x%0Ay")],
        &[CE[0], ("ce-id", "%ff"), CE[2], CE[3]],
        &[CE[0], CE[1], ("CE-Id", "e2"), CE[2], CE[3]],
        &[CE[0], CE[1], CE[2], CE[3], ("ce-subject", "ses_2")],
        &[CE[0], CE[1], CE[2], CE[3], ("ce-time", "now")],
        &[("ce-specversion", "1.0"), ("Content-Type", "Application/CloudEvents+JSON; charset=utf-8")],
    ]
    .map(|headers| with_headers(headers).unwrap_err());
    insta::assert_snapshot!(sentences.join("\n"), @r#"
    missing_field: header ce-id is missing; send the event's own id, 1 to 255 characters
    unsupported_specversion: header ce-specversion is "2.0", but has to be "1.0"
    unknown_type: header ce-type "x\u{a}y" is not known here; send bookings.SessionScheduled.v1, bookings.SessionRescheduled.v1 or bookings.SessionCanceled.v1
    bad_value: header ce-id is not UTF-8 once percent-decoded; percent-encode UTF-8
    duplicate_field: header ce-id is there twice with different values; send it once
    session_mismatch: header ce-subject "ses_2" is not sessionId ses_1; set both to the session's id
    bad_value: header ce-time "now" is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z
    missing_field: specversion is missing or null; send "1.0"
    "#);
    assert!(with_headers(&[CE[0], CE[1], ("CE-Id", "e1"), CE[2], CE[3]]).is_ok(), "twice the same is one");
}

#[test]
fn a_structured_event_is_known_by_its_content_or_its_content_type() {
    let envelope = format!(
        r#"{{"specversion":"1.0","id":"e1","source":"/s","type":"SessionScheduled","traceparent":"{TRACE}","data":{DATA}}}"#
    );
    let other_trace = TRACE.replace('4', "5");
    for headers in [&[][..], &[("Content-Type", "application/json")], &[("Content-Type", "application/cloudevents")]] {
        let headers = headers.iter().copied().chain([("traceparent", &*other_trace)]);
        let event = decode(SUBJECT, headers, envelope.as_bytes(), PLACE).unwrap();
        assert_eq!((event.shape, &*event.event_id), (Shape::Structured, "e1"));
        assert_eq!(event.traceparent.as_deref(), Some(TRACE), "the event's own goes before the hop's");
    }
    let without = envelope.replace(TRACE, "nonsense").replace("traceparent", "other");
    let event = decode(SUBJECT, [("Traceparent", &*other_trace)], without.as_bytes(), PLACE).unwrap();
    assert_eq!(event.traceparent, Some(other_trace));
}

#[test]
fn a_bare_event_is_typed_by_its_subject_and_named_by_its_place() {
    let event = decode("b.s.ses_1.rescheduled", [], DATA.as_bytes(), PLACE).unwrap();
    assert_eq!((event.shape, event.change, &*event.event_id), (Shape::Bare, Change::Rescheduled, "3-41"));
    let too_long = "x".repeat(256);
    let event = decode(SUBJECT, [("nats-msg-id", &*too_long)], DATA.as_bytes(), PLACE).unwrap();
    assert_eq!(event.event_id, "3-41");
    let event = decode(SUBJECT, [("nats-msg-id", "row-1")], DATA.as_bytes(), PLACE).unwrap();
    assert_eq!(event.event_id, "row-1");
}

#[test]
fn headers_of_async_nats_read_the_same() {
    let mut map = async_nats::HeaderMap::new();
    for (name, value) in CE {
        map.insert(name, value);
    }
    let event = decode(SUBJECT, pairs(Some(&map)), DATA.as_bytes(), PLACE).unwrap();
    assert_eq!(Ok(event), with_headers(&CE));
    assert_eq!(pairs(None).count(), 0);
}

#[test]
fn trace_contexts_are_kept_when_they_are_well_formed() {
    let good = [TRACE.to_owned(), format!("cc{}", &TRACE[2..]), format!("cc{}-more", &TRACE[2..])];
    let bad = [
        String::new(),
        TRACE[..54].to_owned(),
        format!("{TRACE}-more"),
        format!("cc{}more", &TRACE[2..]),
        format!("ff{}", &TRACE[2..]),
        TRACE.to_uppercase(),
        TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        TRACE.replace("00f067aa0ba902b7", &"0".repeat(16)),
        TRACE.replace('-', "_"),
        "é".repeat(28),
    ];
    assert_eq!(good.iter().filter(|text| headers::is_traceparent(text)).count(), good.len());
    assert_eq!(bad.iter().filter(|text| headers::is_traceparent(text)).count(), 0);
    let event = with_headers(&[("traceparent", "nonsense")]).unwrap();
    assert_eq!(event.traceparent, None);
}

#[test]
fn a_cancel_has_details_only_when_all_are_there() {
    let cancel = |data: &str| decode("b.s.ses_1.canceled", [], data.as_bytes(), PLACE);
    let whole = bare(DATA).unwrap().details;
    assert!(whole.is_some());
    assert_eq!(cancel(DATA).unwrap().details, whole);
    for field in ["kind", "title", "startsAt", "endsAt", "timeZone"] {
        assert_eq!(cancel(&DATA.replace(field, "other")).unwrap().details, None, "without {field}");
        assert!(bare(DATA.replace(field, "other")).is_err(), "without {field}");
    }
    assert!(cancel(&DATA.replace("\"T\"", "7").replace("kind", "other")).is_err());
    assert!(cancel(&DATA.replace("T10:", "T08:").replace("kind", "other")).is_err());
}

#[test]
fn whole_numbers_are_versions_however_they_are_written() {
    let version = |text: &str| bare(DATA.replace("\"version\":2", &format!("\"version\":{text}")));
    for (text, number) in [("2.0", 2), ("3e2", 300), ("9007199254740991.0", SessionVersion::MAX)] {
        assert_eq!(version(text).unwrap().version.get(), number);
    }
    for text in ["0", "-0.0", "1.5", "9007199254740992", "9007199254740992.0", "1e300", "true", "\"2\"", "null", "[2]"]
    {
        assert!(version(text).unwrap_err().reason.contains("version"), "{text}");
    }
}

#[test]
fn subjects_follow_the_filter() {
    let event = bare(DATA).unwrap();
    assert_eq!(subject(&event), SUBJECT);
    assert_eq!(subject_under("school.eu.*.*", &event), "school.eu.ses_1.scheduled");
    assert_eq!(subject_under("*.*", &event), "ses_1.scheduled");
}
