//! A grant that goes: its events first where that is wanted, then the grant, then what is left of it at Google. Each step
//! is a row's phase, so that a crash between two of them loses nothing.

use super::audit::{self, Action, Actor};
use super::connections::shared_with;
use super::sql::{Row, Sql, Tx, args, both};
use super::{Credential, Result, Store, TokenStatus, credentials, queue, rows, teachers};
use crate::model::{GoogleSub, TeacherId, UnixMillis};

/// How long the removal of events may take before the grant goes all the same: an hour. Late looks for an insert of
/// unknown outcome take a quarter of it.
pub const REMOVING_MAX_MS: i64 = 3_600_000;

/// How long Google is asked to revoke before the token is wiped without: a day.
pub const REVOKING_MAX_MS: i64 = 24 * 3_600_000;

/// A disconnect that removes events looks so often whether they are gone.
const LOOK_EVERY_MS: i64 = 200;

/// How far a disconnect is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectPhase {
    /// The reconciler removes the future events; the grant still serves that.
    Removing,
    /// The grant is taken away from the service and has to be revoked at Google.
    Revoking,
    /// Nothing of the grant is left here.
    Done,
}

impl DisconnectPhase {
    /// All phases with the word in the database.
    pub const WORDS: [(Self, &'static str); 3] =
        [(Self::Removing, "removing"), (Self::Revoking, "revoking"), (Self::Done, "done")];
}

/// How a disconnect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectOutcome {
    /// Google revoked the grant, or knew it no more.
    Revoked,
    /// Not revoked: another teacher uses the same Google account, and would lose it too.
    Shared,
    /// There was no token to revoke, or none that opens.
    NoToken,
    /// Google did not revoke it within [`REVOKING_MAX_MS`]; the token was wiped all the same.
    GivenUp,
}

impl DisconnectOutcome {
    /// All outcomes with the word in answers and in the database.
    pub const WORDS: [(Self, &'static str); 4] = [
        (Self::Revoked, "revoked"),
        (Self::Shared, "shared"),
        (Self::NoToken, "no_token"),
        (Self::GivenUp, "given_up"),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        super::sql::word_of(&Self::WORDS, self)
    }
}

/// A disconnect as it stands.
#[derive(Debug, Clone)]
pub struct Disconnection {
    /// The teacher.
    pub teacher: TeacherId,
    /// The address of the account.
    pub email: Option<String>,
    /// The status of the credential.
    pub status: TokenStatus,
    /// How far it is.
    pub phase: DisconnectPhase,
    /// How it ended.
    pub outcome: Option<DisconnectOutcome>,
    /// Events of the account that exist or may exist, of sessions that are not over.
    pub events: i64,
    /// When the phase ends at the latest.
    pub deadline: Option<UnixMillis>,
}

/// A revocation to be made now, by nobody else until the lease ends.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The teacher.
    pub teacher: TeacherId,
    /// The Google account.
    pub account: GoogleSub,
    /// The sealed refresh token.
    pub refresh_token: Option<Vec<u8>>,
    /// Fencing token.
    pub lease_token: i64,
    /// Attempts before this one.
    pub attempts: i64,
    /// When to give up.
    pub deadline: UnixMillis,
}

/// What there is to do about disconnects.
#[derive(Debug, Clone)]
pub enum DisconnectWork {
    /// This.
    Revoke(Box<Revocation>),
    /// Something moved on without a call; look again.
    Moved,
    /// Nothing before then.
    Nothing {
        /// `None`: nothing at all.
        until: Option<UnixMillis>,
    },
}

const READ: Sql = both(
    "SELECT phase, refresh_token, deadline_ms, awaited_lease, attempts, next_attempt_at_ms, lease_token, outcome \
     FROM google_disconnection WHERE teacher_id = $1 AND google_sub = $2",
);

const BEGIN: Sql = both(
    "INSERT INTO google_disconnection (teacher_id, google_sub, phase, requested_at_ms, deadline_ms, attempts, \
     next_attempt_at_ms, lease_token) VALUES ($1, $2, 'removing', $3, $4, 0, $3, 0) \
     ON CONFLICT (teacher_id, google_sub) DO UPDATE SET phase = excluded.phase, refresh_token = NULL, \
     requested_at_ms = excluded.requested_at_ms, deadline_ms = excluded.deadline_ms, awaited_lease = NULL, attempts = 0, \
     next_attempt_at_ms = excluded.next_attempt_at_ms, lease_until_ms = NULL, outcome = NULL, finished_at_ms = NULL",
);

const MARK_REMOVING: Sql = both(
    "UPDATE teacher_google_credential SET token_status = 'DISCONNECTING', token_version = token_version + 1 \
     WHERE teacher_id = $1",
);

/// The token leaves the credential in the same statement in which it arrives where it can only be revoked.
const TAKE_TOKEN: Sql = both(
    "UPDATE google_disconnection SET phase = 'revoking', deadline_ms = $4, next_attempt_at_ms = $3, \
     refresh_token = (SELECT refresh_token FROM teacher_google_credential WHERE teacher_id = $1), \
     awaited_lease = (SELECT lease_token FROM teacher_queue WHERE teacher_id = $1 AND lease_until_ms > $3) \
     WHERE teacher_id = $1 AND google_sub = $2",
);

const WIPE: Sql = both(
    "UPDATE teacher_google_credential SET token_status = 'DISCONNECTED', token_version = token_version + 1, \
     refresh_token = NULL, access_token = NULL, access_expires_at_ms = NULL, refresh_until_ms = NULL, last_error = NULL \
     WHERE teacher_id = $1",
);

const DUE: Sql = both(
    "SELECT teacher_id, google_sub FROM google_disconnection WHERE next_attempt_at_ms <= $1 \
     AND (lease_until_ms IS NULL OR lease_until_ms <= $1) AND ($2 = '' OR teacher_id = $2) \
     ORDER BY next_attempt_at_ms, teacher_id LIMIT 1",
);

const NEXT: Sql = both(
    "SELECT MIN(CASE WHEN lease_until_ms > next_attempt_at_ms THEN lease_until_ms ELSE next_attempt_at_ms END) AS next_ms \
     FROM google_disconnection WHERE next_attempt_at_ms IS NOT NULL",
);

const LOOK_LATER: Sql =
    both("UPDATE google_disconnection SET next_attempt_at_ms = $3 WHERE teacher_id = $1 AND google_sub = $2");

const CALENDAR_HELD: Sql =
    both("SELECT 1 AS held FROM teacher_queue WHERE teacher_id = $1 AND lease_token = $2 AND lease_until_ms > $3");

const CLAIM: Sql = both(
    "UPDATE google_disconnection SET lease_token = lease_token + 1, lease_until_ms = $3 \
     WHERE teacher_id = $1 AND google_sub = $2",
);

const FINISH: Sql = both(
    "UPDATE google_disconnection SET phase = 'done', refresh_token = NULL, next_attempt_at_ms = NULL, \
     lease_until_ms = NULL, outcome = $4, finished_at_ms = $5 \
     WHERE teacher_id = $1 AND google_sub = $2 AND lease_token = $3 AND phase = 'revoking'",
);

const RETRY: Sql = both(
    "UPDATE google_disconnection SET attempts = attempts + 1, next_attempt_at_ms = $4, lease_until_ms = NULL \
     WHERE teacher_id = $1 AND google_sub = $2 AND lease_token = $3",
);

/// Events of the account that exist or may exist, of sessions that are not over.
const EVENTS: Sql = both(
    "SELECT COUNT(*) AS events FROM session_meet_event AS r JOIN session AS s ON s.session_id = r.session_id \
     WHERE r.teacher_id = $1 AND r.google_sub = $2 AND r.phase NOT IN ('absent', 'foreign') \
     AND (r.phase <> 'new' OR r.intent_operation IS NOT NULL) \
     AND (s.ends_at_ms IS NULL OR s.ends_at_ms > $3)",
);

/// Events that are still wanted although nobody works on the calendar: results of calls that were under way when the
/// disconnect began, which put their rows to sleep.
const ASLEEP: Sql = both(
    "SELECT 1 AS asleep FROM session_meet_event AS r JOIN session AS s ON s.session_id = r.session_id \
     WHERE r.teacher_id = $1 AND r.google_sub = $2 AND r.want = 'present' AND r.phase NOT IN ('new', 'absent', 'foreign') \
     AND (s.ends_at_ms IS NULL OR s.ends_at_ms > $3) \
     AND NOT EXISTS (SELECT 1 FROM teacher_queue AS q WHERE q.teacher_id = $1 AND q.lease_until_ms > $3) LIMIT 1",
);

async fn events(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub, now: UnixMillis) -> Result<i64> {
    let row = tx.row(EVENTS, args![teacher.as_str(), account.0.as_str(), now]).await?;
    row.map_or(Ok(0), |row| row.get("events"))
}

/// Takes the grant away from the service: from here on no call is begun with it.
async fn take_away(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub, now: UnixMillis) -> Result<()> {
    let values = args![teacher.as_str(), account.0.as_str(), now, now.plus(REVOKING_MAX_MS)];
    tx.execute(TAKE_TOKEN, values).await?;
    tx.execute(WIPE, args![teacher.as_str()]).await?;
    queue::wake_future(tx, teacher, now).await.map(drop)
}

async fn phase(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub) -> Result<Option<(DisconnectPhase, Row)>> {
    let Some(row) = tx.row(READ, args![teacher.as_str(), account.0.as_str()]).await? else { return Ok(None) };
    let phase = row.parsed("phase", |text| super::sql::word(&DisconnectPhase::WORDS, text))?;
    Ok(Some((phase, row)))
}

async fn view(tx: &mut Tx, known: Credential, now: UnixMillis) -> Result<Disconnection> {
    let events = events(tx, &known.teacher, &known.account, now).await?;
    let (phase, outcome, deadline) = match phase(tx, &known.teacher, &known.account).await? {
        None => (DisconnectPhase::Done, None, None),
        Some((phase, row)) => {
            let outcome = row.parsed_or_none("outcome", |text| super::sql::word(&DisconnectOutcome::WORDS, text))?;
            (phase, outcome, row.time("deadline_ms")?.filter(|_| phase != DisconnectPhase::Done))
        }
    };
    Ok(Disconnection {
        teacher: known.teacher,
        email: known.email,
        status: known.status,
        phase,
        outcome,
        events,
        deadline,
    })
}

/// Waits until the reconciler has removed the events, and takes the grant away then, or when it serves that no more.
async fn remove(
    tx: &mut Tx,
    teacher: &TeacherId,
    account: &GoogleSub,
    deadline: UnixMillis,
    now: UnixMillis,
) -> Result<()> {
    let known = credentials::of_teachers(tx, [teacher]).await?.remove(teacher);
    // A grant that died meanwhile removes nothing any more.
    let serves = known.is_some_and(|known| known.status == TokenStatus::Disconnecting);
    if !serves || now >= deadline || events(tx, teacher, account, now).await? == 0 {
        return take_away(tx, teacher, account, now).await;
    }
    if tx.row(ASLEEP, args![teacher.as_str(), account.0.as_str(), now]).await?.is_some() {
        queue::wake_future(tx, teacher, now).await?;
    }
    look_later(tx, teacher, account, now).await
}

/// Claims the revocation for the caller, unless a call is still under way, or the account is another teacher's, too.
async fn begin_revoking(
    tx: &mut Tx,
    teacher: TeacherId,
    account: GoogleSub,
    row: &Row,
    now: UnixMillis,
    lease_ms: i64,
) -> Result<Option<Revocation>> {
    let held = args![teacher.as_str(), row.get::<Option<i64>>("awaited_lease")?, now];
    if tx.row(CALENDAR_HELD, held).await?.is_some() {
        // A call under way may still need the grant; its result is recorded before the grant dies.
        look_later(tx, &teacher, &account, now).await?;
        return Ok(None);
    }
    tx.execute(CLAIM, args![teacher.as_str(), account.0.as_str(), now.plus(lease_ms)]).await?;
    let lease_token = row.get::<i64>("lease_token")? + 1;
    if shared_with(tx, &teacher, &account).await?.is_empty() {
        return Ok(Some(Revocation {
            refresh_token: row.get("refresh_token")?,
            attempts: row.get("attempts")?,
            deadline: UnixMillis::new(row.get("deadline_ms")?),
            teacher,
            account,
            lease_token,
        }));
    }
    finish(tx, &teacher, &account, lease_token, DisconnectOutcome::Shared, now).await?;
    Ok(None)
}

async fn look_later(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub, now: UnixMillis) -> Result<()> {
    let values = args![teacher.as_str(), account.0.as_str(), now.plus(LOOK_EVERY_MS)];
    tx.execute(LOOK_LATER, values).await.map(drop)
}

/// Disconnecting.
impl Store {
    /// Begins to disconnect a teacher and says how it stands; `None` for one who never connected. Repeating it changes
    /// nothing. With `remove_events` the grant serves the removal of future events first, if it still works and there
    /// are any; else it is taken away at once.
    pub async fn disconnect(
        &self,
        teacher: &TeacherId,
        remove_events: bool,
        actor: &Actor,
        reason: Option<&str>,
        now: UnixMillis,
    ) -> Result<Option<Disconnection>> {
        let mut tx = self.inner.write("disconnecting a teacher").await?;
        let Some(known) = credentials::of_teachers(&mut tx, [teacher]).await?.remove(teacher) else {
            return Ok(None);
        };
        let account = known.account.clone();
        let standing = teachers::standing(&mut tx, teacher).await?;
        let is_connected = !matches!(known.status, TokenStatus::Disconnected | TokenStatus::Disconnecting);
        if is_connected {
            tx.execute(BEGIN, args![teacher.as_str(), account.0.as_str(), now, now.plus(REMOVING_MAX_MS)]).await?;
            let can_remove = remove_events && known.status == TokenStatus::Connected;
            if can_remove && events(&mut tx, teacher, &account, now).await? > 0 {
                tx.execute(MARK_REMOVING, args![teacher.as_str()]).await?;
                queue::wake_future(&mut tx, teacher, now).await?;
            } else {
                take_away(&mut tx, teacher, &account, now).await?;
            }
            let action =
                Action { actor, action: "teacher disconnect", target: teacher.as_str(), reason, outcome: "begun" };
            audit::keep(&mut tx, &action, now).await?;
            teachers::announce(&mut tx, teacher, standing.as_ref(), now).await?;
        }
        let known = credentials::of_teachers(&mut tx, [teacher]).await?.remove(teacher).unwrap_or(known);
        let view = view(&mut tx, known, now).await?;
        tx.commit().await?;
        Ok(Some(view))
    }

