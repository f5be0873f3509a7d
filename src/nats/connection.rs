//! The connection, and what it says about itself outside of any answer.
//!
//! A forbidden publish is silent for whoever sent it: the error arrives only in the event callback, and the request
//! times out. [`ConnectionEvents`] collects those events, so that a request, the probe and readiness can name them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{INBOX_PREFIX, NatsError, REQUEST_TIMEOUT, SERVER_MINIMUM, SERVER_RECOMMENDED};
use crate::config::NatsConfig;

/// A half-open connection is noticed after two of these; the library's default of 60 s would take minutes.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Subjects remembered as forbidden; more than any service needs, so that a wrong loop cannot fill the memory.
const FORBIDDEN_MAX: usize = 64;

/// A client with its events; cheap to clone. It reconnects by itself for ever.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// What it said about itself.
    pub events: Arc<ConnectionEvents>,
}

/// The state of a connection at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connectivity {
    /// Whether the server can be reached.
    pub connected: bool,
    /// How often it was connected, from 1: a change means that pulls and their answers were lost.
    pub connects: u64,
    /// Messages dropped because nobody read them in time.
    pub slow_consumers: u64,
    /// Permission violations so far.
    pub violations: u64,
    /// The last thing that went wrong, without credentials.
    pub last_error: Option<String>,
}

/// What a connection said about itself: connectivity and permission violations.
#[derive(Debug)]
pub struct ConnectionEvents {
    connectivity: watch::Sender<Connectivity>,
    forbidden: Mutex<BTreeMap<String, u64>>,
}

impl Default for ConnectionEvents {
    fn default() -> Self {
        Self { connectivity: watch::Sender::new(Connectivity::default()), forbidden: Mutex::default() }
    }
}

impl ConnectionEvents {
    /// The state now.
    pub fn now(&self) -> Connectivity {
        self.connectivity.borrow().clone()
    }

    /// The state and its changes.
    pub fn subscribe(&self) -> watch::Receiver<Connectivity> {
        self.connectivity.subscribe()
    }

    /// Subjects that were forbidden, sorted.
    pub fn forbidden(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// How often that subject was forbidden so far.
    pub fn times_forbidden(&self, subject: &str) -> u64 {
        self.lock().get(subject).copied().unwrap_or(0)
    }

    /// Returns when that subject is forbidden more than `seen` times; else never.
    pub async fn until_forbidden(&self, subject: &str, seen: u64) {
        let mut changes = self.subscribe();
        // The sender lives in `self`, so waiting cannot end by its loss.
        while self.times_forbidden(subject) <= seen && changes.changed().await.is_ok() {}
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.forbidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: &Event) {
        let text = event.to_string();
        if let Some(subject) = violated_subject(&text) {
            let mut forbidden = self.lock();
            if forbidden.len() < FORBIDDEN_MAX || forbidden.contains_key(subject) {
                *forbidden.entry(subject.to_owned()).or_default() += 1;
            }
            drop(forbidden);
            tracing::warn!(subject, "NATS forbids this subject to our credentials");
        } else {
            match event {
                Event::Connected => tracing::info!("connected to NATS"),
                Event::Disconnected => tracing::warn!("lost the connection to NATS; reconnecting"),
                Event::SlowConsumer(_) => tracing::warn!("messages from NATS were dropped: they came faster than read"),
                Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(error = %text, "NATS reports an error"),
                other => tracing::debug!(event = %other, "NATS connection event"),
            }
        }
        self.connectivity.send_modify(|state| match event {
            Event::Connected => {
                state.connected = true;
                state.connects += 1;
            }
            Event::Disconnected | Event::Closed => state.connected = false,
            Event::SlowConsumer(_) => state.slow_consumers += 1,
            Event::ServerError(_) | Event::ClientError(_) => {
                state.violations += u64::from(violated_subject(&text).is_some());
                state.last_error = Some(text);
            }
            _ => {}
        });
    }
}

/// The subject of `Permissions Violation for Publish to "x"` (or `Subscription to "x"`), in any case of letters.
fn violated_subject(text: &str) -> Option<&str> {
    if !text.to_ascii_lowercase().contains("permissions violation") {
        return None;
    }
    text.split('"').nth(1)
}

/// Connects once. `name` is what the server's monitoring shows.
///
/// # Errors
///
/// [`NatsError::Configuration`] where the settings cannot work, [`NatsError::Unreachable`] where another try may, and
/// [`NatsError::TooOld`].
pub async fn connect(config: &NatsConfig, name: &str) -> Result<Connection, NatsError> {
    let (servers, auth) = parse_servers(config.url.expose_secret())?;
    let events = Arc::new(ConnectionEvents::default());
    let sink = Arc::clone(&events);
    let mut options = ConnectOptions::new()
        .name(name)
        .custom_inbox_prefix(INBOX_PREFIX)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(REQUEST_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .event_callback(move |event| {
            let sink = Arc::clone(&sink);
            async move { sink.note(&event) }
        });
    options = match auth {
        Some((user, Some(password))) => options.user_and_password(user, password),
        Some((token, None)) => options.token(token),
        None => options,
    };
    if let Some(file) = &config.creds_file {
        options = options.credentials_file(file).await.map_err(|error| {
            NatsError::Configuration(format!("NATS_CREDS_FILE: {} cannot be used: {error}", file.display()))
        })?;
    }
    if let Some(file) = &config.tls_ca_file {
        // Read here because the library would say only "TLS error" when it connects.
        if let Err(error) = tokio::fs::metadata(file).await {
            let text = format!("NATS_TLS_CA_FILE: {} cannot be used: {error}", file.display());
            return Err(NatsError::Configuration(text));
        }
        options = options.add_root_certificates(file.clone());
    }
    let shown = servers.iter().map(shown_address).collect::<Vec<_>>().join(", ");
    let addresses: Vec<String> = servers.iter().map(Url::to_string).collect();
    let client = options.connect(addresses).await.map_err(|error| {
        let reason = match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                "the server refused user, password, token or credentials".to_owned()
            }
            ConnectErrorKind::TimedOut => "no answer within 5 s".to_owned(),
            _ => error.to_string(),
        };
        NatsError::Unreachable { servers: shown, reason }
    })?;
    check_version(&client)?;
    Ok(Connection { client, events })
}

