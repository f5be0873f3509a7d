//! Who did what, to what, why, and what came of it. One row for every action of an operator, written in the transaction
//! of the action wherever there is one.

use super::sql::{Row, Sql, Tx, args, both};
use super::{Result, Store};
use crate::model::UnixMillis;

/// Who acts: `user@host` on the command line, `token:<id>` in the API, `service` for what happens by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    /// The person at this terminal, as the operating system knows them.
    pub fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(user_number);
        Self::named(format!("{user}@{}", host()))
    }

    /// What the service does by itself, such as ending a pause whose time is over.
    pub fn service() -> Self {
        Self::named("service")
    }

    /// Any name; cut to 200 characters, without control characters.
    pub fn named(name: impl Into<String>) -> Self {
        let name: String = name.into();
        Self(name.chars().filter(|c| !c.is_control()).take(200).collect())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of this machine, as the kernel or the environment gives it.
pub fn host() -> String {
    let files = ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().map(std::fs::read_to_string);
    let known = files.filter_map(std::result::Result::ok).chain(std::env::var("HOSTNAME"));
    known.map(|name| name.trim().to_owned()).find(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// The name of this user as `/etc/passwd` has it; in containers there is often a number and no name.
fn user_number() -> String {
    #[cfg(unix)]
    if let Ok(itself) = std::fs::metadata("/proc/self") {
        let number = std::os::unix::fs::MetadataExt::uid(&itself).to_string();
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let named = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(number.as_str())).then(|| name.to_owned())
        });
        return named.unwrap_or_else(|| format!("uid{number}"));
    }
    "unknown".to_owned()
}

/// One action, to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Action<'a> {
    /// Who.
    pub actor: &'a Actor,
    /// What, as the command is called: `session retry`.
    pub action: &'a str,
    /// To what: a session, a teacher, `dead letter 7`.
    pub target: &'a str,
    /// Why, as the operator said.
    pub reason: Option<&'a str>,
    /// What came of it, in a few words.
    pub outcome: &'a str,
}

/// One action as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acted {
    /// Order of the actions.
    pub id: i64,
    /// When.
    pub at: UnixMillis,
    /// Who; empty for rows of releases that did not keep it.
    pub actor: Option<String>,
    /// What.
    pub action: String,
    /// To what.
    pub target: String,
    /// Why.
    pub reason: Option<String>,
    /// What came of it.
    pub outcome: Option<String>,
}

/// Which actions to list; all conditions hold together.
#[derive(Debug, Clone, Default)]
pub struct ActedFilter {
    /// At or after.
    pub since: Option<UnixMillis>,
    /// With exactly this target.
    pub target: Option<String>,
    /// Whose action begins with this: `session` finds `session retry`.
    pub action: Option<String>,
    /// How many at most.
    pub limit: i64,
}

const KEEP: Sql =
    both("INSERT INTO operator_action (action, target, reason, at_ms, actor, outcome) VALUES ($1, $2, $3, $4, $5, $6)");

/// The lengths compare what an action begins with: LIKE would take `_` for any character.
const LIST: Sql = both(
    "SELECT id, at_ms, actor, action, target, reason, outcome FROM operator_action \
     WHERE at_ms >= $1 AND ($2 = '' OR target = $2) AND ($3 = '' OR SUBSTR(action, 1, LENGTH($3)) = $3) \
     ORDER BY id DESC LIMIT $4",
);

/// Keeps an action in the transaction that carries it out.
pub(super) async fn keep(tx: &mut Tx, action: &Action<'_>, now: UnixMillis) -> Result<()> {
    let Action { actor, action, target, reason, outcome } = *action;
    tx.execute(KEEP, args![action, target, reason, now, actor.as_str(), outcome]).await.map(drop)
}

/// The audit.
impl Store {
    /// Keeps what the person at this terminal did and why.
    pub async fn audit(&self, action: &str, target: &str, reason: Option<&str>, now: UnixMillis) -> Result<()> {
        let actor = Actor::of_process();
        self.audit_action(&Action { actor: &actor, action, target, reason, outcome: "done" }, now).await
    }

    /// Keeps who did what and why.
    pub async fn audit_action(&self, action: &Action<'_>, now: UnixMillis) -> Result<()> {
        let mut tx = self.inner.write("keeping an operator's action").await?;
        keep(&mut tx, action, now).await?;
        tx.commit().await
    }

    /// Actions, newest first.
    pub async fn acted(&self, filter: &ActedFilter) -> Result<Vec<Acted>> {
        let values = args![
            filter.since.map_or(i64::MIN, UnixMillis::get),
            filter.target.as_deref().unwrap_or_default(),
            filter.action.as_deref().unwrap_or_default(),
            filter.limit,
        ];
        self.inner.rows("reading operators' actions", LIST, values).await?.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<Acted> {
    Ok(Acted {
        id: row.get("id")?,
        at: UnixMillis::new(row.get("at_ms")?),
        actor: row.get("actor")?,
        action: row.get("action")?,
        target: row.get("target")?,
        reason: row.get("reason")?,
        outcome: row.get("outcome")?,
    })
}
