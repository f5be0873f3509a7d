//! Results that wait to be published, written in the transaction that made them.

use serde::Serialize;

use super::sql::{Row, Sql, Tx, args, batch, both, with_batch};
use super::{OutboxMessage, Result, Store};
use crate::model::UnixMillis;
use crate::status::Document;

/// A result before it has its place in the order.
#[derive(Debug, Serialize)]
pub(super) struct Draft {
    message_id: String,
    key: String,
    subject: String,
    payload: String,
    traceparent: Option<String>,
    created_at_ms: i64,
}

/// The CloudEvent that says that a status document changed.
pub(super) fn status_changed(document: &Document, json: &str, traceparent: Option<&str>, now: UnixMillis) -> Draft {
    let message_id = message_id(now);
    let session = document.session.as_str();
    let trace = traceparent.map_or_else(String::new, |trace| {
        format!(r#""traceparent":{},"#, serde_json::to_string(trace).expect("a text always serialises"))
    });
    // Put together by hand so that the document's JSON is taken as it is; ids have characters that need no escape.
    let payload = format!(
        concat!(
            r#"{{"specversion":"1.0","id":"{}","source":"/services/meet-projector","#,
            r#""type":"meet.StatusChanged.v1","subject":"{}","time":"{}",{}"#,
            r#""datacontenttype":"application/json","data":{}}}"#
        ),
        message_id, session, now, trace, json
    );
    Draft {
        message_id,
        key: session.to_owned(),
        subject: format!("meet.session.{session}.{}", document.meet_status.as_str().to_ascii_lowercase()),
        payload,
        traceparent: traceparent.map(str::to_owned),
        created_at_ms: now.get(),
    }
}

/// A UUIDv7 (RFC 9562 §5.7) of that time.
fn message_id(now: UnixMillis) -> String {
    let ms = u64::try_from(now.get()).unwrap_or(0);
    let nanos = u32::try_from(ms % 1000 * 1_000_000).expect("less than a second of nanoseconds fits");
    uuid::Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, nanos)).to_string()
}

/// Appends results in order.
pub(super) async fn append(tx: &mut Tx, drafts: &[Draft]) -> Result<()> {
    if drafts.is_empty() {
        return Ok(());
    }
    tx.execute(APPEND, vec![batch(drafts)]).await.map(drop)
}

/// `json_each` gives elements in order, and so does `jsonb_to_recordset`: ids grow in the order of the drafts.
const APPEND: Sql = with_batch!(
    "INSERT INTO outbox (message_id, key, subject, payload, traceparent, created_at_ms) SELECT * FROM ",
    [message_id text, key text, subject text, payload text, traceparent text, created_at_ms bigint],
    " AS batch"
);

const IS_WAITING: Sql = both("SELECT id FROM outbox ORDER BY id LIMIT 1");

const TAKE_LEASE: Sql = both(
    "INSERT INTO lease (name, holder, until_ms) VALUES ('outbox', $1, $3) \
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until_ms = excluded.until_ms \
     WHERE lease.holder = excluded.holder OR lease.until_ms <= $2",
);

const RELEASE: Sql = both("DELETE FROM lease WHERE name = 'outbox' AND holder = $1");

/// What waits, for the holder of a lease that ends after `$3`.
const TAKE: Sql = both(
    "SELECT id, message_id, key, subject, payload, traceparent FROM outbox AS head \
     WHERE NOT EXISTS (SELECT 1 FROM outbox AS older WHERE older.key = head.key AND older.id < head.id) \
     AND EXISTS (SELECT 1 FROM lease WHERE name = 'outbox' AND holder = $2 AND until_ms > $3) \
     ORDER BY id LIMIT $1 + 0",
);

const DONE: Sql = with_batch!("DELETE FROM outbox WHERE id IN ", [id bigint], "");

const OLDEST: Sql = both("SELECT created_at_ms FROM outbox ORDER BY id LIMIT 1");

fn read(row: &Row) -> Result<OutboxMessage> {
    Ok(OutboxMessage {
        id: row.get("id")?,
        message_id: row.get("message_id")?,
        key: row.get("key")?,
        subject: row.get("subject")?,
        payload: row.get("payload")?,
        traceparent: row.get("traceparent")?,
    })
}

/// Outbox.
impl Store {
    /// The oldest unpublished result of each key, at most `limit`, in order; one process at a time holds the relay for
    /// `lease_ms` (empty for the others).
    pub async fn outbox_take(
        &self,
        holder: &str,
        now: UnixMillis,
        lease_ms: i64,
        limit: i64,
    ) -> Result<Vec<OutboxMessage>> {
        let operation = "taking results to publish";
        // As long as half of the lease is left, to publish within, taking costs no write.
        let taken = self.inner.rows(operation, TAKE, args![limit, holder, now.plus(lease_ms / 2)]).await?;
        if !taken.is_empty() {
            return taken.iter().map(read).collect();
        }
        // Most of the time nothing waits, and asking costs no write either.
        if self.inner.row(operation, IS_WAITING, args![]).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.inner.write(operation).await?;
        if tx.execute(TAKE_LEASE, args![holder, now, now.plus(lease_ms)]).await? == 0 {
            return Ok(Vec::new());
        }
        let taken = tx.rows(TAKE, args![limit, holder, now]).await?;
        tx.commit().await?;
        taken.iter().map(read).collect()
    }

    /// Gives the relay up, so that the next process need not wait for the end of the lease.
    pub async fn outbox_release(&self, holder: &str) -> Result<()> {
        let mut tx = self.inner.write("giving the relay of results up").await?;
        tx.execute(RELEASE, args![holder]).await?;
        tx.commit().await
    }

    /// Removes what the server acknowledged.
    pub async fn outbox_done(&self, ids: &[i64]) -> Result<()> {
        #[derive(Serialize)]
        struct Id {
            id: i64,
        }
        if ids.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = ids.iter().map(|id| Id { id: *id }).collect();
        let mut tx = self.inner.write("removing published results").await?;
        tx.execute(DONE, vec![batch(&ids)]).await?;
        tx.commit().await
    }

    /// When the oldest unpublished result was written.
    pub async fn outbox_oldest(&self) -> Result<Option<UnixMillis>> {
        let row = self.inner.row("reading the oldest result", OLDEST, args![]).await?;
        row.map(|row| row.get("created_at_ms").map(UnixMillis::new)).transpose()
    }
}
