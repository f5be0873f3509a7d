//! JWTs signed as the NestJS backend signs them, and wrongly.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use meet_projector::api::auth::{JwtOptions, PublicKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use ring::{hmac, signature::RSA_PKCS1_SHA384};
use serde_json::{Value, json};

use super::fixture::NOW;

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";

macro_rules! pem {
    ($name:literal) => {
        include_str!(concat!("keys/", $name, ".pem"))
    };
}

pub const RSA_PUBLIC: &str = pem!("rsa.pub");

/// Seconds since 1970, `after` this long from now.
pub fn seconds(after: i64) -> i64 {
    NOW / 1_000 + after
}

/// All kinds of keys at once.
pub fn options() -> JwtOptions {
    let keys = [pem!("rsa.pub"), pem!("p256.pub"), pem!("ed25519.pub")].concat();
    JwtOptions {
        hs256_secret: Some(SECRET.into()),
        public_keys: PublicKey::from_pem(&keys).unwrap(),
        ..JwtOptions::default()
    }
}

fn der(pem: &str) -> Vec<u8> {
    let base64: String =
        pem.lines().skip_while(|line| !line.starts_with("-----")).filter(|line| !line.starts_with('-')).collect();
    BASE64.decode(base64.as_bytes()).unwrap()
}

/// Signs with the key that `by` names.
pub fn sign(by: &str, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let rsa = |padding| {
        let pair = RsaKeyPair::from_pkcs8(&der(pem!("rsa"))).unwrap();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(padding, &random, message, &mut signature).unwrap();
        signature
    };
    let hs256 =
        |secret: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), message).as_ref().to_vec();
    match by {
        "hs256" => hs256(SECRET),
        "hs256 of another secret" => hs256("another secret that nobody here knows"),
        "hs256 of the public key" => hs256(RSA_PUBLIC),
        "rs256" => rsa(&RSA_PKCS1_SHA256),
        "rs384" => rsa(&RSA_PKCS1_SHA384),
        "es256" => {
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der(pem!("p256")), &random).unwrap();
            pair.sign(&random, message).unwrap().as_ref().to_vec()
        }
        "eddsa" => {
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der(pem!("ed25519"))).unwrap().sign(message).as_ref().to_vec()
        }
        "nobody" => Vec::new(),
        other => panic!("no key {other}"),
    }
}

/// A token with this header and these claims, as texts.
pub fn token_of(by: &str, header: &str, claims: &str) -> String {
    let message =
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()));
    let signature = sign(by, message.as_bytes());
    format!("{message}.{}", BASE64URL_NOPAD.encode(&signature))
}

/// A good token with these claims, that ends in five minutes.
pub fn token(claims: &Value) -> String {
    let mut all = json!({"sub": "usr_1", "exp": seconds(300)});
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    token_of("hs256", r#"{"alg":"HS256","typ":"JWT"}"#, &all.to_string())
}

/// The public RSA key as a member of a set.
pub fn rsa_jwk(id: &str) -> Value {
    let pair = RsaKeyPair::from_pkcs8(&der(pem!("rsa"))).unwrap();
    let parts = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
    json!({"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256", "n": BASE64URL_NOPAD.encode(&parts.n), "e": BASE64URL_NOPAD.encode(&parts.e)})
}

/// The public P-256 key as a member of a set.
pub fn p256_jwk(id: &str) -> Value {
    let spki = der(pem!("p256.pub"));
    let (x, y) = spki[spki.len() - 64..].split_at(32);
    json!({"kty": "EC", "crv": "P-256", "kid": id, "x": BASE64URL_NOPAD.encode(x), "y": BASE64URL_NOPAD.encode(y)})
}
