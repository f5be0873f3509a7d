//! Wake-ups between processes that share a PostgreSQL: told with the commit, heard by all, trusted by none.
//!
//! A wake-up says that something may be worth a look. Nobody relies on it: every loop also looks by itself after a
//! second, so a notification that was lost with its connection costs that second and nothing else. On SQLite there is
//! one process, and nothing is sent.
//!
//! <https://www.postgresql.org/docs/current/sql-notify.html>: delivered when the transaction commits, never before.

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Store;
use super::sql::{Backend, Sql, Tx, batch, failed};
use super::{Result, StoreError};
use crate::model::SessionId;
use crate::retry::{Jitter, Reconnect};
use crate::telemetry::Chain;

const CHANNEL: &str = "meet_projector";

/// Session ids of one notification. A payload has at most 7,999 bytes, an id at most 64 and its quotes and comma three.
const IDS_MAX: usize = 100;

const NOTIFY: Sql = Sql {
    sqlite: "",
    postgres: "SELECT pg_notify('meet_projector', payload) FROM jsonb_array_elements_text($1::jsonb) AS payload",
};

/// What one process tells the others.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WakeUp<'a> {
    /// Which process: it does not listen to itself.
    from: u128,
    /// Whether a calendar became due.
    #[serde(default)]
    due: bool,
    /// Sessions whose document changed.
    #[serde(default, borrow)]
    sessions: Vec<&'a str>,
}

fn payloads(from: u128, changed: &[SessionId], is_work_due: bool) -> Vec<String> {
    let mut chunks: Vec<&[SessionId]> = changed.chunks(IDS_MAX).collect();
    if chunks.is_empty() && is_work_due {
        chunks.push(&[]);
    }
    chunks
        .iter()
        .map(|ids| WakeUp { from, due: is_work_due, sessions: ids.iter().map(SessionId::as_str).collect() })
        .map(|told| serde_json::to_string(&told).expect("numbers and texts always serialise"))
        .collect()
}

/// Wake-ups.
impl Store {
    /// Has the other processes told, when this transaction commits, that these documents changed and whether a calendar
    /// became due.
    pub(super) async fn tell_others(&self, tx: &mut Tx, changed: &[SessionId], is_work_due: bool) -> Result<()> {
        if self.is_single_process() {
            return Ok(());
        }
        let payloads = payloads(self.inner.process.as_u128(), changed, is_work_due);
        if payloads.is_empty() {
            return Ok(());
        }
        tx.execute(NOTIFY, vec![batch(&payloads)]).await.map(drop)
    }

    /// Listens to the other processes until `cancel`: `wake` is notified when a calendar may be due, and
    /// [`Store::changes`] gets the documents that changed. Returns at once on SQLite.
    pub async fn listen(&self, wake: &Notify, cancel: &CancellationToken) {
        let Backend::Postgres(pool) = &self.inner.backend else { return };
        let jitter = Jitter::from_system();
        let mut reconnect = Reconnect::default();
        while !cancel.is_cancelled() {
            let Some(ended) = cancel.run_until_cancelled(self.listen_once(pool, wake, &mut reconnect)).await else {
                return;
            };
            if reconnect == Reconnect::default() {
                tracing::warn!(
                    error = %Chain(&ended),
                    "wake-ups of other processes are not heard; everything is found a second later until they are"
                );
            }
            let pause = tokio::time::sleep(reconnect.next_delay(jitter.next()));
            if cancel.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Until the connection is lost.
    async fn listen_once(&self, pool: &sqlx::PgPool, wake: &Notify, reconnect: &mut Reconnect) -> StoreError {
        let lost = |error| failed("listening to other processes", error);
        let mut listener = match PgListener::connect_with(pool).await {
            Ok(listener) => listener,
            Err(error) => return lost(error),
        };
        if let Err(error) = listener.listen(CHANNEL).await {
            return lost(error);
        }
        reconnect.reset();
        // What was told while nobody listened.
        wake.notify_one();
        loop {
            match listener.try_recv().await {
                Ok(Some(notification)) => self.hear(notification.payload(), wake),
                // Connected anew.
                Ok(None) => wake.notify_one(),
                Err(error) => return lost(error),
            }
        }
    }

    fn hear(&self, payload: &str, wake: &Notify) {
        // A newer release may say more; what cannot be read is found a second later.
        let Ok(heard) = serde_json::from_str::<WakeUp<'_>>(payload) else { return };
        if heard.from == self.inner.process.as_u128() {
            return;
        }
        if heard.due {
            wake.notify_one();
        }
        let sessions: Vec<_> = heard.sessions.iter().filter_map(|id| SessionId::parse(*id).ok()).collect();
        self.announce(&sessions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<SessionId> {
        (0..count).map(|number| SessionId::parse(format!("{number:0>64}")).unwrap()).collect()
    }

    #[test]
    fn no_payload_is_longer_than_postgresql_takes() {
        let told = payloads(u128::MAX, &ids(250), true);
        assert_eq!(told.len(), 3);
        assert!(told.iter().all(|payload| payload.len() < 8_000), "{:?}", told.iter().map(String::len));
        let heard: Vec<WakeUp<'_>> = told.iter().map(|payload| serde_json::from_str(payload).unwrap()).collect();
        assert_eq!(heard.iter().map(|wake_up| wake_up.sessions.len()).sum::<usize>(), 250);
    }

    #[test]
    fn nothing_is_said_when_there_is_nothing_to_say() {
        assert!(payloads(1, &[], false).is_empty());
        assert_eq!(payloads(1, &[], true), [r#"{"from":1,"due":true,"sessions":[]}"#]);
    }
}
