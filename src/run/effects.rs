//! What comes of a run at Google: done by the service that runs beside it, counted where its writes are begun.

use std::time::Duration;

use serde_json::{Value, json};

use super::{HOLD_MS, Run, RunError};
use crate::clock::Clock;
use crate::nats::{Connection, NatsError};
use crate::store::{Effects, EpochRecord, Store};

/// Whether a service takes events from the durable now: at least one request for events waits at the server nearly all
/// the time. Asked a few times, because between two requests there is a moment without one.
pub async fn is_serving(connection: &Connection, record: &EpochRecord) -> Result<bool, NatsError> {
    for pause_ms in [0, 50, 150, 400] {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        let consumer = connection.consumer_info(&record.stream, &record.consumer).await?;
        if consumer.is_some_and(|consumer| consumer.num_waiting > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until nothing that the run changed is due any more, at most for `patience`, and says what came of it.
pub async fn until_done(
    store: &Store,
    run: &Run,
    clock: &Clock,
    patience: Duration,
    mut is_asked_to_stop: impl FnMut() -> bool,
) -> Result<Effects, RunError> {
    let begun = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        let now = clock.now();
        let effects = store.effects_of(&run.id, now).await?;
        if effects.due == 0 || begun.elapsed() >= patience || is_asked_to_stop() {
            return Ok(effects);
        }
        if !store.move_run(run, now, now.plus(HOLD_MS)).await? {
            return Err(RunError::TakenOver(run.id.clone()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// The effects as a part of a proof.
pub fn json(effects: &Effects, is_serving: bool) -> Value {
    json!({
        "callsToGoogle": effects.total(), "byOperation": effects.writes, "stillDue": effects.due,
        "waiting": effects.waiting, "serviceIsRunning": is_serving,
    })
}

/// The effects in a sentence.
pub fn sentence(effects: &Effects, is_serving: bool) -> String {
    let kinds: Vec<String> = effects.writes.iter().map(|(operation, number)| format!("{number} {operation}")).collect();
    let mut text = match effects.total() {
        1 => "1 call to Google".to_owned(),
        total => format!("{total} calls to Google"),
    };
    if !kinds.is_empty() {
        text += &format!(" ({})", kinds.join(", "));
    }
    if effects.due > 0 {
        let whose =
            if is_serving { "the service is at them" } else { "no service is running: it makes them when it is" };
        text += &format!("; {} events are still due at Google, {whose}", effects.due);
    }
    if effects.waiting > 0 {
        text += &format!("; {} events wait for a time or a person (`session show ID` says why)", effects.waiting);
    }
    text
}
