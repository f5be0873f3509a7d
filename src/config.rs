//! Settings from environment variables: sections, defaults, validation; all mistakes are reported at once.
//!
//! [`variables`] is the one list of names; this module turns their values into types. Deliberately absent: a
//! configuration file, since containers, systemd and `.env` files all speak environment, and one way is enough.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use crate::api::auth::{JwksSource, JwtOptions, PublicKey};
use crate::store::DatabaseUrl;
pub use read::Origin;
use read::Reader;
pub use values::is_loopback;
use values::{
    SAMPLERS, each, encryption_key, is_database_url, nats_name, nats_url, readable_file, safe_url, scopes,
    subject_filter, web_url,
};
use variables::{Section, VARIABLES, Variable};

mod jwt;
mod read;
mod values;
pub mod variables;

/// What a command cannot do without. Mistakes in variables that are set are reported whatever it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Everything.
    Serve,
    /// The database: `migrate`, `token`, `dead-letter`.
    Database,
    /// NATS: `nats`.
    Nats,
    /// Google and the keys that seal its tokens: `verify --google`, `keys`, `credential`.
    Google,
}

/// One mistake, in words for the person who has to mend it; never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The variable as it was set, `NAME` or `NAME_FILE`.
    pub variable: String,
    /// What is wrong.
    pub problem: String,
    /// What is allowed.
    pub allowed: Option<&'static str>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.problem)?;
        if let Some(allowed) = self.allowed {
            write!(f, " (allowed: {allowed})")?;
        }
        Ok(())
    }
}

/// All mistakes of an environment, at least one, by name. Its text has one line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Mistake>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let many = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} {many} in the configuration:", self.0.len())?;
        for mistake in &self.0 {
            write!(f, "\n  {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// One line of `config print`.
#[derive(Debug)]
pub struct Setting {
    /// The variable.
    pub variable: &'static Variable,
    /// Its effective value, secrets as `***`; `None` when it is unset.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
}

/// The variables of this process. Bytes that are not UTF-8 become U+FFFD, which no variable of ours allows.
pub fn process_environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

/// Every variable with its effective value, in the order of [`VARIABLES`]; values are not checked.
pub fn effective(environment: &BTreeMap<String, String>) -> Vec<Setting> {
    let reader = Reader::new(environment);
    VARIABLES
        .iter()
        .map(|variable| {
            let (value, origin) = reader.shown(variable);
            Setting { variable, value, origin }
        })
        .collect()
}

/// The text of `.env.example`: every variable with what it does, what is allowed and its default.
pub fn env_example() -> String {
    let mut text = String::from(
        "# Settings of meet-projector. Lines that are commented out show the default, or an empty value where there is\n\
         # none. A secret may be given as NAME_FILE instead, naming a file that only its owner can read, or that belongs to\n\
         # root and only root can write. `meet-projector config check` names every mistake at once;\n\
         # `meet-projector config example` printed this file.\n",
    );
    let mut section: Option<Section> = None;
    for variable in VARIABLES {
        if section != Some(variable.section) {
            section = Some(variable.section);
            text += &["\n# ---- ", variable.section.title(), " ----\n"].concat();
        }
        let required = if variable.required_for.is_empty() { "" } else { " Required." };
        let secret = if variable.may_be_a_file() { " Secret." } else { "" };
        let mark = if variable.required_for.is_empty() { "# " } else { "" };
        let default = variable.default.unwrap_or_default();
        text += &["\n# ", variable.doc, "\n# Allowed: ", variable.allowed, ".", required, secret, "\n"].concat();
        text += &[mark, variable.name, "=", default, "\n"].concat();
    }
    text
}

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
    /// The Google side; there whenever [`Need::Serve`] or [`Need::Google`] was asked for, else only when its required
    /// variables are set.
    pub google: Option<GoogleConfig>,
    /// Logs and traces.
    pub telemetry: TelemetryConfig,
    /// What is allowed and worth a warning: secret files that others can read.
    pub notes: Vec<String>,
}

/// Addresses and access of the API.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// `HTTP_ADDR`
    pub address: SocketAddr,
    /// `ADMIN_ADDR`: where `/metrics` and the health routes are served instead, when set.
    pub admin_address: Option<SocketAddr>,
    /// `API_TOKENS_FILE`: JSON lines `{"token","name","role"}`, accepted beside those in the database.
    pub tokens_file: Option<PathBuf>,
    /// `WP_BASE_URL`
    pub wp_base_url: Option<Url>,
    /// `OAUTH_RETURN_URLS`
    pub return_urls: Vec<Url>,
    /// `JWT_HS256_SECRET`
    pub jwt_hs256_secret: Option<SecretString>,
    /// `JWT_PUBLIC_KEY_FILE`, read: one key or several.
    pub jwt_public_keys: Vec<PublicKey>,
    /// `JWT_JWKS_URL`
    pub jwt_jwks: Option<JwksSource>,
    /// `JWT_ISSUER`
    pub jwt_issuer: Option<String>,
    /// `JWT_AUDIENCE`
    pub jwt_audience: Option<String>,
    /// `API_RATE_LIMIT` (100): requests per second for each credential, 0 = off.
    pub rate_limit: u32,
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
    /// `OTEL_EXPORTER_OTLP_HEADERS`: `name=value` pairs, separated by commas.
    pub otlp_headers: Option<SecretString>,
    /// `OTEL_SERVICE_NAME` (`meet-projector`)
    pub service_name: String,
}

