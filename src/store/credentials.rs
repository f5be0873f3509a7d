//! Teachers' grants. Everything that changes one is a compare-and-set on `token_version`, so a slow process never
//! overwrites what a faster one brought; and every change of a status is told to stream `MEET` in the same transaction,
//! see [`super::teachers`].

use std::collections::HashMap;

use serde::Serialize;

use super::sql::{Row, Sql, Tx, args, batch, both, with_batch, word};
use super::{
    Credential, NewCredential, RefreshTurn, RefreshedToken, Result, Store, TokenStatus, connections, queue, rows,
    teachers,
};
use crate::model::{GoogleSub, TeacherId, UnixMillis};

const HOUR_MS: i64 = 3_600_000;

/// A cool-down that ended this long ago does not count any more.
const QUIET_MS: i64 = 24 * HOUR_MS;

/// After a failed refresh that does not speak against the grant, refreshes ahead of need wait as long as they have been
/// failing, within these bounds: twice the wait with every failure, without a counter.
const PAUSE_MS: std::ops::RangeInclusive<i64> = 60_000..=HOUR_MS;

macro_rules! grant_columns {
    () => {
        "teacher_id, google_sub, google_email, calendar_id, token_status, token_version, refresh_token, access_token, \
         access_expires_at_ms, scopes, cool_down_until_ms, cool_down_step, connected_at_ms, last_refresh_at_ms, last_error"
    };
}

const ONE: Sql = both(concat!("SELECT ", grant_columns!(), " FROM teacher_google_credential WHERE teacher_id = $1"));

const ALL: Sql = both(concat!("SELECT ", grant_columns!(), " FROM teacher_google_credential ORDER BY teacher_id"));

const SEVERAL: Sql = with_batch!(
    concat!("SELECT ", grant_columns!(), " FROM teacher_google_credential WHERE teacher_id IN "),
    [teacher_id text],
    ""
);

/// A limit is one of the calendar, so a cool-down outlives a new consent of the same account and no other.
const PUT: Sql = both(
    "INSERT INTO teacher_google_credential AS known (teacher_id, google_sub, google_email, calendar_id, token_status, \
     token_version, refresh_token, scopes, cool_down_step, connected_at_ms, refresh_turn, refresh_expires_at_ms, \
     touch_at_ms) VALUES ($1, $2, $3, $4, 'CONNECTED', 1, $5, $6, 0, $7, 0, $8, $7 + 1814400000) \
     ON CONFLICT (teacher_id) DO UPDATE SET google_sub = excluded.google_sub, google_email = excluded.google_email, \
     calendar_id = excluded.calendar_id, token_status = excluded.token_status, \
     token_version = known.token_version + 1, refresh_token = excluded.refresh_token, access_token = NULL, \
     access_expires_at_ms = NULL, scopes = excluded.scopes, last_error = NULL, refresh_until_ms = NULL, \
     refresh_expires_at_ms = excluded.refresh_expires_at_ms, touch_at_ms = excluded.touch_at_ms, \
     refresh_failing_since_ms = NULL, refresh_not_before_ms = NULL, \
     cool_down_until_ms = CASE WHEN known.google_sub = excluded.google_sub THEN known.cool_down_until_ms END, \
     cool_down_step = CASE WHEN known.google_sub = excluded.google_sub THEN known.cool_down_step ELSE 0 END, \
     connected_at_ms = CASE WHEN known.google_sub = excluded.google_sub THEN known.connected_at_ms \
     ELSE excluded.connected_at_ms END, \
     last_refresh_at_ms = CASE WHEN known.google_sub = excluded.google_sub THEN known.last_refresh_at_ms END",
);

const TURN: Sql =
    both("SELECT token_version, refresh_turn, refresh_until_ms FROM teacher_google_credential WHERE teacher_id = $1");

const BEGIN_TURN: Sql = both(
    "UPDATE teacher_google_credential SET refresh_turn = refresh_turn + 1, refresh_until_ms = $2 WHERE teacher_id = $1",
);

