//! The fake Google is itself held to the facts, over HTTP: whatever it gets wrong, every other test would believe.

mod conferences;
mod control;
mod events;
mod faults;
mod oauth;

use std::time::Duration;

use meet_projector::clock::Clock;
use meet_projector::fake::DEFAULT_SCOPES;
use meet_projector::model::UnixMillis;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::google::{Google, http_client};

/// 2026-11-22T20:00:00Z
const NOW: UnixMillis = UnixMillis::new(1_795_377_600_000);
const ID: &str = "0h5qabcdef";

/// A client of the Calendar API for the first teacher.
struct Client {
    google: Google,
    clock: Clock,
    http: reqwest::Client,
    token: String,
}

/// Status and body of an answer; `Null` where the body is no JSON.
type Answer = (u16, Value);

impl Client {
    async fn start() -> Self {
        let clock = Clock::fixed(NOW);
        let google = Google::start(clock.clone(), 2).await;
        let token = google.fake.access_token(&google.teachers[0].email, &DEFAULT_SCOPES).expect("just made");
        Self { google, clock, http: http_client(Duration::from_mins(1)), token }
    }

    fn email(&self) -> &str {
        &self.google.teachers[0].email
    }

    /// A request below `calendars/primary/events`.
    fn request(&self, method: Method, rest: &str) -> RequestBuilder {
        let root = &self.google.running.calendar_api_root;
        self.http.request(method, format!("{root}/calendars/primary/events{rest}")).bearer_auth(&self.token)
    }

    async fn insert(&self, body: &Value) -> Answer {
        answer(self.request(Method::POST, "?conferenceDataVersion=1").json(body)).await
    }

    async fn get(&self, id: &str) -> Answer {
        answer(self.request(Method::GET, &format!("/{id}"))).await
    }

    async fn patch(&self, id: &str, body: &Value) -> Answer {
        answer(self.request(Method::PATCH, &format!("/{id}?conferenceDataVersion=1")).json(body)).await
    }

    async fn put(&self, id: &str, body: &Value) -> Answer {
        answer(self.request(Method::PUT, &format!("/{id}?conferenceDataVersion=1")).json(body)).await
    }

    async fn delete(&self, id: &str) -> Answer {
        answer(self.request(Method::DELETE, &format!("/{id}"))).await
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("the fake answers");
    let status = response.status().as_u16();
    let bytes = response.bytes().await.expect("the whole body arrives");
    (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// The status and reason of an error of the Calendar API.
fn refusal((status, body): &Answer) -> (u16, &str) {
    (*status, body["error"]["errors"][0]["reason"].as_str().unwrap_or("no reason"))
}

/// An event as the service inserts it.
fn lesson(id: &str) -> Value {
    json!({
        "id": id,
        "summary": "Piano with Ana",
        "start": {"dateTime": "2026-12-01T09:00:00Z", "timeZone": "Europe/Madrid"},
        "end": {"dateTime": "2026-12-01T10:00:00Z", "timeZone": "Europe/Madrid"},
        "extendedProperties": {"private": {"mpSession": "ses_1", "mpEnv": "test"}},
        "conferenceData": ask_for_meet("request-0"),
    })
}

fn ask_for_meet(request_id: &str) -> Value {
    json!({"createRequest": {"requestId": request_id, "conferenceSolutionKey": {"type": "hangoutsMeet"}}})
}
