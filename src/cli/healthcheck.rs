//! `healthcheck`: for containers, whose images have no `curl`.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::print::Output;
use super::{CommandError, Exit};
use crate::config;
use crate::service::probe;

/// Docker gives up after 30 s by default, Kubernetes after 1 s.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where the service of this environment listens for such questions, and what it answers.
///
/// # Errors
/// Exit code 3 when the address cannot be read, 4 when nobody answers there.
pub(super) async fn run(
    ready: bool,
    environment: &BTreeMap<String, String>,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let path = if ready { "/readyz" } else { "/livez" };
    let address = address(environment)?;
    let answer = probe::get(address, path, PATIENCE).await.map_err(|error| {
        CommandError::unreachable(format!(
            "nobody answers on {address}{path}: {error}; is `meet-projector serve` running with the same HTTP_ADDR and \
             ADMIN_ADDR?"
        ))
    })?;
    let is_well = answer.status == 200;
    match output {
        Output::Json => {
            let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
            writeln!(out, "{}", json!({"ok": is_well, "status": answer.status, "answer": body}))?;
        }
        Output::Human if is_well => writeln!(out, "{}", if ready { "ready" } else { "live" })?,
        Output::Human => writeln!(out, "not {}: {}", if ready { "ready" } else { "live" }, answer.body)?,
    }
    Ok(if is_well { Exit::Ok } else { Exit::No })
}

/// `ADMIN_ADDR`, or else `HTTP_ADDR`; the other settings need not be there.
fn address(environment: &BTreeMap<String, String>) -> Result<SocketAddr, CommandError> {
    let settings = config::effective(environment);
    let value = |name: &str| {
        settings.iter().find(|setting| setting.variable.name == name).and_then(|setting| setting.value.clone())
    };
    let (name, text) = value("ADMIN_ADDR")
        .map(|text| ("ADMIN_ADDR", text))
        .or_else(|| value("HTTP_ADDR").map(|text| ("HTTP_ADDR", text)))
        .ok_or_else(|| CommandError::configuration("HTTP_ADDR is not set"))?;
    text.parse().map_err(|_| {
        CommandError::configuration(format!("{name}: {text:?} is no IP address and port, such as 127.0.0.1:8080"))
    })
}
