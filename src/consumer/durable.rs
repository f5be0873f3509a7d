//! The durable consumer: there, as defined, and not past anything that was not processed.

use super::{SessionError, Work};
use crate::model::Epoch;
use crate::nats::NatsError;
use crate::nats::api::ConsumerInfo;
use crate::nats::definitions::consumer_differences;
use crate::store::{EpochRecord, Position};

/// What stands between the contiguous position and the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// Nothing that could be seen: everything was processed.
    None,
    /// This message is in the stream and was not processed (yet).
    At(i64),
}

/// Makes sure that the epoch's durable exists and will deliver everything after the database's position. Returns how its
/// settings differ from the definition.
pub(super) async fn ensure(work: &Work, record: &EpochRecord) -> Result<Vec<String>, SessionError> {
    let (position, gap) = close_gaps(work, record).await?;
    let stream = &record.stream;
    let Some(info) = work.connection.consumer_info(stream, &record.consumer).await? else {
        create(work, record, &position).await?;
        return Ok(Vec::new());
    };
    let last = work.connection.stream_info(stream).await?.map_or(0, |info| info.state.last_seq);
    if let Some(why) = trouble(&info, last, gap) {
        tracing::warn!(consumer = record.consumer, why, from = position.contiguous + 1, "making the durable again");
        if is_ahead_of_database(&info, gap) {
            // Somebody acted on these events who remembers more than this database does.
            let to = info.delivered.stream_seq.max(info.ack_floor.stream_seq);
            crate::replay::leftovers::suspect(
                &work.context.store,
                record.epoch,
                position.contiguous,
                to,
                work.context.clock.now(),
            )
            .await?;
        }
        replace(work, record, &info).await?;
        return Ok(Vec::new());
    }
    let desired = work.definitions.consumer(&record.consumer);
    let drift: Vec<String> = consumer_differences(&desired, &info.config)
        .into_iter()
        // How many copies the cluster keeps is the operator's choice and changes nothing here.
        .filter(|difference| difference.field != "num_replicas")
        .map(|difference| format!("{}: {} instead of {}", difference.field, difference.actual, difference.desired))
        .collect();
    if !drift.is_empty() {
        tracing::warn!(
            consumer = record.consumer,
            drift = drift.join("; "),
            "the durable is not as defined; `meet-projector nats apply` mends it"
        );
    }
    Ok(drift)
}

/// Why a consumer cannot be trusted to deliver everything that was not processed.
fn trouble(info: &ConsumerInfo, stream_last: i64, gap: Gap) -> Option<&'static str> {
    // Servers before 2.14 would hand out nothing until the stream has grown past it.
    if info.delivered.stream_seq > stream_last {
        return Some("it is ahead of the stream");
    }
    is_ahead_of_database(info, gap).then_some("it is ahead of the database")
}

/// We acknowledge after the commit, so the next message was acknowledged for another database, or skipped.
fn is_ahead_of_database(info: &ConsumerInfo, gap: Gap) -> bool {
    matches!(gap, Gap::At(sequence) if info.ack_floor.stream_seq >= sequence)
}

/// Whether a message that was not processed will never come: the consumer has nothing left to hand out and waits for
/// no acknowledgement. The order of the questions makes the answer certain: the message was there *before* the consumer
/// said so, and an acknowledgement follows its commit.
pub(super) async fn find_hole(work: &Work, record: &EpochRecord) -> Result<Option<i64>, SessionError> {
    let (_, gap) = close_gaps(work, record).await?;
    let Gap::At(sequence) = gap else { return Ok(None) };
    let Some(info) = work.connection.consumer_info(&record.stream, &record.consumer).await? else { return Ok(None) };
    if info.num_pending > 0 || info.num_ack_pending > 0 {
        return Ok(None);
    }
    let position = work.context.store.position(record.epoch).await?;
    let (_, gap) = close_gaps(work, record).await?;
    if position.contiguous >= sequence || gap != Gap::At(sequence) {
        return Ok(None);
    }
    replace(work, record, &info).await?;
    Ok(Some(sequence))
}

