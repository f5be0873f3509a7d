//! The one list of environment variables: parsing, `config print`, `.env.example` and the documentation follow it.

use super::Need;

/// What a variable belongs to, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// This installation.
    Installation,
    /// Addresses and access of the API.
    Http,
    /// The database.
    Database,
    /// The NATS side.
    Nats,
    /// The Google side.
    Google,
    /// Logs and traces.
    Telemetry,
}

impl Section {
    /// The heading.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Installation => "Installation",
            Self::Http => "HTTP and access",
            Self::Database => "Database",
            Self::Nats => "NATS",
            Self::Google => "Google",
            Self::Telemetry => "Logs and traces",
        }
    }
}

/// How much of a value may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// All of it.
    Open,
    /// A URL, or several separated by commas: all but user, password and query.
    Url,
    /// Nothing.
    Secret,
}

/// One environment variable.
#[derive(Debug)]
pub struct Variable {
    /// Its name. Where it is a secret, `<name>_FILE` may name a file that holds the value instead.
    pub name: &'static str,
    /// What it belongs to.
    pub section: Section,
    /// How much of it may be shown.
    pub secrecy: Secrecy,
    /// What holds when it is not set.
    pub default: Option<&'static str>,
    /// The commands that cannot do without it; it has no default then.
    pub required_for: &'static [Need],
    /// What is allowed, as a noun phrase.
    pub allowed: &'static str,
    /// What it does, and what happens when it is too high or too low.
    pub doc: &'static str,
}

impl Variable {
    /// Whether `<name>_FILE` is understood too.
    pub fn may_be_a_file(&self) -> bool {
        self.secrecy != Secrecy::Open
    }
}

/// The variable of that name.
pub fn find(name: &str) -> Option<&'static Variable> {
    VARIABLES.iter().find(|variable| variable.name == name)
}

const SERVE: &[Need] = &[Need::Serve];
const GOOGLE: &[Need] = &[Need::Serve, Need::Google];

macro_rules! variable {
    ($name:literal, $section:ident, $secrecy:ident, $default:expr, $required:expr, $allowed:literal, $doc:literal) => {
        Variable {
            name: $name,
            section: Section::$section,
            secrecy: Secrecy::$secrecy,
            default: $default,
            required_for: $required,
            allowed: $allowed,
            doc: $doc,
        }
    };
}

