//! Every sealed value of the database, for those who look after the keys.

use super::sql::{Sql, args, both};
use super::{Result, Store};
use crate::model::{GoogleSub, TeacherId, UnixMillis};

/// The sealed columns of a grant. `oauth_flow.verifier` is sealed, too, and ends by itself within minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedColumn {
    /// `teacher_google_credential.refresh_token`
    RefreshToken,
    /// `teacher_google_credential.access_token`
    AccessToken,
}

/// The sealed values of one grant.
#[derive(Debug, Clone)]
pub struct SealedGrant {
    /// The teacher of the row.
    pub teacher: TeacherId,
    /// The account of the row.
    pub account: GoogleSub,
    /// Sealed.
    pub refresh_token: Option<Vec<u8>>,
    /// Sealed.
    pub access_token: Option<Vec<u8>>,
}

/// One value to be put in place of another.
#[derive(Debug, Clone)]
pub struct Reseal {
    /// The teacher of the row.
    pub teacher: TeacherId,
    /// The column.
    pub column: SealedColumn,
    /// What must be there, byte for byte.
    pub old: Vec<u8>,
    /// The same secret, sealed with the current key.
    pub new: Vec<u8>,
}

const GRANTS: Sql = both(
    "SELECT teacher_id, google_sub, refresh_token, access_token FROM teacher_google_credential \
     WHERE teacher_id > $1 AND (refresh_token IS NOT NULL OR access_token IS NOT NULL) ORDER BY teacher_id LIMIT $2",
);

/// The bytes themselves are compared: the secret stays what it was, so no version grows and no refresh under way is
/// disturbed; and where a refresh was faster, its value is the newer one.
const RESEAL_REFRESH: Sql =
    both("UPDATE teacher_google_credential SET refresh_token = $3 WHERE teacher_id = $1 AND refresh_token = $2");
const RESEAL_ACCESS: Sql =
    both("UPDATE teacher_google_credential SET access_token = $3 WHERE teacher_id = $1 AND access_token = $2");

const VERIFIERS: Sql = both("SELECT verifier, expires_at_ms FROM oauth_flow WHERE expires_at_ms > $1");

/// Sealed values.
impl Store {
    /// The grants after `after`, by teacher, that hold anything sealed.
    pub async fn sealed_grants(&self, after: Option<&TeacherId>, limit: i64) -> Result<Vec<SealedGrant>> {
        let values = args![after.map_or("", TeacherId::as_str), limit];
        let rows = self.inner.rows("reading sealed values", GRANTS, values).await?;
        rows.iter()
            .map(|row| {
                Ok(SealedGrant {
                    teacher: super::rows::teacher_id(row)?,
                    account: GoogleSub(row.get("google_sub")?),
                    refresh_token: row.get("refresh_token")?,
                    access_token: row.get("access_token")?,
                })
            })
            .collect()
    }

    /// Replaces values that are still what they were, in one transaction; says for each whether it was.
    pub async fn reseal(&self, batch: &[Reseal]) -> Result<Vec<bool>> {
        let mut tx = self.inner.write("sealing values anew").await?;
        let mut replaced = Vec::with_capacity(batch.len());
        for Reseal { teacher, column, old, new } in batch {
            let sql = match column {
                SealedColumn::RefreshToken => RESEAL_REFRESH,
                SealedColumn::AccessToken => RESEAL_ACCESS,
            };
            replaced.push(tx.execute(sql, args![teacher.as_str(), old.as_slice(), new.as_slice()]).await? > 0);
        }
        tx.commit().await?;
        Ok(replaced)
    }

    /// The sealed verifiers of consents that are under way, each with the time at which it ends.
    pub async fn sealed_verifiers(&self, now: UnixMillis) -> Result<Vec<(Vec<u8>, UnixMillis)>> {
        let rows = self.inner.rows("reading consents under way", VERIFIERS, args![now]).await?;
        rows.iter().map(|row| Ok((row.get("verifier")?, UnixMillis::new(row.get("expires_at_ms")?)))).collect()
    }
}
