//! Id tokens: whom an account is, signed, and the ways in which one can be wrong.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What is wrong with the id tokens of the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdTokenMode {
    /// Nothing.
    #[default]
    Normal,
    /// Nothing: `iss` without https, `aud` as a list; both forms are allowed.
    OtherForms,
    /// `iss` is somebody else.
    WrongIssuer,
    /// `aud` and `azp` are another client.
    WrongAudience,
    /// `exp` was an hour ago.
    Expired,
    /// `iat` is in an hour.
    FromTheFuture,
    /// `sub` is empty.
    WithoutSubject,
    /// There is none.
    Missing,
}

impl IdTokenMode {
    /// Makes good claims as bad as the mode says; `false` for no id token at all.
    pub(super) fn spoil(self, claims: &mut Value, now_s: i64) -> bool {
        match self {
            Self::Normal => {}
            Self::OtherForms => {
                claims["iss"] = "accounts.google.com".into();
                claims["aud"] = json!([claims["aud"]]);
            }
            Self::WrongIssuer => claims["iss"] = "https://accounts.evil.example".into(),
            Self::WrongAudience => {
                claims["aud"] = "another-client.apps.googleusercontent.com".into();
                claims["azp"] = claims["aud"].clone();
            }
            Self::Expired => claims["exp"] = (now_s - 3_600).into(),
            Self::FromTheFuture => claims["iat"] = (now_s + 3_600).into(),
            Self::WithoutSubject => claims["sub"] = "".into(),
            Self::Missing => return false,
        }
        true
    }
}

/// A JWT signed with HS256 under the client's secret, as OpenID Connect Core §10.1 allows. Google signs with RS256;
/// a client that takes the token straight from the token endpoint need not check the signature (§3.1.3.7, 6).
pub(super) fn id_token(claims: &Value, secret: &str) -> String {
    let base64 = |bytes: &[u8]| data_encoding::BASE64URL_NOPAD.encode(bytes);
    let head = base64(json!({"alg": "HS256", "typ": "JWT"}).to_string().as_bytes());
    let signed = format!("{head}.{}", base64(claims.to_string().as_bytes()));
    let signature = base64(&hmac_sha256(secret.as_bytes(), signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// RFC 2104 over SHA-256 (block of 64 bytes).
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0_u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_that_of_rfc_4231() {
        let signature = hmac_sha256(b"Jefe", b"what do ya want for nothing?");
        assert_eq!(
            data_encoding::HEXLOWER.encode(&signature),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