    /// How the disconnect of a teacher stands; `None` for one who never connected.
    pub async fn disconnection(&self, teacher: &TeacherId, now: UnixMillis) -> Result<Option<Disconnection>> {
        let mut tx = self.inner.snapshot("reading a disconnect").await?;
        let Some(known) = credentials::of_teachers(&mut tx, [teacher]).await?.remove(teacher) else {
            return Ok(None);
        };
        view(&mut tx, known, now).await.map(Some)
    }

    /// Moves the disconnect that is due one step on (of one teacher, or of all), and says what Google has to be asked.
    pub async fn disconnect_work(
        &self,
        of: Option<&TeacherId>,
        now: UnixMillis,
        lease_ms: i64,
    ) -> Result<DisconnectWork> {
        // The usual answer costs no write transaction.
        let only = of.map_or("", TeacherId::as_str);
        let due = self.inner.row("looking for disconnects", DUE, args![now, only]).await?;
        if due.is_none() {
            let next = self.inner.row("looking for disconnects", NEXT, args![]).await?;
            return Ok(DisconnectWork::Nothing { until: next.map_or(Ok(None), |row| row.time("next_ms"))? });
        }
        let mut tx = self.inner.write("going on with a disconnect").await?;
        let Some(due) = tx.row(DUE, args![now, only]).await? else { return Ok(DisconnectWork::Moved) };
        let (teacher, account) = (rows::teacher_id(&due)?, GoogleSub(due.get("google_sub")?));
        let Some((phase, row)) = phase(&mut tx, &teacher, &account).await? else { return Ok(DisconnectWork::Moved) };
        let standing = teachers::standing(&mut tx, &teacher).await?;
        let of = teacher.clone();
        let revocation = match phase {
            DisconnectPhase::Done => None,
            DisconnectPhase::Removing => {
                remove(&mut tx, &teacher, &account, UnixMillis::new(row.get("deadline_ms")?), now).await?;
                None
            }
            DisconnectPhase::Revoking => begin_revoking(&mut tx, teacher, account, &row, now, lease_ms).await?,
        };
        teachers::announce(&mut tx, &of, standing.as_ref(), now).await?;
        tx.commit().await?;
        Ok(revocation.map_or(DisconnectWork::Moved, |revocation| DisconnectWork::Revoke(Box::new(revocation))))
    }