impl Config {
    /// Reads and checks everything. On a mistake no part of it is handed out.
    pub fn load(environment: &BTreeMap<String, String>, need: Need) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::new(environment);
        reader.require(need);
        let config = Self::read(&mut reader);
        let mistakes = reader.into_mistakes();
        match config {
            Some(config) if mistakes.is_empty() => Ok(config),
            // Every `None` below goes with a mistake noted by the reader; an empty list would be a fault of ours.
            _ => Err(ConfigErrors(mistakes)),
        }
    }

    fn read(from: &mut Reader) -> Option<Self> {
        // All sections are read before the first `?`, so that each can note its mistakes.
        let environment = from.parse("MEET_ENVIRONMENT", |text| {
            let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            ((1..=32).contains(&text.len()) && text.bytes().all(allowed)).then(|| text.to_owned())
        });
        let http = HttpConfig::read(from);
        let database = from.parse("DATABASE_URL", |text| is_database_url(text).then(|| DatabaseUrl(text.into())));
        let nats = NatsConfig::read(from);
        let google = GoogleConfig::read(from);
        let telemetry = TelemetryConfig::read(from);
        Some(Self {
            environment: environment?,
            http: http?,
            database: database?,
            nats: nats?,
            google,
            telemetry: telemetry?,
            notes: from.take_notes(),
        })
    }
}

impl HttpConfig {
    fn read(from: &mut Reader) -> Option<Self> {
        let address = from.parse("HTTP_ADDR", |text| text.parse::<SocketAddr>().ok());
        let rate_limit = from.parse("API_RATE_LIMIT", |text| text.parse::<u32>().ok().filter(|n| *n <= 1_000_000));
        Some(Self {
            admin_address: from.parse("ADMIN_ADDR", |text| text.parse::<SocketAddr>().ok()),
            tokens_file: readable_file(from, "API_TOKENS_FILE"),
            wp_base_url: from.parse("WP_BASE_URL", |text| web_url(text).filter(|url| url.query().is_none())),
            return_urls: from.parse("OAUTH_RETURN_URLS", |text| each(text, web_url)).unwrap_or_default(),
            jwt_hs256_secret: jwt::hs256_secret(from),
            jwt_public_keys: jwt::public_keys(from),
            jwt_jwks: jwt::jwks(from),
            jwt_issuer: from.text("JWT_ISSUER"),
            jwt_audience: from.text("JWT_AUDIENCE"),
            ops_webhook_url: from.parse("OPS_WEBHOOK_URL", |text| web_url(text).map(|url| String::from(url).into())),
            rate_limit: rate_limit?,
            address: address?,
        })
    }
}

impl HttpConfig {
    /// What JWTs have to be.
    pub fn jwt(&self) -> JwtOptions {
        JwtOptions {
            hs256_secret: self.jwt_hs256_secret.clone(),
            public_keys: self.jwt_public_keys.clone(),
            jwks: self.jwt_jwks.clone(),
            issuer: self.jwt_issuer.clone(),
            audience: self.jwt_audience.clone(),
        }
    }
}

