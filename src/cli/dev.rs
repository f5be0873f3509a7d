//! `dev`: the whole service on this machine, with a real NATS server, a fake Google and sample lessons, so that the first
//! minute ends with a Meet link on the screen.
//!
//! Everything lives under `data/dev` and is made anew at each start. `data/dev/env` holds the settings, so that the other
//! commands can be tried against what runs: `set -a; . data/dev/env; set +a`.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use secrecy::SecretString;

use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::{Config, Need};
use crate::credential::{KeyRing, Slot};
use crate::fake::{FakeGoogle, NewAccount};
use crate::model::{GoogleSub, TeacherId};
use crate::nats::definitions::{self, Definitions};
use crate::service;
use crate::shutdown::Shutdown;
use crate::store::{NewCredential, Role, Store};

mod nats_server;
mod samples;
mod story;

use nats_server::NatsServer;

/// How to run it.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Where it keeps its files; what a run before left there is removed
    #[arg(long, default_value = "data/dev")]
    data: PathBuf,
    /// Port of the API; another free one is taken if it is in use
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// End after the story instead of running until Ctrl-C; exit code 1 if it did not come out as told
    #[arg(long)]
    once: bool,
}

/// Runs it.
pub async fn run(args: &DevArgs, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    let begun = Instant::now();
    let failed = |what: &str, error: &dyn std::fmt::Display| CommandError::failed(format!("{what}: {error}"));
    prepare_folder(&args.data).map_err(|error| failed(&format!("cannot prepare {}", args.data.display()), &error))?;
    let shutdown = Shutdown::on_signals().map_err(|error| failed("cannot listen for signals", &error))?;

    writeln!(out, "meet-projector dev: booking events in, Meet links out\n")?;
    let nats = NatsServer::start(&args.data.join("nats")).await?;
    writeln!(out, "  NATS         {}   a child process, store in {}", nats.url, args.data.join("nats").display())?;

    let clock = Clock::system();
    let google = FakeGoogle::new(clock.clone());
    google.configure(|settings| settings.latency_ms = 40);
    let fake = google.serve(loopback(0)).await.map_err(|error| failed("cannot start the fake Google", &error))?;
    writeln!(out, "  fake Google  {}   faults and what teachers do: see this page", fake.control_uri)?;

    let port = free_port(args.port).await.map_err(|error| failed("no port for the API", &error))?;
    let environment = environment(args, port, &nats.url, &fake, &google);
    write_environment(&args.data.join("env"), &environment)
        .map_err(|error| failed("cannot write the settings", &error))?;
    let config = Config::load(&environment, Need::Serve)?;
    let _telemetry = super::start_logging(&config)?;

    let connection = crate::nats::connect(&config.nats, "meet-projector dev")
        .await
        .map_err(|error| failed("cannot connect to NATS", &error))?;
    let definitions = Definitions::load(None, &config.nats, None).map_err(|error| failed("nats/", &error))?;
    definitions::apply(&connection, &config.nats, &definitions).await.map_err(|error| failed("nats apply", &error))?;
    writeln!(
        out,
        "  streams      BOOKINGS and MEET, durable consumer {}-e1, as nats/*.json say",
        config.nats.consumer
    )?;

    let store = Store::open(&config.database).await?;
    store.migrate().await?;
    seed_teachers(&config, &store, &google, &clock).await?;
    let token = new_token(&store, &clock, Role::Reader).await?;
    let admin = new_token(&store, &clock, Role::Admin).await?;
    drop(store);
    let service = service::start(config.clone(), clock.clone(), shutdown.clone()).await?;
    let api = format!("http://{}", service.address);
    writeln!(out, "  API          {api}\n")?;

    let story = story::Story { api: &api, token: &token, admin: &admin, data: &args.data, clock: &clock };
    let told = tokio::select! {
        told = story.tell(&connection.client, out) => told?,
        () = shutdown.asked() => true,
    };
    if !shutdown.is_asked() {
        let consent = story.consent_of_carla().await?;
        story.goodbye(&consent, &fake.control_uri, begun.elapsed(), out)?;
    }
    if args.once {
        shutdown.ask();
    }
    service.ended().await;
    nats.stop().await;
    Ok(if told { Exit::Ok } else { Exit::No })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// `wanted`, or any other free port.
async fn free_port(wanted: u16) -> std::io::Result<u16> {
    let listener = match tokio::net::TcpListener::bind(loopback(wanted)).await {
        Ok(listener) => listener,
        Err(_) => tokio::net::TcpListener::bind(loopback(0)).await?,
    };
    Ok(listener.local_addr()?.port())
}

/// An empty folder. Only what this command made is removed: a folder without its mark is refused.
fn prepare_folder(folder: &Path) -> std::io::Result<()> {
    let mark = folder.join(".meet-projector-dev");
    if folder.exists() {
        if !mark.exists() && folder.read_dir()?.next().is_some() {
            return Err(std::io::Error::other("it holds files that this command did not make; choose another --data"));
        }
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    std::fs::write(mark, "made by `meet-projector dev`, removed at its next start\n")
}

fn environment(
    args: &DevArgs,
    port: u16,
    nats_url: &str,
    fake: &crate::fake::Running,
    google: &FakeGoogle,
) -> BTreeMap<String, String> {
    let settings = google.settings();
    let database = args.data.join("meet-projector.db");
    let mut environment: BTreeMap<String, String> = [
        ("MEET_ENVIRONMENT", "dev".to_owned()),
        ("HTTP_ADDR", loopback(port).to_string()),
        ("DATABASE_URL", format!("sqlite://{}", database.display())),
        ("NATS_URL", nats_url.to_owned()),
        ("WP_BASE_URL", format!("http://127.0.0.1:{port}")),
        ("GOOGLE_CLIENT_ID", settings.client_id),
        ("GOOGLE_CLIENT_SECRET", settings.client_secret),
        // A key for made-up tokens of a fake Google; a real one comes from `openssl rand -hex 32`.
        ("GOOGLE_ENCRYPTION_KEY", "00112233445566778899aabbccddeeff".repeat(2)),
        ("GOOGLE_AUTH_URI", fake.auth_uri.to_string()),
        ("GOOGLE_TOKEN_URI", fake.token_uri.to_string()),
        ("GOOGLE_REVOKE_URI", fake.revoke_uri.to_string()),
        ("GOOGLE_CALENDAR_API_ROOT", fake.calendar_api_root.to_string()),
        ("LOG_FORMAT", "human".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    // The log would drown the story; whoever wants it asks for it.
    environment.insert("RUST_LOG".to_owned(), std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned()));
    environment
}

fn write_environment(path: &Path, environment: &BTreeMap<String, String>) -> std::io::Result<()> {
    let lines: Vec<String> = environment.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    std::fs::write(path, lines.concat())
}

/// Ana and Ben have connected Google; Carla has not.
async fn seed_teachers(config: &Config, store: &Store, google: &FakeGoogle, clock: &Clock) -> Result<(), CommandError> {
    let section = service::google_config(config)?;
    let keys = KeyRing::new(&section.encryption_key, &section.encryption_keys_old)
        .map_err(|error| CommandError::configuration(error.to_string()))?;
    for name in ["ana", "ben"] {
        let email = format!("{name}@example.com");
        let refresh_token = google.add_account(&NewAccount::new(email.as_str()).connected(format!("refresh-{name}")));
        let teacher = TeacherId::parse(format!("tch_{name}")).map_err(|error| CommandError::failed(error.0))?;
        let account = GoogleSub(format!("sub-{email}"));
        let sealed = keys
            .seal(Slot::refresh_token(&teacher, &account), &SecretString::from(refresh_token))
            .map_err(|error| CommandError::failed(error.to_string()))?;
        let credential = NewCredential {
            teacher,
            account,
            email: Some(email),
            calendar: "primary".to_owned(),
            refresh_token: sealed,
            scopes: section.scopes.join(" "),
        };
        store.put_credential(&credential, clock.now()).await?;
    }
    // Carla has an account and a grant that this service was not told of: a consent connects her, or `credential seed`.
    google.add_account(&NewAccount::new("carla@example.com").connected("refresh-carla"));
    Ok(())
}

async fn new_token(store: &Store, clock: &Clock, role: Role) -> Result<String, CommandError> {
    let action = super::token::TokenAction::New { name: "dev".to_owned(), role };
    let mut token = Vec::new();
    super::token::run(&action, store, clock, false, &mut token, &mut std::io::sink())
        .await
        .map_err(|error| CommandError::failed(error.to_string()))?;
    Ok(String::from_utf8_lossy(&token).trim().to_owned())
}

/// Waits between two looks at something that nobody announces.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
