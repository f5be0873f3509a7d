//! JWTs of the NestJS backend (RFC 7519, signed as in RFC 7515): read, verified, and turned into a principal.
//!
//! The rules follow RFC 8725. Written here rather than taken from a library, because the time is our clock's, `crit` has
//! to be refused, and the libraries that check this much bring a second set of cryptography; what is hard, the
//! signatures, is *ring*'s.
//!
//! What was verified is remembered by its SHA-256 until it ends, so that a signature is checked once and not at every
//! read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use data_encoding::BASE64URL_NOPAD;
use ring::hmac;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::jwks::{Jwks, JwksSource};
use super::keys::{Algorithm, PublicKey};
use super::principal::{Caller, Principal};
use crate::api::limits::{Key, Limits};
use crate::api::problem::Problem;
use crate::clock::Clock;
use crate::model::TeacherId;
use crate::store::Role;

/// Tokens of ours are below 2 KiB; what is larger is not even decoded.
const BYTES_MAX: usize = 8 * 1024;

/// How far apart our clock and the signer's may be, in milliseconds.
const LEEWAY_MS: f64 = 60_000.0;

/// Verified tokens that are remembered, some 300 bytes each.
const REMEMBERED_MAX: usize = 4_096;

/// What JWTs have to be: `JWT_*`. Without any key no JWT is accepted.
#[derive(Debug, Clone, Default)]
pub struct JwtOptions {
    /// `JWT_HS256_SECRET`
    pub hs256_secret: Option<SecretString>,
    /// `JWT_PUBLIC_KEY_FILE`
    pub public_keys: Vec<PublicKey>,
    /// `JWT_JWKS_URL`
    pub jwks: Option<JwksSource>,
    /// `JWT_ISSUER`: what `iss` must be.
    pub issuer: Option<String>,
    /// `JWT_AUDIENCE`: what `aud` must be or hold.
    pub audience: Option<String>,
}

/// Verifies JWTs.
#[derive(Debug)]
pub(super) struct Verifier {
    secret: Option<hmac::Key>,
    public_keys: Vec<PublicKey>,
    jwks: Option<Jwks>,
    issuer: Option<String>,
    audience: Option<String>,
    clock: Clock,
    limits: Arc<Limits>,
    remembered: RwLock<HashMap<[u8; 32], Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    caller: Arc<Caller>,
    validity: Validity,
    /// [`Jwks::generation`] when it was verified.
    generation: u64,
}

/// The header (RFC 7515 section 4.1). Keys that it names or brings (`jku`, `jwk`, `x5u`, `x5c`) are never used.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Option<Cow<'a, str>>,
    /// Extensions that must be understood; we understand none.
    #[serde(default)]
    crit: IsThere,
}

/// Whether a member is there, whatever its value.
#[derive(Default)]
struct IsThere(bool);

impl<'de> Deserialize<'de> for IsThere {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(from).map(|_| Self(true))
    }
}

/// The claims that are looked at. A member that is there twice is refused by serde.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<String>,
    aud: Option<OneOrMany>,
    sub: Option<String>,
    role: Option<String>,
    roles: Option<Vec<String>>,
    teacher_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// `nbf` and `exp` with the leeway, as Unix milliseconds.
#[derive(Debug, Clone, Copy)]
struct Validity {
    from: f64,
    until: f64,
}

/// A token that was taken apart and not verified yet.
struct Parts<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// What is signed: header and claims as they were sent.
    message: &'a [u8],
    claims: Vec<u8>,
    signature: Vec<u8>,
}

