//! What `dev` shows: publishes the samples, waits for each session over the public API, and says what to try next.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::message::PublishMessage;
use serde_json::Value;

use super::samples::{EXPECTED, Expected, samples};
use crate::cli::CommandError;
use crate::clock::Clock;
use crate::google::calendar::http_client;

/// The story takes a second or two; a machine that is busy compiling gets more.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the story works with.
pub(super) struct Story<'a> {
    pub(super) api: &'a str,
    pub(super) token: &'a str,
    pub(super) admin: &'a str,
    pub(super) data: &'a Path,
    pub(super) clock: &'a Clock,
}

impl Story<'_> {
    /// Publishes, waits and shows; `false` when a session did not end as expected.
    pub(super) async fn tell(
        &self,
        client: &async_nats::Client,
        out: &mut (dyn Write + Send),
    ) -> Result<bool, CommandError> {
        let stream = jetstream::new(client.clone());
        let samples = samples(self.clock.now());
        let count = samples.len();
        for sample in samples {
            let message = PublishMessage::build()
                .payload(sample.payload.into())
                .message_id(sample.id)
                .expected_stream("BOOKINGS")
                .header("Content-Type", "application/cloudevents+json");
            let stored = async { stream.send_publish(sample.subject, message).await?.await };
            stored.await.map_err(|error| CommandError::failed(format!("cannot publish a sample: {error}")))?;
        }
        writeln!(out, "{count} sample events are published; this is what became of them:\n")?;

        let mut as_told = true;
        for expected in &EXPECTED {
            let document = self.wait_for(expected).await?;
            as_told &= document["meetStatus"] == expected.status;
            show(expected, &document, out)?;
        }
        Ok(as_told)
    }

    /// Long-polls until the session has the expected status and Google is known to agree (or patience ends).
    async fn wait_for(&self, expected: &Expected) -> Result<Value, CommandError> {
        let http = http_client();
        let url = format!("{}/api/google/meet/{}?wait=2", self.api, expected.session);
        let begun = Instant::now();
        let mut etag = None;
        let mut document = Value::Null;
        loop {
            let mut request = http.get(&url).bearer_auth(self.token);
            if let Some(etag) = &etag {
                request = request.header("If-None-Match", etag);
            }
            let answer = request.send().await.map_err(|error| CommandError::failed(format!("the API: {error}")))?;
            if answer.status().is_success() {
                etag = answer.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
                document = answer.json().await.map_err(|error| CommandError::failed(format!("the API: {error}")))?;
            } else if !matches!(answer.status().as_u16(), 304 | 404) {
                return Err(CommandError::failed(format!("the API answered {}", answer.status())));
            }
            let is_there = document["meetStatus"] == expected.status
                && (document["upToDate"] == true || expected.status == "ERROR");
            if is_there || begun.elapsed() > PATIENCE {
                return Ok(document);
            }
        }
    }

    /// The consent page for Carla, as the school's site would send her there.
    pub(super) async fn consent_of_carla(&self) -> Result<url::Url, CommandError> {
        let failed = |error: &dyn std::fmt::Display| CommandError::failed(format!("the API: {error}"));
        let request = http_client()
            .get(format!("{}/api/google/oauth/start?teacherId=tch_carla", self.api))
            .bearer_auth(self.admin)
            .header("Accept", "application/json");
        let answer: Value =
            request.send().await.map_err(|error| failed(&error))?.json().await.map_err(|error| failed(&error))?;
        let page = answer["authorizationUrl"].as_str().unwrap_or_default();
        let mut page = url::Url::parse(page).map_err(|_| failed(&format!("no consent page in {answer}")))?;
        // The service does not know her address yet; the fake ticks it.
        page.query_pairs_mut().append_pair("login_hint", "carla@example.com");
        Ok(page)
    }

    /// What to try next.
    pub(super) fn goodbye(
        &self,
        consent: &url::Url,
        control: &url::Url,
        took: Duration,
        out: &mut (dyn Write + Send),
    ) -> Result<(), CommandError> {
        let Self { api, token, admin, data, .. } = self;
        let env = data.join("env");
        let env = env.display();
        let program = std::env::current_exe().map_or("meet-projector".into(), |path| path.display().to_string());
        writeln!(
            out,
            "\n  drums-9      its event ends before it starts: refused, kept as a dead letter, nobody else waited for it\n\n\
             Ready {:.1} s after the start. Things to try in another terminal:\n\n\
             \x20 curl -s -H 'Authorization: Bearer {token}' {api}/api/google/meet/piano-1\n\
             \x20 curl -s -H 'Authorization: Bearer {token}' '{api}/api/google/meet?status=READY'\n\
             \x20 curl -s {api}/readyz\n\
             \x20 curl -s -X POST -H 'Authorization: Bearer {admin}' '{api}/api/google/disconnect/tch_ben?removeEvents=true'\n\
             \x20 curl -s {control}                               # what the fake Google can do and break\n\n\
             \x20 set -a; . {env}; set +a                         # settings for the commands below\n\
             \x20 alias meet-projector={program}\n\
             \x20 meet-projector dead-letter list                 # the bad event, and what to fix\n\
             \x20 meet-projector session show english-b1          # the story of one session\n\
             \x20 meet-projector teacher disconnect tch_ana --reason 'to see it'\n\
             \x20 meet-projector event publish schemas/examples/valid/*.json\n\
             \x20 meet-projector nats check                       # streams and consumer against nats/*.json\n\n\
             Connect Carla in a browser, and her lesson chess-1 wakes up (good for ten minutes):\n\n\
             \x20 {consent}\n\n\
             or without one, at any time, the last line a moment later:\n\n\
             \x20 page=$(curl -s -H 'Authorization: Bearer {admin}' -H 'Accept: application/json' \\\n\
             \x20   '{api}/api/google/oauth/start?teacherId=tch_carla' | sed 's/.*\"authorizationUrl\":\"\\([^\"]*\\)\".*/\\1/')\n\
             \x20 curl -sL \"$page&auto=allow&account=carla@example.com\" | sed 's/<[^>]*>/ /g'\n\
             \x20 curl -s -H 'Authorization: Bearer {token}' {api}/api/google/meet/chess-1\n\n\
             Ctrl-C ends it. RUST_LOG=info make run shows the log.",
            took.as_secs_f32()
        )?;
        Ok(())
    }
}

fn show(expected: &Expected, document: &Value, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let status = text(&document["meetStatus"]);
    let detail = match status.as_str() {
        "READY" => text(&document["meetLink"]),
        "ERROR" => format!(
            "{}: {}; next step: {}",
            text(&document["error"]["code"]),
            text(&document["error"]["message"]),
            text(&document["error"]["action"])
        ),
        "CANCELED" => "its calendar event is gone".to_owned(),
        _ => "not there yet; `RUST_LOG=info` says why".to_owned(),
    };
    writeln!(out, "  {:<12} {:<8} {detail}", expected.session, status)?;
    writeln!(out, "  {:<12} {:<8} {}", "", "", expected.story)
}
