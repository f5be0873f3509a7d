//! Results that wait to be published, written in the transaction that made them.

use serde::Serialize;

use super::many::{Insert, Type};
use super::sql::{Row, Sql, Tx, Value, args, batch, both, with_batch};
use super::{OutboxMessage, Result, Store};
use crate::model::UnixMillis;
use crate::status::Document;

/// A result before it has its place in the order.
#[derive(Debug)]
pub(super) struct Draft {
    message_id: String,
    key: String,
    subject: String,
    payload: String,
    traceparent: Option<String>,
    created_at_ms: i64,
}

impl Draft {
    /// A result that continues no trace.
    pub(super) fn new(message_id: String, key: String, subject: String, payload: String, now: UnixMillis) -> Self {
        Self { message_id, key, subject, payload, traceparent: None, created_at_ms: now.get() }
    }
}

/// The CloudEvent that says that a status document changed, as a row of [`APPEND`].
pub(super) fn append_status_changed(
    document: &Document,
    json: &str,
    traceparent: Option<&str>,
    ids: &mut MessageIds,
    values: &mut Vec<Value>,
) {
    let (message_id, now) = (ids.next(), ids.now);
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
        message_id, session, ids.time, trace, json
    );
    let subject = format!("meet.session.{session}.{}", document.meet_status.as_str().to_ascii_lowercase());
    values.extend([message_id.into(), session.into(), subject.into(), payload.into(), traceparent.into(), now.into()]);
}

/// UUIDv7s (RFC 9562 §5.7) of one time. Randomness is asked for in bulk: each time is a system call.
#[derive(Debug)]
pub(super) struct MessageIds {
    now: UnixMillis,
    /// The time as text.
    time: String,
    random: [u8; 64 * RANDOM_BYTES],
    used: usize,
}

/// Random bytes of one id.
const RANDOM_BYTES: usize = 10;

impl MessageIds {
    pub(super) fn of(now: UnixMillis) -> Self {
        let random = [0; 64 * RANDOM_BYTES];
        Self { now, time: now.to_rfc3339(), random, used: random.len() }
    }

    fn next(&mut self) -> String {
        if self.used == self.random.len() {
            getrandom::fill(&mut self.random).expect("the system gives random bytes");
            self.used = 0;
        }
        let bytes = self.random[self.used..].first_chunk().expect("the buffer holds a whole number of them");
        self.used += RANDOM_BYTES;
        let ms = u64::try_from(self.now.get()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(ms, bytes).into_uuid().to_string()
    }
}

/// A UUIDv7 of that time.
pub(super) fn message_id(now: UnixMillis) -> String {
    MessageIds::of(now).next()
}

/// Appends a few results in order.
pub(super) async fn append(tx: &mut Tx, drafts: Vec<Draft>) -> Result<()> {
    let mut values = Vec::with_capacity(drafts.len() * APPEND.columns.len());
    for Draft { message_id, key, subject, payload, traceparent, created_at_ms } in drafts {
        values.extend([
            message_id.into(),
            key.into(),
            subject.into(),
            payload.into(),
            traceparent.into(),
            created_at_ms.into(),
        ]);
    }
    tx.insert(&APPEND, values).await.map(drop)
}

/// Rows are inserted in the order in which they are given, so ids grow in the order of the drafts.
pub(super) static APPEND: Insert = Insert {
    table: "outbox",
    columns: &[
        ("message_id", Type::Text),
        ("key", Type::Text),
        ("subject", Type::Text),
        ("payload", Type::Text),
        ("traceparent", Type::Text),
        ("created_at_ms", Type::Int),
    ],
    constants: &[],
    after: "",
};

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
