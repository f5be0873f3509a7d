//! `credential seed`: grants from a file, for a move from another system or for tests.
//!
//! All lines are checked before the first is stored, so a file with a mistake changes nothing. Tokens are sealed at
//! once and appear in no message.

use std::io::Read as _;
use std::path::Path;

use secrecy::SecretString;
use serde::Deserialize;

use crate::credential::{KeyRing, SealError, Slot};
use crate::model::{GoogleSub, TeacherId, UnixMillis};
use crate::store::{NewCredential, Store, StoreError};

/// At most so many mistakes are listed; the rest is counted.
const MISTAKES_MAX: usize = 20;

/// Why nothing, or not everything, was seeded.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The path as given.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Lines with mistakes; nothing was written.
    #[error("nothing was written:{}", list(.0))]
    Mistakes(Vec<Mistake>),
    /// No nonce could be made; nothing was written.
    #[error("nothing was written")]
    Seal(#[from] SealError),
    /// The database refused; the lines before it were stored, and the same file may be seeded again.
    #[error("{stored} of {total} credentials were stored, then the database refused")]
    Store {
        /// How many were stored before.
        stored: usize,
        /// How many there are.
        total: usize,
        /// The cause.
        source: StoreError,
    },
}

/// A mistake in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// From 1.
    pub line: usize,
    /// What is wrong, without tokens.
    pub message: String,
}

fn list(mistakes: &[Mistake]) -> String {
    let mut lines: Vec<String> = mistakes
        .iter()
        .take(MISTAKES_MAX)
        .map(|Mistake { line, message }| format!("\n  line {line}: {message}"))
        .collect();
    if mistakes.len() > MISTAKES_MAX {
        lines.push(format!("\n  and {} more", mistakes.len() - MISTAKES_MAX));
    }
    lines.concat()
}

/// One line. Unknown members are mistakes: a misspelt `calendarId` would send events to the wrong calendar.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    teacher_id: String,
    email: String,
    google_sub: String,
    #[serde(deserialize_with = "secret")]
    refresh_token: SecretString,
    calendar_id: Option<String>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// A checked line.
#[derive(Debug)]
struct Seed {
    teacher: TeacherId,
    account: GoogleSub,
    email: String,
    refresh_token: SecretString,
    calendar: String,
}

/// Reads `path` (`-` is standard input), one JSON object a line, seals each refresh token and stores it as a connected
/// credential with `scopes`. Prints and returns how many.
pub async fn seed(
    store: &Store,
    keys: &KeyRing,
    scopes: &[String],
    path: &Path,
    now: UnixMillis,
) -> Result<usize, SeedError> {
    let text = read(path).map_err(|source| SeedError::Read { path: path.display().to_string(), source })?;
    let seeds = parse(&text).map_err(SeedError::Mistakes)?;
    let scopes = scopes.join(" ");
    let seal = |seed: Seed| -> Result<NewCredential, SealError> {
        let refresh_token = keys.seal(Slot::refresh_token(&seed.teacher, &seed.account), &seed.refresh_token)?;
        Ok(NewCredential {
            teacher: seed.teacher,
            account: seed.account,
            email: Some(seed.email),
            calendar: seed.calendar,
            refresh_token,
            scopes: scopes.clone(),
        })
    };
    let sealed = seeds.into_iter().map(seal).collect::<Result<Vec<_>, _>>()?;
    for (stored, new) in sealed.iter().enumerate() {
        let refused = |source| SeedError::Store { stored, total: sealed.len(), source };
        store.put_credential(new, now).await.map_err(refused)?;
    }
    println!("{} {} stored", sealed.len(), if sealed.len() == 1 { "credential" } else { "credentials" });
    Ok(sealed.len())
}

fn read(path: &Path) -> std::io::Result<secrecy::zeroize::Zeroizing<String>> {
    let mut text = secrecy::zeroize::Zeroizing::new(String::new());
    if path == Path::new("-") {
        std::io::stdin().lock().read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.read_to_string(&mut text)?;
    }
    Ok(text)
}

/// All lines, or all mistakes. Empty lines are passed over.
fn parse(text: &str) -> Result<Vec<Seed>, Vec<Mistake>> {
    let mut seeds: Vec<Seed> = Vec::new();
    let mut lines_of = std::collections::HashMap::new();
    let mut mistakes = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        if text.trim().is_empty() {
            continue;
        }
        match check(text) {
            Ok(seed) => {
                if let Some(first) = lines_of.insert(seed.teacher.clone(), line) {
                    let message = format!("teacherId {} was on line {first} already", seed.teacher);
                    mistakes.push(Mistake { line, message });
                }
                seeds.push(seed);
            }
            Err(messages) => mistakes.extend(messages.into_iter().map(|message| Mistake { line, message })),
        }
    }
    if seeds.is_empty() && mistakes.is_empty() {
        mistakes.push(Mistake { line: 1, message: "the file holds no credential".into() });
    }
    if mistakes.is_empty() { Ok(seeds) } else { Err(mistakes) }
}

