//! What was asked of Google for a session: the last [`KEPT`] calls of each, for the people who have to explain them.
//!
//! A call is read off the row before and after its result: a write leaves its intent until the result is recorded, and a
//! read is worth a line when it brought something new. So nothing on the way to Google has to carry a note along, and a
//! result that was refused (a lost lease) leaves none.

use std::collections::HashMap;

use serde::Serialize;

use super::sql::{Row, Sql, Tx, batch, session_ids, with_batch, word, word_of};
use super::{Result, Store, rows};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::{Code, MeetEvent, Phase};

/// Calls kept of each session; a few more until they are pruned.
const KEPT: i64 = 20;

/// Old calls are pruned when the count passes a multiple of this, not at every call.
const PRUNE_EVERY: i64 = 8;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// Google did it.
    Done,
    /// Google, or the way to it, said no.
    Failed,
    /// Whether Google did it is not known; it is looked up before anything else is written.
    Unclear,
    /// A look that brought something new.
    Seen,
}

impl CallOutcome {
    const WORDS: [(Self, &'static str); 4] =
        [(Self::Done, "done"), (Self::Failed, "failed"), (Self::Unclear, "unclear"), (Self::Seen, "seen")];

    /// The word.
    pub fn as_str(self) -> &'static str {
        word_of(&Self::WORDS, self)
    }
}

/// One call as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoogleCall {
    /// Counts the calls of the session, from 1.
    pub number: i64,
    /// Which of the session's events.
    pub ordinal: i64,
    /// On whose calendar.
    pub teacher: TeacherId,
    /// `insert`, `patch`, `delete`, … or `look`.
    pub operation: String,
    /// When a write was begun.
    pub begun_at: Option<UnixMillis>,
    /// When its outcome was recorded.
    pub at: UnixMillis,
    /// What came of it.
    pub outcome: CallOutcome,
    /// What was known of the event afterwards.
    pub phase: Phase,
    /// Why not.
    pub code: Option<Code>,
    /// The same for a person.
    pub message: Option<String>,
}

/// A call before it has its number.
#[derive(Debug, Serialize)]
pub(super) struct Draft {
    session_id: String,
    /// Which of the batch's calls of this session it is, from 1.
    nth: i64,
    ordinal: i64,
    teacher_id: String,
    operation: String,
    begun_at_ms: Option<i64>,
    at_ms: i64,
    outcome: &'static str,
    phase: &'static str,
    code: Option<&'static str>,
    message: Option<String>,
}

impl Draft {
    /// The call that led from one row to the other, if there was one worth a line.
    pub(super) fn between(before: &MeetEvent, after: &MeetEvent, now: UnixMillis) -> Option<Self> {
        let attempts = |row: &MeetEvent| row.failure.as_ref().map_or(0, |failure| failure.attempts);
        let failure = after.failure.as_ref();
        let has_failed = attempts(after) > attempts(before)
            || failure.is_some_and(|new| before.failure.as_ref().is_none_or(|old| old.code != new.code));
        let (operation, begun_at, outcome) = match (&before.intent, &after.intent) {
            (Some(intent), None) => {
                let outcome = match after.phase {
                    Phase::Unknown => CallOutcome::Unclear,
                    _ if has_failed && attempts(after) > 0 => CallOutcome::Failed,
                    _ => CallOutcome::Done,
                };
                (intent.operation.clone(), Some(intent.at), outcome)
            }
            (None, None) => {
                let is_news = before.etag != after.etag
                    || before.link != after.link
                    || (before.phase != after.phase && before.phase != Phase::New);
                let is_failure = attempts(after) > attempts(before);
                let outcome = if is_failure { CallOutcome::Failed } else { CallOutcome::Seen };
                (is_news || is_failure).then(|| ("look".to_owned(), None, outcome))?
            }
            _ => return None,
        };
        let told = failure.filter(|_| outcome != CallOutcome::Done && outcome != CallOutcome::Seen);
        Some(Self {
            session_id: after.session.as_str().to_owned(),
            nth: 1,
            ordinal: after.ordinal,
            teacher_id: after.teacher.as_str().to_owned(),
            operation,
            begun_at_ms: begun_at.map(UnixMillis::get),
            at_ms: now.get(),
            outcome: outcome.as_str(),
            phase: word_of(&Phase::WORDS, after.phase),
            code: told.map(|failure| failure.code.as_str()),
            message: told.map(|failure| failure.message.clone()),
        })
    }
}