/// Connects and, as long as nothing answers, tries again: 0.25 s, doubling, at most every 5 s. `None` when cancelled.
///
/// `on_failure` is told every failure (for readiness); the log gets one line per different reason.
pub async fn connect_persistently(
    config: &NatsConfig,
    name: &str,
    cancel: &CancellationToken,
    mut on_failure: impl FnMut(&NatsError),
) -> Option<Connection> {
    let mut pause = Duration::from_millis(250);
    let mut said = None;
    loop {
        let attempt = tokio::select! {
            () = cancel.cancelled() => return None,
            attempt = connect(config, name) => attempt,
        };
        let error = match attempt {
            Ok(connection) => return Some(connection),
            Err(error) => error,
        };
        let text = error.to_string();
        if said.as_ref() != Some(&text) {
            tracing::error!(error = %text, "not connected to NATS; trying again until it works");
            said = Some(text);
        }
        on_failure(&error);
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(5)),
        }
    }
}

fn check_version(client: &Client) -> Result<(), NatsError> {
    let found = client.server_info().version;
    let at_least = |(major, minor, patch)| client.is_server_compatible(major, minor, patch);
    if !at_least(SERVER_MINIMUM) {
        return Err(NatsError::TooOld { found });
    }
    if !at_least(SERVER_RECOMMENDED) {
        tracing::warn!(
            version = %found,
            "nats-server before 2.14.5 may hold back events when a consumer is ahead of its stream, and may change a \
             stream's creation time; both are looked for, but please upgrade"
        );
    }
    Ok(())
}

/// User and password, or a token alone.
type UrlAuth = Option<(String, Option<String>)>;

/// `NATS_URL` as addresses without credentials, and the credentials, percent-decoded (the library does not decode).
fn parse_servers(urls: &str) -> Result<(Vec<Url>, UrlAuth), NatsError> {
    let mut servers = Vec::new();
    let mut auth = None;
    for (index, text) in urls.split(',').map(str::trim).filter(|text| !text.is_empty()).enumerate() {
        // The text may hold a password, so messages speak of its place instead.
        let wrong = |what: &str| NatsError::Configuration(format!("NATS_URL: address {} {what}", index + 1));
        let full = if text.contains("://") { text.to_owned() } else { format!("nats://{text}") };
        let mut url = Url::parse(&full).map_err(|error| wrong(&format!("is not a URL: {error}")))?;
        if !matches!(url.scheme(), "nats" | "tls") {
            return Err(wrong("must begin with nats:// or tls://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("has no host"));
        }
        if !url.username().is_empty() {
            let decoded = (percent_decode(url.username()), url.password().map(percent_decode));
            auth.get_or_insert(decoded);
            let stripped = url.set_username("").and_then(|()| url.set_password(None));
            stripped.map_err(|()| wrong("cannot hold credentials"))?;
        }
        servers.push(url);
    }
    if servers.is_empty() {
        return Err(NatsError::Configuration("NATS_URL is empty; nats://127.0.0.1:4222 is an example".to_owned()));
    }
    Ok((servers, auth))
}

fn shown_address(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or("?"), url.port().unwrap_or(4222))
}

/// RFC 3986 §2.1; what is no escape stays as it is.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%' && tail.len() >= 2)
            .then(|| std::str::from_utf8(&tail[..2]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()))
            .flatten();
        if let Some(byte) = escaped {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_leave_the_addresses_and_are_decoded() {
        let (servers, auth) = parse_servers("nats://a%40b:p%2Fw%25@one:4222, two:4333").unwrap();
        assert_eq!(servers.iter().map(shown_address).collect::<Vec<_>>(), ["one:4222", "two:4333"]);
        assert!(servers.iter().all(|url| url.username().is_empty() && url.password().is_none()));
        assert_eq!(auth, Some(("a@b".to_owned(), Some("p/w%".to_owned()))));
        assert_eq!(parse_servers("nats://s3cret@one").unwrap().1, Some(("s3cret".to_owned(), None)));
    }

    #[test]
    fn mistakes_in_the_url_are_told_without_the_password() {
        for bad in ["", "http://one", "nats://", "nats://u:hunter2@one:99999999"] {
            let text = parse_servers(bad).unwrap_err().to_string();
            assert!(text.contains("NATS_URL") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn violations_name_their_subject() {
        let text = r#"server error: nats: Permissions Violation for Publish to "$JS.API.INFO""#;
        assert_eq!(violated_subject(text), Some("$JS.API.INFO"));
        assert_eq!(violated_subject("nats: Stale Connection"), None);
    }
}
