//! Which subjects the service needs, and whether these credentials may use them.
//!
//! A forbidden publish is not answered: without this, a missing permission would show as an acknowledgement that never
//! counts or a result that never leaves. Every probe is harmless: a question, or a request that the server must refuse.

use bytes::Bytes;
use futures_util::future::join_all;

use super::epoch::sight::durable_name;
use super::{Connection, INBOX_PREFIX, NatsError};
use crate::config::NatsConfig;
use crate::model::Epoch;

/// One subject and what came of it.
#[derive(Debug, Clone)]
pub struct Probed {
    /// What the service does with it.
    pub purpose: &'static str,
    /// The subject.
    pub subject: String,
    /// Whether the service cannot work without it.
    pub needed: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server took it.
    Allowed,
    /// The credentials forbid it.
    Forbidden,
    /// The server did not answer; says why.
    NoAnswer(String),
}

struct Plan {
    purpose: &'static str,
    subject: String,
    needed: bool,
    body: &'static str,
    /// Whether the server answers; an acknowledgement is never answered.
    answered: bool,
}

/// Probes every subject that `serve` needs while it works in `epoch`.
pub async fn probe(connection: &Connection, config: &NatsConfig, epoch: Epoch) -> Vec<Probed> {
    let results = plans(config, epoch).into_iter().map(async |plan| {
        let outcome =
            if plan.answered { question(connection, &plan).await } else { tell(connection, config, &plan).await };
        Probed { purpose: plan.purpose, subject: plan.subject, needed: plan.needed, outcome }
    });
    let mut results = join_all(results).await;
    results.extend(
        join_all(results_subjects().map(async |(purpose, subject)| {
            let outcome = refused_publish(connection, subject).await;
            Probed { purpose, subject: subject.to_owned(), needed: true, outcome }
        }))
        .await,
    );
    results
}

/// One sentence for all that is forbidden and needed; `None` when nothing is.
pub fn forbidden(probed: &[Probed]) -> Option<String> {
    let subjects: Vec<&str> = probed
        .iter()
        .filter(|probed| probed.needed && probed.outcome == Outcome::Forbidden)
        .map(|probed| probed.subject.as_str())
        .collect();
    (!subjects.is_empty()).then(|| {
        format!("the NATS credentials may not use {}; nats/permissions.conf lists what is needed", subjects.join(", "))
    })
}

fn plans(config: &NatsConfig, epoch: Epoch) -> Vec<Plan> {
    let stream = &config.stream;
    let durable = durable_name(config, epoch);
    let next = durable_name(config, Epoch(epoch.0 + 1));
    let ask = |purpose, subject, body| Plan { purpose, subject, needed: true, body, answered: true };
    vec![
        ask("look at the stream", format!("$JS.API.STREAM.INFO.{stream}"), ""),
        ask("look at the consumer", format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"), ""),
        ask("read messages", format!("$JS.API.DIRECT.GET.{stream}"), r#"{"seq":1}"#),
        // None of these three bodies is one that the server accepts, so nothing is handed out, made or deleted.
        // (To MSG.NEXT, anything that does not begin as JSON is a request for one message, which nobody would acknowledge.)
        ask("receive events", format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"), "{"),
        ask("make the consumer", format!("$JS.API.CONSUMER.CREATE.{stream}.{durable}.{}", config.subjects), "probe"),
        ask("finish receiving", format!("{INBOX_PREFIX}.probe"), ""),
        ask("make the consumer again", format!("$JS.API.CONSUMER.DELETE.{stream}.{durable}"), "probe"),
        Plan {
            purpose: "acknowledge events",
            subject: format!("$JS.ACK.{stream}.{durable}.1.0.0.0.0"),
            needed: true,
            body: "probe",
            answered: false,
        },
        Plan {
            purpose: "follow the next epoch",
            subject: format!("$JS.API.CONSUMER.INFO.{stream}.{next}"),
            needed: false,
            body: "",
            answered: true,
        },
    ]
}

fn results_subjects() -> impl Iterator<Item = (&'static str, &'static str)> {
    [
        ("publish a session's status", "meet.session.probe.pending"),
        ("publish a teacher's status", "meet.teacher.probe.connected"),
    ]
    .into_iter()
}

async fn question(connection: &Connection, plan: &Plan) -> Outcome {
    match connection.request(plan.purpose, &plan.subject, Bytes::from_static(plan.body.as_bytes())).await {
        // Nobody listens (no such stream or consumer): the subject itself was let through.
        Ok(_) | Err(NatsError::NoResponders { .. }) => Outcome::Allowed,
        Err(NatsError::Forbidden { .. }) => Outcome::Forbidden,
        Err(error) => Outcome::NoAnswer(error.to_string()),
    }
}

/// Publishes, then waits for the answer to a request on the same connection: a violation comes before it.
async fn tell(connection: &Connection, config: &NatsConfig, plan: &Plan) -> Outcome {
    let seen = connection.events.times_forbidden(&plan.subject);
    let body = Bytes::from_static(plan.body.as_bytes());
    if let Err(error) = connection.client.publish(plan.subject.clone(), body).await {
        return Outcome::NoAnswer(error.to_string());
    }
    let barrier = connection.stream_info(&config.stream);
    tokio::select! {
        biased;
        () = connection.events.until_forbidden(&plan.subject, seen) => return Outcome::Forbidden,
        answer = barrier => {
            if let Err(error @ NatsError::NoAnswer { .. }) = answer {
                return Outcome::NoAnswer(error.to_string());
            }
        }
    }
    // The callback runs in a task of its own; a violation that came before the answer may be noted just after it.
    let late = connection.events.until_forbidden(&plan.subject, seen);
    match tokio::time::timeout(std::time::Duration::from_millis(50), late).await {
        Ok(()) => Outcome::Forbidden,
        Err(_) => Outcome::Allowed,
    }
}

/// A publish that no stream can accept: it expects to be stored in a stream of another name.
async fn refused_publish(connection: &Connection, subject: &str) -> Outcome {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Stream", "meet-projector-probe");
    let seen = connection.events.times_forbidden(subject);
    let request = connection.client.request_with_headers(subject.to_owned(), headers, Bytes::new());
    tokio::select! {
        () = connection.events.until_forbidden(subject, seen) => Outcome::Forbidden,
        answer = request => match answer {
            Ok(_) => Outcome::Allowed,
            Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Outcome::Allowed,
            Err(error) => Outcome::NoAnswer(error.to_string()),
        },
    }
}
