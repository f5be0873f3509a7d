//! The environment: every mistake at once, secrets from files, and a `.env.example` that is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use meet_projector::cli::config::{ConfigAction, run};
use meet_projector::config::variables::VARIABLES;
use meet_projector::config::{Config, Need, env_example};
use secrecy::ExposeSecret as _;

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn complete() -> BTreeMap<String, String> {
    environment(&[
        ("GOOGLE_CLIENT_ID", "client"),
        ("GOOGLE_CLIENT_SECRET", "client-secret"),
        ("GOOGLE_ENCRYPTION_KEY", KEY),
        ("WP_BASE_URL", "https://school.example"),
    ])
}

fn with(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut environment = complete();
    environment.extend(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    environment
}

fn mistakes(environment: &BTreeMap<String, String>, need: Need) -> String {
    Config::load(environment, need).expect_err("there are mistakes").to_string()
}

fn write_secret(path: &Path, content: &str, mode: u32) -> String {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn printed(environment: &BTreeMap<String, String>, action: ConfigAction, as_json: bool) -> (u8, String) {
    let mut out = Vec::new();
    let code = run(action, environment, as_json, &mut out).unwrap();
    (code, String::from_utf8(out).unwrap())
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = Config::load(&complete(), Need::Serve).unwrap();
    assert_eq!(config.environment, "production");
    assert_eq!(config.http.address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.http.admin_address, None);
    assert_eq!(config.database.0.expose_secret(), "sqlite://data/meet-projector.db");
    assert_eq!(config.nats.url.expose_secret(), "nats://127.0.0.1:4222");
    assert_eq!(
        [&config.nats.stream, &config.nats.consumer, &config.nats.subjects, &config.nats.meet_stream],
        ["BOOKINGS", "meet-projector", "bookings.session.*.*", "MEET"]
    );
    let google = config.google.expect("serve needs Google");
    assert_eq!(google.calendar_api_root.as_str(), "https://www.googleapis.com/calendar/v3");
    assert_eq!(google.scopes, ["openid", "email", "https://www.googleapis.com/auth/calendar.events"]);
    assert_eq!((google.max_in_flight, google.rate_per_teacher, google.rate_per_project), (32, 2, 80));
    assert_eq!((google.attendees, google.send_updates.as_str()), (false, "none"));
    assert_eq!((config.telemetry.filter.as_str(), config.telemetry.otlp_endpoint), ("info", None));
}

#[test]
fn every_mistake_is_reported_at_once() {
    let environment = environment(&[
        ("MEET_ENVIRONMENT", "Prod!"),
        ("MEET_ENVIROMENT", "staging"),
        ("MEET_XYZZY", "1"),
        ("HTTP_ADDR", "localhost:8080"),
        ("DATABASE_URL", "mysql://me:hunter2@db/x"),
        ("NATS_URL", "nats://a:4222,http://b"),
        ("NATS_SUBJECTS", "bookings.>"),
        ("NATS_STREAM", "book.ings"),
        ("NATS_CREDS_FILE", "/nowhere/at.creds"),
        ("GOOGLE_ENCRYPTION_KEY", "abc"),
        ("GOOGLE_TOKEN_URI", "http://tokens.example/token"),
        ("GOOGLE_AUTH_URI", "http://127.0.0.1:9/auth"),
        ("GOOGLE_RATE_PER_TEACHER", "-1"),
        ("GOOGLE_MAX_IN_FLIGHT", "0"),
        ("GOOGLE_ATTENDEES", "yes"),
        ("GOOGLE_SEND_UPDATES", "everyone"),
        ("GOOGLE_SCOPES", "openid email"),
        ("JWT_HS256_SECRET", "too short"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "meet_projector=loud"),
    ]);
    insta::assert_snapshot!(mistakes(&environment, Need::Serve), @r#"
    22 mistakes in the configuration:
      DATABASE_URL: its value is not allowed (allowed: sqlite://<file>, postgres://… or postgresql://…)
      GOOGLE_ATTENDEES: "yes" is not allowed (allowed: true or false)
      GOOGLE_CLIENT_ID: is required and not set (allowed: the OAuth client id from Google's console)
      GOOGLE_CLIENT_SECRET: is required and not set, nor is GOOGLE_CLIENT_SECRET_FILE (allowed: the OAuth client secret from Google's console)
      GOOGLE_ENCRYPTION_KEY: its value is not allowed (allowed: 64 hex digits, such as `openssl rand -hex 32` makes)
      GOOGLE_MAX_IN_FLIGHT: "0" is not allowed (allowed: a whole number from 1 to 1000)
      GOOGLE_RATE_PER_TEACHER: "-1" is not allowed (allowed: a whole number from 0 to 10000, 0 = off)
      GOOGLE_SCOPES: "openid email" is not allowed (allowed: scopes separated by spaces, one of them calendar, calendar.events or calendar.events.owned)
      GOOGLE_SEND_UPDATES: "everyone" is not allowed (allowed: none, externalOnly or all)
      GOOGLE_TOKEN_URI: "http://tokens.example/token" is not allowed (allowed: an https URL (http on a loopback host only))
      HTTP_ADDR: "localhost:8080" is not allowed (allowed: an IP address and a port, such as 127.0.0.1:8080)
      JWT_HS256_SECRET: its value is not allowed (allowed: at least 32 bytes (RFC 7518 section 3.2))
      LOG_FORMAT: "xml" is not allowed (allowed: human or json)
      MEET_ENVIROMENT: is not a variable of this program; did you mean MEET_ENVIRONMENT?
      MEET_ENVIRONMENT: "Prod!" is not allowed (allowed: 1 to 32 of a-z 0-9 -)
      MEET_XYZZY: is not a variable of this program
      NATS_CREDS_FILE: /nowhere/at.creds cannot be read: No such file or directory (os error 2) (allowed: a readable .creds file)
      NATS_STREAM: "book.ings" is not allowed (allowed: 1 to 255 printable characters without space . * > / \)
      NATS_SUBJECTS: "bookings.>" is not allowed (allowed: one subject filter whose last two tokens are * (session and change), and no other)
      NATS_URL: its value is not allowed (allowed: nats:// or tls:// URLs, separated by commas)
      RUST_LOG: "meet_projector=loud" is not allowed (allowed: a filter such as info or meet_projector=debug,info)
      WP_BASE_URL: is required and not set (allowed: an http or https URL without query or fragment)
    "#);
}

#[test]
fn what_is_required_depends_on_the_command() {
    let none = BTreeMap::new();
    insta::assert_snapshot!(mistakes(&none, Need::Serve), @r"
    4 mistakes in the configuration:
      GOOGLE_CLIENT_ID: is required and not set (allowed: the OAuth client id from Google's console)
      GOOGLE_CLIENT_SECRET: is required and not set, nor is GOOGLE_CLIENT_SECRET_FILE (allowed: the OAuth client secret from Google's console)
      GOOGLE_ENCRYPTION_KEY: is required and not set, nor is GOOGLE_ENCRYPTION_KEY_FILE (allowed: 64 hex digits, such as `openssl rand -hex 32` makes)
      WP_BASE_URL: is required and not set (allowed: an http or https URL without query or fragment)
    ");
    insta::assert_snapshot!(mistakes(&none, Need::Google), @r"
    3 mistakes in the configuration:
      GOOGLE_CLIENT_ID: is required and not set (allowed: the OAuth client id from Google's console)
      GOOGLE_CLIENT_SECRET: is required and not set, nor is GOOGLE_CLIENT_SECRET_FILE (allowed: the OAuth client secret from Google's console)
      GOOGLE_ENCRYPTION_KEY: is required and not set, nor is GOOGLE_ENCRYPTION_KEY_FILE (allowed: 64 hex digits, such as `openssl rand -hex 32` makes)
    ");
    for need in [Need::Database, Need::Nats] {
        assert!(Config::load(&none, need).unwrap().google.is_none());
        let wrong = environment(&[("GOOGLE_SEND_UPDATES", "everyone")]);
        assert!(mistakes(&wrong, need).contains("GOOGLE_SEND_UPDATES"), "what is set is checked whatever is needed");
    }
}

#[test]
fn keys_of_jwts_are_looked_at_before_anybody_needs_them() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/keys");
    let folder = tempfile::tempdir().unwrap();
    let set = write_secret(&folder.path().join("set.json"), r#"{"keys":[]}"#, 0o644);
    let public = std::fs::read_to_string(format!("{keys}/rsa.pub.pem")).unwrap();
    let text = mistakes(
        &with(&[
            ("JWT_HS256_SECRET", &public),
            ("JWT_PUBLIC_KEY_FILE", &format!("{keys}/rsa.pem")),
            ("JWT_JWKS_URL", &set),
            ("API_RATE_LIMIT", "fast"),
        ]),
        Need::Serve,
    );
    let text = text.replace(folder.path().to_str().unwrap(), "[folder]").replace(keys, "[keys]");
    insta::assert_snapshot!(text, @r#"
    4 mistakes in the configuration:
      API_RATE_LIMIT: "fast" is not allowed (allowed: a whole number from 0 to 1000000, 0 = off)
      JWT_HS256_SECRET: its value is not allowed (allowed: at least 32 bytes (RFC 7518 section 3.2))
      JWT_JWKS_URL: [folder]/set.json: it holds no key for RS256, ES256 or EdDSA (allowed: an https URL (http on a loopback host only), a file URL or a path)
      JWT_PUBLIC_KEY_FILE: [keys]/rsa.pem: it holds a private key, not a public key; keep it with who signs; `openssl pkey -pubout -in FILE` makes the public one (allowed: a PEM file with PUBLIC KEY blocks (RSA, P-256 or Ed25519))
    "#);
    let good = with(&[
        ("JWT_HS256_SECRET", "0123456789abcdef0123456789abcdef"),
        ("JWT_PUBLIC_KEY_FILE", &format!("{keys}/ed25519.pub.pem")),
        ("JWT_JWKS_URL", "https://school.example/.well-known/jwks.json"),
    ]);
    let jwt = Config::load(&good, Need::Serve).unwrap().http.jwt();
    assert_eq!((jwt.public_keys.len(), jwt.hs256_secret.is_some(), jwt.jwks.is_some()), (1, true, true));
    for bad in ["http://school.example/keys", "ftp://school.example/keys", "/nowhere/keys.json"] {
        assert!(mistakes(&with(&[("JWT_JWKS_URL", bad)]), Need::Serve).contains("JWT_JWKS_URL: "), "{bad}");
    }
}

#[test]
fn an_empty_value_counts_as_unset() {
    let config = Config::load(&with(&[("HTTP_ADDR", ""), ("ADMIN_ADDR", " "), ("NATS_CREDS_FILE", "")]), Need::Serve);
    assert_eq!(config.unwrap().http.address.port(), 8080);
    assert!(
        mistakes(&with(&[("GOOGLE_CLIENT_SECRET", "")]), Need::Serve).contains("GOOGLE_CLIENT_SECRET: is required")
    );
}

#[test]
fn secrets_come_from_files_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_secret(&folder.path().join("secret"), "from-file\n", 0o600);
    let mut environment = complete();
    environment.remove("GOOGLE_CLIENT_SECRET");
    environment.insert("GOOGLE_CLIENT_SECRET_FILE".into(), path);
    let config = Config::load(&environment, Need::Serve).unwrap();
    assert_eq!(config.google.unwrap().client_secret.expose_secret(), "from-file");
}

#[test]
fn a_secret_file_must_be_readable_private_not_empty_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str, content: &str, mode: u32| write_secret(&folder.path().join(name), content, mode);
    let mut environment = complete();
    environment.remove("GOOGLE_ENCRYPTION_KEY");
    environment.extend([
        ("GOOGLE_CLIENT_SECRET_FILE".to_owned(), secret("both", "x", 0o600)),
        ("GOOGLE_ENCRYPTION_KEY_FILE".to_owned(), secret("open", KEY, 0o646)),
        ("JWT_HS256_SECRET_FILE".to_owned(), secret("empty", "\n", 0o600)),
        ("NATS_URL_FILE".to_owned(), folder.path().join("missing").to_str().unwrap().to_owned()),
    ]);
    let text = mistakes(&environment, Need::Serve).replace(folder.path().to_str().unwrap(), "[folder]");
    insta::assert_snapshot!(text, @r"
    4 mistakes in the configuration:
      GOOGLE_CLIENT_SECRET: GOOGLE_CLIENT_SECRET_FILE is set too; keep one of them
      GOOGLE_ENCRYPTION_KEY_FILE: [folder]/open is open to other accounts (mode 646); run `chmod 600` on it, or let it belong to root and be writable by nobody else
      JWT_HS256_SECRET_FILE: [folder]/empty is empty
      NATS_URL_FILE: [folder]/missing cannot be read: No such file or directory (os error 2)
    ");
}

/// As Kubernetes mounts secrets: mode 644, root's. Somebody else's file of that mode is refused.
#[test]
fn what_root_publishes_is_taken_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let path = write_secret(&folder.path().join("secret"), "from-file\n", 0o644);
    let mut environment = complete();
    environment.remove("GOOGLE_CLIENT_SECRET");
    environment.insert("GOOGLE_CLIENT_SECRET_FILE".into(), path.clone());
    let is_roots = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).unwrap()) == 0;
    match Config::load(&environment, Need::Serve) {
        Ok(config) => {
            assert!(is_roots);
            assert_eq!(config.google.unwrap().client_secret.expose_secret(), "from-file");
            assert_eq!(config.notes.len(), 1, "{:?}", config.notes);
            assert!(config.notes[0].starts_with("GOOGLE_CLIENT_SECRET_FILE: ") && config.notes[0].contains("mode 644"));
            let (code, text) = printed(&environment, ConfigAction::Check, false);
            assert!(code == 0 && text.contains("note: GOOGLE_CLIENT_SECRET_FILE"), "{text}");
        }
        Err(errors) => assert!(!is_roots && errors.to_string().contains("mode 644"), "{errors}"),
    }
}

#[test]
fn google_may_be_http_on_a_loopback_host_only() {
    for good in ["http://127.0.0.1:9/x", "http://localhost:9/x", "http://[::1]:9/x", "http://fake.localhost/x"] {
        Config::load(&with(&[("GOOGLE_CALENDAR_API_ROOT", good)]), Need::Serve).unwrap();
    }
    for bad in ["http://google.example/x", "http://127.0.0.1.example/x", "http://10.0.0.1/x", "ftp://localhost/x", "x"]
    {
        assert!(mistakes(&with(&[("GOOGLE_CALENDAR_API_ROOT", bad)]), Need::Serve).contains("https"), "{bad}");
    }
}

#[test]
fn print_shows_origins_and_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let database = write_secret(&folder.path().join("url"), "postgres://me:hunter2@db.example/meet?password=x", 0o600);
    let environment = with(&[
        ("DATABASE_URL_FILE", &database),
        ("NATS_URL", "nats://me:hunter2@one:4222,tls://token@two:4222"),
        ("OPS_WEBHOOK_URL", "https://hooks.example/hunter2"),
        ("GOOGLE_ENCRYPTION_KEYS_OLD", KEY),
    ]);
    let (code, human) = printed(&environment, ConfigAction::Print, false);
    assert_eq!(code, 0);
    let (_, json) = printed(&environment, ConfigAction::Print, true);
    for text in [&human, &json] {
        for secret in ["hunter2", "client-secret", KEY, "token@", "password=x"] {
            assert!(!text.contains(secret), "{secret} is shown in\n{text}");
        }
    }
    let line = |name: &str| human.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    insta::assert_snapshot!(
        ["DATABASE_URL", "NATS_URL", "GOOGLE_CLIENT_SECRET", "GOOGLE_CLIENT_ID", "HTTP_ADDR", "ADMIN_ADDR"].map(line).join("\n"),
        @r"
    DATABASE_URL                 file     postgres://***@db.example/meet?***
    NATS_URL                     env      nats://***@one:4222,tls://***@two:4222
    GOOGLE_CLIENT_SECRET         env      ***
    GOOGLE_CLIENT_ID             env      client
    HTTP_ADDR                    default  127.0.0.1:8080
    ADMIN_ADDR                   unset    -
    "
    );
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), VARIABLES.len());
}

#[test]
fn check_ends_with_3_on_a_mistake() {
    assert_eq!(printed(&complete(), ConfigAction::Check, false).0, 0);
    let (code, text) = printed(&with(&[("HTTP_ADDR", "8080")]), ConfigAction::Check, false);
    assert_eq!(code, 3);
    insta::assert_snapshot!(text, @r#"HTTP_ADDR: "8080" is not allowed (allowed: an IP address and a port, such as 127.0.0.1:8080)"#);
    let (code, text) = printed(&with(&[("HTTP_ADDR", "8080")]), ConfigAction::Check, true);
    assert_eq!(code, 3);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["mistakes"][0]["variable"], "HTTP_ADDR");
}

#[test]
fn every_default_is_allowed() {
    let mut environment = complete();
    for variable in VARIABLES {
        if let Some(default) = variable.default {
            assert!(variable.required_for.is_empty(), "{} has a default and is required", variable.name);
            environment.insert(variable.name.to_owned(), default.to_owned());
        }
    }
    Config::load(&environment, Need::Serve).unwrap();
}

#[test]
fn env_example_is_complete_both_ways() {
    let file = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.env.example")).unwrap();
    let named: BTreeSet<&str> = file
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        .collect();
    let known: BTreeSet<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(named, known);
    assert_eq!(file, env_example(), "`meet-projector config example > .env.example` renews it");
}