impl Verifier {
    pub(super) fn new(options: JwtOptions, clock: Clock, limits: Arc<Limits>) -> Self {
        let JwtOptions { hs256_secret, public_keys, jwks, issuer, audience } = options;
        let secret = hs256_secret.map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()));
        let jwks = jwks.map(|source| Jwks::new(source, clock.clone()));
        Self { secret, public_keys, jwks, issuer, audience, clock, limits, remembered: RwLock::default() }
    }

    /// Keeps the published keys fresh.
    pub(super) async fn refresh(&self) {
        if let Some(jwks) = &self.jwks {
            jwks.refresh_when_due().await;
        }
    }

    /// Whose token it is, if it was verified before and still holds.
    pub(super) fn remembered(&self, token: &str) -> Option<Arc<Caller>> {
        if token.len() > BYTES_MAX {
            return None;
        }
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        let known = remembered.get(&digest(token))?;
        (known.generation == self.generation() && known.validity.is_now(&self.clock).is_ok())
            .then(|| Arc::clone(&known.caller))
    }

    /// Whose token it is.
    pub(super) async fn verify(&self, token: &str) -> Result<Arc<Caller>, Problem> {
        let parts = take_apart(token).ok_or_else(Problem::token_invalid)?;
        let mut generation = self.generation();
        if !self.is_signed(&parts) {
            // Only a key that is not known may have been published since; a wrong signature of a known one is wrong.
            let Some(jwks) = self.jwks.as_ref().filter(|jwks| {
                parts.algorithm != Algorithm::Hs256
                    && jwks.candidates(parts.key_id.as_deref(), parts.algorithm).is_empty()
            }) else {
                return Err(Problem::token_invalid());
            };
            jwks.refresh_for_unknown_key().await;
            generation = self.generation();
            if !self.is_signed(&parts) {
                return Err(if jwks.is_empty() { Problem::keys_unavailable() } else { Problem::token_invalid() });
            }
        }
        // From here on the signer is known, and may be told what is wrong.
        let claims: Claims = serde_json::from_slice(&parts.claims)
            .map_err(|_| Problem::token_refused("its claims are not what they should be"))?;
        let validity = self.check(&claims)?;
        let caller = self.caller(claims)?;
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, known| known.validity.is_now(&self.clock).is_ok() && known.generation == generation);
            if remembered.len() >= REMEMBERED_MAX {
                remembered.clear();
            }
        }
        remembered.insert(digest(token), Remembered { caller: Arc::clone(&caller), validity, generation });
        Ok(caller)
    }

    fn generation(&self) -> u64 {
        self.jwks.as_ref().map_or(0, Jwks::generation)
    }

    fn is_signed(&self, parts: &Parts) -> bool {
        if parts.algorithm == Algorithm::Hs256 {
            // Compares in constant time.
            let secret = self.secret.as_ref();
            return secret.is_some_and(|key| hmac::verify(key, parts.message, &parts.signature).is_ok());
        }
        let own = self.public_keys.iter().filter(|key| key.algorithm() == parts.algorithm).cloned();
        let published = self.jwks.iter().flat_map(|jwks| jwks.candidates(parts.key_id.as_deref(), parts.algorithm));
        own.chain(published).any(|key| key.verifies(parts.message, &parts.signature))
    }

    fn check(&self, claims: &Claims) -> Result<Validity, Problem> {
        let exp = claims.exp.ok_or_else(|| Problem::token_refused("it has no exp"))?;
        let from = claims.nbf.map_or(f64::NEG_INFINITY, |nbf| nbf * 1_000.0 - LEEWAY_MS);
        let validity = Validity { from, until: exp * 1_000.0 + LEEWAY_MS };
        validity.is_now(&self.clock)?;
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(Problem::token_refused("its iss is not the issuer that this service expects"));
        }
        if let Some(expected) = &self.audience {
            let is_for_us = match &claims.aud {
                None => false,
                Some(OneOrMany::One(audience)) => audience == expected,
                Some(OneOrMany::Many(audiences)) => audiences.contains(expected),
            };
            if !is_for_us {
                return Err(Problem::token_refused("its aud is not the audience that this service is"));
            }
        }
        Ok(validity)
    }

    fn caller(&self, claims: Claims) -> Result<Arc<Caller>, Problem> {
        // `teacher` is no role of its own: what makes a teacher is the id. Words that we do not know are other
        // programs' roles.
        let words = claims.role.iter().chain(claims.roles.iter().flatten());
        let role = words.filter_map(|word| Role::parse(word)).max();
        let teacher = claims.teacher_id.map(TeacherId::parse).transpose();
        let teacher = teacher.map_err(|_| Problem::token_refused("its teacherId is not an id of a teacher"))?;
        let subject = claims.sub.as_deref().or(teacher.as_ref().map(TeacherId::as_str)).unwrap_or_default();
        let name = format!("jwt:{}", subject.chars().take(100).collect::<String>());
        let bucket = self.limits.bucket(Key::Subject(name.as_str().into()));
        Ok(Arc::new(Caller { principal: Arc::new(Principal::new(role, teacher, name)), bucket }))
    }
}

impl Validity {
    fn is_now(self, clock: &Clock) -> Result<(), Problem> {
        // 2^53 ms are 285,000 years.
        #[expect(clippy::cast_precision_loss, reason = "the time is far below 2^53 ms")]
        let now = clock.now().get() as f64;
        if now >= self.until {
            return Err(Problem::token_refused("it has expired"));
        }
        if now < self.from {
            return Err(Problem::token_refused("it is not valid yet"));
        }
        Ok(())
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// The three parts of the compact form (RFC 7515 section 7.1), strictly: no padding, no bits left over.
fn take_apart(token: &str) -> Option<Parts<'_>> {
    if token.len() > BYTES_MAX {
        return None;
    }
    let (message, signature) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
    let header = decode(header)?;
    let header: Header = serde_json::from_slice(&header).ok()?;
    if header.crit.0 {
        return None;
    }
    Some(Parts {
        algorithm: Algorithm::parse(&header.alg)?,
        key_id: header.kid.map(Cow::into_owned),
        message: message.as_bytes(),
        claims: decode(claims)?,
        signature: decode(signature)?,
    })
}
