//! Ids and values, checked when they are built, so that no other module has to doubt them.
//!
//! A value of one of these types is always within its documented range. Parsing errors say what is allowed, because
//! their text ends up in a dead letter that a person has to act on.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};

/// Why a value could not be built: one sentence that says what was found and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub String);

/// A moment: milliseconds since 1970-01-01T00:00:00Z, without leap seconds. Any `i64` is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(i64);

impl UnixMillis {
    /// From milliseconds since the Unix epoch.
    pub const fn new(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// This moment plus `millis` (which may be negative), saturating.
    #[must_use]
    pub const fn plus(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this moment; negative when `earlier` is later.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// RFC 3339 in UTC: with milliseconds only where there are any (`2026-12-01T09:00:00Z`, `…:06.030Z`).
    pub fn to_rfc3339(self) -> String {
        let format = if self.0 % 1000 == 0 { SecondsFormat::Secs } else { SecondsFormat::Millis };
        DateTime::<Utc>::from_timestamp_millis(self.0).unwrap_or_default().to_rfc3339_opts(format, true)
    }

    /// Parses RFC 3339 with any offset; digits past the millisecond are cut.
    pub fn parse_rfc3339(text: &str) -> Result<Self, InvalidValue> {
        DateTime::parse_from_rfc3339(text).map(|moment| Self(moment.timestamp_millis())).map_err(|_| {
            InvalidValue(format!(
                "{} is not an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z",
                quoted(text)
            ))
        })
    }
}

impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_rfc3339())
    }
}

/// A text in quotes, cut to 80 characters, so that no message grows with what somebody sent.
pub fn quoted(text: &str) -> String {
    if text.chars().count() > 80 {
        let head: String = text.chars().take(80).collect();
        format!("{head:?}…")
    } else {
        format!("{text:?}")
    }
}

fn check_key(what: &str, text: &str) -> Result<(), InvalidValue> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(InvalidValue(format!("{} is not a {what}: 1 to 64 characters of A-Z a-z 0-9 _ -", quoted(text))))
}

macro_rules! key_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// Checks the characters and the length.
            pub fn parse(text: impl Into<String>) -> Result<Self, InvalidValue> {
                let text = text.into();
                check_key($what, &text)?;
                Ok(Self(text))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

key_type!(
    /// The booking backend's id of a session: `[A-Za-z0-9_-]{1,64}`, so UUIDs and integers both fit and it is one
    /// token of a NATS subject.
    SessionId,
    "session id"
);
key_type!(
    /// The booking backend's id of a teacher: `[A-Za-z0-9_-]{1,64}`.
    TeacherId,
    "teacher id"
);

/// The booking row's own counter: 1 to 2^53 − 1 (what every JSON library carries exactly), grows with every change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionVersion(i64);

impl SessionVersion {
    /// The largest version: 2^53 − 1, RFC 8259 §6.
    pub const MAX: i64 = (1 << 53) - 1;

    /// Checks the range.
    pub fn new(version: i64) -> Result<Self, InvalidValue> {
        if (1..=Self::MAX).contains(&version) {
            Ok(Self(version))
        } else {
            Err(InvalidValue(format!("{version} is not a version: a whole number from 1 to {}", Self::MAX)))
        }
    }

    /// The number.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl fmt::Display for SessionVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One incarnation of the stream, counted from 1. Sequences are comparable only within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a message stands: the epoch and its stream sequence there (from 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The incarnation of the stream.
    pub epoch: Epoch,
    /// The stream sequence, from 1.
    pub sequence: i64,
}

/// What is taught: one student, several, or a lesson of a course.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One student.
    Private,
    /// Several students.
    Group,
    /// A lesson of a course.
    Course,
}

