//! Keys that JWTs are verified with. Each kind of key knows the one algorithm it is for, so that no header of a token
//! can make it serve another (RFC 8725 section 3.1).
//!
//! The signatures are checked by *ring*, which is in the program for TLS already. Key files are read by a DER reader of
//! some twenty lines, since three fixed shapes are all there is: RFC 8017 appendix A.1.1, RFC 5480 and RFC 8410.

use std::fmt;

use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// What a token may be signed with: `alg` of RFC 7518 section 3.1 and RFC 8037 section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    /// `None` for every other algorithm, `none` among them.
    pub(super) fn parse(alg: &str) -> Option<Self> {
        match alg {
            "HS256" => Some(Self::Hs256),
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }
}

/// Why a key cannot be used, for the person who has to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM block.
    #[error("it holds no `-----BEGIN PUBLIC KEY-----` block")]
    NoBlock,
    /// Another PEM block.
    #[error("it holds a {0}, not a public key; {1}")]
    OtherBlock(String, &'static str),
    /// The block does not hold what it says.
    #[error("its content is damaged")]
    Damaged,
    /// A key of a kind or curve that no algorithm of ours takes.
    #[error("it is neither an RSA, nor a P-256, nor an Ed25519 key")]
    Unsupported,
    /// RSA below 2,048 or above 8,192 bits.
    #[error("the RSA key has {0} bits; 2048 to 8192 are allowed")]
    RsaSize(usize),
    /// Not a set of keys at all.
    #[error("it is not a JSON Web Key Set: {0}")]
    NoSet(String),
    /// A set without a usable key.
    #[error("it holds no key for RS256, ES256 or EdDSA")]
    EmptySet,
    /// More than is read.
    #[error("it is larger than {} KiB", super::jwks::BYTES_MAX / 1024)]
    TooLarge,
}

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Material);

#[derive(Clone, PartialEq, Eq)]
enum Material {
    /// Modulus and exponent, big-endian, without zeros in front.
    Rsa {
        n: Box<[u8]>,
        e: Box<[u8]>,
    },
    /// An uncompressed point.
    P256([u8; 65]),
    Ed25519([u8; 32]),
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?})", self.algorithm())
    }
}

