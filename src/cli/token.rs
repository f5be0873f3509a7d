//! `token new|list|revoke`: API tokens in the database. A secret is shown once, when it is made; only its hash is kept.

use std::io::{self, Write};

use serde_json::json;

use crate::api::auth::hash_secret;
use crate::clock::Clock;
use crate::model::UnixMillis;
use crate::store::{ApiToken, Role, Store, StoreError};

/// `token …`
#[derive(Debug, Clone, clap::Subcommand)]
pub enum TokenAction {
    /// Makes a token and prints it, alone, on standard output; it cannot be shown again
    ///
    /// Only its SHA-256 is kept. It works at once, in a running service too. Give each program a token of its own, so
    /// that one can be revoked without the others; two may be valid at once while a program changes over.
    #[command(after_help = "\
Examples:
  meet-projector token new --name wordpress --role reader
  meet-projector token new --name wordpress --role reader > wordpress.token
  meet-projector --output json token new --name retries --role operator | jq -r .token

It is sent as a header:
  curl -H \"Authorization: Bearer $(cat wordpress.token)\" http://127.0.0.1:8080/api/google/meet/SESSION")]
    New {
        /// What it is for, such as wordpress: for people, in `token list` and in the audit
        #[arg(long)]
        name: String,
        /// reader: sees every session; operator: also presses retry; admin: also connects and disconnects teachers
        #[arg(long, value_parser = role)]
        role: Role,
    },
    /// Lists all tokens, newest first, with their last use to the minute; never their secrets
    List,
    /// Revokes a token; a running service refuses it within 5 seconds
    ///
    /// What it was used for fails with 401 from then on. It cannot be taken back; `token new` makes another.
    #[command(after_help = "\
Examples:
  meet-projector token list
  meet-projector token revoke k3x5qzaeny")]
    Revoke {
        /// The part between the underscores of `mp_<id>_<secret>`
        id: String,
    },
}

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No entropy from the operating system.
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// `--name` is empty or longer than 100 characters.
    #[error("--name must have 1 to 100 characters")]
    Name,
    /// `revoke` of what is not there or was revoked before.
    #[error("there is no token {0} that could be revoked; `token list` shows the ids")]
    Unknown(String),
    /// Standard output or standard error is closed.
    #[error(transparent)]
    Output(#[from] io::Error),
}

impl TokenError {
    /// 2 usage, 4 the database cannot be reached, 1 anything else.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Name => 2,
            Self::Store(StoreError::Unavailable { .. }) => 4,
            _ => 1,
        }
    }
}

fn role(word: &str) -> Result<Role, String> {
    Role::parse(word).ok_or_else(|| "allowed are reader, operator and admin".to_owned())
}

/// Runs it: results on `out`, what is said about them on `notes`. The caller opens the store and checks its schema.
pub async fn run(
    action: &TokenAction,
    store: &Store,
    clock: &Clock,
    as_json: bool,
    out: &mut (dyn Write + Send),
    notes: &mut (dyn Write + Send),
) -> Result<(), TokenError> {
    match action {
        TokenAction::New { name, role } => {
            if name.trim().is_empty() || name.chars().count() > 100 {
                return Err(TokenError::Name);
            }
            let (token, secret) = new_token(name.trim(), *role, clock)?;
            store.add_api_token(&token).await?;
            let text = format!("mp_{}_{secret}", token.id);
            if as_json {
                let shown = json!({"token": text, "id": token.id, "name": token.name, "role": role.as_str()});
                writeln!(out, "{shown:#}")?;
            } else {
                writeln!(out, "{text}")?;
                writeln!(
                    notes,
                    "Token {} for {} ({}). It is not kept and cannot be shown again.",
                    token.id,
                    token.name,
                    role.as_str()
                )?;
            }
        }
        TokenAction::List => list(&store.api_tokens().await?, as_json, out)?,
        TokenAction::Revoke { id } => {
            // The whole token is accepted too, since that is what people have at hand.
            let id = crate::api::auth::split_token(id).map_or(id.as_str(), |(id, _)| id);
            let now = clock.now();
            if !store.revoke_api_token(id, now).await? {
                return Err(TokenError::Unknown(id.to_owned()));
            }
            if as_json {
                writeln!(out, "{:#}", json!({"id": id, "revokedAt": now.to_rfc3339()}))?;
            } else {
                writeln!(out, "Token {id} is revoked; a running service refuses it within 5 seconds.")?;
            }
        }
    }
    Ok(())
}

/// 48 random bits tell tokens apart; 256 more cannot be guessed. Base 32 in lower case: no underscore, no sign that
/// looks like another, and a double click selects all of it.
fn new_token(name: &str, role: Role, clock: &Clock) -> Result<(ApiToken, String), TokenError> {
    let mut random = [0_u8; 38];
    getrandom::fill(&mut random).map_err(TokenError::Random)?;
    let text = |bytes: &[u8]| data_encoding::BASE32_NOPAD.encode(bytes).to_ascii_lowercase();
    let (id, secret) = (text(&random[..6]), text(&random[6..]));
    let token = ApiToken {
        id,
        name: name.to_owned(),
        role,
        secret_sha256: hash_secret(&secret),
        created_at: clock.now(),
        last_used_at: None,
        revoked_at: None,
    };
    Ok((token, secret))
}

fn list(tokens: &[ApiToken], as_json: bool, out: &mut dyn Write) -> io::Result<()> {
    if as_json {
        let shown: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({
                    "id": token.id,
                    "name": token.name,
                    "role": token.role.as_str(),
                    "createdAt": token.created_at.to_rfc3339(),
                    "lastUsedAt": token.last_used_at.map(UnixMillis::to_rfc3339),
                    "revokedAt": token.revoked_at.map(UnixMillis::to_rfc3339),
                })
            })
            .collect();
        return writeln!(out, "{:#}", json!(shown));
    }
    writeln!(out, "{:10}  {:8}  {:24}  {:24}  {:24}  NAME", "ID", "ROLE", "CREATED", "LAST USED", "REVOKED")?;
    for token in tokens {
        let moment = |at: Option<UnixMillis>| at.map_or("-".to_owned(), UnixMillis::to_rfc3339);
        let (created, used, revoked) =
            (token.created_at.to_rfc3339(), moment(token.last_used_at), moment(token.revoked_at));
        let role = token.role.as_str();
        writeln!(out, "{:10}  {role:8}  {created:24}  {used:24}  {revoked:24}  {}", token.id, token.name)?;
    }
    Ok(())
}