const FINISH_TURN: Sql = both(
    "UPDATE teacher_google_credential SET access_token = $4, access_expires_at_ms = $5, \
     refresh_token = COALESCE($6, refresh_token), scopes = COALESCE($7, scopes), last_refresh_at_ms = $8, \
     refresh_expires_at_ms = COALESCE($9, refresh_expires_at_ms), touch_at_ms = $10, refresh_failing_since_ms = NULL, \
     refresh_not_before_ms = NULL, last_error = NULL, refresh_until_ms = NULL, token_version = token_version + 1 \
     WHERE teacher_id = $1 AND token_version = $2 AND refresh_turn = $3",
);

const FAILING: Sql = both("SELECT refresh_failing_since_ms FROM teacher_google_credential WHERE teacher_id = $1");

const FAIL_TURN: Sql = both(
    "UPDATE teacher_google_credential SET last_error = $4, refresh_until_ms = NULL, \
     refresh_failing_since_ms = $6, refresh_not_before_ms = $7, \
     token_status = COALESCE($5, token_status), \
     token_version = token_version + CASE WHEN $5 IS NULL THEN 0 ELSE 1 END \
     WHERE teacher_id = $1 AND token_version = $2 AND refresh_turn = $3",
);

const SET_STATUS: Sql = both(
    "UPDATE teacher_google_credential SET token_status = $3, last_error = $4, token_version = token_version + 1 \
     WHERE teacher_id = $1 AND token_version = $2",
);

const COOL_DOWN: Sql =
    both("UPDATE teacher_google_credential SET cool_down_until_ms = $2, cool_down_step = $3 WHERE teacher_id = $1");

/// Grants that are worth a refresh now: idle ones whose time has come, and those of teachers with work soon whose
/// access token has less than ten minutes and less than a third of its life left. Nobody refreshes them at this moment,
/// and the last failure is long enough ago. Soonest work first. `$1` now, `$2` the end of "soon", `$3` limit.
const WORTH_A_REFRESH: Sql = both(
    "SELECT c.teacher_id, google_sub, google_email, calendar_id, token_status, token_version, refresh_token, \
     access_token, access_expires_at_ms, scopes, cool_down_until_ms, cool_down_step, connected_at_ms, \
     last_refresh_at_ms, last_error FROM teacher_google_credential AS c \
     LEFT JOIN teacher_queue AS q ON q.teacher_id = c.teacher_id WHERE token_status = 'CONNECTED' AND refresh_token IS NOT NULL \
     AND (refresh_not_before_ms IS NULL OR refresh_not_before_ms <= $1) \
     AND (refresh_until_ms IS NULL OR refresh_until_ms <= $1) \
     AND (COALESCE(touch_at_ms, COALESCE(last_refresh_at_ms, connected_at_ms) + 1814400000) <= $1 \
     OR (q.due_at_ms <= $2 AND (access_expires_at_ms IS NULL OR (access_expires_at_ms - $1 < 600000 \
     AND access_expires_at_ms - $1 < (access_expires_at_ms - COALESCE(last_refresh_at_ms, connected_at_ms)) / 3)))) \
     ORDER BY COALESCE(q.due_at_ms, 9223372036854775807), c.teacher_id LIMIT $3",
);

/// Stores a grant (insert or replace), raises its version, sets it connected, wakes the teacher's rows and tells stream
/// `MEET`, in the caller's transaction. `ends_at` is when the grant ends by itself, where Google said so
/// (`refresh_token_expires_in`).
pub(super) async fn put(tx: &mut Tx, new: &NewCredential, ends_at: Option<UnixMillis>, now: UnixMillis) -> Result<()> {
    let before = teachers::standing(tx, &new.teacher).await?;
    let values = args![
        new.teacher.as_str(),
        new.account.0.as_str(),
        new.email.as_deref(),
        new.calendar.as_str(),
        new.refresh_token.as_slice(),
        new.scopes.as_str(),
        now,
        ends_at,
    ];
    tx.execute(PUT, values).await?;
    connections::drop_disconnects(tx, &new.teacher, &new.account).await?;
    queue::wake(tx, &new.teacher, now).await?;
    teachers::announce(tx, &new.teacher, before.as_ref(), now).await
}

/// The grants of several teachers.
pub(super) async fn of_teachers<'a>(
    tx: &mut Tx,
    teachers: impl IntoIterator<Item = &'a TeacherId>,
) -> Result<HashMap<TeacherId, Credential>> {
    #[derive(Serialize)]
    struct Id<'a> {
        teacher_id: &'a str,
    }
    let ids: Vec<_> = teachers.into_iter().map(|teacher| Id { teacher_id: teacher.as_str() }).collect();
    tx.rows(SEVERAL, vec![batch(&ids)])
        .await?
        .iter()
        .map(|row| read(row).map(|credential| (credential.teacher.clone(), credential)))
        .collect()
}