impl PublicKey {
    /// Every `PUBLIC KEY` block (SPKI) of a PEM text, at least one.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("-----BEGIN ") {
            let (label, after) = after.split_once("-----").ok_or(KeyError::Damaged)?;
            let (body, after) = after.split_once(&format!("-----END {label}-----")).ok_or(KeyError::Damaged)?;
            rest = after;
            match label {
                "PUBLIC KEY" => {}
                "CERTIFICATE" => {
                    let hint = "`openssl x509 -pubkey -noout -in FILE` takes its public key out";
                    return Err(KeyError::OtherBlock("certificate".into(), hint));
                }
                _ if label.ends_with("PRIVATE KEY") => {
                    let hint = "keep it with who signs; `openssl pkey -pubout -in FILE` makes the public one";
                    return Err(KeyError::OtherBlock("private key".into(), hint));
                }
                other => {
                    let hint = "`openssl pkey -pubin -pubout -in FILE` rewrites it";
                    return Err(KeyError::OtherBlock(crate::model::quoted(other), hint));
                }
            }
            let base64: String = body.split_ascii_whitespace().collect();
            let der = data_encoding::BASE64.decode(base64.as_bytes()).map_err(|_| KeyError::Damaged)?;
            keys.push(Self::from_spki(&der)?);
        }
        if keys.is_empty() { Err(KeyError::NoBlock) } else { Ok(keys) }
    }

    /// A `SubjectPublicKeyInfo`.
    fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        /// The algorithm identifiers, without their outer SEQUENCE.
        const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
        const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
        const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
        let parts = || -> Option<(&[u8], &[u8])> {
            let info = whole(der, SEQUENCE)?;
            let (algorithm, rest) = element(info, SEQUENCE)?;
            // The first byte of a BIT STRING says how many bits of the last are unused.
            Some((algorithm, whole(rest, BIT_STRING)?.strip_prefix(&[0])?))
        };
        let (algorithm, key) = parts().ok_or(KeyError::Damaged)?;
        match algorithm {
            RSA => {
                let numbers = whole(key, SEQUENCE).ok_or(KeyError::Damaged)?;
                let (n, rest) = element(numbers, INTEGER).ok_or(KeyError::Damaged)?;
                let e = whole(rest, INTEGER).ok_or(KeyError::Damaged)?;
                Self::rsa(n, e)
            }
            P256 => key.try_into().map(|point| Self(Material::P256(point))).map_err(|_| KeyError::Unsupported),
            ED25519 => key.try_into().map(|key| Self(Material::Ed25519(key))).map_err(|_| KeyError::Damaged),
            _ => Err(KeyError::Unsupported),
        }
    }

    fn rsa(n: &[u8], e: &[u8]) -> Result<Self, KeyError> {
        let without_zeros = |bytes: &[u8]| -> Box<[u8]> {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            bytes[zeros..].into()
        };
        let (n, e) = (without_zeros(n), without_zeros(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !(2048..=8192).contains(&bits) {
            return Err(KeyError::RsaSize(bits));
        }
        // What ring takes: odd, from 3 to 33 bits.
        let is_odd = e.last().is_some_and(|last| last % 2 == 1);
        if !is_odd || e.len() > 5 || (e.len() == 5 && e[0] > 1) || *e == [1] {
            return Err(KeyError::Damaged);
        }
        Ok(Self(Material::Rsa { n, e }))
    }

    /// The one algorithm it is for.
    pub(super) const fn algorithm(&self) -> Algorithm {
        match self.0 {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    /// Whether the signature is this key's, by its own algorithm.
    pub(super) fn verifies(&self, message: &[u8], signed: &[u8]) -> bool {
        match &self.0 {
            Material::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signed)
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signed)
            }
            Material::Ed25519(key) => UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signed),
        }
        .is_ok()
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// The content of the DER element of this tag in front, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), &rest[2..]),
        // Keys of ours stay far below 64 KiB.
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// The content of the only element.
fn whole(der: &[u8], tag: u8) -> Option<&[u8]> {
    element(der, tag).and_then(|(content, rest)| rest.is_empty().then_some(content))
}

/// A key of a set, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// `kid`.
    pub(super) id: Option<String>,
    pub(super) key: PublicKey,
}

/// A JSON Web Key (RFC 7517 section 4), of which only these members are looked at.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    used_for: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn key(&self) -> Option<PublicKey> {
        let is_for_signatures = self.used_for.as_deref().is_none_or(|used_for| used_for == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|word| word == "verify"));
        let bytes = |member: &Option<String>| data_encoding::BASE64URL_NOPAD.decode(member.as_deref()?.as_bytes()).ok();
        // A symmetric key (`oct`) is never taken: what is published is no secret.
        let key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => PublicKey::rsa(&bytes(&self.n)?, &bytes(&self.e)?).ok()?,
            ("EC", Some("P-256")) => {
                let (x, y): ([u8; 32], [u8; 32]) = (bytes(&self.x)?.try_into().ok()?, bytes(&self.y)?.try_into().ok()?);
                let mut point = [4; 65];
                point[1..33].copy_from_slice(&x);
                point[33..].copy_from_slice(&y);
                PublicKey(Material::P256(point))
            }
            ("OKP", Some("Ed25519")) => PublicKey(Material::Ed25519(bytes(&self.x)?.try_into().ok()?)),
            _ => return None,
        };
        let alg = self.alg.as_deref().map(Algorithm::parse);
        (is_for_signatures && alg.is_none_or(|alg| alg == Some(key.algorithm()))).then_some(key)
    }
}

/// The usable keys of a JSON Web Key Set (RFC 7517 section 5), at least one and the first 32. What cannot be used is
/// left out, as that section asks.
pub fn keys_of_set(json: &[u8]) -> Result<Vec<NamedKey>, KeyError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(json).map_err(|error| KeyError::NoSet(error.to_string()))?;
    let usable = set.keys.into_iter().filter_map(|json| {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        Some(NamedKey { key: jwk.key()?, id: jwk.kid })
    });
    let keys: Vec<NamedKey> = usable.take(32).collect();
    if keys.is_empty() { Err(KeyError::EmptySet) } else { Ok(keys) }
}
