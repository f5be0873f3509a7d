//! Reads variables from an environment and collects every mistake instead of stopping at the first.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::variables::{Secrecy, VARIABLES, Variable, find};
use super::{Mistake, Need};
use crate::model::quoted;

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The variable itself.
    Env,
    /// The file that `<name>_FILE` names.
    File,
    /// Nowhere: not set and without a default.
    Unset,
}

impl Origin {
    /// The word in `config print`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Env => "env",
            Self::File => "file",
            Self::Unset => "unset",
        }
    }
}

struct Found {
    value: SecretString,
    origin: Origin,
}

/// All values of an environment, and the mistakes met so far.
pub(super) struct Reader {
    values: BTreeMap<&'static str, Found>,
    mistakes: Vec<Mistake>,
    notes: Vec<String>,
}

impl Reader {
    /// Gathers the value of every known variable. An empty one counts as unset, as compose files produce it from
    /// `${NAME:-}`.
    pub(super) fn new(environment: &BTreeMap<String, String>) -> Self {
        let mut reader = Self { values: BTreeMap::new(), mistakes: unknown_names(environment), notes: Vec::new() };
        let set = |name: &str| environment.get(name).map(String::as_str).filter(|value| !value.trim().is_empty());
        for variable in VARIABLES {
            let file_name = format!("{}_FILE", variable.name);
            let file = if variable.may_be_a_file() { set(&file_name) } else { None };
            let found = match (set(variable.name), file) {
                (Some(_), Some(_)) => {
                    let problem = format!("{file_name} is set too; keep one of them");
                    reader.mistakes.push(Mistake { variable: variable.name.to_owned(), problem, allowed: None });
                    continue;
                }
                (Some(value), None) => Found { value: value.trim().into(), origin: Origin::Env },
                (None, Some(path)) => match secret_from_file(Path::new(path)) {
                    Ok((value, note)) => {
                        reader.notes.extend(note.map(|note| format!("{file_name}: {note}")));
                        Found { value, origin: Origin::File }
                    }
                    Err(problem) => {
                        reader.mistakes.push(Mistake { variable: file_name, problem, allowed: None });
                        continue;
                    }
                },
                (None, None) => match variable.default {
                    Some(value) => Found { value: value.into(), origin: Origin::Default },
                    None => continue,
                },
            };
            reader.values.insert(variable.name, found);
        }
        reader
    }

    /// Names every required variable that is missing.
    pub(super) fn require(&mut self, need: Need) {
        for variable in VARIABLES {
            // A value that is there but wrong was reported under its own name already.
            let reported = |mistake: &Mistake| {
                mistake.variable == variable.name || mistake.variable == format!("{}_FILE", variable.name)
            };
            if variable.required_for.contains(&need)
                && !self.values.contains_key(variable.name)
                && !self.mistakes.iter().any(reported)
            {
                let also =
                    if variable.may_be_a_file() { format!(", nor is {}_FILE", variable.name) } else { String::new() };
                self.mistake(variable.name, format!("is required and not set{also}"));
            }
        }
    }

    /// Whether there is a value (even a wrong one).
    pub(super) fn is_set(&self, name: &'static str) -> bool {
        self.values.contains_key(name)
    }

    /// The value, in the open: only for what is not a secret.
    pub(super) fn text(&self, name: &'static str) -> Option<String> {
        self.values.get(name).map(|found| found.value.expose_secret().to_owned())
    }

    /// The value of a secret.
    pub(super) fn secret(&self, name: &'static str) -> Option<SecretString> {
        self.values.get(name).map(|found| found.value.clone())
    }

    /// The value as `parse` understands it; `None` when it is unset, or wrong, which is noted.
    pub(super) fn parse<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let found = self.values.get(name)?;
        let text = found.value.expose_secret();
        let parsed = parse(text);
        if parsed.is_none() {
            let open = find(name).is_some_and(|variable| variable.secrecy == Secrecy::Open);
            let problem =
                if open { format!("{} is not allowed", quoted(text)) } else { "its value is not allowed".into() };
            self.mistake(name, problem);
        }
        parsed
    }

    /// Notes a mistake, with what is allowed.
    pub(super) fn mistake(&mut self, name: &str, problem: String) {
        let allowed = find(name).map(|variable| variable.allowed);
        self.mistakes.push(Mistake { variable: name.to_owned(), problem, allowed });
    }

    /// What is allowed and worth a warning.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Everything noted, in order of the names.
    pub(super) fn into_mistakes(mut self) -> Vec<Mistake> {
        self.mistakes.sort_by(|a, b| a.variable.cmp(&b.variable));
        self.mistakes
    }

    /// Value (secrets masked) and origin of a variable.
    pub(super) fn shown(&self, variable: &Variable) -> (Option<String>, Origin) {
        match self.values.get(variable.name) {
            None => (None, Origin::Unset),
            Some(found) => {
                let value = found.value.expose_secret();
                let shown = match variable.secrecy {
                    Secrecy::Open => value.to_owned(),
                    Secrecy::Url => value.split(',').map(|url| masked_url(url.trim())).collect::<Vec<_>>().join(","),
                    Secrecy::Secret => "***".to_owned(),
                };
                (Some(shown), found.origin)
            }
        }
    }
}