    /// Wipes the token of a revocation and wakes the teacher's rows once more, for results that were recorded after
    /// the grant was taken away. `false`: somebody else went on with it, or the account was connected again.
    pub async fn finish_disconnect(
        &self,
        revocation: &Revocation,
        outcome: DisconnectOutcome,
        now: UnixMillis,
    ) -> Result<bool> {
        let Revocation { teacher, account, lease_token, .. } = revocation;
        let mut tx = self.inner.write("ending a disconnect").await?;
        let is_finished = finish(&mut tx, teacher, account, *lease_token, outcome, now).await?;
        tx.commit().await?;
        Ok(is_finished)
    }

    /// Puts a revocation off that Google did not take.
    pub async fn retry_disconnect(&self, revocation: &Revocation, next: UnixMillis) -> Result<bool> {
        let Revocation { teacher, account, lease_token, .. } = revocation;
        let values = args![teacher.as_str(), account.0.as_str(), *lease_token, next];
        self.changed_one("putting a revocation off", RETRY, values).await
    }
}

async fn finish(
    tx: &mut Tx,
    teacher: &TeacherId,
    account: &GoogleSub,
    lease_token: i64,
    outcome: DisconnectOutcome,
    now: UnixMillis,
) -> Result<bool> {
    let values = args![teacher.as_str(), account.0.as_str(), lease_token, outcome.as_str(), now];
    if tx.execute(FINISH, values).await? == 0 {
        return Ok(false);
    }
    queue::wake_future(tx, teacher, now).await?;
    Ok(true)
}
