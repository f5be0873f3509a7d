//! Which rows a session should have.
use super::MeetEvent;
use crate::model::UnixMillis;
use crate::projection::Session;

/// The rows of `session` that change or are new because what is wanted changed; to be called whenever
/// [`Session::desired_hash`] moved.
pub fn assign(session: &Session, rows: &[MeetEvent], now: UnixMillis) -> Vec<MeetEvent> {
    let _ = (session, rows, now);
    todo!()
}