/// Moves the position over sequences that the stream no longer holds (or that are not ours), and says what is next.
///
/// Only a *later* message proves that there is nothing before it: replicas replay in order, whereas "nothing there" may
/// come from one that lags.
pub(super) async fn close_gaps(work: &Work, record: &EpochRecord) -> Result<(Position, Gap), SessionError> {
    let (store, stream, subjects) = (&work.context.store, &record.stream, &work.context.nats.subjects);
    let mut position = store.position(record.epoch).await?;
    if position.contiguous < record.first_sequence - 1 {
        store.skip_missing(record.epoch, record.first_sequence - 1).await?;
        position = store.position(record.epoch).await?;
    }
    loop {
        let Some(next) = work.connection.get_next(stream, position.contiguous + 1, subjects).await? else {
            return Ok((position, Gap::None));
        };
        if next.sequence == position.contiguous + 1 {
            return Ok((position, Gap::At(next.sequence)));
        }
        tracing::info!(
            epoch = record.epoch.0,
            from = position.contiguous + 1,
            to = next.sequence - 1,
            "the stream holds no events there"
        );
        store.skip_missing(record.epoch, next.sequence - 1).await?;
        position = store.position(record.epoch).await?;
        if position.contiguous < next.sequence {
            return Ok((position, Gap::At(next.sequence)));
        }
    }
}

async fn create(work: &Work, record: &EpochRecord, position: &Position) -> Result<(), SessionError> {
    let wanted = match position.contiguous {
        0 if record.epoch == Epoch(1) => work.definitions.consumer(&record.consumer),
        contiguous => work.definitions.consumer_from(&record.consumer, contiguous + 1),
    };
    match work.connection.write_consumer(&record.stream, &wanted, "create").await {
        Ok(_) => {
            let from = position.contiguous + 1;
            tracing::info!(consumer = record.consumer, from, "made the durable consumer");
            Ok(())
        }
        // Another replica was faster.
        Err(error) if error.is_refusal(NatsError::CONSUMER_EXISTS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deletes the consumer that `seen` describes and makes it again from the database's position. Where a sequence starts
/// cannot be edited.
async fn replace(work: &Work, record: &EpochRecord, seen: &ConsumerInfo) -> Result<(), SessionError> {
    let now = work.connection.consumer_info(&record.stream, &record.consumer).await?;
    if now.is_some_and(|now| now.created == seen.created) {
        work.connection.delete_consumer(&record.stream, &record.consumer).await?;
    }
    let position = work.context.store.position(record.epoch).await?;
    create(work, record, &position).await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn consumer(delivered: i64, acknowledged: i64) -> ConsumerInfo {
        serde_json::from_value(json!({
            "name": "meet-projector-e1", "created": "", "config": {}, "num_ack_pending": 0, "num_pending": 0,
            "delivered": { "stream_seq": delivered }, "ack_floor": { "stream_seq": acknowledged },
        }))
        .unwrap()
    }

    #[test]
    fn a_consumer_that_would_swallow_events_is_made_again() {
        // Servers before 2.14 hand out nothing of a stream that was cut until it has grown past the consumer.
        assert_eq!(trouble(&consumer(20, 20), 12, Gap::None), Some("it is ahead of the stream"));
        assert_eq!(trouble(&consumer(20, 12), 12, Gap::None), Some("it is ahead of the stream"));
        assert_eq!(trouble(&consumer(12, 12), 12, Gap::None), None);
        assert_eq!(trouble(&consumer(12, 12), 12, Gap::At(5)), Some("it is ahead of the database"));
        assert_eq!(trouble(&consumer(12, 4), 12, Gap::At(5)), None, "it will come again");
        assert_eq!(trouble(&consumer(0, 0), 0, Gap::None), None);
    }
}
