//! `OPS_WEBHOOK_URL`: a POST of `{"text": …}`, as Slack and those who speak its language take it.
//!
//! The address is a secret, since whoever knows it can post: it is in no error and in no log, and no redirect is
//! followed.
//!
//! <https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks>

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::RETRY_AFTER;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;

/// Longest time for one post.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Characters of a text at most; Slack cuts at 40,000 and advises 4,000.
const TEXT_CHARS_MAX: usize = 4_000;

/// The webhook. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Webhook {
    http: reqwest::Client,
    url: SecretString,
}

/// Why a text was not taken, without the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct WebhookError {
    /// One sentence.
    pub message: String,
    /// `Retry-After` in milliseconds.
    pub retry_after_ms: Option<i64>,
}

impl WebhookError {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry_after_ms: None }
    }
}

impl Webhook {
    /// `http` must not follow redirects ([`crate::google::calendar::http_client`]).
    pub fn new(http: reqwest::Client, url: SecretString) -> Self {
        Self { http, url }
    }

    /// Posts a text once.
    ///
    /// # Errors
    ///
    /// For anything but a 2xx within ten seconds.
    pub async fn post(&self, text: &str) -> Result<(), WebhookError> {
        let body = json!({ "text": escaped(text) }).to_string();
        let request = self.http.post(self.url.expose_secret()).timeout(TIMEOUT);
        let request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body);
        // The error's own text names the address.
        let answer = request.send().await.map_err(|error| {
            WebhookError::new(if error.is_timeout() {
                "it did not answer in time"
            } else if error.is_connect() {
                "no connection"
            } else if error.is_builder() {
                "OPS_WEBHOOK_URL is not an address that can be posted to"
            } else {
                "the connection broke off"
            })
        })?;
        // What it says beside is not read.
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let mut error = WebhookError::new(match status {
            _ if status.is_redirection() => {
                format!("it answered {}, a redirect, which is not followed", status.as_u16())
            }
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
                format!("it answered {}: OPS_WEBHOOK_URL seems to be out of date", status.as_u16())
            }
            _ => format!("it answered {}", status.as_u16()),
        });
        let seconds = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<i64>().ok());
        error.retry_after_ms = seconds.map(|seconds| seconds.clamp(0, 3_600) * 1000);
        Err(error)
    }
}

/// Slack's three control characters, and no more text than it shows.
fn escaped(text: &str) -> String {
    let cut: String = text.chars().take(TEXT_CHARS_MAX).collect();
    cut.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_texts_cut() {
        assert_eq!(escaped("<!channel> & co"), "&lt;!channel&gt; &amp; co");
        assert_eq!(escaped(&"ñ".repeat(9_000)).chars().count(), TEXT_CHARS_MAX);
    }
}
