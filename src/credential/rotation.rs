//! Rotation: every sealed value is sealed anew with the current key, while the service runs.
//!
//! A value is replaced only where it still is, byte for byte, what was opened, so a refresh that was faster wins. There
//! is no list of what is left to do: what is under another key is, so a run that was killed is resumed by the next one.

use super::census::{Census, census, unopened, values};
use super::{KeyRing, SealError};
use crate::clock::Clock;
use crate::crash;
use crate::store::sealed::Reseal;
use crate::store::{Store, StoreError};

/// Grants per transaction: it holds up other writers for some milliseconds.
const BATCH: i64 = 32;
/// A refresh with the old key may slip in behind a pass; one that still does after so many is a process that has not
/// been given the new key.
const PASSES: usize = 3;

/// Why a rotation broke off; what was sealed anew until then stays so, and the next run goes on.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The database.
    #[error("the rotation broke off; run it again, it goes on where it stopped")]
    Store(#[from] StoreError),
    /// No nonce could be made.
    #[error("the rotation broke off; run it again, it goes on where it stopped")]
    Seal(#[from] SealError),
}

impl RotationError {
    /// Whether the database cannot be reached.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// What a rotation did, and how things stand after it.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Values sealed anew.
    pub resealed: usize,
    /// The proof, taken afterwards.
    pub census: Census,
}

impl Rotation {
    /// Whether nothing needs an old key any more.
    pub fn is_complete(&self) -> bool {
        self.census.under_old_keys() == 0 && self.census.consents_under_old_keys == 0
    }
}

/// Seals everything with the current key. `progress` is told how many grants were looked at, of how many.
pub async fn rotate(
    store: &Store,
    keys: &KeyRing,
    clock: &Clock,
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<Rotation, RotationError> {
    let mut proof = census(store, keys, clock.now()).await?;
    let mut resealed = 0;
    if proof.under_old_keys() > 0 {
        let begun = format!("{} of {} grants are under old keys", proof.under_old_keys(), proof.grants);
        store.audit("keys rotate: begun", &keys.current().to_string(), Some(&begun), clock.now()).await?;
        for _ in 0..PASSES {
            let replaced = pass(store, keys, proof.grants, progress).await?;
            resealed += replaced;
            proof = census(store, keys, clock.now()).await?;
            // What does not open stays under its key, however often one passes by.
            if proof.under_old_keys() == 0 || replaced == 0 {
                break;
            }
        }
        let ended = format!("{resealed} values sealed anew, {} grants left under old keys", proof.under_old_keys());
        store.audit("keys rotate: ended", &keys.current().to_string(), Some(&ended), clock.now()).await?;
    }
    Ok(Rotation { resealed, census: proof })
}

async fn pass(
    store: &Store,
    keys: &KeyRing,
    total: usize,
    progress: &mut (dyn FnMut(usize, usize) + Send),
) -> Result<usize, RotationError> {
    let (mut after, mut seen, mut resealed) = (None, 0, 0);
    loop {
        let page = store.sealed_grants(after.as_ref(), BATCH).await?;
        let Some(last) = page.last() else { return Ok(resealed) };
        after = Some(last.teacher.clone());
        let mut batch = Vec::new();
        for grant in &page {
            for (column, slot, sealed) in values(grant) {
                if keys.is_current(slot, sealed) == Ok(true) {
                    continue;
                }
                match keys.open(slot, sealed) {
                    Ok(secret) => {
                        let (teacher, old) = (grant.teacher.clone(), sealed.to_vec());
                        batch.push(Reseal { teacher, column, old, new: keys.seal(slot, &secret)? });
                    }
                    // The proof lists it; the log has it in case that does not come to an end.
                    Err(error) => {
                        let failure = unopened(&grant.teacher, column, &error);
                        tracing::warn!(teacher_id = %failure.teacher, reason = failure.reason, "not sealed anew");
                    }
                }
            }
        }
        if !batch.is_empty() {
            resealed += store.reseal(&batch).await?.into_iter().filter(|replaced| *replaced).count();
            crash::here("after_reseal");
        }
        seen += page.len();
        progress(seen, total.max(seen));
    }
}
