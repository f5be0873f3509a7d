//! Who asks: [`tokens`] are ours, [`jwt`]s the NestJS backend's, and what both become is a [`Principal`].
//!
//! A handler says `state.0.auth.principal(&headers).await?` and then what it requires. The edge asks the same question
//! first, as far as memory can answer it, to know whose rate limit a request counts against.

use std::path::PathBuf;
use std::sync::Arc;

use axum::http::{HeaderMap, header};

pub use jwks::JwksSource;
pub use jwt::JwtOptions;
pub use keys::{KeyError, PublicKey, keys_of_set};
pub use principal::Principal;
pub use tokens::{REFRESH, hash_secret, split_token};

use super::limits::Limits;
use super::problem::Problem;
use crate::clock::Clock;
use crate::store::Store;
use jwt::Verifier;
pub(super) use principal::Caller;
use tokens::ApiTokens;

mod jwks;
mod jwt;
mod keys;
mod principal;
mod tokens;

pub use jwks::BYTES_MAX as JWKS_BYTES_MAX;

/// Checks credentials.
#[derive(Debug)]
pub(super) struct Authenticator {
    tokens: ApiTokens,
    jwts: Verifier,
}

/// What stands in `Authorization: Bearer …`.
#[derive(Debug, Clone, Copy)]
enum Bearer<'a> {
    Token { id: &'a str, secret: &'a str },
    Jwt(&'a str),
}

impl<'a> Bearer<'a> {
    /// RFC 6750 section 2.1.
    fn of(headers: &'a HeaderMap) -> Result<Self, Problem> {
        let value = headers.get(header::AUTHORIZATION).ok_or_else(Problem::token_missing)?.as_bytes();
        // RFC 9110 section 11.1: the scheme is compared without case.
        let token = match value.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
            _ => return Err(Problem::token_missing()),
        };
        let token = std::str::from_utf8(token).map_err(|_| Problem::token_invalid())?.trim();
        if let Some((id, secret)) = split_token(token) {
            return Ok(Self::Token { id, secret });
        }
        // A JWT begins with the Base64 of `{"` and has no underscore there; anything else has no dots.
        if token.contains('.') { Ok(Self::Jwt(token)) } else { Err(Problem::token_invalid()) }
    }
}

impl Authenticator {
    pub(super) fn new(
        store: Store,
        clock: Clock,
        tokens_file: Option<PathBuf>,
        jwt: JwtOptions,
        limits: Arc<Limits>,
    ) -> Self {
        Self {
            tokens: ApiTokens::new(store, clock.clone(), tokens_file, Arc::clone(&limits)),
            jwts: Verifier::new(jwt, clock, limits),
        }
    }

    /// Who asks, as far as memory knows: no database, no network, no waiting.
    pub(super) fn at_hand(&self, headers: &HeaderMap) -> Option<Arc<Caller>> {
        match Bearer::of(headers).ok()? {
            Bearer::Token { id, secret } => self.tokens.known(id, secret),
            Bearer::Jwt(token) => self.jwts.remembered(token),
        }
    }

    /// Who asks.
    ///
    /// # Errors
    /// 401 without a credential or with one that is not accepted, 503 when that cannot be told now.
    pub(super) async fn principal(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Problem> {
        Ok(Arc::clone(&self.caller(headers).await?.principal))
    }

    async fn caller(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        match Bearer::of(headers)? {
            Bearer::Token { id, secret } => match self.tokens.known(id, secret) {
                Some(caller) => Ok(caller),
                None => self.tokens.known_by_now(id, secret).await,
            },
            Bearer::Jwt(token) => match self.jwts.remembered(token) {
                Some(caller) => Ok(caller),
                None => self.jwts.verify(token).await,
            },
        }
    }

    /// Reads the API tokens again.
    pub(super) async fn refresh(&self) -> Result<(), Problem> {
        self.tokens.refresh().await
    }

    /// Reads the published keys of JWTs again when it is time.
    pub(super) async fn refresh_keys(&self) {
        self.jwts.refresh().await;
    }

    /// Notes the uses of stored tokens, of each once in a minute.
    pub(super) async fn note_uses(&self) -> Result<(), Problem> {
        self.tokens.note_uses().await
    }
}
