//! NATS: reachable, new enough, permitted, and as defined.

use serde_json::Value;

use super::{Check, Level, clock_check};
use crate::clock::Clock;
use crate::config::Config;
use crate::model::{Epoch, UnixMillis};
use crate::nats::definitions::{Definitions, check};
use crate::nats::probe::{Outcome, probe};
use crate::nats::{Connection, NatsError, SERVER_RECOMMENDED, connect};
use crate::store::Store;

const AREA: &str = "nats";

/// Looks at it.
pub(super) async fn examine(config: &Config, clock: &Clock) -> Vec<Check> {
    let connection = match connect(&config.nats, "meet-projector doctor").await {
        Ok(connection) => connection,
        Err(error) => return vec![failed("connection", &error)],
    };
    let mut checks = vec![version(&connection)];
    let asked_at = clock.now();
    match server_time(&connection, &config.nats.stream).await {
        Some(at) => checks.push(clock_check(AREA, "the NATS server's", asked_at.since(at))),
        None => checks.push(Check::skipped(AREA, "clock", "the server does not tell its time without the stream")),
    }
    checks.extend(permissions(&connection, config).await);
    checks.extend(definitions(&connection, config).await);
    checks
}

fn failed(name: &str, error: &NatsError) -> Check {
    let (level, fix) = match error {
        NatsError::Configuration(_) => (Level::Fail, "mend the setting that is named"),
        NatsError::TooOld { .. } => (Level::Fail, "upgrade nats-server; 2.14.5 or newer is best"),
        NatsError::Forbidden { .. } => (Level::Fail, "give these credentials what nats/permissions.conf lists"),
        _ if error.is_unreachable() => (Level::Unreachable, "start nats-server with JetStream, and check NATS_URL"),
        _ => (Level::Fail, "see what the server's log says"),
    };
    Check::new(level, AREA, name, error.to_string(), fix)
}

fn version(connection: &Connection) -> Check {
    let version = connection.client.server_info().version;
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<i64>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < SERVER_RECOMMENDED {
        let (major, minor, patch) = SERVER_RECOMMENDED;
        let fix =
            format!("upgrade to {major}.{minor}.{patch} or newer: older ones do not repair a consumer that is ahead");
        return Check::new(Level::Warn, AREA, "connection", format!("nats-server {version}"), fix);
    }
    Check::ok(AREA, "connection", format!("nats-server {version}"))
}

/// The field `ts` of the answer, which servers since 2.10 fill.
async fn server_time(connection: &Connection, stream: &str) -> Option<UnixMillis> {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer: Value = connection.api("asking for the time", &subject, None).await.ok()?;
    UnixMillis::parse_rfc3339(answer["ts"].as_str()?).ok()
}

async fn permissions(connection: &Connection, config: &Config) -> Vec<Check> {
    // Which durable it would be depends on the epoch; without a database the first one is as good as any.
    let epoch = async { Store::open(&config.database).await.ok()?.epochs().await.ok()?.pop() }.await;
    let probed = probe(connection, &config.nats, epoch.map_or(Epoch(1), |record| record.epoch)).await;
    let fix = "give these credentials what nats/permissions.conf lists";
    let bad: Vec<_> = probed
        .iter()
        .filter_map(|probed| match (&probed.outcome, probed.needed) {
            (Outcome::Allowed, _) => None,
            (Outcome::Forbidden, true) => Some(Check::new(
                Level::Fail,
                AREA,
                "permission",
                format!("may not {}: {}", probed.purpose, probed.subject),
                fix,
            )),
            (Outcome::Forbidden, false) => Some(Check::new(
                Level::Warn,
                AREA,
                "permission",
                format!("may not {}: {}", probed.purpose, probed.subject),
                fix,
            )),
            (Outcome::NoAnswer(why), _) => {
                let detail = format!("cannot tell whether it may {}: {why}", probed.purpose);
                Some(Check::new(Level::Warn, AREA, "permission", detail, "try again; is the server under load?"))
            }
        })
        .collect();
    if bad.is_empty() {
        return vec![Check::ok(AREA, "permissions", format!("all {} subjects may be used", probed.len()))];
    }
    bad
}

async fn definitions(connection: &Connection, config: &Config) -> Vec<Check> {
    let findings = async {
        let definitions = Definitions::load(None, &config.nats, None)?;
        check(connection, &config.nats, &definitions).await
    };
    match findings.await {
        Err(error) => vec![failed("definitions", &error)],
        Ok(findings) => findings
            .iter()
            .map(|finding| {
                if finding.agrees() {
                    return Check::ok(AREA, &finding.name, "as defined");
                }
                let text = finding.to_string().replace('\n', "; ");
                let fix = "`meet-projector nats check` shows the differences, `nats apply` mends them";
                let level = if finding.exists { Level::Warn } else { Level::Fail };
                Check::new(level, AREA, &finding.name, text, fix)
            })
            .collect(),
    }
}
