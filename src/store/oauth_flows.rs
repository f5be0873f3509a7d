//! Consents that were begun: single use, short-lived, and bounded in number.

use super::sql::{Row, Sql, args, both};
use super::{Result, Store, rows};
use crate::model::{TeacherId, UnixMillis};

/// Newest flows kept for one teacher: somebody who presses the button again and again pushes out the oldest.
const PER_TEACHER: i64 = 10;

/// A flow is kept for an hour after its end, so that a late or repeated callback is told from a made-up one.
const KEPT_MS: i64 = 3_600_000;

/// A consent to be begun.
#[derive(Debug, Clone)]
pub struct NewFlow {
    /// SHA-256 of the state, in hex.
    pub state_hash: String,
    /// Who connects.
    pub teacher: TeacherId,
    /// The PKCE verifier, sealed.
    pub verifier: Vec<u8>,
    /// Where the browser goes afterwards.
    pub return_to: Option<String>,
    /// SHA-256 of the browser's cookie, in hex; `None` where no browser was seen.
    pub browser_hash: Option<String>,
    /// Another Google account than before may be connected.
    pub is_account_change: bool,
    /// Now.
    pub created_at: UnixMillis,
    /// When the state stops being accepted.
    pub expires_at: UnixMillis,
}

/// A consent that came back, once.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Who connects.
    pub teacher: TeacherId,
    /// The PKCE verifier, sealed.
    pub verifier: Vec<u8>,
    /// Where the browser goes afterwards.
    pub return_to: Option<String>,
    /// Another Google account than before may be connected.
    pub is_account_change: bool,
}

/// What a state turned out to be.
#[derive(Debug, Clone)]
pub enum Consumed {
    /// Good, and used up now.
    Flow(Flow),
    /// Nobody's, or long over.
    Unknown,
    /// Used before.
    Used,
    /// Over.
    Expired,
    /// Begun in another browser; it stays good for that one.
    OtherBrowser,
}

const OPEN: Sql = both(
    "INSERT INTO oauth_flow (state_hash, teacher_id, verifier, return_to, browser_hash, is_account_change, \
     created_at_ms, expires_at_ms) VALUES ($1, $2, $3, $4, $5, $6 <> 0, $7, $8)",
);

const PRUNE: Sql = both("DELETE FROM oauth_flow WHERE expires_at_ms < $1");

const KEEP_NEWEST: Sql = both(
    "DELETE FROM oauth_flow WHERE teacher_id = $1 AND state_hash NOT IN (SELECT state_hash FROM oauth_flow \
     WHERE teacher_id = $1 ORDER BY created_at_ms DESC, state_hash LIMIT $2)",
);

const FIND: Sql = both(
    "SELECT teacher_id, verifier, return_to, browser_hash, is_account_change, expires_at_ms, used_at_ms \
     FROM oauth_flow WHERE state_hash = $1",
);

/// The verifier is of no use to anybody any more.
const USE: Sql =
    both("UPDATE oauth_flow SET used_at_ms = $2, verifier = $3 WHERE state_hash = $1 AND used_at_ms IS NULL");

const COUNT: Sql = both("SELECT COUNT(*) AS flows FROM oauth_flow WHERE teacher_id = $1");

/// Consents.
impl Store {
    /// Keeps a new flow, and lets go of those that are over or too many.
    pub async fn open_flow(&self, flow: &NewFlow) -> Result<()> {
        let mut tx = self.inner.write("beginning a consent").await?;
        tx.execute(PRUNE, args![flow.created_at.plus(-KEPT_MS)]).await?;
        let values = args![
            flow.state_hash.as_str(),
            flow.teacher.as_str(),
            flow.verifier.as_slice(),
            flow.return_to.as_deref(),
            flow.browser_hash.as_deref(),
            i64::from(flow.is_account_change),
            flow.created_at,
            flow.expires_at,
        ];
        tx.execute(OPEN, values).await?;
        tx.execute(KEEP_NEWEST, args![flow.teacher.as_str(), PER_TEACHER]).await?;
        tx.commit().await
    }

    /// Uses a state up, if it is good: of two callbacks at once only one gets the flow.
    pub async fn consume_flow(
        &self,
        state_hash: &str,
        browser_hash: Option<&str>,
        now: UnixMillis,
    ) -> Result<Consumed> {
        let mut tx = self.inner.write("ending a consent").await?;
        let Some(row) = tx.row(FIND, args![state_hash]).await? else { return Ok(Consumed::Unknown) };
        if row.time("used_at_ms")?.is_some() {
            return Ok(Consumed::Used);
        }
        if row.get::<i64>("expires_at_ms")? <= now.get() {
            return Ok(Consumed::Expired);
        }
        let bound_to: Option<String> = row.get("browser_hash")?;
        if bound_to.is_some() && bound_to.as_deref() != browser_hash {
            return Ok(Consumed::OtherBrowser);
        }
        let flow = read(&row)?;
        if tx.execute(USE, args![state_hash, now, [0_u8; 0].as_slice()]).await? == 0 {
            return Ok(Consumed::Used);
        }
        tx.commit().await?;
        Ok(Consumed::Flow(flow))
    }

    /// How many flows are kept for a teacher.
    pub async fn flows_kept(&self, teacher: &TeacherId) -> Result<i64> {
        let row = self.inner.row("counting consents", COUNT, args![teacher.as_str()]).await?;
        row.map_or(Ok(0), |row| row.get("flows"))
    }
}

fn read(row: &Row) -> Result<Flow> {
    Ok(Flow {
        teacher: rows::teacher_id(row)?,
        verifier: row.get("verifier")?,
        return_to: row.get("return_to")?,
        is_account_change: row.get("is_account_change")?,
    })
}