/// The status of that word.
pub(super) fn status(text: &str) -> Option<TokenStatus> {
    word(&TokenStatus::WORDS, text)
}

fn read(row: &Row) -> Result<Credential> {
    Ok(Credential {
        teacher: rows::teacher_id(row)?,
        account: GoogleSub(row.get("google_sub")?),
        email: row.get("google_email")?,
        calendar: row.get("calendar_id")?,
        status: row.parsed("token_status", |text| word(&TokenStatus::WORDS, text))?,
        token_version: row.get("token_version")?,
        refresh_token: row.get("refresh_token")?,
        access_token: row.get("access_token")?,
        access_expires_at: row.time("access_expires_at_ms")?,
        scopes: row.get("scopes")?,
        cool_down_until: row.time("cool_down_until_ms")?,
        cool_down_step: row.get("cool_down_step")?,
        connected_at: UnixMillis::new(row.get("connected_at_ms")?),
        last_refresh_at: row.time("last_refresh_at_ms")?,
        last_error: row.get("last_error")?,
    })
}

/// Milliseconds to wait after a refresh failed that has been failing for so long. Up to a quarter is added, by teacher
/// and turn, so that those who failed together do not come back together.
fn pause_ms(teacher: &TeacherId, turn: i64, failing_for_ms: i64) -> i64 {
    let pause = failing_for_ms.clamp(*PAUSE_MS.start(), *PAUSE_MS.end());
    let digest = crate::model::digest(&[teacher.as_str().as_bytes(), &turn.to_be_bytes()]);
    pause + pause / 4 * i64::from(digest[0]) / 256
}

/// Credentials.
impl Store {
    /// Stores a grant (insert or replace), raises its version, sets it connected and wakes the teacher's rows; all in
    /// one.
    pub async fn put_credential(&self, new: &NewCredential, now: UnixMillis) -> Result<()> {
        self.put_credential_until(new, None, now).await
    }

    /// [`Store::put_credential`] of a grant that ends by itself.
    pub async fn put_credential_until(
        &self,
        new: &NewCredential,
        ends_at: Option<UnixMillis>,
        now: UnixMillis,
    ) -> Result<()> {
        let mut tx = self.inner.write("storing a grant").await?;
        put(&mut tx, new, ends_at, now).await?;
        tx.commit().await
    }

    /// One teacher's grant.
    pub async fn credential(&self, teacher: &TeacherId) -> Result<Option<Credential>> {
        self.inner.row("reading a grant", ONE, args![teacher.as_str()]).await?.as_ref().map(read).transpose()
    }

    /// All grants, by teacher.
    pub async fn credentials(&self) -> Result<Vec<Credential>> {
        self.inner.rows("reading the grants", ALL, args![]).await?.iter().map(read).collect()
    }

    /// Asks for the turn to refresh, by compare-and-set on the token version and on a turn that ends by itself.
    pub async fn begin_refresh(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        now: UnixMillis,
        turn_ms: i64,
    ) -> Result<RefreshTurn> {
        let mut tx = self.inner.write("asking for the turn to refresh").await?;
        let Some(row) = tx.row(TURN, args![teacher.as_str()]).await? else { return Ok(RefreshTurn::Moved) };
        if row.get::<i64>("token_version")? != token_version {
            return Ok(RefreshTurn::Moved);
        }
        if let Some(until) = row.time("refresh_until_ms")?
            && until > now
        {
            return Ok(RefreshTurn::Theirs { until });
        }
        let turn = row.get::<i64>("refresh_turn")? + 1;
        tx.execute(BEGIN_TURN, args![teacher.as_str(), now.plus(turn_ms)]).await?;
        tx.commit().await?;
        Ok(RefreshTurn::Mine { turn })
    }

