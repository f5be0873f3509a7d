//! How long an answer waits for the database.

use std::time::Duration;

use super::problem::Problem;
use crate::store::StoreError;

/// What a read of the API waits for a database that may be away. Reads by index take milliseconds, and whoever asks
/// does better with a quick 503 than with a connection that hangs.
const PATIENCE: Duration = Duration::from_millis(800);

/// The answer, or 503 when there is none within 800 ms.
pub(super) async fn in_time<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, Problem> {
    Ok(within_patience(answer).await?)
}

/// As [`in_time`], for who can go on without the database.
pub(super) async fn within_patience<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable { operation: "reading", source: "no answer within 800 ms".into() }),
    }
}
