//! `doctor`: everything the service depends on, a line each, with a fix for what is wrong. Changes nothing.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde_json::json;

use super::print::{self, Output, Tone, toned};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::{Config, Need};

mod database;
mod google;
mod machine;
mod stream;

/// Nothing to choose.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  meet-projector doctor
  meet-projector doctor --output json | jq '.checks[] | select(.level != \"ok\")'

It looks and changes nothing; it can run beside the service, and before its first start. Google is only asked for an
answer of any kind: no credentials are sent.

Exit codes: 0 all is well (warnings allowed), 1 something has to be mended, 4 NATS, the database or Google cannot be
reached.")]
pub struct DoctorArgs {}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Well.
    Ok,
    /// Works, and should be looked at.
    Warn,
    /// Has to be mended.
    Fail,
    /// Cannot be reached.
    Unreachable,
    /// Not looked at, because something before it failed.
    Skipped,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail | Self::Unreachable => "fail",
            Self::Skipped => "skip",
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Warn | Self::Skipped => Tone::Fair,
            Self::Fail | Self::Unreachable => Tone::Bad,
        }
    }
}

/// One line.
#[derive(Debug, Clone)]
pub(super) struct Check {
    area: &'static str,
    name: String,
    level: Level,
    detail: String,
    fix: Option<String>,
}

impl Check {
    pub(super) fn ok(area: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { area, name: name.into(), level: Level::Ok, detail: detail.into(), fix: None }
    }

    pub(super) fn new(
        level: Level,
        area: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { area, name: name.into(), level, detail: detail.into(), fix: Some(fix.into()) }
    }

    pub(super) fn skipped(area: &'static str, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { area, name: name.into(), level: Level::Skipped, detail: why.into(), fix: None }
    }
}

/// Runs every check.
pub async fn run(
    environment: &BTreeMap<String, String>,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let checks = examine(environment, clock).await;
    let worst = |level: Level| checks.iter().any(|check| check.level == level);
    match output {
        Output::Json => {
            let lines: Vec<_> = checks
                .iter()
                .map(|check| {
                    json!({
                        "area": check.area, "name": check.name, "level": check.level.word(), "detail": check.detail,
                        "fix": check.fix,
                    })
                })
                .collect();
            let healthy = !worst(Level::Fail) && !worst(Level::Unreachable);
            print::json(out, &json!({"healthy": healthy, "checks": lines}))?;
        }
        Output::Human => {
            for check in &checks {
                let level = toned(&format!("{:<4}", check.level.word()), check.level.tone());
                writeln!(out, "{level}  {:<13}  {}: {}", check.area, check.name, check.detail)?;
                if let Some(fix) = &check.fix {
                    writeln!(out, "                     fix: {fix}")?;
                }
            }
        }
    }
    if worst(Level::Unreachable) {
        return Ok(Exit::Unreachable);
    }
    Ok(if worst(Level::Fail) { Exit::No } else { Exit::Ok })
}

async fn examine(environment: &BTreeMap<String, String>, clock: &Clock) -> Vec<Check> {
    let mut checks = Vec::new();
    let config = match Config::load(environment, Need::Serve) {
        Ok(config) => {
            checks.push(Check::ok("configuration", "settings", "complete and consistent"));
            config
        }
        Err(errors) => {
            for mistake in &errors.0 {
                let fix = mistake.allowed.map_or_else(
                    || "see `meet-projector config example`".to_owned(),
                    |allowed| format!("allowed is {allowed}"),
                );
                checks.push(Check::new(Level::Fail, "configuration", &mistake.variable, &mistake.problem, fix));
            }
            // What is missing for `serve` only does not keep the rest from being looked at.
            let Ok(config) = Config::load(environment, Need::Database) else {
                checks.push(Check::skipped("everything", "else", "the settings have to be readable first"));
                return checks;
            };
            config
        }
    };
    let (database, stream, google) = tokio::join!(
        database::examine(&config, clock),
        stream::examine(&config, clock),
        google::examine(&config, clock)
    );
    checks.extend(machine::examine(environment, &config).await);
    checks.extend(database);
    checks.extend(stream);
    checks.extend(google);
    checks
}

/// A difference of clocks in words, or the check of it. Google refuses assertions that are minutes off, and leases and
/// retries are counted by this clock.
pub(super) fn clock_check(area: &'static str, against: &str, ahead_ms: i64) -> Check {
    const WARN_MS: i64 = 2_000;
    const FAIL_MS: i64 = 60_000;
    let off = ahead_ms.abs();
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let detail = format!("this clock is {}.{} s {way} {against}", off / 1000, off % 1000 / 100);
    let fix = "let the machine's time service run (chrony, systemd-timesyncd)";
    if off >= FAIL_MS {
        Check::new(Level::Fail, area, "clock", detail, fix)
    } else if off >= WARN_MS {
        Check::new(Level::Warn, area, "clock", detail, fix)
    } else {
        Check::ok(area, "clock", format!("agrees with {against}"))
    }
}