impl Kind {
    /// The word on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Group => "group",
            Self::Course => "course",
        }
    }

    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Private, Self::Group, Self::Course].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A name of the IANA time zone database, such as `Europe/Madrid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimeZone(chrono_tz::Tz);

impl TimeZone {
    /// Looks the name up in the database that is built in.
    pub fn parse(name: &str) -> Result<Self, InvalidValue> {
        name.parse().map(Self).map_err(|_| {
            InvalidValue(format!("{} is not a time zone of the IANA database, such as Europe/Madrid", quoted(name)))
        })
    }

    /// The IANA name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }
}

/// Somebody invited to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attendee {
    /// An address with one `@`; at most 254 characters (RFC 5321 §4.5.3.1.3).
    pub email: String,
    /// The name to show, when known.
    pub display_name: Option<String>,
}

/// The account at Google: the `sub` of its id token, 1 to 255 ASCII characters, stable for ever (OpenID Connect
/// Core §2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoogleSub(pub String);

/// A Google Calendar event id of ours: 52 characters of `[0-9a-v]`, always derived with [`EventId::derive`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(String);

impl EventId {
    /// SHA-256 over environment, session, account and generation, in base32hex.
    ///
    /// Google allows `[0-9a-v]{5,1024}` (Events reference, `id`). Every field is length-prefixed, so no two tuples
    /// share an encoding; nothing is cut. The account is part of it because guests' copies carry the same id.
    pub fn derive(environment: &str, session: &SessionId, account: &GoogleSub, generation: i64) -> Self {
        let digest = digest(&[
            b"mp/event/1",
            environment.as_bytes(),
            session.as_str().as_bytes(),
            account.0.as_bytes(),
            &generation.to_be_bytes(),
        ]);
        Self(base32hex(&digest))
    }

    /// Reads one back; only what [`EventId::derive`] can have made is accepted.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidValue> {
        let text = text.into();
        if text.len() == 52 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'v').contains(&b)) {
            return Ok(Self(text));
        }
        Err(InvalidValue(format!("{} is not an event id of ours: 52 characters of 0-9 a-v", quoted(&text))))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The conference request id of one attempt: Google ignores a repeated one, so a new attempt needs a new one.
    pub fn conference_request(&self, attempt: i64) -> String {
        let mut id = base32hex(&digest(&[b"mp/conf/1", self.0.as_bytes(), &attempt.to_be_bytes()]));
        id.truncate(26);
        id
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A link into Google Meet: always `https://meet.google.com/…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeetLink(String);

impl MeetLink {
    /// Checks the scheme and the host.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidValue> {
        let text = text.into();
        match text.strip_prefix("https://meet.google.com/") {
            Some(code) if !code.is_empty() && text.len() <= 512 => Ok(Self(text)),
            _ => Err(InvalidValue(format!("{} is not a link to https://meet.google.com/", quoted(&text)))),
        }
    }

    /// The link as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SHA-256 over length-prefixed fields: no separator that a value could contain.
pub fn digest(fields: &[&[u8]]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().into()
}

/// The first 16 bytes of a digest in lower-case hex: enough to tell two contents apart.
pub fn short_hex(digest: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&digest[..16])
}

fn base32hex(bytes: &[u8]) -> String {
    let mut text = data_encoding::BASE32HEX_NOPAD.encode(bytes);
    text.make_ascii_lowercase();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_stable_and_of_googles_alphabet() {
        let session = SessionId::parse("ses_8Kq2").unwrap();
        let id = EventId::derive("production", &session, &GoogleSub("1234".into()), 0);
        assert_eq!(EventId::parse(id.as_str()), Ok(id.clone()));
        assert_ne!(id, EventId::derive("production", &session, &GoogleSub("1234".into()), 1));
        assert_ne!(id, EventId::derive("staging", &session, &GoogleSub("1234".into()), 0));
        // Derived ids must never change between releases: every event at Google carries one. The values were computed by
        // a second implementation.
        assert_eq!(id.as_str(), "m4i4jmrqa2n4c6ufvhmfmc2pbet9d6l9s7nvtb483t92jp9ir41g");
        assert_eq!(id.conference_request(0), "181cclb2u2t10jh6br2k2ctvd8");
    }

    #[test]
    fn times_print_milliseconds_only_where_there_are_any() {
        assert_eq!(UnixMillis::parse_rfc3339("2026-12-01T10:00:00+01:00").unwrap().to_string(), "2026-12-01T09:00:00Z");
        assert_eq!(
            UnixMillis::parse_rfc3339("2026-11-22T20:15:06.030Z").unwrap().to_string(),
            "2026-11-22T20:15:06.030Z"
        );
        assert!(UnixMillis::parse_rfc3339("2026-12-01 10:00").is_err());
    }

    #[test]
    fn keys_are_one_token_of_a_subject() {
        for good in ["1", "ses_8Kq2", "0190b7a2-6a10-7c3e-9a55-2f1f0d6c8e01"] {
            assert!(SessionId::parse(good).is_ok());
        }
        for bad in ["", "a.b", "a b", "ñ", &"x".repeat(65), "*", ">"] {
            assert!(SessionId::parse(bad).is_err());
        }
    }
}