impl NatsConfig {
    fn read(from: &mut Reader) -> Option<Self> {
        let url = from.parse("NATS_URL", |text| each(text, nats_url).map(|urls| urls.join(",").into()));
        let stream = from.parse("NATS_STREAM", |text| nats_name(text, 255));
        let consumer = from.parse("NATS_CONSUMER", |text| nats_name(text, 200));
        let subjects = from.parse("NATS_SUBJECTS", subject_filter);
        let meet_stream = from.parse("MEET_STREAM", |text| nats_name(text, 255));
        Some(Self {
            creds_file: readable_file(from, "NATS_CREDS_FILE"),
            tls_ca_file: readable_file(from, "NATS_TLS_CA_FILE"),
            url: url?,
            stream: stream?,
            consumer: consumer?,
            subjects: subjects?,
            meet_stream: meet_stream?,
        })
    }
}

impl GoogleConfig {
    fn read(from: &mut Reader) -> Option<Self> {
        let client_id = from.text("GOOGLE_CLIENT_ID");
        let client_secret = from.secret("GOOGLE_CLIENT_SECRET");
        let key = from.parse("GOOGLE_ENCRYPTION_KEY", encryption_key);
        let old = from.parse("GOOGLE_ENCRYPTION_KEYS_OLD", |text| each(text, encryption_key)).unwrap_or_default();
        let scopes = from.parse("GOOGLE_SCOPES", scopes);
        let auth_uri = from.parse("GOOGLE_AUTH_URI", safe_url);
        let token_uri = from.parse("GOOGLE_TOKEN_URI", safe_url);
        let revoke_uri = from.parse("GOOGLE_REVOKE_URI", safe_url);
        let calendar_api_root = from.parse("GOOGLE_CALENDAR_API_ROOT", safe_url);
        let max_in_flight =
            from.parse("GOOGLE_MAX_IN_FLIGHT", |text| text.parse().ok().filter(|n| (1..=1000).contains(n)));
        let rate = |text: &str| text.parse::<u32>().ok().filter(|n| *n <= 10_000);
        let rate_per_teacher = from.parse("GOOGLE_RATE_PER_TEACHER", rate);
        let rate_per_project = from.parse("GOOGLE_RATE_PER_PROJECT", rate);
        let attendees = from.parse("GOOGLE_ATTENDEES", |text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        });
        let send_updates = from.parse("GOOGLE_SEND_UPDATES", |text| {
            [SendUpdates::None, SendUpdates::ExternalOnly, SendUpdates::All]
                .into_iter()
                .find(|word| word.as_str() == text)
        });
        Some(Self {
            client_id: client_id?,
            client_secret: client_secret?,
            encryption_key: key?,
            encryption_keys_old: old,
            scopes: scopes?,
            auth_uri: auth_uri?,
            token_uri: token_uri?,
            revoke_uri: revoke_uri?,
            calendar_api_root: calendar_api_root?,
            max_in_flight: max_in_flight?,
            rate_per_teacher: rate_per_teacher?,
            rate_per_project: rate_per_project?,
            attendees: attendees?,
            send_updates: send_updates?,
        })
    }
}

impl TelemetryConfig {
    fn read(from: &mut Reader) -> Option<Self> {
        let json_logs = if from.is_set("LOG_FORMAT") {
            from.parse("LOG_FORMAT", |text| match text {
                "human" => Some(false),
                "json" => Some(true),
                _ => None,
            })
        } else {
            Some(!std::io::IsTerminal::is_terminal(&std::io::stderr()))
        };
        let filter = from
            .parse("RUST_LOG", |text| tracing_subscriber::EnvFilter::try_new(text).is_ok().then(|| text.to_owned()));
        let ratio = |text: &str| text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
        from.parse("OTEL_TRACES_SAMPLER_ARG", ratio);
        from.parse("OTEL_TRACES_SAMPLER", |text| SAMPLERS.contains(&text).then_some(()));
        let pairs = |text: &str| each(text, |pair| pair.contains('=').then_some(()));
        from.parse("OTEL_RESOURCE_ATTRIBUTES", pairs);
        from.parse("OTEL_EXPORTER_OTLP_HEADERS", pairs);
        Some(Self {
            otlp_endpoint: from.parse("OTEL_EXPORTER_OTLP_ENDPOINT", |text| web_url(text).map(String::from)),
            otlp_headers: from.secret("OTEL_EXPORTER_OTLP_HEADERS"),
            service_name: from.text("OTEL_SERVICE_NAME").unwrap_or_default(),
            json_logs: json_logs?,
            filter: filter?,
        })
    }
}
