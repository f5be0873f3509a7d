//! Messages given up on.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::sql::{Row, Sql, Tx, args, both};
use super::{DeadLetter, RawMessage, Refused, Result, Store};
use crate::model::{Epoch, Place, SessionId, UnixMillis};

/// How much of a payload is kept: 8 MiB, the most that a NATS server should be set to let through (`max_payload`, 1 MiB
/// unless configured). Events have [`crate::event::PAYLOAD_BYTES_MAX`] at most, so whatever can be requeued is kept whole.
pub(super) const PAYLOAD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A dead letter to be kept.
pub(super) struct Letter<'a> {
    pub(super) sequence: i64,
    pub(super) raw: Option<&'a RawMessage>,
    pub(super) refused: Refused,
}

/// A place has one dead letter for ever, so redelivery and replays make none anew. The one case in which it changes:
/// it was displaced by another process and had no message, and here the message is.
const KEEP: Sql = both(
    "INSERT INTO dead_letter (epoch, sequence, subject, headers, payload, class, reason, session_id, at_ms, state) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'open') \
     ON CONFLICT (epoch, sequence) DO UPDATE SET \
     subject = excluded.subject, headers = excluded.headers, payload = excluded.payload \
     WHERE dead_letter.payload IS NULL AND excluded.payload IS NOT NULL",
);

const COMPLETE: Sql = both(
    "UPDATE dead_letter SET subject = $3, headers = $4, payload = $5 \
     WHERE epoch = $1 AND sequence = $2 AND payload IS NULL",
);

const INCOMPLETE: Sql = both("SELECT epoch, sequence FROM dead_letter WHERE payload IS NULL ORDER BY id LIMIT $1");

const OPEN: Sql = both(
    "SELECT id, epoch, sequence, subject, headers, payload, class, reason, session_id, at_ms, state \
     FROM dead_letter WHERE state = 'open' AND id < $2 ORDER BY id DESC LIMIT $1",
);

const ONE: Sql = both(
    "SELECT id, epoch, sequence, subject, headers, payload, class, reason, session_id, at_ms, state \
     FROM dead_letter WHERE id = $1",
);

/// Keeps a dead letter; `false` when the place had one already.
pub(super) async fn keep(tx: &mut Tx, epoch: Epoch, letter: &Letter<'_>, now: UnixMillis) -> Result<bool> {
    let refused = &letter.refused;
    let session = refused.session.as_ref().map(SessionId::as_str);
    let (subject, headers, payload) = letter
        .raw
        .map(parts)
        .map_or((None, None, None), |(subject, headers, payload)| (Some(subject), Some(headers), Some(payload)));
    let values = args![
        epoch.0,
        letter.sequence,
        subject,
        headers,
        payload,
        refused.class,
        refused.reason.as_str(),
        session,
        now
    ];
    Ok(tx.execute(KEEP, values).await? > 0)
}

fn parts(raw: &RawMessage) -> (&str, String, &[u8]) {
    let headers = serde_json::to_string(&raw.headers).expect("pairs of texts always serialise");
    (&raw.subject, headers, &raw.payload[..raw.payload.len().min(PAYLOAD_BYTES_MAX)])
}

/// Dead letters.
impl Store {
    /// Fills in the message of a dead letter that was displaced after it had been folded.
    pub async fn complete_dead_letter(&self, place: Place, raw: &RawMessage) -> Result<()> {
        let (subject, headers, payload) = parts(raw);
        let mut tx = self.inner.write("completing a dead letter").await?;
        tx.execute(COMPLETE, args![place.epoch.0, place.sequence, subject, headers, payload]).await?;
        tx.commit().await
    }

    /// Dead letters without a message, oldest first, at most `limit`.
    pub async fn incomplete_dead_letters(&self, limit: i64) -> Result<Vec<Place>> {
        let rows = self.inner.rows("listing incomplete dead letters", INCOMPLETE, args![limit]).await?;
        rows.iter().map(place).collect()
    }

    /// Open dead letters, newest first, at most `limit`; `before` is the id of the last one of the page before.
    pub async fn dead_letters(&self, limit: i64, before: Option<i64>) -> Result<Vec<DeadLetter>> {
        let rows = self.inner.rows("listing dead letters", OPEN, args![limit, before.unwrap_or(i64::MAX)]).await?;
        rows.iter().map(read).collect()
    }

    /// One dead letter.
    pub async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>> {
        self.inner.row("reading a dead letter", ONE, args![id]).await?.as_ref().map(read).transpose()
    }
}

fn place(row: &Row) -> Result<Place> {
    Ok(Place { epoch: Epoch(row.get("epoch")?), sequence: row.get("sequence")? })
}

pub(super) fn read(row: &Row) -> Result<DeadLetter> {
    let raw = match row.get::<Option<Vec<u8>>>("payload")? {
        None => None,
        Some(payload) => Some(RawMessage {
            subject: row.get("subject")?,
            headers: row.parsed("headers", |json| serde_json::from_str(json).ok())?,
            payload: payload.into(),
        }),
    };
    Ok(DeadLetter {
        id: row.get("id")?,
        place: place(row)?,
        raw,
        refused: Refused {
            class: class(&row.get::<String>("class")?),
            reason: row.get("reason")?,
            session: row.parsed_or_none("session_id", |id| SessionId::parse(id).ok())?,
        },
        at: UnixMillis::new(row.get("at_ms")?),
        state: row.get("state")?,
    })
}

/// The class as the static word that [`Refused`] has. Every class was such a word of some release of this program, so
/// there are a few dozen at most and each is kept once.
fn class(word: &str) -> &'static str {
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = words.get(word) {
        return known;
    }
    let word: &'static str = Box::leak(word.to_owned().into_boxed_str());
    words.insert(word);
    word
}
