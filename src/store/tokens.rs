//! API tokens.

use serde::Serialize;

use super::audit::{self, Action, Actor};
use super::sql::{Row, Sql, Tx, args, batch, both, with_batch};
use super::{ApiToken, Result, Role, Store, StoreError};
use crate::model::UnixMillis;

const ALL: Sql = both(
    "SELECT id, name, role, secret_sha256, created_at_ms, last_used_at_ms, revoked_at_ms FROM api_token \
     ORDER BY created_at_ms DESC, id DESC",
);

const ADD: Sql = both(
    "INSERT INTO api_token (id, name, role, secret_sha256, created_at_ms, last_used_at_ms, revoked_at_ms) \
     VALUES ($1, $2, $3, $4, $5, $6, $7)",
);

const REVOKE: Sql = both("UPDATE api_token SET revoked_at_ms = $2 WHERE id = $1 AND revoked_at_ms IS NULL");

/// Minutes, so that a busy reader costs a write a minute and no more; never back in time.
const TOUCH: Sql = with_batch!(
    "UPDATE api_token SET last_used_at_ms = batch.used_at_ms FROM ",
    [id text, used_at_ms bigint],
    " AS batch WHERE api_token.id = batch.id \
     AND (api_token.last_used_at_ms IS NULL OR api_token.last_used_at_ms < batch.used_at_ms)"
);

/// Keeps what the person at this terminal did.
async fn audit(tx: &mut Tx, action: (&str, Option<&str>, &str), id: &str, now: UnixMillis) -> Result<()> {
    let (actor, (action, reason, outcome)) = (Actor::of_process(), action);
    audit::keep(tx, &Action { actor: &actor, action, target: id, reason, outcome }, now).await
}

/// API tokens.
impl Store {
    /// Every API token, newest first.
    pub async fn api_tokens(&self) -> Result<Vec<ApiToken>> {
        self.inner.rows("reading API tokens", ALL, args![]).await?.iter().map(read).collect()
    }

    /// Adds a token, and keeps that it was made.
    pub async fn add_api_token(&self, token: &ApiToken) -> Result<()> {
        let values = args![
            token.id.as_str(),
            token.name.as_str(),
            token.role.as_str(),
            token.secret_sha256.as_slice(),
            token.created_at,
            token.last_used_at,
            token.revoked_at,
        ];
        let mut tx = self.inner.write("adding an API token").await?;
        tx.execute(ADD, values).await?;
        let action = ("token new", Some(token.name.as_str()), token.role.as_str());
        audit(&mut tx, action, &token.id, token.created_at).await?;
        tx.commit().await
    }

    /// Revokes, and keeps that it was done; `false` when there is no such token or it was revoked before.
    pub async fn revoke_api_token(&self, id: &str, now: UnixMillis) -> Result<bool> {
        let mut tx = self.inner.write("revoking an API token").await?;
        if tx.execute(REVOKE, args![id, now]).await? == 0 {
            return Ok(false);
        }
        audit(&mut tx, ("token revoke", None, "revoked"), id, now).await?;
        tx.commit().await.map(|()| true)
    }

    /// Notes uses, as `(id, when)`, to the minute.
    pub async fn touch_api_tokens(&self, uses: &[(String, UnixMillis)]) -> Result<()> {
        #[derive(Serialize)]
        struct Use<'a> {
            id: &'a str,
            used_at_ms: i64,
        }
        // Of several uses of one token the last one counts: an UPDATE with several matches would take any.
        let mut last = std::collections::BTreeMap::<&str, i64>::new();
        for (id, at) in uses {
            let minute = at.get() - at.get().rem_euclid(60_000);
            let known = last.entry(id).or_insert(minute);
            *known = minute.max(*known);
        }
        if last.is_empty() {
            return Ok(());
        }
        let uses: Vec<_> = last.into_iter().map(|(id, used_at_ms)| Use { id, used_at_ms }).collect();
        self.changed_one("noting uses of API tokens", TOUCH, vec![batch(&uses)]).await.map(drop)
    }
}

fn read(row: &Row) -> Result<ApiToken> {
    let secret: Vec<u8> = row.get("secret_sha256")?;
    Ok(ApiToken {
        id: row.get("id")?,
        name: row.get("name")?,
        role: row.parsed("role", Role::parse)?,
        secret_sha256: secret.try_into().map_err(|_| StoreError::Failed {
            operation: "reading API tokens",
            source: "column secret_sha256 does not hold 32 bytes".into(),
        })?,
        created_at: UnixMillis::new(row.get("created_at_ms")?),
        last_used_at: row.time("last_used_at_ms")?,
        revoked_at: row.time("revoked_at_ms")?,
    })
}