    /// Stores a refreshed token if version and turn still stand; `false` means read again.
    pub async fn finish_refresh(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        turn: i64,
        token: &RefreshedToken,
        now: UnixMillis,
    ) -> Result<bool> {
        let values = args![
            teacher.as_str(),
            token_version,
            turn,
            token.access_token.as_slice(),
            token.access_expires_at,
            token.refresh_token.as_deref(),
            token.scopes.as_deref(),
            now,
            token.refresh_expires_at,
            token.touch_at,
        ];
        self.changed_one("storing a refreshed token", FINISH_TURN, values).await
    }

    /// Ends a turn without a token: keeps `reason` and, when `status` is given, changes the status (version + 1);
    /// otherwise refreshes ahead of need pause for a while. `false` means that version or turn had moved, and nothing
    /// was changed.
    pub async fn fail_refresh(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        turn: i64,
        status: Option<TokenStatus>,
        reason: &str,
        now: UnixMillis,
    ) -> Result<bool> {
        let mut tx = self.inner.write("ending the turn to refresh").await?;
        let before = teachers::standing(&mut tx, teacher).await?;
        let (since, not_before) = if status.is_some() {
            (None, None)
        } else {
            let known = tx.row(FAILING, args![teacher.as_str()]).await?;
            let known = known.map(|row| row.time("refresh_failing_since_ms")).transpose()?.flatten();
            let since = known.unwrap_or(now);
            (Some(since), Some(now.plus(pause_ms(teacher, turn, now.since(since)))))
        };
        let status = status.map(TokenStatus::as_str);
        let values = args![teacher.as_str(), token_version, turn, reason, status, since, not_before];
        let touched = tx.execute(FAIL_TURN, values).await?;
        teachers::announce(&mut tx, teacher, before.as_ref(), now).await?;
        tx.commit().await?;
        Ok(touched > 0)
    }

    /// Sets the status if the version still stands (a call met `insufficientPermissions`).
    pub async fn set_token_status(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        status: TokenStatus,
        reason: &str,
        now: UnixMillis,
    ) -> Result<bool> {
        let mut tx = self.inner.write("setting a grant's status").await?;
        let before = teachers::standing(&mut tx, teacher).await?;
        let values = args![teacher.as_str(), token_version, status.as_str(), reason];
        let touched = tx.execute(SET_STATUS, values).await?;
        teachers::announce(&mut tx, teacher, before.as_ref(), now).await?;
        tx.commit().await?;
        Ok(touched > 0)
    }

    /// Grants to refresh ahead of need: those whose teacher has work until `soon` and whose access token ends before
    /// long, and idle ones that should be used once more; at most `limit`, soonest work first.
    pub async fn worth_a_refresh(&self, now: UnixMillis, soon: UnixMillis, limit: i64) -> Result<Vec<Credential>> {
        let operation = "looking for grants to refresh";
        self.inner.rows(operation, WORTH_A_REFRESH, args![now, soon, limit]).await?.iter().map(read).collect()
    }

    /// Starts the next cool-down (1 h, 2 h, 6 h, 6 h, …; starts over after a quiet day) and says until when; a running
    /// one is not prolonged. For a teacher without a grant nothing is kept.
    pub async fn cool_down(&self, teacher: &TeacherId, now: UnixMillis) -> Result<UnixMillis> {
        let mut tx = self.inner.write("starting a cool-down").await?;
        let known = tx.row(ONE, args![teacher.as_str()]).await?.as_ref().map(read).transpose()?;
        let last = known.as_ref().and_then(|credential| credential.cool_down_until);
        if let Some(running) = last.filter(|until| *until > now) {
            return Ok(running);
        }
        let steps = known.map_or(0, |credential| credential.cool_down_step);
        let steps = if last.is_some_and(|until| now.since(until) < QUIET_MS) { steps } else { 0 };
        let hours = match steps {
            0 => 1,
            1 => 2,
            _ => 6,
        };
        let until = now.plus(hours * HOUR_MS);
        tx.execute(COOL_DOWN, args![teacher.as_str(), until, steps + 1]).await?;
        tx.commit().await?;
        Ok(until)
    }

    /// One statement in a transaction of its own; whether it changed anything.
    pub(super) async fn changed_one(
        &self,
        operation: &'static str,
        sql: Sql,
        values: Vec<super::sql::Value>,
    ) -> Result<bool> {
        let mut tx = self.inner.write(operation).await?;
        let touched = tx.execute(sql, values).await?;
        tx.commit().await?;
        Ok(touched > 0)
    }
}
