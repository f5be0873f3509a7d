//! A census of all sealed values: which key each is under, and which do not open and why.
//!
//! Nothing is written, and no secret leaves: a value is opened only to see that it can be.

use crate::model::{GoogleSub, TeacherId, UnixMillis};
use crate::store::sealed::{SealedColumn, SealedGrant};
use crate::store::{Store, StoreError};

use super::{KeyRing, OpenError, Slot};

/// Grants read at once.
const PAGE: i64 = 256;

/// A value that does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unopened {
    /// Whose row it stands in.
    pub teacher: TeacherId,
    /// In which column.
    pub column: SealedColumn,
    /// A word for programs: `unknown_key`, `moved`, `damaged`, `truncated`, `newer_version`.
    pub why: &'static str,
    /// The same for people.
    pub reason: String,
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Grants with anything sealed.
    pub grants: usize,
    /// Those of them whose values are all under the current key (whether they open or not).
    pub under_current_key: usize,
    /// Values that do not open.
    pub failures: Vec<Unopened>,
    /// Consents under way whose verifier is under an old key: they end by themselves.
    pub consents_under_old_keys: usize,
    /// When the last of those ends.
    pub consents_end_at: Option<UnixMillis>,
}

impl Census {
    /// Grants with a value that is not under the current key.
    pub fn under_old_keys(&self) -> usize {
        self.grants - self.under_current_key
    }
}

/// The sealed values of a grant with their slots.
pub(super) fn values(grant: &SealedGrant) -> impl Iterator<Item = (SealedColumn, Slot<'_>, &[u8])> {
    let refresh = grant.refresh_token.as_deref().map(|sealed| (SealedColumn::RefreshToken, sealed));
    let access = grant.access_token.as_deref().map(|sealed| (SealedColumn::AccessToken, sealed));
    [refresh, access]
        .into_iter()
        .flatten()
        .map(|(column, sealed)| (column, slot(column, &grant.teacher, &grant.account), sealed))
}

fn slot<'a>(column: SealedColumn, teacher: &'a TeacherId, account: &'a GoogleSub) -> Slot<'a> {
    match column {
        SealedColumn::RefreshToken => Slot::refresh_token(teacher, account),
        SealedColumn::AccessToken => Slot::access_token(teacher, account),
    }
}

/// Opens every sealed value of the database.
pub async fn census(store: &Store, keys: &KeyRing, now: UnixMillis) -> Result<Census, StoreError> {
    let mut census = Census::default();
    let mut owners: Vec<(TeacherId, GoogleSub)> = Vec::new();
    let mut forged: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut after = None;
    loop {
        let page = store.sealed_grants(after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.teacher.clone());
        for grant in page {
            census.grants += 1;
            let mut is_current = true;
            for (column, slot, sealed) in values(&grant) {
                is_current &= keys.is_current(slot, sealed).unwrap_or(false);
                if let Err(error) = keys.open(slot, sealed) {
                    if matches!(error, OpenError::Forged { .. }) {
                        forged.push((census.failures.len(), sealed.to_vec()));
                    }
                    census.failures.push(unopened(&grant.teacher, column, &error));
                }
            }
            census.under_current_key += usize::from(is_current);
            owners.push((grant.teacher, grant.account));
        }
    }
    for (at, sealed) in forged {
        if let Some((column, owner)) = home(keys, &sealed, &owners) {
            let failure = &mut census.failures[at];
            failure.why = "moved";
            failure.reason = if *owner == failure.teacher {
                format!("it is the {} of the same teacher, in the wrong column", name(column))
            } else {
                format!("it belongs into the row of teacher {owner}, as {}", name(column))
            };
        }
    }
    for (sealed, ends_at) in store.sealed_verifiers(now).await? {
        if !keys
            .is_current(Slot { table: "oauth_flow", column: "verifier", teacher: "", account: "" }, &sealed)
            .unwrap_or(false)
        {
            census.consents_under_old_keys += 1;
            census.consents_end_at = census.consents_end_at.max(Some(ends_at));
        }
    }
    Ok(census)
}

/// The row and the column that a value was sealed for.
fn home<'a>(
    keys: &KeyRing,
    sealed: &[u8],
    owners: &'a [(TeacherId, GoogleSub)],
) -> Option<(SealedColumn, &'a TeacherId)> {
    owners.iter().find_map(|(teacher, account)| {
        [SealedColumn::RefreshToken, SealedColumn::AccessToken]
            .into_iter()
            .find(|column| keys.open(slot(*column, teacher, account), sealed).is_ok())
            .map(|column| (column, teacher))
    })
}

pub(super) fn unopened(teacher: &TeacherId, column: SealedColumn, error: &OpenError) -> Unopened {
    let why = match error {
        OpenError::UnknownKey { .. } => "unknown_key",
        OpenError::Truncated { .. } => "truncated",
        OpenError::Version { .. } => "newer_version",
        OpenError::Forged { .. } => "damaged",
    };
    Unopened { teacher: teacher.clone(), column, why, reason: error.to_string() }
}

/// The column's name.
pub fn name(column: SealedColumn) -> &'static str {
    match column {
        SealedColumn::RefreshToken => "refresh_token",
        SealedColumn::AccessToken => "access_token",
    }
}