const KEEP: Sql = with_batch!(
    "INSERT INTO google_call (session_id, number, ordinal, teacher_id, operation, begun_at_ms, at_ms, outcome, phase, \
     code, message) SELECT batch.session_id, batch.nth + COALESCE((SELECT MAX(known.number) FROM google_call AS known \
     WHERE known.session_id = batch.session_id), 0), batch.ordinal, batch.teacher_id, batch.operation, \
     batch.begun_at_ms, batch.at_ms, batch.outcome, batch.phase, batch.code, batch.message FROM ",
    [session_id text, nth bigint, ordinal bigint, teacher_id text, operation text, begun_at_ms bigint, at_ms bigint,
     outcome text, phase text, code text, message text],
    " AS batch WHERE TRUE RETURNING session_id, number"
);

const PRUNE: Sql = with_batch!(
    "DELETE FROM google_call WHERE (session_id, number) IN (SELECT known.session_id, known.number \
     FROM google_call AS known JOIN ",
    [session_id text, up_to bigint],
    " AS batch ON known.session_id = batch.session_id AND known.number <= batch.up_to)"
);

const OF_SESSION: Sql = with_batch!(
    "SELECT number, ordinal, teacher_id, operation, begun_at_ms, at_ms, outcome, phase, code, message \
     FROM google_call WHERE session_id IN ",
    [session_id text],
    " ORDER BY number"
);

/// Keeps the calls of a batch of results.
pub(super) async fn keep(tx: &mut Tx, mut drafts: Vec<Draft>) -> Result<()> {
    #[derive(Serialize)]
    struct Old {
        session_id: String,
        up_to: i64,
    }
    if drafts.is_empty() {
        return Ok(());
    }
    let mut counts = HashMap::<String, i64>::new();
    for draft in &mut drafts {
        let count = counts.entry(draft.session_id.clone()).or_default();
        *count += 1;
        draft.nth = *count;
    }
    let mut old = Vec::new();
    for row in tx.rows(KEEP, vec![batch(&drafts)]).await? {
        let number: i64 = row.get("number")?;
        if number > KEPT && number % PRUNE_EVERY == 0 {
            old.push(Old { session_id: row.get("session_id")?, up_to: number - KEPT });
        }
    }
    if !old.is_empty() {
        tx.execute(PRUNE, vec![batch(&old)]).await?;
    }
    Ok(())
}

/// Calls.
impl Store {
    /// The last calls of a session, oldest first.
    pub async fn calls(&self, session: &SessionId) -> Result<Vec<GoogleCall>> {
        let rows =
            self.inner.rows("reading what was asked of Google", OF_SESSION, vec![session_ids([session])]).await?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<GoogleCall> {
    Ok(GoogleCall {
        number: row.get("number")?,
        ordinal: row.get("ordinal")?,
        teacher: rows::teacher_id(row)?,
        operation: row.get("operation")?,
        begun_at: row.time("begun_at_ms")?,
        at: UnixMillis::new(row.get("at_ms")?),
        outcome: row.parsed("outcome", |text| word(&CallOutcome::WORDS, text))?,
        phase: row.parsed("phase", |text| word(&Phase::WORDS, text))?,
        code: row.parsed_or_none("code", |text| word(&Code::WORDS, text))?,
        message: row.get("message")?,
    })
}
