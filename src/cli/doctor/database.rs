//! The database, its schema, and whether the keys open what is sealed in it.

use super::{Check, Level};
use crate::clock::Clock;
use crate::config::Config;
use crate::credential::{KeyRing, Slot};
use crate::store::{Credential, Store, StoreError};
use crate::telemetry::Chain;

const AREA: &str = "database";

/// Looks at it.
pub(super) async fn examine(config: &Config, clock: &Clock) -> Vec<Check> {
    // Opening it would make the file.
    if let Some(file) = super::machine::sqlite_file(config)
        && !file.exists()
    {
        let detail = format!("{} does not exist yet", file.display());
        return vec![Check::new(
            Level::Fail,
            AREA,
            "schema",
            detail,
            "run `meet-projector migrate`, or start the service",
        )];
    }
    let store = match Store::open(&config.database).await {
        Ok(store) => store,
        Err(error) => return vec![unusable(&error)],
    };
    let mut checks = Vec::new();
    match store.database_version().await {
        Ok(version) => checks.push(Check::ok(AREA, "connection", version)),
        Err(error) => return vec![unusable(&error)],
    }
    match store.check_schema().await {
        Ok(()) => checks.push(Check::ok(AREA, "schema", "up to date")),
        Err(error) => {
            let fix = "run `meet-projector migrate` (serve does so by itself when it starts)";
            checks.push(Check::new(Level::Fail, AREA, "schema", Chain(&error).to_string(), fix));
            checks.push(Check::skipped("keys", "sealed tokens", "the schema comes first"));
            return checks;
        }
    }
    match store.processes().await {
        Ok(processes) => {
            let now = clock.now();
            let alive = processes.iter().filter(|process| process.is_alive(now)).count();
            checks.push(Check::ok(AREA, "processes", format!("{alive} serve now")));
        }
        Err(error) => checks.push(unusable(&error)),
    }
    match store.credentials().await {
        Ok(credentials) => checks.push(keys(config, &credentials)),
        Err(error) => checks.push(unusable(&error)),
    }
    store.close().await;
    checks
}

fn unusable(error: &StoreError) -> Check {
    let text = Chain(error).to_string();
    if error.is_transient() {
        let fix = "start the database, and check host, port, user and password in DATABASE_URL";
        return Check::new(Level::Unreachable, AREA, "connection", text, fix);
    }
    Check::new(Level::Fail, AREA, "connection", text, "check DATABASE_URL, and that this user may write there")
}

/// Every sealed token is opened, not one: a restored backup may hold some of either key.
fn keys(config: &Config, credentials: &[Credential]) -> Check {
    const KEYS: &str = "keys";
    let Some(google) = &config.google else {
        return Check::skipped(KEYS, "sealed tokens", "the GOOGLE_ settings are not complete");
    };
    let ring = match KeyRing::new(&google.encryption_key, &google.encryption_keys_old) {
        Ok(ring) => ring,
        Err(error) => {
            return Check::new(Level::Fail, KEYS, "GOOGLE_ENCRYPTION_KEY", error.to_string(), "openssl rand -hex 32");
        }
    };
    let (mut sealed_count, mut old, mut closed) = (0, 0, Vec::new());
    for credential in credentials {
        let Some(sealed) = &credential.refresh_token else { continue };
        let slot = Slot::refresh_token(&credential.teacher, &credential.account);
        sealed_count += 1;
        match ring.open(slot, sealed) {
            Ok(_) => old += usize::from(ring.is_current(slot, sealed).is_ok_and(|is_current| !is_current)),
            Err(error) => closed.push(format!("{}: {error}", credential.teacher)),
        }
    }
    if let Some(first) = closed.first() {
        let detail = format!("{} of {sealed_count} tokens do not open; {first}", closed.len());
        let fix = "put the key they were sealed with into GOOGLE_ENCRYPTION_KEYS_OLD; without it those teachers must \
                   connect again";
        return Check::new(Level::Fail, KEYS, "sealed tokens", detail, fix);
    }
    if old > 0 {
        let detail = format!("all {sealed_count} open, {old} of them with an old key");
        let fix = "seal them with the current key before the old one is removed";
        return Check::new(Level::Warn, KEYS, "sealed tokens", detail, fix);
    }
    Check::ok(KEYS, "sealed tokens", format!("all {sealed_count} open with the current key"))
}
