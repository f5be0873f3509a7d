//! What an answer of Google makes of a row.
use super::{MeetEvent, Situation};
use crate::google::{Answer, Call, error::GoogleError};

/// What an answer made of the row.
#[derive(Debug, Clone, PartialEq)]
pub struct Absorbed {
    /// The row to keep.
    pub row: MeetEvent,
    /// A new row that takes over, where the id is burnt.
    pub successor: Option<MeetEvent>,
}

/// Takes Google's answer in. `delay_ms` computes the wait before attempt `n` (from 1), jitter included.
pub fn absorb(
    situation: &Situation<'_>,
    call: &Call,
    answer: Result<Answer, GoogleError>,
    delay_ms: &dyn Fn(i64) -> i64,
) -> Absorbed {
    let _ = (situation, call, answer, delay_ms);
    todo!()
}