/// Every variable that is understood, in the order in which people read them.
#[rustfmt::skip]
pub static VARIABLES: &[Variable] = &[
    variable!("MEET_ENVIRONMENT", Installation, Open, Some("production"), &[], "1 to 32 of a-z 0-9 -",
        "Part of every event id at Google, so that two installations (production, staging) never share one. Never \
         change it afterwards: the service would not know its own events again."),

    variable!("HTTP_ADDR", Http, Open, Some("127.0.0.1:8080"), &[], "an IP address and a port, such as 127.0.0.1:8080",
        "Where the API listens. Port 0 lets the system choose."),
    variable!("ADMIN_ADDR", Http, Open, None, &[], "an IP address and a port, such as 127.0.0.1:9090",
        "Where /livez, /readyz and /metrics are served instead. Without it they are on HTTP_ADDR, open to everybody \
         who reaches it."),
    variable!("API_TOKENS_FILE", Http, Open, None, &[], "a readable file, each line {\"token\",\"name\",\"role\"}",
        "API tokens beside those in the database, as JSON lines; read again while running."),
    variable!("WP_BASE_URL", Http, Open, None, SERVE, "an http or https URL without query or fragment",
        "The WordPress site. Google sends teachers back to <this>/api/google/oauth/callback, which must be \
         registered with the OAuth client."),
    variable!("OAUTH_RETURN_URLS", Http, Open, None, &[], "http or https URLs without fragment, separated by commas",
        "Pages that a teacher may be sent to after connecting: these and what lies below their paths, with the same scheme, \
         host and port; one with a query is that page alone. The first one is used where none is asked for."),
    variable!("API_RATE_LIMIT", Http, Open, Some("100"), &[], "a whole number from 0 to 1000000, 0 = off",
        "Requests per second for each credential, and for each address without one; twice as many at once. Too low \
         refuses busy pages with 429."),
    variable!("JWT_HS256_SECRET", Http, Secret, None, &[], "at least 32 bytes (RFC 7518 section 3.2)",
        "The secret the NestJS backend signs its JWTs with (HS256). Without any JWT_ key no JWT is accepted."),
    variable!("JWT_PUBLIC_KEY_FILE", Http, Open, None, &[], "a PEM file with PUBLIC KEY blocks (RSA, P-256 or Ed25519)",
        "The public key of JWTs signed with RS256, ES256 or EdDSA; several while keys are being changed."),
    variable!("JWT_JWKS_URL", Http, Url, None, &[],
        "an https URL (http on a loopback host only), a file URL or a path",
        "Where the public keys of JWTs are published. Read again every 5 minutes, and when a token names a new key."),
    variable!("JWT_ISSUER", Http, Open, None, &[], "any text", "What `iss` of a JWT must be, when set."),
    variable!("JWT_AUDIENCE", Http, Open, None, &[], "any text", "What `aud` of a JWT must hold, when set."),
    variable!("OPS_WEBHOOK_URL", Http, Secret, None, &[], "an http or https URL",
        "A Slack-compatible webhook for what a person has to know."),

    variable!("DATABASE_URL", Database, Url, Some("sqlite://data/meet-projector.db"), &[],
        "sqlite://<file>, postgres://… or postgresql://…",
        "SQLite is for one process; PostgreSQL lets several share the work."),

    variable!("NATS_URL", Nats, Url, Some("nats://127.0.0.1:4222"), &[],
        "nats:// or tls:// URLs, separated by commas", "The NATS servers; may hold user and password."),
    variable!("NATS_CREDS_FILE", Nats, Open, None, &[], "a readable .creds file", "JWT and seed of the NATS user."),
    variable!("NATS_TLS_CA_FILE", Nats, Open, None, &[], "a readable PEM file",
        "Certificate authorities to trust at the NATS servers."),
    variable!("NATS_STREAM", Nats, Open, Some("BOOKINGS"), &[], "1 to 255 printable characters without space . * > / \\",
        "The stream with the booking events."),
    variable!("NATS_CONSUMER", Nats, Open, Some("meet-projector"), &[],
        "1 to 200 printable characters without space . * > / \\",
        "The durable consumer; -e<epoch> is appended. Replicas share one, installations must not."),
    variable!("NATS_SUBJECTS", Nats, Open, Some("bookings.session.*.*"), &[],
        "one subject filter whose last two tokens are * (session and change), and no other",
        "Which subjects of the stream are booking events."),
    variable!("MEET_STREAM", Nats, Open, Some("MEET"), &[], "1 to 255 printable characters without space . * > / \\",
        "The stream that results are published to."),

    variable!("GOOGLE_CLIENT_ID", Google, Open, None, GOOGLE, "the OAuth client id from Google's console", "The OAuth client."),
    variable!("GOOGLE_CLIENT_SECRET", Google, Secret, None, GOOGLE, "the OAuth client secret from Google's console",
        "The OAuth client's secret."),
    variable!("GOOGLE_ENCRYPTION_KEY", Google, Secret, None, GOOGLE, "64 hex digits, such as `openssl rand -hex 32` makes",
        "Seals the teachers' tokens in the database. Losing it means that every teacher has to connect again."),
    variable!("GOOGLE_ENCRYPTION_KEYS_OLD", Google, Secret, None, &[], "keys of 64 hex digits, newest first, separated by commas",
        "Keys that still open what was sealed before; `keys rotate` makes them unnecessary."),
    variable!("GOOGLE_SCOPES", Google, Open, Some("openid email https://www.googleapis.com/auth/calendar.events"), &[],
        "scopes separated by spaces, one of them calendar, calendar.events or calendar.events.owned",
        "What teachers are asked to grant."),
    variable!("GOOGLE_AUTH_URI", Google, Open, Some("https://accounts.google.com/o/oauth2/v2/auth"), &[],
        "an https URL (http on a loopback host only)", "Google's consent page."),
    variable!("GOOGLE_TOKEN_URI", Google, Open, Some("https://oauth2.googleapis.com/token"), &[],
        "an https URL (http on a loopback host only)", "Google's token endpoint."),
    variable!("GOOGLE_REVOKE_URI", Google, Open, Some("https://oauth2.googleapis.com/revoke"), &[],
        "an https URL (http on a loopback host only)", "Google's revocation endpoint."),
    variable!("GOOGLE_CALENDAR_API_ROOT", Google, Open, Some("https://www.googleapis.com/calendar/v3"), &[],
        "an https URL (http on a loopback host only)", "The Calendar API."),
    variable!("GOOGLE_MAX_IN_FLIGHT", Google, Open, Some("32"), &[], "a whole number from 1 to 1000",
        "Calls to Google at once. Too low makes a backlog drain slowly; too high wastes connections, since the rates \
         below hold anyway."),
    variable!("GOOGLE_RATE_PER_TEACHER", Google, Open, Some("2"), &[], "a whole number from 0 to 10000, 0 = off",
        "Requests per second for one teacher. Too high brings 403 rateLimitExceeded and cool-downs."),
    variable!("GOOGLE_RATE_PER_PROJECT", Google, Open, Some("80"), &[], "a whole number from 0 to 10000, 0 = off",
        "Requests per second for the whole Google project, over all teachers of this process; divide it by the replicas."),
    variable!("GOOGLE_ATTENDEES", Google, Open, Some("false"), &[], "true or false",
        "Whether students are put on the event at Google as guests."),
    variable!("GOOGLE_SEND_UPDATES", Google, Open, Some("none"), &[], "none, externalOnly or all",
        "Whom Google mails about changes."),

    variable!("LOG_FORMAT", Telemetry, Open, None, &[], "human or json", "Log lines; human on a terminal and json elsewhere when not set."),
    variable!("RUST_LOG", Telemetry, Open, Some("info"), &[], "a filter such as info or meet_projector=debug,info",
        "Which log lines are written. Other crates are never logged at trace, where they write whole messages."),
    variable!("OTEL_EXPORTER_OTLP_ENDPOINT", Telemetry, Url, None, &[], "an http or https URL",
        "An OTLP/HTTP collector; traces are exported to <this>/v1/traces when it is set."),
    variable!("OTEL_EXPORTER_OTLP_HEADERS", Telemetry, Secret, None, &[], "name=value pairs, separated by commas",
        "Headers for the collector, such as its API key."),
    variable!("OTEL_SERVICE_NAME", Telemetry, Open, Some("meet-projector"), &[], "any text", "`service.name` of the traces."),
    variable!("OTEL_RESOURCE_ATTRIBUTES", Telemetry, Open, None, &[], "name=value pairs, separated by commas",
        "More attributes of the traces; read by the OpenTelemetry SDK."),
    variable!("OTEL_TRACES_SAMPLER", Telemetry, Open, None, &[],
        "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio",
        "Which traces are kept; read by the OpenTelemetry SDK."),
    variable!("OTEL_TRACES_SAMPLER_ARG", Telemetry, Open, None, &[], "a number from 0 to 1",
        "The share that a traceidratio sampler keeps; read by the OpenTelemetry SDK."),
];