/// `MEET_*` is ours alone, so a name there that we do not know is a spelling mistake that would otherwise go unseen.
fn unknown_names(environment: &BTreeMap<String, String>) -> Vec<Mistake> {
    let known: Vec<&str> = VARIABLES.iter().map(|variable| variable.name).collect();
    environment
        .keys()
        .filter(|name| name.starts_with("MEET_") && !known.contains(&name.as_str()))
        .map(|name| {
            let hint = similar::get_close_matches(name.as_str(), &known, 1, 0.6)
                .first()
                .map_or(String::new(), |near| format!("; did you mean {near}?"));
            Mistake {
                variable: name.clone(),
                problem: format!("is not a variable of this program{hint}"),
                allowed: None,
            }
        })
        .collect()
}

/// The content of a file without the line end that editors and `echo` put there, and what the operator should know of
/// it.
fn secret_from_file(path: &Path) -> Result<(SecretString, Option<String>), String> {
    let cannot = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    // What is judged and what is read is one and the same file, whatever becomes of its name in between.
    let mut file = std::fs::File::open(path).map_err(cannot)?;
    let note = access_of(path, &file.metadata().map_err(cannot)?)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(cannot)?;
    let text = text.trim();
    if text.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok((text.into(), note)) }
}

/// Refuses a secret that other accounts of the machine can read, unless root put it there for them.
#[cfg(unix)]
fn access_of(path: &Path, metadata: &std::fs::Metadata) -> Result<Option<String>, String> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = metadata.mode() & 0o777;
    match access(metadata.uid(), mode) {
        Access::Private => Ok(None),
        Access::Published => Ok(Some(format!(
            "{} can be read by other accounts of this machine (mode {mode:03o}); accepted, because it belongs to root",
            path.display()
        ))),
        Access::Open => Err(format!(
            "{} is open to other accounts (mode {mode:03o}); run `chmod 600` on it, or let it belong to root and be \
             writable by nobody else",
            path.display()
        )),
    }
}

#[cfg(not(unix))]
fn access_of(_path: &Path, _metadata: &std::fs::Metadata) -> Result<Option<String>, String> {
    Ok(None)
}

/// Who may do what with a file.
#[cfg(unix)]
#[derive(Debug, PartialEq, Eq)]
enum Access {
    /// Only its owner reads and writes it.
    Private,
    /// Others read it, but only root writes it: secret volumes of Kubernetes (0644 by default, 0440 with `fsGroup`) and
    /// Docker (0444) are made so, in a file system that only the container sees, and systemd lends credentials by an
    /// ACL, whose mask shows as the group's bits. We cannot tell that from a careless root, hence a warning.
    Published,
    /// Others write it, or somebody else's file is there for all to read.
    Open,
}

#[cfg(unix)]
fn access(owner: u32, mode: u32) -> Access {
    let (of_others, writable_by_others) = (mode & 0o077, mode & 0o022);
    if of_others == 0 {
        Access::Private
    } else if owner == 0 && writable_by_others == 0 {
        Access::Published
    } else {
        Access::Open
    }
}

/// A URL without user, password and query, which may hold secrets.
fn masked_url(text: &str) -> String {
    // A path (`JWT_JWKS_URL`).
    if text.starts_with('/') {
        return text.to_owned();
    }
    let Ok(mut url) = Url::parse(text) else { return "***".to_owned() };
    if !url.username().is_empty() || url.password().is_some() {
        let masked = url.set_username("***").and_then(|()| url.set_password(None));
        if masked.is_err() {
            return "***".to_owned();
        }
    }
    if url.query().is_some() {
        url.set_query(Some("***"));
    }
    url.into()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_root_may_publish_a_secret() {
        for (owner, mode, expected) in [
            (1000, 0o600, Access::Private),
            (1000, 0o400, Access::Private),
            (0, 0o600, Access::Private),
            (0, 0o644, Access::Published), // Kubernetes: defaultMode of a secret volume
            (0, 0o444, Access::Published), // Docker and Podman secrets
            (0, 0o440, Access::Published), // Kubernetes with fsGroup
            (0, 0o755, Access::Published),
            (0, 0o664, Access::Open),
            (0, 0o646, Access::Open),
            (0, 0o777, Access::Open),
            (1000, 0o644, Access::Open),
            (1000, 0o640, Access::Open),
            (1000, 0o604, Access::Open),
            (65_534, 0o444, Access::Open),
        ] {
            assert_eq!(access(owner, mode), expected, "{owner} {mode:o}");
        }
    }
}
