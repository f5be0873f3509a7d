//! This machine: who may read the files with secrets, and room to write.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::{Check, Level};
use crate::config::Config;
use crate::config::variables::{Variable, find};

const AREA: &str = "machine";

/// Less than this is soon full: the write-ahead log alone may take 64 MiB.
const FREE_MIB_FAIL: u64 = 128;
const FREE_MIB_WARN: u64 = 1024;

/// Looks at it.
pub(super) async fn examine(environment: &BTreeMap<String, String>, config: &Config) -> Vec<Check> {
    let mut checks = secret_files(environment);
    if let Some(file) = sqlite_file(config) {
        let folder = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        checks.push(writable(&folder));
        checks.push(room(&folder).await);
        if file.exists() {
            checks.extend(open_to_others(&file, "the database"));
        }
    }
    checks
}

/// The file of a SQLite database.
pub(super) fn sqlite_file(config: &Config) -> Option<PathBuf> {
    let url = config.database.0.expose_secret();
    let rest = url.strip_prefix("sqlite:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest).split('?').next().unwrap_or_default();
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// Files that hold secrets: those of `NAME_FILE` variables and of the credentials of NATS and the API.
fn secret_files(environment: &BTreeMap<String, String>) -> Vec<Check> {
    let is_secret = |name: &str| {
        let is_public = matches!(name, "NATS_TLS_CA_FILE" | "JWT_PUBLIC_KEY_FILE");
        let holds_a_value = name.strip_suffix("_FILE").and_then(find).is_some_and(Variable::may_be_a_file);
        holds_a_value || !is_public && find(name).is_some()
    };
    let files = environment
        .iter()
        .filter(|(name, value)| name.ends_with("_FILE") && is_secret(name) && !value.trim().is_empty());
    let mut checks = Vec::new();
    let mut looked = 0;
    for (name, value) in files {
        looked += 1;
        checks.extend(open_to_others(Path::new(value.trim()), name));
    }
    if checks.is_empty() {
        checks.push(Check::ok(AREA, "secret files", format!("{looked}, none that others can read")));
    }
    checks
}

/// A complaint when others than the owner may read or write the file.
fn open_to_others(file: &Path, what: &str) -> Option<Check> {
    #[cfg(unix)]
    {
        let metadata = match std::fs::metadata(file) {
            Ok(metadata) => metadata,
            Err(error) => {
                let detail = format!("{} cannot be read: {error}", file.display());
                return Some(Check::new(Level::Fail, AREA, what, detail, "make the file, or correct its path"));
            }
        };
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            let detail = format!("{} has mode {mode:03o}: others can get at it", file.display());
            let fix = format!("chmod 600 {}", file.display());
            return Some(Check::new(Level::Fail, AREA, what, detail, fix));
        }
    }
    None
}

/// Whether a file can be made there; a folder that does not exist is made by the first start, in the next one above.
fn writable(folder: &Path) -> Check {
    let above = |folder: &Path| match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut there = folder.to_owned();
    while !there.exists() && there.as_os_str() != "." {
        there = above(&there);
    }
    let name = there.join(format!(".meet-projector-doctor-{}", std::process::id()));
    match std::fs::write(&name, b"").and_then(|()| std::fs::remove_file(&name)) {
        Ok(()) => Check::ok(AREA, "folder", format!("{} can be written to", there.display())),
        Err(error) => {
            let detail = format!("{} cannot be written to: {error}", there.display());
            Check::new(Level::Fail, AREA, "folder", detail, "let this user write there, or change DATABASE_URL")
        }
    }
}

/// Free space by `df`, the portable way to ask without a system call of our own (POSIX: `-P` one line, `-k` KiB).
async fn room(folder: &Path) -> Check {
    let asked = tokio::process::Command::new("df").arg("-Pk").arg(folder).output().await;
    let free = asked.ok().filter(|output| output.status.success()).and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().last()?.split_whitespace().nth(3)?.parse::<u64>().ok()
    });
    let Some(free_mib) = free.map(|kib| kib / 1024) else {
        return Check::skipped(AREA, "disk", "there is no `df` to ask");
    };
    let detail = format!("{free_mib} MiB free at {}", folder.display());
    let fix = "make room: while the disk is full, events wait on the stream";
    if free_mib < FREE_MIB_FAIL {
        Check::new(Level::Fail, AREA, "disk", detail, fix)
    } else if free_mib < FREE_MIB_WARN {
        Check::new(Level::Warn, AREA, "disk", detail, fix)
    } else {
        Check::ok(AREA, "disk", detail)
    }
}
