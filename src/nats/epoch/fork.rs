//! Where the history of a stream that was put back parts from the one we read, to the message.
//!
//! Anchors are kept for some messages only, so they tell the fork to within a few hundred. A new epoch that began too
//! early would read events again that we know, and let them win over newer ones of which the stream lost the events. What
//! we read has a time that is not after our last, and folding it again changes nothing: both are asked.

use std::collections::HashMap;

use super::sight::SightError;
use super::{Known, Sighting, Trace};
use crate::event::decode;
use crate::model::{Place, SessionId};
use crate::nats::Connection;
use crate::projection::fold;
use crate::store::Store;

/// Messages looked at in one go.
const GROUP: usize = 500;

/// The last sequence that both histories share; `anchored` is what the anchors say, and `None` of them means that nothing
/// is shared.
pub async fn fork(
    connection: &Connection,
    store: &Store,
    known: &Known,
    seen: &Sighting,
    anchored: Option<i64>,
) -> Result<Option<i64>, SightError> {
    let (Some(anchored), Some(current)) = (anchored, &known.current) else { return Ok(anchored) };
    let Some(last_read_at) = known.position.highest_stored_at else { return Ok(Some(anchored)) };
    let position = seen.position.map(|trace| (known.position.highest, trace));
    let traces = position.into_iter().chain(seen.anchors.iter().copied());
    let other = traces.filter(|(at, trace)| *trace != Trace::Same && *at > anchored).map(|(at, _)| at - 1).min();
    let end = other.unwrap_or(i64::MAX).min(seen.last_sequence).min(known.position.highest);
    if end <= anchored {
        return Ok(Some(anchored));
    }
    let stream = &seen.stream;
    let end = connection.first_since(stream, anchored + 1, end, last_read_at.plus(1)).await? - 1;

    let mut shared = anchored;
    while shared < end {
        let chunk = connection.read_chunk(stream, shared + 1, end, ">", GROUP).await?;
        let events: Vec<_> = chunk
            .messages
            .iter()
            .map(|message| {
                let place = Place { epoch: current.epoch, sequence: message.sequence };
                let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                (place, decode(&message.raw.subject, headers, &message.raw.payload, place).ok())
            })
            .collect();
        let ids: Vec<SessionId> =
            events.iter().filter_map(|(_, event)| event.as_ref().map(|event| event.session.clone())).collect();
        let sessions: HashMap<_, _> = store.known_sessions(&ids).await?;
        let places: Vec<_> = events.iter().map(|(place, _)| *place).collect();
        let dead = store.dead_places(&places).await?;
        for (place, event) in events {
            let is_known = dead.contains(&place)
                || event.is_some_and(|event| {
                    let session = sessions.get(&event.session).map(|known| &known.session);
                    session.is_some_and(|session| fold(Some(session.clone()), &event, place).0 == *session)
                });
            if !is_known {
                return Ok(Some(place.sequence - 1));
            }
        }
        shared = chunk.next - 1;
    }
    Ok(Some(end))
}
