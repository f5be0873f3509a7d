//! A long bad day with the real program, every secret of it marked, and a search of all it said for the marks.
//!
//! The log is that of `RUST_LOG=trace`, so what libraries say of our requests counts as well. What may
//! hold a secret is named where it is allowed: the address of the consent page in the answer to a start, a new token on
//! the standard output of `token new`. Links, titles and addresses of people are allowed in documents, results and what
//! operators look at, and nowhere in logs, traces and metrics.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::process::{Child, Command, Stdio};

use axum::http::StatusCode;
use data_encoding::BASE64URL_NOPAD;
use meet_projector::fake::{Fault, Operation, Rule, TokenMode};
use meet_projector::model::Attendee;
use meet_projector::store::Role;
use reqwest::header::LOCATION;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use url::Url;

use crate::support::google::http_client;
use crate::support::service::{Setup, World, eventually, new_token};
use crate::telemetry::collector::Collector;

/// Begins every secret whose text is ours to choose.
const MARK: &str = "PLANTED";

/// What no output may hold: the marks, and how Google's tokens begin.
const SECRETS: [&str; 8] = [MARK, "ya29.", "1//", "4/0", "4%2F0", "5ec4e7", "424242424242", "eyJ"];

/// What only documents, results and operators may see.
const PERSONAL: [&str; 6] =
    ["meet.google.com", "Somebodys", "@example.com", "Ana Marked", "Piano", "school.example.com/sessions"];

/// Everything that the program said.
#[derive(Default)]
struct Said {
    /// Logs, traces, metrics: source and text.
    discreet: Vec<(String, String)>,
    /// What answers and commands show.
    open: Vec<(String, String)>,
    /// Secrets that are not marked: API tokens, states, codes.
    secrets: Vec<String>,
    /// The hashes of PKCE verifiers, which only the program knows.
    challenges: Vec<String>,
}

impl Said {
    fn check(&self) {
        let all = || self.discreet.iter().chain(&self.open);
        let mut found = String::new();
        let mut look = |source: &str, text: &str, secret: &str| {
            for line in text.lines().filter(|line| holds(line, secret)).take(2) {
                writeln!(found, "{secret} in {source}: {}", line.chars().take(600).collect::<String>()).unwrap();
            }
        };
        for (source, text) in all() {
            for secret in SECRETS.into_iter().chain(self.secrets.iter().map(String::as_str)) {
                look(source, text, secret);
            }
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"-._~".contains(c));
            for word in words.filter(|word| (43..=128).contains(&word.len())) {
                let hash = BASE64URL_NOPAD.encode(&Sha256::digest(word.as_bytes()));
                if self.challenges.contains(&hash) {
                    look(source, text, word);
                }
            }
        }
        for (source, text) in &self.discreet {
            for person in PERSONAL {
                look(source, text, person);
            }
        }
        assert!(found.is_empty(), "{found}");
        assert!(all().count() > 30 && !self.challenges.is_empty(), "it said something");
    }
}

/// Whether `line` holds `secret` as more than a part of an address such as `http://…`.
fn holds(line: &str, secret: &str) -> bool {
    if secret != "1//" && secret != "4/0" {
        return line.contains(secret);
    }
    line.match_indices(secret).any(|(at, _)| {
        let rest = &line[at + secret.len()..];
        rest.starts_with(|c: char| c.is_ascii_alphanumeric())
    })
}

/// The program with an environment of marked secrets.
struct Program {
    environment: BTreeMap<String, String>,
    child: Option<Child>,
    log: std::path::PathBuf,
}