fn check(text: &str) -> Result<Seed, Vec<String>> {
    let line: Line = serde_json::from_str(text).map_err(|error| vec![without_values(&error)])?;
    let mut mistakes = Vec::new();
    let teacher = TeacherId::parse(line.teacher_id).map_err(|error| mistakes.push(format!("teacherId: {error}"))).ok();
    let is_sub = (1..=255).contains(&line.google_sub.len()) && line.google_sub.bytes().all(|b| b.is_ascii_graphic());
    if !is_sub {
        mistakes
            .push("googleSub: 1 to 255 ASCII characters without spaces, the `sub` of the account's id token".into());
    }
    let at_signs = line.email.bytes().filter(|b| *b == b'@').count();
    if at_signs != 1 || line.email.len() > 254 || line.email.contains(char::is_whitespace) {
        mistakes.push("email: one address with one @, at most 254 characters".into());
    }
    let token = secrecy::ExposeSecret::expose_secret(&line.refresh_token);
    if !((1..=2048).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic())) {
        mistakes.push("refreshToken: 1 to 2,048 ASCII characters without spaces".into());
    }
    let calendar = line.calendar_id.unwrap_or_else(|| "primary".into());
    if calendar.is_empty() || calendar.len() > 1024 || calendar.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        mistakes.push("calendarId: a calendar's id without spaces, or leave it out for the primary calendar".into());
    }
    match teacher {
        Some(teacher) if mistakes.is_empty() => Ok(Seed {
            teacher,
            account: GoogleSub(line.google_sub),
            email: line.email,
            refresh_token: line.refresh_token,
            calendar,
        }),
        _ => Err(mistakes),
    }
}

/// serde's message, unless it quotes a value: the value could be a token.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let names_a_member =
        ["unknown field", "missing field", "duplicate field"].iter().any(|start| text.starts_with(start));
    let column = error.column();
    if names_a_member {
        text.split(" at line ").next().unwrap_or_default().to_owned()
    } else if error.is_data() {
        format!("column {column}: a line is one object, and every value in it a string")
    } else {
        format!("column {column}: no JSON object")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"teacherId":"tch_1","email":"a@example.com","googleSub":"1001","refreshToken":"1//MARKER"}"#;

    #[test]
    fn good_lines_are_read_and_the_calendar_defaults_to_primary() {
        let second = GOOD.replace("tch_1", "tch_2").replace('}', r#","calendarId":"c@group.calendar.google.com"}"#);
        let seeds = parse(&format!("{GOOD}\n\n{second}\r\n")).unwrap();
        assert_eq!(seeds.len(), 2);
        assert_eq!(seeds[0].calendar, "primary");
        assert_eq!(seeds[1].calendar, "c@group.calendar.google.com");
        assert!(!format!("{seeds:?}").contains("MARKER"));
    }

    #[test]
    fn every_mistake_is_listed_with_its_line_and_without_a_token() {
        let text = [
            GOOD,
            GOOD,
            r#"{"teacherId":"a b","email":"none","googleSub":"","refreshToken":"1// MARKER","calendarId":""}"#,
            r#"{"teacherId":"t3","email":"a@x","googleSub":"1","refreshToken":"1//MARKER","calenderId":"x"}"#,
            r#"{"teacherId":"t4","email":"a@x","googleSub":"1"}"#,
            r#"{"teacherId":"t5","email":"a@x","googleSub":1001,"refreshToken":"1//MARKER"}"#,
            "1//MARKER",
            r#"{"teacherId":"t6","#,
        ]
        .join("\n");
        insta::assert_snapshot!(SeedError::Mistakes(parse(&text).unwrap_err()), @r#"
        nothing was written:
          line 2: teacherId tch_1 was on line 1 already
          line 3: teacherId: "a b" is not a teacher id: 1 to 64 characters of A-Z a-z 0-9 _ -
          line 3: googleSub: 1 to 255 ASCII characters without spaces, the `sub` of the account's id token
          line 3: email: one address with one @, at most 254 characters
          line 3: refreshToken: 1 to 2,048 ASCII characters without spaces
          line 3: calendarId: a calendar's id without spaces, or leave it out for the primary calendar
          line 4: unknown field `calenderId`, expected one of `teacherId`, `email`, `googleSub`, `refreshToken`, `calendarId`
          line 5: missing field `refreshToken`
          line 6: column 48: a line is one object, and every value in it a string
          line 7: column 1: a line is one object, and every value in it a string
          line 8: column 18: no JSON object
        "#);
        assert_eq!(parse("\n").unwrap_err()[0].message, "the file holds no credential");
    }
}
