//! The streams and the consumer as `nats/*.json` wants them, against what the server has.
//!
//! Only what a definition states is compared; what it leaves out stays as the operators chose it. Nothing is ever
//! deleted, and a difference that the server cannot edit is named with what to do about it.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Connection, NatsError, epoch};
use crate::config::NatsConfig;
use crate::model::Epoch;

const BOOKINGS: &str = include_str!("../../nats/bookings.stream.json");
const MEET: &str = include_str!("../../nats/meet.stream.json");
const CONSUMER: &str = include_str!("../../nats/consumer.json");

/// Stream settings that a server does not edit (from → to); every other one it does.
/// <https://docs.nats.io/nats-concepts/jetstream/streams#configuration>
const STREAM_FIXED: [&str; 7] =
    ["name", "storage", "retention", "deny_delete", "deny_purge", "max_consumers", "mirror"];

/// Consumer settings that a server does not edit.
const CONSUMER_FIXED: [&str; 5] = ["durable_name", "name", "ack_policy", "replay_policy", "max_waiting"];

/// The three definitions, with the names of the configuration put in.
#[derive(Debug, Clone)]
pub struct Definitions {
    /// The event store.
    pub bookings: Value,
    /// The stream of results.
    pub meet: Value,
    /// The durable consumer; [`Definitions::consumer`] names it.
    consumer: Value,
}

/// Which of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stream.
    Stream,
    /// A consumer.
    Consumer,
}

/// One setting that is not as the definition says.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The setting, with dots for nested ones.
    pub field: String,
    /// What the server has.
    pub actual: Value,
    /// What the definition says.
    pub desired: Value,
    /// Whether the server can change it.
    pub editable: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "- {}: {}\n+ {}: {}", self.field, shown(&self.actual), self.field, shown(&self.desired))?;
        if !self.editable {
            f.write_str("\n! cannot be changed: the server keeps it for the life of the stream or consumer")?;
        }
        Ok(())
    }
}

/// What was found, and done, about one stream or consumer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Stream or consumer.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Whether it exists (before anything was done).
    pub exists: bool,
    /// How it differs.
    pub differences: Vec<Difference>,
    /// What `apply` did: `created`, `updated`, or nothing.
    pub done: Option<&'static str>,
}

impl Finding {
    /// Whether, when it was looked at, everything was as the definition says.
    pub fn agrees(&self) -> bool {
        self.exists && self.differences.is_empty()
    }

    /// Whether everything is as the definition says now.
    pub fn settled(&self) -> bool {
        self.agrees() || self.done.is_some() && self.differences.iter().all(|difference| difference.editable)
    }

