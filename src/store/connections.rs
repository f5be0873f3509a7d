//! A grant that comes with a consent: compare-and-set on the credential, which wakes the teacher's rows in the same
//! transaction.
//!
//! Revoking kills
//! everything that the Google account granted to the whole project, whoever connected it
//! (<https://developers.google.com/identity/protocols/oauth2/web-server#tokenrevoke>). So an account that another
//! teacher uses is not revoked, a new consent of an account drops what is left of its disconnects, and a consent that a
//! revocation may have hit is refused ([`Connected::Disconnecting`]).

use super::sql::{Sql, Tx, args, both};
use super::{Result, Store, credentials, queue, rows, teachers};
use crate::model::{GoogleSub, TeacherId, UnixMillis};

/// A grant that a consent brought, sealed.
#[derive(Debug, Clone)]
pub struct NewConnection {
    /// The teacher.
    pub teacher: TeacherId,
    /// The Google account.
    pub account: GoogleSub,
    /// Its address.
    pub email: Option<String>,
    /// The refresh token; `None` keeps that of the same account.
    pub refresh_token: Option<Vec<u8>>,
    /// The access token that came with it.
    pub access_token: Vec<u8>,
    /// When that ends.
    pub access_expires_at: UnixMillis,
    /// Granted scopes, space-separated.
    pub scopes: String,
    /// When the new refresh token ends by itself; `None`: it does not, or it was not renewed.
    pub refresh_expires_at: Option<UnixMillis>,
    /// When the exchange of the code began: a revocation of the account after that may have killed the grant.
    pub exchanged_from: UnixMillis,
}

/// What became of a [`NewConnection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connected {
    /// Stored; the teacher's rows are awake. The other teachers that use the same Google account are named.
    Yes {
        /// Sorted.
        shared_with: Vec<TeacherId>,
    },
    /// The credential changed since it was read: read it again.
    Moved,
    /// The account is being revoked at Google, or was since the exchange: the grant may be dead already.
    Disconnecting,
}

const INSERT: Sql = both(
    "INSERT INTO teacher_google_credential (teacher_id, google_sub, google_email, calendar_id, token_status, \
     token_version, refresh_token, access_token, access_expires_at_ms, scopes, cool_down_step, connected_at_ms, \
     last_refresh_at_ms, refresh_turn, refresh_expires_at_ms, touch_at_ms) \
     VALUES ($1, $2, $3, 'primary', 'CONNECTED', 1, $4, $5, $6, $7, 0, $8, $8, 0, $9, $8 + 1814400000) \
     ON CONFLICT (teacher_id) DO NOTHING",
);

/// A limit is one of the calendar, so a cool-down outlives a new consent of the same account and no other. A turn to
/// refresh that is under way ends with nothing: its version is gone.
const REPLACE: Sql = both(
    "UPDATE teacher_google_credential SET google_sub = $2, google_email = $3, token_status = 'CONNECTED', \
     token_version = token_version + 1, refresh_token = COALESCE($4, refresh_token), access_token = $5, \
     access_expires_at_ms = $6, scopes = $7, last_error = NULL, refresh_until_ms = NULL, last_refresh_at_ms = $8, \
     refresh_expires_at_ms = CASE WHEN $4 IS NULL THEN refresh_expires_at_ms ELSE $9 END, \
     touch_at_ms = $8 + 1814400000, refresh_failing_since_ms = NULL, refresh_not_before_ms = NULL, \
     calendar_id = CASE WHEN google_sub = $2 THEN calendar_id ELSE 'primary' END, \
     cool_down_until_ms = CASE WHEN google_sub = $2 THEN cool_down_until_ms END, \
     cool_down_step = CASE WHEN google_sub = $2 THEN cool_down_step ELSE 0 END, \
     connected_at_ms = CASE WHEN google_sub = $2 AND token_status <> 'DISCONNECTED' THEN connected_at_ms ELSE $8 END \
     WHERE teacher_id = $1 AND token_version = $10",
);

/// A revocation of the account that is under way, or was after `$2`.
const REVOKED_SINCE: Sql = both(
    "SELECT 1 AS hit FROM google_disconnection WHERE google_sub = $1 \
     AND (lease_until_ms > $3 OR (outcome = 'revoked' AND finished_at_ms >= $2)) LIMIT 1",
);

const DROP_DISCONNECTS: Sql =
    both("DELETE FROM google_disconnection WHERE google_sub = $1 OR (teacher_id = $2 AND phase = 'removing')");

const SHARED_WITH: Sql = both(
    "SELECT teacher_id FROM teacher_google_credential WHERE google_sub = $1 AND teacher_id <> $2 \
     AND refresh_token IS NOT NULL ORDER BY teacher_id",
);

/// Ends what is left of disconnects of an account that is connected again.
pub(super) async fn drop_disconnects(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub) -> Result<()> {
    tx.execute(DROP_DISCONNECTS, args![account.0.as_str(), teacher.as_str()]).await.map(drop)
}

pub(super) async fn shared_with(tx: &mut Tx, teacher: &TeacherId, account: &GoogleSub) -> Result<Vec<TeacherId>> {
    tx.rows(SHARED_WITH, args![account.0.as_str(), teacher.as_str()]).await?.iter().map(rows::teacher_id).collect()
}

/// Connecting.
impl Store {
    /// Stores a grant if the credential still has version `expected` (`None`: there is none), sets it connected, ends
    /// what is left of disconnects of the account, and wakes the teacher's rows; all in one.
    pub async fn connect(&self, new: &NewConnection, expected: Option<i64>, now: UnixMillis) -> Result<Connected> {
        let mut tx = self.inner.write("storing a connection").await?;
        let (teacher, account) = (new.teacher.as_str(), new.account.0.as_str());
        if tx.row(REVOKED_SINCE, args![account, new.exchanged_from, now]).await?.is_some() {
            return Ok(Connected::Disconnecting);
        }
        let before = credentials::of_teachers(&mut tx, [&new.teacher]).await?.remove(&new.teacher);
        let standing = teachers::standing(&mut tx, &new.teacher).await?;
        let mut values = args![
            teacher,
            account,
            new.email.as_deref(),
            new.refresh_token.as_deref(),
            new.access_token.as_slice(),
            new.access_expires_at,
            new.scopes.as_str(),
            now,
            new.refresh_expires_at,
        ];
        let statement = match expected {
            None => INSERT,
            Some(version) => {
                values.push(version.into());
                REPLACE
            }
        };
        if tx.execute(statement, values).await? == 0 {
            return Ok(Connected::Moved);
        }
        drop_disconnects(&mut tx, &new.teacher, &new.account).await?;
        if before.is_some_and(|before| before.account != new.account) {
            // Settled events are on the other account.
            queue::wake_future(&mut tx, &new.teacher, now).await?;
        } else {
            queue::wake(&mut tx, &new.teacher, now).await?;
        }
        teachers::announce(&mut tx, &new.teacher, standing.as_ref(), now).await?;
        self.tell_others(&mut tx, &[], true).await?;
        let shared_with = shared_with(&mut tx, &new.teacher, &new.account).await?;
        tx.commit().await?;
        Ok(Connected::Yes { shared_with })
    }
}
