//! One session, one event, and ways to call.

use std::time::Duration;

use meet_projector::config::SendUpdates;
use meet_projector::google::calendar::{CalendarClient, Target, http_client};
use meet_projector::google::error::GoogleError;
use meet_projector::google::{Answer, Call, RemoteEvent, Wanted};
use meet_projector::model::{Attendee, EventId, GoogleSub, SessionId, UnixMillis};
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use wiremock::MockServer;

/// Stands in every secret; must show nowhere.
pub const MARKER: &str = "MARKER";
/// A calendar whose id has to be percent-encoded, and is an address.
pub const CALENDAR: &str = "ana/b?c@example.com";

/// A moment of 2026-12-01, UTC.
pub fn at(time: &str) -> UnixMillis {
    UnixMillis::parse_rfc3339(&format!("2026-12-01T{time}Z")).unwrap()
}

pub fn session() -> SessionId {
    SessionId::parse("ses_8Kq2").unwrap()
}

pub fn event_id() -> EventId {
    EventId::derive("test", &session(), &GoogleSub("1001".into()), 0)
}

/// What the event should look like, without guests.
pub fn wanted() -> Wanted {
    Wanted {
        id: event_id(),
        session: "ses_8Kq2".into(),
        environment: "test".into(),
        generation: 0,
        title: "Piano with Ana".into(),
        description: Some("Bring the score.".into()),
        starts_at: at("09:00:00"),
        ends_at: at("10:00:00"),
        time_zone: "Europe/Madrid",
        url: Some("https://example.com/sessions/ses_8Kq2".into()),
        attendees: None,
        hash: "c0ffee".into(),
    }
}

pub fn guest(email: &str) -> Attendee {
    Attendee { email: email.into(), display_name: None }
}

/// The event as Google returns it once it is as [`wanted`].
pub fn resource() -> Value {
    json!({
        "kind": "calendar#event", "id": event_id().as_str(), "status": "confirmed", "etag": "\"1\"", "sequence": 3,
        "iCalUID": "uid@google.com", "summary": "Piano with Ana", "description": "Bring the score.",
        "start": {"dateTime": "2026-12-01T10:00:00+01:00", "timeZone": "Europe/Madrid"},
        "end": {"dateTime": "2026-12-01T11:00:00+01:00", "timeZone": "Europe/Madrid"},
        "source": {"title": "Piano with Ana", "url": "https://example.com/sessions/ses_8Kq2"},
        "extendedProperties": {"private":
            {"mpV": "1", "mpEnv": "test", "mpSession": "ses_8Kq2", "mpKey": "0", "mpHash": "c0ffee"}},
        "reminders": {"useDefault": true},
        "hangoutLink": "https://meet.google.com/abc-defg-hij",
        "conferenceData": {
            "conferenceSolution": {"key": {"type": "hangoutsMeet"}}, "conferenceId": "abc-defg-hij",
            "entryPoints": [{"entryPointType": "video", "uri": "https://meet.google.com/abc-defg-hij"}],
        },
    })
}

/// [`resource`] with some members replaced.
pub fn resource_with(changes: Value) -> Value {
    let (mut resource, Value::Object(changes)) = (resource(), changes) else { panic!("changes are an object") };
    resource.as_object_mut().unwrap().extend(changes);
    resource
}

/// Google's error in the old form.
pub fn error_body(status: u16, reason: &str, message: &str) -> Value {
    let item = json!({"domain": "global", "reason": reason, "message": message});
    json!({"error": {"errors": [item], "code": status, "message": message}})
}

/// A client of the API at `root`; it would mail everybody, so that silence is always on purpose.
pub fn client(root: &str) -> CalendarClient {
    CalendarClient::new(http_client(), format!("{root}/calendar/v3/").parse().unwrap(), SendUpdates::All)
}

/// One call with a token that must not show, and time enough that only a server that never answers uses it up.
pub async fn call_at(
    root: &str,
    call: &Call,
    wanted: Option<&Wanted>,
    timeout: Duration,
) -> Result<Answer, GoogleError> {
    let (session, event_id) = (session(), event_id());
    let target = Target { calendar: CALENDAR, event_id: &event_id, session: &session };
    let token = SecretString::from(format!("ya29.{MARKER}"));
    client(root).call(&token, target, call, wanted, timeout).await
}

/// [`call_at`] a mock server, with [`wanted`].
pub async fn call(server: &MockServer, call: &Call) -> Result<Answer, GoogleError> {
    call_at(&server.uri(), call, Some(&wanted()), Duration::from_secs(20)).await
}

/// The event of an answer.
pub fn event_of(answer: Result<Answer, GoogleError>) -> RemoteEvent {
    match answer {
        Ok(Answer::Event(event)) => *event,
        other => panic!("an event was expected, not {other:?}"),
    }
}

/// All writes, each as it would be called.
pub fn writes() -> [Call; 5] {
    let etag = || "\"1\"".to_owned();
    [
        Call::Insert { conference_request: Some("req1".into()) },
        Call::Patch { etag: etag() },
        Call::AddConference { etag: etag(), conference_request: "req1".into() },
        Call::Restore,
        Call::Delete,
    ]
}

/// What a broken server does with every connection after it has read a request.
#[derive(Debug, Clone, Copy)]
pub enum Break {
    /// Never answers.
    Silent,
    /// Closes without a word.
    Close,
    /// Announces a body and closes in the middle of it.
    HalfBody,
    /// Begins a body and never ends it.
    SlowBody,
}

/// A server that breaks every connection, on a free loopback port; it ends with the runtime of the test.
pub async fn broken_server(how: Break) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 16 << 10];
                let _read = stream.read(&mut request).await;
                let half = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"id\":";
                if matches!(how, Break::HalfBody | Break::SlowBody) {
                    stream.write_all(half).await.unwrap();
                }
                if matches!(how, Break::Silent | Break::SlowBody) {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    root
}

/// Fails if a secret, an address or a link shows in any text form of the error.
pub fn assert_discreet(error: &(impl std::error::Error + 'static)) {
    let mut texts = vec![format!("{error:?}")];
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(link) = next {
        texts.push(link.to_string());
        next = link.source();
    }
    for text in texts {
        for secret in [MARKER, "example.com", "@", "://", "ya29", "1//"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}