    /// For `--output json`.
    pub fn to_json(&self) -> Value {
        let differences: Vec<Value> = self
            .differences
            .iter()
            .map(|d| json!({"field": d.field, "actual": d.actual, "desired": d.desired, "editable": d.editable}))
            .collect();
        let kind = if self.kind == Kind::Stream { "stream" } else { "consumer" };
        json!({ "kind": kind, "name": self.name, "exists": self.exists, "differences": differences, "done": self.done })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == Kind::Stream { "stream" } else { "consumer" };
        let state = match (self.exists, self.differences.is_empty(), self.done) {
            (_, _, Some(done)) => done,
            (false, _, None) => "does not exist",
            (true, true, None) => "as defined",
            (true, false, None) => "differs",
        };
        write!(f, "{kind} {}: {state}", self.name)?;
        for line in self.differences.iter().flat_map(|d| d.to_string().lines().map(str::to_owned).collect::<Vec<_>>()) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl Definitions {
    /// The definitions that are built in, or those of a folder with the same three file names.
    pub fn load(folder: Option<&Path>, config: &NatsConfig, replicas: Option<u32>) -> Result<Self, NatsError> {
        let read = |name: &str, built_in: &str| {
            let text = match folder.map(|folder| folder.join(name)) {
                Some(path) => std::fs::read_to_string(&path)
                    .map_err(|error| NatsError::Configuration(format!("{} cannot be read: {error}", path.display())))?,
                None => built_in.to_owned(),
            };
            match serde_json::from_str(&text) {
                Ok(value @ Value::Object(_)) => Ok(value),
                Ok(_) => Err(NatsError::Configuration(format!("{name} is not a JSON object"))),
                Err(error) => Err(NatsError::Configuration(format!("{name} is not JSON: {error}"))),
            }
        };
        let mut this = Self {
            bookings: read("bookings.stream.json", BOOKINGS)?,
            meet: read("meet.stream.json", MEET)?,
            consumer: read("consumer.json", CONSUMER)?,
        };
        this.bookings["name"] = json!(config.stream);
        this.bookings["subjects"] = json!([config.subjects]);
        this.meet["name"] = json!(config.meet_stream);
        this.consumer["filter_subject"] = json!(config.subjects);
        if let Some(replicas) = replicas {
            this.bookings["num_replicas"] = json!(replicas);
            this.meet["num_replicas"] = json!(replicas);
        }
        Ok(this)
    }

    /// The durable of that name, from the beginning of the stream.
    pub fn consumer(&self, durable: &str) -> Value {
        let mut config = self.consumer.clone();
        config["durable_name"] = json!(durable);
        config["name"] = json!(durable);
        config
    }

    /// The durable of that name, from `sequence` on.
    pub fn consumer_from(&self, durable: &str, sequence: i64) -> Value {
        let mut config = self.consumer(durable);
        config["deliver_policy"] = json!("by_start_sequence");
        config["opt_start_seq"] = json!(sequence);
        config
    }
}

/// What of the consumer's settings is not as defined. Where it starts is left out: a durable that was made again starts
/// at the database's position.
pub fn consumer_differences(desired: &Value, actual: &Value) -> Vec<Difference> {
    let mut desired = desired.clone();
    if let Some(fields) = desired.as_object_mut() {
        fields.retain(|field, _| !matches!(field.as_str(), "deliver_policy" | "opt_start_seq"));
    }
    differences(&desired, actual, &CONSUMER_FIXED)
}

/// Compares everything with the server; changes nothing.
pub async fn check(
    connection: &Connection,
    config: &NatsConfig,
    desired: &Definitions,
) -> Result<Vec<Finding>, NatsError> {
    let mut findings = Vec::new();
    for stream in [&desired.bookings, &desired.meet] {
        let name = text(stream, "name");
        let info = connection.stream_info(&name).await?;
        findings.push(finding(Kind::Stream, name, info.map(|info| differences(stream, &info.config, &STREAM_FIXED))));
    }
    let durable = durable_of(connection, config, findings[0].exists).await?;
    let info = connection.consumer_info(&config.stream, &durable).await?;
    let differences = info.map(|info| consumer_differences(&desired.consumer(&durable), &info.config));
    findings.push(finding(Kind::Consumer, durable, differences));
    Ok(findings)
}

/// Creates what is missing and changes what differs and can be changed; deletes nothing.
pub async fn apply(
    connection: &Connection,
    config: &NatsConfig,
    desired: &Definitions,
) -> Result<Vec<Finding>, NatsError> {
    let mut findings = Vec::new();
    for stream in [&desired.bookings, &desired.meet] {
        findings.push(apply_stream(connection, stream).await?);
    }
    let durable = durable_of(connection, config, true).await?;
    let wanted = desired.consumer(&durable);
    let info = connection.consumer_info(&config.stream, &durable).await?;
    let differences = info.as_ref().map(|info| consumer_differences(&wanted, &info.config));
    let mut finding = finding(Kind::Consumer, durable, differences);
    match info {
        None => {
            connection.write_consumer(&config.stream, &wanted, "create").await?;
            finding.done = Some("created");
        }
        Some(info) if finding.differences.iter().any(|difference| difference.editable) => {
            let merged = overlay(&info.config, &wanted, &finding.differences);
            connection.write_consumer(&config.stream, &merged, "update").await?;
            finding.done = Some("updated");
        }
        Some(_) => {}
    }
    findings.push(finding);
    Ok(findings)
}

async fn apply_stream(connection: &Connection, wanted: &Value) -> Result<Finding, NatsError> {
    let name = text(wanted, "name");
    let info = connection.stream_info(&name).await?;
    let differences = info.as_ref().map(|info| differences(wanted, &info.config, &STREAM_FIXED));
    let mut finding = finding(Kind::Stream, name.clone(), differences);
    match info {
        None => {
            let subject = format!("$JS.API.STREAM.CREATE.{name}");
            connection.api::<Value>(&format!("creating stream {name}"), &subject, Some(wanted)).await?;
            finding.done = Some("created");
        }
        Some(info) if finding.differences.iter().any(|difference| difference.editable) => {
            let merged = overlay(&info.config, wanted, &finding.differences);
            let subject = format!("$JS.API.STREAM.UPDATE.{name}");
            connection.api::<Value>(&format!("updating stream {name}"), &subject, Some(&merged)).await?;
            finding.done = Some("updated");
        }
        Some(_) => {}
    }
    Ok(finding)
}

/// The durable in use: the one with the highest epoch that the stream has, else that of the first epoch.
async fn durable_of(connection: &Connection, config: &NatsConfig, stream_exists: bool) -> Result<String, NatsError> {
    let names = if stream_exists { connection.consumer_names(&config.stream).await? } else { Vec::new() };
    let prefix = format!("{}-e", config.consumer);
    let epochs = names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse::<i64>().ok());
    Ok(epoch::sight::durable_name(config, Epoch(epochs.max().unwrap_or(1))))
}

fn finding(kind: Kind, name: String, differences: Option<Vec<Difference>>) -> Finding {
    let exists = differences.is_some();
    Finding { kind, name, exists, differences: differences.unwrap_or_default(), done: None }
}

/// The server's configuration with the editable differences as wanted.
fn overlay(actual: &Value, wanted: &Value, differences: &[Difference]) -> Value {
    let mut merged = actual.clone();
    for field in differences.iter().filter(|difference| difference.editable).map(|difference| &difference.field) {
        match field.split_once('.') {
            Some((outer, inner)) => merged[outer][inner] = wanted[outer][inner].clone(),
            None => merged[field.as_str()] = wanted[field.as_str()].clone(),
        }
    }
    merged
}

/// What `desired` states and `actual` has not; one level of nesting (`metadata`) is compared by field.
fn differences(desired: &Value, actual: &Value, fixed: &[&str]) -> Vec<Difference> {
    let empty = Map::new();
    let mut found = Vec::new();
    for (field, wanted) in desired.as_object().unwrap_or(&empty) {
        let has = actual.get(field).unwrap_or(&Value::Null);
        if let Some(inner) = wanted.as_object() {
            for (key, wanted) in inner {
                let has = has.get(key).unwrap_or(&Value::Null);
                if !same(wanted, has) {
                    let (actual, desired) = (has.clone(), wanted.clone());
                    found.push(Difference { field: format!("{field}.{key}"), actual, desired, editable: true });
                }
            }
        } else if !same(wanted, has) {
            // What is denied may be denied later, but never allowed again.
            let tightens = field.starts_with("deny_") && wanted == &Value::Bool(true);
            let editable = tightens || !fixed.contains(&field.as_str());
            found.push(Difference { field: field.clone(), actual: has.clone(), desired: wanted.clone(), editable });
        }
    }
    found
}

/// Servers leave out what is zero, and keep lists in their own order.
fn same(wanted: &Value, has: &Value) -> bool {
    let is_zero = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    if let (Value::Array(wanted), Value::Array(has)) = (wanted, has) {
        return wanted.len() == has.len() && wanted.iter().all(|item| has.contains(item));
    }
    wanted == has || is_zero(wanted) && is_zero(has)
}

fn text(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A value as people write it: durations stay in the API's nanoseconds, which the field's definition uses too.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "(not set)".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_only_about_what_is_stated() {
        let desired = json!({"retention": "limits", "deny_purge": true, "max_age": 0, "subjects": ["a", "b"],
            "metadata": {"owner": "us"}});
        let actual = json!({"retention": "interest", "subjects": ["b", "a"], "max_msgs": 7,
            "metadata": {"_nats.ver": "2.15.1", "owner": "them"}});
        let found: Vec<String> =
            differences(&desired, &actual, &STREAM_FIXED).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(found.join("\n"), @r"
        - deny_purge: (not set)
        + deny_purge: true
        - metadata.owner: them
        + metadata.owner: us
        - retention: interest
        + retention: limits
        ! cannot be changed: the server keeps it for the life of the stream or consumer
        ");
    }

    #[test]
    fn an_update_keeps_what_the_definition_leaves_out() {
        let desired = json!({"max_age": 5, "retention": "limits", "metadata": {"owner": "us"}});
        let actual = json!({"max_age": 3, "retention": "interest", "max_msgs": 7, "metadata": {"a": "b"}});
        let found = differences(&desired, &actual, &STREAM_FIXED);
        let merged = overlay(&actual, &desired, &found);
        assert_eq!(
            merged,
            json!({"max_age": 5, "retention": "interest", "max_msgs": 7, "metadata": {"a": "b", "owner": "us"}})
        );
    }

    #[test]
    fn where_a_durable_starts_is_no_difference() {
        let desired = json!({"deliver_policy": "all", "ack_policy": "explicit"});
        let actual = json!({"deliver_policy": "by_start_sequence", "opt_start_seq": 9, "ack_policy": "explicit"});
        assert_eq!(consumer_differences(&desired, &actual), []);
    }
}
