//! Settings from environment variables: sections, defaults, validation; all mistakes are reported at once.

use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use crate::store::DatabaseUrl;

/// Everything the service can be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// `MEET_ENVIRONMENT`: part of every derived event id, so that two installations never share one.
    pub environment: String,
    /// Addresses and access of the API.
    pub http: HttpConfig,
    /// `DATABASE_URL`.
    pub database: DatabaseUrl,
    /// The NATS side.
    pub nats: NatsConfig,
    /// The Google side.
    pub google: GoogleConfig,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
}

/// Addresses and access of the API.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `HTTP_ADDR`
    pub address: std::net::SocketAddr,
    /// `ADMIN_ADDR`: where `/metrics` and the health routes are served instead, when set.
    pub admin_address: Option<std::net::SocketAddr>,
    /// `API_TOKENS_FILE`: JSON lines `{"token","name","role"}`, accepted beside those in the database.
    pub tokens_file: Option<PathBuf>,
    /// `WP_BASE_URL`
    pub wp_base_url: Option<Url>,
    /// `OAUTH_RETURN_URLS`
    pub return_urls: Vec<Url>,
    /// `JWT_HS256_SECRET`
    pub jwt_hs256_secret: Option<SecretString>,
    /// `JWT_PUBLIC_KEY_FILE`
    pub jwt_public_key_file: Option<PathBuf>,
    /// `JWT_JWKS_URL`
    pub jwt_jwks_url: Option<Url>,
    /// `JWT_ISSUER`
    pub jwt_issuer: Option<String>,
    /// `JWT_AUDIENCE`
    pub jwt_audience: Option<String>,
    /// `OPS_WEBHOOK_URL`
    pub ops_webhook_url: Option<SecretString>,
}

/// The NATS side.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// `NATS_URL`, one or several, comma-separated; may hold user and password.
    pub url: SecretString,
    /// `NATS_CREDS_FILE`
    pub creds_file: Option<PathBuf>,
    /// `NATS_TLS_CA_FILE`
    pub tls_ca_file: Option<PathBuf>,
    /// `NATS_STREAM` (`BOOKINGS`)
    pub stream: String,
    /// `NATS_CONSUMER` (`meet-projector`): the durable is named `<this>-e<epoch>`.
    pub consumer: String,
    /// `NATS_SUBJECTS` (`bookings.session.*.*`): one filter; the last two tokens are session and change.
    pub subjects: String,
    /// `MEET_STREAM` (`MEET`)
    pub meet_stream: String,
}

/// The Google side.
#[derive(Debug, Clone)]
pub struct GoogleConfig {
    /// `GOOGLE_CLIENT_ID`
    pub client_id: String,
    /// `GOOGLE_CLIENT_SECRET`
    pub client_secret: SecretString,
    /// `GOOGLE_ENCRYPTION_KEY`: 64 hex digits.
    pub encryption_key: SecretString,
    /// `GOOGLE_ENCRYPTION_KEYS_OLD`: comma-separated, newest first.
    pub encryption_keys_old: Vec<SecretString>,
    /// `GOOGLE_SCOPES`
    pub scopes: Vec<String>,
    /// `GOOGLE_AUTH_URI`
    pub auth_uri: Url,
    /// `GOOGLE_TOKEN_URI`
    pub token_uri: Url,
    /// `GOOGLE_REVOKE_URI`
    pub revoke_uri: Url,
    /// `GOOGLE_CALENDAR_API_ROOT`
    pub calendar_api_root: Url,
    /// `GOOGLE_MAX_IN_FLIGHT` (32): calls at once, 1 to 1,000.
    pub max_in_flight: usize,
    /// `GOOGLE_RATE_PER_TEACHER` (2): requests per second, 0 = off.
    pub rate_per_teacher: u32,
    /// `GOOGLE_RATE_PER_PROJECT` (80): requests per second, 0 = off.
    pub rate_per_project: u32,
    /// `GOOGLE_ATTENDEES`
    pub attendees: bool,
    /// `GOOGLE_SEND_UPDATES`
    pub send_updates: SendUpdates,
}

/// `sendUpdates` of the Calendar API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendUpdates {
    /// Nobody is mailed.
    None,
    /// Guests outside of Google Calendar are mailed.
    ExternalOnly,
    /// All guests are mailed.
    All,
}

impl SendUpdates {
    /// The word of the API and of `GOOGLE_SEND_UPDATES`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ExternalOnly => "externalOnly",
            Self::All => "all",
        }
    }
}

/// Logs and traces.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// `LOG_FORMAT` (`human` on a terminal, else `json`)
    pub json_logs: bool,
    /// `RUST_LOG` (`info`)
    pub filter: String,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`; traces are exported when it is set.
    pub otlp_endpoint: Option<String>,
    /// `OTEL_SERVICE_NAME` (`meet-projector`)
    pub service_name: String,
}
