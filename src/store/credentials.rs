//! Teachers' grants. Everything that changes one is a compare-and-set on `token_version`, so a slow process never
//! overwrites what a faster one brought.

use std::collections::HashMap;

use serde::Serialize;

use super::sql::{Row, Sql, Tx, args, batch, both, with_batch, word};
use super::{
    Credential, NewCredential, RefreshTurn, RefreshedToken, Result, Store, TokenStatus, connections, queue, rows,
};
use crate::model::{GoogleSub, TeacherId, UnixMillis};

const HOUR_MS: i64 = 3_600_000;

/// A cool-down that ended this long ago does not count any more.
const QUIET_MS: i64 = 24 * HOUR_MS;

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
     token_version, refresh_token, scopes, cool_down_step, connected_at_ms, refresh_turn) \
     VALUES ($1, $2, $3, $4, 'CONNECTED', 1, $5, $6, 0, $7, 0) \
     ON CONFLICT (teacher_id) DO UPDATE SET google_sub = excluded.google_sub, google_email = excluded.google_email, \
     calendar_id = excluded.calendar_id, token_status = excluded.token_status, \
     token_version = known.token_version + 1, refresh_token = excluded.refresh_token, access_token = NULL, \
     access_expires_at_ms = NULL, scopes = excluded.scopes, last_error = NULL, refresh_until_ms = NULL, \
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
     last_error = NULL, refresh_until_ms = NULL, token_version = token_version + 1 \
     WHERE teacher_id = $1 AND token_version = $2 AND refresh_turn = $3",
);

const FAIL_TURN: Sql = both(
    "UPDATE teacher_google_credential SET last_error = $4, refresh_until_ms = NULL, \
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

/// Credentials.
impl Store {
    /// Stores a grant (insert or replace), raises its version, sets it connected and wakes the teacher's rows; all in one.
    pub async fn put_credential(&self, new: &NewCredential, now: UnixMillis) -> Result<()> {
        let mut tx = self.inner.write("storing a grant").await?;
        let values = args![
            new.teacher.as_str(),
            new.account.0.as_str(),
            new.email.as_deref(),
            new.calendar.as_str(),
            new.refresh_token.as_slice(),
            new.scopes.as_str(),
            now,
        ];
        tx.execute(PUT, values).await?;
        connections::drop_disconnects(&mut tx, &new.teacher, &new.account).await?;
        queue::wake(&mut tx, &new.teacher, now).await?;
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
        ];
        self.changed_one("storing a refreshed token", FINISH_TURN, values).await
    }

    /// Ends a turn without a token: keeps `reason` and, when `status` is given, changes the status (version + 1). `false`
    /// means that version or turn had moved, and nothing was changed.
    pub async fn fail_refresh(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        turn: i64,
        status: Option<TokenStatus>,
        reason: &str,
        _now: UnixMillis,
    ) -> Result<bool> {
        let status = status.map(TokenStatus::as_str);
        let values = args![teacher.as_str(), token_version, turn, reason, status];
        self.changed_one("ending the turn to refresh", FAIL_TURN, values).await
    }

    /// Sets the status if the version still stands (a call met `insufficientPermissions`).
    pub async fn set_token_status(
        &self,
        teacher: &TeacherId,
        token_version: i64,
        status: TokenStatus,
        reason: &str,
        _now: UnixMillis,
    ) -> Result<bool> {
        let values = args![teacher.as_str(), token_version, status.as_str(), reason];
        self.changed_one("setting a grant's status", SET_STATUS, values).await
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