impl Program {
    /// Starts `serve`; its address.
    async fn serve(&mut self, log: std::path::PathBuf) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
        command.arg("serve").env_clear().envs(&self.environment).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.stderr(File::create(&log).unwrap()).spawn().unwrap());
        self.log = log;
        let mut address = String::new();
        eventually("it serves", async || {
            let log = std::fs::read_to_string(&self.log).unwrap();
            let Some(line) = log.lines().find(|line| line.contains("serving") && line.contains("address")) else {
                return false;
            };
            let at = line.find("127.0.0.1:").unwrap();
            address = line[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
            true
        })
        .await;
        format!("http://{address}")
    }

    /// SIGTERM; the log.
    async fn stop(&mut self) -> String {
        let mut child = self.child.take().unwrap();
        let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        eventually("it ends", async || child.try_wait().unwrap().is_some()).await;
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// A command with more variables: exit code, standard output, standard error.
    async fn run(&self, args: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
        command.args(args).env_clear().envs(&self.environment).envs(more.iter().copied()).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A webhook that refuses, so that what is said about it is said.
async fn webhook() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(async || StatusCode::INTERNAL_SERVER_ERROR);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/{MARK}-webhook")
}

fn with_password(url: &str) -> String {
    let mut url: Url = url.parse().unwrap();
    if url.username().is_empty() {
        url.set_username("projector").unwrap();
    }
    url.set_password(Some(&format!("{MARK}-password"))).unwrap();
    url.into()
}

/// No secret is said.
async fn a_bad_day(setup: Setup) {
    let is_postgres = setup.postgres;
    let (collector, world) =
        (Collector::start().await, World::prepare(Setup { accounts: 3, connected: 1, ..setup }).await);
    let client_secret = format!("{MARK}-client-secret");
    world.fake().configure(|fake| fake.client_secret.clone_from(&client_secret));
    let mut program = Program { environment: world.environment.clone(), child: None, log: world.path("none") };
    let mut set = |name: &str, value: String| program.environment.insert(name.to_owned(), value);
    set("GOOGLE_CLIENT_SECRET", client_secret);
    set("GOOGLE_ENCRYPTION_KEY", "5ec4e7".repeat(10) + "5ec4");
    set("GOOGLE_ENCRYPTION_KEYS_OLD", "42".repeat(32));
    set("JWT_HS256_SECRET", format!("{MARK}-jwt-secret-of-thirty-two-bytes"));
    set("OPS_WEBHOOK_URL", webhook().await);
    set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.clone());
    set("OTEL_EXPORTER_OTLP_HEADERS", format!("api-key={MARK}-collector-key"));
    set("NATS_URL", with_password(&world.environment["NATS_URL"]));
    set("RUST_LOG", "trace".to_owned());
    set("OAUTH_RETURN_URLS", "https://school.example.com/account".to_owned());
    if is_postgres {
        set("DATABASE_URL", with_password(&world.environment["DATABASE_URL"]));
    }
    let mut said = Said::default();
    said.secrets.extend([world.token.clone(), new_token(&world.store, &world.clock, Role::Reader).await]);

    let base = program.serve(world.path("first.log")).await;
    let http = http_client(std::time::Duration::from_mins(1));
    for fault in [Fault::refuse(503, "backendError"), Fault::drop_after(), Fault::refuse(401, "authError")] {
        world.fake().add_fault(Rule::once(Operation::Insert, fault));
    }
    world.fake().add_fault(Rule::once(Operation::Refresh, Fault::refuse(500, "internal_failure")));
    let lesson = |session: &str, teacher: usize| {
        let mut event = world.lesson(session, teacher);
        event.details.as_mut().unwrap().attendees =
            vec![Attendee { email: "ana@example.com".to_owned(), display_name: Some("Ana Marked".to_owned()) }];
        event
    };
    world.publish(&lesson("s1", 0)).await;
    world.publish(&lesson("s2", 1)).await;
    world.publish(&lesson("s3", 2)).await;
    // Somebody puts a token into an event, one time readable, one time not.
    let secret_inside = br#"{"attendees":"ana@example.com","token":"Somebodys-token""#.to_vec();
    world.publish_raw("bookings.session.s9.scheduled", &[("X-Token", "Somebodys-header")], secret_inside).await;
    until(&world, "meet.session.s1.ready").await;

    // Consent: denied, with a code that is none, and granted; then the callback once more.
    let callbacks = [("deny", ""), ("allow", "4/0PLANTED-wrong-code"), ("allow", "")];
    for (answer, code) in callbacks {
        let start = http.get(format!("{base}/api/google/oauth/start?teacherId=tch_1"));
        let start = start.bearer_auth(&world.token).header("Accept", "application/json").send().await.unwrap();
        let start: serde_json::Value = start.json().await.unwrap();
        let mut page: Url = start["authorizationUrl"].as_str().unwrap_or_else(|| panic!("{start}")).parse().unwrap();
        let asked: BTreeMap<String, String> = page.query_pairs().into_owned().collect();
        said.secrets.push(asked["state"].clone());
        said.challenges.push(asked["code_challenge"].clone());
        page.query_pairs_mut().append_pair("auto", answer).append_pair("account", world.email(1));
        let consent = http.get(page).send().await.unwrap();
        let mut to: Url = consent.headers()[LOCATION].to_str().unwrap().parse().unwrap();
        if !code.is_empty() {
            let pairs: Vec<(String, String)> =
                to.query_pairs().into_owned().filter(|(name, _)| name != "code").collect();
            to.query_pairs_mut().clear().extend_pairs(pairs).append_pair("code", code);
        }
        for _ in 0..2 {
            let answer = http.get(format!("{base}{}?{}", to.path(), to.query().unwrap())).send().await.unwrap();
            let headers = format!("{:?}", answer.headers());
            said.open.push(("the callback".into(), headers + &answer.text().await.unwrap()));
        }
    }
    until(&world, "meet.session.s2.ready").await;

    // A grant that dies, refreshes that fail, a second teacher whose token endpoint is out of order.
    world.fake().revoke_grant(world.email(1));
    world.fake().expire_access_tokens(world.email(1));
    world.publish(&lesson("s4", 1)).await;
    until(&world, "meet.session.s4.error").await;
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::Hang);
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::Normal);

    // The API, with good and bad credentials.
    let bad_jwt = format!("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.{MARK}");
    for path in [
        "/api/google/meet/s1",
        "/api/google/meet/s4",
        "/api/google/meet?sessionIds=s1,s2",
        "/api/google/meet?limit=10",
        "/api/google/status/tch_1",
        "/api/google/teachers",
        "/api/google/meet?cursor=PLAN-ted",
        "/livez",
        "/readyz",
        "/nowhere",
    ] {
        for token in [world.token.as_str(), "mp_PLANTED_PLANTED", &bad_jwt, "PLANTED"] {
            let answer = http.get(format!("{base}{path}")).bearer_auth(token).send().await.unwrap();
            let headers = format!("{:?}", answer.headers());
            said.open.push((path.to_owned(), headers + &answer.text().await.unwrap()));
        }
    }
    let metrics = http.get(format!("{base}/metrics")).send().await.unwrap().text().await.unwrap();
    said.discreet.push(("/metrics".into(), metrics));

    // Operators. What they print may name people; what they log may not.
    let seeds = world.path("seeds.jsonl");
    std::fs::write(&seeds, r#"{"teacherId":"tch_2","email":5,"googleSub":"x","refreshToken":"PLANTED-refresh"}"#)
        .unwrap();
    let seeds = seeds.to_str().unwrap().to_owned();
    let commands: [&[&str]; 28] = [
        &["config", "print"],
        &["config", "check"],
        &["doctor"],
        &["status"],
        &["session", "show", "s1"],
        &["session", "show", "s4"],
        &["session", "retry", "s4"],
        &["session", "retry", "--failed"],
        &["teacher", "list"],
        &["teacher", "show", "tch_1"],
        &["keys", "verify"],
        &["keys", "rotate"],
        &["token", "list"],
        &["token", "revoke", "PLAN-ted"],
        &["audit", "list"],
        &["dead-letter", "list"],
        &["dead-letter", "requeue", "--all"],
        &["nats", "check"],
        &["epoch", "check"],
        &["epoch", "show"],
        &["replay", "--all", "--execute", "--reason", "a bad day", "--wait", "1"],
        &["rebuild"],
        &["rebuild", "dump"],
        &["verify", "--google"],
        &["pause", "reconcile", "--teacher", "tch_2", "--reason", "a bad day"],
        &["resume", "reconcile", "--teacher", "tch_2"],
        &["credential", "seed", "--file", &seeds],
        &["teacher", "disconnect", "tch_0", "--reason", "a bad day"],
    ];
    for command in commands {
        for output in ["human", "json"] {
            let args = [command, &["--output", output]].concat();
            let (code, out, err) = program.run(&args, &[]).await;
            assert!(code.is_some_and(|code| code != 2), "{args:?} is no command: {err}");
            said.open.push((args.join(" "), out));
            let (log, errors): (Vec<&str>, Vec<&str>) = err.lines().partition(|line| line.starts_with('{'));
            said.discreet.push((format!("the log of {}", args.join(" ")), log.join("\n")));
            said.open.push((format!("the errors of {}", args.join(" ")), errors.join("\n")));
        }
    }
    let (_, token, err) = program.run(&["token", "new", "--name", "marked", "--role", "reader"], &[]).await;
    said.secrets.push(token.trim().to_owned());
    said.open.push(("token new".into(), err));

    // Mistakes in settings, and what cannot be reached.
    let unreachable = format!("nats://projector:{MARK}-nats@127.0.0.1:1");
    let database = format!("postgres://projector:{MARK}-database@127.0.0.1:1/meet?password={MARK}-too");
    let mistakes: [&[(&str, &str)]; 5] = [
        &[("NATS_URL", &unreachable)],
        &[("DATABASE_URL", &database)],
        &[("DATABASE_URL", "mysql://projector:PLANTED-other@127.0.0.1/meet"), ("NATS_URL", "http://a:PLANTED@b")],
        &[("GOOGLE_ENCRYPTION_KEY", "PLANTED-key"), ("GOOGLE_ENCRYPTION_KEYS_OLD", "PLANTED-old,PLANTED-older")],
        &[
            ("JWT_HS256_SECRET", "PLANTED-short"),
            ("OPS_WEBHOOK_URL", "PLANTED no address"),
            ("JWT_JWKS_URL", "ftp://u:PLANTED@x"),
        ],
    ];
    for mistake in mistakes {
        for command in [["config", "check"], ["config", "print"], ["doctor", "--"], ["status", "--"], ["nats", "check"]]
        {
            let args: Vec<&str> = command.into_iter().filter(|word| *word != "--").collect();
            let (_, out, err) = program.run(&args, mistake).await;
            said.open.push((format!("{args:?} with {:?}", mistake[0].0), out + &err));
        }
    }

    // A disconnect that Google refuses at first.
    world.fake().add_fault(Rule::once(Operation::Revoke, Fault::refuse(503, "unavailable")));
    let disconnect =
        http.post(format!("{base}/api/google/disconnect/tch_1?removeEvents=true")).bearer_auth(&world.token);
    said.open.push(("disconnect".into(), disconnect.send().await.unwrap().text().await.unwrap()));
    said.discreet.push(("the log".into(), program.stop().await));

    // Once more, for people.
    program.environment.insert("LOG_FORMAT".into(), "human".into());
    let base = program.serve(world.path("second.log")).await;
    let refused =
        http.get(format!("{base}/api/google/meet/s1")).bearer_auth("mp_PLANTED_PLANTED").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    world.connect_teacher(2).await;
    until(&world, "meet.session.s3.ready").await;
    said.discreet.push(("the log for people".into(), program.stop().await));

    said.discreet.push(("traces".into(), collector.text()));
    for message in world.published_on("meet.>").await {
        said.open.push((message.subject.clone(), format!("{message:?}")));
    }
    assert!(said.discreet.iter().any(|(source, text)| source == "the log" && text.len() > 10_000), "it said a lot");
    assert!(said.discreet.iter().any(|(source, text)| source == "traces" && text.contains("/calendars/")));
    said.check();
}

async fn until(world: &World, subject: &str) {
    world.until_published(subject, |all| all.iter().any(|message| message.subject == subject)).await;
}

stories! {
    on both databases: a_bad_day;
}
